"""Several partitions as one task: where shards are so small that a task each would cost more than its work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dask.dataframe as dd
import pandas as pd

from curator_dask.datasets.turns import turn
from curator_dask.datasets.writing import report_frame, target_frame
from curator_dask.errors import CuratorError, ShardError
from curator_dask.frames.lineage import map_items
from curator_dask.webdataset.shards import ShardRange

#: In the place of a report of a partition that failed: the reason.
BROKEN = "broken"


@dataclass(frozen=True)
class Groups:
    """Tasks of several partitions each.

    Attributes
    ----------
    frame
        A partition a task; its rows are the reports of the members, in their order.
    members
        Numbers of the partitions of each task.
    """

    frame: dd.DataFrame
    members: list[list[int]]


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
        From rows and target to a report.
    """

    reader: Callable[[ShardRange], Any]
    functions: tuple[Callable[[Any], Any], ...]
    last: Callable[[Any, pd.DataFrame], pd.DataFrame]

    def __call__(self, items: Sequence[tuple[ShardRange, str]]) -> pd.DataFrame:
        """The reports, one row each, of ranges and their targets (JSON).

        Raises
        ------
        CuratorError
            What would happen to every shard.
        """
        # One turn for all: between two shards another group would take it, and none would come to its end.
        with turn(items[0][0].shard.url, getattr(self.reader, "storage_options", None)):
            return pd.concat([self._one(part, text) for part, text in items], ignore_index=True)

    def _one(self, part: ShardRange, text: str) -> pd.DataFrame:
        try:
            frame = self.reader(part)
            for function in self.functions:
                frame = function(frame)
            return self.last(frame, target_frame(text))
        except CuratorError as error:
            if not isinstance(error, ShardError):
                raise
            return report_frame({BROKEN: str(error)})
        except Exception as error:
            return report_frame({BROKEN: f"{type(error).__name__}: {error}"})


def make_groups(
    run: RunGroup,
    ranges: Sequence[ShardRange],
    texts: Sequence[str],
    size: int,
    meta: pd.DataFrame,
) -> Groups:
    """Groups of `size` neighbours.

    Parameters
    ----------
    run
        What is done to each.
    ranges, texts
        Range and target (JSON) of each partition.
    size
        Partitions in a group; the last may have fewer.
    meta
        Empty frame of reports.
    """
    members = [list(range(start, min(start + size, len(ranges)))) for start in range(0, len(ranges), size)]
    items = [tuple((ranges[number], texts[number]) for number in group) for group in members]
    return Groups(map_items(run, items, meta, "run-group"), members)
