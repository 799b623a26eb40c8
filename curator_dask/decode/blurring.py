"""Regions of a picture blurred beyond recognition, for faces and what else is not to be published.

After img2dataset's ``BoundingBoxBlurrer``, by which DataComp's faces are blurred, and which follows ImageNet's face
obfuscation (Yang et al. 2022, https://arxiv.org/abs/2103.06191): a box grows by a tenth of its longer side, of which
sigma of the Gaussian is a tenth, too. There the mask is blurred as well, and the sharp picture comes through within the
box. Here nothing of it is left within the grown box, and the mask fades outside of that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from curator_dask.errors import ImageError

if TYPE_CHECKING:
    from PIL import Image

Box = Sequence[float]
"""Left, top, right and bottom, as shares of width and height of the upright image."""

#: Of a box's longer side: by so much it grows on each side, and again where the picture passes over into the sharp one.
MARGIN = 0.1
#: The same: sigma of the Gaussian, at a strength of 1.
SIGMA = 0.1

_FINE = 3.0  # pixels of sigma, to which a region is made smaller before it is blurred: what is left has no more detail
_REACH = 3  # sigmas around a region that its blurred picture is made of
_GAP = 3.0  # times the pixels of what is made smaller, to which it is averaged first
_AT_ONCE = 1 << 18  # pixels that are mixed at a time, some 50 bytes each
_BEYOND = 1.0  # of the width and height, by which a detector's box may leave the image


def checked_boxes(boxes: Any) -> list[tuple[float, float, float, float]]:
    """The boxes of an image.

    Raises
    ------
    ImageError
        They are none: others than four numbers each, in their order, as shares of width and height.
    """
    found = []
    for box in boxes:
        numbers = [float("nan") if each is None else float(each) for each in box or ()]
        if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
            raise ImageError(f"boxes: expected four numbers (left, top, right, bottom), found {_short(box)}")
        left, top, right, bottom = numbers
        if min(numbers) < -_BEYOND or max(numbers) > 1 + _BEYOND:
            raise ImageError(
                f"boxes: expected shares of width and height, 0 to 1, found {_short(numbers)}: are they pixels?"
            )
        if right < left or bottom < top:
            raise ImageError(
                f"boxes: expected left, top, right, bottom, found {_short(numbers)}, which ends before it begins"
            )
        found.append((left, top, right, bottom))
    return found


def blur(image: Image.Image, boxes: Sequence[Box], strength: float = 1.0) -> None:
    """Blur regions of an image in place; it is deterministic, and all other pixels stay as they are.

    Parameters
    ----------
    image
        Upright, of Pillow's mode L, LA, RGB, RGBA, CMYK or I;16.
    boxes
        As `checked_boxes` gives them.
    strength
        Of the blur: sigma is so many tenths of a box's longer side.
    """
    for box in _outermost(boxes, image.size):
        longer = max(1, box[2] - box[0], box[3] - box[1])
        margin = max(1, math.ceil(MARGIN * longer))
        sigma = max(1.0, SIGMA * longer * strength)
        inner, outer = (_within(_grown(box, number * margin), image.size) for number in (1, 2))
        if outer[0] >= outer[2] or outer[1] >= outer[3]:
            continue  # beside the image
        seen = _within(_grown(outer, math.ceil(_REACH * sigma)), image.size)
        gaussian = _Gaussian(image, seen, sigma)
        rows = max(1, _AT_ONCE // (outer[2] - outer[0]))
        for top in range(outer[1], outer[3], rows):
            some = (outer[0], top, outer[2], min(top + rows, outer[3]))
            mask = _mask(inner, some, margin)[..., None]
            mixed = _pixels_of(image, some) * (1 - mask) + gaussian.pixels(some) * mask
            _put(image, some, mixed, mask[..., 0] > 0)


def _outermost(boxes: Sequence[Box], size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """The boxes in pixels, without those within others: with these they are blurred, and more so."""
    width, height = size
    pixels = {
        (
            math.floor(left * width),
            math.floor(top * height),
            math.ceil(right * width),
            math.ceil(bottom * height),
        ): None
        for left, top, right, bottom in boxes
    }
    found = np.array([*pixels], np.int64).reshape(-1, 4)
    signed = found * np.array([-1, -1, 1, 1])  # of a box that has another within it all are at least as large
    order = np.argsort(-(found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1]), kind="stable")
    kept: list[int] = []
    for number in order.tolist():
        if not (signed[kept] >= signed[number]).all(axis=1).any():
            kept.append(number)
    return [tuple(found[number].tolist()) for number in sorted(kept)]


def _grown(box: tuple[int, int, int, int], by: int) -> tuple[int, int, int, int]:
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def _within(box: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    left, top, right, bottom = box
    return max(0, left), max(0, top), min(size[0], right), min(size[1], bottom)


def _mask(inner: tuple[int, int, int, int], box: tuple[int, int, int, int], margin: int) -> np.ndarray:
    """float32 (h, w) of a box: 1 in the inner one, and falling to 0 at a margin's distance from that."""
    sides = []
    for axis in (1, 0):
        place = np.arange(box[axis], box[axis + 2])
        distance = np.maximum(inner[axis] - place, place - (inner[axis + 2] - 1))
        sides.append(np.clip(1 - np.maximum(distance, 0) / (margin + 1), 0, 1))
    return np.minimum(sides[0][:, None], sides[1][None, :]).astype(np.float32)


def _pixels_of(image: Image.Image, box: tuple[int, int, int, int]) -> np.ndarray:
    """float32 (h, w, channels); colours multiplied by alpha, so that what is clear does not shine through."""
    pixels = np.asarray(image.crop(box), np.float32)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if image.mode in ("LA", "RGBA"):
        pixels = pixels.copy()
        pixels[..., :-1] *= pixels[..., -1:] / 255
    return pixels


def _put(image: Image.Image, box: tuple[int, int, int, int], pixels: np.ndarray, where: np.ndarray) -> None:
    from PIL import Image

    if image.mode in ("LA", "RGBA"):
        alpha = np.rint(pixels[..., -1:])
        colours = pixels[..., :-1] * np.divide(255, alpha, out=np.zeros_like(alpha), where=alpha > 0)
        pixels = np.concatenate([colours, alpha], axis=-1)
    kind, most = (np.dtype("<u2"), 65535) if image.mode == "I;16" else (np.dtype(np.uint8), 255)
    old = np.asarray(image.crop(box))
    made = np.clip(np.rint(pixels), 0, most).astype(kind).reshape(old.shape)
    kept = where if old.ndim == 2 else where[..., None]
    together = np.where(kept, made, old).astype(kind)
    size = (box[2] - box[0], box[3] - box[1])
    image.paste(Image.frombytes(image.mode, size, together.tobytes()), box[:2])


class _Gaussian:
    """A region of an image blurred, its edges as if they went on; it is held small, and made large a part at a time.

    Parameters
    ----------
    image, region
        Which; colours are multiplied by alpha.
    sigma
        In pixels.
    """

    def __init__(self, image: Image.Image, region: tuple[int, int, int, int], sigma: float) -> None:
        width, height = region[2] - region[0], region[3] - region[1]
        share = min(1.0, _FINE / sigma)
        small = (max(1, math.ceil(width * share)), max(1, math.ceil(height * share)))
        self._region, self._is_whole = region, share == 1
        self._scale = small[0] / width, small[1] / height
        pixels = _pixels_of(image, region) if self._is_whole else _small(image, region, small)
        for axis, scale in ((1, self._scale[0]), (0, self._scale[1])):
            pixels = _along(pixels, sigma * scale, axis)
        self._pixels = pixels

    def pixels(self, box: tuple[int, int, int, int]) -> np.ndarray:
        """float32 (h, w, channels) of a box within the region."""
        from PIL import Image

        left, top = self._region[:2]
        inside = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
        if self._is_whole:
            return self._pixels[inside[1] : inside[3], inside[0] : inside[2]]
        height, width, channels = self._pixels.shape
        at = tuple(
            min(edge * self._scale[number % 2], (width, height)[number % 2])
            for number, edge in enumerate(inside)
        )
        size = (box[2] - box[0], box[3] - box[1])
        found = np.empty((size[1], size[0], channels), np.float32)
        for channel in range(channels):
            each = Image.fromarray(np.ascontiguousarray(self._pixels[..., channel]))
            found[..., channel] = np.asarray(each.resize(size, Image.Resampling.BICUBIC, at))
        return found


def _small(image: Image.Image, region: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    """float32 (h, w, channels) of a region made smaller, colours multiplied by alpha."""
    from PIL import Image

    box: tuple[int, int, int, int] | None = region
    if image.mode == "I;16":  # which Pillow does not make smaller with a filter
        image, box = Image.fromarray(np.asarray(image.crop(region), np.float32)), None
    elif image.mode in ("LA", "RGBA"):
        image, box = image.crop(region).convert({"LA": "La", "RGBA": "RGBa"}[image.mode]), None
    made = np.asarray(image.resize(size, Image.Resampling.LANCZOS, box, _GAP), np.float32)
    return made[..., None] if made.ndim == 2 else made


def _along(pixels: np.ndarray, sigma: float, axis: int) -> np.ndarray:
    """Blurred along an axis; the sum goes from tap to tap, which comes to the same bits on every machine."""
    reach = math.ceil(4 * sigma)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-6)) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    around = [(reach, reach) if each == axis else (0, 0) for each in range(pixels.ndim)]
    padded = np.pad(pixels, around, mode="edge")
    length = pixels.shape[axis]
    found = np.zeros_like(pixels)
    for number, tap in enumerate(taps):
        some = slice(number, number + length)
        found += tap * (padded[some] if axis == 0 else padded[:, some])
    return found


def _short(box: Any) -> str:
    numbers = list(box) if isinstance(box, list | tuple) else [box]
    return str([round(each, 4) if isinstance(each, float) else each for each in numbers[:6]])
