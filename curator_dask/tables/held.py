"""A table as a worker holds it, and whether it can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from distributed.system import MEMORY_LIMIT

from curator_dask.cache import POSSESSIONS, SpecCache
from curator_dask.errors import ConfigError, DatasetError
from curator_dask.frames.columns import to_array
from curator_dask.rows.lookup import Lookup
from curator_dask.rows.near_lookup import NearLookup
from curator_dask.rows.user_tables import UserTable
from curator_dask.webdataset.staging import current_worker
from curator_dask.words import counted, sized

#: Tables of this process.
HELD: SpecCache[HeldTable] = POSSESSIONS.add("tables", SpecCache(capacity=2))

_SHARE = 0.8  # of a process's memory, that reading a table may take
_FEW = 3  # values that an error gives
#: As what text and bytes are held: of the others a column has no more than 2 GB.
_LARGE = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}


@dataclass(frozen=True)
class HeldTable:
    """Columns of a table, and what finds their rows.

    Attributes
    ----------
    lookup
        Finds rows by the values of keys, or by hashes that are near.
    columns
        By name, each in one piece; text as ``large_string``.
    kinds
        What the columns are given to rows as.
    """

    lookup: Lookup | NearLookup
    columns: dict[str, pa.Array]
    kinds: dict[str, pa.DataType]

    @classmethod
    def read(cls, table: UserTable, columns: Sequence[str], within: int | None = None) -> HeldTable:
        """Read them; with `within` rows are found by hashes that differ in so many bits.

        Raises
        ------
        ConfigError
            This process has not the memory.
        DatasetError
            They cannot be read.
        """
        check_memory(table, columns)
        texts, is_number, payload = table.read(columns)
        table.forget()
        kinds = {each.name: each.type for each in payload.schema}
        held = {
            name: to_array(payload.column(name).cast(_LARGE.get(kind, kind))) for name, kind in kinds.items()
        }
        lookup = Lookup(texts, is_number) if within is None else near_lookup(table, within)
        return cls(lookup, held, kinds)

    def take(self, rows: np.ndarray) -> dict[str, pa.Array]:
        """The columns' values in some rows, null for -1."""
        places = pa.array(rows, mask=rows < 0)
        return {name: column.take(places).cast(self.kinds[name]) for name, column in self.columns.items()}


def near_lookup(table: UserTable, within: int) -> NearLookup:
    """What finds a table's hashes.

    Raises
    ------
    DatasetError
        It has others than hashes.
    """
    try:
        return NearLookup(table.values(), within)
    except ValueError as error:
        raise DatasetError(f"{table.path}: column {table.key!r}: {error}. {table.hint}") from None


def check_memory(table: UserTable, columns: Sequence[str]) -> None:
    """Raise ConfigError where this process has not the memory for a table's columns, and what reads them."""
    worker = current_worker()
    limit = (worker and worker.memory_manager.memory_limit) or MEMORY_LIMIT
    size = table.size(columns)
    if 2 * size > _SHARE * limit:
        what = f"its columns {[table.key, *columns]} take" if columns else f"its column {table.key!r} takes"
        who = "this process" if worker is None else "a worker"
        raise ConfigError(
            f"{table.path}: {what} about {sized(size)}, as much again while they are read, and {who} has"
            f" {sized(limit)} of memory. Give fewer columns, have fewer workers with more memory each"
            " (--workers), or give the table in parts, each with columns of other names"
        )


def check_single(table: UserTable, lookup: Lookup, columns: Sequence[str]) -> None:
    """Raise DatasetError where a value stands in several rows whose columns differ."""
    first = lookup.firsts
    repeats = np.flatnonzero((first >= 0) & (first != np.arange(len(first))))
    if not len(repeats) or not columns:
        return
    check_memory(table, columns)
    payload = table.read(columns)[2]
    one, other = payload.take(pa.array(first[repeats])), payload.take(pa.array(repeats))
    names = [name for name in columns if not _same(one.column(name), other.column(name)).all()]
    if not names:
        return
    differs = np.any([~_same(one.column(name), other.column(name)) for name in names], axis=0)
    rows = repeats[differs]
    shown = [
        f"{told(lookup.texts[int(row)].as_py())} in {table.row_told(int(first[row]))} and {table.row_told(int(row))}"
        for row in rows[:_FEW]
    ]
    values = len(np.unique(first[rows]))
    raise DatasetError(
        f"{table.path}: {counted(values, 'value')} of the column {table.key!r} in several rows that differ in"
        f" {', '.join(map(repr, names))}, {'; '.join(shown)} for example (counted from 0). Leave one row of each, or"
        " take columns that are the same in them"
    )


def told(text: str) -> str:
    """What rows are found by, for an error; a key and a shard are parted by a zero."""
    return " of ".join(map(repr, text.split("\0")))


def _same(one: pa.ChunkedArray, other: pa.ChunkedArray) -> np.ndarray:
    """Whether values are equal; nulls are, and so are NaNs."""
    try:
        equal = pc.equal(one, other)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):  # lists
        pairs = zip(one.to_pylist(), other.to_pylist(), strict=True)
        return np.array([str(left) == str(right) for left, right in pairs], bool)
    same: Any = pc.or_(equal.fill_null(False), pc.and_(one.is_null(), other.is_null()))
    if pa.types.is_floating(one.type):
        same = pc.or_(same, pc.and_(pc.is_nan(one), pc.is_nan(other)).fill_null(False))
    return np.asarray(same, bool)
