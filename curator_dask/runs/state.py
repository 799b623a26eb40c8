"""What a run keeps on its workers, and lets go at its end."""

from __future__ import annotations

from typing import Any

from curator_dask.webdataset.staging import STAGE


def clear_stages(client: Any) -> None:
    """Remove the local copies of remote shards, here and on all workers."""
    STAGE.clear()
    if client is not None and client.status == "running":
        client.run(_clear_stage, wait=False)  # not to be held up by a worker that does not answer


async def _clear_stage() -> None:  # only a coroutine is not waited for
    from curator_dask.webdataset.staging import STAGE  # that of the worker's process

    STAGE.clear()
