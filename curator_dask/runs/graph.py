"""Dask frames of what is done to shards: of a function of items, and of steps, which Dask makes into passes."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa
from dask.dataframe.dask_expr import DataFrame, new_collection
from dask.dataframe.dask_expr._expr import Blockwise, MapPartitions
from dask.dataframe.dask_expr.io import FromMap, ReadParquet
from dask.dataframe.dask_expr.io.parquet import ReadParquetFSSpec, ReadParquetPyarrowFS
from dask.tokenize import _tokenize_deterministic, normalize_token

from curator_dask.runs.passes import Pass
from curator_dask.runs.step import SharingStep, Step, meta_with
from curator_dask.webdataset.shards import ShardRange


def map_items(function: Callable[[Any], Any], items: Sequence[Any], meta: Any, label: str) -> DataFrame:
    """`dask.dataframe.from_map` of a function that makes each column of the type that `meta` has.

    Dask adds a step that looks for text of other types than its own, and turns that into its own: it takes 0.2 to
    0.9 ms a partition, and is left out here.

    Parameters
    ----------
    function
        Makes a frame of an item.
    items
        One a partition.
    meta
        Empty frame.
    label
        Begins the names of the tasks.
    """
    # Not by Dask's `from_map`, which names its own expression first: of 1,000,000 items that takes many seconds.
    mapped: DataFrame = new_collection(_map_items(function, [items], [], {}, meta, False, None, label))
    return mapped


class MapItems(FromMap):
    """A function that is mapped over items."""

    _instances = weakref.WeakValueDictionary()  # noqa: RUF012 see `MapStep`

    def __dask_tokenize__(self) -> Any:
        if not self._determ_token:
            at = self._parameters.index("iterables")
            if type(self.operands[at][0]) in (list, tuple):
                digest = _Digest(self.operands, at)
                _tokenize_deterministic(
                    digest
                )  # calls it, and has all its parts be the same in every process
                self._determ_token = digest.hexdigest
            else:
                self._determ_token = _tokenize_deterministic(FromMap, *map(_AsNamed, self.operands))
        return self._determ_token


class _Digest:
    """What Dask's `tokenize` gives of operands, one of which is a list of one sequence of items.

    Dask makes one text of it all, of hundreds of megabytes where there are 1,000,000 items. Here it is digested a few
    thousand items at a time.
    """

    def __init__(self, operands: Sequence[Any], at: int) -> None:
        self._operands, self._at = operands, at
        self.hexdigest = ""

    def __dask_tokenize__(self) -> str:
        (items,) = self._operands[self._at]
        named: list[Any] = [FromMap, *map(_AsNamed, self._operands)]
        named[1 + self._at] = _ITEMS
        before, after = str(normalize_token(named)[1]).split(repr(_ITEMS))
        kind = type(items).__name__
        digest = hashlib.md5(f"{before}('list', (('{kind}', (".encode(), usedforsecurity=False)
        for start in range(0, len(items), _BLOCK):
            digest.update(f"{', ' * (start > 0)}{_tokens(items[start : start + _BLOCK])}".encode())
        digest.update(f"{',' * (len(items) == 1)})),)){after}".encode())
        self.hexdigest = digest.hexdigest()
        return self.hexdigest


def _tokens(items: Sequence[Any]) -> str:
    """The text of what `normalize_token` makes of each; of ranges, as their own method says it, by the shortest way."""
    if all(type(item) is ShardRange for item in items):
        told = [
            f"('ShardRange', {(shard := item.shard).url!r}, {shard.name!r}, {shard.parquet!r}, {item.start!r},"
            f" {item.stop!r}, {item.part!r})"
            for item in items
        ]
        return ", ".join(told)
    return str(normalize_token([*items])[1])[1:-1].rstrip(",")


class _AsNamed:
    """An operand as a name has it: of a frame, text has Arrow's type, as it had once.

    The names are in the files of frames whose partitions were mixed, which are not to be made again.
    """

    def __init__(self, operand: Any) -> None:
        self._operand = operand

    def __dask_tokenize__(self) -> Any:
        token = normalize_token(self._operand)
        if not isinstance(self._operand, pd.DataFrame):
            return token
        return [_TEXT if part[0] is pd.arrays.ArrowStringArray else part for part in token]


_ITEMS = "\0 the items"
_BLOCK = 10_000  # items whose text is made at a time

_TEXT = normalize_token(pd.arrays.ArrowExtensionArray(pa.array([], pa.string())))


class MapStep(MapPartitions):
    """A step that is mapped over partitions; where two follow one another, Dask's optimizer makes a pass of them."""

    #: Its own: Dask keeps one expression a name, and by name this is what `map_partitions` would give.
    _instances = weakref.WeakValueDictionary()  # noqa: RUF012

    def __dask_tokenize__(self) -> Any:
        # As that of `map_partitions`, which is in the files of frames whose partitions were mixed.
        if not self._determ_token:
            self._determ_token = _tokenize_deterministic(MapPartitions, *map(_AsNamed, self.operands))
        return self._determ_token

    def _simplify_up(self, parent: Any, dependents: Any) -> Any:
        """One pass in the place of this step and the next, if nobody else wants what this one gives."""
        if not isinstance(parent, MapStep) or len(dependents[self._name]) > 1:
            return MapPartitions._simplify_up(self, parent, dependents)
        here, after = (each.operands for each in (self, parent))
        at = self._parameters.index("func")
        steps = (*_shared(here[at]), *_shared(after[at]))
        if not all(isinstance(step, SharingStep) and step.keeps_rows for step in steps):
            return None
        values = dict(zip(parent._parameters, parent.operands, strict=False))
        return _map_step(*{**values, "frame": here[0], "func": Pass(steps)}.values())


#: As Dask's classes are called, which have no types.
_map_items: Any = MapItems
_map_step: Any = MapStep


def _shared(function: Any) -> tuple[Any, ...]:
    return function.steps if isinstance(function, Pass) else (function,)


def map_step(frame: DataFrame, step: Step) -> DataFrame:
    """The frame with the columns of a step, lazily."""
    meta = meta_with(frame._meta, [step])
    mapped: Any = frame.map_partitions(step, meta=meta, enforce_metadata=False).expr
    made: DataFrame = new_collection(_map_step(*mapped.operands))
    return made


def types_read(frame: DataFrame) -> dict[str, pa.DataType]:
    """The Arrow types that columns have in the files that a frame is read from, where these agree.

    Dask itself knows a list, for one, as a Python object.
    """
    found: dict[str, set[pa.DataType]] = {}
    for node in frame.expr.walk():
        if isinstance(node, ReadParquet):
            schema = node._dataset_info["schema"]
        else:
            schema = getattr(node.operand("func"), "schema", ()) if isinstance(node, FromMap) else ()
        for field in schema:
            found.setdefault(field.name, set()).add(field.type)
    return {name: kinds.pop() for name, kinds in found.items() if len(kinds) == 1}


def steps_of(frame: DataFrame) -> list[Step]:
    """The steps by which a frame is made, from the first to the last."""
    nodes: list[Any] = [node for node in frame.expr.walk() if isinstance(node, MapStep)]
    return steps_in([node.operand("func") for node in reversed(nodes)])


def is_apart(frame: DataFrame) -> bool:
    """Whether each partition of a frame is made of its own parts of what is read, for all that can be told at once."""
    return all(isinstance(node, Blockwise) for node in frame.expr.walk())


class _ByFile(ReadParquetFSSpec):
    def _tune_up(self, parent: Any) -> None:
        return None


class _ByFragment(ReadParquetPyarrowFS):
    def _tune_up(self, parent: Any) -> None:
        return None


def unfused(frame: DataFrame) -> DataFrame:
    """The frame with as many partitions for Dask's optimizer as it says that it has.

    Of Parquet files of which few columns are wanted the optimizer reads several as one partition. Whatever else is
    mapped beside them has then lost its partner, and there is less to do side by side.
    """
    expr: Any = frame.expr
    for node in list(expr.walk()):
        if isinstance(node, ReadParquet):
            kind: Any = _ByFile if isinstance(node, ReadParquetFSSpec) else _ByFragment
            expr = expr.substitute(node, kind(*node.operands))
    made: DataFrame = new_collection(expr)
    return made


def steps_in(functions: Sequence[Callable[[Any], Any]]) -> list[Step]:
    """The steps among functions that are mapped, those of passes one by one."""
    return [step for function in functions for step in _shared(function) if isinstance(step, Step)]
