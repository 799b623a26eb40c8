"""What is made for a new tar on a worker, put away until the tar is written: a file without a name."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from curator_dask.errors import OutputError
from curator_dask.webdataset.staging import current_worker


class Scratch:
    """A file that goes with who has opened it."""

    def __init__(self) -> None:
        with _told():
            self._file = tempfile.TemporaryFile(prefix="curator_dask-made-", dir=_place())  # noqa: SIM115
        self._end = 0

    def put(self, data: bytes) -> tuple[int, int]:
        """Put bytes away; where they lie, start and stop.

        Raises
        ------
        OutputError
            There is no room.
        """
        with _told():
            self._file.write(data)
        self._end += len(data)
        return self._end - len(data), self._end

    def flush(self) -> None:
        """Have all of it written."""
        with _told():
            self._file.flush()

    def mapped(self) -> memoryview:
        """All of it, mapped into memory; it stays as long as something looks at it, whatever becomes of the file."""
        self.flush()
        if not self._end:
            return memoryview(b"")
        return memoryview(mmap.mmap(self._file.fileno(), self._end, access=mmap.ACCESS_READ))

    def close(self) -> None:
        """Let it go; what is mapped stays."""
        self._file.close()


@contextmanager
def scratch() -> Iterator[Scratch]:
    """One that is closed with the block."""
    opened = Scratch()
    try:
        yield opened
    finally:
        opened.close()


def _place() -> str:
    """Where it lies: a worker's scratch folder, which Dask also clears after one that was killed."""
    return getattr(current_worker(), "local_directory", None) or tempfile.gettempdir()


@contextmanager
def _told() -> Iterator[None]:
    """Say what cannot be written, and where."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{_place()}: new images cannot be put there until their tar is written: {error.strerror or error}."
            " TMPDIR, or a worker's --local-directory, chooses another place"
        ) from error
