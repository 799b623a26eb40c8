"""Ranges of bytes of tars and other files, local and remote, without an index and without a copy of the whole."""

from __future__ import annotations

import errno
import os
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

from curator_dask.errors import ShardError
from curator_dask.patience import BLOCK_BYTES, TRIES
from curator_dask.storage import Options, RemoteFile, is_remote, local_path
from curator_dask.threads import in_threads
from curator_dask.webdataset.parquet import file_of, is_parquet_shard
from curator_dask.webdataset.row_images import RowImages
from curator_dask.webdataset.stamps import FileStamp, stamp

_OPEN = 64  # files that are held open
_AHEAD = 32  # blocks of a store, or whole small files, that are fetched at a time
_AHEAD_BYTES = 4 * BLOCK_BYTES  # of these together, about
_GAP = 1 << 16  # bytes that are fetched for nothing rather than asked for anew
# Of what the kernel says where it cannot copy from this file into that.
_NO_COPY = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF})


class Extent(NamedTuple):
    """A range of a tar, or an image in a row of a Parquet file.

    Attributes
    ----------
    url
        Of the tar: local path or fsspec URL.
    offset, size
        Bytes; in a Parquet file `offset` is the number of the row.
    """

    url: str
    offset: int
    size: int


def is_read_ahead(url: str) -> bool:
    """Whether what is read of a shard has to be told before: of a store's, and of images in rows."""
    return is_remote(url) or is_parquet_shard(url)


class Ranges:
    """Reads ranges of tars that must be as they were.

    Parameters
    ----------
    stamps
        The state of each tar, by its url.
    options
        For fsspec.
    """

    def __init__(self, stamps: Mapping[str, FileStamp], options: Options = None) -> None:
        self._stamps, self._options = stamps, options

    @contextmanager
    def reading(self, urls: Sequence[str], ahead: Sequence[Extent]) -> Iterator[Reading]:
        """Read ranges of these.

        Parameters
        ----------
        urls
            Of the tars.
        ahead
            Of the ranges those that are `is_read_ahead`, in the order in which they are read.

        Raises
        ------
        ShardError
            A tar is not what it was, when the block begins or when it ends.
        """
        self._check(urls)
        reading = Reading(ahead, self._options)
        try:
            yield reading
            self._check(urls)
        finally:
            reading.close()

    def _check(self, urls: Sequence[str]) -> None:
        states = in_threads(lambda url: stamp(url, self._options), urls)
        for url, state in zip(urls, states, strict=True):
            if state != self._stamps[url]:
                raise _changed(url)


class Reading:
    """Ranges that are read one after the other; made by `Ranges.reading`."""

    def __init__(self, ahead: Sequence[Extent], options: Options) -> None:
        self._options = options
        self._files: OrderedDict[str, int] = OrderedDict()
        self._last = "", -1
        self._remote: dict[str, RemoteFile] = {}
        self._rows = RowImages([each for each in ahead if is_parquet_shard(each.url)], options)
        self._blocks = deque(_blocks([each for each in ahead if not is_parquet_shard(each.url)]))
        self._fetched: deque[tuple[Extent, Future[bytes]]] = deque()
        self._pool = ThreadPoolExecutor(_AHEAD) if self._blocks else None
        self._kernel_copies = hasattr(os, "copy_file_range")

    def read(self, extent: Extent) -> bytes:
        """The bytes of a range."""
        if is_parquet_shard(extent.url):
            return self._rows.read(*extent)
        if is_remote(extent.url):
            return self._read_remote(extent)
        data = self._pread(extent.url, extent.size, extent.offset)
        if len(data) != extent.size:
            raise _cut(extent)
        return data

    def read_into(self, url: str, offset: int, memory: memoryview) -> None:
        """Fill memory with the bytes of a local tar from there on."""
        extent = Extent(url, offset, len(memory))
        while memory:
            try:
                done = os.preadv(self._open(url), [memory], offset)
            except OSError as error:
                raise ShardError(f"{url}: the shard cannot be read: {error}") from error
            if not done:
                raise _cut(extent)
            offset, memory = offset + done, memory[done:]

    def copy(self, extent: Extent, file: int) -> None:
        """Copy a range of a local tar to the end of an open file."""
        _, offset, left = extent
        source = self._open(extent.url)
        while left:
            done = self._copy_some(extent.url, source, file, offset, left)
            if not done:
                raise _cut(extent)
            offset, left = offset + done, left - done

    def _copy_some(self, url: str, source: int, file: int, offset: int, size: int) -> int:
        if self._kernel_copies:
            try:
                return os.copy_file_range(source, file, size, offset)
            except OSError as error:
                if error.errno not in _NO_COPY:
                    raise
                self._kernel_copies = False
        data = self._pread(url, min(size, BLOCK_BYTES), offset)
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]
        return len(data)

    def _pread(self, url: str, size: int, offset: int) -> bytes:
        try:
            return os.pread(self._open(url), size, offset)
        except OSError as error:
            raise ShardError(f"{url}: the shard cannot be read: {error}") from error

    def _open(self, url: str) -> int:
        if url == self._last[0]:
            return self._last[1]
        self._last = url, self._opened(url)
        return self._last[1]

    def _opened(self, url: str) -> int:
        if url in self._files:
            self._files.move_to_end(url)
            return self._files[url]
        while len(self._files) >= _OPEN:
            os.close(self._files.popitem(last=False)[1])
        try:
            self._files[url] = os.open(local_path(file_of(url)), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ShardError(f"{url}: the shard cannot be opened: {error}") from error
        return self._files[url]

    def _read_remote(self, extent: Extent) -> bytes:
        url, offset, size = extent
        if not size:
            return b""
        parts = []
        while size:  # one that is larger than a block lies in several
            under_way = sum(block.size for block, _ in self._fetched)
            while (
                self._blocks
                and (not self._fetched or under_way < _AHEAD_BYTES)
                and len(self._fetched) < _AHEAD
            ):
                block = self._blocks.popleft()
                under_way += block.size
                assert self._pool is not None
                self._fetched.append((block, self._pool.submit(self._fetch, block)))
            (block_url, start, length), future = self._fetched[0]
            if url != block_url or not start <= offset < start + length:
                self._fetched.popleft()
                continue
            data = future.result()[offset - start : offset - start + size]
            parts.append(data)
            offset, size = offset + len(data), size - len(data)
        return b"".join(parts)

    def _fetch(self, block: Extent) -> bytes:
        try:
            if block.url not in self._remote:
                self._remote[block.url] = RemoteFile(file_of(block.url), self._options)
            data = self._remote[block.url].block(block.offset, block.offset + block.size)
        except Exception as error:  # a store's own, of many types
            raise ShardError(
                f"{block.url}: the shard cannot be fetched ({TRIES} tries): {error!r}"
            ) from error
        if len(data) != block.size:
            raise _cut(block)
        return data

    def close(self) -> None:
        """Let go of all files."""
        for file in self._files.values():
            os.close(file)
        self._files.clear()
        self._rows.close()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _blocks(extents: Sequence[Extent]) -> Iterator[Extent]:
    """Ranges to be asked of a store, of at most `BLOCK_BYTES` each, in the order in which they are needed."""
    url, start, stop = "", 0, 0
    for each in extents:
        if not each.size:
            continue
        near = each.url == url and stop <= each.offset <= stop + _GAP
        if not near or each.offset + each.size - start > BLOCK_BYTES:
            if stop > start:
                yield Extent(url, start, stop - start)
            url, start, stop = each.url, each.offset, each.offset
        end = each.offset + each.size
        while end - start > BLOCK_BYTES:
            yield Extent(url, start, BLOCK_BYTES)
            start += BLOCK_BYTES
        stop = end
    if stop > start:
        yield Extent(url, start, stop - start)


def _changed(url: str) -> ShardError:
    return ShardError(
        f"{url}: the shard was changed since its samples were looked up: run again, when nobody writes there"
    )


def _cut(extent: Extent) -> ShardError:
    url, offset, size = extent
    return ShardError(
        f"{url}: expected {size} bytes at byte {offset}, found fewer: the tar was cut meanwhile"
    )
