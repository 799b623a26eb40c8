"""What the pixels of an image say: perceptual hashes, sharpness, brightness, colour, borders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from curator_dask.image.statistics.hashes import HASH_BYTES, LOOKED_AT, hashes_of
from curator_dask.image.statistics.pdq import PDQ, PDQ_BYTES, pdq_of

if TYPE_CHECKING:
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

#: All that is measured of pixels: those and what has to be asked for.
MEASURED = {**PIXELS, **PDQ}

_SHARP_EDGE = 64  # pixels of the longer edge at which CleanVision looks for edges
_SMALL_EDGE = 256  # at which borders and colours are looked for: they are large
_BORDER_NOISE = 24  # of 255: what JPEG makes of a plain bar beside a picture stays below it
_LINES = 8  # rows or columns that are looked at together: most pictures show what they are in the first
_AT_A_TIME = 1 << 14  # pixels that are float32 at a time, which a core's cache holds
_EXACT = 64  # squares of twice a pixel's range, which float32 adds up without an error


class _Looked:
    """One image, an RGB picture of Pillow's or its pixels, and what several statistics need of it, each made once."""

    def __init__(self, given: PIL.Image.Image | np.ndarray):
        self._given = given

    @cached_property
    def image(self) -> PIL.Image.Image:
        from PIL import Image

        return Image.fromarray(self._given) if isinstance(self._given, np.ndarray) else self._given

    @cached_property
    def pixels(self) -> np.ndarray:
        """uint8 (h, w, 3)."""
        return np.asarray(self._given)

    @cached_property
    def grey(self) -> np.ndarray:
        """uint8 (h, w)."""
        return np.asarray(self.image.convert("L"))

    @cached_property
    def histogram(self) -> np.ndarray:
        """Counts (3, 256), by channel and value."""
        return np.array(self.image.histogram()).reshape(3, 256)

    @cached_property
    def small(self) -> np.ndarray:
        """uint8 (h, w, 3), of twice `_SMALL_EDGE` at most."""
        factor = max(self.pixels.shape) // _SMALL_EDGE
        return np.asarray(self.image.reduce(factor)) if factor > 1 else self.pixels

    @cached_property
    def pdq(self) -> tuple[np.ndarray, int]:
        """See `pdq_of`."""
        return pdq_of(self.pixels)


def _blurriness(looked: _Looked) -> float:
    from PIL import ImageFilter

    image = looked.image
    ratio = max(image.size) / _SHARP_EDGE
    if ratio > 1:
        size = [max(int(edge // ratio), 1) for edge in image.size]
        image = image.resize((size[0], size[1]), reducing_gap=3.0)
    edges = image.convert("L").filter(ImageFilter.FIND_EDGES)
    if min(edges.size) <= 2:
        return 0.0
    # Pillow leaves the outermost pixels unfiltered: with them a blank white picture is as sharp as a photograph.
    inside = np.asarray(edges, np.int64)[1:-1, 1:-1]
    mean_square = int(inside.sum()) ** 2 / inside.size
    return float(np.sqrt((int((inside**2).sum()) - mean_square) / inside.size))


def _brightness(looked: _Looked) -> float:
    red, green, blue = looked.histogram @ np.arange(256) / looked.histogram[0].sum()
    return float(np.sqrt(0.241 * red**2 + 0.691 * green**2 + 0.068 * blue**2) / 255)


def _entropy(looked: _Looked) -> float:
    shares = looked.histogram[looked.histogram > 0] / looked.histogram.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def _colourfulness(looked: _Looked) -> float:
    """Of the channels' differences, in whole numbers, which add up without an error."""
    pixels = looked.small.reshape(-1, 3)
    sums, ones = np.zeros((2, 2)), np.ones(_EXACT, np.float32)
    for start in range(0, len(pixels), _AT_A_TIME):
        block = pixels[start : start + _AT_A_TIME]
        filled = np.zeros((3, -(-len(block) // _EXACT) * _EXACT), np.float32)
        filled[:, : len(block)] = block.T
        red, green, blue = filled
        for number, values in enumerate((red - green, red + green - 2 * blue)):
            few = values.reshape(-1, _EXACT)
            sums[number] += [each.sum(dtype=np.float64) for each in (few @ ones, np.vecdot(few, few))]
    (mean, variance), (mean_twice, variance_four) = (
        (total / len(pixels), max(0.0, squares / len(pixels) - (total / len(pixels)) ** 2))
        for total, squares in sums
    )
    return float(np.sqrt(variance + variance_four / 4) + 0.3 * np.hypot(mean, mean_twice / 2))


def _grey(looked: _Looked) -> bool:
    parts = looked.pixels[:_LINES], looked.pixels[_LINES:]
    return all((part[..., 0] == part[..., other]).all() for part in parts for other in (1, 2))


def _border(looked: _Looked) -> float:
    image = looked.small
    height, width = image.shape[:2]
    corner = image[0, 0]
    top = _plain_rows(image, corner)
    if top == height:
        return 1.0
    inside_height = height - top - _plain_rows(image[::-1], corner)
    on_side = image.transpose(1, 0, 2)
    inside_width = width - _plain_rows(on_side, corner) - _plain_rows(on_side[::-1], corner)
    return 1.0 - float(inside_width * inside_height / (width * height))


def _plain_rows(image: np.ndarray, colour: np.ndarray) -> int:
    """How many of the first rows of uint8 (h, w, 3) are of a colour, uint8 (3,), throughout."""
    least, most = (
        np.tile(np.clip(colour.astype(np.int16) + noise, 0, 255).astype(np.uint8), image.shape[1])
        for noise in (-_BORDER_NOISE, _BORDER_NOISE)
    )
    for start in range(0, len(image), _LINES):
        rows = image[start : start + _LINES].reshape(-1, len(least))
        apart = ((rows < least) | (rows > most)).any(axis=1)
        if apart.any():
            return start + int(apart.argmax())
    return len(image)


_MEASURES: dict[str, Callable[[_Looked], float | np.ndarray]] = {
    "blurriness": _blurriness,
    "brightness": _brightness,
    "entropy": _entropy,
    "colourfulness": _colourfulness,
    "grey": _grey,
    "border": _border,
    "pdq": lambda looked: looked.pdq[0],
    "pdq_quality": lambda looked: looked.pdq[1],
}


@dataclass(frozen=True)
class Measure:
    """Measures one image; a transform of `curator_dask.decode.spec.LoaderSpec`, so it shares others' decoding.

    A hash is given as its bytes, for a float32 holds no 64 bits.

    Attributes
    ----------
    names
        Which of `MEASURED`.
    """

    names: tuple[str, ...]

    def __call__(self, image: PIL.Image.Image) -> torch.Tensor:
        """float32 (n,): the values one after the other, of an upright RGB image."""
        return self._of(_Looked(image))

    def of_pixels(self, pixels: np.ndarray) -> torch.Tensor:
        """The same of the image's pixels, uint8 (h, w, 3), which stay as they are."""
        return self._of(_Looked(pixels))

    def _of(self, looked: _Looked) -> torch.Tensor:
        import torch

        hashes = [name for name in self.names if name in LOOKED_AT]
        made: dict[str, Any] = hashes_of(looked.grey, hashes) if hashes else {}
        made |= {name: _MEASURES[name](looked) for name in self.names if name not in made}
        return torch.from_numpy(np.hstack([made[name] for name in self.names]).astype(np.float32))

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
            kind, width = MEASURED[name], _width_of(name)
            given = values[:, at : at + width]
            at += width
            if name == "pdq":
                digits = [row.tobytes().hex() for row in given.astype(np.uint8)]
                made[name] = pa.array(np.array(digits, object), kind, mask=~valid)
                continue
            if kind == pa.uint64():
                packed = np.ascontiguousarray(given.astype(np.uint8))
                column = packed.view(">u8").reshape(-1).astype(np.uint64)
            else:
                column = given[:, 0] if kind == pa.float32() else given[:, 0].astype(kind.to_pandas_dtype())
            made[name] = pa.array(column, kind, mask=~valid)
        return made

    @property
    def width(self) -> int:
        """Values that a call gives."""
        return sum(map(_width_of, self.names))


def _width_of(name: str) -> int:
    if name == "pdq":
        return PDQ_BYTES
    return HASH_BYTES if MEASURED[name] == pa.uint64() else 1
