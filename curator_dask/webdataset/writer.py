"""Writing a tar of samples: members copied by range from other tars, byte for byte, and the same tar each time.

The result is, to the bit, what Python's `tarfile` writes of the same members with time 0 and no owner, in the format of
POSIX.1-2001: plain headers where they suffice, pax records where a name or a size needs them.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from curator_dask.webdataset.headers import BLOCK, SIZE_LIMIT, Member
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
    written: list[Member] = []
    pieces: list[bytes] = []  # small ones, written together
    at = held = 0
    with ranges.reading([each.data for each in entries if isinstance(each.data, Extent)]) as sources:
        for (name, data, change), header in zip(entries, _headers(entries), strict=True):
            if isinstance(data, Extent) and (data.size <= _SMALL or change or not sources.copies(data)):
                data = sources.read(data)
            if change is not None and isinstance(data, bytes):
                data = change(data)
                header = _header(name, len(data))
            pieces.append(header)
            at += len(header)
            if isinstance(data, bytes):
                size = len(data)
                pieces.append(data)
                held += size
            else:
                size = data.size
                _write(file, pieces)
                held = 0
                sources.copy(data, file)
            written.append(Member(name, at, size))
            rest = -size % BLOCK
            pieces.append(bytes(rest))
            at += size + rest
            if held > _BUFFER:
                _write(file, pieces)
                held = 0
    end = at + 2 * BLOCK
    pieces.append(bytes(2 * BLOCK + -end % tarfile.RECORDSIZE))
    _write(file, pieces)
    return written


def _write(file: int, pieces: list[bytes]) -> None:
    """Write all, and forget them."""
    data = memoryview(b"".join(pieces))
    pieces.clear()
    while data:
        data = data[os.write(file, data) :]


def tar_bytes(names: Sequence[str], sizes: np.ndarray) -> np.ndarray:
    """Bytes that each member takes in a tar, its header too.

    Parameters
    ----------
    names, sizes
        Of the members; int64.

    Returns
    -------
    numpy.ndarray
        int64 (members,).
    """
    found: np.ndarray = BLOCK - (-sizes // BLOCK) * BLOCK
    for number, (name, size) in enumerate(zip(names, sizes.tolist(), strict=True)):
        if not _is_plain(name, size):
            found[number] += len(_header(name, size)) - BLOCK
    return found


def _is_plain(name: str, size: int) -> bool:
    return len(name) <= _NAME_BYTES and name.isascii() and size < SIZE_LIMIT


def _headers(entries: Sequence[Entry]) -> Iterator[bytes]:
    """What stands before the bytes of each: most are alike, and made many at a time."""
    for start in range(0, len(entries), _AT_ONCE):
        some = entries[start : start + _AT_ONCE]
        sizes = [len(data) if isinstance(data, bytes) else data.size for _, data, _ in some]
        plain = [_is_plain(each[0], size) for each, size in zip(some, sizes, strict=True)]
        if all(plain):
            yield from _plain_headers([each[0] for each in some], sizes)
            continue
        chosen = [number for number, is_plain in enumerate(plain) if is_plain]
        rows = iter(_plain_headers([some[n].name for n in chosen], [sizes[n] for n in chosen]))
        for each, size, is_plain in zip(some, sizes, plain, strict=True):
            yield next(rows) if is_plain else _header(each.name, size)


def _plain_headers(names: Sequence[str], sizes: Sequence[int]) -> list[bytes]:
    headers = np.tile(_TEMPLATE, (len(names), 1))
    texts = np.array([name.encode("ascii") for name in names], f"S{_NAME_BYTES}")
    headers[:, :_NAME_BYTES] = texts.view(np.uint8).reshape(len(names), _NAME_BYTES)
    headers[:, 124:135] = _octal(np.array(sizes, np.int64), 11)
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
