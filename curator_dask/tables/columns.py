"""`TableColumns`: columns of a user's own table, given to the rows of a dataset or of files that are there."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, DatasetError, ShardError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.columns import embedding_columns, to_array
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.frames.parquet import whole_footers
from curator_dask.frames.record import BY_SHARD, ON, TABLE, FileRecord
from curator_dask.outputs.given import given_files
from curator_dask.outputs.placing import locate
from curator_dask.rows.lookup import Lookup, key_texts, with_shards
from curator_dask.rows.user_tables import UserTable
from curator_dask.runs.lineage import trace
from curator_dask.runs.passes import RowStep
from curator_dask.runs.step import Known, Made, Rows, Work, types_of
from curator_dask.storage import Options, join
from curator_dask.tables.found import FoundRows, count_found
from curator_dask.tables.held import HELD, HeldTable, check_memory, check_single
from curator_dask.tokens import tokenize
from curator_dask.words import none_of_these


class TableColumns:
    """Adds columns of a table of yours: captions, scores, labels or licences that were made elsewhere, or a mark.

    A row finds its values by the text of a column, such as its key, the URL of its image or a digest. A whole number
    also finds the key that is this number with leading zeros. Where nothing is found a row has null, and is not marked.

    Parameters
    ----------
    table
        A Parquet, CSV, TSV or JSON Lines file, a folder or a glob of Parquet files, or for `mark` alone a list of
        values (``.npy``, or ``.txt`` with one a line): on a disk that all workers see, or a URL.
    on
        Column of the rows, and after ``=`` that of the table where it has another name: ``"key=id"``.
    columns
        Of the table; None: all but that of `on`, or none where there is a mark.
    mark
        Name of a column that says whether the table has the row.
    storage_options
        For fsspec, where `table` is a URL.

    Raises
    ------
    ConfigError
        The arguments do not fit each other.
    """

    def __init__(
        self,
        table: str | os.PathLike[str],
        on: str = "key",
        columns: Sequence[str] | None = None,
        mark: str | None = None,
        *,
        storage_options: Options = None,
    ) -> None:
        if isinstance(columns, str) or (columns is not None and not all(isinstance(n, str) for n in columns)):
            raise ConfigError(f"columns={columns!r}: expected a list of names, as columns=['caption']")
        own, equals, other = on.partition("=") if isinstance(on, str) else ("", "", "")
        if not own or (equals and not other):
            raise ConfigError(
                f"on={on!r}: expected a column's name, as 'key', or those of the rows and of the table, as 'key=id'"
            )
        if mark is not None and (not isinstance(mark, str) or not mark or mark in (columns or ())):
            raise ConfigError(f"mark={mark!r}: expected a name for the column, which none of the others has")
        if columns is not None and not columns and mark is None:
            raise ConfigError("columns: there is none, and no mark: nothing would be added")
        self.path = os.fsdecode(table)
        self.on, self.key = own, other or own
        self.columns = None if columns is None else list(dict.fromkeys(columns))
        self.mark = mark
        self.storage_options = storage_options

    @property
    def marks_alone(self) -> bool:
        """Whether rows get a mark and nothing else: a list that names none of them is no mistake."""
        return self.mark is not None and not self.columns

    def __call__(self, dataset: ImageTextPairDataset) -> ImageTextPairDataset:
        """The dataset with the columns; nothing of it is computed yet, but the table's keys are read.

        Raises
        ------
        DatasetError
            The table cannot be used, or the dataset has no such column.
        ConfigError
            The name of a column is not free.
        """
        names = list(dataset.metadata.columns)
        if self.on not in names:
            raise DatasetError(f"on={self.on!r}: {none_of_these(self.on, names)}")
        try:
            key_texts(pa.array([], types_of(dataset.metadata._meta).field(self.on).type))
        except ValueError as error:
            raise DatasetError(f"on={self.on!r}: {error}. Give another column") from None
        # Where it is not known of which shards the rows are, keys alone count.
        inputs = trace(dataset.metadata).inputs if URL_COLUMN in names and self.on == dataset.id_col else None
        urls = {part.shard.url for part in inputs or ()}
        return dataset.apply(self.step({dataset.id_col, *embedding_columns(dataset.metadata._meta)}, urls))

    def of_files(self, records: Mapping[str, FileRecord | None], options: Options = None) -> JoinTable:
        """The step for files, by what made them; `options` are for fsspec."""
        return self.step(self.taken(records), self.shards(records))

    def taken(self, records: Mapping[str, FileRecord | None]) -> set[str]:
        """Columns of files that are not to be replaced."""
        found = [record for record in records.values() if record is not None]
        return {name for each in found for name in (each.id_col or "key", *each.embeddings)}

    def shards(self, records: Mapping[str, FileRecord | None]) -> set[str]:
        """Shards that files are of, where rows are found by their keys; by what made the files."""
        found = [record for record in records.values() if record is not None]
        return {each.url for each in found if each.url and self.on == (each.id_col or "key")}

    def _by_shard(self, table: UserTable, urls: Collection[str]) -> UserTable:
        """The table, whose rows are found by key and shard where it names one of these shards: keys may repeat."""
        return replace(table, by_shard=True) if urls and not table.shards().isdisjoint(urls) else table

    def found_in(self, path: str | os.PathLike[str], options: Options = None) -> FoundRows:
        """How many rows of an output the table has, such as of one that a pass with these columns has written.

        Parameters
        ----------
        path
            Of the output, which has the column of `on`. Of it alone it is read.
        options
            For fsspec, where `path` is a URL.

        Raises
        ------
        DatasetError
            The table cannot be read.
        OutputError
            There is no output, or it has no such column.
        """
        folder = locate(os.fspath(path), options)
        paths = [join(folder, name) for name in given_files(folder, options)]
        records = {each: footer.record for each, footer in whole_footers(paths, options).items()}
        table = UserTable.find(self.path, self.key, self.storage_options)
        with table.steady():
            table = self._by_shard(table, self.shards(records))
            check_memory(table, [])
            lookup = Lookup(*table.keys())
            table.forget()
        found = FoundRows(table=table.path, on=f"{self.on}={self.key}", by_shard=table.by_shard)
        count_found(found, lookup, paths, options)
        return found

    @property
    def names(self) -> list[str]:
        """Of the columns that it adds."""
        wanted = self._wanted(UserTable.find(self.path, self.key, self.storage_options))
        return [*wanted, *([] if self.mark is None else [self.mark])]

    @property
    def files(self) -> tuple[str, ...]:
        """Of the table."""
        return UserTable.find(self.path, self.key, self.storage_options).files

    def look(self) -> None:
        """See that the table has what is wanted of it; of Parquet no row is read.

        Raises
        ------
        DatasetError
            There is no such table, or it has no such columns.
        ConfigError
            There is nothing to add.
        """
        self._wanted(UserTable.find(self.path, self.key, self.storage_options))

    def step(self, taken: set[str], urls: Collection[str] = ()) -> JoinTable:
        """What is done to the rows of a shard.

        Parameters
        ----------
        taken
            Columns that are not to be replaced: keys and vectors.
        urls
            Shards that the rows may be of, where they are found by their keys.
        """
        return self.opened(taken, urls)[0]

    def opened(self, taken: set[str], urls: Collection[str] = ()) -> tuple[JoinTable, Lookup]:
        """The same, and what finds the table's rows.

        Raises
        ------
        DatasetError
            The table cannot be read, has no such columns, or a value stands in several rows that differ.
        ConfigError
            The name of a column is not free, or there is not the memory.
        """
        table = UserTable.find(self.path, self.key, self.storage_options)
        with table.steady():
            return self._opened(self._by_shard(table, urls), taken)

    def _opened(self, table: UserTable, taken: set[str]) -> tuple[JoinTable, Lookup]:
        names = self._wanted(table)
        made = [*names, *([] if self.mark is None else [self.mark])]
        wrong = [name for name in made if name in {"key", URL_COLUMN, ERROR_COLUMN, self.on, *taken}]
        if wrong:
            raise ConfigError(
                f"{self.path}: {wrong} would take the place of what says which row it is, or of vectors. Choose others"
                f" (--columns, --mark); the table has {table.schema.names}"
            )
        check_memory(table, [])
        digest = table.digest()
        lookup = Lookup(*table.keys())
        check_single(table, lookup, names)
        kinds = tuple((name, table.schema.field(name).type) for name in names)
        table.forget()
        return JoinTable(table, self.on, kinds, self.mark, digest), lookup

    def _wanted(self, table: UserTable) -> list[str]:
        names = [name for name in table.schema.names if name != self.key]
        every = names if self.mark is None else []
        chosen = every if self.columns is None else self.columns
        if self.key in chosen:
            raise ConfigError(f"columns: {self.key!r} is what rows are found by: leave it out")
        for name in chosen:
            if name not in names:
                raise DatasetError(f"{self.path}: {none_of_these(name, table.schema.names)} (--columns)")
        if not chosen and self.mark is None:
            raise ConfigError(
                f"{self.path}: has values alone, and no column to add. Give the name of a column that says which rows"
                " are among them (mark, --mark)"
            )
        return chosen

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"


@dataclass(frozen=True, eq=False)
class JoinTable(RowStep):
    """The step that adds columns of a table.

    Attributes
    ----------
    table
        Which.
    on
        Column of the rows by which they find theirs.
    kinds
        Names and types of the columns.
    mark
        Name of the column that says whether a row was found; None: there is none.
    digest
        Of the table's content, which every worker must find.
    """

    table: UserTable
    on: str
    kinds: tuple[tuple[str, pa.DataType], ...]
    mark: str | None
    digest: str
    given_up: str | None = None

    needs = frozenset({"rows"})

    def __dask_tokenize__(self) -> Any:
        return (type(self).__name__, self.recipe, self.table.path)

    @property
    def label(self) -> str:
        """The table's name."""
        return posixpath.basename(self.table.path.rstrip("/"))

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """Those of the table, and the mark."""
        return {**dict(self.kinds), **({} if self.mark is None else {self.mark: pa.bool_()})}

    @property
    def recipe(self) -> tuple[Any, ...]:
        """The table's content, and what is taken of it."""
        kinds = tuple((name, str(kind)) for name, kind in self.kinds)
        return ("join", self.digest, self.on, self.table.key, kinds, self.mark or "", *self._shards)

    @property
    def _shards(self) -> list[str]:
        """What tells a join by key and shard from others; nothing of one by the key alone."""
        return [URL_COLUMN] if self.table.by_shard else []

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """By column, what the record of a file says of the table."""
        said = {"head": self.label, ON: self.on, TABLE: self.table.path}
        said |= {BY_SHARD: URL_COLUMN} if self.table.by_shard else {}
        recipe = ("join", self.digest, self.on, self.table.key, *self._shards)
        return {
            name: {**said, "recipe": fingerprint({"recipe": (*recipe, str(kind), name == self.mark or name)})}
            for name, kind in self.columns.items()
        }

    def describe(self) -> dict[str, dict[str, Any]]:
        """Have the table in memory; of vectors it makes none."""
        with HELD.lease(self._spec, self._build):
            return {}

    def give_up(self, reason: str) -> JoinTable:
        """The same: what kills workers is not this."""
        return self

    @contextmanager
    def begin(self, rows: Rows) -> Iterator[Work]:
        """Have the table ready for some rows."""
        if not len(rows):
            yield Known(Made.of_no_rows(self.columns))
            return
        with HELD.lease(self._spec, self._build) as held:
            yield _Joining(self, rows, held)

    @property
    def _spec(self) -> Any:
        return tokenize(self)

    def _build(self) -> HeldTable:
        with self.table.steady():
            if self.table.digest() != self.digest:
                raise DatasetError(
                    f"{self.table.path}: is not what the client has found there. Give every node the same files; if"
                    " they have changed since, run again"
                )
            return HeldTable.read(self.table, [name for name, _ in self.kinds])


class _Joining(Work):
    """The columns of the rows of one partition."""

    def __init__(self, step: JoinTable, rows: Rows, held: HeldTable) -> None:
        self._step, self._rows, self._held = step, rows, held

    def finish(self) -> Made:
        """Null where nothing is found; the mark never is."""
        try:
            texts, is_number = key_texts(self._rows.column(self._step.on))
            if self._step.table.by_shard:
                texts = with_shards(texts, to_array(self._rows.column(URL_COLUMN)))
            found = self._held.lookup.find_texts(texts, is_number)
        except ValueError as error:
            raise ShardError(f"on={self._step.on!r}: {error}. Give another column") from None
        made = self._held.take(found)
        if self._step.mark is not None:
            made[self._step.mark] = pa.array(found >= 0)
        return Made(made)
