"""The bytes of a shard's members, without copying them."""

from __future__ import annotations

import contextlib
import functools
import io
import mmap
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from curator_dask.errors import ImageError, ShardError
from curator_dask.storage import check_regular, is_remote, local_path
from curator_dask.webdataset.headers import BLOCK, Member, header_problem, not_a_tar
from curator_dask.webdataset.index import ShardIndex, warn_once
from curator_dask.webdataset.staging import STAGE


class ShardReader:
    """Reads members of one shard; a context manager.

    A local tar is mapped into memory. Of a remote one a local copy is made (see `staging`); index files beside
    remote tars are not used.

    Parameters
    ----------
    url
        Local path or fsspec URL of the tar.
    use_index_files
        Whether a ``.idx`` file beside the tar may save the scan of its headers.
    storage_options
        Options for fsspec, where `url` is a URL.
    first
        Of a remote tar, fetch only the first so many bytes; it then looks as if it were cut there.

    Raises
    ------
    ShardError
        The tar cannot be opened or fetched, or is an empty file.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        use_index_files: bool = True,
        storage_options: Mapping[str, Any] | None = None,
        first: int | None = None,
    ) -> None:
        self.url = os.fsdecode(url)
        self._use_index_files = use_index_files
        self._staged = contextlib.ExitStack()
        self._file: io.FileIO | None = None
        try:
            if is_remote(self.url):
                self._path = self._staged.enter_context(STAGE.lease(self.url, storage_options, first))
                self._use_index_files = False
            else:
                self._path = Path(local_path(self.url))
            check_regular(self._path)
            self._file = io.FileIO(self._path)
            if os.fstat(self._file.fileno()).st_size == 0:
                raise not_a_tar(self.url, b"")
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            self._data = memoryview(self._map)
        except OSError as error:
            self.close()
            raise ShardError(f"{self.url}: the shard cannot be opened: {error}") from error
        except BaseException:
            self.close()
            raise

    @functools.cached_property
    def index(self) -> ShardIndex:
        """The shard's samples, read on first use.

        Raises
        ------
        ShardError
            The file is no plain tar.
        """
        try:
            return self._seen(ShardIndex.open(self._path, self._use_index_files))
        except ShardError as error:
            # A temporary file's name would tell nobody which shard it was.
            raise ShardError(str(error).replace(str(self._path), self.url)) from error

    def expect(self, members: Iterable[Member]) -> None:
        """Nothing is to be done ahead of `read`: all members are at hand."""

    def read(self, member: Member) -> memoryview:
        """The member's bytes, read-only and not copied; they stay valid after the reader is closed.

        If the header there is not the member's, the index is stale (the tar, or the index file, was changed):
        the tar is then scanned, once, and the member looked for by its name.

        Raises
        ------
        ImageError
            The tar has no such member, or the member's bytes lie outside of the file.
        """
        wrong = self._problem(member)
        if wrong:
            member = self._found_again(member, wrong)
        return self._data[member.offset : member.offset + member.size]

    def _problem(self, member: Member) -> str | None:
        length = self._length()
        if member.offset < BLOCK or member.size < 0 or member.offset + member.size > length:
            return f"the file has {length} bytes"
        return header_problem(self._data[member.offset - BLOCK : member.offset].tobytes(), member)

    def rescan(self) -> ShardIndex:
        """Index the shard from its own headers, and forget what an index file said.

        An index file that is out of date may lack samples that the tar has: look again before calling one
        missing.
        """
        if not self.index.scanned:
            self.index = self._seen(ShardIndex.scan(self._path))
        return self.index

    def _seen(self, index: ShardIndex) -> ShardIndex:
        """What is taken for the samples of a tar with this index."""
        return index

    def _length(self) -> int:
        if self._file is None:
            raise ShardError(f"{self.url}: the reader is closed")
        # Looked at anew: to touch a mapped page behind the end of a file that shrank kills the process.
        return min(len(self._data), os.fstat(self._file.fileno()).st_size)

    def _found_again(self, member: Member, wrong: str) -> Member:
        if not self.index.scanned:
            warn_once(
                f"{self.url}: an index that is out of date ({member.name!r}: {wrong}); the tar is scanned"
            )
            self.rescan()
        found = self.index.by_name.get(member.name)
        # What a scan found needs no header of the common kind: pax records may give name and size.
        if found is None or found.offset + found.size > self._length():
            raise ImageError(
                f"{self.url}: member {member.name!r}: expected {member.size} bytes at byte {member.offset}, "
                f"but {wrong}, and the tar has no such member elsewhere: "
                f"{self.index.problem or 'index the shard again'}"
            )
        return found

    def close(self) -> None:
        """Let go of the file, or of the copy of a remote one. Closing twice does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if hasattr(self, "_data"):
            self._data.release()
            with contextlib.suppress(BufferError):  # views handed out keep the map; the last takes it along
                self._map.close()
            del self._data, self._map
        self._staged.close()

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
