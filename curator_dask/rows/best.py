"""Which rows are best by a column: the largest values over all files, rows of one value by their key.

Whole numbers are compared as such: a float64 does not tell those beyond 2**53 apart.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.errors import ConfigError
from curator_dask.frames.names import URL_COLUMN

#: Key and shard of a row, and, since other Parquet files may lack these or have a key twice, its file and number.
Place = tuple[str, str, str, int]


@dataclass(frozen=True)
class Cut:
    """Where the best rows by a column end; rows of one value end by their key.

    Attributes
    ----------
    column
        Of numbers; more is better.
    value
        The last that is kept.
    last
        The last row of that value that is kept: its key and shard as text, the file's name and the row's number in it.
    """

    column: str
    value: float
    last: Place

    @property
    def last_value(self) -> str:
        """The value, as a text to read."""
        return f"{self.value:g}" if isinstance(self.value, float) else str(self.value)


def values_of(table: pa.Table, column: str) -> tuple[np.ndarray, np.ndarray]:
    """The values of a column of numbers, and bool (rows,): where there is one, that is neither null nor NaN.

    Raises
    ------
    ConfigError
        There is no such column, or it is not of numbers.
    """
    if column not in table.column_names:
        raise ConfigError(f"has no column {column!r} to find the best rows by")
    values, kind = table.column(column), table.schema.field(column).type
    if values.null_count == len(values) and _may_be_null(kind):
        values = pa.chunked_array([pa.nulls(len(values), pa.float64())])
    elif pa.types.is_boolean(kind):
        values = values.cast(pa.int8())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise ConfigError(
            f"column {column!r} is of {kind}: the best rows are found by whole numbers or floats. Cast it first"
        )
    found = np.asarray(pc.fill_null(values, 0).to_numpy())
    found = found.astype(np.float64 if found.dtype.kind == "f" else f"{found.dtype.kind}8", copy=False)
    return found, np.asarray(values.is_valid()) & (found == found)


def _may_be_null(kind: pa.DataType) -> bool:
    """Whether a column of this type may be one without any value, which a dataset reads as text."""
    return bool(pa.types.is_null(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def ends_at(values: Sequence[np.ndarray], count: int) -> tuple[int | float, int]:
    """The smallest of the `count` largest values of several arrays, and how many of these are just that value."""
    several = comparable(values)
    together = np.concatenate(several)
    value = np.partition(together, len(together) - count)[len(together) - count]
    return getattr(value, "item", lambda: value)(), count - int((together > value).sum())


def comparable(values: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """Arrays that may be one without a loss: of several types, they are of Python's numbers."""
    several = [each for each in values if len(each)] or values[:1]  # one without a value is of any type
    if len({each.dtype for each in several}) == 1:
        return several
    return [each.astype(object) for each in several]


def against(values: np.ndarray, value: int | float | np.ndarray) -> np.ndarray:
    """int8 (rows,): 1 where a value is larger than another, or that of its row, 0 where equal, -1 where smaller."""
    if isinstance(value, int | float) and isinstance(value, float) != (values.dtype.kind == "f"):
        values = values.astype(object)
    return np.asarray(values > value).astype(np.int8) - np.asarray(values < value).astype(np.int8)


def places_of(table: pa.Table, id_col: str, name: str, rows: np.ndarray) -> list[Place]:
    """Of some rows of a file, or of a partition, whose name this is."""
    taken = pa.array(rows)
    texts = [
        [str(value) for value in table.column(column).take(taken).to_pylist()]
        if column in table.column_names
        else [""] * len(rows)
        for column in (id_col, URL_COLUMN)
    ]
    return list(zip(*texts, [name] * len(rows), rows.tolist(), strict=True))


def best_rows(
    table: pa.Table, cut: Cut, id_col: str, name: str, among: np.ndarray | None = None
) -> np.ndarray:
    """Bool (rows,): which rows of a file are among the best, given where those end."""
    values, valid = values_of(table, cut.column)
    passes = valid if among is None else valid & among
    order = against(values, cut.value)
    kept = passes & (order > 0)
    tied = np.flatnonzero(passes & (order == 0))
    kept[tied] = [place <= cut.last for place in places_of(table, id_col, name, tied)]
    return kept


def is_number(value: Any, kind: type = numbers.Real) -> bool:
    """Whether this is a number, NumPy's too, and no boolean."""
    return isinstance(value, kind) and not isinstance(value, bool)


def check_best(top: Any) -> tuple[str, float]:
    """A column, and of the rows with a value there a share, or how many.

    Raises
    ------
    ConfigError
        It is something else.
    """
    if isinstance(top, tuple | list) and len(top) == 2 and is_number(top[1]):
        column, most = top
        if isinstance(column, str) and (0 < most <= 1 or (most >= 2 and is_number(most, numbers.Integral))):
            return column, getattr(most, "item", lambda: most)()  # NumPy's as Python's: it goes into JSON
        top = f"{column}={most}"
    raise ConfigError(
        f"top: {top}: expected a column with a share above 0 and at most 1 (1 is all rows with a value), or with a"
        " whole number of rows of at least 2, such as score and 0.3, or score and 1000"
    )


def count_best(most: float, found: int) -> int:
    """How many of so many rows with a value a share of them, or a number of rows, is; a share to the nearest row."""
    return min(int(most), found) if most > 1 else round(most * found)
