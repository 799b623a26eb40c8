"""`TableColumns`: columns of a user's own table, given to the rows of a dataset or of files that are there."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, DatasetError
from curator_dask.frames.columns import embedding_columns
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.frames.parquet import whole_footers
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.given import given_files
from curator_dask.outputs.placing import locate
from curator_dask.rows.lookup import Lookup, key_texts
from curator_dask.rows.near_lookup import NearLookup
from curator_dask.rows.user_tables import UserTable
from curator_dask.runs.lineage import trace
from curator_dask.runs.step import types_of
from curator_dask.storage import Options, join
from curator_dask.tables.found import FoundRows, count_found
from curator_dask.tables.held import check_memory, check_single, near_lookup
from curator_dask.tables.step import JoinTable, marks_of
from curator_dask.words import none_of_these

#: In how many bits hashes may differ: of two images that have nothing in common a quarter of the bits do at least.
MOST_BITS = 64


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
    within
        With a mark, of a column of perceptual hashes, such as ``pdq`` or ``phash``: a row is found where its hash
        differs in at most so many bits, by the nearest of the table. A column more, the mark's name and ``_distance``,
        int32, says in how many. None: values must be the same.
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
        within: int | None = None,
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
        if within is not None:
            if not isinstance(within, int) or isinstance(within, bool) or not 0 <= within <= MOST_BITS:
                raise ConfigError(f"within={within!r}: expected a number of bits, 0 to {MOST_BITS}")
            if mark is None:
                raise ConfigError(
                    f"within={within}: expected a mark too (mark, --mark): the column that says what was found"
                )
        self.path = os.fsdecode(table)
        self.on, self.key = own, other or own
        self.columns = None if columns is None else list(dict.fromkeys(columns))
        self.mark = mark
        self.within = within
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
        return {
            each.url
            for each in found
            if each.url and self.on == (each.id_col or "key") and self.within is None
        }

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
            lookup = self._lookup(table)
            table.forget()
        found = FoundRows(
            table=table.path, on=f"{self.on}={self.key}", by_shard=table.by_shard, within=self.within
        )
        count_found(found, lookup, paths, options)
        return found

    @property
    def names(self) -> list[str]:
        """Of the columns that it adds."""
        wanted = self._wanted(UserTable.find(self.path, self.key, self.storage_options))
        return [*wanted, *marks_of(self.mark, self.within)]

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

    def opened(self, taken: set[str], urls: Collection[str] = ()) -> tuple[JoinTable, Lookup | NearLookup]:
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

    def _opened(self, table: UserTable, taken: set[str]) -> tuple[JoinTable, Lookup | NearLookup]:
        names = self._wanted(table)
        made = [*names, *marks_of(self.mark, self.within)]
        wrong = [name for name in made if name in {"key", URL_COLUMN, ERROR_COLUMN, self.on, *taken}]
        if wrong:
            raise ConfigError(
                f"{self.path}: {wrong} would take the place of what says which row it is, or of vectors. Choose others"
                f" (--columns, --mark); the table has {table.schema.names}"
            )
        check_memory(table, [])
        digest = table.digest()
        lookup = self._lookup(table)
        if isinstance(lookup, Lookup):  # of hashes that are as near the first counts
            check_single(table, lookup, names)
        kinds = tuple((name, table.schema.field(name).type) for name in names)
        table.forget()
        return JoinTable(table, self.on, kinds, self.mark, digest, within=self.within), lookup

    def _lookup(self, table: UserTable) -> Lookup | NearLookup:
        return Lookup(*table.keys()) if self.within is None else near_lookup(table, self.within)

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
