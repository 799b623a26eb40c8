"""Local copies of what phases have written to a store: fetched once by a process, as far as it is read, and removed.

A file of a phase is written once, under a name that says what is in it, so a copy never gets old. Of a large file those
blocks are fetched that somebody reads. Files that were read longest ago go where the copies get too many: who has
opened one keeps it until it is closed.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import errno
import os
import re
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import psutil

from curator_dask.cache import POSSESSIONS
from curator_dask.cluster.workers import current_client
from curator_dask.errors import OutputError
from curator_dask.frames.committing import machine_name
from curator_dask.patience import TRIES
from curator_dask.settings import STAGE_BYTES
from curator_dask.storage import Options, RemoteFile
from curator_dask.threads import in_threads
from curator_dask.webdataset.staging import current_worker

#: Bytes that are fetched together or not at all: of vectors here and there a few lie in each.
BLOCK = 1 << 14
#: Blocks between two that are wanted which are fetched with them: another answer would take longer.
_BETWEEN = 12
_ANSWER = 1 << 22  # bytes of an answer, at most: several are held at a time
_AROUND = (
    1,
    8,
    64,
    256,
)  # blocks that are fetched with one that is wanted, by how often a file was read before
_PREFIX = "curator_dask-work-"
_POLL, _WHILE = 0.2, 60.0  # seconds between looks whether a run's last tasks have ended, and for how long


@dataclass
class _Copy:
    """What is here of a file."""

    path: Path | None = None  # None: nothing yet
    size: int = 0
    there: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))  # (blocks,)
    remote: RemoteFile | None = None  # None: all of it was written here
    lock: threading.Lock = field(default_factory=threading.Lock)  # held while some of it is fetched
    users: int = 0
    held: int = 0  # bytes on the disk
    reads: int = 0  # that some of it had to be fetched for

    def missing(self, starts: np.ndarray | None, size: int) -> list[tuple[int, int]]:
        """Where bytes that are wanted, see `Copies.open`, and not here begin and end.

        A file that is read again and again will be read on: so the more often, the more of it is fetched at a time.
        """
        if self.there.all():
            return []
        wanted = ~self.there
        if starts is not None:
            asked = np.zeros(len(wanted) + 1, np.int64)
            np.add.at(asked, starts // BLOCK, 1)
            np.add.at(asked, (starts + size - 1) // BLOCK + 1, -1)
            wanted &= np.cumsum(asked)[:-1] > 0
            if wanted.any():
                around = _AROUND[min(self.reads, len(_AROUND) - 1)]
                firsts = np.arange(0, len(wanted), around)
                wanted = (
                    np.repeat(np.logical_or.reduceat(wanted, firsts), around)[: len(wanted)] & ~self.there
                )
                self.reads += 1
        blocks = np.flatnonzero(wanted)
        if not len(blocks):
            return []
        breaks = np.flatnonzero(np.diff(blocks) > 1 + _BETWEEN) + 1
        runs = []
        for begin, end in pairwise([0, *breaks.tolist(), len(blocks)]):
            first, last = BLOCK * int(blocks[begin]), min(self.size, BLOCK * (int(blocks[end - 1]) + 1))
            runs += [(at, min(last, at + _ANSWER)) for at in range(first, last, _ANSWER)]
        return runs


class Copies:
    """Local copies of files in stores that never change.

    Parameters
    ----------
    limit
        Bytes above which those that were read longest ago are removed. None: `settings.STAGE_BYTES`, as it is at the
        time.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._copies: OrderedDict[str, _Copy] = OrderedDict()
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._held = 0  # bytes of all of them
        #: Bytes that were fetched since this process began.
        self.fetched = 0

    def __contains__(self, url: str) -> bool:
        copy = self._copies.get(url)
        return copy is not None and copy.path is not None

    def __len__(self) -> int:
        return len(self._copies)

    def open(
        self, url: str, options: Options = None, starts: np.ndarray | None = None, size: int = 1
    ) -> BinaryIO:
        """A file of this machine that has some bytes of a file in a store, at the same places.

        Parameters
        ----------
        url, options
            Of that file, for fsspec.
        starts, size
            int64 (n,): where what is wanted begins, so many bytes each; None: all of it.

        Raises
        ------
        OutputError
            It cannot be fetched, or there is no room for it.
        """
        with self._using(url, options) as copy:
            assert copy.path is not None
            with copy.lock:
                self._fetch(copy, url, copy.missing(starts, size))
            return copy.path.open("rb", buffering=0)

    def size(self, url: str, options: Options = None) -> int:
        """Bytes of a file in a store.

        Raises
        ------
        OutputError
            The store does not say.
        """
        with self._using(url, options) as copy:
            return copy.size

    def take(self, url: str, path: Path) -> None:
        """Keep a local file, which is given away, of what was put into a store."""
        size = path.stat().st_size
        with self._lock:
            if url in self._copies:
                path.unlink()
                return
            self._copies[url] = _Copy(path, size, np.ones(-(-size // BLOCK), bool), held=size)
            self._held += size
            self._remove_oldest(self.limit)

    @property
    def limit(self) -> float:
        """Bytes above which those that were read longest ago are removed."""
        return STAGE_BYTES.value() if self._limit is None else self._limit

    def place(self) -> Path:
        """The folder of the copies, and of what is about to be written."""
        with self._lock:
            if self._folder is None:
                # A worker's scratch folder is cleared by Dask also after a worker that was killed.
                place = getattr(current_worker(), "local_directory", None)
                if place is None:
                    _remove_of_the_dead(Path(tempfile.gettempdir()))
                prefix = f"{_PREFIX}{machine_name()}-{os.getpid()}-"
                self._folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
                atexit.register(shutil.rmtree, self._folder, ignore_errors=True)
            # It goes with the last copy; and a worker's scratch space may have been cleared.
            self._folder.mkdir(mode=0o700, exist_ok=True)
            return self._folder

    def clear(self, below: str = "") -> None:
        """Remove the copies of what is in a folder, but for those that are being opened; by default all."""
        with self._lock:
            for url in [url for url in self._copies if url.startswith(below)]:
                self._remove(url)
            if not self._copies and self._folder is not None:
                with contextlib.suppress(OSError):  # something is being written
                    self._folder.rmdir()

    def in_use(self) -> int:
        """How many are being opened."""
        with self._lock:
            return sum(copy.users for copy in self._copies.values())

    @contextlib.contextmanager
    def _using(self, url: str, options: Options) -> Iterator[_Copy]:
        place = self.place()
        with self._lock:
            copy = self._copies.setdefault(url, _Copy())
            copy.users += 1
            self._copies.move_to_end(url)
        try:
            with copy.lock:
                if copy.path is None or not copy.path.exists():
                    _begin(copy, url, options, place)
            yield copy
        finally:
            with self._lock:
                copy.users -= 1
                if not copy.users and copy.path is None:
                    self._copies.pop(url, None)
                self._remove_oldest(self.limit)

    def _fetch(self, copy: _Copy, url: str, runs: list[tuple[int, int]]) -> None:
        if not runs:
            return
        assert copy.path is not None and copy.remote is not None
        remote = copy.remote
        with copy.path.open("r+b", buffering=0) as file:

            def fetch(run: tuple[int, int]) -> None:
                data = remote.block(*run)
                try:
                    _write(file.fileno(), data, run[0])
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    with self._lock:
                        self._remove_oldest(0)
                    _write(file.fileno(), data, run[0])

            try:
                in_threads(fetch, runs)
            except Exception as error:
                raise _unfetched(url, error, copy.path.parent) from error
        new = 0
        for start, stop in runs:
            part = slice(start // BLOCK, -(-stop // BLOCK))
            new += stop - start - BLOCK * int(copy.there[part].sum())  # some between were here
            copy.there[part] = True
        with self._lock:
            copy.held += new
            self._held += new
            self.fetched += sum(stop - start for start, stop in runs)

    def _remove_oldest(self, limit: float) -> None:
        """Remove copies until the rest has at most `limit` bytes. The caller holds the lock."""
        if self._held > limit:
            for url in list(self._copies):
                self._remove(url)
                if self._held <= limit:
                    return

    def _remove(self, url: str) -> None:
        """Remove a copy, unless somebody is just opening it. The caller holds the lock."""
        if not self._copies[url].users:
            copy = self._copies.pop(url)
            self._held -= copy.held
            if copy.path is not None:
                copy.path.unlink(missing_ok=True)


def _begin(copy: _Copy, url: str, options: Options, place: Path) -> None:
    """Make an empty file of the size that the one in the store has."""
    try:
        copy.remote = RemoteFile(url, options)
        handle, name = tempfile.mkstemp(dir=place)
        with open(handle, "wb") as file:  # noqa: PTH123
            file.truncate(copy.remote.size)
    except Exception as error:  # a store's own, of many types
        raise _unfetched(url, error, place) from error
    copy.path, copy.size, copy.held = Path(name), copy.remote.size, 0
    copy.there = np.zeros(-(-copy.size // BLOCK), bool)


def _write(handle: int, data: bytes, at: int) -> None:
    """Write all of some bytes; a disk that is nearly full takes a part of them."""
    rest = memoryview(data)
    while rest:
        done = os.pwrite(handle, rest, at)
        rest, at = rest[done:], at + done


def _unfetched(url: str, error: Exception, place: Path) -> OutputError:
    """The error that a file of a phase is not to be had."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return OutputError(
            f"{url}: no space for a copy of it in {place}: make room, or choose another place by TMPDIR, or a worker's"
            f" --local-directory; {STAGE_BYTES.name} says how much a process may take. What was finished is kept"
        )
    if isinstance(error, FileNotFoundError):
        return OutputError(
            f"{url}: is not there, and an earlier phase has written it: was it removed? Run again, and it is made anew"
        )
    return OutputError(
        f"{url}: cannot be fetched from its store ({TRIES} tries): {error!r}. Check that all workers reach it with"
        " these storage_options, and run again: what was finished is kept"
    )


def _remove_of_the_dead(folder: Path) -> None:
    """Remove copies that processes of this machine have left which were killed."""
    pattern = re.compile(rf"{re.escape(f'{_PREFIX}{machine_name()}')}-(\d+)-\w+")
    for path in folder.glob(f"{_PREFIX}*"):
        match = pattern.fullmatch(path.name)
        if match and not psutil.pid_exists(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)


#: The copies of this process.
COPIES = POSSESSIONS.add("copies of phases", Copies())


def forget_copies(below: str) -> None:
    """Remove the copies of what is in a folder of a store, here and on all workers of the current cluster."""
    COPIES.clear(below)
    client = current_client()
    if client is not None and client.status == "running":
        client.run(_clear, below, wait=False)  # not to be held up by a worker that does not answer


async def _clear(below: str, dask_worker: Any) -> None:  # only a coroutine is not waited for
    from curator_dask.dedup.copies import COPIES  # those of the worker's process

    def tasks() -> set[Any]:
        return {each.key for each in (*dask_worker.state.executing, *dask_worker.state.long_running)}

    COPIES.clear(below)
    # A task that was under way when an error ended the run may still fetch something.
    end, last = time.monotonic() + _WHILE, tasks()
    while last & tasks() and time.monotonic() < end:
        await asyncio.sleep(_POLL)
        COPIES.clear(below)
