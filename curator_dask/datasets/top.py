"""Where the best rows of a dataset end: the column is read of all partitions, before anything else is made."""

from __future__ import annotations

import logging
import numbers
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np

from curator_dask.errors import ConfigError
from curator_dask.frames.names import URL_COLUMN
from curator_dask.rows.best import Cut, Place, against, check_best, ends_at, is_number, places_of, values_of
from curator_dask.rows.reading import ReadShard
from curator_dask.runs.filtering import BestRows, FilterRows, some_columns
from curator_dask.runs.graph import map_items, map_step, steps_of
from curator_dask.runs.lineage import trace
from curator_dask.words import some_of_these

logger = logging.getLogger("curator_dask")


def find_best(
    frame: dd.DataFrame,
    id_col: str,
    column: str,
    most: float | None,
    fraction: float | None,
    n: int | None,
) -> BestRows:
    """The step that leaves the best rows of a frame; see `ImageTextPairDataset.top`."""
    fraction, n = _share_or_number(column, most, fraction, n)
    if column not in frame.columns:
        raise ConfigError(
            f"top: has no column {column!r}; the metadata has {some_of_these(frame.columns, column)}"
        )
    values_of(some_columns(frame._meta, [column]), column)  # on no rows: is it of numbers?
    looks = [step for step in steps_of(frame) if step.needs & {"bytes", "pixels"}]
    if looks:
        makes = any(column in step.columns for step in looks) or any(
            column in step.columns and "vectors" in step.needs for step in steps_of(frame)
        )
        raise ConfigError(
            f"top({column!r}): the best rows are known when all are, and {', '.join(step.label for step in looks)}"
            " would open every image for that, and again when the dataset is saved. "
            + (
                "Save it first (save_metadata); then call top on the dataset that is saved in its own folder, or"
                " filter_output (curator-dask filter --top) on the other"
                if makes
                else "Call top before it"
            )
        )
    parts = _few_columns(frame, id_col, column).to_delayed()
    counts = dask.compute(*(dask.delayed(_values)(part, column) for part in parts))
    found = sum(len(values) for values in counts)
    count = min(n, found) if n is not None else round((fraction or 0) * found)
    if not count:
        logger.info("top by %r: none of %d rows with a value", column, found)
        return BestRows(None, id_col)
    value, left = ends_at(counts, count)
    tied = [part for part, values in zip(parts, counts, strict=True) if not against(values, value).all()]
    places: Sequence[list[Place]] = dask.compute(
        *(dask.delayed(_places)(part, column, value, id_col) for part in tied)
    )
    cut = Cut(column, value, sorted(place for each in places for place in each)[left - 1])
    logger.info("top by %r: %d of %d rows with a value, down to %s", column, count, found, cut.last_value)
    return BestRows(cut, id_col)


def _share_or_number(
    column: str, most: float | None, fraction: float | None, n: int | None
) -> tuple[float | None, int | None]:
    if most is not None and fraction is n is None:
        _, most = check_best((column, most))
        return (most, None) if most <= 1 else (None, int(most))
    share = fraction is not None and is_number(fraction) and 0 < fraction <= 1
    number = n is not None and is_number(n, numbers.Integral) and n > 0
    if most is not None or ((share, n) != (True, None) and (number, fraction) != (True, None)):
        raise ConfigError(
            f"top({column!r}, {'' if most is None else f'{most!r}, '}fraction={fraction!r}, n={n!r}): expected one of"
            ' the two, fraction above 0, at most 1, or n rows. Write for example top("width", 1000) or'
            ' top("width", fraction=0.3)'
        )
    return fraction, n


def _few_columns(frame: dd.DataFrame, id_col: str, column: str) -> dd.DataFrame:
    """The frame with what decides who is best; of plain files no other column is read."""
    lineage = trace(frame)
    steps = [step for step in lineage.functions if isinstance(step, FilterRows | BestRows)]
    reader, wanted = lineage.reader, {column, id_col, URL_COLUMN}
    if lineage.is_mapped and len(steps) == len(lineage.functions) and isinstance(reader, ReadShard):
        needed = wanted.union(*(_names(step, reader.schema.names) for step in steps))
        only = tuple(name for name in reader.schema.names if name in needed)
        few = replace(reader, only=only)
        frame = map_items(few, lineage.ranges or (), frame._meta[list(only)], "read-columns")
        for step in steps:
            frame = map_step(frame, step)
    narrow: dd.DataFrame = frame[[name for name in frame.columns if name in wanted]]
    return narrow


def _names(step: FilterRows | BestRows, names: Sequence[str]) -> list[str]:
    if isinstance(step, FilterRows):
        return step.where.columns(names)
    return [] if step.cut is None else [step.cut.column]


def _values(frame: Any, column: str) -> np.ndarray:
    """Of a partition, those that are there."""
    values, valid = values_of(some_columns(frame, [column]), column)
    return np.asarray(values[valid])


def _places(frame: Any, column: str, value: int | float, id_col: str) -> list[Place]:
    """Of a partition's rows with just this value."""
    table = some_columns(frame, [column, id_col, URL_COLUMN])
    values, valid = values_of(table, column)
    return places_of(table, id_col, "", np.flatnonzero(valid & (against(values, value) == 0)))
