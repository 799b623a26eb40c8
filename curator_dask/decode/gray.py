"""Grey of more than 8 bits a sample as 8 bits: which of its bits those are, by what the file declares.

Pillow's own conversion cuts every sample above 255 to white. Here the highest 8 of the declared bits are taken, as
Pillow takes those of 16-bit RGB. Of floats no file declares what is white: their values say it.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from curator_dask.decode.sniff import Encoded, buffer_of

if TYPE_CHECKING:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

_SAMPLE_FORMAT, _BITS, _SIGNED = 339, 258, 2
_LARGEST = (341, 281)
"""TIFF's tags SMaxSampleValue and MaxSampleValue."""

_ABOVE_ONE = 2.0
"""Floats from 0 to 1 stay below it, also where a resize has made them overshoot; of 0 to 255 it would be black."""


def is_deep_gray(image: Image.Image) -> bool:
    """Whether an image that Pillow has opened is grey of more than 8 bits a sample (modes ``I``, ``I;16``, ``F``)."""
    return image.mode.partition(";")[0] in ("I", "F")


def to_gray8(image: Image.Image, opened: Image.Image, data: Encoded) -> Image.Image:
    """Of whole samples the highest 8 of the declared bits; floats from 0 to 1 times 255, others from 0 to 255.

    What is beyond is white, what is negative or no number black.

    Parameters
    ----------
    image
        Such an image.
    opened
        As Pillow opened it.
    data
        The encoded image.
    """
    samples = np.asarray(image)
    if image.mode == "F":
        return Image.fromarray(_floats_to_gray8(samples))
    bits = declared_bits(opened, data)
    if bits == 32:
        samples = samples.view(np.uint32)  # Pillow knows no unsigned samples of 32 bits
    return Image.fromarray(np.clip(samples >> (bits - 8), 0, 255).astype(np.uint8))


def declared_bits(image: Image.Image, data: Encoded) -> int:
    """Bits of a sample of such an image, as Pillow gives it; all of them set are white, and 0 is black.

    A TIFF declares them by BitsPerSample, or less than these by SMaxSampleValue or MaxSampleValue where that is a
    power of two less 1 (anything else is a statistic); of signed samples one bit is the sign. A PNG declares 16: what
    its sBIT chunk says, fewer bits with a meaning, does not change how bright they are. PGM and JPEG 2000 may declare
    anything, and Pillow has already made 16 bits of it.

    Parameters
    ----------
    image
        As opened.
    data
        The encoded image.
    """
    match image.format:
        case "TIFF":
            return _tiff_bits(image.tag_v2)  # type: ignore[attr-defined]
        case "PNG":
            return _png_bits(image, data)
        case "PPM":
            return 16
    return 16 if ";16" in image.mode else 31


def _floats_to_gray8(samples: np.ndarray) -> np.ndarray:
    """As scikit-image has floats from 0 to 1; as Pillow has any others, without the fraction."""
    finite = samples[np.isfinite(samples)]
    is_unit = not finite.size or finite.max() < _ABOVE_ONE
    cut = np.clip(np.where(np.isnan(samples), 0, samples), 0, 1 if is_unit else 255)
    return (np.rint(cut * 255) if is_unit else cut).astype(np.uint8)


def _tiff_bits(tags: ImageFileDirectory_v2) -> int:
    (bits, *_), (kind, *_) = tags.get(_BITS, (16,)), tags.get(_SAMPLE_FORMAT, (1,))
    bits -= kind == _SIGNED
    largest = [each for tag in _LARGEST for each in np.ravel(tags.get(tag, ())).tolist()]
    return next((fewer for fewer in range(8, bits) if 2**fewer - 1 in largest), bits)


def _png_bits(image: Image.Image, data: Encoded) -> int:
    """16, or those of sBIT where the samples cannot have been spread over 16 bits, as PNG wants it."""
    bits = _significant_bits(buffer_of(data))
    if not 8 <= bits < 16:
        return 16
    samples = np.asarray(image)
    spread = (2**16 - 1) / (2**bits - 1)
    off = np.abs(samples - np.rint(samples / spread) * spread)
    return bits if samples.max() < 2**bits and off.max() > 1 else 16


def _significant_bits(view: memoryview) -> int:
    """What the sBIT chunk of a grey PNG says; 0 where there is none."""
    at = 8
    while at + 12 <= view.nbytes:
        length, name = struct.unpack_from(">I4s", view, at)
        if name == b"sBIT" and length:
            return view[at + 8]
        if name == b"IDAT":
            break
        at += 12 + length
    return 0
