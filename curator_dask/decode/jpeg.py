"""The markers of a JPEG, walked without decoding it."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
"""Markers of a JPEG's frame header (SOF)."""
LOSSLESS = frozenset([0xC3, 0xC7, 0xCB, 0xCF])


def segment_end(view: memoryview, at: int) -> int:
    """The byte behind the segment at a byte, by the length that it names; IndexError where that is not there."""
    return at + 2 + (view[at + 2] << 8 | view[at + 3])


def segments(view: memoryview) -> Iterator[tuple[int, int]]:
    """Each marker of a JPEG and its byte; the last is the scan's or the end's, unless something else comes first."""
    at = 2
    while view[at] == 0xFF:
        marker = view[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # stand alone, without a length
            at += 2
        else:
            yield marker, at
            if marker in (0xDA, 0xD9):
                return
            at = segment_end(view, at)


# In a scan 0xff stands before a stuffed zero or a restart marker, or it begins what follows the scan.
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
# Tables, the next scan of a progressive image, its number of lines, application data, comments.
_BETWEEN_SCANS = frozenset([0xC4, 0xCC, 0xDA, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)])


def has_sound_scans(view: memoryview, at: int) -> bool:
    """Whether the markers from the first scan at byte `at` to the end of the image are those that may be there."""
    while view[at + 1] in _BETWEEN_SCANS:
        found = _AFTER_SCAN.search(view, segment_end(view, at))
        if found is None:
            return False
        at = found.start()
    return view[at + 1] == 0xD9


def parts_from_scan(view: memoryview, at: int) -> Iterator[tuple[int, int, int]]:
    """The parts of an image from its first scan at byte `at` on.

    Yields
    ------
    Marker, first byte, and the byte behind all that belongs to it: of a scan what it holds. The last is the image's end
    (0xD9), if it has one; what lies behind that is another's.
    """
    while at + 4 <= view.nbytes and view[at + 1] != 0xD9:
        found = _AFTER_SCAN.search(view, segment_end(view, at))
        stop = view.nbytes if found is None else found.start()
        yield view[at + 1], at, stop
        at = stop
    if view[at : at + 2].tobytes() == b"\xff\xd9":
        yield 0xD9, at, at + 2
    elif at < view.nbytes:
        yield view[at + 1] if at + 1 < view.nbytes else 0xFF, at, view.nbytes


def has_whole_blocks(view: memoryview, at: int) -> bool:
    """Whether the scan at byte `at` says that it holds all coefficients; it must where a JPEG is not progressive."""
    selection = at + 5 + 2 * view[at + 4]
    return view[selection : selection + 3].tobytes() == b"\0\x3f\0"


def frame_of(view: memoryview) -> tuple[int, int, int, int] | None:
    """Marker, bits a sample, height and width of a JPEG's frame; None where it has none."""
    try:
        for marker, at in segments(view):
            if marker in FRAMES:
                return (marker, *struct.unpack_from(">BHH", view, at + 4))
    except (IndexError, struct.error):
        pass
    return None
