"""What a run lets go on its workers when it ends."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from curator_dask.webdataset.staging import STAGE

_POLL, _WHILE = 0.2, 60.0  # seconds between looks whether the run's last tasks have ended, and for how long


def clear_stages(client: Any) -> None:
    """Remove the local copies of remote shards, here and on all workers."""
    STAGE.clear()
    if client is not None and client.status == "running":
        client.run(_clear_stage, wait=False)  # not to be held up by a worker that does not answer


async def _clear_stage(dask_worker: Any) -> None:  # only a coroutine is not waited for
    from curator_dask.webdataset.staging import STAGE  # that of the worker's process

    STAGE.clear()
    # A task that was under way when an error ended the run may still fetch a shard.
    end = time.monotonic() + _WHILE
    while (dask_worker.state.executing or dask_worker.state.long_running) and time.monotonic() < end:
        await asyncio.sleep(_POLL)
        STAGE.clear()
