"""Writing a tar of samples: members copied by range from other tars, byte for byte, and the same tar each time.

The result is, to the bit, what Python's `tarfile` writes of the same members with time 0 and no owner, in the format of
POSIX.1-2001: plain headers where they suffice, pax records where a name or a size needs them.
"""

from __future__ import annotations

import ctypes
import os
import tarfile
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from curator_dask.webdataset.headers import BLOCK, SIZE_LIMIT
from curator_dask.webdataset.ranges import Extent, Ranges, Reading, is_ahead

_NAME_BYTES = 100  # that a plain header holds
_AT_ONCE = 1 << 21  # bytes that are put together; a member that is larger the kernel copies from file to file
_WRITE = (
    1 << 18
)  # bytes a call: for more the kernel looks for memory in one piece, which takes long where it is full
_EARLY = 1 << 23  # bytes that the kernel is told together to write to the disk
_THREADS = min(4, os.cpu_count() or 1)  # that make members anew, of one tar
_BEGUN = 2 * _THREADS  # members that are made anew at a time, or wait for it
_BEGUN_BYTES = 1 << 26  # of members that are held in memory till it is their turn, about
_NOTHING = bytes(BLOCK)
_BEGIN_WRITE = 2  # SYNC_FILE_RANGE_WRITE of linux/fs.h
_TEMPLATE = np.frombuffer(tarfile.TarInfo("").tobuf(tarfile.PAX_FORMAT), np.uint8)
# What the checksum takes of all other fields, and of its own for blanks.
_REST = int(_TEMPLATE.sum()) - int(_TEMPLATE[124:135].sum()) - int(_TEMPLATE[148:156].sum()) + 8 * ord(" ")


@dataclass
class Contents:
    """The members of a tar that is to be written, in their order.

    Attributes
    ----------
    names
        In the tar; bytes that are not UTF-8 as surrogates.
    urls
        Of the tars and other files that bytes come from.
    sources
        int64 (members,): of each, the place in `urls` of the file that it is in; -1: its bytes are in `given`.
    offsets, sizes
        int64 (members,): where it is there. Bytes.
    given
        Bytes of members that are in no file, by place.
    changes
        What is done to bytes of files, by place; the others are copied.
    made
        What makes other members of members in files, by place: of name and bytes name and bytes, which may take long.
        It is called in threads, several at a time; `names` has the new ones when the tar is written.
    """

    names: list[str]
    urls: Sequence[str]
    sources: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    given: dict[int, bytes] = field(default_factory=dict)
    changes: Mapping[int, Callable[[bytes], bytes]] = field(default_factory=dict)
    made: Mapping[int, Callable[[str, bytes], tuple[str, bytes]]] = field(default_factory=dict)

    @classmethod
    def of_bytes(cls, members: Sequence[tuple[str, bytes]]) -> Contents:
        """Of names and bytes."""
        none = np.full(len(members), -1, np.int64)
        given = {place: data for place, (_, data) in enumerate(members)}
        return cls([name for name, _ in members], (), none, none, none, given)

    def extent(self, place: int) -> Extent:
        """Where a member's bytes are."""
        return Extent(self.urls[self.sources[place]], int(self.offsets[place]), int(self.sizes[place]))


def write_tar(
    file: int, contents: Contents, ranges: Ranges, *, early: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Write a tar.

    Parameters
    ----------
    file
        Descriptor of a new local file, open for writing.
    contents
        What is to be in it.
    ranges
        Gives the bytes that lie in other files.
    early
        The file is to be synced: the disk begins to write while more is put together.

    Returns
    -------
    offsets, sizes
        int64 (members,): of the bytes of each, where they now are.

    Raises
    ------
    ShardError
        The bytes of a member cannot be had.
    OSError
        The file cannot be written.
    """
    used = np.unique(contents.sources)
    urls = [contents.urls[source] for source in used.tolist() if source >= 0]
    # What is not read to its place from a file on this machine.
    remote = np.array([*map(is_ahead, contents.urls), False])[contents.sources]
    ahead = [contents.extent(place) for place in np.flatnonzero(remote).tolist()]
    with ranges.reading(urls, ahead) as reading:
        return _Writing(file, contents, reading, remote, early).write()


def read_members(contents: Contents, ranges: Ranges) -> Generator[bytes, None, None]:
    """The bytes of all members in their order, as they would be in the tar; some are held at a time.

    Parameters
    ----------
    contents
        The members; `names` has the new name of a member once its bytes are given.
    ranges
        Gives the bytes that lie in other files. That these are as they were is known when all members are given.

    Raises
    ------
    ShardError
        The bytes of a member cannot be had.
    """
    urls = [contents.urls[source] for source in np.unique(contents.sources).tolist() if source >= 0]
    places = range(len(contents.names))
    ahead = [
        contents.extent(place)
        for place in places
        if contents.sources[place] >= 0 and is_ahead(contents.urls[contents.sources[place]])
    ]
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="curator-making")
    try:
        with ranges.reading(urls, ahead) as reading:
            yield from _through_memory(contents, places, reading, pool)
    finally:
        pool.shutdown(cancel_futures=True)


def _through_memory(
    contents: Contents, places: Sequence[int], reading: Reading, pool: ThreadPoolExecutor
) -> Iterator[bytes]:
    """The bytes of some members, in order; those that are made anew are begun ahead of their turn."""
    begun: deque[tuple[int, int, bytes | Future[tuple[str, bytes]]]] = deque()
    making = held = 0
    for place in (*places, None):
        if place is not None:
            data = (
                contents.given[place] if contents.sources[place] < 0 else reading.read(contents.extent(place))
            )
            if place in contents.changes:
                data = contents.changes[place](data)
            make = contents.made.get(place)
            made = data if make is None else pool.submit(make, contents.names[place], data)
            begun.append((place, len(data), made))
            making += make is not None
            held += len(data)
        while begun and (place is None or not making or making >= _BEGUN or held >= _BEGUN_BYTES):
            first, size, found = begun.popleft()
            held -= size
            if isinstance(found, Future):
                making -= 1
                contents.names[first], found = found.result()
            yield found


class _Writing:
    """A tar that is being written: many members at a time, in one piece of memory."""

    def __init__(
        self, file: int, contents: Contents, reading: Reading, remote: np.ndarray, early: bool
    ) -> None:
        self._early, self._begun = early, 0
        self._file, self._contents, self._reading = file, contents, reading
        self._in_memory = remote | (contents.sources < 0)  # what is not read to its place in the piece
        self._in_memory[[*contents.changes, *contents.made]] = True
        self._sizes = contents.sizes.copy()
        for place, data in contents.given.items():
            self._sizes[place] = len(data)
        self._offsets = np.zeros(len(self._sizes), np.int64)
        self._blocks = np.empty((_AT_ONCE // BLOCK, BLOCK), np.uint8)
        self._end = 0

    def write(self) -> tuple[np.ndarray, np.ndarray]:
        """Do it; returns where the bytes of each member are."""
        pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="curator-making")
        places = np.flatnonzero(self._in_memory).tolist()
        self._through_memory = _through_memory(self._contents, places, self._reading, pool)
        try:
            return self._write()
        finally:
            pool.shutdown(cancel_futures=True)

    def _write(self) -> tuple[np.ndarray, np.ndarray]:
        totals = np.cumsum(_padded(self._sizes) + BLOCK)
        first, count = 0, len(totals)
        while first < count:
            before = int(totals[first - 1]) if first else 0
            stop = max(first + 1, int(np.searchsorted(totals, before + _AT_ONCE, side="right")))
            self._write_some(first, stop)
            if self._early and self._end - self._begun >= _EARLY:
                _begin_write(self._file, self._begun, self._end - self._begun)
                self._begun = self._end
            first = stop
        end = bytes(2 * BLOCK + -(self._end + 2 * BLOCK) % tarfile.RECORDSIZE)
        self._put(memoryview(end))
        return self._offsets, self._sizes

    def _write_some(self, first: int, stop: int) -> None:
        some = slice(first, stop)
        held = self._held(first, stop)
        sizes, names = self._sizes[some], self._contents.names[some]
        plain, headers, others = _headers(names, sizes)
        lengths = np.full(len(sizes), BLOCK)
        for number, header in others.items():
            lengths[number] = len(header)
        ends = np.cumsum(lengths + _padded(sizes))
        starts = ends - _padded(sizes)  # of the bytes, from the beginning of the piece
        self._offsets[some] = starts + self._end
        by_kernel = stop == first + 1 and not self._in_memory[first] and sizes[0] > _AT_ONCE
        size = int(lengths[0] if by_kernel else ends[-1])
        if len(self._blocks) * BLOCK < size:
            self._blocks = np.empty((size // BLOCK, BLOCK), np.uint8)
        blocks = self._blocks
        piece = blocks.reshape(-1).data[:size]
        if not by_kernel:
            self._read(first, starts, sizes, piece)
            for end in (starts + sizes).tolist():
                piece[end : end + -end % BLOCK] = _NOTHING[: -end % BLOCK]
        blocks[starts[plain] // BLOCK - 1] = headers
        for number, header in others.items():
            piece[starts[number] - len(header) : starts[number]] = header
        for number, data in held.items():
            piece[starts[number] : starts[number] + len(data)] = data
        self._put(piece)
        if by_kernel:
            self._reading.copy(self._contents.extent(first), self._file)
            self._put(memoryview(bytes(-int(sizes[0]) % BLOCK)))
        self._end += int(ends[-1])

    def _held(self, first: int, stop: int) -> dict[int, bytes]:
        """Bytes of members, by place after the first, that are not read to their place in the piece."""
        held = {}
        for place in (np.flatnonzero(self._in_memory[first:stop]) + first).tolist():
            data = next(self._through_memory)
            self._sizes[place] = len(data)
            held[place - first] = data
        return held

    def _read(self, first: int, starts: np.ndarray, sizes: np.ndarray, piece: memoryview) -> None:
        """Read members to their places; those that lie there as they will lie here all at once."""
        contents = self._contents
        chosen = np.flatnonzero(~self._in_memory[first : first + len(sizes)] & (sizes > 0))
        if not len(chosen):
            return
        places = chosen + first
        sources, offsets = contents.sources[places], contents.offsets[places]
        shifts = starts[chosen] - offsets
        new = np.flatnonzero((np.diff(shifts) != 0) | (np.diff(sources) != 0)) + 1
        begins = [0, *new.tolist()]
        for begin, last in zip(begins, [*(new - 1).tolist(), len(chosen) - 1], strict=True):
            start, stop = int(starts[chosen[begin]]), int(starts[chosen[last]] + sizes[chosen[last]])
            self._reading.read_into(contents.urls[sources[begin]], int(offsets[begin]), piece[start:stop])

    def _put(self, data: memoryview) -> None:
        while data:
            data = data[os.write(self._file, data[:_WRITE]) :]


def _begin_write(file: int, start: int, size: int) -> None:
    """Have the kernel begin to write a range of a file to its disk; whether that went well, a sync says."""
    ctypes.CDLL(None).sync_file_range(
        file, ctypes.c_int64(start), ctypes.c_int64(size), ctypes.c_uint(_BEGIN_WRITE)
    )


def _padded(sizes: np.ndarray) -> np.ndarray:
    return -(-sizes // BLOCK) * BLOCK


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


def _headers(names: Sequence[str], sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[int, bytes]]:
    """What stands before the bytes of each.

    Returns
    -------
    plain, headers, others
        Which have a plain one, these (uint8), and those of the others by place.
    """
    places = range(len(names))
    if "".join(names).isascii() and max(map(len, names)) <= _NAME_BYTES and sizes.max() < SIZE_LIMIT:
        plain = np.arange(len(names))
    else:
        plain = np.array([at for at in places if _is_plain(names[at], int(sizes[at]))], np.int64)
    others = {at: _header(names[at], int(sizes[at])) for at in sorted({*places} - {*plain.tolist()})}
    return plain, _plain_headers([names[at] for at in plain.tolist()], sizes[plain]), others


def _plain_headers(names: Sequence[str], sizes: np.ndarray) -> np.ndarray:
    """uint8 (names, 512)."""
    headers = np.tile(_TEMPLATE, (len(names), 1))
    texts = np.array([name.encode("ascii") for name in names], f"S{_NAME_BYTES}")
    headers[:, :_NAME_BYTES] = texts.view(np.uint8).reshape(len(names), _NAME_BYTES)
    headers[:, 124:135] = _octal(sizes, 11)
    sums = sum(
        headers[:, start:stop].sum(axis=1, dtype=np.uint32) for start, stop in ((0, _NAME_BYTES), (124, 135))
    )
    headers[:, 148:154] = _octal(sums + _REST, 6)
    return headers


def _octal(numbers: np.ndarray, digits: int) -> np.ndarray:
    """uint8 (numbers, digits): as text."""
    shifts = 3 * np.arange(digits - 1, -1, -1)
    return (((numbers[:, None] >> shifts) & 7) + ord("0")).astype(np.uint8)


def _header(name: str, size: int) -> bytes:
    """Of any member, pax records before it where they are needed."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
