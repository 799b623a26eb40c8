"""Local copies of remote shards: shared by the tasks of a process, bounded in bytes, and removed.

A copy stays while somebody uses it, and after that until its space is wanted, the run or the process ends.
"""

from __future__ import annotations

import atexit
import errno
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curator_dask.cache import POSSESSIONS
from curator_dask.errors import CuratorError, ShardError
from curator_dask.patience import BLOCK_BYTES, TRIES
from curator_dask.settings import STAGE_BYTES
from curator_dask.storage import Options, RemoteFile
from curator_dask.webdataset.stamps import FileStamp, stamp


@dataclass
class _Copy:
    """A local copy of one state of a remote file."""

    size: int
    lock: threading.Lock = field(default_factory=threading.Lock)  # held while it is fetched
    path: Path | None = None
    users: int = 0
    doomed: bool = False  # to be removed with the last who uses it


class Stage:
    """Local copies of remote files, one for all who need the same at a time.

    Parameters
    ----------
    limit
        Bytes of copies above which those that nobody uses are removed, the one used longest ago first. None:
        `settings.STAGE_BYTES`, as it is at the time.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._copies: OrderedDict[tuple[str, FileStamp, int], _Copy] = OrderedDict()
        self._lock = threading.Lock()
        self._folder: Path | None = None

    @property
    def limit(self) -> float:
        """Bytes of copies above which those that nobody uses are removed."""
        return STAGE_BYTES.value() if self._limit is None else self._limit

    @contextmanager
    def lease(self, url: str, options: Options = None, first: int | None = None) -> Iterator[Path]:
        """A local copy of the file as it is now, which stays for as long as the lease lasts.

        Parameters
        ----------
        url, options
            Of the file, for fsspec.
        first
            Copy only the first so many bytes.

        Raises
        ------
        ShardError
            The file cannot be fetched.
        """
        limit = self.limit  # before anything is held: the variable may be bad
        state = stamp(url, options)
        size = state.size if first is None else min(first, state.size)
        key = (url, state, size)
        with self._lock:
            copy = self._copies.setdefault(key, _Copy(size))
            copy.users += 1
            self._copies.move_to_end(key)
            self._remove_idle(limit)
        try:
            with copy.lock:
                if copy.path is None:
                    copy.path = self._fetch(url, state, size, options)
            yield copy.path
        finally:
            with self._lock:
                copy.users -= 1
                if not copy.users and (copy.path is None or copy.doomed):
                    self._remove(key)
                self._remove_idle(limit)

    def has_room(self, url: str, options: Options = None) -> bool:
        """Whether a copy of the file is there, or fits beside those in use."""
        state = stamp(url, options)
        with self._lock:
            used = sum(copy.size for copy in self._copies.values() if copy.users)
            return (url, state, state.size) in self._copies or used + state.size <= self.limit

    def in_use(self) -> int:
        """How many leases last."""
        with self._lock:
            return sum(copy.users for copy in self._copies.values())

    def clear(self) -> None:
        """Remove the copies that nobody uses, and each of the others as soon as nobody does."""
        with self._lock:
            self._remove_idle(0)
            for copy in self._copies.values():
                copy.doomed = True

    def __len__(self) -> int:
        return len(self._copies)

    def _remove_idle(self, limit: float) -> None:
        """Remove copies not in use until the rest has at most `limit` bytes. The caller holds the lock."""
        total = sum(copy.size for copy in self._copies.values())
        for key, copy in list(self._copies.items()):
            if total <= limit:
                return
            if not copy.users:
                self._remove(key)
                total -= copy.size

    def _remove(self, key: tuple[str, FileStamp, int]) -> None:
        copy = self._copies.pop(key)
        if copy.path is not None:
            copy.path.unlink(missing_ok=True)

    def _fetch(self, url: str, state: FileStamp, size: int, options: Options) -> Path:
        handle, name = tempfile.mkstemp(dir=self._place(), suffix=".tar")
        path = Path(name)
        try:
            with open(handle, "wb") as copy:  # noqa: PTH123
                remote = RemoteFile(url, options)
                for start in range(0, size, BLOCK_BYTES):
                    copy.write(remote.block(start, min(start + BLOCK_BYTES, size)))
            if stamp(url, options) != state:
                raise ShardError(f"{url}: the shard was replaced while it was fetched: run again")
        except BaseException as error:
            path.unlink(missing_ok=True)
            if isinstance(error, CuratorError) or not isinstance(error, Exception):
                raise
            full = isinstance(error, OSError) and error.errno == errno.ENOSPC
            raise ShardError(
                f"{url}: no space for its {size} bytes in {path.parent}: TMPDIR, or a worker's"
                " --local-directory, chooses another place"
                if full
                else f"{url}: the shard cannot be fetched ({TRIES} tries): {error!r}"
            ) from error
        return path

    def _place(self) -> Path:
        if self._folder is None:
            # A worker's scratch folder is cleared by Dask also after a worker that was killed.
            place = getattr(current_worker(), "local_directory", None)
            self._folder = Path(tempfile.mkdtemp(prefix="curator_dask-stage-", dir=place))
            atexit.register(shutil.rmtree, self._folder, ignore_errors=True)
        self._folder.mkdir(exist_ok=True)  # a worker's scratch space may have been cleared
        return self._folder


STAGE = POSSESSIONS.add("copies", Stage())
"""The copies of this process."""


def current_worker() -> Any:
    """The Dask worker that runs this task, None outside of one."""
    try:
        from distributed.worker import get_worker

        return get_worker()
    except (ImportError, ValueError):
        return None
