"""Rows that an earlier run has written, found by shard and key, and what it made of them, taken over and not made anew.

So a score, a filter or another model that is added to a finished output costs only itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.frames.columns import list_to_matrix, to_array
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.frames.parquet import open_parquet
from curator_dask.rows.reasons import GAVE_UP, NOT_MADE, Reason, reason_for, reasons_in
from curator_dask.rows.remarks import remark
from curator_dask.storage import Options

#: Why a row has nothing that was taken out of the files: it is not written.
GONE = "removed: on request"


class StoredRows:
    """The rows in files of an earlier run.

    Parameters
    ----------
    paths, options
        Of the file, and of those that hold further rows of the same partition.
    id_col
        Column of the keys.
    columns
        To read besides the key, the shard and the reasons; None: all.
    """

    def __init__(
        self, paths: Sequence[str], options: Options, id_col: str, columns: Sequence[str] | None = None
    ) -> None:
        self._paths, self._options, self._id_col, self._columns = paths, options, id_col, columns

    @cached_property
    def table(self) -> pa.Table:
        """The rows of all files, in the order of these."""
        wanted = None
        if self._columns is not None:
            wanted = list(dict.fromkeys([self._id_col, URL_COLUMN, ERROR_COLUMN, *self._columns]))
        tables = []
        for path in self._paths:
            with open_parquet(path, self._options) as file:
                tables.append(file.read(columns=wanted).replace_schema_metadata(None))
        return pa.concat_tables(tables, promote_options="default")

    def __len__(self) -> int:
        return len(self._rows)

    def places(self, ids: Iterable[Any], urls: Iterable[Any]) -> list[int]:
        """Where rows are in the table, by key and shard; -1 for those that are not there."""
        return [self._rows.get(each, -1) for each in zip(urls, ids, strict=True)]

    @cached_property
    def _rows(self) -> dict[tuple[Any, Any], int]:
        keys = (self.table.column(name).to_pylist() for name in (URL_COLUMN, self._id_col))
        rows: dict[tuple[Any, Any], int] = {}
        for row, pair in enumerate(zip(*keys, strict=True)):
            rows.setdefault(pair, row)  # what stands in two files is the first's
        return rows


class KnownVectors:
    """The vectors in files of an earlier run, and other columns that it made.

    Parameters
    ----------
    paths, options, id_col
        As for `StoredRows`.
    columns
        Those that are still good.
    remarks
        What that run noticed of the shards.
    gone
        Which rows, by key and shard, were taken out of the files, and will not be written again; None: none.
    """

    def __init__(
        self,
        paths: Sequence[str],
        options: Options,
        id_col: str,
        columns: Sequence[str],
        remarks: Mapping[str, Mapping[str, Any]] | None = None,
        gone: Callable[[Sequence[Any], Sequence[str | None]], np.ndarray] | None = None,
    ) -> None:
        self.id_col, self._gone = id_col, gone
        self._columns = columns
        self._stored = StoredRows(paths, options, id_col, columns)
        self._files, self._remarks = (paths, options, id_col), remarks or {}

    def remind(self, urls: Iterable[str | None], kinds: Collection[str]) -> None:
        """Say again what was noticed of shards that are not looked at again."""
        for url in {*urls} - {None}:
            for kind, fact in self._remarks.get(str(url), {}).items():
                if kind in kinds:
                    remark(str(url), kind, fact)

    def _without_gone(self, ids: Sequence[Any], urls: Sequence[str | None], places: list[int]) -> np.ndarray:
        """Which rows are not in the files as they were taken out of them: none of them is looked at again."""
        missing = np.array(places) < 0
        return (
            missing & self._gone(ids, urls) if self._gone is not None and missing.any() else missing & False
        )

    def has_same(self, column: str, values: pa.Array, ids: Sequence[Any], urls: Sequence[str | None]) -> bool:
        """Whether rows had these values in a column, by key and shard."""
        stored = StoredRows(*self._files, [column])
        places = stored.places(ids, urls)
        stay = ~self._without_gone(ids, urls, places)
        there = np.array(places)[stay]
        if (there < 0).any() or column not in stored.table.column_names:
            return False
        mine = values.filter(pa.array(stay)).to_pylist()
        return bool(stored.table.column(column).take(pa.array(there)).to_pylist() == mine)

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

        None where a row is not in the files, or may have a vector when it is tried again.
        """
        if column not in self._columns:
            return None
        places = self._stored.places(ids, urls)
        gone = self._without_gone(ids, urls, places)
        if (np.array(places)[~gone] < 0).any() or not places or gone.all():
            return None
        table = self._stored.table
        matrix, valid = list_to_matrix(to_array(table.column(column)))
        reasons: list[str | None] = [None] * len(places)
        stored = table.column(ERROR_COLUMN).to_pylist()
        for number, place in enumerate(places):
            if gone[number]:
                reasons[number] = GONE
                continue
            if valid[place]:
                continue
            reason = reason_for(column, reasons_in(stored[place]))
            if reason is None or Reason.of(reason).kind in (GAVE_UP, NOT_MADE):
                return None
            reasons[number] = reason
        found = matrix[places]
        found[gone] = 0
        return found, reasons

    def find_columns(
        self,
        types: Mapping[str, pa.DataType],
        label: str,
        nullable: Collection[str],
        ids: Sequence[Any],
        urls: Sequence[str | None],
    ) -> tuple[dict[str, pa.Array], list[str | None]] | None:
        """Columns of rows, by key and shard, that one step makes.

        Parameters
        ----------
        types
            Of the columns.
        label
            What ``image_error`` calls them.
        nullable
            Those of them that may be null without a reason.
        ids, urls
            Of the rows.

        Returns
        -------
        columns
            By name.
        reasons
            Why a row lacks values; None where it has them.

        None where a row is not in the files, or may have values when it is tried again.
        """
        if not {*types} <= {*self._columns}:
            return None
        places = self._stored.places(ids, urls)
        gone = self._without_gone(ids, urls, places)
        if (np.array(places)[~gone] < 0).any() or not places or gone.all():
            return None
        table = self._stored.table.select([*types, ERROR_COLUMN]).take(pa.array(places, mask=gone))
        reasons = [reason_for(label, reasons_in(each)) for each in table.column(ERROR_COLUMN).to_pylist()]
        reasons = [GONE if is_gone else each for is_gone, each in zip(gone.tolist(), reasons, strict=True)]
        whole = np.array([reason is None for reason in reasons])
        sure = [table.column(name).is_valid() for name in types if name not in nullable]
        if any(not np.asarray(each)[whole].all() for each in sure):
            return None
        if any(reason is not None and Reason.of(reason).kind in (GAVE_UP, NOT_MADE) for reason in reasons):
            return None
        try:
            return {name: to_array(table.column(name).cast(kind)) for name, kind in types.items()}, reasons
        except pa.ArrowException:  # of other types once
            return None


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
