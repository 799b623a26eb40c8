"""Where labels are: in a column of the output, or in a table of the user's by its rows' keys."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.errors import DatasetError, NoColumnError, OutputError
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import read_footer
from curator_dask.outputs.nearest import VectorFiles
from curator_dask.rows.lookup import Lookup, key_texts
from curator_dask.rows.user_tables import UserTable
from curator_dask.storage import Options
from curator_dask.tables.held import check_memory, check_single, told
from curator_dask.words import counted, meant


@dataclass(frozen=True)
class LabelColumn:
    """Labels in a column of the output.

    Attributes
    ----------
    name
        Of the column.
    """

    name: str
    unused = 0
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
                    f"{file}: has no column {name!r} of labels{meant(name, columns)}; it has {columns}. Of labels in a"
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
                f"{table.path}: has no column {label!r} of labels{meant(label, names)}; it has {names}"
            )
        shards = URL_COLUMN in names
        columns = [label, *([URL_COLUMN] if shards else [])]
        check_memory(table, columns)
        texts, is_number, found = table.read(columns)
        if shards:
            texts = _both(texts, found.column(URL_COLUMN).combine_chunks())
        labels = found.column(label).combine_chunks()
        texts = pc.if_else(labels.is_valid(), texts, pa.scalar(None, texts.type))
        lookup = Lookup(texts, is_number)
        check_single(table, lookup, [label])
        return cls(table.path, key, shards, lookup, labels, np.zeros(len(labels), np.int64))

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
                texts = _both(texts, batch.column(URL_COLUMN))
            found = self._lookup.find_texts(texts, is_number)
        except ValueError as error:
            raise OutputError(f"{file}: {self.key!r}: {error}") from None
        np.add.at(self._asked, found[found >= 0], 1)
        return self._labels.take(pa.array(found, mask=found < 0))


def _both(keys: pa.Array, urls: pa.Array) -> pa.Array:
    """Key and shard as one text; null where one is."""
    kind = pa.large_string()
    return pc.binary_join_element_wise(keys.cast(kind), urls.cast(kind), pa.scalar("\0", kind))
