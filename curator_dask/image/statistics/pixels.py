"""What the pixels of an image say: perceptual hashes, sharpness, brightness, colour, borders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    import imagehash
    import PIL.Image
    import torch

#: The statistics of this module, with their Arrow types.
PIXELS = {
    "phash": pa.uint64(),
    "dhash": pa.uint64(),
    "blurriness": pa.float32(),
    "brightness": pa.float32(),
    "entropy": pa.float32(),
    "colourfulness": pa.float32(),
    "grey": pa.bool_(),
    "border": pa.float32(),
}

_HASH_BYTES = 8
_SHARP_EDGE = 64  # pixels of the longer edge at which CleanVision looks for edges
_SMALL_EDGE = 256  # at which borders and colours are looked for: they are large
_BORDER_NOISE = 24  # of 255: what JPEG makes of a plain bar beside a picture stays below it


class _Looked:
    """One image and what several statistics need of it, each made once."""

    def __init__(self, image: PIL.Image.Image):
        self.image = image

    @cached_property
    def grey(self) -> PIL.Image.Image:
        return self.image.convert("L")

    @cached_property
    def histogram(self) -> np.ndarray:
        """Counts (3, 256), by channel and value."""
        return np.asarray(self.image.histogram(), np.float64).reshape(3, 256)

    @cached_property
    def small(self) -> PIL.Image.Image:
        return self.image.reduce(max(1, max(self.image.size) // _SMALL_EDGE))


def _phash(looked: _Looked) -> np.ndarray:
    import imagehash

    return _packed(imagehash.phash(looked.grey))


def _dhash(looked: _Looked) -> np.ndarray:
    import imagehash

    return _packed(imagehash.dhash(looked.grey))


def _packed(found: imagehash.ImageHash) -> np.ndarray:
    return np.packbits(found.hash.reshape(-1))


def _blurriness(looked: _Looked) -> float:
    from PIL import ImageFilter, ImageStat

    image = looked.image
    ratio = max(image.size) / _SHARP_EDGE
    if ratio > 1:
        size = [max(int(edge // ratio), 1) for edge in image.size]
        image = image.resize((size[0], size[1]), reducing_gap=3.0)
    edges = image.convert("L").filter(ImageFilter.FIND_EDGES)
    if min(edges.size) <= 2:
        return 0.0
    # Pillow leaves the outermost pixels unfiltered: with them a blank white picture is as sharp as a photograph.
    inside = edges.crop((1, 1, edges.width - 1, edges.height - 1))
    return float(np.sqrt(ImageStat.Stat(inside).var[0]))


def _brightness(looked: _Looked) -> float:
    red, green, blue = looked.histogram @ np.arange(256) / looked.histogram[0].sum()
    return float(np.sqrt(0.241 * red**2 + 0.691 * green**2 + 0.068 * blue**2) / 255)


def _entropy(looked: _Looked) -> float:
    shares = looked.histogram[looked.histogram > 0] / looked.histogram.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def _colourfulness(looked: _Looked) -> float:
    # In whole numbers, which add up without an error, and in small arrays: three times as fast as in float32.
    red, green, blue = (np.asarray(each).ravel().astype(np.int16) for each in looked.small.split())
    mean, variance = _moments(red - green)
    mean_twice, variance_four = _moments(red + green - 2 * blue)
    return float(np.sqrt(variance + variance_four / 4) + 0.3 * np.hypot(mean, mean_twice / 2))


def _moments(values: np.ndarray) -> tuple[float, float]:
    """Mean and variance of whole numbers."""
    mean = float(values.sum(dtype=np.int64)) / len(values)
    squares = float(np.einsum("i,i->", values, values, dtype=np.int64))
    return mean, max(0.0, squares / len(values) - mean**2)


def _grey(looked: _Looked) -> bool:
    pixels = np.asarray(looked.image)
    return bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all())


def _border(looked: _Looked) -> float:
    from PIL import Image, ImageChops

    image = looked.small
    plain = Image.new("RGB", image.size, image.getpixel((0, 0)))
    apart = ImageChops.difference(image, plain).point(
        [int(value > _BORDER_NOISE) * 255 for value in range(256)] * 3
    )
    box = apart.getbbox()
    if box is None:
        return 1.0
    left, top, right, bottom = box
    return 1 - (right - left) * (bottom - top) / (image.width * image.height)


_MEASURES: dict[str, Callable[[_Looked], Any]] = {
    "phash": _phash,
    "dhash": _dhash,
    "blurriness": _blurriness,
    "brightness": _brightness,
    "entropy": _entropy,
    "colourfulness": _colourfulness,
    "grey": _grey,
    "border": _border,
}


@dataclass(frozen=True)
class Measure:
    """Measures one image; a transform of `curator_dask.decode.spec.LoaderSpec`, so it shares others' decoding.

    A hash is given as its eight bytes, for a float32 holds no 64 bits.

    Attributes
    ----------
    names
        Which of `PIXELS`.
    """

    names: tuple[str, ...]

    def __call__(self, image: PIL.Image.Image) -> torch.Tensor:
        """float32 (n,): the values one after the other, of an upright RGB image."""
        import torch

        looked = _Looked(image)
        made = [np.atleast_1d(np.asarray(_MEASURES[name](looked), np.float32)) for name in self.names]
        return torch.from_numpy(np.concatenate(made))

    def columns(self, values: np.ndarray, valid: np.ndarray) -> dict[str, pa.Array]:
        """The columns of many images.

        Parameters
        ----------
        values
            float32 (rows, n): what calls gave.
        valid
            bool (rows,): where they did.
        """
        made, at = {}, 0
        for name in self.names:
            kind = PIXELS[name]
            if kind == pa.uint64():
                packed = np.ascontiguousarray(values[:, at : at + _HASH_BYTES].astype(np.uint8))
                column = packed.view(">u8").reshape(-1).astype(np.uint64)
                at += _HASH_BYTES
            else:
                column = values[:, at].astype(bool) if kind == pa.bool_() else values[:, at]
                at += 1
            made[name] = pa.array(column, kind, mask=~valid)
        return made

    @property
    def width(self) -> int:
        """Values that a call gives."""
        return sum(_HASH_BYTES if PIXELS[name] == pa.uint64() else 1 for name in self.names)
