"""Taking turns at computing, so that a worker fetches the next remote shard meanwhile.

A task that needs a remote shard fetches it first, then waits until one of the worker's turns is free, and then
leaves the worker's pool of threads (`distributed.secede`): the worker starts its next task, which fetches and
waits in its turn. So at most one shard a thread is staged ahead, whatever the scheduler does.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from curator_dask.errors import ShardError
from curator_dask.storage import Options, is_remote
from curator_dask.webdataset.staging import STAGE, current_worker

_lock = threading.Lock()
_turns: threading.Semaphore | None = None
_thread = threading.local()


@contextmanager
def turn(url: str | None, options: Options = None) -> Iterator[None]:
    """Fetch a remote shard, wait for a turn, and hold both until the end of the block.

    For a local shard, outside of a Dask worker, and within a turn of this task, there is nothing to wait for.

    Parameters
    ----------
    url
        Of the shard that is needed first; the task may open others.
    options
        For fsspec.
    """
    worker = current_worker() if url is not None and is_remote(url) else None
    if worker is None or url is None or getattr(_thread, "has_turn", False):
        yield
        return
    with ExitStack() as held:
        # What cannot be fetched is for the reader to report. Where there is no room it waits for its turn.
        with contextlib.suppress(ShardError):
            if STAGE.has_room(url, options):
                held.enter_context(STAGE.lease(url, options))
        held.enter_context(_semaphore(worker))
        _leave_pool()
        _thread.has_turn = True
        try:
            yield
        finally:
            _thread.has_turn = False


def _semaphore(worker: Any) -> threading.Semaphore:
    global _turns
    with _lock:
        if _turns is None:
            _turns = threading.Semaphore(worker.state.nthreads)
        return _turns


def _leave_pool() -> None:
    from distributed import secede

    if not getattr(
        _thread, "has_left", False
    ):  # a task with two models comes here twice, a thread has one task
        _thread.has_left = True
        secede()
