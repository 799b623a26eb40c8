"""Which rows of an output pass a filter: by a condition, by the largest values of a column over all files, or both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.errors import ConfigError, OutputError, ShardError
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import open_parquet, read_footer
from curator_dask.frames.record import FileRecord
from curator_dask.rows.where import Where
from curator_dask.storage import Options, join
from curator_dask.threads import in_threads

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
    """

    rows: int
    kept: int
    passing: Mapping[str, int]
    unknown: Mapping[str, int]
    values: np.ndarray | None


@dataclass(frozen=True)
class Chosen:
    """Which rows of a file pass.

    Attributes
    ----------
    where
        The condition; None: all rows pass it.
    top
        Column and share of the best rows, if only these are kept.
    cut
        Where those end, once it is known.
    """

    where: Where | None
    top: tuple[str, float] | None
    cut: Cut | None = None

    def look(self, path: str, options: Options) -> Look:
        """Count the rows of a file by what passes, and take the values by which the best are found."""
        footer = read_footer(path, options)
        table = self._read(path, options)
        try:
            passes = self._where(table, footer.columns)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
        clauses = [Where(clause) for clause in (self.where.clauses if self.where else ())]
        said = {clause.text: clause.passes(table) for clause in clauses}
        values = None
        if self.top is not None:
            values = _numbers(table, self.top[0], path)[passes]
            values = values[~np.isnan(values)]
        return Look(
            len(table),
            int(passes.sum()),
            {text: int((each == 1).sum()) for text, each in said.items()},
            {text: int((each == -1).sum()) for text, each in said.items()},
            values,
        )

    def cut_of(
        self, looks: Sequence[Look], folder: str, names: Sequence[str], options: Options
    ) -> Cut | None:
        """Where the best rows of all files end; None where no row has a value."""
        assert self.top is not None
        column, share = self.top
        values = np.concatenate([look.values for look in looks if look.values is not None])
        count = count_best(share, looks)
        if not count:
            return None
        value = float(np.partition(values, len(values) - count)[len(values) - count])
        left = count - int((values > value).sum())  # of those that have just this value
        tied = [
            name
            for name, look in zip(names, looks, strict=True)
            if value in (look.values if look.values is not None else ())
        ]
        places = sorted(
            place
            for each in in_threads(lambda name: self._places(folder, name, options, value), tied)
            for place in each
        )
        return Cut(column, value, places[left - 1])

    def _places(self, folder: str, name: str, options: Options, value: float) -> list[Place]:
        assert self.top is not None
        path = join(folder, name)
        table = self._read(path, options)
        rows = self._where(table) & (_numbers(table, self.top[0], path) == value)
        return _places_of(table, name, np.flatnonzero(rows))

    def rows(self, table: pa.Table, name: str) -> np.ndarray:
        """Bool (rows,): which rows of a file pass, the cut included."""
        passes = self._where(table)
        if self.top is None:
            return passes
        if self.cut is None:
            return np.zeros(len(table), bool)
        values = _numbers(table, self.cut.column, name)
        kept = passes & (values > self.cut.value)
        tied = np.flatnonzero(passes & (values == self.cut.value))
        kept[tied] = [place <= self.cut.last for place in _places_of(table, name, tied)]
        return kept

    def _where(self, table: pa.Table, columns: Sequence[str] | None = None) -> np.ndarray:
        return np.ones(len(table), bool) if self.where is None else self.where.passes(table, columns) == 1

    def _read(self, path: str, options: Options) -> pa.Table:
        """The columns that are named, and those that say which row is which."""
        footer = read_footer(path, options)
        keys = [(footer.record.id_col if footer.record else None) or "key", URL_COLUMN]
        wanted = [] if self.where is None else self.where.columns(footer.columns)
        wanted += [] if self.top is None else [self.top[0], *keys]
        named = [name for name in dict.fromkeys(wanted) if name in footer.columns]
        return read_rows(path, options, named or footer.columns[:1])


def count_best(share: float, looks: Sequence[Look]) -> int:
    """How many rows a share of those with a value is."""
    return round(share * sum(len(look.values) for look in looks if look.values is not None))


def _numbers(table: pa.Table, column: str, path: str) -> np.ndarray:
    """float64 (rows,), NaN where there is none."""
    if column not in table.column_names:
        raise OutputError(f"{path}: has no column {column!r} to find the best rows by")
    try:
        return np.asarray(pc.cast(table.column(column), pa.float64()).to_numpy())
    except pa.ArrowException as error:
        raise OutputError(f"{path}: column {column!r} is no column of numbers ({error})") from None


def _places_of(table: pa.Table, name: str, rows: np.ndarray) -> list[Place]:
    """Of some rows of a file."""
    record = FileRecord.parse(table.schema.metadata)
    taken = pa.array(rows)
    texts = [
        [str(value) for value in table.column(column).take(taken).to_pylist()]
        if column in table.column_names
        else [""] * len(rows)
        for column in ((record.id_col if record else None) or "key", URL_COLUMN)
    ]
    return list(zip(*texts, [name] * len(rows), rows.tolist(), strict=True))


def read_rows(path: str, options: Options, columns: Sequence[str] | None = None) -> pa.Table:
    """A file, or some of its columns.

    Raises
    ------
    ShardError
        It cannot be read.
    """
    try:
        with open_parquet(path, options) as file:
            return file.read(columns=columns)
    except Exception as error:  # a store's own, of many types
        raise ShardError(f"{path}: cannot be read: {error!r}") from error
