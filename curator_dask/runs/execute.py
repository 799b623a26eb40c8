"""Running one task a partition, where one that fails does not stop the others."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Collection, Container, Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from distributed import (
    Client,
    Future,
    as_completed,
    futures_of,
)

from curator_dask.cluster.presence import ANSWER, Presence, threads_of_workers
from curator_dask.cluster.workers import FETCHES, TAKEN_BACK, HandedBack, ResultLost, WorkerUnfit, result_of
from curator_dask.settings import PATIENCE

if TYPE_CHECKING:
    import dask.dataframe as dd

logger = logging.getLogger("curator_dask")

S = TypeVar("S")
T = TypeVar("T")


#: Partitions that are handed out at once, the next when half of them are done; more where there are more than half
#: as many threads. What a scheduler needs for a task (0.5 ms and 17 kB) it then needs for few.
AHEAD = 1000

_COMES_BACK = 60.0  # seconds in which a worker that died has been started again

_LOOK = 0.5  # seconds between looks whether there is still a cluster, while none of its results arrives


class Hands:
    """The workers that tasks may go to: all but those that turned out unfit.

    Parameters
    ----------
    client
        Of the cluster.
    ready
        Addresses of those that have loaded what the tasks need, and are enough for all of them: while one is there
        no other is given a task. None where any will do.
    """

    def __init__(self, client: Client, ready: Collection[str] | None = None) -> None:
        self._client, self._ready = client, ready
        self._left_out: dict[str, WorkerUnfit] = {}

    def leave_out(self, error: WorkerUnfit) -> HandedBack:
        """Give a worker no further task; what its task came to."""
        if error.worker not in self._left_out:
            logger.warning("%s. It is left out", error)
        self._left_out[error.worker] = error
        return HandedBack(str(error))

    def where(self) -> dict[str, Any]:
        """The same as arguments of Dask's `persist`."""
        chosen = self.chosen()
        if chosen is None and self._ready:
            return {"workers": list(self._ready), "allow_other_workers": True}
        return {"workers": chosen}

    def chosen(self) -> list[str] | None:
        """Addresses of those that are there now; None where nobody is left out, and so any will do.

        Raises
        ------
        WorkerUnfit
            All that there are for a while are unfit: what is wrong with one.
        """
        if not self._left_out:
            return None
        end = time.monotonic() + min(_COMES_BACK, PATIENCE.value())
        while not (fit := [each for each in threads_of_workers(self._client) if each not in self._left_out]):
            if time.monotonic() > end:
                raise next(iter(self._left_out.values()))
            time.sleep(_LOOK)
        return fit


def run_partitions(
    frame: dd.DataFrame,
    client: Client | None,
    apart: bool = True,
    resources: Mapping[str, float] | None = None,
    hands: Hands | None = None,
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
    hands
        Where workers may turn out unfit for these partitions.

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

    yield from run_pieces(next_piece, client, resources, apart, hands)


def run_pieces(
    next_piece: Callable[[int], tuple[dd.DataFrame, Sequence[T]] | None],
    client: Client | None,
    resources: Mapping[str, float] | None = None,
    apart: bool = True,
    hands: Hands | None = None,
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
    hands
        Where workers may turn out unfit for these partitions.

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
    tied: dict[Any, frozenset[str]] = {}  # to these workers; the others may go to any
    try:
        while True:
            while (named := next_piece(len(names))) is not None:
                where = {} if hands is None else hands.where()
                futures = futures_of(client.persist(named[0], resources=resources, **where))
                names.update({future.key: named[1][future.key[1]] for future in futures})
                if where.get("workers") and not where.get("allow_other_workers"):
                    tied.update(
                        dict.fromkeys((future.key for future in futures), frozenset(where["workers"]))
                    )
                done.update(futures)
                del futures  # a result that has been given is let go on its worker
            if not names:
                return
            for key, result in _finished(done, presence):
                tied.pop(key, None)
                if hands is not None and isinstance(result, WorkerUnfit):
                    result = hands.leave_out(result)
                yield names.pop(key), result
            if apart:
                _take_back(names, tied, presence)
    finally:
        if names and client.status == "running":
            client.cancel([_future(client, key) for key in names])


def run_alone(
    frame: dd.DataFrame,
    number: int,
    client: Client,
    resources: Mapping[str, float] | None = None,
    hands: Hands | None = None,
) -> Any:
    """Compute one partition while nothing else of this run is on the cluster.

    When a worker dies, Dask counts that against every task that it held (distributed#1469, #2694): what ends with
    `WorkersDied` among others may be innocent, what does so alone is not.

    Returns
    -------
    The partition, or the exception that it ended with.
    """
    alone = picked(frame, [number])
    for _ in range(FETCHES):
        ((_, result),) = run_partitions(alone, client, resources=resources, hands=hands)
        if not isinstance(result, ResultLost):
            break
    return result


def picked(frame: dd.DataFrame, numbers: Sequence[int]) -> dd.DataFrame:
    """Some partitions of a frame under new names: what Dask remembers of the old ones may be that they failed."""
    some = frame.partitions[[*numbers]]
    same: dd.DataFrame = some.map_partitions(_same, token=f"picked-{uuid.uuid4().hex}", meta=frame._meta)
    return same


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


def _take_back(names: Container[Any], tied: Mapping[Any, frozenset[str]], presence: Presence) -> None:
    """Cancel those of some tasks that wait for workers which are paused and do nothing, or are gone."""
    client = presence.client
    lost = [key for key, workers in tied.items() if workers.isdisjoint(presence.there)]
    if lost:
        client.cancel([_future(client, key) for key in lost], reason=TAKEN_BACK)
    if not presence.resting:
        return
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
