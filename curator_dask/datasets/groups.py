"""Several partitions as one task, for a task costs Dask as much time as dozens of small images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import dask.dataframe as dd

from curator_dask.datasets.turns import turn
from curator_dask.datasets.writing import Target, TargetTexts, failure_row, report_frame
from curator_dask.errors import CuratorError, ShardError
from curator_dask.frames.lineage import map_items
from curator_dask.progress import report
from curator_dask.webdataset.shards import ShardRange
from curator_dask.webdataset.staging import current_worker

#: Shards in a group, at most: what Dask needs for one of them (5 ms of two cores) is an eighth of it then.
MOST_SHARDS = 8
#: Bytes of a group's tars, at most, unless it has one alone: about 10,000 photographs, as in one usual large shard.
MOST_BYTES = 1 << 29
#: Groups that each thread is to have of what is left: so the last ones are single shards, for which no thread waits.
GROUPS_A_THREAD = 4


class Last(Protocol):
    """What is done last to the rows of a partition: they are written, or collected."""

    def row(self, frame: Any, text: str) -> dict[str, Any]:
        """Do it, given the target as `Target.to_json`; ``target`` of the row is the report, as JSON."""

    def known_row(self, text: str) -> dict[str, Any] | None:
        """The row of a target that this run has done already; None if it has not, or nothing tells."""


@dataclass(frozen=True)
class Groups:
    """Tasks of several partitions each.

    Attributes
    ----------
    frame
        A partition a task; what it gives is no frame but a list of rows (`RunGroup`), in the order of the members.
    members
        Numbers of the partitions of each task.
    """

    frame: dd.DataFrame
    members: list[range]


@dataclass(frozen=True)
class RunGroup:
    """Does some partitions one after the other; one that fails does not stop the others.

    Attributes
    ----------
    reader
        From a range to its rows.
    functions
        Mapped over these, in their order.
    last
        What is done then.
    """

    reader: Callable[[ShardRange], Any]
    functions: tuple[Callable[[Any], Any], ...]
    last: Last

    def __call__(self, items: Sequence[tuple[ShardRange, str]]) -> list[dict[str, Any]]:
        """The row of each range and its target (JSON).

        Raises
        ------
        CuratorError
            What would happen to every shard.
        """
        rows: list[dict[str, Any]] = []
        # One turn for all: between two shards another group would take it, and none would come to its end.
        with turn(items[0][0].shard.url, getattr(self.reader, "storage_options", None)):
            for part, text in items:
                if rows:
                    _stop_if_cancelled()
                rows.append(self._one(part, text))
        return rows

    def _one(self, part: ShardRange, text: str) -> dict[str, Any]:
        try:
            # A worker that died had done some of its group, perhaps.
            known = self.last.known_row(text)
            if known is not None:
                return known
            frame = self.reader(part)
            for function in self.functions:
                frame = function(frame)
            row = self.last.row(frame, text)
        except CuratorError as error:
            if not isinstance(error, ShardError):
                raise
            return failure_row(str(error))
        except Exception as error:
            return failure_row(f"{type(error).__name__}: {error}")
        report(shards=1, rows=json.loads(row["target"])["rows"])
        return row


def _stop_if_cancelled() -> None:
    """End this task if nobody waits for it any more: its client was interrupted, and left the workers running."""
    worker = current_worker()
    if worker is None:
        return
    state = worker.state.tasks.get(worker.get_current_task())
    if state is None or state.state == "cancelled":
        from distributed import Reschedule

        raise Reschedule  # if the same work was asked for again just now, it is begun again


class _Items(Sequence[Any]):
    """What the tasks of some groups are called with, made when it is asked for: there may be 100,000 shards."""

    def __init__(
        self, members: Sequence[range], ranges: Sequence[ShardRange], targets: Sequence[Target]
    ) -> None:
        self._members, self._ranges, self._texts = members, ranges, TargetTexts(targets)

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, number: Any) -> Any:
        return tuple((self._ranges[each], self._texts[each]) for each in self._members[number])

    def __dask_tokenize__(self) -> Any:
        # A target's fingerprint is of its range, too.
        return (type(self).__name__, [len(each) for each in self._members], self._texts.__dask_tokenize__())


def make_groups(
    run: RunGroup, members: list[range], ranges: Sequence[ShardRange], targets: Sequence[Target]
) -> Groups:
    """The tasks that do some partitions.

    Parameters
    ----------
    run
        What is done to each.
    members
        Numbers of the partitions of each task.
    ranges, targets
        Of each partition.
    """
    return Groups(map_items(run, _Items(members, ranges, targets), report_frame({}), "run-group"), members)


def even_groups(count: int, size: int) -> list[range]:
    """`count` partitions in groups of `size` neighbours; the last may have fewer."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def groups_by_size(sizes: Sequence[int], threads: int) -> list[range]:
    """Groups of neighbours that are worth a task, smaller ones to the end, so that all threads end together.

    Parameters
    ----------
    sizes
        Bytes of each partition's shard.
    threads
        Tasks that run at a time.
    """
    return list(_groups_by_size(sizes, threads))


def _groups_by_size(sizes: Sequence[int], threads: int) -> Iterator[range]:
    start = 0
    while start < len(sizes):
        most = min(MOST_SHARDS, (len(sizes) - start) // (GROUPS_A_THREAD * threads))
        stop, held = start + 1, sizes[start]
        while stop - start < most and held + sizes[stop] <= MOST_BYTES:
            held += sizes[stop]
            stop += 1
        yield range(start, stop)
        start = stop
