"""Decoding and resizing with Pillow: the exact reference, and what DALI cannot take.

`decode` gives an upright RGB image; `PillowResize` runs timm's own transform on it, or CLIP's. What fails, fails
with an `ImageError` whose text is the reason, and costs that image alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, ImageOps

from curator_dask.decode.gray import is_deep_gray, to_gray8
from curator_dask.decode.quiet import libtiff_lines
from curator_dask.decode.sniff import Encoded, check_size, open_image, reason_of
from curator_dask.decode.transforms import Axis, TransformSpec
from curator_dask.errors import ImageError

if TYPE_CHECKING:
    import torch

LARGEST_RESIZED = 1 << 26
"""Pixels of a resized image before its crop (4 bytes each in Pillow) above which only the crop is made.

timm resizes the whole image, and a picture 1 pixel high and 60,000 wide becomes 256 high and 15 million
wide on the way.
"""


_ORIENTATION = 0x0112  # EXIF's


def decode(data: Encoded, max_pixels: int, gray16: str = "scale", shrink: int = 1) -> Image.Image:
    """Decode one image: its first frame, upright, RGB, alpha dropped.

    Parameters
    ----------
    data
        The encoded image.
    max_pixels
        Largest height times width that is decoded.
    gray16
        See `curator_dask.decode.spec.ImageOptions`.
    shrink
        Of a JPEG: 2, 4 or 8 decodes a picture so many times smaller, in a fraction of the time; the last pixel of an
        edge may stand for fewer. One whose EXIF turns it, and with such a pixel, is decoded whole.

    Raises
    ------
    ImageError
        With the reason why there is no image.
    """
    with libtiff_lines() as said:
        try:
            with open_image(data) as opened:
                check_size(opened.height, opened.width, max_pixels)
                divides = not (opened.width % shrink or opened.height % shrink)
                if shrink > 1 and (divides or opened.getexif().get(_ORIENTATION, 1) == 1):
                    opened.draft(None, (opened.width // shrink, opened.height // shrink))
                opened.load()
                image = upright(opened)
                if gray16 == "scale" and is_deep_gray(opened):
                    image = to_gray8(image, opened, data)
                return _to_rgb(image)
        except Exception as error:
            raise ImageError(reason_of(error, data, max_pixels, *said[:1])) from None


def upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF, or XMP, says it is to be seen."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF says nothing about the pixels
        return image


def orientation_of(image: Image.Image) -> int:
    """EXIF's number by which `upright` turns an image; 1 where it does not."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF, as above
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    image.info.pop("transparency", None)  # it is dropped: Pillow need not warn of what it could have kept
    return image if type(image) is Image.Image and image.mode == "RGB" else image.convert("RGB")


class PillowResize:
    """timm's own evaluation transform, or CLIP's, without its normalisation.

    Parameters
    ----------
    spec
        The transform.
    """

    def __init__(self, spec: TransformSpec):
        from timm.data import create_transform

        self._spec = spec
        self._resample = Image.Resampling[spec.interpolation.upper()]
        self._timms: Callable[[Image.Image], torch.Tensor] | None = None
        if spec.crop_mode != "center_floor":  # which timm does not know
            self._timms = create_transform(
                input_size=(3, *spec.size),
                interpolation=spec.interpolation,
                mean=spec.mean,
                std=spec.std,
                crop_pct=spec.crop_pct,
                crop_mode=spec.crop_mode,
                use_prefetcher=True,  # leaves uint8 pixels
            )

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Resize and crop an RGB image to uint8 pixels of shape (height, width, 3)."""
        rows, columns = self._spec.geometry(image.height, image.width)
        if rows.resized * columns.resized > LARGEST_RESIZED or min(rows.resized, columns.resized) == 1:
            return self.region(image)
        if self._timms is not None:
            return self._timms(image).permute(1, 2, 0).numpy()
        whole = image.resize((columns.resized, rows.resized), self._resample)
        left, top = columns.start, rows.start
        return self._bordered(whole.crop((left, top, left + columns.kept, top + rows.kept)), rows, columns)

    def of_smaller(self, image: Image.Image, size: tuple[int, int], shrink: int) -> np.ndarray:
        """Do the same with an image that was decoded `shrink` times smaller than its size (height, width).

        What it shows of the image is as much to a fraction of a pixel.
        """
        rows, columns = self._spec.geometry(*size)
        edges = (*columns.region, *rows.region)
        left, right, top, bottom = (edge / shrink for edge in edges)
        box = (left, top, min(right, image.width), min(bottom, image.height))
        return self._bordered(image.resize((columns.kept, rows.kept), self._resample, box), rows, columns)

    def region(self, image: Image.Image) -> np.ndarray:
        """Do the same, resizing only what the crop keeps; equal but for the last bit of a few pixels."""
        rows, columns = self._spec.geometry(image.height, image.width)
        first, last = rows.needed(self._spec.interpolation)
        (top, bottom), (left, right) = rows.region, columns.region
        right, bottom = min(right, image.width), min(bottom, image.height)  # by a rounding error above it
        if width_first(rows, columns):
            image = image.crop((0, first, image.width, last))
            image = self._pass(image, (columns.kept, image.height), (left, 0, right, image.height))
            image = self._pass(
                image, (columns.kept, rows.kept), (0, top - first, columns.kept, bottom - first)
            )
        else:
            image = self._pass(image, (image.width, rows.kept), (0, top, image.width, bottom))
            image = self._pass(image, (columns.kept, rows.kept), (left, 0, right, rows.kept))
        return self._bordered(image, rows, columns)

    def _bordered(self, image: Image.Image, rows: Axis, columns: Axis) -> np.ndarray:
        if image.size == self._spec.size[::-1]:
            return np.array(image)
        whole = Image.new("RGB", self._spec.size[::-1], self._spec.fill)
        whole.paste(image, (columns.pad, rows.pad))
        return np.array(whole)

    def _pass(
        self, image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]
    ) -> Image.Image:
        return image.resize(size, self._resample, box)


def width_first(rows: Axis, columns: Axis) -> bool:
    """Which of its two passes the installed Pillow makes first on such an image."""
    return not loses_rows_first(rows.source - rows.resized, columns.source - columns.resized)


def loses_rows_first(fewer_rows: int, fewer_columns: int) -> bool:
    """Whether the installed Pillow begins with the height, where an image is to lose so many rows and columns.

    Each pass is rounded to whole numbers, so the order is seen: 0.17/255 on average. Pillow 13 begins with
    the height where that loses more than twice as many rows as the width loses columns; found by trying
    1,487 sizes, as it is written nowhere. Before it the width always came first.
    """
    return _chooses_order() and fewer_rows > max(0, 2 * fewer_columns)


@functools.cache
def _chooses_order() -> bool:
    """Whether the installed Pillow ever begins with the height; tried on a small image."""
    values = np.arange(16 * 8).reshape(16, 8) ** 2 % 251
    image = Image.fromarray(values.astype(np.uint8))
    bicubic = Image.Resampling.BICUBIC
    by_width = image.resize((7, 16), bicubic).resize((7, 5), bicubic)
    return by_width.tobytes() != image.resize((7, 5), bicubic).tobytes()
