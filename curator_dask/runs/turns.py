"""Taking turns at computing, so that a worker fetches the next remote shard meanwhile, or waits for its disk.

A task that needs a remote shard fetches it first, then waits until one of the worker's turns is free, and then
leaves the worker's pool of threads (`distributed.secede`): the worker starts its next task, which fetches and
waits in its turn. So at most one shard a thread is staged ahead, whatever the scheduler does.

A task that has nothing left to do but to wait for the disk leaves the pool likewise (`aside`).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from curator_dask.cache import POSSESSIONS
from curator_dask.cluster.timing import spending
from curator_dask.errors import ShardError
from curator_dask.storage import Options, is_remote
from curator_dask.webdataset.parquet import file_of, is_parquet_shard
from curator_dask.webdataset.staging import STAGE, current_worker

_thread = threading.local()

_ASIDE = threading.BoundedSemaphore(2)
"""For the tasks of this process that wait for its disk: what they have written it must write in the end."""


class Turns:
    """How many tasks of a worker may compute at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: threading.Semaphore | None = None
        self._held = 0

    @contextmanager
    def take(self, count: int) -> Iterator[None]:
        """Wait for one of `count` turns, and hold it until the end of the block."""
        with self._lock:
            if self._free is None:
                self._free = threading.Semaphore(count)
            free = self._free
        with free:
            with self._lock:
                self._held += 1
            try:
                yield
            finally:
                with self._lock:
                    self._held -= 1

    def in_use(self) -> int:
        """Turns that tasks hold."""
        return self._held

    def clear(self) -> None:
        """Nothing is kept but the count, which is the worker's."""


TURNS = POSSESSIONS.add("turns", Turns())
"""Those of this process."""


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
            url = url if is_parquet_shard(url) else file_of(url)
            if not is_parquet_shard(url) and STAGE.has_room(url, options):
                with spending("fetch"):
                    held.enter_context(STAGE.lease(url, options))
        held.enter_context(TURNS.take(worker.state.nthreads))
        _leave_pool()
        _thread.has_turn = True
        try:
            yield
        finally:
            _thread.has_turn = False


@contextmanager
def aside() -> Iterator[None]:
    """A block that waits for the disk: meanwhile the worker does its next task. Two at most wait so at a time."""
    if current_worker() is None or not _ASIDE.acquire(blocking=False):
        yield
        return
    try:
        _leave_pool()
        yield
    finally:
        _ASIDE.release()


def _leave_pool() -> None:
    from distributed import secede

    if not getattr(
        _thread, "has_left", False
    ):  # a task with two models comes here twice, a thread has one task
        _thread.has_left = True
        secede()
