"""PDQ, the perceptual hash of 256 bits in which lists of known images are exchanged.

Source: "The TMK+PDQF Video-Hashing Algorithm and the PDQ Image-Hashing Algorithm", Facebook, 2019, as the hashes of its
authors' program are made (github.com/facebook/ThreatExchange, ``pdq``): luma; a box filter, twice each way; 64 x 64
samples; the 16 x 16 lowest waves of their cosine transform but for the constant; a bit for each above the median.
"""

from __future__ import annotations

import functools

import numpy as np
import pyarrow as pa

#: The statistics of this module, with their Arrow types.
PDQ = {"pdq": pa.string(), "pdq_quality": pa.int32()}
#: Bytes of a hash.
PDQ_BYTES = 32

_LUMA = np.array([0.299, 0.587, 0.114])
_SAMPLES = 64
_WAVES = 16
_LEAST = 5  # pixels of an edge below which there is no hash
_AT_A_TIME = 1 << 15  # pixels that are float64 at a time
_ALL_ZERO = np.zeros(PDQ_BYTES, np.uint8)


def pdq_of(pixels: np.ndarray) -> tuple[np.ndarray, int]:
    """The hash of an image, and how much there is to see in it.

    Parameters
    ----------
    pixels
        uint8 (h, w, 3), RGB, of the image's own size.

    Returns
    -------
    tuple
        uint8 (32,), in the order in which a hash is written as 64 hexadecimal digits; and the quality, 0 (plain) to
        100. Where an edge has fewer than 5 pixels both are zero.
    """
    height, width = pixels.shape[:2]
    if min(height, width) < _LEAST:
        return _ALL_ZERO, 0
    block = max(1, _AT_A_TIME // width)
    parts = [_narrow(_luma(pixels[start : start + block]), 1) for start in range(0, height, block)]
    samples = _narrow(np.concatenate(parts), 0).astype(np.float32)
    waves = _cosines() @ samples.astype(np.float64) @ _cosines().T
    waves = waves.astype(np.float32).reshape(-1)
    # Of an even number of values the lower one of the middle.
    median = np.partition(waves, len(waves) // 2 - 1)[len(waves) // 2 - 1]
    return np.packbits((waves > median)[::-1]), _quality(samples)


def _luma(pixels: np.ndarray) -> np.ndarray:
    """float64 (h, w), of the values that float32 holds."""
    luma: np.ndarray = (pixels @ _LUMA).astype(np.float32)
    return luma.astype(np.float64)


def _narrow(values: np.ndarray, axis: int) -> np.ndarray:
    """64 of the values along an axis, blurred so far before that none of the others is lost."""
    size = values.shape[axis]
    if size == _SAMPLES:
        return values
    window = (size + 2 * _SAMPLES - 1) // (2 * _SAMPLES)
    for _ in range(2):
        values = _box(values, window, axis)
    taken: np.ndarray = values.take(((np.arange(_SAMPLES) + 0.5) * size / _SAMPLES).astype(np.int64), axis)
    return taken


def _box(values: np.ndarray, window: int, axis: int) -> np.ndarray:
    """The mean of so many values around each, of fewer at the edges."""
    if window == 1:
        return values
    size = values.shape[axis]
    behind = (window + 2) // 2
    last = np.minimum(np.arange(size) + behind, size)
    first = np.maximum(np.arange(size) - (window - behind), 0)
    zero = np.zeros_like(values.take([0], axis))
    sums = np.concatenate([zero, np.cumsum(values, axis)], axis)
    counts = (last - first).reshape([-1, 1] if axis == 0 else [1, -1])
    means: np.ndarray = (sums.take(last, axis) - sums.take(first, axis)) / counts
    return means


@functools.cache
def _cosines() -> np.ndarray:
    """float64 (16, 64): the waves, without the constant one."""
    waves, at = np.arange(1, _WAVES + 1)[:, None], 2 * np.arange(_SAMPLES) + 1
    values: np.ndarray = np.sqrt(2 / _SAMPLES) * np.cos(np.pi / 2 / _SAMPLES * waves * at)
    return values


def _quality(samples: np.ndarray) -> int:
    """How much neighbours among the samples differ, in whole hundredths of the range."""
    steps = [np.diff(samples, axis=axis) * np.float32(100) / np.float32(255) for axis in (0, 1)]
    return min(100, sum(int(np.abs(step.astype(np.int64)).sum()) for step in steps) // 90)
