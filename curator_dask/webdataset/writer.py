"""Writing a tar of samples: members copied by range from other tars, byte for byte, and the same tar each time.

The result is, to the bit, what Python's `tarfile` writes of the same members with time 0 and no owner, in the format of
POSIX.1-2001: plain headers where they suffice, pax records where a name or a size needs them.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from curator_dask.webdataset.headers import BLOCK, SIZE_LIMIT, Member, padded
from curator_dask.webdataset.ranges import Extent, Ranges

_NAME_BYTES = 100  # that a plain header holds
_AT_ONCE = 4096  # members whose headers are made together
_BUFFER = 1 << 20  # bytes that are gathered before they are written
_SMALL = (
    1 << 14
)  # bytes up to which a member is gathered too; a larger one the kernel copies from file to file
_TEMPLATE = np.frombuffer(tarfile.TarInfo("").tobuf(tarfile.PAX_FORMAT), np.uint8)


class Entry(NamedTuple):
    """A member to be written.

    Attributes
    ----------
    name
        In the tar; bytes that are not UTF-8 as surrogates.
    data
        Its bytes, or where they are.
    change
        What is done to bytes that lie elsewhere; None: they are copied.
    """

    name: str
    data: Extent | bytes
    change: Callable[[bytes], bytes] | None = None

    @property
    def size(self) -> int:
        """Bytes, before a change."""
        return len(self.data) if isinstance(self.data, bytes) else self.data.size


def write_tar(file: int, entries: Sequence[Entry], ranges: Ranges) -> list[Member]:
    """Write a tar.

    Parameters
    ----------
    file
        Descriptor of a new local file, open for writing.
    entries
        In their order.
    ranges
        Gives the bytes that lie in other tars.

    Returns
    -------
    list of Member
        Where each now lies.

    Raises
    ------
    ShardError
        The bytes of a member cannot be had.
    OSError
        The file cannot be written.
    """
    out = _Gathered(file)
    written = []
    with ranges.reading([each.data for each in entries if isinstance(each.data, Extent)]) as sources:
        for entry, header in zip(entries, _headers(entries), strict=True):
            data, size = entry.data, entry.size
            if isinstance(data, Extent) and (size <= _SMALL or entry.change or not sources.copies(data)):
                data = sources.read(data)
            if entry.change is not None and isinstance(data, bytes):
                data = entry.change(data)
                size = len(data)
                header = _header(entry.name, size)
            out.put(header)
            written.append(Member(entry.name, out.at, size))
            if isinstance(data, bytes):
                out.put(data)
            else:
                out.flush()
                sources.copy(data, file)
                out.at += size
            out.put(bytes(-size % BLOCK))
    end = out.at + 2 * BLOCK
    out.put(bytes(2 * BLOCK + -end % tarfile.RECORDSIZE))
    out.flush()
    return written


def tar_bytes(names: Iterable[str], sizes: Iterable[int]) -> int:
    """Bytes that members take in a tar, without the end mark."""
    total = 0
    for name, size in zip(names, sizes, strict=True):
        plain = len(name) <= _NAME_BYTES and name.isascii() and size < SIZE_LIMIT
        total += (BLOCK if plain else len(_header(name, size))) + padded(size)
    return total


class _Gathered:
    """Small pieces, written together."""

    def __init__(self, file: int) -> None:
        self.at = 0  # bytes so far
        self._file, self._pieces, self._held = file, list[bytes](), 0

    def put(self, data: bytes) -> None:
        self._pieces.append(data)
        self.at += len(data)
        self._held += len(data)
        if self._held >= _BUFFER:
            self.flush()

    def flush(self) -> None:
        data = memoryview(b"".join(self._pieces))
        self._pieces.clear()
        self._held = 0
        while data:
            data = data[os.write(self._file, data) :]


def _headers(entries: Sequence[Entry]) -> Iterator[bytes]:
    """What stands before the bytes of each: most are alike, and made many at a time."""
    for start in range(0, len(entries), _AT_ONCE):
        some = entries[start : start + _AT_ONCE]
        plain = [
            len(each.name) <= _NAME_BYTES and each.name.isascii() and each.size < SIZE_LIMIT for each in some
        ]
        rows = iter(_plain_headers([each for each, is_plain in zip(some, plain, strict=True) if is_plain]))
        for each, is_plain in zip(some, plain, strict=True):
            yield next(rows) if is_plain else _header(each.name, each.size)


def _plain_headers(entries: Sequence[Entry]) -> list[bytes]:
    if not entries:
        return []
    headers = np.tile(_TEMPLATE, (len(entries), 1))
    names = np.array([each.name.encode("ascii") for each in entries], f"S{_NAME_BYTES}")
    headers[:, :_NAME_BYTES] = names.view(np.uint8).reshape(len(entries), _NAME_BYTES)
    headers[:, 124:135] = _octal(np.array([each.size for each in entries], np.int64), 11)
    headers[:, 148:156] = ord(" ")  # of its own field the checksum takes blanks
    headers[:, 148:154] = _octal(headers.sum(axis=1, dtype=np.int64), 6)
    headers[:, 154] = 0
    whole = headers.tobytes()
    return [whole[at : at + BLOCK] for at in range(0, len(whole), BLOCK)]


def _octal(numbers: np.ndarray, digits: int) -> np.ndarray:
    """uint8 (numbers, digits): as text."""
    shifts = 3 * np.arange(digits - 1, -1, -1)
    return (((numbers[:, None] >> shifts) & 7) + ord("0")).astype(np.uint8)


def _header(name: str, size: int) -> bytes:
    """Of any member, pax records before it where they are needed."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
