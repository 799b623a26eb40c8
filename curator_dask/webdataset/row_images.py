"""Images of rows of Parquet files, in any order: those that do not come as they lie are put into a file before.

For a row costs the reading of all before it in its row group: so each group is read once, in the order of its rows.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Sequence
from typing import IO

from curator_dask.errors import ImageError, ShardError
from curator_dask.storage import Options
from curator_dask.webdataset.headers import Member
from curator_dask.webdataset.parquet_reader import ParquetReader
from curator_dask.webdataset.staging import current_worker


class RowImages:
    """Reads images of rows of Parquet files.

    Parameters
    ----------
    ahead
        Of those that are going to be read, in this order: url, number of the row, and bytes.
    options
        For fsspec.
    """

    def __init__(self, ahead: Sequence[tuple[str, int, int]], options: Options = None) -> None:
        self._options = options
        self._rows: dict[str, list[int]] = {}
        for url, row, _ in ahead:
            self._rows.setdefault(url, []).append(row)
        self._held = contextlib.ExitStack()
        self._reader: ParquetReader | None = None
        self._places: dict[tuple[str, int], int] = {}  # in the file
        self._file: IO[bytes] | None = None
        changes = sum(one[0] != other[0] for one, other in itertools.pairwise(ahead))
        in_order = all(one < other for rows in self._rows.values() for one, other in itertools.pairwise(rows))
        self._in_order = in_order and changes < max(1, len(self._rows))

    def read(self, url: str, row: int, size: int) -> bytes:
        """The bytes of an image.

        Raises
        ------
        ShardError
            The file cannot be read, or is another now.
        """
        if self._in_order:
            return self._read(url, row, size)
        if self._file is None:
            self._file = self._written()
        self._file.seek(self._places[url, row])
        return self._checked(url, row, size, self._file.read(size))

    def _read(self, url: str, row: int, size: int | None = None) -> bytes:
        if self._reader is None or self._reader.url != url:
            self._held.close()
            self._reader = self._held.enter_context(ParquetReader(url, self._options))
            self._reader.expect(Member("", each, 0) for each in self._rows[url])
        try:
            data = bytes(self._reader.read(Member("", row, 0)))
        except ImageError:
            data = b""
        return data if size is None else self._checked(url, row, size, data)

    def _checked(self, url: str, row: int, size: int, data: bytes) -> bytes:
        if len(data) != size:
            raise ShardError(
                f"{url}: expected {size} bytes in row {row}, found {len(data)}: the file was changed since its samples"
                " were looked up: run again, when nobody writes there"
            )
        return data

    def _written(self) -> IO[bytes]:
        """A file that goes when it is closed, with all images as they lie."""
        place = getattr(current_worker(), "local_directory", None)
        try:
            file = tempfile.TemporaryFile(prefix="curator_dask-export-", dir=place)  # noqa: SIM115
            for url, rows in self._rows.items():
                for row in sorted({*rows}):
                    self._places[url, row] = file.tell()
                    file.write(self._read(url, row))
            file.flush()
        except OSError as error:
            raise ShardError(
                f"{place or tempfile.gettempdir()}: images cannot be put in order there: {error.strerror or error}."
                " TMPDIR, or a worker's --local-directory, chooses another place"
            ) from error
        return file

    def close(self) -> None:
        """Let go of all files."""
        self._held.close()
        self._reader = None
        if self._file is not None:
            self._file.close()
