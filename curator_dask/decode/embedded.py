"""The metadata that lies in an image file, found without decoding a pixel: EXIF, XMP, IPTC, texts, a C2PA manifest."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from curator_dask.decode.exif import Exif
from curator_dask.decode.jpeg import segment_end, segments
from curator_dask.decode.sniff import Encoded, buffer_of, open_image, png_chunks

#: Bytes of a text above which it is not read.
MOST_TEXT = 1 << 20
#: Packets of XMP of a file above which no more are read; there is one.
MOST_PACKETS = 16
_TEXTS, _MOST_TEXTS = 1000, 1 << 23  # of a file, how many and their bytes

XMP_MARK = b"http://ns.adobe.com/xap/1.0/\0"
MORE_XMP_MARK = b"http://ns.adobe.com/xmp/extension/\0"
EXIF_MARK = b"Exif\0"
PHOTOSHOP_MARK = b"Photoshop 3.0\0"
XMP_KEYWORD = "XML:com.adobe.xmp"
#: Begins the keyword of a PNG's text in which ImageMagick puts a block that PNG had no place for, in hexadecimal.
RAW = "Raw profile type "

_IPTC = 0x0404  # of Photoshop's resources
_TIFF_XMP, _TIFF_IPTC, _TIFF_PHOTOSHOP, _TIFF_C2PA = 700, 33723, 34377, 0xCD41
_BMFF_C2PA = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
_GIF_C2PA = b"\x21\xff\x0bC2PA_GIF"
_WHITE = re.compile(rb"\s+")


@dataclass
class Embedded:
    """What lies in a file.

    Attributes
    ----------
    exif
        The block, from its byte order on.
    xmp
        Packets: the main one, and one of what it had no room for.
    iptc
        IPTC's records (IIM).
    texts
        Of a PNG by keyword; comments of other files as ``"comment"``.
    c2pa
        The manifest store; empty where it is named only.
    unread
        Something is there that is too large, or damaged.
    cut
        It could not be looked through to its end.
    """

    exif: bytes | memoryview | None = None
    xmp: list[bytes] = field(default_factory=list)
    iptc: bytes | None = None
    texts: dict[str, str] = field(default_factory=dict)
    c2pa: bytes | None = None
    unread: bool = False
    cut: bool = False


def embedded(data: Encoded) -> Embedded:
    """What lies in an image file: of JPEG, PNG and WebP in all of its headers; of other formats what Pillow knows.

    Of a JPEG what comes after its first scan is not looked at. Nothing is raised: what cannot be read is said to be
    `Embedded.unread`.
    """
    view = buffer_of(data)
    start = view[:16].tobytes()
    found = Embedded()
    try:
        if start.startswith(b"\xff\xd8\xff"):
            _jpeg(view, found)
        elif start.startswith(b"\x89PNG\r\n\x1a\n"):
            _png(view, found)
        elif start.startswith(b"RIFF") and start[8:12] == b"WEBP":
            _webp(view, found)
        elif start[:4] in (b"II*\0", b"MM\0*"):
            _tiff(view, found)
        else:
            _others(view, found)
    except Exception:  # of Pillow, of any type, and what ends too early
        found.unread = found.cut = True
    return found


def _jpeg(view: memoryview, found: Embedded) -> None:
    more: dict[bytes, tuple[int, dict[int, bytes]]] = {}
    photoshop, exif, boxes = list[bytes](), list[bytes](), dict[int, list[tuple[int, bytes]]]()
    try:
        for marker, at in segments(view):
            if not (0xE1 <= marker <= 0xED or marker == 0xFE):
                continue
            content = view[at + 4 : segment_end(view, at)].tobytes()
            if marker == 0xE1 and content.startswith(EXIF_MARK):
                exif.append(content[6:])
            elif marker == 0xE1 and content.startswith(XMP_MARK):
                _add_xmp(found, content[len(XMP_MARK) :])
            elif marker == 0xE1 and content.startswith(MORE_XMP_MARK):
                head = len(MORE_XMP_MARK)
                length, offset = struct.unpack_from(">II", content, head + 32)
                more.setdefault(content[head : head + 32], (length, {}))[1][offset] = content[head + 40 :]
            elif marker == 0xED and content.startswith(PHOTOSHOP_MARK):
                photoshop.append(content[len(PHOTOSHOP_MARK) :])
            elif marker == 0xEB and content.startswith(b"JP"):
                number, packet = struct.unpack_from(">HI", content, 2)
                boxes.setdefault(number, []).append((packet, content[8:]))
            elif marker == 0xFE:
                _add_text(found, "comment", content)
    except (IndexError, struct.error):
        found.unread = found.cut = True
    for length, parts in more.values():
        whole = b"".join(parts[offset] for offset in sorted(parts))
        found.unread |= len(whole) != length
        _add_xmp(found, whole)
    found.exif = b"".join(exif) if exif else None
    found.iptc = iptc_in(b"".join(photoshop))
    for parts_of in boxes.values():
        box = _box(parts_of)
        if b"c2pa" in box[:64]:
            found.c2pa = box


def _box(parts: list[tuple[int, bytes]]) -> bytes:
    """A JUMBF box of several segments, each of which begins with the head of the whole box."""
    (_, first), *others = sorted(parts, key=lambda part: part[0])
    head = 16 if first[:4] == b"\0\0\0\1" else 8
    return first + b"".join(part[head:] for _, part in others)


def _png(view: memoryview, found: Embedded) -> None:
    room = _MOST_TEXTS
    for name, chunk in png_chunks(view):
        content = chunk[8:-4].tobytes() if name in (b"eXIf", b"caBX", b"tEXt", b"zTXt", b"iTXt") else b""
        if name == b"eXIf":
            found.exif = content.removeprefix(b"Exif\0\0")
        elif name == b"caBX":
            found.c2pa = content
        elif content and room > 0:
            room -= _png_text(name, content, found)
        elif content:
            found.unread = True
        if name == b"IEND":
            return


def _png_text(name: bytes, content: bytes, found: Embedded) -> int:
    """Take what a chunk of text says; returns its bytes."""
    read = png_text(name, content)
    if read is None:
        found.unread = True
        return MOST_TEXT
    keyword, text = read
    if keyword == XMP_KEYWORD:
        _add_xmp(found, text)
    elif keyword.startswith(RAW):
        _raw_profile(keyword.removeprefix(RAW), text, found)
    else:
        _add_text(found, keyword, text, "utf-8" if name == b"iTXt" else "")
    return len(text)


def png_text(name: bytes, content: bytes) -> tuple[str, bytes] | None:
    """Keyword and text of a chunk of a PNG; None where it cannot be read, or is too large."""
    keyword, _, rest = content.partition(b"\0")
    packed = name == b"zTXt"
    if name == b"iTXt":
        packed = rest[:1] == b"\1"
        parts = rest[2:].split(b"\0", 2)  # the language, and the keyword in it
        if len(parts) < 3:
            return None
        rest = parts[2]
    elif packed:
        rest = rest[1:]
    if packed:
        unpacking = zlib.decompressobj()
        try:
            rest = unpacking.decompress(rest, MOST_TEXT + 1)
        except zlib.error:
            return None
    return None if len(rest) > MOST_TEXT else (keyword.decode("latin-1"), rest)


def _raw_profile(kind: str, text: bytes, found: Embedded) -> None:
    """A block in hexadecimal, below its name and its length."""
    lines = text.strip().split(b"\n", 2)
    try:
        block = bytes.fromhex(_WHITE.sub(b"", lines[2]).decode("ascii"))
    except (IndexError, ValueError):
        found.unread = True
        return
    kind = kind.lower()
    if block.startswith(XMP_MARK) or kind == "xmp":
        _add_xmp(found, block.removeprefix(XMP_MARK))
    elif kind in ("exif", "app1"):
        found.exif = block.removeprefix(b"Exif\0\0")
    elif kind in ("iptc", "8bim"):
        found.iptc = iptc_in(block) if block.startswith(b"8BIM") else block


def _webp(view: memoryview, found: Embedded) -> None:
    for name, content in riff_chunks(view):
        if name == b"EXIF":
            found.exif = content.tobytes().removeprefix(b"Exif\0\0")
        elif name == b"XMP ":
            _add_xmp(found, content.tobytes())
        elif name == b"C2PA":
            found.c2pa = content.tobytes()


def riff_chunks(view: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """The chunks of a WebP, as far as they are there: the name of each, and its bytes without length and padding."""
    at = 12
    while at + 8 <= view.nbytes:
        name, length = struct.unpack_from("<4sI", view, at)
        yield name, view[at + 8 : at + 8 + length]
        at += 8 + length + length % 2


def _tiff(view: memoryview, found: Embedded) -> None:
    """A TIFF is itself what EXIF is a piece of."""
    exif = Exif(view)
    tags = exif.find(exif.first, _TIFF_XMP, _TIFF_IPTC, _TIFF_PHOTOSHOP, _TIFF_C2PA)
    said = {tag: exif.value(entry) for tag, entry in tags.items()}
    found.exif = view
    found.xmp += [said[_TIFF_XMP]] if _TIFF_XMP in said else []
    found.iptc = said.get(_TIFF_IPTC) or iptc_in(said.get(_TIFF_PHOTOSHOP, b""))
    found.c2pa = said.get(_TIFF_C2PA)


def _others(view: memoryview, found: Embedded) -> None:
    with open_image(view) as image:
        info, form = image.info, image.format
    if isinstance(exif := info.get("exif"), bytes):
        found.exif = exif.removeprefix(b"Exif\0\0")
    if isinstance(xmp := info.get("xmp"), bytes):
        found.xmp.append(xmp)
    if isinstance(comment := info.get("comment"), bytes):
        _add_text(found, "comment", comment)
    if form in ("AVIF", "HEIF"):
        found.c2pa = _c2pa_in_boxes(view)
    elif form == "GIF":
        found.c2pa = _c2pa_in_gif(view.tobytes())
    found.unread |= form == "TIFF"  # of 64 bits, whose directories are others


def _c2pa_in_boxes(view: memoryview) -> bytes | None:
    """The manifest store of a file of ISO's boxes (AVIF, HEIF): a box on its own, of a type of C2PA's."""
    at = 0
    while at + 24 <= view.nbytes:
        size, kind = struct.unpack_from(">I4s", view, at)
        head = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", view, at + 8)
            head = 16
        end = view.nbytes if size == 0 else at + size
        if end <= at + head:
            return None
        if kind == b"uuid" and view[at + head : at + head + 16] == _BMFF_C2PA:
            box = view[at + head + 16 : end].tobytes()
            place = box.find(b"jumb")  # behind a purpose and where another box lies
            return box[place - 4 :] if place >= 4 else b""
        at = end
    return None


def _c2pa_in_gif(data: bytes) -> bytes | None:
    """The manifest store of a GIF: the blocks of an application's extension, of up to 255 bytes each."""
    at = data.find(_GIF_C2PA)
    if at < 0:
        return None
    blocks, at = [], at + len(_GIF_C2PA) + 3  # the version
    while at < len(data) and data[at]:
        blocks.append(data[at + 1 : at + 1 + data[at]])
        at += 1 + data[at]
    return b"".join(blocks)


def iptc_in(photoshop: bytes) -> bytes | None:
    """IPTC's records among Photoshop's resources; None where there are none."""
    for kind, start, stop in photoshop_resources(photoshop):
        if kind == _IPTC:
            return photoshop[start:stop]
    return None


def photoshop_resources(block: bytes) -> Iterator[tuple[int, int, int]]:
    """Of each of Photoshop's resources: its number, where its content begins, and where it ends."""
    at = 0
    while block[at : at + 4] == b"8BIM" and at + 12 <= len(block):
        (kind,) = struct.unpack_from(">H", block, at + 4)
        start = at + 6 + (block[at + 6] + 2 & ~1)  # behind a name, which with its length is even
        if start + 4 > len(block):
            return
        (size,) = struct.unpack_from(">I", block, start)
        yield kind, start + 4, min(len(block), start + 4 + size)
        at = start + 4 + size + size % 2


def iptc_records(block: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Of each of IPTC's datasets: record and number, where its value begins, and where it ends."""
    at = 0
    while at + 5 <= len(block) and block[at] == 0x1C:
        record, number, size = struct.unpack_from(">BBH", block, at + 1)
        start = at + 5
        if size & 0x8000:  # the length has so many bytes of its own
            wide = size & 0x7FFF
            if wide > 4:
                return
            size = int.from_bytes(block[start : start + wide], "big")
            start += wide
        if start + size > len(block):
            return
        yield record, number, start, start + size
        at = start + size


def _add_xmp(found: Embedded, packet: bytes) -> None:
    if len(found.xmp) >= MOST_PACKETS:
        found.unread = True
        return
    found.xmp.append(packet)


def _add_text(found: Embedded, keyword: str, text: bytes, coding: str = "") -> None:
    if len(text) > MOST_TEXT or len(found.texts) >= _TEXTS:
        found.unread = True
        return
    found.texts.setdefault(keyword, decoded(text) if not coding else text.decode(coding, "replace"))


def decoded(text: bytes) -> str:
    """Text whose coding is not said: UTF-8 where it is that, else Latin 1."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return text.decode("latin-1")
