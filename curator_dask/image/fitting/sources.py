"""Where labels are: in a column of the output, or in a table of the user's by its rows' keys."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.errors import DatasetError, NoColumnError, OutputError
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import read_footer
from curator_dask.outputs.nearest import VectorFiles
from curator_dask.rows.lookup import Lookup, key_texts, with_shards
from curator_dask.rows.user_tables import UserTable
from curator_dask.storage import Options
from curator_dask.tables.held import check_memory, check_single, told
from curator_dask.words import counted, meant, some_of_these

#: Of several tables of labels: of how many rows they differ; and of each table which labels rows have asked for, and
#: how often.
Asked = tuple[int, list[tuple[np.ndarray, np.ndarray]]]


@dataclass(frozen=True)
class LabelColumn:
    """Labels in a column of the output.

    Attributes
    ----------
    name
        Of the column.
    """

    name: str
    unused = overruled = 0
    why_none = ": each is null"

    @classmethod
    def of(cls, files: VectorFiles, name: str) -> LabelColumn:
        """That of all files.

        Raises
        ------
        NoColumnError
            A file has no such column.
        """
        for file in files.records:
            columns = read_footer(file, files.options).columns
            if name not in columns:
                raise NoColumnError(
                    f"{file}: has no column {name!r} of labels{meant(name, columns)}; "
                    f"it has {some_of_these(columns, name)}. Of labels in a"
                    " table of their own give its file, too (labels, --labels)"
                )
        return cls(name)

    @property
    def columns(self) -> list[str]:
        """Columns of the rows that are needed."""
        return [self.name]

    def check(self) -> None:
        """Each row has its own."""

    def labels(self, batch: pa.RecordBatch, file: str) -> pa.Array:
        """The labels of some rows of a file."""
        return batch.column(self.name)


@dataclass(frozen=True)
class LabelTable:
    """Labels in a table, by key, or by key and shard.

    Attributes
    ----------
    path
        Of the table.
    key
        Column of the keys, in both.
    shards
        Whether it says the shards, too.
    """

    path: str
    key: str
    shards: bool
    _lookup: Lookup = field(repr=False)
    _labels: pa.Array = field(repr=False)
    _asked: np.ndarray = field(repr=False)

    @classmethod
    def read(cls, path: str | os.PathLike[str], label: str, key: str, options: Options = None) -> LabelTable:
        """Read a table; rows without a label, or without a key, are none.

        Raises
        ------
        DatasetError
            It cannot be read, has no such columns, or gives an image several labels.
        """
        table = UserTable.find(path, key, options, hint=f"Name it {key!r}, as in the output")
        if table.is_list:
            raise DatasetError(f"{table.path}: is a list of values, without labels: give a table")
        names = table.schema.names
        if label == key:
            raise DatasetError(
                f"{table.path}: {key!r} is the column of the keys: give the one of the labels (--label)"
            )
        if label not in names:
            raise DatasetError(
                f"{table.path}: has no column {label!r} of labels{meant(label, names)}; "
                f"it has {some_of_these(names, label)}"
            )
        shards = URL_COLUMN in names
        columns = [label, *([URL_COLUMN] if shards else [])]
        check_memory(table, columns)
        texts, is_number, found = table.read(columns)
        if shards:
            texts = with_shards(texts, found.column(URL_COLUMN).combine_chunks())
        labels = found.column(label).combine_chunks()
        texts = pc.if_else(labels.is_valid(), texts, pa.scalar(None, texts.type))
        lookup = Lookup(texts, is_number)
        check_single(table, lookup, [label])
        return cls(table.path, key, shards, lookup, labels, np.zeros(len(labels), np.int64))

    @property
    def kind(self) -> pa.DataType:
        """What the labels are: text of any kind as ``large_string``, numbers of any kind as float64."""
        return kind_of_labels(self._labels.type)

    @property
    def own_kind(self) -> pa.DataType:
        """The same as the table has it."""
        return self._labels.type

    def fresh(self) -> LabelTable:
        """The same, that no row has asked yet."""
        return replace(self, _asked=np.zeros_like(self._asked))

    @property
    def asked(self) -> tuple[np.ndarray, np.ndarray]:
        """Which labels rows have asked for, and how many."""
        rows = np.flatnonzero(self._asked)
        return rows, self._asked[rows]

    def count(self, asked: tuple[np.ndarray, np.ndarray]) -> None:
        """Count rows that have asked elsewhere."""
        np.add.at(self._asked, *asked)

    @property
    def unused(self) -> int:
        """Labels that no row has asked for; of several that are the same the first stands for all."""
        firsts = self._lookup.firsts
        return int(((firsts == np.arange(len(firsts))) & (self._asked == 0)).sum())

    @property
    def why_none(self) -> str:
        """Why no row has one, in words."""
        some = ", ".join(map(told, self._lookup.texts.drop_null()[:3].to_pylist()))
        return f": {self.path} has labels of {some}, none of which is the key of a row" + (
            f" (with its {URL_COLUMN})" if self.shards else ""
        )

    @property
    def columns(self) -> list[str]:
        """Columns of the rows that are needed."""
        return [self.key, URL_COLUMN] if self.shards else [self.key]

    def check(self) -> None:
        """See that no label was that of several rows, once all rows have asked.

        Raises
        ------
        DatasetError
            One was.
        """
        if (twice := np.flatnonzero(self._asked > 1)).size:
            key, count = self._lookup.texts[int(twice[0])].as_py(), int(self._asked[twice[0]])
            raise DatasetError(
                f"{self.path}: the label of {told(key)} is that of {count} rows, and so with"
                f" {counted(len(twice), 'label')}: keys are not unique there. Give the table a column {URL_COLUMN!r}"
                " with each row's shard, as the output has it"
            )

    def labels(self, batch: pa.RecordBatch, file: str) -> pa.Array:
        """The labels of some rows of a file, null of those that the table does not have.

        Raises
        ------
        OutputError
            The file has no keys.
        """
        missing = [name for name in self.columns if name not in batch.schema.names]
        if missing:
            raise OutputError(
                f"{file}: has no column {missing[0]!r}, by which its rows find their labels in {self.path}"
            )
        try:
            texts, is_number = key_texts(batch.column(self.key))
            if self.shards:
                texts = with_shards(texts, batch.column(URL_COLUMN))
            found = self._lookup.find_texts(texts, is_number)
        except ValueError as error:
            raise OutputError(f"{file}: {self.key!r}: {error}") from None
        np.add.at(self._asked, found[found >= 0], 1)
        return self._labels.take(pa.array(found, mask=found < 0))


@dataclass(frozen=True)
class LabelTables:
    """Labels in one table or several: of an image that several label, the last one's.

    Attributes
    ----------
    tables
        In their order.
    kind
        As what the labels of all are taken; of one table its own type.
    """

    tables: tuple[LabelTable, ...]
    kind: pa.DataType
    _overruled: np.ndarray = field(repr=False)

    @classmethod
    def read(
        cls, paths: Sequence[str | os.PathLike[str]], label: str, key: str, options: Options = None
    ) -> LabelTables:
        """Read them.

        Raises
        ------
        DatasetError
            See `LabelTable.read`; or their labels are of several types.
        """
        tables = tuple(LabelTable.read(path, label, key, options) for path in paths)
        return cls(tables, _kind_of_all(tables, label), np.zeros(1, np.int64))

    @property
    def unused(self) -> int:
        """Labels that are no row's."""
        return sum(table.unused for table in self.tables)

    @property
    def overruled(self) -> int:
        """Rows of which an earlier table says something else than a later one."""
        return int(self._overruled[0])

    @property
    def why_none(self) -> str:
        """Why no row has one, in words."""
        return ":" + ";".join(table.why_none[1:] for table in self.tables)

    @property
    def columns(self) -> list[str]:
        """Columns of the rows that are needed."""
        return list(dict.fromkeys(name for table in self.tables for name in table.columns))

    def check(self) -> None:
        """See that no label was that of several rows, once all rows have asked.

        Raises
        ------
        DatasetError
            One was.
        """
        for table in self.tables:
            table.check()

    def labels(self, batch: pa.RecordBatch, file: str) -> pa.Array:
        """The labels of some rows of a file, null of those that no table has.

        Raises
        ------
        OutputError
            The file has no keys.
        """
        first, *others = self.tables
        found = first.labels(batch, file).cast(self.kind)
        differ = np.zeros(len(found), bool)
        for table in others:
            later = without_nan(table.labels(batch, file).cast(self.kind))
            differ |= np.asarray(pc.not_equal(found, later).fill_null(False), bool)
            found = pc.coalesce(later, found)
        self._overruled[0] += int(differ.sum())
        return found

    def fresh(self) -> LabelTables:
        """The same, that no row has asked yet: for a task that counts what its rows ask."""
        return LabelTables(tuple(table.fresh() for table in self.tables), self.kind, np.zeros(1, np.int64))

    @property
    def asked(self) -> Asked:
        """What rows have asked: small, to come back from a task."""
        return self.overruled, [table.asked for table in self.tables]

    def count(self, asked: Asked) -> None:
        """Count what rows have asked elsewhere."""
        self._overruled[0] += asked[0]
        for table, some in zip(self.tables, asked[1], strict=True):
            table.count(some)


def without_nan(labels: pa.Array) -> pa.Array:
    """Labels of which NaN is none."""
    if labels.null_count < len(labels) and pa.types.is_floating(labels.type):
        return pc.if_else(pc.is_nan(labels), pa.scalar(None, labels.type), labels)
    return labels


def _kind_of_all(tables: Sequence[LabelTable], label: str) -> pa.DataType:
    if len(tables) == 1:
        return tables[0].own_kind
    kinds = {table.kind: table.path for table in tables if not pa.types.is_null(table.kind)}
    if len(kinds) > 1:
        said = " and ".join(f"{kind} in {path}" for kind, path in kinds.items())
        raise DatasetError(
            f"the labels {label!r} are {said}: write the same values into all tables, such as true and false"
        )
    return next(iter(kinds), pa.null())


def kind_of_labels(kind: pa.DataType) -> pa.DataType:
    """As what labels of a type are taken where several tables go together."""
    if pa.types.is_dictionary(kind):
        return kind_of_labels(kind.value_type)
    if any(is_kind(kind) for is_kind in (pa.types.is_string, pa.types.is_string_view)):
        return pa.large_string()
    if any(is_kind(kind) for is_kind in (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)):
        return pa.float64()
    return kind
