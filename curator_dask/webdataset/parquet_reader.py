"""Reads the images of rows of a Parquet file: a part of a row group at a time, and of that the images' column alone."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curator_dask.errors import CuratorError, DatasetError, ImageError, ShardError
from curator_dask.patience import TRIES
from curator_dask.storage import Options, is_remote
from curator_dask.webdataset.headers import Member
from curator_dask.webdataset.index import ShardIndex
from curator_dask.webdataset.keys import KeyTable, id_text
from curator_dask.webdataset.parquet import (
    SUFFIX,
    ParquetShard,
    image_column,
    numbered_keys,
    open_file,
    row_of_key,
    tar_key,
)
from curator_dask.webdataset.samples import Sample
from curator_dask.webdataset.several_rows import ListIndex, Lists, leaves_of, lists_of
from curator_dask.webdataset.stamps import stamp

_BATCH_BYTES, _BATCH_ROWS = 1 << 23, 256  # images that are read together, about; and at most
_STREAM = {
    False: 1 << 20,
    True: 1 << 23,
}  # bytes of a column that are read at a time, of a disk and of a store
_SPREAD = 4  # row groups that a few images are read of
_SHOWN = 100  # characters of a path that a reason shows


class RowSample(Sample):
    """A row: its one member is the image, whatever it is called."""

    __slots__ = ()

    def image(self, suffix: str | None = None) -> Member | None:
        """The image; with a `suffix` there is none, for a column has no members of several names."""
        return self.members[0] if suffix is None else None


class _Rows(Sequence[Sample]):
    """The samples of all rows, each made when it is asked for."""

    def __init__(self, keys: Sequence[str], column: str) -> None:
        self._keys, self._column = keys, column

    def __len__(self) -> int:
        return len(self._keys)

    @overload
    def __getitem__(self, row: int) -> Sample: ...
    @overload
    def __getitem__(self, row: slice) -> list[Sample]: ...
    def __getitem__(self, row: int | slice) -> Sample | list[Sample]:
        if isinstance(row, slice):
            return [self[each] for each in range(*row.indices(len(self)))]
        at = range(len(self))[row]
        key = self._keys[at]
        return RowSample(key, (Member(f"{key}.{self._column}", at, 0),))


class _Numbered(Sequence[str]):
    """The keys of rows that have none of their own.

    How much of the file's path is in them, who asks for some knows: the url of the shard does not say it.
    """

    def __init__(self, path: str, rows: int) -> None:
        self.name, self._rows = path[: -len(SUFFIX)].rpartition("/")[2], rows

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, row: Any) -> Any:
        return numbered_keys(self.name, [row])[0]


class RowIndex(ShardIndex):
    """The rows of a Parquet file, as `ShardIndex` has the samples of a tar.

    A member's `offset` is the number of its row, and its `size` is not known. Samples have such keys as a tar may have.

    Parameters
    ----------
    shard
        The file.
    rows
        In it.
    column
        Of the images.
    ids
        The keys, if the file has them.
    """

    def __init__(self, shard: ParquetShard, rows: int, column: str, ids: Sequence[Any] | None) -> None:
        self._path, self._ids = shard.path, ids
        self._numbered = _Numbered(shard.path, rows)
        own = None if ids is None else [tar_key(str(id_text(each)[0])) for each in ids]
        super().__init__(_Rows(self._numbered if own is None else own, column))

    def find(self, ids: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Rows with these keys, -1 where there is none."""
        if self._ids is not None:
            return self._table.find(ids)
        rows = np.array([row_of_key(self._path, each) for each in ids], np.int64)
        rows[rows >= len(self._numbered)] = -1
        if (there := np.flatnonzero(rows >= 0)).size:
            self._numbered.name = str(ids[int(there[0])]).rpartition("_")[0]
        return rows

    @functools.cached_property
    def _table(self) -> KeyTable:
        texts = [id_text(each)[0] for each in self._ids or ()]
        if len({*texts}) < len(texts):
            raise ShardError(
                f"{self._path}: keys stand in several rows: give id_col (--id-col) another column"
            )
        return KeyTable([f"\0{row}" if text is None else text for row, text in enumerate(texts)])


class _Batch(NamedTuple):
    """Rows that were read together: the number of the first, their images, and the paths that lie beside these."""

    first: int
    images: pa.Array
    paths: pa.Array | None = None

    @classmethod
    def of(cls, first: int, column: pa.Array) -> _Batch:
        column = _plain(column)
        if _is_list(column.type):
            column = _plain(column.flatten())
        if not pa.types.is_struct(column.type):
            return cls(first, column)
        fields = dict(zip((each.name for each in column.type), column.flatten(), strict=True))
        return cls(first, _plain(fields["bytes"]), fields.get("path"))

    def __contains__(self, row: object) -> bool:
        return isinstance(row, int) and self.first <= row < self.first + len(self.images)


class ParquetReader:
    """Reads the images of a `ParquetShard`, as `curator_dask.webdataset.reader.ShardReader` the members of a tar.

    Parameters
    ----------
    url
        Of the shard.
    options
        For fsspec.

    Raises
    ------
    ShardError
        The file cannot be read, or has no such columns.
    """

    def __init__(self, url: str, options: Options = None) -> None:
        self.url, self._options = url, options
        self._shard = ParquetShard.of(url)
        remote = is_remote(self._shard.path)
        self._state = stamp(url, options)
        try:
            self._file = open_file(self._shard.path, options, _STREAM[remote])
            self._column = image_column(self._file.schema_arrow, self._shard.image, self._shard.each)
        except DatasetError as error:
            raise ShardError(f"{self._shard.path}: {error}") from error
        except Exception as error:  # of Arrow, of the file system, of a store
            raise self._unreadable(error) from error
        kind = self._file.schema_arrow.field(self._column).type
        fields = (
            [each.name for each in kind if each.name in ("bytes", "path")] if pa.types.is_struct(kind) else []
        )
        self._fields = [f"{self._column}.{name}" for name in fields] or [self._column]  # what is read
        groups = [self._file.metadata.row_group(number) for number in range(self._file.num_row_groups)]
        self._starts = np.cumsum([0, *(group.num_rows for group in groups)])
        self._rows, self._lists = int(self._starts[-1]), None
        if self._shard.each:
            self._lists = self._read_lists()
            self._fields = leaves_of(self._file, self._column, "bytes", "path") or [self._column]
            self._starts = self._lists.firsts[self._starts]
        self._batch = _Batch(0, pa.nulls(0))
        self._coming: Iterator[_Batch] = iter(())
        self._next: Future[_Batch | None] | None = None
        self._pool = ThreadPoolExecutor(1, "curator-parquet")

    def _read_lists(self) -> Lists:
        try:
            return lists_of(self._file, self._shard.path, self._column, self._state)
        except ShardError:
            raise
        except Exception as error:  # of Arrow, of a store
            raise self._unreadable(error) from error

    @functools.cached_property
    def index(self) -> RowIndex | ListIndex:
        """The rows, or the images of their lists, and of them the keys where the file has some."""
        ids, key = None, self._shard.key
        if key is not None:
            try:
                table = self._file.read(columns=[key])
                values = table.column(0)
                ids = values.to_pylist()
            except Exception as error:  # of Arrow, of a store
                raise self._unreadable(error) from error
        rows = RowIndex(self._shard, self._rows, self._column, ids)
        return rows if self._lists is None else ListIndex(rows, self._lists, self._shard, self._column)

    @property
    def column(self) -> str:
        """That of the images."""
        return self._column

    def spread(self, count: int) -> list[int]:
        """Numbers of about so many rows, of a few row groups that are evenly spread, each from its begin."""
        groups = len(self._starts) - 1
        chosen = np.unique(np.linspace(0, max(0, groups - 1), min(groups, _SPREAD), dtype=int))
        each = -(-count // max(1, len(chosen)))
        spans = (range(int(self._starts[at]), int(self._starts[at + 1]))[:each] for at in chosen)
        return [row for span in spans for row in span]

    def nulls(self) -> int | None:
        """How many rows have no image, if the file's footer says it; asked for when some were read."""
        said = [part.statistics for part in self._parts({self._column, f"{self._column}.bytes"})]
        if self._lists is not None or not all(each is not None and each.has_null_count for each in said):
            return None  # of lists those that are empty are among them
        return int(sum(each.null_count for each in said))

    def bytes_of(self, columns: Sequence[str]) -> int:
        """Bytes that columns have in the file.

        Raises
        ------
        ShardError
            They cannot be read.
        """
        try:
            next(self._file.iter_batches(1, row_groups=[0], columns=columns), None) if len(
                self._starts
            ) > 1 else None
        except Exception as error:  # of Arrow, of a store
            raise self._unreadable(error) from error
        schema = self._file.schema
        paths = {schema.column(place).path for place in range(len(schema.names))}
        own = {path for path in paths if any(f"{path}.".startswith(f"{name}.") for name in columns)}
        return sum(part.total_compressed_size for part in self._parts(own))

    def _parts(self, paths: Collection[str]) -> list[pq.ColumnChunkMetaData]:
        """What the footer says of columns that were read: of one that it cannot decrypt pyarrow ends the process."""
        schema, footer = self._file.schema, self._file.metadata
        places = [place for place in range(len(schema.names)) if schema.column(place).path in paths]
        return [footer.row_group(each).column(at) for each in range(footer.num_row_groups) for at in places]

    def rescan(self) -> RowIndex | ListIndex:
        """The rows: they were looked at when the reader was made."""
        return self.index

    def expect(self, members: Iterable[Member]) -> None:
        """Read these ahead, a batch at a time; they are going to be read in the order of the rows."""
        self._forget()
        self._coming = self._batches(sorted({member.offset for member in members}))

    def read(self, member: Member) -> memoryview:
        """The bytes of a row's image.

        Raises
        ------
        ImageError
            The row has none.
        ShardError
            The file cannot be read.
        """
        row = member.offset
        if row not in self._batch:
            self._batch = self._batch_of(row)
        first, images, paths = self._batch
        image = images[row - first]
        if image.is_valid:
            data = memoryview(image.as_buffer())
            return data.cast("B") if data.nbytes else memoryview(b"")  # Arrow's are of signed bytes
        path = None if paths is None else paths[row - first].as_py()
        if path is None:
            raise ImageError(f"missing: {self._column} is null")
        raise ImageError(
            f"missing: {self._column} has no bytes, but the path {str(path)[:_SHOWN]!r}, and files outside of the"
            " Parquet file are not opened: write the table with the bytes in it"
        )

    def _batch_of(self, row: int) -> _Batch:
        for _ in range(2):
            while (batch := self._pull()) is not None and batch.first <= row:
                if row in batch:
                    self._next = self._pool.submit(next, self._coming, None)
                    return batch
            self._forget()
            self._coming = self._batches([row])  # it was not expected
        raise ShardError(f"{self._shard.path}: has no row {row}")

    def _pull(self) -> _Batch | None:
        future, self._next = self._next or self._pool.submit(next, self._coming, None), None
        try:
            return future.result()
        except CuratorError:
            raise
        except Exception as error:  # of Arrow, of the file system, of a store
            raise self._unreadable(error) from error

    def _forget(self) -> None:
        """Nothing that was expected is going to be read."""
        if self._next is not None and not self._next.cancel():
            self._next.exception()  # the file has one reader at a time
        self._next, self._coming = None, iter(())

    def _batches(self, rows: Sequence[int]) -> Iterator[_Batch]:
        """Those that have one of these rows, which ascend."""
        at, group = 0, -1
        columns: Iterator[pa.Array] = iter(())
        for row in rows:
            own = int(np.searchsorted(self._starts, row, side="right")) - 1
            if own != group:
                group, at = own, int(self._starts[own])
                columns = self._group(group)
            while at <= row:
                column = next(columns, None)
                if column is None:
                    raise ShardError(
                        f"{self._shard.path}: row group {group} has fewer rows than the file says"
                    )
                first, at = at, at + (len(column) if self._lists is None else _images_in(column))
                if row < at:
                    yield _Batch.of(first, column)

    def _group(self, number: int) -> Iterator[pa.Array]:
        group = self._file.metadata.row_group(number)
        rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)))
        for batch in self._file.iter_batches(rows, row_groups=[number], columns=self._fields):
            yield batch.column(self._column)

    def _unreadable(self, error: Exception) -> ShardError:
        why = " ".join(str(error).split()).rstrip(" .") or repr(error)
        tried = f" ({TRIES} tries)" if is_remote(self._shard.path) else ""
        return ShardError(
            f"{self._shard.path}: not a Parquet file that can be read{tried}: {why}. Fetch it again, or leave it out"
        )

    def check_unchanged(self) -> None:
        """Call it when nothing is read any more, and before what was made of it is used.

        Raises
        ------
        ShardError
            The file was changed since the reader was made.
        """
        if stamp(self.url, self._options) != self._state:
            raise ShardError(
                f"{self._shard.path}: the file was changed while it was read: run again when it is whole"
            )

    def close(self) -> None:
        """Let go of the file, and of what was read ahead."""
        self._coming = iter(())
        self._batch = _Batch(0, pa.nulls(0))
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> ParquetReader:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _images_in(lists: pa.Array) -> int:
    return int(pc.sum(pc.list_value_length(_plain(lists))).as_py() or 0)


def _plain(images: pa.Array) -> pa.Array:
    """Values instead of what stands for them."""
    if isinstance(images, pa.ExtensionArray):
        images = images.storage
    return images.dictionary_decode() if pa.types.is_dictionary(images.type) else images
