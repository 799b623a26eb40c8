"""Dask frames of what is done to shards: of a function of items, and of steps, which Dask makes into passes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from dask.dataframe.dask_expr import DataFrame, from_map, new_collection
from dask.dataframe.dask_expr._expr import ArrowStringConversion, MapPartitions
from dask.tokenize import _tokenize_deterministic

from curator_dask.runs.passes import Pass
from curator_dask.runs.step import SharingStep, Step, meta_with


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
    frame: Any = from_map(function, items, meta=meta, label=label, enforce_metadata=False)
    mapped: DataFrame = frame
    if isinstance(frame.expr, ArrowStringConversion):
        mapped = new_collection(frame.expr.frame)
    return mapped


class MapStep(MapPartitions):
    """A step that is mapped over partitions; where two follow one another, Dask's optimizer makes a pass of them."""

    #: Its own: Dask keeps one expression a name, and by name this is what `map_partitions` would give.
    _instances = weakref.WeakValueDictionary()  # noqa: RUF012

    def __dask_tokenize__(self) -> Any:
        # As that of `map_partitions`, which is in the files of frames whose partitions were mixed.
        if not self._determ_token:
            self._determ_token = _tokenize_deterministic(MapPartitions, *self.operands)
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


#: `MapStep` as Dask's classes are called, which have no types.
_map_step: Any = MapStep


def _shared(function: Any) -> tuple[Any, ...]:
    return function.steps if isinstance(function, Pass) else (function,)


def map_step(frame: DataFrame, step: Step) -> DataFrame:
    """The frame with the columns of a step, lazily."""
    meta = meta_with(frame._meta, [step])
    mapped: Any = frame.map_partitions(step, meta=meta, enforce_metadata=False).expr
    made: DataFrame = new_collection(_map_step(*mapped.operands))
    return made


def steps_in(functions: Sequence[Callable[[Any], Any]]) -> list[Step]:
    """The steps among functions that are mapped, those of passes one by one."""
    return [step for function in functions for step in _shared(function) if isinstance(step, Step)]
