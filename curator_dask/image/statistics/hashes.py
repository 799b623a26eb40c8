"""imagehash's `phash` and `dhash`, bit for bit, in a third of the time.

What takes the time in imagehash is Pillow's Lanczos resize of the whole picture to a few pixels, once for each hash.
Here it is made by products of matrices, for both hashes together. Pillow computes in whole numbers: weights in units of
2^-22, pixels of 8 bits. Their sums are below 2^53, so float64 holds them exactly, and what comes out is Pillow's.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from curator_dask.decode.pillow import loses_rows_first

HASH_BYTES = 8

_EDGE = 8  # bits of an edge of a hash
#: Width and height of the grey picture that each hash looks at.
LOOKED_AT = {"phash": (4 * _EDGE, 4 * _EDGE), "dhash": (_EDGE + 1, _EDGE)}

_UNIT = 1 << 22  # of Pillow's weights
_SUPPORT = 3.0  # Lanczos: pixels to each side, of the picture or of the result, whichever are larger
# Of edges of ordinary size weights are kept: making those of both hashes takes as long as using them. 30 MB at most.
_CACHED = 1024
_LARGEST_CACHED = 640
_BLOCK = 1 << 19  # pixels that are float64 at a time


def hashes_of(grey: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The hashes of a picture.

    Parameters
    ----------
    grey
        uint8 (h, w): Pillow's ``convert("L")`` of it.
    names
        Which of ``"phash"`` and ``"dhash"``.

    Returns
    -------
    dict
        For each name uint8 (8,): the 64 bits row by row, the first the highest.
    """
    made = _resized(grey, [LOOKED_AT[name] for name in names])
    of = {"phash": _waves, "dhash": _steps}
    return {name: np.packbits(of[name](small).reshape(-1)) for name, small in zip(names, made, strict=True)}


def _waves(small: np.ndarray) -> np.ndarray:
    """Which of the longest waves are stronger than the median, bool (8, 8)."""
    from scipy.fftpack import dct

    # imagehash's very functions: of a picture of stripes most waves are zero but for rounding.
    longest = dct(dct(small, axis=0), axis=1)[:_EDGE, :_EDGE]
    middle = np.sort(longest, axis=None)[longest.size // 2 - 1 : longest.size // 2 + 1]
    return np.asarray(longest > middle.mean())


def _steps(small: np.ndarray) -> np.ndarray:
    """Which pixels are brighter than the one to their left, bool (8, 8)."""
    return np.asarray(small[:, 1:] > small[:, :-1])


def _resized(grey: np.ndarray, sizes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Pillow's ``resize(size, LANCZOS)`` of uint8 (h, w) for each size (width, height)."""
    # Each pass is rounded, so the order is seen. Height first is width first of the picture on its side.
    on_side = [loses_rows_first(grey.shape[0] - height, grey.shape[1] - width) for width, height in sizes]
    made: list[np.ndarray] = [grey] * len(sizes)
    for turn in {*on_side}:
        lines = grey.T if turn else grey
        numbers = [number for number, its in enumerate(on_side) if its == turn]
        wanted = [sizes[number][:: -1 if turn else 1] for number in numbers]
        passed = _shorter(lines, [width for width, _ in wanted])
        for number, pixels, (_, height) in zip(numbers, passed, wanted, strict=True):
            (small,) = _shorter(pixels.T, [height])
            made[number] = small if turn else small.T
    return made


def _shorter(lines: np.ndarray, lengths: Sequence[int]) -> list[np.ndarray]:
    """One pass of Pillow's: each of the lines uint8 (n, source) resized to each of the lengths, uint8 (n, length)."""
    source = lines.shape[1]
    weights = np.concatenate([_weights(source, length) for length in lengths]).astype(np.float64)
    made = np.empty((len(weights), len(lines)), np.uint8)
    step = max(1, _BLOCK // source)
    for start in range(0, len(lines), step):
        block = lines[start : start + step].astype(np.float64)
        sums = weights @ block.T
        sums += _UNIT // 2
        sums *= 1 / _UNIT
        made[:, start : start + step] = np.clip(sums, 0, 255, out=sums)  # and cut: rounded as Pillow does it
    return [part.T for part in np.split(made, np.cumsum(lengths)[:-1])]


def _weights(source: int, length: int) -> np.ndarray:
    """float32 (length, source): how much each pixel of a line weighs in each pixel of the shorter one, in units."""
    return (_kept_weights if source <= _LARGEST_CACHED else _new_weights)(source, length)


def _new_weights(source: int, length: int) -> np.ndarray:
    scale = source / length
    stretch = max(scale, 1.0)
    reach = _SUPPORT * stretch
    centre = ((np.arange(length) + 0.5) * scale)[:, np.newaxis]
    first = np.maximum((centre - reach + 0.5).astype(int), 0)
    last = np.minimum((centre + reach + 0.5).astype(int), source)
    at = first + np.arange(int(np.ceil(reach)) * 2 + 1)
    apart = (at - centre + 0.5) * (1 / stretch)
    within = (at < last) & (apart >= -_SUPPORT) & (apart < _SUPPORT)
    share = np.where(within, np.sinc(apart) * np.sinc(apart / _SUPPORT), 0)
    share *= _UNIT / share.sum(axis=1, keepdims=True)
    weights = np.zeros((length, source), np.float32)  # which holds them: none has more than 24 bits
    weights[np.nonzero(within)[0], at[within]] = np.trunc(share + np.copysign(0.5, share))[within]
    return weights


_kept_weights = functools.lru_cache(_CACHED)(_new_weights)
