"""What an encoded image is, read from its first bytes in a few microseconds, without decoding it.

DALI loses a whole batch with one image that it cannot decode, and a decompression bomb has to be refused
before it is unpacked. So each image's kind, size and orientation are read from its headers first. JPEG, PNG
and WebP are read here; anything else is left to Pillow, which opens lazily.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from curator_dask.decode.jpeg import (
    FRAMES,
    LOSSLESS,
    frame_of,
    has_sound_scans,
    has_whole_blocks,
    segment_end,
    segments,
)
from curator_dask.decode.plugins import load_plugin, remedy_for
from curator_dask.errors import ImageError

if TYPE_CHECKING:
    import PIL.Image

Encoded = bytes | bytearray | memoryview | np.ndarray
"""The bytes of one image file, in any container that shows a flat buffer."""

_UNSUPPORTED = ("HEIF", "JPEG XL", "EPS")
"""Formats that are known by their first bytes and that Pillow may have no decoder for."""

_SUFFIXES = {"JPEG": "jpg", "TIFF": "tif", "JPEG 2000": "jp2", "JPEG XL": "jxl", "HEIF": "heic"}

_TAIL = 64
"""Bytes at the end of a JPEG in which its end marker must lie; some writers pad with zeros."""


class Header(NamedTuple):
    """What an image's headers say.

    Attributes
    ----------
    kind
        ``"JPEG"``, ``"PNG"``, ``"WEBP"`` or Pillow's name of another format.
    height, width
        Pixels, upright where the image is `plain`; else `curator_dask.decode.orientation.upright_size` knows.
    plain
        True where DALI is known to decode such an image to Pillow's very pixels, and nothing in the headers
        is suspect. Everything else is Pillow's.
    deep_gray
        Grey of more than 8 bits a sample.
    """

    kind: str
    height: int
    width: int
    plain: bool
    deep_gray: bool = False


def buffer_of(data: Encoded) -> memoryview:
    """A flat view of the bytes; nothing is copied."""
    view = memoryview(data)  # type: ignore[arg-type]  # NumPy arrays are buffers too
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def sniff(data: Encoded, max_pixels: int) -> Header:
    """Read an image's headers.

    Parameters
    ----------
    data
        The encoded image.
    max_pixels
        Largest height times width that is allowed.

    Raises
    ------
    ImageError
        With a short reason: the data is empty, is no image, is broken in its headers, or is too large.
    """
    view = buffer_of(data)
    if not view.nbytes:
        raise ImageError("empty (0 bytes)")
    _refuse_unreadable_png(view)
    try:
        header = _common(view)
    except (IndexError, struct.error):  # the headers end too early or point outside of the data
        header = None
    if header is None or not header.height or not header.width:
        header = _open_lazily(view, max_pixels)
    check_size(header.height, header.width, max_pixels)
    return header


def check_size(height: int, width: int, max_pixels: int) -> None:
    """Raise ImageError where an image has more than `max_pixels` pixels."""
    if height * width > max_pixels:
        raise ImageError(
            f"too large: {width}x{height} = {height * width:,} pixels, over max_pixels = {max_pixels:,}"
        )


def _common(view: memoryview) -> Header | None:
    start = view[:16].tobytes()
    if start.startswith(b"\xff\xd8\xff"):
        return _jpeg(view)
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(view)
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return _webp(view)
    return None


def _jpeg(view: memoryview) -> Header | None:
    """Walk the segments up to the scan; the frame header (SOF) has the size, APP1 the orientation."""
    height = width = precision = components = 0
    orientation: int | None = None  # None: no EXIF seen; 0: one that is better left to Pillow
    xmp_turns = False
    odd_version = False
    at = marker = frame = 0
    for marker, at in segments(view):
        if marker in FRAMES:
            precision, height, width, components = struct.unpack_from(">BHHB", view, at + 4)
            frame = marker
        elif marker == 0xE0:
            odd_version |= view[at + 4 : at + 9].tobytes() == b"JFIF\0" and view[at + 9] != 1
        elif marker == 0xE1:
            segment = view[at + 4 : segment_end(view, at)]
            if bytes(segment[:6]) == b"Exif\0\0":
                orientation = 0 if orientation is not None else _exif_orientation(segment[6:])
            elif bytes(segment[:29]) == b"http://ns.adobe.com/xap/1.0/\0":
                xmp_turns = b"tiff:Orientation" in segment.tobytes()
    if marker not in (0xDA, 0xD9):
        return None
    # Pillow takes the orientation from XMP where EXIF has none, DALI does not.
    certain = orientation != 0 and not (xmp_turns and orientation is None)
    whole = b"\xff\xd9" in view[-_TAIL:].tobytes()
    common = precision == 8 and components in (1, 3) and frame in (0xC0, 0xC1, 0xC2)
    # libjpeg says on stderr what it thinks of these, in DALI, not in Pillow.
    quiet = not odd_version and (frame == 0xC2 or has_whole_blocks(view, at))
    # Where a scan holds what no scan may, DALI decodes on and guesses; Pillow refuses.
    plain = certain and whole and common and quiet and has_sound_scans(view, at)
    if orientation in (5, 6, 7, 8):
        height, width = width, height
    return Header("JPEG", height, width, plain)


def _exif_orientation(tiff: memoryview) -> int | None:
    """Orientation 1 to 8 of an EXIF block; None where it has none, 0 where it is not as EXIF wants it."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4].tobytes())
    if order is None:
        return 0
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, directory)
        for entry in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, kind, number, value = struct.unpack_from(order + "HHIH", tiff, entry)
            if tag == 0x0112:
                return value if kind == 3 and number == 1 and 1 <= value <= 8 else 0
    except struct.error:
        return 0
    return None


def _refuse_unreadable_png(view: memoryview) -> None:
    """Raise ImageError where a PNG's header names a method that PNG does not have: decoders do not agree on it."""
    if view[:16].tobytes() != b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" or view.nbytes < 29:
        return
    for name, value, known in zip(
        ("compression", "filter", "interlace"), view[26:29], (0, 0, 1), strict=True
    ):
        if value > known:
            raise ImageError(f"damaged PNG: its header names an unknown {name} method ({value})")


def png_chunks(view: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """The chunks of a PNG, as far as they are there: the name of each, and its bytes with length and checksum."""
    at = 8
    while at + 12 <= view.nbytes:
        length, name = struct.unpack_from(">I4s", view, at)
        yield name, view[at : at + 12 + length]
        at += 12 + length


def png_chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG, with its length and checksum."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _png(view: memoryview) -> Header | None:
    """IHDR has the size; a walk over the chunks shows whether the file is whole and holds surprises."""
    if bytes(view[12:16]) != b"IHDR":
        return None
    width, height, depth, colour = struct.unpack_from(">IIBB", view, 16)
    deep_gray = depth == 16 and colour == 0
    plain = depth <= 8  # Pillow and DALI disagree on how 16 bits become 8
    at = 8
    while at + 12 <= view.nbytes:
        length, name = struct.unpack_from(">I4s", view, at)
        if name in (b"eXIf", b"acTL", b"zTXt", b"iTXt", b"tEXt"):
            # Orientation may hide in EXIF, XMP and text; animations have a first frame of their own. Plain
            # comments are harmless.
            value = view[at + 8 : at + 8 + min(length, 24)].tobytes()
            if name in (b"eXIf", b"acTL") or value.startswith((b"XML:com.adobe.xmp", b"Raw profile type")):
                plain = False
        at += 12 + length
        if name == b"IEND":
            return Header("PNG", height, width, plain and at <= view.nbytes, deep_gray)
    return Header("PNG", height, width, plain=False, deep_gray=deep_gray)


def _webp(view: memoryview) -> Header | None:
    """The first chunk has the size; the extended form (VP8X) also flags animation, EXIF and XMP."""
    (size,) = struct.unpack_from("<I", view, 4)
    whole = size + 8 <= view.nbytes
    name = view[12:16].tobytes()
    if name == b"VP8X":
        flags = view[20]
        width = int.from_bytes(view[24:27], "little") + 1
        height = int.from_bytes(view[27:30], "little") + 1
        return Header("WEBP", height, width, whole and not flags & (0x02 | 0x04 | 0x08))
    if name == b"VP8L":
        (bits,) = struct.unpack_from("<I", view, 21)
        return Header("WEBP", (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1, whole)
    if name == b"VP8 ":
        width, height = struct.unpack_from("<HH", view, 26)
        return Header("WEBP", height & 0x3FFF, width & 0x3FFF, whole)
    return None


def suffix_for(data: Encoded) -> str:
    """The suffix of a file of these bytes, by the first of them or by what Pillow takes it for; else ``"bin"``."""
    from PIL import Image

    view = buffer_of(data)
    kind = _kind(view)
    if kind is None:
        try:
            with Image.open(io.BytesIO(view)) as image:
                kind = image.format
        except Exception:  # Pillow's, of many types
            kind = None
    return _SUFFIXES.get(kind or "", kind.lower() if kind else "bin")


def open_image(data: Encoded) -> PIL.Image.Image:
    """Let Pillow open an image of any format that it decodes itself, or by an installed plugin; close it.

    Not EPS, for which Pillow runs Ghostscript: image files of unknown origin must not be programs.
    """
    from PIL import Image

    view = buffer_of(data)
    _refuse_unreadable_png(view)
    if (kind := _kind(view)) is not None:
        load_plugin(kind)
    Image.init()
    formats = [name for name in Image.OPEN if name != "EPS"]  # looked at anew: plugins may come later
    return Image.open(io.BytesIO(view), formats=formats)


def _open_lazily(view: memoryview, max_pixels: int) -> Header:
    """Let Pillow read the headers of what is not read here."""
    try:
        with open_image(view) as image:
            deep_gray = image.mode.partition(";")[0] in ("I", "F")
            return Header(image.format or "unknown", image.height, image.width, False, deep_gray)
    except Exception as error:
        raise ImageError(reason_of(error, view, max_pixels)) from None


def reason_of(error: Exception, data: Encoded, max_pixels: int, said: str = "") -> str:
    """Say shortly why Pillow could not open or decode an image.

    Parameters
    ----------
    error
        What Pillow raised.
    data
        The encoded image.
    max_pixels
        Limit to name where the image is too large.
    said
        What the decoder's library said besides.
    """
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, ImageError):
        return str(error)
    if isinstance(error, MemoryError):
        return "out of memory while decoding"
    text = " ".join(f"{error} ({said})".split() if said else str(error).split())
    if isinstance(error, Image.DecompressionBombError):
        pixels = re.search(r"\((\d+) pixels\)", text)
        size = f"{int(pixels[1]):,} pixels" if pixels else text
        return f"too large: {size}, over max_pixels = {max_pixels:,}"
    view = buffer_of(data)
    kind = _kind(view)
    if kind == "MP4":
        return "not an image (an MP4 or MOV video)"
    if _has_no_pixels(view):
        return f"not an image (a {kind} of 0 pixels)"
    if (unsupported := _unsupported(view, text)) is not None:
        return f"unsupported: {unsupported}"
    if isinstance(error, UnidentifiedImageError):
        if kind == "TIFF" and _has_unknown_samples(view):
            return "unsupported: TIFF with samples that Pillow does not decode (floats of 64 bits, or in colour, say)"
        if kind in _UNSUPPORTED and not load_plugin(kind):
            return f"unsupported: {kind}, which Pillow does not decode here{remedy_for(kind)}"
        if kind is None:
            start = view[:14].tobytes().decode("latin-1")
            return f"not an image (starts with {start!a})"
        return f"damaged {kind}: its headers cannot be read"
    short = re.search("truncat|more data|end of|EOF|not enough|incomplete", text, re.IGNORECASE)
    return f"truncated: {text}" if short else f"damaged {kind or 'image'}: {text or type(error).__name__}"


def _has_no_pixels(view: memoryview) -> bool:
    """Whether the headers of a JPEG, PNG or BMP give an image no height or no width."""
    try:
        match _kind(view):
            case "JPEG":
                frame = frame_of(view)
                # A height of 0 may be said after the scan.
                return frame is not None and frame[3] == 0
            case "PNG":
                return view[12:16].tobytes() == b"IHDR" and 0 in struct.unpack_from(">II", view, 16)
            case "BMP":
                header, width, height = struct.unpack_from("<Iii", view, 14)
                return header >= 40 and 0 in (width, height)
    except struct.error:
        pass
    return False


def _unsupported(view: memoryview, text: str) -> str | None:
    """What of a sound JPEG or BMP Pillow has no decoder for, by its header and Pillow's words; None: nothing."""
    kind = _kind(view)
    if kind == "JPEG" and (frame := frame_of(view)) is not None:
        marker, precision = frame[:2]
        if marker in LOSSLESS:
            return "lossless JPEG, which Pillow does not decode here"
        if precision in (12, 16):
            return f"JPEG of {precision} bits a sample, which Pillow does not decode here"
    if kind == "BMP" and re.match("Unsupported BMP (bitfields|compression|pixel depth)", text):
        return f"BMP, which Pillow does not decode here ({text})"
    return None


def _has_unknown_samples(view: memoryview) -> bool:
    """Whether a TIFF that Pillow cannot open has sound headers, and samples for which Pillow has no mode."""
    from PIL import TiffImagePlugin

    try:
        TiffImagePlugin.TiffImageFile(io.BytesIO(view)).close()
    except Exception as error:
        return str(error) == "unknown pixel mode"
    return False


def _kind(view: memoryview) -> str | None:
    """Name of the format by its first bytes alone."""
    start = view[:16].tobytes()
    for magic, name in (
        (b"\xff\xd8\xff", "JPEG"),
        (b"\x89PNG", "PNG"),
        (b"GIF8", "GIF"),
        (b"BM", "BMP"),
        (b"II*\0", "TIFF"),
        (b"MM\0*", "TIFF"),
        (b"\0\0\0\x0cjP  ", "JPEG 2000"),
        (b"\0\0\0\x0cJXL ", "JPEG XL"),
        (b"\xff\x0a", "JPEG XL"),
        (b"\xff\x4f\xff\x51", "JPEG 2000"),
        (b"\xc5\xd0\xd3\xc6", "EPS"),
        (b"%!PS", "EPS"),
    ):
        if start.startswith(magic):
            return name
    if start[8:12] == b"WEBP":
        return "WebP"
    if start[4:8] == b"ftyp":
        brands = view[8 : min(64, int.from_bytes(view[:4], "big") or 64)].tobytes()
        for pattern, name in ((b"avi[fs]", "AVIF"), (b"hei[cxms]|hev[cxms]|mif[12]|miaf|msf1", "HEIF")):
            if re.search(pattern, brands):
                return name
        # Also other still images, such as Canon's CR3, lie in this container.
        return "MP4" if re.match(b"isom|iso[2-9]|mp4|mp71|qt  |M4[VAP]|avc1|3g|dash|f4v", brands) else None
    return None
