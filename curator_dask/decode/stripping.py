"""Image files without their metadata: the pixels stay byte for byte as they are encoded, and are seen as they were.

What decides how the picture looks stays: its orientation, ICC profile, what says of a JPEG how its colours are stored,
of a PNG which colours it has and what is clear, and frames of animations. What is not known goes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from curator_dask.decode.embedded import (
    EXIF_MARK,
    MORE_XMP_MARK,
    MOST_PACKETS,
    PHOTOSHOP_MARK,
    RAW,
    XMP_KEYWORD,
    XMP_MARK,
    iptc_records,
    photoshop_resources,
    png_text,
    riff_chunks,
)
from curator_dask.decode.exif import ExifError, without_gps
from curator_dask.decode.jpeg import parts_from_scan, segment_end, segments
from curator_dask.decode.orientation import stored_orientation, with_orientation
from curator_dask.decode.sniff import Encoded, buffer_of, png_chunk, png_chunks, suffix_for
from curator_dask.decode.xmp import Name, without
from curator_dask.errors import ConfigError, ImageError

#: What may be taken out.
METADATA_OUT = ("all", "location")

_EXIF = "http://ns.adobe.com/exif/1.0/"
_PLACES = {
    ("http://ns.adobe.com/photoshop/1.0/", name) for name in ("City", "State", "Country")
} | {
    ("http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/", name) for name in ("Location", "CountryCode")
} | {
    ("http://iptc.org/std/Iptc4xmpExt/2008-02-29/", name)
    for name in ("LocationShown", "LocationCreated", "City", "Sublocation", "ProvinceState", "CountryName")
}  # fmt: skip
# Of IPTC's records: codes and names of locations, city, sublocation, province, and the country's code and name.
_IPTC_PLACES = frozenset((2, number) for number in (26, 27, 90, 92, 95, 100, 101))

# Of a PNG: frames, what is clear, colours, how bright they may be, how large a pixel is. Critical chunks stay, too.
_PNG_STAYS = frozenset(
    b"acTL fcTL fdAT tRNS bKGD cHRM gAMA iCCP sRGB cICP sBIT mDCV mDCv cLLI cLLi pHYs hIST".split()
)
_WEBP_STAYS = frozenset([b"VP8X", b"ICCP", b"ANIM", b"ANMF", b"ALPH", b"VP8 ", b"VP8L"])
_SAYS_EXIF, _SAYS_XMP = 0x08, 0x04  # of VP8X
_JFIF, _ICC, _ADOBE = b"JFIF\0", b"ICC_PROFILE\0", b"Adobe"


def check_metadata_out(what: str | None) -> None:
    """Raise ConfigError for what is not one of `METADATA_OUT`, nor None."""
    if what is not None and what not in METADATA_OUT:
        raise ConfigError(
            f"strip_metadata={what!r} (--strip-metadata): expected {' or '.join(map(repr, METADATA_OUT))}"
        )


def strip(data: Encoded, what: str = "all") -> bytes:
    """A JPEG, PNG or WebP without its metadata; no pixel is decoded.

    Parameters
    ----------
    data
        The file.
    what
        ``"all"``: EXIF but for the orientation, XMP, IPTC, texts and comments, thumbnails, C2PA manifests, and what is
        not known. ``"location"``: of EXIF the place (GPS), of XMP and IPTC coordinates and names of places; C2PA
        manifests, which would no longer be true, and what is not known. In both what lies behind the image: further
        pictures, such as gain maps, and films.

    Returns
    -------
    The same bytes where there is nothing to take out.

    Raises
    ------
    ImageError
        With the reason why it stays as it is: it is of another format, or is damaged.
    """
    check_metadata_out(what)
    view = buffer_of(data)
    start = view[:16].tobytes()
    parts: Iterable[bytes]
    try:
        if start.startswith(b"\xff\xd8\xff"):
            parts = _jpeg(view, what)
        elif start.startswith(b"\x89PNG\r\n\x1a\n"):
            parts = _png(view, what)
        elif start.startswith(b"RIFF") and start[8:12] == b"WEBP":
            parts = _webp(view, what)
        else:
            raise ImageError(
                f"metadata stays in {suffix_for(data).upper()}: only JPEG, PNG and WebP are taken apart"
            )
        made = b"".join(parts)
    except (IndexError, struct.error):
        raise ImageError(
            "metadata stays: the file is damaged, so that it cannot be told from the rest"
        ) from None
    before = view.tobytes()
    if made == before:
        return before
    if (number := stored_orientation(data)) != stored_orientation(made):
        if what != "all":  # what says it could not be told from the rest
            return strip(data)
        if number is not None:
            upright = int(number) if number in range(1, 9) else 1
            made = bytes(buffer_of(with_orientation(made, upright)))
    return before if made == before else made


def _goes(name: Name) -> bool:
    """Whether a property of XMP says a place."""
    return name in _PLACES or (name[0] == _EXIF and name[1].startswith("GPS"))


def _jpeg(view: memoryview, what: str) -> Iterator[bytes]:
    """Every segment that stays, also between scans; scans as they are; nothing behind the image."""
    yield b"\xff\xd8"
    scan = 0
    for marker, scan in segments(view):
        if marker == 0xDA:
            break
        if marker == 0xD9 or (stop := segment_end(view, scan)) > view.nbytes:
            raise IndexError("no scan")
        yield from _segment(marker, view[scan:stop].tobytes(), what)
    else:
        raise IndexError("no scan")
    parts = [*parts_from_scan(view, scan)]
    if parts[-1][0] != 0xD9 and any(_is_metadata(marker) for marker, *_ in parts):
        raise IndexError("no end, so that what looks like a segment may be a part of a damaged scan")
    for marker, start, stop in parts:
        if _is_metadata(marker):  # between the scans of a progressive image
            yield from _segment(marker, view[start : min(stop, segment_end(view, start))].tobytes(), what)
        else:
            yield view[start:stop].tobytes()


def _is_metadata(marker: int) -> bool:
    """Whether a segment has application data, or a comment."""
    return 0xE0 <= marker <= 0xEF or marker == 0xFE


def _segment(marker: int, segment: bytes, what: str) -> Iterator[bytes]:
    """A segment as it stays; nothing where it goes."""
    content = segment[4:]
    if not _is_metadata(marker):
        yield segment
    elif marker == 0xE0 and content.startswith(_JFIF) and len(content) >= 14:
        # Its thumbnail goes.
        yield segment if len(content) == 14 else b"\xff\xe0\0\x10" + content[:12] + b"\0\0"
    elif (marker == 0xE2 and content.startswith(_ICC)) or (marker == 0xEE and content.startswith(_ADOBE)):
        yield segment
    elif what == "location":
        new = _without_place(marker, content)
        if new is not None:
            yield segment[:4] + new


def _without_place(marker: int, content: bytes) -> bytes | None:
    """What a segment of metadata has without the place, of the same length; None: it goes."""
    if marker == 0xE1 and content.startswith(EXIF_MARK):
        return content[:6] + exif if (exif := _exif(content[6:])) else None
    if marker == 0xE1 and content.startswith(XMP_MARK):
        packet = without(content[len(XMP_MARK) :], _goes)
        return None if packet is None else XMP_MARK + packet
    if marker == 0xE1 and content.startswith(MORE_XMP_MARK):
        return None  # a part of a packet
    if marker == 0xED and content.startswith(PHOTOSHOP_MARK):
        return PHOTOSHOP_MARK + _photoshop(content[len(PHOTOSHOP_MARK) :])
    return content if marker == 0xFE else None


def _exif(block: bytes) -> bytes | None:
    try:
        return without_gps(block)
    except (ExifError, struct.error):
        return None


def _photoshop(block: bytes) -> bytes:
    """With places blank in IPTC's records."""
    made = bytearray(block)
    for _, first, last in photoshop_resources(block):
        for record, number, start, stop in iptc_records(block[first:last]):
            if (record, number) in _IPTC_PLACES:
                made[first + start : first + stop] = b" " * (stop - start)
    return bytes(made)


def _png(view: memoryview, what: str) -> Iterator[bytes]:
    yield view[:8].tobytes()
    packets = 0
    for name, chunk in png_chunks(view):
        if len(chunk) < 12:
            raise IndexError
        if name in _PNG_STAYS or not name[0] & 0x20:  # a capital letter: it is critical
            yield chunk.tobytes()
        elif what == "location":
            packets += name == b"iTXt" and chunk[8:26].tobytes() == XMP_KEYWORD.encode() + b"\0"
            if packets <= MOST_PACKETS:
                yield from _png_without_place(name, chunk)
        if name == b"IEND":
            return
    raise IndexError


def _png_without_place(name: bytes, chunk: memoryview) -> Iterator[bytes]:
    content = chunk[8:-4].tobytes()
    if name == b"eXIf":
        if (exif := _exif(content)) is not None:
            yield chunk.tobytes() if exif == content else png_chunk(name, exif)
    elif name in (b"tEXt", b"zTXt", b"iTXt"):
        keyword = content.partition(b"\0")[0].decode("latin-1")
        if keyword == XMP_KEYWORD:
            read = png_text(name, content)
            packet = None if read is None else without(read[1], _goes)
            if read is not None and packet == read[1]:
                yield chunk.tobytes()
            elif packet is not None:
                yield png_chunk(b"iTXt", keyword.encode() + b"\0\0\0\0\0" + packet)
        elif not keyword.startswith(RAW) and "gps" not in keyword.lower():
            yield chunk.tobytes()
    elif name == b"tIME":
        yield chunk.tobytes()


def _webp(view: memoryview, what: str) -> list[bytes]:
    (size,) = struct.unpack_from("<I", view, 4)
    end = size + 8
    if end > view.nbytes:
        raise IndexError
    kept: list[tuple[bytes, bytes]] = []
    for name, content in riff_chunks(view[:end]):
        if name in _WEBP_STAYS:
            kept.append((name, content.tobytes()))
        elif what == "location" and name in (b"EXIF", b"XMP "):
            block = content.tobytes()
            lead = b"Exif\0\0" if block.startswith(b"Exif\0\0") else b""
            new = _exif(block[len(lead) :]) if name == b"EXIF" else without(block, _goes)
            if new is not None:
                kept.append((name, lead + new))
    names = {name for name, _ in kept}
    gone = (b"EXIF" not in names) * _SAYS_EXIF | (b"XMP " not in names) * _SAYS_XMP
    chunks = []
    for name, block in kept:
        if name == b"VP8X":
            block = bytes([block[0] & ~gone]) + block[1:]
        chunks.append(name + struct.pack("<I", len(block)) + block + b"\0" * (len(block) % 2))
    return [b"RIFF", struct.pack("<I", 4 + sum(map(len, chunks))), b"WEBP", *chunks]
