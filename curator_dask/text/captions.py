"""The captions of the rows of a partition, and their vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.errors import ConfigError
from curator_dask.frames.columns import unit
from curator_dask.frames.names import URL_COLUMN
from curator_dask.models.texts import TextEncoder
from curator_dask.rows.reasons import NO_CAPTION
from curator_dask.rows.remarks import fact_of, remark
from curator_dask.runs.step import Rows


@dataclass(frozen=True)
class Captions:
    """Those of some rows that are not empty, one after the other.

    Attributes
    ----------
    texts
        The captions.
    rows
        int (n,): whose each is; ascending.
    lacking
        By row, why it has none; None where it has one.
    """

    texts: list[str]
    rows: np.ndarray
    lacking: list[str | None]

    @classmethod
    def of(cls, rows: Rows, column: str) -> Captions:
        """The captions in a column of text, or of lists of text.

        Raises
        ------
        ConfigError
            It is of another type.
        """
        return cls.of_column(rows.column(column), column)

    @classmethod
    def of_column(cls, array: pa.Array | pa.ChunkedArray, column: str) -> Captions:
        """The same of the column's values."""
        check_captions(column, array.type)
        texts: list[str] = []
        places: list[int] = []
        lacking: list[str | None] = [None] * len(array)
        for row, value in enumerate(_values(array)):
            found = [
                text for text in (value if isinstance(value, list) else [value]) if text and text.strip()
            ]
            if not found:
                lacking[row] = f"{NO_CAPTION}: {column} is {'null' if value is None else 'empty'}"
            texts += found
            places += [row] * len(found)
        return cls(texts, np.array(places, int), lacking)


@dataclass(frozen=True)
class CaptionVectors:
    """The vectors of captions.

    Attributes
    ----------
    matrix
        float32 (n, dim).
    rows
        int (n,): whose each is; ascending.
    reasons
        By row, why it has none; None where it has one.
    """

    matrix: np.ndarray
    rows: np.ndarray
    reasons: list[str | None]

    @classmethod
    def of(
        cls, rows: Rows, column: str, encoder: TextEncoder, batch_size: int, id_col: str | None
    ) -> CaptionVectors:
        """Embed the captions of some rows; those that the model does not take whole are counted by shard."""
        captions = Captions.of(rows, column)
        made = encoder(captions.texts, batch_size)
        reasons = list(captions.lacking)
        finite = np.isfinite(made.vectors).all(axis=1)
        for row in captions.rows[~finite]:
            reasons[row] = encoder.not_finite
        _remark_long(rows, captions.rows[made.long], id_col)
        # A row that has a reason has no vector, also where another of its captions has one.
        good = np.array([reasons[row] is None for row in captions.rows], bool)
        return cls(made.vectors[good], captions.rows[good], reasons)

    def by_row(self, normalized: bool) -> np.ndarray:
        """By row, its vector, or the mean of its vectors; zeros where there is none."""
        sums = np.zeros((len(self.reasons), self.matrix.shape[1]), np.float32)
        np.add.at(sums, self.rows, self.matrix)
        counts = np.bincount(self.rows, minlength=len(sums))
        several = counts > 1
        means = sums[several] / counts[several, None].astype(np.float32)
        sums[several] = unit(means) if normalized else means
        return sums


def check_captions(column: str, kind: pa.DataType) -> None:
    """Raise ConfigError where a column's type is neither text nor lists of text."""
    value = kind.value_type if is_list(kind) else kind
    value = value.value_type if pa.types.is_dictionary(value) else value
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    if not any(is_text(value) for is_text in texts):
        raise ConfigError(f"text_column={column!r}: expected text, or lists of text, found {kind}")


def _values(array: pa.Array | pa.ChunkedArray) -> list[Any]:
    """The values of a column; what is no UTF-8, which some writers leave in text, becomes U+FFFD."""
    try:
        found: list[Any] = array.to_pylist()
    except UnicodeDecodeError:
        return [_value(each) for each in array]
    return found


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        if is_list(scalar.type):
            return [_value(each) for each in scalar.values]
        text = scalar.value if pa.types.is_dictionary(scalar.type) else scalar
        return text.as_buffer().to_pybytes().decode("utf-8", "replace")


def is_list(kind: pa.DataType) -> bool:
    """Whether a row has several captions."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _remark_long(rows: Rows, long: np.ndarray, id_col: str | None) -> None:
    if not len(long) or URL_COLUMN not in rows.names:
        return
    found = np.unique(long)
    urls = rows.column(URL_COLUMN).to_pylist()
    ids = rows.column(id_col).to_pylist() if id_col is not None and id_col in rows.names else None
    keys: dict[str, list[str]] = {}
    for row in found:
        keys.setdefault(urls[row], []).append(f"row {row}" if ids is None else str(ids[row]))
    for url, names in keys.items():
        if url is not None:
            remark(url, "text-truncated", fact_of(names))
