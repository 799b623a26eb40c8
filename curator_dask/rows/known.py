"""Vectors that an earlier run has written of the same images with the same model, taken over in place of made anew.

So a score, a filter or another model that is added to a finished output costs only itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.frames.columns import list_to_matrix, to_array
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.frames.parquet import open_parquet
from curator_dask.rows.reasons import GAVE_UP, Reason, reason_for, reasons_in
from curator_dask.storage import Options


class KnownVectors:
    """The vectors in a file of an earlier run.

    Parameters
    ----------
    path, options
        Of the file.
    id_col
        Column of the keys.
    columns
        Of the vectors that are still good.
    """

    def __init__(self, path: str, options: Options, id_col: str, columns: Sequence[str]) -> None:
        self._path, self._options, self._id_col, self._columns = path, options, id_col, columns
        self._table: pa.Table | None = None
        self._rows: dict[tuple[Any, Any], int] = {}

    def find(
        self, column: str, ids: Sequence[Any], urls: Sequence[str | None]
    ) -> tuple[np.ndarray, list[str | None]] | None:
        """The vectors of rows, by key and shard.

        Returns
        -------
        matrix
            float32 (rows, dim); zeros where there is a reason.
        reasons
            Why a row has no vector; None where it has one.

        None where a row is not in the file, or may have a vector when it is tried again.
        """
        if column not in self._columns:
            return None
        table = self._read()
        places = [self._rows.get(each, -1) for each in zip(urls, ids, strict=True)]
        if -1 in places or not places:
            return None
        matrix, valid = list_to_matrix(to_array(table.column(column)))
        reasons: list[str | None] = [None] * len(places)
        stored = table.column(ERROR_COLUMN).to_pylist()
        for number, place in enumerate(places):
            if valid[place]:
                continue
            reason = reason_for(column, reasons_in(stored[place]))
            if reason is None or Reason.of(reason).kind == GAVE_UP:
                return None
            reasons[number] = reason
        return matrix[places], reasons

    def _read(self) -> pa.Table:
        if self._table is None:
            wanted = [self._id_col, URL_COLUMN, ERROR_COLUMN, *self._columns]
            with open_parquet(self._path, self._options) as file:
                self._table = file.read(columns=wanted)
            keys = (self._table.column(name).to_pylist() for name in (URL_COLUMN, self._id_col))
            self._rows = {pair: row for row, pair in enumerate(zip(*keys, strict=True))}
        return self._table


_current: ContextVar[KnownVectors | None] = ContextVar("curator_dask known vectors", default=None)


@contextmanager
def knowing(known: KnownVectors | None) -> Iterator[None]:
    """Within the block, which one task runs, these vectors are known."""
    token = _current.set(known)
    try:
        yield
    finally:
        _current.reset(token)


def known_vectors() -> KnownVectors | None:
    """Those of the task that this is part of."""
    return _current.get()
