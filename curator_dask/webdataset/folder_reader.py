"""Reads the files of a folder's shard: those of a disk where they lie, those of a store before they are asked for."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from curator_dask.errors import ImageError, ShardError
from curator_dask.patience import TRIES
from curator_dask.storage import Options, check_regular, is_remote, read_bytes
from curator_dask.threads import in_threads
from curator_dask.webdataset.folders import FolderShard, look
from curator_dask.webdataset.headers import Member
from curator_dask.webdataset.index import ShardIndex
from curator_dask.webdataset.stamps import stamp

_AHEAD = 32  # files of a store that are fetched at a time
_AHEAD_BYTES = 1 << 26  # of these together, but for one
#: What is said of one file, where other errors are the store's.
_OF_A_FILE = (FileNotFoundError, PermissionError)


class FolderReader:
    """Reads the files of a `FolderShard`, as `curator_dask.webdataset.reader.ShardReader` the members of a tar.

    Parameters
    ----------
    url
        Of the shard.
    options
        For fsspec.

    Attributes
    ----------
    index
        Its samples.

    Raises
    ------
    ShardError
        There is no image any more, or the folder cannot be listed.
    """

    def __init__(self, url: str, options: Options = None) -> None:
        self.url, self._options = url, options
        found = look(url, options)
        self.index, self._times = found.index, found.times
        self._folder = FolderShard.of(url).folder
        self._expected: deque[Member] = deque()
        self._coming: set[Member] = set()  # expected or being fetched
        self._fetching: deque[tuple[Member, Future[bytes]]] = deque()
        self._pool = ThreadPoolExecutor(_AHEAD, "curator-images") if is_remote(self._folder) else None

    def expect(self, members: Iterable[Member]) -> None:
        """Fetch these ahead, in the order in which they are going to be read."""
        if self._pool is not None:
            wanted = [each for each in dict.fromkeys(members) if each not in self._coming]
            self._expected.extend(wanted)
            self._coming.update(wanted)

    def read(self, member: Member) -> memoryview:
        """The bytes of a file.

        Raises
        ------
        ImageError
            It cannot be read.
        ShardError
            The store does not answer as it should.
        """
        path = self._path(member)
        if self._pool is not None:
            return memoryview(self._fetched(member, path))
        try:
            check_regular(path)
            with open(path, "rb") as file:  # noqa: PTH123
                return memoryview(file.read())
        except OSError as error:
            raise ImageError(f"unreadable: {path}: {error.strerror or error}") from error

    def _fetched(self, member: Member, path: str) -> bytes:
        try:
            return self._awaited(member).result() if member in self._coming else self._fetch(member)
        except ShardError:
            raise
        except _OF_A_FILE as error:
            raise ImageError(
                f"unreadable: {path}: {error.strerror or error or type(error).__name__}"
            ) from error
        except Exception as error:  # a store's own, of many types
            raise ShardError(f"{path}: the file cannot be fetched ({TRIES} tries): {error!r}") from error

    def _awaited(self, member: Member) -> Future[bytes]:
        """That of a file which was expected; those that were expected before it are not going to be read."""
        while True:
            self._fetch_ahead()
            found, future = self._fetching.popleft()
            self._coming.remove(found)
            if found == member:
                return future
            future.cancel()

    def _fetch_ahead(self) -> None:
        assert self._pool is not None
        under_way = sum(each.size for each, _ in self._fetching)
        while self._expected and len(self._fetching) < _AHEAD:
            under_way += self._expected[0].size
            if self._fetching and under_way > _AHEAD_BYTES:
                return
            coming = self._expected.popleft()
            self._fetching.append((coming, self._pool.submit(self._fetch, coming)))

    def _fetch(self, member: Member) -> bytes:
        if not member.size:  # of nothing a store gives no range
            return b""
        # One byte more than there should be: a range needs no question for the size, and a longer file shows.
        data = read_bytes(self._path(member), self._options, member.size + 1)
        if len(data) != member.size:
            raise ShardError(
                f"{self._path(member)}: the listing of its folder says {member.size} bytes, and it has others: it was"
                " changed since. Run again"
            )
        return data

    def _path(self, member: Member) -> str:
        return os.path.join(self._folder, member.target)  # noqa: PTH118

    def files_of(self, members: Sequence[Member]) -> list[tuple[str, int | str]]:
        """Paths of members' files, and of each what tells its last change: as it was when the reader was made.

        Of a store it is what is told of the file by itself, now.
        """
        paths = [self._path(member) for member in members]
        if self._pool is None:
            return [(path, self._times[member.target]) for path, member in zip(paths, members, strict=True)]
        stamps = in_threads(lambda path: stamp(path, self._options), paths)
        return [(path, each.version) for path, each in zip(paths, stamps, strict=True)]

    def rescan(self) -> ShardIndex:
        """The samples: they were looked at when the reader was made."""
        return self.index

    def close(self) -> None:
        """Let go of what was fetched and not read."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._expected.clear()
        self._fetching.clear()
        self._coming.clear()

    def __enter__(self) -> FolderReader:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
