"""Arrays of NumPy's files, some rows at a time: ``.npy``, and members of ``.npz``, on this machine or in a store.

Nothing is unpickled. What a header says is held against the rows of the table before anything is made room for, so a
header that lies costs an error and no memory.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from curator_dask.errors import CuratorError, ShardError
from curator_dask.storage import Options, RemoteFile, check_regular, is_remote, local_path

_BUFFER = 1 << 20  # bytes that are asked of a store at least
_SKIPPED = 1 << 20  # bytes that are read at a time to get past rows of a packed member
MOST_VALUES = 1 << 16
"""Values of a vector, at most: more are an error in a header, or no vectors."""


class VectorArray:
    """Rows of an open array, one after the other.

    Parameters
    ----------
    stream
        Behind the header.
    where
        The file and member, for errors.
    shape
        ``(rows, dim)``.
    dtype
        A floating type.
    """

    def __init__(self, stream: IO[bytes], where: str, shape: tuple[int, int], dtype: np.dtype) -> None:
        self._stream, self.where, self.dtype = stream, where, dtype
        self.rows, self.dim = shape
        self._at = 0

    def skip(self, rows: int) -> None:
        """Go past some rows."""
        size = rows * self.dim * self.dtype.itemsize
        self._at += rows
        if self._stream.seekable() and not isinstance(self._stream, zipfile.ZipExtFile):
            self._stream.seek(size, io.SEEK_CUR)
            return
        while size:
            done = len(self._stream.read(min(size, _SKIPPED)))
            if not done:
                raise self._cut()
            size -= done

    def read(self, rows: int) -> np.ndarray:
        """The next rows: float32 (rows, dim).

        Raises
        ------
        ShardError
            The file ends before.
        """
        matrix = np.empty((rows, self.dim), self.dtype)
        memory = matrix.reshape(-1).view(np.uint8).data
        filled = 0
        while filled < len(memory):
            data = self._stream.read(min(len(memory) - filled, 8 * _BUFFER))
            if not data:
                raise self._cut()
            memory[filled : filled + len(data)] = data
            filled += len(data)
        self._at += rows
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite there, and told as such
            return matrix.astype(np.float32)

    def _cut(self) -> ShardError:
        return ShardError(
            f"{self.where}: expected {self.rows} vectors of {self.dim} values as its header says, found the file's"
            " end before: it was cut short. Fetch it again"
        )


def array_names(path: str, options: Options = None) -> list[str]:
    """The arrays of an ``.npz``.

    Raises
    ------
    ShardError
        It cannot be read.
    """
    with _told(path), ExitStack() as stack:
        packed = stack.enter_context(zipfile.ZipFile(_opened(path, options, stack)))
        return [name.removesuffix(".npy") for name in packed.namelist() if name.endswith(".npy")]


@contextmanager
def open_array(path: str, member: str | None, options: Options = None) -> Iterator[VectorArray]:
    """An array of vectors.

    Parameters
    ----------
    path
        Local path or URL of an ``.npy``, or of an ``.npz``.
    member
        Of the ``.npz``; None: it is an ``.npy``.
    options
        For fsspec.

    Raises
    ------
    ShardError
        There is no such file or array, it is damaged, or has no rows of floats.
    """
    where = path if member is None else f"{path}: {member}"
    with _told(where), ExitStack() as stack:
        file: Any = _opened(path, options, stack)
        if member is not None:
            packed = stack.enter_context(zipfile.ZipFile(file))
            if f"{member}.npy" not in packed.namelist():
                names = [name.removesuffix(".npy") for name in packed.namelist() if name.endswith(".npy")]
                raise ShardError(
                    f"{path}: has no array {member!r}; it has {names}. Say which by --image-vectors, --text-vectors"
                )
            file = stack.enter_context(packed.open(f"{member}.npy"))
        yield VectorArray(file, where, *_header(file, where))


def _header(file: IO[bytes], where: str) -> tuple[tuple[int, int], np.dtype]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ShardError(f"{where}: has NumPy's format {version}: save it with numpy.save")
    if dtype.hasobject:
        raise ShardError(
            f"{where}: holds pickled objects, which are not loaded: save vectors of float16 or float32"
        )
    if dtype.kind != "f" or len(shape) != 2:
        raise ShardError(f"{where}: expected rows of floats, found {dtype} of the shape {shape}")
    if not 0 < shape[1] <= MOST_VALUES:
        raise ShardError(f"{where}: expected vectors of 1 to {MOST_VALUES:,} values, found {shape[1]:,}")
    if fortran:
        raise ShardError(f"{where}: is in Fortran's order, by columns: save numpy.ascontiguousarray of it")
    return (int(shape[0]), int(shape[1])), dtype


def _opened(path: str, options: Options, stack: ExitStack) -> IO[bytes]:
    if is_remote(path):
        file: Any = io.BufferedReader(RemoteFile(path, options), _BUFFER)
        return stack.enter_context(file)
    check_regular(local_path(path))
    return stack.enter_context(Path(local_path(path)).open("rb"))


@contextmanager
def _told(where: str) -> Iterator[None]:
    try:
        yield
    except CuratorError:
        raise
    except FileNotFoundError as error:
        raise ShardError(f"{where}: is not there, and has the vectors of a table: fetch it, too") from error
    # Of a zip that is damaged, packed in another way, or locked; of a header; of a disk or store.
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        said = " ".join(str(error).split()) or repr(error)
        raise ShardError(f"{where}: is damaged, or no file of NumPy's: {said}. Fetch it again") from error
    except Exception as error:  # a store's own, of many types
        raise ShardError(f"{where}: cannot be read: {error!r}") from error
