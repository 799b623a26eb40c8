"""Several partitions as one task, for a task costs Dask as much time as dozens of small images."""

from __future__ import annotations

import itertools
import logging
import math
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask
import dask.dataframe as dd

from curator_dask.cluster.leaving import leave_if_broken
from curator_dask.cluster.presence import threads_of_workers
from curator_dask.cluster.progress import at_work
from curator_dask.cluster.timing import spending
from curator_dask.errors import CuratorError, ShardError
from curator_dask.rows.known import knowing
from curator_dask.rows.remarks import noticing
from curator_dask.runs.blaming import told
from curator_dask.runs.execute import AHEAD
from curator_dask.runs.fit import Fit
from curator_dask.runs.graph import map_items
from curator_dask.runs.reports import failure_row, report_frame
from curator_dask.runs.shardwise import ShardFunction, apart
from curator_dask.runs.sink import Writer
from curator_dask.runs.targets import Target
from curator_dask.runs.turns import turn
from curator_dask.storage import is_remote
from curator_dask.webdataset.shards import ShardRange

log = logging.getLogger("curator_dask")

#: Shards in a group, at most: enough that what Dask needs for a task (5 ms of two cores) is little for each of them,
#: and that those of one image each fill a batch.
MOST_SHARDS = 32
#: Bytes of tars whose images go through the models in common batches, at most: some thirty photographs. A task cannot
#: give such a batch back, so it must be done soon.
JOINED_BYTES = 4 << 20
#: Seconds after which a group begins no other of its shards: a task that takes longer costs next to nothing itself,
#: and others may be free to do the rest, now or later.
LONG_ENOUGH = 10.0
#: Groups that each thread is to have of what is left: so the last ones are single shards, for which no thread waits.
GROUPS_A_THREAD = 4

_COUNT_EVERY = 5.0  # seconds


@dataclass(frozen=True)
class RunGroup:
    """Does some shards one after the other; one that fails does not stop the others.

    Attributes
    ----------
    function
        From a range to its finished rows.
    writer
        What is done then.
    seconds
        After which no other is begun.
    fit
        What the worker must be; None where any will do.
    joined_bytes
        Of tars, that may share batches.
    """

    function: ShardFunction
    writer: Writer
    seconds: float = math.inf
    fit: Fit | None = None
    joined_bytes: int = 0

    def __call__(self, items: Sequence[tuple[ShardRange, str]]) -> list[dict[str, Any]]:
        """The rows of ranges and their targets (JSON): of the first at least, of fewer than all after `seconds`.

        Raises
        ------
        CuratorError
            What would happen to every shard.
        WorkerUnfit
            What would happen to every shard that comes to this worker.
        """
        if self.fit is not None:
            self.fit.check()
        end = time.monotonic() + self.seconds
        rows: list[dict[str, Any]] = []
        parts = [(part, Target.from_json(text)) for part, text in items]
        # One turn for all of several: between two shards another group would take it, and none would come to its end.
        # A single shard takes its turn when its rows are read and its images are wanted.
        url = items[0][0].shard.url if len(items) > 1 else None
        with turn(url, getattr(self.function.reader, "storage_options", None)):
            while len(rows) < len(items) and not (rows and time.monotonic() > end):
                left = parts[len(rows) :]
                small = left[: _count_small(left, self.joined_bytes)] or left[:1]
                with at_work(len(small)):
                    rows += self._together(small) or [self._one(*each) for each in small]
        return rows

    def _together(self, parts: Sequence[tuple[ShardRange, Target]]) -> list[dict[str, Any]]:
        """The rows of small shards that share their batches; none where one has to be done by itself."""
        targets = [target for _, target in parts]
        if len(parts) < 2 or any(self.writer.known(each) or self.writer.reusable(each) for each in targets):
            return []
        try:
            with noticing():
                made = self.function.together([part for part, _ in parts])
                leave_if_broken(parts[0][0].name)  # before images are blamed for it in a file
                with spending("write"):
                    write = getattr(self.writer, "write_together", None)
                    if write is not None:
                        return list(write(made, targets))
                    return [self.writer.write(*each) for each in zip(apart(made), targets, strict=True)]
        except Exception as error:  # of any of them: which one shows when each is done by itself
            log.debug("%s, …: each by itself, for %r", parts[0][0].name, error)
            return []

    def _one(self, part: ShardRange, target: Target) -> dict[str, Any]:
        try:
            # A worker that died had done some of its group, perhaps.
            known = self.writer.known(target)
            if known is not None:
                return known
            with noticing(), knowing(self.writer.reusable(target)):
                made = self.function(part)
                leave_if_broken(part.name)  # before images are blamed for it in a file
                with spending("write"):
                    return self.writer.write(made, target)
        except CuratorError as error:
            leave_if_broken(part.name)
            if not isinstance(error, ShardError):
                raise
            return failure_row(str(error))
        except Exception as error:
            leave_if_broken(part.name)
            log.warning("shard %s failed", part.name, exc_info=True)
            return failure_row(told(error))


def _count_small(parts: Sequence[tuple[ShardRange, Target]], joined_bytes: int) -> int:
    """How many of the first shards are whole, and together no larger than so many bytes."""
    count, size = 0, 0
    for part, target in parts:
        size += ((target.shard or {}).get("tar") or {}).get("size", math.inf)
        if size > joined_bytes or part.part is not None:
            break
        count += 1
    return count


class Groups:
    """Tasks of several partitions each, large ones first.

    Parameters
    ----------
    run
        What is done to each partition.
    members
        Numbers of the partitions of each task.
    ranges, targets
        Of all partitions.
    count_threads
        Says how many tasks run at a time: workers come and go.
    """

    def __init__(
        self,
        run: RunGroup,
        members: Sequence[Sequence[int]],
        ranges: Sequence[ShardRange],
        targets: Sequence[Target],
        count_threads: Callable[[], int],
    ) -> None:
        self._run, self._ranges, self._targets = run, ranges, targets
        self._count_threads = count_threads
        self._few, self._counted = 0, -math.inf
        self._waiting = deque(_alike(members))
        self._given_back: list[Sequence[int]] = []
        self._last: Sequence[Sequence[int]] = ()
        # Of its own for each piece: Dask remembers of a task's name that it failed.
        self._tokens = (f"{uuid.uuid4().hex}-{number}" for number in itertools.count())

    def next_piece(self, under_way: int) -> tuple[dd.DataFrame, Sequence[Sequence[int]]] | None:
        """The next tasks and the members of each, for `run_pieces`: not before those that are larger are under way.

        Each task gives a list of rows (`RunGroup`), those of its first members.
        """
        if time.monotonic() - self._counted > _COUNT_EVERY:
            self._counted = time.monotonic()
            self._few = 2 * self._count_threads()  # so that each thread has one that waits
        if under_way > self._few:
            more_alike = self._waiting and self._last and len(self._waiting[0][0]) >= len(self._last[0])
            if not more_alike or under_way > len(self._last) // 2:
                return None
        if self._given_back:
            self._waiting.appendleft(self._given_back)
            self._given_back = []
        if not self._waiting:
            return None
        self._last = self._waiting.popleft()
        return self._frame(self._last), self._last

    def items(self, members: Sequence[int]) -> tuple[tuple[ShardRange, str], ...]:
        """What the task of some partitions is called with."""
        return tuple((self._ranges[each], self._targets[each].to_json()) for each in members)

    def give_back(self, members: Sequence[int], together: bool) -> None:
        """Take members that their group had no time for; as one task again, or each as one of its own."""
        if members:
            self._given_back += [members] if together else [[member] for member in members]

    def one_by_one(self, numbers: Sequence[int]) -> Groups:
        """The same with a task for each of some partitions."""
        groups = [[number] for number in numbers]
        return Groups(self._run, groups, self._ranges, self._targets, self._count_threads)

    def _frame(self, members: Sequence[Sequence[int]]) -> dd.DataFrame:
        items = [self.items(group) for group in members]
        return map_items(self._run, _Items(items, next(self._tokens)), report_frame({}), "run-group")


class _Items(Sequence[Any]):
    """What the tasks of some groups are called with; Dask names these by `token`, without a look at the items."""

    def __init__(self, items: Sequence[Any], token: str) -> None:
        self._items, self._token = items, token

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, number: Any) -> Any:
        return self._items[number]

    def __dask_tokenize__(self) -> Any:
        return (type(self).__name__, self._token)


def _alike(members: Sequence[Sequence[int]]) -> Iterator[Sequence[Sequence[int]]]:
    """The groups in pieces of similar sizes, of a thousand partitions at most."""
    piece: list[Sequence[int]] = []
    count = 0
    for group in members:
        if piece and (2 * len(group) <= len(piece[0]) or count + len(group) > AHEAD):
            yield piece
            piece, count = [], 0
        piece.append(group)
        count += len(group)
    if piece:
        yield piece


def even_groups(count: int, size: int) -> list[range]:
    """`count` partitions in groups of `size` neighbours; the last may have fewer."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def shrinking_groups(count: int, threads: int) -> list[range]:
    """`count` partitions in groups that are worth a task, smaller to the end, so that all threads end together.

    Parameters
    ----------
    count
        Of partitions.
    threads
        Tasks that run at a time.
    """
    groups, start = [], 0
    while start < count:
        size = max(1, min(MOST_SHARDS, (count - start) // (GROUPS_A_THREAD * threads)))
        groups.append(range(start, start + size))
        start += size
    return groups


@dataclass(frozen=True)
class Layout:
    """How the tasks of a run are laid out; it does not change what they make.

    Attributes
    ----------
    group
        Shards in a task. None: as many as are worth one, on a cluster and where the shards are on its disks; of
        those in a store each is a task, so that the next is fetched while the model works on the one before.
    resources
        Of a worker, that a task takes (`distributed`'s, such as ``{"GPU": 0.25}``); None takes nothing.
    """

    group: int | None = None
    resources: Mapping[str, float] | None = None

    def groups(
        self,
        function: ShardFunction,
        writer: Writer,
        ranges: Sequence[ShardRange],
        targets: Sequence[Target],
        client: Any,
        fit: Fit | None = None,
    ) -> Groups:
        """The tasks of a run, of one shard or of several.

        Parameters
        ----------
        function, writer
            See `RunGroup`.
        ranges, targets
            Of the shards that are to be done.
        client
            Of the cluster; None does the work in this process.
        fit
            What a worker must be.
        """

        def threads() -> int:
            return 1 if client is None else max(1, sum(threads_of_workers(client).values()))

        count, seconds = len(ranges), math.inf
        if self.group is not None:
            members = even_groups(count, self.group)
        # Annotations (retries, say) are the user's, and meant for tasks of a shard.
        elif (
            client is None or dask.get_annotations() or is_remote(ranges[0].shard.url)
        ):  # all lie in one store
            members = even_groups(count, 1)
        else:
            members, seconds = shrinking_groups(count, threads()), LONG_ENOUGH
        return Groups(
            RunGroup(function, writer, seconds, fit, JOINED_BYTES), members, ranges, targets, threads
        )
