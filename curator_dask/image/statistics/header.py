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

    sniff(data, max_pixels)  # refuses what decoding refuses, in the same words
    view = buffer_of(data)
    try:
        with Image.open(io.BytesIO(view)) as image:
            orientation = _exif(image, view).get(_ORIENTATION)
            if not (isinstance(orientation, int) and 1 <= orientation <= 8):
                orientation = None
            # Pillow has the size of a TIFF as it is to be seen.
            turned = orientation in (5, 6, 7, 8) and image.format != "TIFF"
            width, height = image.size[::-1] if turned else image.size
            return {
                "width": width,
                "height": height,
                "aspect": width / height,
                "format": image.format,
                "mode": image.mode,
                "bytes": view.nbytes,
                "orientation": orientation,
                "animated": bool(getattr(image, "is_animated", False)),
            }
    except Exception as error:  # Pillow's plugins raise whatever their parsing meets
        raise ImageError(f"damaged: {type(error).__name__}: {error}") from error


def _exif(image: PIL.Image.Image, view: memoryview) -> PIL.Image.Exif:
    """EXIF; of a PNG that has none without decoding it, which Pillow does to look behind the pixels."""
    from PIL import Image

    if (
        image.format == "PNG"
        and not {"exif", "Raw profile type exif"} & {*image.info}
        and b"eXIf" not in view.tobytes()
    ):
        return Image.Exif()
    return image.getexif()
