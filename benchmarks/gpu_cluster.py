"""End to end on a cluster of one worker: what the workers run stands here, where they can import it."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from pathlib import Path
from typing import Any

from distributed import LocalCluster

from benchmarks.harness import Case
from curator_dask import backend, get_client
from curator_dask.cache import ENCODERS
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ClusterError
from curator_dask.image.embedders import TimmImageEmbedder


def start_cluster(device: str, tasks: int, stack: contextlib.ExitStack) -> tuple[Any, str]:
    """A client of a new cluster, closed with the stack, and what the cluster was made with.

    Where no cluster of GPUs can be had, a plain one takes its place, its worker on the GPU.

    Parameters
    ----------
    device
        ``"cpu"`` or ``"gpu"``.
    tasks
        Of the one worker, at once.
    stack
        Closes them.
    """
    settings: dict[str, Any] = {"n_workers": 1, "threads_per_worker": tasks}
    try:
        client = get_client(cluster_type=device, **settings, verbose=False)
        through = "LocalCUDACluster" if device == "gpu" else "LocalCluster"
    except ClusterError as error:
        if device == "cpu":
            raise
        cluster = stack.enter_context(LocalCluster(**settings, dashboard_address=None))
        client = get_client(scheduler_address=cluster, verbose=False)
        through = f"LocalCluster with a worker on the GPU ({' '.join(str(error).split())[:200]})"
    stack.callback(client.close)
    return client, through


def end_to_end(client: Any, embedder: TimmImageEmbedder, device: str, folder: Path) -> Case:
    """A whole run, Parquet files written into a new folder each time.

    Parameters
    ----------
    client
        Of `start_cluster`.
    embedder
        With ``compile=True`` the case fails on a worker that could not compile the model, which would run it as it
        is: that is another case.
    device
        The one that the worker must compute on.
    folder
        Shards, all of whose images can be embedded.

    Raises
    ------
    RuntimeError
        The worker computes on another device; in a run: rows failed, or the model was not compiled.
    """
    (found,) = client.run(device_of_worker).values()
    if found != device:
        raise RuntimeError(f"the worker computes on the {found}, expected the {device}: see its log")

    def run() -> int:
        with (
            client.as_current(),
            tempfile.TemporaryDirectory() as out,
            contextlib.redirect_stdout(io.StringIO()),
        ):
            saved = embedder(ImageTextPairDataset.from_webdataset(str(folder))).save_metadata(out)
        if saved.failed or saved.failed_shards:
            raise RuntimeError(f"{folder.name}: expected vectors of all images, found {saved}")
        if embedder.compile is True and not all(client.run(runs_compiled, embedder.model_name).values()):
            raise RuntimeError(f"the worker could not compile {embedder.model_name}: its log says why")
        return saved.rows

    return Case(run, [os.getpid(), *client.run(os.getpid).values()])


def device_of_worker() -> str:
    """Where this process computes."""
    return backend.current().device


def runs_compiled(model_name: str) -> bool:
    """Whether this process has compiled the timm model, for which it was asked with ``compile=True``."""
    for spec in ENCODERS.specs():
        made: Any = spec
        if made.model_name == model_name and made.compile is True:
            with ENCODERS.lease(made, made.build) as encoder:
                return encoder._run.compiled_for > 0  # images of the batch that it is compiled for
    return False
