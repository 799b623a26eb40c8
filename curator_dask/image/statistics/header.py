"""What an encoded image says of itself, without decoding it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from curator_dask.decode.sniff import Encoded, buffer_of, sniff
from curator_dask.errors import ImageError

if TYPE_CHECKING:
    import PIL.Image

#: The statistics of this module, with their Arrow types.
HEADER = {
    "width": pa.int32(),
    "height": pa.int32(),
    "aspect": pa.float32(),
    "format": pa.string(),
    "mode": pa.string(),
    "bytes": pa.int64(),
    "orientation": pa.int8(),
    "animated": pa.bool_(),
}

_ORIENTATION = 0x0112  # the tag of EXIF


def read_header(data: Encoded, max_pixels: int) -> dict[str, Any]:
    """The statistics of one encoded image.

    Parameters
    ----------
    data
        The file.
    max_pixels
        Height times width above which it is refused, as decoding refuses it.

    Returns
    -------
    dict
        By the names of `HEADER`. ``width``, ``height`` and ``aspect`` (width / height) are of the upright image;
        ``format`` and ``mode`` are Pillow's names; ``orientation`` is EXIF's number, 1 to 8, None where there is none.

    Raises
    ------
    ImageError
        With a short reason: the data is empty, no image, broken in its headers, or too large.
    """
    from PIL import Image

    found = sniff(data, max_pixels)
    view = buffer_of(data)
    try:
        with Image.open(io.BytesIO(view)) as image:
            orientation = _exif(image).get(_ORIENTATION)
            return {
                "width": found.width,
                "height": found.height,
                "aspect": found.width / found.height,
                "format": image.format,
                "mode": image.mode,
                "bytes": view.nbytes,
                "orientation": orientation
                if isinstance(orientation, int) and 1 <= orientation <= 8
                else None,
                "animated": bool(getattr(image, "is_animated", False)),
            }
    except Exception as error:  # Pillow's plugins raise whatever their parsing meets
        raise ImageError(f"damaged: {type(error).__name__}: {error}") from error


def _exif(image: PIL.Image.Image) -> PIL.Image.Exif:
    """EXIF, where it is found without decoding: of a PNG Pillow would look behind the pixels too."""
    from PIL import Image

    if "exif" not in image.info and image.format == "PNG":
        return Image.Exif()
    return image.getexif()
