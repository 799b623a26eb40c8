"""A few rows of an output, column by column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.errors import OutputError
from curator_dask.frames.names import CAPTION_COLUMN
from curator_dask.report.folder import is_number
from curator_dask.rows.images import values_of

#: Characters that are kept of a text.
TEXT = 300


@dataclass
class Rows:
    """A few rows, column by column.

    Attributes
    ----------
    keys, urls
        As they are stored.
    numbers
        float64 (rows,) by column, NaN where null.
    texts
        By column.
    errors
        ``image_error``.
    vectors, valid
        float32 (rows, dim), and where there is one.
    """

    keys: list[Any] = field(default_factory=list)
    urls: list[str | None] = field(default_factory=list)
    numbers: dict[str, np.ndarray] = field(default_factory=dict)
    texts: dict[str, list[str | None]] = field(default_factory=dict)
    errors: list[str | None] = field(default_factory=list)
    vectors: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    valid: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))

    def __len__(self) -> int:
        return len(self.keys)

    def drop_vectors(self) -> None:
        """Let go of them: they are most of what rows take."""
        self.vectors = np.zeros((len(self), 0), np.float32)

    @property
    def captions(self) -> list[str | None]:
        """Those of the rows; None where there is no such column."""
        return self.texts.get(CAPTION_COLUMN, [None] * len(self))


def numbers_of(column: pa.ChunkedArray) -> np.ndarray:
    """float64 (rows,), NaN where null; text and others that stand in a number's place are NaN."""
    if not is_number(column.type):
        return np.full(len(column), np.nan)
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), np.float64)


def column_values(table: pa.Table, name: str) -> list[Any]:
    """The values of a column as Python has them; None where there is no such column."""
    if name not in table.column_names:
        return [None] * table.num_rows
    return values_of(table.column(name).combine_chunks())


def short(value: Any) -> str | None:
    """As text of a few hundred characters at most."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return None if value is None else str(value)[:TEXT]


def join_rows(parts: Sequence[Rows], numbers: Sequence[str], texts: Sequence[str]) -> Rows:
    """Rows one after the other; what some lack is null.

    Raises
    ------
    OutputError
        Vectors differ in length.
    """
    dims = {each.vectors.shape[1] for each in parts if each.valid.any()}
    if len(dims) > 1:
        raise OutputError(f"vectors of one length are expected, found {sorted(dims)} values")
    dim = next(iter(dims), 0)
    lengths = [len(each) for each in parts]
    nothing: list[Any] = [np.zeros(0)]
    return Rows(
        keys=[key for each in parts for key in each.keys],
        urls=[url for each in parts for url in each.urls],
        numbers={
            name: np.concatenate(
                nothing + [each.numbers.get(name, np.full(len(each), np.nan)) for each in parts]
            )
            for name in numbers
        },
        texts={
            name: [text for each in parts for text in each.texts.get(name, [None] * len(each))]
            for name in texts
        },
        errors=[error for each in parts for error in each.errors],
        vectors=np.concatenate(
            [np.zeros((0, dim), np.float32)]
            + [
                each.vectors if each.valid.any() else np.zeros((length, dim), np.float32)
                for each, length in zip(parts, lengths, strict=True)
            ]
        ),
        valid=np.concatenate([np.zeros(0, bool), *(each.valid for each in parts)]),
    )
