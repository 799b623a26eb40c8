"""Regions of decoded pixels covered with the colour around them, so that a model does not see what is there.

After T-MARS (Maini et al. 2023, https://arxiv.org/abs/2307.03132), which fills boxes of text with the average colour of
the pixels around them, and asks CLIP again how well image and caption fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from curator_dask.decode.blurring import Box

#: Changes with what comes of it; part of what makes a vector.
VERSION = "covered 1"

#: Of a box's shorter side: so far around it pixels are averaged. The paper gives no width.
RING = 0.1


def cover(pixels: np.ndarray, boxes: Sequence[Box]) -> None:
    """Cover regions of an image in place; all other pixels stay as they are.

    Each gets one colour: the mean, rounded, of the pixels around it that are in no box, a tenth of its shorter side
    wide, a pixel at least. Where there are none, as at a box over the whole image, it is the mean of all pixels in no
    box, and where there are none either, of the image. A later box covers an earlier one.

    Parameters
    ----------
    pixels
        uint8 (h, w, channels), upright.
    boxes
        As `curator_dask.decode.blurring.checked_boxes` gives them.
    """
    height, width = pixels.shape[:2]
    places = []
    for left, top, right, bottom in boxes:
        columns = max(0, math.floor(left * width)), min(width, math.ceil(right * width))
        rows = max(0, math.floor(top * height)), min(height, math.ceil(bottom * height))
        if rows[0] < rows[1] and columns[0] < columns[1]:
            places.append((rows, columns))
    if not places:
        return
    outside = np.ones((height, width), bool)
    for rows, columns in places:
        outside[slice(*rows), slice(*columns)] = False
    colours = []
    other: np.ndarray | None = None  # where a box has nothing around it
    for rows, columns in places:
        by = max(1, math.ceil(RING * min(rows[1] - rows[0], columns[1] - columns[0])))
        around = slice(max(0, rows[0] - by), rows[1] + by), slice(max(0, columns[0] - by), columns[1] + by)
        seen = pixels[around][outside[around]]
        if not len(seen) and other is None:
            other = _mean(pixels[outside] if outside.any() else pixels.reshape(-1, pixels.shape[2]))
        colours.append(_mean(seen) if len(seen) else other)
    for (rows, columns), colour in zip(places, colours, strict=True):
        pixels[slice(*rows), slice(*columns)] = colour


def _mean(seen: np.ndarray) -> np.ndarray:
    """The mean of pixels (n, channels), in whole numbers: the same on every machine."""
    sums = seen.sum(axis=0, dtype=np.int64)
    mean: np.ndarray = (2 * sums + len(seen)) // (2 * len(seen))
    return mean
