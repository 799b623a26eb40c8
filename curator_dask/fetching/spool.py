"""Images of a shard on their way into its tar: on the disk as they come, in the order of the rows afterwards."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from curator_dask.errors import OutputError
from curator_dask.frames.committing import temporary_name
from curator_dask.outputs.placing import unwritten
from curator_dask.storage import is_remote
from curator_dask.webdataset.staging import current_worker


class Spool:
    """A file that bytes are added to from several threads; it is gone when the block ends.

    Parameters
    ----------
    folder
        Where the shard's records go: there it lies where that is on this machine, and what a worker that died has left
        is removed by the next run; else in the worker's own folder.
    name
        Of the tar.
    """

    def __init__(self, folder: str, name: str) -> None:
        self._folder, self._name = folder, name
        self._lock = threading.Lock()
        self._end = 0

    def __enter__(self) -> Self:
        try:
            if is_remote(self._folder):
                place = getattr(current_worker(), "local_directory", None)
                self._file, path = tempfile.mkstemp(dir=place, prefix="curator_dask-fetch-", suffix=".tmp")
                self.path = Path(path)
            else:
                self.path = Path(self._folder) / temporary_name(self._name)
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise unwritten(self._folder, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)
        self.path.unlink(missing_ok=True)

    def add(self, data: bytes | bytearray) -> int:
        """Add bytes; returns where they begin.

        Raises
        ------
        OutputError
            There is no room for them.
        """
        with self._lock:
            start = self._end
            self._end += len(data)
        rest, at = memoryview(data), start
        try:
            while rest:
                written = os.pwrite(self._file, rest, at)
                rest, at = rest[written:], at + written
        except OSError as error:
            raise OutputError(str(unwritten(str(self.path), error))) from error
        return start
