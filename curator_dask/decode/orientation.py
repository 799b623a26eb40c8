"""The orientation that a row knows of its image where the file has lost it, put back into the file.

img2dataset re-encodes without turning, and drops EXIF; only the text of its ``exif`` column says how a photograph is to
be shown. With the orientation in the file again every decoder here turns it as any other.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from curator_dask.decode.sniff import Encoded, Header, buffer_of, open_image, png_chunk, png_chunks
from curator_dask.errors import DatasetError

if TYPE_CHECKING:
    import PIL.Image

#: Of the rows, that has img2dataset's text of EXIF.
EXIF_COLUMN = "exif"
#: What may be done.
ORIENTATIONS = ("stored", "exif-column")

_TAG = 0x0112
#: EXIF's numbers for images that are stored with their axes swapped.
ON_THEIR_SIDE = (5, 6, 7, 8)
# Of a PNG, what may hold EXIF or XMP.
_SAYING = frozenset([b"eXIf", b"iTXt", b"tEXt", b"zTXt"])
#: EXIF's 2 to 8 in the words of the exifread package, which img2dataset stores.
_WORDS = {
    "Mirrored horizontal": 2,
    "Rotated 180": 3,
    "Mirrored vertical": 4,
    "Mirrored horizontal then rotated 90 CCW": 5,
    "Rotated 90 CW": 6,
    "Mirrored horizontal then rotated 90 CW": 7,
    "Rotated 90 CCW": 8,
}


def orientation_in(text: Any) -> int:
    """EXIF's number for what img2dataset's text says; 1, upright, where it says nothing."""
    try:
        return _WORDS.get(json.loads(text)["Image Orientation"], 1)
    except (TypeError, ValueError, KeyError):
        return 1


def orientation_text(text: Any) -> str | None:
    """Of img2dataset's text that which says how an image lies, as such a text; None where it says nothing of it."""
    if orientation_in(text) == 1:
        return None
    return json.dumps({"Image Orientation": json.loads(text)["Image Orientation"]})


def check_exif_column(orientation: str, columns: Iterable[str]) -> None:
    """Raise DatasetError where rows are to say how their images are turned, and do not."""
    there = list(columns)
    if orientation == "exif-column" and EXIF_COLUMN not in there:
        raise DatasetError(
            f"orientation='exif-column': expected img2dataset's column {EXIF_COLUMN!r}, the rows have {there}. Keep it"
            " when selecting columns, or take orientation='stored'"
        )


def has_orientation(data: Encoded) -> bool:
    """Whether the file has an orientation of its own, which every decoder follows."""
    return stored_orientation(data) is not None


def stored_orientation(data: Encoded) -> int | None:
    """The orientation that the file itself has, in EXIF or XMP, of whatever value; None: it has none."""
    try:
        with open_image(_without_pixels(data)) as image:
            found: int | None = _exif(image).get(_TAG)
            return found
    except Exception:  # of Pillow, of any type: that is told when the image is decoded
        return None


def is_upright(data: Encoded) -> bool:
    """Whether readers that look at EXIF, and those that do not, see the same: the file says nothing, or 1."""
    try:
        with open_image(_without_pixels(data)) as image:
            return _exif(image).get(_TAG, 1) not in range(2, 9)
    except Exception:  # as above
        return True


def upright_size(data: Encoded, header: Header) -> tuple[int, int]:
    """Width and height of an image as it is to be seen, by EXIF or XMP, as Pillow's `ImageOps.exif_transpose` turns it.

    No pixel is decoded.

    Parameters
    ----------
    data
        The file.
    header
        Of it. Where it is plain, no more is to be known.
    """
    width, height = header.width, header.height
    if header.plain:
        return width, height
    try:
        with open_image(_without_pixels(data)) as image:
            # The size of a TIFF is that of the turned one from the beginning.
            turned = image.format != "TIFF" and _exif(image).get(_TAG) in ON_THEIR_SIDE
            width, height = image.size[::-1] if turned else image.size
    except Exception:  # of Pillow, of any type: damaged EXIF turns nothing
        pass
    return width, height


def _exif(image: PIL.Image.Image) -> PIL.Image.Exif:
    """What EXIF and XMP say, of an opened image; that of PNG would decode the pixels to look behind them."""
    from PIL import Image

    return Image.Image.getexif(image)


def _without_pixels(data: Encoded) -> Encoded:
    """A PNG of its size and of all that may say how it lies, also behind the pixels; other files as they are."""
    view = buffer_of(data)
    if view[:8].tobytes() != b"\x89PNG\r\n\x1a\n":
        return data
    said = [chunk for name, chunk in png_chunks(view) if name in _SAYING]
    return b"".join([view[:33], *said, png_chunk(b"IDAT", b"")])


def turned(images: Iterable[tuple[int, Any]], texts: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """Encoded images, each with the orientation that its row names, if its file has none.

    Parameters
    ----------
    images
        The number of a row, and its image or the error in its place.
    texts
        img2dataset's ``exif`` of each row.
    """
    for row, image in images:
        number = orientation_in(texts[row])
        if number != 1 and not isinstance(image, Exception) and not has_orientation(image):
            image = with_orientation(image, number)
        yield row, image


def with_orientation(data: Encoded, number: int) -> Encoded:
    """A JPEG, PNG or WebP with an orientation in its EXIF; other files, img2dataset writes none, as they are.

    Parameters
    ----------
    data
        The file, without EXIF.
    number
        1 to 8.
    """
    view = buffer_of(data)
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, _TAG, 3, 1, number, 0, 0)
    if view[:2].tobytes() == b"\xff\xd8":
        segment = b"Exif\0\0" + tiff
        return b"\xff\xd8\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + view[2:].tobytes()
    if view[:8].tobytes() == b"\x89PNG\r\n\x1a\n" and view.nbytes > 33:
        return view[:33].tobytes() + png_chunk(b"eXIf", tiff) + view[33:].tobytes()  # behind IHDR
    if view[:4].tobytes() == b"RIFF" and view[8:12].tobytes() == b"WEBP":
        return _webp(view, tiff) or data
    return data


def _webp(view: memoryview, tiff: bytes) -> bytes | None:
    """With EXIF as the last chunk, and the extended header that announces it; None where it cannot be read."""
    kind, chunks = view[12:16].tobytes(), view[12:].tobytes()
    try:
        if kind == b"VP8X":
            chunks = chunks[:8] + bytes([chunks[8] | 0x08]) + chunks[9:]
        else:
            with open_image(view) as image:
                width, height = image.size
                alpha = 0x10 if image.mode == "RGBA" else 0
            size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
            chunks = b"VP8X" + struct.pack("<IB3x", 10, 0x08 | alpha) + size + chunks
    except Exception:  # of Pillow, of any type: that is told when the image is decoded
        return None
    chunks += b"\0" * (len(chunks) % 2) + b"EXIF" + struct.pack("<I", len(tiff)) + tiff
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks
