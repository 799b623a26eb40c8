"""Of which kind the frames of a dataset are: pandas' or cuDF's, as its workers make them."""

from __future__ import annotations

from curator_dask import backend
from curator_dask.cluster.package import check_package
from curator_dask.cluster.presence import Presence
from curator_dask.cluster.workers import current_client, result_of, wait_for_a_worker


def worker_backend() -> backend.Backend:
    """The backend of a frame's meta: that of the workers, whose partitions it stands for.

    Where they make cuDF's frames and this process can make none (a login node), pandas' mean the same types.
    """
    here, client = backend.current(), current_client()
    if client is None:
        return here
    wait_for_a_worker(client)
    check_package(client)
    found = result_of(client.submit(backend.current, pure=False), Presence(client))
    if isinstance(found, BaseException):
        raise found
    there: backend.Backend = found
    return there if there.frames == here.frames else backend.Backend(here.device, "pandas")
