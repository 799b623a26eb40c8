"""What is done to the rows of a shard, as one function of its range: how a task makes what a frame says."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dask._task_spec import execute_graph
from dask.dataframe.dask_expr._expr import Blockwise, Expr

from curator_dask import backend
from curator_dask.cluster.timing import spending
from curator_dask.runs.blaming import blaming
from curator_dask.runs.lineage import Lineage, cut, is_root, knows_its_number
from curator_dask.runs.passes import Pass
from curator_dask.runs.step import Step
from curator_dask.webdataset.shards import ShardRange


@dataclass(frozen=True)
class ShardFunction:
    """Reads a range and does all that a frame says to its rows.

    Attributes
    ----------
    reader
        From a range to its rows.
    functions
        Called one after the other with what the one before gave.
    """

    reader: Callable[[ShardRange], Any]
    functions: tuple[Callable[[Any], Any], ...]

    def __call__(self, part: ShardRange) -> Any:
        """The rows of the range, finished."""
        with spending("fetch"):
            frame = self.reader(part)
        for function in self.functions:
            with blaming(function):
                frame = function(frame)
        return frame

    def together(self, parts: Sequence[ShardRange]) -> Together | list[Any]:
        """The rows of several ranges, finished, each as by itself: by the contract of a step rows do not mix.

        Steps see the rows of all of them at once, so their images share batches. Gives one frame, or several.
        """
        with spending("fetch"):
            rows = self._read(parts)
        for function in self.functions:
            if isinstance(function, Step | Pass) and function.keeps_rows:
                joined = rows if isinstance(rows, Together) else Together.of(rows)
                rows = Together(function(joined.frame), joined.ends)
            else:
                with blaming(function):
                    rows = [function(frame) for frame in apart(rows)]
        return rows

    def _read(self, parts: Sequence[ShardRange]) -> Together | list[Any]:
        read = getattr(self.reader, "together", None)
        return [self.reader(part) for part in parts] if read is None else Together(*read(parts))


@dataclass(frozen=True)
class Together:
    """The rows of several partitions as one frame.

    Attributes
    ----------
    frame
        All of them, numbered from 0.
    ends
        Where those of each partition end.
    """

    frame: Any
    ends: Sequence[int]

    @classmethod
    def of(cls, frames: Sequence[Any]) -> Together:
        """Frames one after the other."""
        return cls(backend.concat(frames), list(itertools.accumulate(map(len, frames))))

    @property
    def bounds(self) -> Iterator[tuple[int, int]]:
        """First row of each partition, and the one after its last."""
        return zip((0, *self.ends[:-1]), self.ends, strict=True)


def apart(rows: Together | list[Any]) -> list[Any]:
    """A frame for each partition."""
    if not isinstance(rows, Together):
        return rows
    return [rows.frame.iloc[start:end].reset_index(drop=True) for start, end in rows.bounds]


@dataclass(frozen=True)
class Operations:
    """Dask's own operations on a partition (filters, columns, assignments), from its rows to what comes out.

    Attributes
    ----------
    graph
        The tasks of one partition, without the one that reads it.
    rows, result
        Keys of the rows that are read, and of the result.
    """

    graph: Mapping[Any, Any]
    rows: Any
    result: Any

    def __call__(self, frame: Any) -> Any:
        """The operations on the rows of any partition: they are the same for all."""
        return execute_graph(dict(self.graph), cache={self.rows: frame}, keys=[self.result])[self.result]


def shard_function(lineage: Lineage) -> ShardFunction | None:
    """What makes a partition of a frame of its range; None where partitions are mixed, or may know their number."""
    if lineage.ranges is None:
        return None
    if lineage.is_mapped:
        return ShardFunction(lineage.reader, lineage.functions)
    nodes = {node._name: node for node in lineage.expr.walk()}
    leaves = [node for node in nodes.values() if not node.dependencies()]
    others = [node for node in nodes.values() if node.dependencies()]
    if len(leaves) != 1 or not is_root(leaves[0]) or not all(_is_the_same_for_all(node) for node in others):
        return None
    leaf = cut(leaves[0], 0, 1)
    one: Expr = lineage.expr.substitute(leaves[0], leaf)
    graph = dict(one.__dask_graph__())
    rows = (leaf._name, 0)
    del graph[rows]
    return ShardFunction(lineage.reader, (Operations(graph, rows, (one._name, 0)),))


def _is_the_same_for_all(node: Expr) -> bool:
    return isinstance(node, Blockwise) and not knows_its_number(node)
