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
    width, height = image.size
    for left, top, right, bottom in boxes:
        box = (
            math.floor(left * width),
            math.floor(top * height),
            math.ceil(right * width),
            math.ceil(bottom * height),
        )
        longer = max(1, box[2] - box[0], box[3] - box[1])
        margin = max(1, math.ceil(MARGIN * longer))
        sigma = max(1.0, SIGMA * longer * strength)
        inner, outer = (_within(_grown(box, number * margin), image.size) for number in (1, 2))
        if outer[0] >= outer[2] or outer[1] >= outer[3]:
            continue  # beside the image
        seen = _within(_grown(outer, math.ceil(_REACH * sigma)), image.size)
        pixels = _pixels_of(image, seen)
        at = (outer[1] - seen[1], outer[0] - seen[0])
        rows, columns = (slice(at[0], at[0] + outer[3] - outer[1]), slice(at[1], at[1] + outer[2] - outer[0]))
        mask = _mask(inner, outer, margin)[..., None]
        mixed = pixels[rows, columns] * (1 - mask) + _gaussian(pixels, sigma)[rows, columns] * mask
        _put(image, outer, mixed, mask[..., 0] > 0)


def _grown(box: tuple[int, int, int, int], by: int) -> tuple[int, int, int, int]:
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def _within(box: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    left, top, right, bottom = box
    return max(0, left), max(0, top), min(size[0], right), min(size[1], bottom)


def _mask(inner: tuple[int, int, int, int], outer: tuple[int, int, int, int], margin: int) -> np.ndarray:
    """float32 (h, w) of the outer box: 1 in the inner one, and falling to 0 at a margin's distance from it."""
    sides = []
    for axis in (1, 0):
        place = np.arange(outer[axis], outer[axis + 2])
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


def _gaussian(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """float32 (h, w, channels) blurred, the edges as if they went on."""
    from PIL import Image

    height, width = pixels.shape[:2]
    share = min(1.0, _FINE / sigma)
    small = (max(1, math.ceil(width * share)), max(1, math.ceil(height * share)))
    sigmas = (sigma * small[1] / height, sigma * small[0] / width)
    found = np.empty_like(pixels)
    for channel in range(pixels.shape[2]):
        each = pixels[..., channel]
        if share < 1:
            each = np.asarray(Image.fromarray(each).resize(small, Image.Resampling.LANCZOS))
        for axis in (0, 1):
            each = _along(each, sigmas[axis], axis)
        if share < 1:
            each = np.asarray(Image.fromarray(each).resize((width, height), Image.Resampling.BICUBIC))
        found[..., channel] = each
    return found


def _along(pixels: np.ndarray, sigma: float, axis: int) -> np.ndarray:
    """Blurred along an axis; the sum goes from tap to tap, which comes to the same bits on every machine."""
    reach = math.ceil(4 * sigma)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-6)) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    around = [(reach, reach) if each == axis else (0, 0) for each in (0, 1)]
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
