"""What is wrong with a Parquet file that is there and cannot be read, in words, and what to do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from curator_dask.errors import CuratorError, OutputError
from curator_dask.storage import NotRegularError, is_remote, local_path

_POINTER = b"version https://git-lfs"  # how a file begins that Git LFS keeps elsewhere


def fault_of(path: str, error: Exception) -> str:
    """What is wrong with a file, by what its reader raised."""
    if isinstance(error, NotRegularError):
        return f"is no file: {error}. Move it away, or give it another name"
    if is_dangling(path):
        target = Path(local_path(path)).readlink()
        return f"is a link to {target}, which is not there: bring that back, or remove the link"
    if not _is_damage(path, error):
        said = (error.strerror if isinstance(error, OSError) else None) or repr(error)
        return f"cannot be read: {said}"
    if not is_remote(path) and _begins(path, _POINTER):
        return "is a Git LFS pointer, no Parquet file: fetch the file itself with git lfs pull"
    said = " ".join(str(error).split()).partition(". ")[0].rstrip(" .:")
    return (
        f"is damaged, or no Parquet file at all ({said}): a copy that was cut short or is still under way, or a bad"
        " disk, leaves such a file. Put the whole file in its place, or remove it and run again what made it: all"
        " else that is there is kept"
    )


@contextlib.contextmanager
def faults_told(path: str, kind: type[CuratorError] = OutputError) -> Iterator[None]:
    """What a reader of Parquet raises, as an error that names the file."""
    try:
        yield
    except CuratorError:
        raise
    except Exception as error:  # pyarrow's or a store's own, of many types
        raise kind(f"{path}: {fault_of(path, error)}") from error


def is_dangling(path: str) -> bool:
    """Whether it is a symbolic link to what is not there."""
    where = local_path(path)
    # By os.path: it is asked of every file that is to be written, and a Path costs more than the answer.
    return not is_remote(path) and os.path.islink(where) and not os.path.exists(where)  # noqa: PTH110, PTH114


def _is_damage(path: str, error: Exception) -> bool:
    """Whether it is the file's bytes that its reader objects to: not a disk, a store, or memory that is short."""
    if isinstance(error, pa.ArrowInvalid):
        return True
    # Of bytes that it cannot unpack Arrow says it by a bare OSError, as a store may of anything.
    return type(error) is OSError and error.errno is None and not is_remote(path)


def _begins(path: str, start: bytes) -> bool:
    with contextlib.suppress(OSError), Path(local_path(path)).open("rb") as file:
        return file.read(len(start)) == start
    return False
