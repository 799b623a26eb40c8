"""Running one task a partition, where one that fails does not stop the others."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Container, Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from distributed import (
    Client,
    Future,
    as_completed,
    futures_of,
)

from curator_dask.cluster.presence import ANSWER, Presence, threads_of_workers
from curator_dask.cluster.workers import FETCHES, TAKEN_BACK, ResultLost, result_of

if TYPE_CHECKING:
    import dask.dataframe as dd

S = TypeVar("S")
T = TypeVar("T")


#: Partitions that are handed out at once, the next when half of them are done; more where there are more than half
#: as many threads. What a scheduler needs for a task (0.5 ms and 17 kB) it then needs for few.
AHEAD = 1000

_LOOK = 0.5  # seconds between looks whether there is still a cluster, while none of its results arrives


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
    from curator_dask.runs.lineage import pieces

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

    yield from run_pieces(next_piece, client, resources, apart)


def run_pieces(
    next_piece: Callable[[int], tuple[dd.DataFrame, Sequence[T]] | None],
    client: Client | None,
    resources: Mapping[str, float] | None = None,
    apart: bool = True,
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
    apart
        The partitions share no work: one that was given to a worker which is paused and does nothing is taken back.

    Yields
    ------
    name
        Of the partition.
    result
        The partition, or the exception that it ended with; `HandedBack` where it is to be handed out again. If the
        iterator is closed early, what has not been computed is cancelled.
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
            if apart:
                _take_back(names, presence)
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
    for _ in range(FETCHES):
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
        result = results.pop(key) if key in results else result_of(future, presence)
        del future  # let go on its worker
        yield key, result


def _take_back(names: Container[Any], presence: Presence) -> None:
    """Cancel those of some tasks that were given to workers which have been paused since, and do nothing."""
    if not presence.resting:
        return
    client = presence.client
    with contextlib.suppress(
        OSError, TimeoutError, KeyError
    ):  # one of the workers is gone, and so are its tasks
        given = client.sync(client.scheduler.processing, workers=[*presence.resting], callback_timeout=ANSWER)
        keys = [key for each in given.values() for key in each if key in names]
        client.cancel([_future(client, key) for key in keys], reason=TAKEN_BACK)


def _gathered(futures: list[Future[Any]], client: Client) -> dict[Any, Any]:
    """Results by key, fetched in one go; none where that fails: then each has to be asked for."""
    if len(futures) < 2:
        return {}
    try:
        results = client.sync(client._gather, futures, callback_timeout=ANSWER)
    except (Exception, asyncio.CancelledError):
        return {}
    return {future.key: result for future, result in zip(futures, results, strict=True)}


def _future(client: Client, key: Any) -> Any:
    return Future(key, client)
