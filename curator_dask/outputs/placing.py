"""Files that are under their names whole or not at all, on this machine or in a store."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from curator_dask.errors import ConfigError, OutputError
from curator_dask.frames.committing import Commits, temporary_name, write_local
from curator_dask.storage import Options, absolute, exists, is_remote, upload, write_bytes
from curator_dask.webdataset.staging import current_worker


def locate(path: str, options: Options) -> str:
    """Absolute path or URL of an output.

    Raises
    ------
    OutputError
        It is in a store that cannot be opened.
    """
    try:
        return absolute(path, options)
    except ConfigError:
        raise
    except Exception as error:  # fsspec's, of many types: no such store, a package that it needs
        raise OutputError(f"{path}: fsspec cannot open this store: {error!r}") from error


@contextlib.contextmanager
def being_written(path: str, options: Options, commits: Commits) -> Iterator[tuple[int, Callable[[], int]]]:
    """Descriptor of a file that is in its place when the block ends well; and what then tells its size.

    On this machine `commits` has it there, and raises what goes wrong then.
    """
    remote = is_remote(path)
    try:
        if remote:
            # A worker's scratch folder is cleared by Dask also after a worker that was killed.
            place = getattr(current_worker(), "local_directory", None)
            handle, name = tempfile.mkstemp(dir=place, prefix="curator_dask-export-", suffix=".tar")
            temporary = Path(name)
        else:
            temporary = Path(path).with_name(temporary_name(Path(path).name))
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise unwritten(path, error) from error
    file = os.fdopen(handle, "wb")
    size, committed = -1, False
    try:
        yield handle, lambda: size
        size = os.fstat(handle).st_size
        if remote:
            _uploaded(path, temporary, options)
        else:
            commits.add(file, temporary, Path(path))
            committed = True
    except OSError as error:
        raise unwritten(path, error) from error
    finally:
        if not committed:
            file.close()
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _uploaded(path: str, local: Path, options: Options) -> None:
    try:
        upload(path, local, options)
    except Exception as error:  # a store's own, of many types
        raise unwritten(path, error) from error


def put(path: str, data: bytes, options: Options, commits: Commits | None = None) -> None:
    """Write a small file, whole or not at all; on this machine `commits`, if given, has it there."""
    if is_remote(path):
        try:
            write_bytes(path, data, options)
        except Exception as error:  # a store's own, of many types
            raise unwritten(path, error) from error
        return
    try:
        write_local(Path(path), lambda file: file.write(data), commits)
    except OSError as error:
        raise unwritten(path, error) from error


def is_there(path: str, options: Options) -> bool:
    """Whether something has this name: a file, a folder, or a link, be it to nothing."""
    return exists(path, options) or (not is_remote(path) and Path(path).is_symlink())


def unwritten(path: str, error: Exception) -> OutputError:
    """The error that a file could not be written, for this reason."""
    said = (error.strerror if isinstance(error, OSError) else None) or repr(error)
    return OutputError(
        f"{path}: could not be written: {said}. Nothing was left behind there; make room, or give a path that can be"
        " written, and run again: finished shards are kept"
    )
