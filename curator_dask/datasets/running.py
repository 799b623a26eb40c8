"""Running one task a partition, where one that fails does not stop the others."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from distributed import (
    Client,
    Future,
    KilledWorker,
    WorkerPlugin,
    as_completed,
    default_client,
    futures_of,
    wait,
)

from curator_dask.errors import ClusterError, CuratorError, ShardError

if TYPE_CHECKING:
    import dask.dataframe as dd

S = TypeVar("S")
T = TypeVar("T")

_THREADS = 16  # that look at files at once


def current_client() -> Client | None:
    """The Dask client of this process, None if there is none: then work is done in this process."""
    try:
        return default_client()
    except ValueError:
        return None


class OnlySurprises(logging.Filter):
    """Keeps a worker from logging, with a traceback, errors that the client explains in one line."""

    def filter(self, record: logging.LogRecord) -> bool:
        """False for distributed's record of a task that ended with a `CuratorError`, or was cancelled."""
        kinds: list[type] = [CuratorError, *CuratorError.__subclasses__()]
        expected = tuple(f"{kind.__name__}(" for kind in kinds)
        texts = record.args if isinstance(record.args, tuple) else ()
        if "ended with CancelledError" in record.getMessage():
            return False  # of a task that was under way when the run was given up
        return not any(isinstance(text, str) and text.startswith(expected) for text in texts)


class WorkerSetup(WorkerPlugin):
    """What runs need once on every worker, also on one that joins later."""

    name = "curator_dask-worker-setup"

    def setup(self, worker: Any) -> None:
        """Called by distributed when the worker has started, or the plugin is registered."""
        for name in ("distributed.worker", "distributed.worker.state_machine"):
            log = logging.getLogger(name)
            for old in [each for each in log.filters if isinstance(each, OnlySurprises)]:
                log.removeFilter(old)
            log.addFilter(OnlySurprises())


def in_threads(function: Callable[[S], T], items: Sequence[S]) -> list[T]:
    """``[function(item) for item in items]``, many at a time: for looks at files, which are waiting, mostly."""
    # A few items a task: for a local file a task of its own would take far longer than the look.
    size = max(1, len(items) // (8 * _THREADS))
    blocks = [items[start : start + size] for start in range(0, len(items), size)]
    with ThreadPoolExecutor(_THREADS) as pool:
        done = pool.map(lambda block: [function(item) for item in block], blocks)
        return [result for results in done for result in results]


def run_partitions(
    frame: dd.DataFrame, client: Client | None, apart: bool = True
) -> Iterator[tuple[int, Any]]:
    """Compute the partitions of a frame, and give each as it is done.

    Parameters
    ----------
    frame
        Every partition a small pandas frame.
    client
        Of the cluster; None computes one partition after the other in this process.
    apart
        The partitions share no work. Without a cluster those that do are computed in one go: one that fails
        then fails all.

    Yields
    ------
    number
        Of the partition.
    result
        The partition, or the exception that it ended with. If the iterator is closed early, what has not been
        computed is cancelled.
    """
    if client is None:
        if not apart:
            frame = frame.persist(scheduler="sync")
        for number, part in enumerate(frame.to_delayed()):
            try:
                yield number, part.compute(scheduler="sync")
            except Exception as error:
                yield number, error
        return

    # Fused here, since persist does not: read, embed and write are one task, and a partition's vectors never
    # wait in a worker's memory as a result.
    futures = futures_of(client.persist(frame.optimize()))
    numbers = {future.key: future.key[1] for future in futures}
    try:
        done = as_completed(futures, raise_errors=False)
        del futures  # a result that has been given is let go on its worker
        for future in done:
            number = numbers.pop(future.key)
            if future.status == "finished":
                yield number, future.result()
            else:
                yield number, _explained(future)
    finally:
        client.cancel([_future(client, key) for key in numbers]) if numbers else None


def run_everywhere(function: Any, client: Client | None) -> dict[str, Any]:
    """Call a function once on every worker that is there now, or in this process without a cluster.

    Returns
    -------
    What it returned, by the worker's address. A worker that dies meanwhile is left out.

    Raises
    ------
    ClusterError
        No worker finished.
    """
    if client is None:
        return {"this process": function()}
    pending = {
        address: client.submit(function, workers=[address], pure=False)
        for address in _worker_addresses(client)
    }
    results = {}
    try:
        while pending:
            for address, future in list(pending.items()):
                if future.done():
                    results[address] = pending.pop(address).result()
            alive = _worker_addresses(client)
            # A task that is tied to a worker that is gone would wait for ever.
            pending = {address: future for address, future in pending.items() if address in alive}
            if pending:
                _wait_for_any(list(pending.values()))
    finally:
        client.cancel(list(pending.values()))
    if not results:
        raise ClusterError(
            "no worker could load the model: each died while trying, or there is none. Look at the workers' logs;"
            " most often it is memory: fewer workers (n_workers) leave more for each"
        )
    return results


def _worker_addresses(client: Client) -> list[str]:
    # Asked of the scheduler now: what the client remembers of it may be empty for a moment.
    return list(client.nthreads())


def _wait_for_any(futures: list[Any]) -> None:
    with contextlib.suppress(TimeoutError):
        wait(futures, timeout=1, return_when="FIRST_COMPLETED")


def _future(client: Client, key: Any) -> Any:
    return Future(key, client)


def _explained(future: Any) -> BaseException:
    error = future.exception()
    if isinstance(error, KilledWorker):
        return ShardError(
            f"{error.allowed_failures + 1} workers died while working on it. Look at the workers' logs: most often"
            " it is memory (smaller batch_size or rows_per_partition) or a damaged file"
        )
    if isinstance(error, CuratorError):
        return error
    return error if error is not None else ShardError(f"the task ended as {future.status}")
