"""Files by local path or fsspec URL: looked at, read and written in one way."""

from __future__ import annotations

import io
import logging
import os
import posixpath
import stat
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from curator_dask.errors import ConfigError
from curator_dask.patience import BLOCK_BYTES, patiently
from curator_dask.s3_requests import find_below, read_all, read_tail

logger = logging.getLogger("curator_dask")

T = TypeVar("T")
Options = Mapping[str, Any] | None

RELATIVE = "paths are relative to the folder in which the command runs"
"""For errors of files that are not there."""

# There a write is one request that replaces the object as a whole; elsewhere a file is written beside and renamed.
_OBJECT_STORES = frozenset("s3 s3a gs gcs abfs abfss az adl oci oss r2 memory".split())  # noqa: SIM905


def is_remote(url: str) -> bool:
    """Whether this is a URL of a store, not a path on this machine."""
    return "://" in url and not url.startswith(("file://", "local://"))


def local_path(url: str) -> str:
    """The path of a local file that may be given as ``file://``."""
    return url.removeprefix("file://").removeprefix("local://")


def absolute(path: str, options: Options = None) -> str:
    """A local path made absolute, or a URL as fsspec writes it, without a slash at its end."""
    if not is_remote(path):
        return os.path.abspath(os.path.expanduser(local_path(path)))  # noqa: PTH100, PTH111
    fs, inside = filesystem(path, options)
    protocol, mark, rest = fs.unstrip_protocol(inside).partition("://")
    return f"{protocol}{mark}{rest.rstrip('/')}"


def looked_for(path: str | os.PathLike[str]) -> str:
    """Where a path was looked for that is not there, for an error; empty where that is what was given."""
    text = os.fspath(path)
    if is_remote(text) or local_path(text) == absolute(text):
        return ""
    return f" at {absolute(text)} ({RELATIVE})"


def join(folder: str, name: str) -> str:
    """Path or URL of a file below a folder."""
    if not is_remote(folder):
        return os.path.join(folder, name)  # noqa: PTH118
    return f"{folder}{'' if folder.endswith('/') else '/'}{name}"


def file_state(path: str | os.PathLike[str]) -> tuple[int, int, int, int]:
    """What tells a local file that was changed, even by one who sets its times.

    Returns
    -------
    tuple of int
        Size in bytes, time of the last change of its content and of the file itself in nanoseconds, and its number.

    Raises
    ------
    OSError
        It is not there, or cannot be looked at.
    """
    seen = os.stat(path)  # noqa: PTH116
    return seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino


class NotRegularError(OSError):
    """A local path is no plain file."""


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raise OSError where a local path is no plain file: to open a FIFO waits for ever for its other end."""
    mode = os.stat(path).st_mode  # noqa: PTH116
    if not stat.S_ISREG(mode):
        kind = "FIFO" if stat.S_ISFIFO(mode) else "directory" if stat.S_ISDIR(mode) else "device or socket"
        raise NotRegularError(f"expected a regular file, found a {kind}")


def filesystem(url: str, options: Options = None) -> tuple[Any, str]:
    """Fsspec's file system for a URL, and the URL's path in it."""
    if options is not None and not isinstance(options, Mapping):
        raise ConfigError(
            f"storage_options: expected a mapping, such as {{'anon': True}}, found a {type(options).__name__}"
        )
    # Other processes write while this one looks: what was listed a minute ago says nothing.
    settings = {"use_listings_cache": False, **(options or {})}
    if _is_chain(url):
        fs, path = fsspec.core.url_to_fs(url, **settings)
        return fs, path
    fs, path = fsspec.core.url_to_fs(url.replace("::", "\0"), **settings)
    return fs, path.replace("\0", "::")


def _is_chain(url: str) -> bool:
    """Whether ``::`` means to fsspec what it says (``simplecache::s3://…``), or stands in a file's name."""
    first, *others = url.split("::")
    return "://" not in first or any("://" in each or each in fsspec.available_protocols() for each in others)


class RemoteFile(io.RawIOBase):
    """A remote file to be read, each block of it patiently.

    Parameters
    ----------
    url
        Of the file.
    options
        For fsspec.
    tail
        Bytes at its end that are read anyhow. Where S3 has no more of it, it is not asked for the size.

    Raises
    ------
    Exception
        As of `patiently`; ``OSError`` also where a block comes shorter than asked for.
    """

    def __init__(self, url: str, options: Options = None, tail: int = 0) -> None:
        super().__init__()
        self.url = url
        self._fs, self._path = filesystem(url, options)
        end = patiently(lambda: read_tail(self._fs, self._path, tail), url) if tail else None
        if end is not None and len(end) < tail:
            self.size = len(end)
        else:
            self.size = int(patiently(lambda: self._fs.info(self._path), url).get("size") or 0)
        self._end = end if end is not None and len(end) <= min(tail, self.size) else b""
        self._at = 0
        self._whole: bytes | None = None  # where the store gives nothing less

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Byte at which the next read begins."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move, as for any file."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, or as much of it as one block has."""
        data = self.block(self._at, min(self.size, self._at + min(len(buffer), BLOCK_BYTES)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def block(self, start: int, stop: int) -> bytes:
        """Bytes ``start:stop`` of the file."""
        if self._whole is None and self.size - len(self._end) <= start < stop:
            first = self.size - len(self._end)
            return self._end[start - first : stop - first]
        if self._whole is None and start < stop:
            found = patiently(lambda: self._asked(start, stop), self.url)
            if len(found) == stop - start:
                return found
            self._whole = found
        return b"" if self._whole is None else self._whole[start:stop]

    def _asked(self, start: int, stop: int) -> bytes:
        found = self._fs.cat_file(self._path, start=start, end=stop)
        if len(found) not in (stop - start, self.size):
            raise OSError(f"the connection was cut: expected {stop - start} bytes, got {len(found)}")
        return bytes(found)


def read_bytes(url: str, options: Options = None, most: int | None = None) -> bytes:
    """All of a small file.

    Parameters
    ----------
    url, options
        Of the file, for fsspec.
    most
        Bytes of a remote file that are read; None: all.

    Raises
    ------
    OSError
        It cannot be read.
    """
    if not is_remote(url):
        return Path(local_path(url)).read_bytes()
    fs, path = filesystem(url, options)
    if most is None:
        return patiently(lambda: read_all(fs, path), url)
    return patiently(lambda: bytes(fs.cat_file(path, start=0, end=most)), url, size=most)


def write_bytes(url: str, data: Any, options: Options = None) -> None:
    """Write a remote file: afterwards it is there whole, or as it was before.

    On an object store one request replaces the object; elsewhere the file is written under another name and
    renamed.

    Raises
    ------
    Exception
        As of `patiently`.
    """
    fs, path = filesystem(url, options)
    _replace(fs, path, lambda to: fs.pipe_file(to, data), url, len(data))


def _replace(fs: Any, path: str, put: Callable[[str], object], url: str, size: int) -> None:
    """Put a file there by a call that is given its path: as one request, or under another name first."""
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    if protocols & _OBJECT_STORES:
        patiently(lambda: put(path), url, size)
        return
    folder, name = posixpath.split(path)
    temporary = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}.tmp"

    def write_and_rename() -> None:
        fs.makedirs(folder, exist_ok=True)
        put(temporary)
        if fs.exists(path):
            fs.rm_file(path)  # not every store renames over a file
        fs.mv(temporary, path)

    patiently(write_and_rename, url, size)


def upload(url: str, path: str | os.PathLike[str], options: Options = None) -> None:
    """Put a local file into a store, a large one in parts: afterwards it is there whole, or as it was before.

    Raises
    ------
    Exception
        As of `patiently`.
    """
    fs, target = filesystem(url, options)
    size = os.stat(path).st_size  # noqa: PTH116
    _replace(fs, target, lambda to: fs.put_file(os.fspath(path), to), url, size)


def version_in(info: Mapping[str, Any]) -> str:
    """What a store's entry says that tells one state of a file from another; empty if it says nothing."""
    names = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "updated", "mtime", "created")
    return next((str(info[name]) for name in names if info.get(name) is not None), "")


def exists(url: str, options: Options = None) -> bool:
    """Whether there is such a file."""
    if not is_remote(url):
        return os.path.exists(local_path(url))  # noqa: PTH110
    fs, path = filesystem(url, options)
    return bool(patiently(lambda: fs.exists(path), url))


def remove(url: str, options: Options = None) -> None:
    """Remove a file; one that is not there is no error."""
    if not is_remote(url):
        Path(local_path(url)).unlink(missing_ok=True)
        return
    fs, path = filesystem(url, options)
    try:
        patiently(lambda: fs.rm_file(path), url)
    except FileNotFoundError:
        return


def walk(folder: str, options: Options = None) -> Iterator[str]:
    """Names of all files below a folder, relative to it; none where the folder is not there."""
    if not is_remote(folder):
        for root, _, files in os.walk(folder):
            below = os.path.relpath(root, folder)
            yield from (name if below == "." else f"{below}/{name}" for name in files)
        return
    fs, path = filesystem(folder, options)
    try:
        found = patiently(lambda: find_below(fs, path), folder)
    except FileNotFoundError:
        return
    for name in found:
        yield name.removeprefix(path.rstrip("/")).lstrip("/")
