"""What a run lets go on its workers when it ends."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from curator_dask.webdataset.folders import STORED
from curator_dask.webdataset.staging import STAGE

_POLL, _WHILE = 0.2, 60.0  # seconds between looks whether the run's last tasks have ended, and for how long


def clear_stages(client: Any) -> None:
    """Forget what was copied of stores and how their folders were listed, here and on all workers."""
    STAGE.clear()
    STORED.clear()
    if client is not None and client.status == "running":
        client.run(_clear_stage, wait=False)  # not to be held up by a worker that does not answer


async def _clear_stage(dask_worker: Any) -> None:  # only a coroutine is not waited for
    from curator_dask.webdataset.folders import STORED  # those of the worker's process
    from curator_dask.webdataset.staging import STAGE

    STAGE.clear()
    STORED.clear()
    # A task that was under way when an error ended the run may still fetch a shard.
    end = time.monotonic() + _WHILE
    while (dask_worker.state.executing or dask_worker.state.long_running) and time.monotonic() < end:
        await asyncio.sleep(_POLL)
        STAGE.clear()
        STORED.clear()
