"""A worker that runs out of memory gives back to the system what it does not use.

malloc keeps what is freed, with our settings nearly all of it (`curator_dask.cluster.local.MALLOC`: a model is much
faster so). Dask counts that as used, pauses the worker, and resumes it when it is less: without this, never.
One that is paused and does nothing lets go of its loaders, too, and of its models where that is not enough: what it is
given next makes them again, and so it goes on, if slowly.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import gc
from typing import Any

from tornado.ioloop import PeriodicCallback

from curator_dask.cache import ENCODERS, LOADERS, SpecCache

_EVERY = 1000.0  # milliseconds
_CLOSE = 0.9  # of what Dask pauses a worker at
_NAME = "curator_dask-memory"


def watch_memory(worker: Any) -> None:
    """Look at a worker's memory once a second, from its event loop, until `leave_memory`."""
    if _NAME not in worker.periodic_callbacks:
        callback = PeriodicCallback(functools.partial(_look, worker), _EVERY)
        worker.periodic_callbacks[_NAME] = callback
        callback.start()


def leave_memory(worker: Any) -> None:
    """The end of `watch_memory`."""
    callback = worker.periodic_callbacks.pop(_NAME, None)
    if callback is not None:
        callback.stop()


async def _look(worker: Any) -> None:
    limit, paused_at = worker.memory_manager.memory_limit, worker.memory_manager.memory_pause_fraction
    used = worker.monitor.get_process_memory
    if not (limit and paused_at and used() > _CLOSE * paused_at * limit):
        return
    await asyncio.to_thread(give_back)  # not in the loop: it takes up to a second
    for kept in (LOADERS, ENCODERS):  # what is sooner made again first
        if not _rests(worker) or used() <= paused_at * limit:
            return
        await asyncio.to_thread(give_back, kept)


def _rests(worker: Any) -> bool:
    """Whether Dask has paused a worker, and it has nothing left to do."""
    return worker.status.name == "paused" and not (worker.state.executing or worker.state.long_running)


def give_back(kept: SpecCache[Any] | None = None) -> None:
    """Give what malloc keeps to the system; Dask itself collects what Python has dropped when it pauses a worker.

    Parameters
    ----------
    kept
        What is closed first, as far as no task is using it.
    """
    if kept is not None:
        kept.clear()
        gc.collect()  # a model's modules know one another
    with_glibc = _malloc_trim()
    if with_glibc is not None:
        with_glibc(0)


@functools.cache
def _malloc_trim() -> Any:
    """glibc's; None with another library."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
