"""Running one task a partition, where one that fails does not stop the others."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
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
)
from distributed.client import FutureCancelledError

from curator_dask.datasets.presence import ANSWER, Presence, connection_lost, threads_of_workers
from curator_dask.errors import ClusterError, CuratorError, ShardError

if TYPE_CHECKING:
    import dask.dataframe as dd

S = TypeVar("S")
T = TypeVar("T")

_THREADS = 16  # that look at files at once
_WAITS = 0.02  # seconds of waiting, after which looks at files go to threads

#: Partitions that are handed out at once, the next when half of them are done; more where there are more than half
#: as many threads. What a scheduler needs for a task (0.5 ms and 17 kB) it then needs for few.
AHEAD = 1000

_POLL = 0.05  # seconds between looks at what gives no notice
_LOOK = 0.5  # seconds between looks whether there is still a cluster, while none of its results arrives
_TELL = 10.0  # seconds for what may be left undone
_FETCHES = 5  # failures to fetch a result that is said to be there, in a row
_LOADS = 3  # times that a model is tried where every worker died of loading it


class ResultLost(ShardError):
    """A partition was done, but what it reported died with its worker, and was not made again."""


class WorkersDied(ShardError):
    """Every worker that a partition was given to died, as far as Dask tries."""


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
        if record.exc_info and isinstance(record.exc_info[1], OSError):
            record.exc_info = record.exc_text = None  # a connection that was lost takes one line to say
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


def set_up_workers(client: Client) -> None:
    """Register `WorkerSetup` on every worker.

    Raises
    ------
    ClusterError
        There is no scheduler any more.
    """
    presence = Presence(client)
    while True:
        presence.check()
        try:
            client.register_plugin(WorkerSetup())
        except OSError:
            time.sleep(_POLL)  # a worker died meanwhile; the one in its place gets it when it joins
        else:
            return


def tell_workers(function: Callable[[], Any], client: Client) -> None:
    """Call a function on every worker that answers within a few seconds; that others do not is no error."""
    if client.status == "running":
        with contextlib.suppress(Exception):
            client.sync(client._run, function, on_error="ignore", callback_timeout=_TELL)


def in_threads(function: Callable[[S], T], items: Sequence[S]) -> list[T]:
    """``[function(item) for item in items]``, many at a time where they wait: for looks at files.

    The first are looked at one by one. Files that the system knows already answer at once, and threads that do not
    wait stand in each other's way: 200,000 such looks take 1.4 s in one thread and 4.3 s in 16.
    """
    done: list[T] = []
    waited = worked = 0.0
    for item in items:
        clock, work = time.perf_counter(), time.thread_time()
        done.append(function(item))
        work = time.thread_time() - work
        worked += work
        waited += time.perf_counter() - clock - work
        if waited > _WAITS and waited > 2 * worked:
            break
    rest = items[len(done) :]
    # A few items a task, which costs more than a quick look.
    size = max(1, len(rest) // (8 * _THREADS))
    blocks = [rest[start : start + size] for start in range(0, len(rest), size)]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda block: [function(item) for item in block], blocks)
        return [*done, *(result for results in found for result in results)]


def run_partitions(
    frame: dd.DataFrame,
    client: Client | None,
    apart: bool = True,
    resources: Mapping[str, float] | None = None,
) -> Generator[tuple[int, Any], None, None]:
    """Compute the partitions of a frame, and give each as it is done.

    Parameters
    ----------
    frame
        Every partition a small pandas frame.
    client
        Of the cluster; None computes one partition after the other in this process.
    apart
        The partitions share no work, and are handed out a thousand or two at a time. Those that do are handed out
        all at once; without a cluster they are computed in one go: one that fails then fails all.
    resources
        Of a worker, that a partition takes.

    Yields
    ------
    number
        Of the partition.
    result
        As `run_pieces` gives it.
    """
    # Not above: it loads dask.dataframe, and `curator-dask check`, which needs `in_threads`, is done sooner.
    from curator_dask.frames.lineage import pieces

    if client is None and not apart:
        frame = frame.persist(scheduler="sync")
    size = AHEAD if client is None else max(AHEAD, 2 * sum(threads_of_workers(client).values()))
    # Fused, since persist does not do that: read, embed and write are one task, and a partition's vectors never
    # wait in a worker's memory as a result.
    waiting = pieces(frame, size) if apart else iter([frame.optimize()])
    handed_out = 0

    def next_piece(under_way: int) -> tuple[dd.DataFrame, Sequence[int]] | None:
        nonlocal handed_out
        piece = next(waiting, None) if under_way <= size // 2 else None
        if piece is None:
            return None
        numbers = range(handed_out, handed_out + piece.npartitions)
        handed_out = numbers.stop
        return piece, numbers

    yield from run_pieces(next_piece, client, resources)


def run_pieces(
    next_piece: Callable[[int], tuple[dd.DataFrame, Sequence[T]] | None],
    client: Client | None,
    resources: Mapping[str, float] | None = None,
) -> Generator[tuple[T, Any], None, None]:
    """Compute the partitions of frames that come one after the other, and give each partition as it is done.

    Parameters
    ----------
    next_piece
        Gives the next frame and names for its partitions, or None: there is none, or it is not to be handed out
        while so many tasks, as it is called with, are not done. It is asked again whenever some are.
    client
        Of the cluster; None computes one partition after the other in this process.
    resources
        Of a worker, that a partition takes.

    Yields
    ------
    name
        Of the partition.
    result
        The partition, or the exception that it ended with. If the iterator is closed early, what has not been
        computed is cancelled.
    """
    if client is None:
        while (named := next_piece(0)) is not None:
            for name, part in zip(named[1], named[0].to_delayed(), strict=True):
                try:
                    yield name, part.compute(scheduler="sync")
                except Exception as error:
                    yield name, error
        return

    presence = Presence(client)
    done = as_completed([], raise_errors=False, loop=client.loop)
    names: dict[Any, T] = {}
    try:
        while True:
            while (named := next_piece(len(names))) is not None:
                futures = futures_of(client.persist(named[0], resources=resources))
                names.update({future.key: named[1][future.key[1]] for future in futures})
                done.update(futures)
                del futures  # a result that has been given is let go on its worker
            if not names:
                return
            for key, result in _finished(done, presence):
                yield names.pop(key), result
    finally:
        if names and client.status == "running":
            client.cancel([_future(client, key) for key in names])


def run_alone(
    frame: dd.DataFrame, number: int, client: Client, resources: Mapping[str, float] | None = None
) -> Any:
    """Compute one partition while nothing else of this run is on the cluster.

    When a worker dies, Dask counts that against every task that it held (distributed#1469, #2694): what ends with
    `WorkersDied` among others may be innocent, what does so alone is not.

    Returns
    -------
    The partition, or the exception that it ended with.
    """
    # Under a new name: what Dask remembers of the old one is that it failed.
    alone = frame.partitions[[number]].map_partitions(
        _same, token=f"alone-{uuid.uuid4().hex}", meta=frame._meta
    )
    for _ in range(_FETCHES):
        ((_, result),) = run_partitions(alone, client, resources=resources)
        if not isinstance(result, ResultLost):
            break
    return result


def _same(part: Any) -> Any:
    return part


def _finished(done: as_completed, presence: Presence) -> Iterator[tuple[Any, Any]]:
    """Key of each partition that is done now, with its result or exception; waits a while if there is none."""
    presence.check()
    with done.thread_condition:  # under its lock, so that none is missed that ends just now
        if not done.has_ready():
            done.thread_condition.wait(_LOOK)
    batch = done.next_batch(block=False)
    results = _gathered([future for future in batch if future.status == "finished"], presence.client)
    while batch:
        future = batch.pop()
        key = future.key
        result = results.pop(key) if key in results else _result(future, presence)
        del future  # let go on its worker
        yield key, result


def _gathered(futures: list[Future], client: Client) -> dict[Any, Any]:
    """Results by key, fetched in one go; none where that fails: then each has to be asked for."""
    if len(futures) < 2:
        return {}
    try:
        results = client.sync(client._gather, futures, callback_timeout=ANSWER)
    except (Exception, asyncio.CancelledError):
        return {}
    return {future.key: result for future, result in zip(futures, results, strict=True)}


def _result(future: Future, presence: Presence) -> Any:
    """What a future that is done ended with."""
    failures = 0
    while True:
        presence.check()
        if future.status == "error":
            return _explained(future)
        try:
            return future.result(timeout=ANSWER)
        except FutureCancelledError as error:
            if error.reason == "scheduler-connection-lost":
                raise connection_lost(presence.client) from None
            return ResultLost(
                f"the worker that had written it died, and its report was lost ({error.reason})"
            )
        except (Exception, asyncio.CancelledError) as error:
            # The worker that held it died, and it is being made again; or there is no scheduler any more.
            failures += not isinstance(error, TimeoutError)
            if failures > _FETCHES:
                raise
            time.sleep(_POLL)


def run_everywhere(function: Any, client: Client | None) -> dict[str, Any]:
    """Call a function once on every worker that is there now, or in this process without a cluster.

    Returns
    -------
    What it returned, by the worker's address. A worker that dies meanwhile is left out.

    Raises
    ------
    ClusterError
        No worker finished, although workers that died came back twice; or there is none, or no scheduler.
    """
    if client is None:
        return {"this process": function()}
    for _ in range(_LOADS):
        results = _run_on_workers(function, client)
        if results:
            return results
    raise ClusterError(
        "no worker could load the model: each died while trying. Look at the workers' logs; most often it is memory:"
        " fewer workers (n_workers) leave more for each"
    )


def _run_on_workers(function: Any, client: Client) -> dict[str, Any]:
    presence = Presence(client)
    while not (addresses := threads_of_workers(client)):
        presence.check()
        time.sleep(_POLL)
    pending = {address: client.submit(function, workers=[address], pure=False) for address in addresses}
    results = {}
    try:
        while pending:
            for address, future in list(pending.items()):
                if future.done():
                    del pending[address]
                    result = _result(future, presence)
                    if isinstance(result, ResultLost):
                        continue
                    if isinstance(result, BaseException):
                        raise result
                    results[address] = result
            presence.check()
            alive = threads_of_workers(client)
            # A task that is tied to a worker that is gone would wait for ever.
            pending = {address: future for address, future in pending.items() if address in alive}
            if pending:
                _wait_for_any(pending.values())
    finally:
        if pending and client.status == "running":
            client.cancel(list(pending.values()))
    return results


def _wait_for_any(futures: Collection[Future]) -> None:
    end, pause = time.monotonic() + 1, 0.002
    while not any(future.done() for future in futures) and time.monotonic() < end:
        time.sleep(pause)
        pause = min(2 * pause, _POLL)


def _future(client: Client, key: Any) -> Any:
    return Future(key, client)


def _explained(future: Any) -> BaseException:
    error = future.exception()
    if isinstance(error, KilledWorker):
        return WorkersDied(
            f"{error.allowed_failures + 1} workers died while working on it, the last at {error.last_worker.address}."
            " Look at the workers' logs: most often it is memory (smaller batch_size or rows_per_partition) or a"
            " damaged file"
        )
    if isinstance(error, CuratorError):
        return error
    return error if error is not None else ShardError(f"the task ended as {future.status}")
