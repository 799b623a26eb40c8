"""Rows of Parquet files with a list of images each: how many these are, and the keys of each image."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curator_dask.cache import POSSESSIONS, Remembered
from curator_dask.errors import ShardError
from curator_dask.webdataset.headers import Member
from curator_dask.webdataset.index import ShardIndex
from curator_dask.webdataset.parquet import ParquetShard, has_several
from curator_dask.webdataset.samples import Sample
from curator_dask.webdataset.several_names import split_key
from curator_dask.webdataset.stamps import FileStamp

_BATCH_ROWS = 1024  # of which the lengths are read together, where images have no paths
_KEPT = 8  # files whose lists are remembered


@dataclass(frozen=True)
class Lists:
    """The lists of a file.

    Attributes
    ----------
    firsts
        int64 (rows + 1,): of each row how many images come before it, and of all in the end.
    paths
        Text (images,): what is said beside the images; None where they are bytes alone.
    """

    firsts: np.ndarray
    paths: pa.Array | None

    def __len__(self) -> int:
        return int(self.firsts[-1])

    @property
    def counts(self) -> np.ndarray:
        """int64 (rows,): images of each row."""
        return np.diff(self.firsts)

    def rows_of(self, images: np.ndarray) -> np.ndarray:
        """int64: the rows that images are of, by their numbers in the file."""
        return np.searchsorted(self.firsts, images, side="right") - 1


_LISTS: Remembered[Lists] = POSSESSIONS.add("lists of images", Remembered(_KEPT))


def lists_of(file: pq.ParquetFile, path: str, column: str, state: FileStamp) -> Lists:
    """The lists of a column of images.

    Of structs with a path this alone is read; of lists of bytes all of it, some rows at a time.

    Parameters
    ----------
    file
        Opened.
    path, state
        Of the file: it is read once in a process.
    column
        Of lists.

    Raises
    ------
    ShardError
        The column has one image a row.
    """
    if not has_several(file.schema_arrow, column):
        raise ShardError(
            f"{path}: expected a list of images a row in the column {column!r}, as in the files before, found"
            f" {file.schema_arrow.field(column).type}: make two datasets of them"
        )
    return _LISTS.get((path, column, state), lambda: _read(file, column))


def images_in(file: pq.ParquetFile, path: str, column: str, state: FileStamp) -> int:
    """How many images there are, without reading one: of lists of bytes as the footer counts them, without null.

    Parameters
    ----------
    file, path, column, state
        As for `lists_of`.
    """
    if leaves_of(file, column, "path"):
        return len(lists_of(file, path, column, state))
    schema, footer = file.schema, file.metadata
    places = [at for at in range(len(schema.names)) if schema.column(at).path.startswith(f"{column}.")][:1]
    chunks = [footer.row_group(group).column(at) for group in range(footer.num_row_groups) for at in places]
    null = [each.statistics for each in chunks]
    without = sum(each.null_count for each in null if each is not None and each.has_null_count)
    return int(sum(each.num_values for each in chunks) - without)


def leaves_of(file: pq.ParquetFile, column: str, *names: str) -> list[str]:
    """What a Parquet file calls the fields of these names in a column."""
    schema = file.schema
    paths = (schema.column(place).path for place in range(len(schema.names)))
    return [each for each in paths if each.startswith(f"{column}.") and each.rpartition(".")[2] in names]


def _read(file: pq.ParquetFile, column: str) -> Lists:
    leaves = leaves_of(file, column, "path")
    counts, paths = [np.zeros(1, np.int64)], []
    for batch in file.iter_batches(_BATCH_ROWS if leaves else 1, columns=leaves or [column]):
        lists = batch.column(column)
        counts.append(np.asarray(pc.fill_null(pc.list_value_length(lists), 0), np.int64))
        if leaves:
            paths.append(lists.flatten().field("path").cast(pa.string()))
    every = pa.concat_arrays(paths) if paths else None
    return Lists(np.cumsum(np.concatenate(counts)), every)


class ListSample(Sample):
    """An image of a row's list: its one member, whatever it is called."""

    __slots__ = ()

    def image(self, suffix: str | None = None) -> Member | None:
        """The image; with a `suffix` there is none, for a column has no members of several names."""
        return self.members[0] if suffix is None else None


class _Images(Sequence[Sample]):
    """All images, each made when it is asked for."""

    def __init__(self, lists: Lists, keys: Sequence[str], column: str) -> None:
        self._lists, self._keys, self._column = lists, keys, column

    def __len__(self) -> int:
        return len(self._lists)

    @overload
    def __getitem__(self, image: int) -> Sample: ...
    @overload
    def __getitem__(self, image: slice) -> list[Sample]: ...
    def __getitem__(self, image: int | slice) -> Sample | list[Sample]:
        if isinstance(image, slice):
            return [self[each] for each in range(*image.indices(len(self)))]
        at = range(len(self))[image]
        row = int(self._lists.rows_of(np.array([at]))[0])
        key = f"{self._keys[row]}_{at - int(self._lists.firsts[row])}"
        return ListSample(key, (Member(f"{key}.{self._column}", at, 0),))


class ListIndex(ShardIndex):
    """The images of lists, as `RowIndex` has those of rows: a member's `offset` is the number of the image in the file.

    Parameters
    ----------
    rows
        Index of the rows.
    lists
        Of these.
    shard
        The file.
    column
        Of the images.
    """

    def __init__(self, rows: ShardIndex, lists: Lists, shard: ParquetShard, column: str) -> None:
        self.rows, self._lists, self._shard = rows, lists, shard
        super().__init__(_Images(lists, _Keys(rows.samples), column))

    def find(self, ids: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Images with these keys, -1 where there is none."""
        parts = [split_key(each) if isinstance(each, str) else None for each in ids]
        known = [each for each in parts if each is not None]
        found = np.full(len(parts), -1, np.int64)
        if not known:
            return found
        rows = np.asarray(self.rows.find([sample for sample, _ in known]), np.int64)
        numbers = np.array([number for _, number in known], np.int64)
        places = self._lists.firsts[np.maximum(rows, 0)] + numbers
        there = (
            (rows >= 0) & (numbers < self._lists.counts[np.maximum(rows, 0)])
            if len(self._lists)
            else rows < -1
        )
        found[np.array([each is not None for each in parts])] = np.where(there, places, -1)
        return found

    @functools.cached_property
    def imageless(self) -> list[str]:
        """Keys of rows without an image."""
        return [self.rows.samples[int(row)].key for row in np.flatnonzero(self._lists.counts == 0)]


class _Keys(Sequence[str]):
    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, row: Any) -> Any:
        return self._samples[row].key
