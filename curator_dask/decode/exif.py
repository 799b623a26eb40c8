"""EXIF, entry by entry, as it lies in a block of bytes: read, and without the place where a photograph was taken."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

#: Tags that lead to the blocks of EXIF's own values and of the place (GPS).
EXIF_BLOCK, GPS_BLOCK = 0x8769, 0x8825
# Bytes of a value by its type; 129 is UTF-8, since EXIF 3.0.
_SIZES = {129: 1, 1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_POINTERS = {3: "H", 4: "I", 13: "I"}
_RATIONAL = (5, 10)
_PLACES = 16  # that a block may lead to; there is one


class ExifError(ValueError):
    """A block that is no EXIF, or whose values lie outside of it."""


class Entry(NamedTuple):
    """A value.

    Attributes
    ----------
    tag, kind
        What it is, and TIFF's number of its type.
    at
        The byte of the entry, of 12.
    start, stop
        Where the value lies, in the entry or elsewhere.
    """

    tag: int
    kind: int
    at: int
    start: int
    stop: int


class Exif:
    """The entries of a block.

    Parameters
    ----------
    block
        From its byte order on.

    Raises
    ------
    ExifError
        It has no byte order, or no first directory.
    """

    def __init__(self, block: bytes | memoryview) -> None:
        self._block = memoryview(block)
        order = {b"II*\0": "<", b"MM\0*": ">"}.get(self._block[:4].tobytes())
        if order is None or self._block.nbytes < 8:
            raise ExifError("no byte order")
        self._order = order
        (self.first,) = struct.unpack_from(order + "I", self._block, 4)
        self.count(self.first)

    def count(self, directory: int) -> int:
        """How many entries the directory at a byte has; ExifError where it does not lie in the block."""
        try:
            (number,) = struct.unpack_from(self._order + "H", self._block, directory)
        except struct.error:
            number = 0xFFFF
        if directory + 2 + 12 * number > self._block.nbytes:
            raise ExifError("a directory outside of the block")
        return int(number)

    def entries(self, directory: int) -> Iterator[Entry]:
        """Those of the directory at a byte; `Entry.stop` may lie outside of the block."""
        for at in range(directory + 2, directory + 2 + 12 * self.count(directory), 12):
            tag, kind, number = struct.unpack_from(self._order + "HHI", self._block, at)
            size = _SIZES.get(kind, 0) * number
            (start,) = (at + 8,) if size <= 4 else struct.unpack_from(self._order + "I", self._block, at + 8)
            yield Entry(tag, kind, at, start, start + size)

    def find(self, directory: int, *tags: int) -> dict[int, Entry]:
        """The first entry of each of some tags; ExifError where the value of one lies outside."""
        found: dict[int, Entry] = {}
        for entry in self.entries(directory):
            if entry.tag in tags:
                if entry.stop > self._block.nbytes:
                    raise ExifError("a value outside of the block")
                found.setdefault(entry.tag, entry)
        return found

    def value(self, entry: Entry) -> bytes:
        """The bytes of a value."""
        return self._block[entry.start : entry.stop].tobytes()

    def pointer(self, entry: Entry | None) -> int | None:
        """The byte of the directory that an entry leads to; None: to none."""
        if entry is None or entry.kind not in _POINTERS or entry.stop <= entry.start:
            return None
        (at,) = struct.unpack_from(self._order + _POINTERS[entry.kind], self._block, entry.start)
        return int(at) or None

    def is_number(self, entry: Entry) -> bool:
        """Whether a value of fractions is one: some cameras write 0/0 where they know no place."""
        parts = self.value(entry)
        if entry.kind not in _RATIONAL:
            return any(parts)
        return any(
            bottom for _, bottom in struct.iter_unpack(self._order + "II", parts[: len(parts) // 8 * 8])
        )


def without_gps(block: bytes) -> bytes:
    """The block without the place: its values are zero, and nothing leads to them; all else stays where it was.

    Raises
    ------
    ExifError
        That cannot be done without harm to other values, or it cannot be read.
    """
    made = bytearray(block)
    exif = Exif(block)
    count, number = exif.count(exif.first), struct.Struct(exif._order + "H")
    places = [entry for entry in exif.entries(exif.first) if entry.tag == GPS_BLOCK]
    if len(places) > _PLACES:
        raise ExifError(f"{len(places):,} places")
    kept = range(exif.first, exif.first + 2 + 12 * count + 4)
    extents: list[tuple[int, int]] = []
    for directory in sorted({each for each in map(exif.pointer, places) if each is not None}):
        extents.append((directory, directory + 2 + 12 * exif.count(directory) + 4))
        extents += [(each.start, each.stop) for each in exif.entries(directory)]
    done = 0
    for start, stop in sorted(extents):  # values may lie in one another
        if start < kept.stop and min(stop, len(made)) > kept.start:
            raise ExifError("the place lies among other values")
        start, stop = max(start, done), min(stop, len(made))
        if start < stop:
            made[start:stop] = bytes(stop - start)
            done = stop
    # The entry goes, those behind it and what leads to the next directory move up.
    for entry in reversed(places):
        end = exif.first + 2 + 12 * count + 4
        made[entry.at : end] = made[entry.at + 12 : end] + bytes(12)
        number.pack_into(made, exif.first, number.unpack_from(made, exif.first)[0] - 1)
    return bytes(made)
