"""Which rows of an output pass a filter: by a condition, by the largest values of a column over all files, or both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from curator_dask.errors import ConfigError, ShardError
from curator_dask.frames.faults import faults_told
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import open_parquet, read_whole
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.unchanged import changed_shard
from curator_dask.rows.best import Cut, Place, against, best_rows, count_best, ends_at, places_of, values_of
from curator_dask.rows.capped import Cap, Ends, Members, capped_rows, find_ends, members_of, places_in
from curator_dask.rows.where import Where
from curator_dask.storage import Options, join
from curator_dask.threads import in_threads
from curator_dask.words import some_of_these


@dataclass(frozen=True)
class Look:
    """What one file has.

    Attributes
    ----------
    rows, kept
        Its rows, and those that pass the condition.
    passing, unknown
        By clause, rows that pass it alone, and rows of which it says nothing.
    values
        Of the column that decides who is best, of the rows that pass and have one; None: there is no such column.
    members
        Of each value of which so many rows are kept; None: of any value all are.
    changed
        Its shard, where that has changed since.
    """

    rows: int
    kept: int
    passing: Mapping[str, int]
    unknown: Mapping[str, int]
    values: np.ndarray | None
    members: Members | None
    changed: str | None


@dataclass(frozen=True)
class Chosen:
    """Which rows of a file pass.

    Attributes
    ----------
    where
        The condition; None: all rows pass it.
    top
        Column, and share or number of the best rows, if only these are kept.
    cut
        Where those end, once it is known.
    cap
        How many rows of each value of a column are kept; None: all. Not with `top`.
    ends
        Where these end, once it is known.
    """

    where: Where | None
    top: tuple[str, float] | None
    cut: Cut | None = None
    cap: Cap | None = None
    ends: Ends | None = None

    def look(self, path: str, options: Options) -> Look:
        """Count the rows of a file by what passes, and take the values by which the best are found."""
        footer = read_whole(path, options)
        table = self._read(path, options)
        values, members = None, None
        try:
            passes = self._where(table, footer.columns)
            if self.top is not None:
                found, valid = values_of(table, self.top[0])
                values = found[passes & valid]
            if self.cap is not None:
                members, _ = members_of(table, self.cap, _id_col(table), passes)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}{self._there(footer.columns)}") from None
        clauses = [Where(clause) for clause in (self.where.clauses if self.where else ())]
        said = {clause.text: clause.passes(table) for clause in clauses}
        return Look(
            len(table),
            int(passes.sum()),
            {text: int((each == 1).sum()) for text, each in said.items()},
            {text: int((each == -1).sum()) for text, each in said.items()},
            values,
            members,
            changed_shard(footer.record),
        )

    def cut_of(
        self, looks: Sequence[Look], folder: str, names: Sequence[str], options: Options
    ) -> Cut | None:
        """Where the best rows of all files end; None where no row has a value."""
        assert self.top is not None
        column, _ = self.top
        count = self.count(looks)
        if not count:
            return None
        found = [look.values for look in looks if look.values is not None]
        value, left = ends_at(found, count)
        tied = [
            name
            for name, look in zip(names, looks, strict=True)
            if look.values is not None and not against(look.values, value).all()
        ]
        places = sorted(
            place
            for each in in_threads(lambda name: self._places(folder, name, options, value), tied)
            for place in each
        )
        return Cut(column, value, places[left - 1])

    def ends_of(self, looks: Sequence[Look], folder: str, names: Sequence[str], options: Options) -> Ends:
        """Where the rows of each value end, over all files."""
        assert self.cap is not None
        cap = self.cap

        def places(number: int, wanted: Mapping[str, int | float]) -> Iterator[tuple[str, Place]]:
            table = self._read(join(folder, names[number]), options)
            yield from places_in(table, cap, _id_col(table), names[number], self._where(table), wanted)

        return find_ends([look.members for look in looks if look.members is not None], cap, places)

    def count(self, looks: Sequence[Look]) -> int:
        """How many rows the best are, of those with a value."""
        assert self.top is not None
        return count_best(self.top[1], sum(len(look.values) for look in looks if look.values is not None))

    def _places(self, folder: str, name: str, options: Options, value: int | float) -> list[Place]:
        assert self.top is not None
        table = self._read(join(folder, name), options)
        values, valid = values_of(table, self.top[0])
        rows = self._where(table) & valid & (against(values, value) == 0)
        return places_of(table, _id_col(table), name, np.flatnonzero(rows))

    def rows(self, table: pa.Table, name: str) -> np.ndarray:
        """Bool (rows,): which rows of a file pass, the cut included."""
        passes = self._where(table)
        if self.cap is not None and self.ends is not None:
            return capped_rows(table, self.cap, self.ends, _id_col(table), name, passes)
        if self.top is None:
            return passes
        if self.cut is None:
            return np.zeros(len(table), bool)
        return best_rows(table, self.cut, _id_col(table), name, passes)

    def values(self, folder: str, name: str, column: str, options: Options) -> pa.Array:
        """Of the rows of a file that pass the values of a column, in their order.

        Raises
        ------
        ConfigError
            There is no such column.
        """
        path = join(folder, name)
        table = self._read(path, options, column)
        if column not in table.column_names:
            raise ConfigError(f"{path}: has no column {column!r} (--id-column)")
        found = table.column(column).filter(pa.array(self.rows(table, name)))
        return found.combine_chunks()

    def _there(self, columns: Sequence[str]) -> str:
        """Behind an error: which columns there are, where one that is named is not among them."""
        named = [self.top[0]] if self.top else []
        named += [self.cap.column, self.cap.by or self.cap.column] if self.cap else []
        missing = next((name for name in named if name not in columns), None)
        return "" if missing is None else f"; it has {some_of_these(columns, missing)}"

    def _where(self, table: pa.Table, columns: Sequence[str] | None = None) -> np.ndarray:
        return np.ones(len(table), bool) if self.where is None else self.where.passes(table, columns) == 1

    def _read(self, path: str, options: Options, *others: str) -> pa.Table:
        """The columns that are named, and those that say which row is which."""
        footer = read_whole(path, options)
        keys = [(footer.record.id_col if footer.record else None) or "key", URL_COLUMN]
        wanted = [] if self.where is None else self.where.columns(footer.columns)
        wanted += [] if self.top is None else [self.top[0], *keys]
        wanted += [] if self.cap is None else [self.cap.column, *filter(None, [self.cap.by]), *keys]
        named = [name for name in dict.fromkeys([*wanted, *others]) if name in footer.columns]
        return read_rows(path, options, named or footer.columns[:1])


def _id_col(table: pa.Table) -> str:
    record = FileRecord.parse(table.schema.metadata)
    return (record.id_col if record else None) or "key"


def read_rows(path: str, options: Options, columns: Sequence[str] | None = None) -> pa.Table:
    """A file, or some of its columns.

    Raises
    ------
    ShardError
        It cannot be read.
    """
    with faults_told(path, ShardError), open_parquet(path, options) as file:
        return file.read(columns=columns)
