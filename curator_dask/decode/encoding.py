"""Pixels as files again: the formats that are written, and how."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from curator_dask.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Format:
    """A format of image files.

    Attributes
    ----------
    suffixes
        What its files are called; by the first a new one is.
    modes
        Pillow's modes that it holds.
    options
        How it is written.
    """

    suffixes: tuple[str, ...]
    modes: frozenset[str]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def suffix(self) -> str:
        """Of a new file."""
        return self.suffixes[0]


#: By Pillow's name. No colour of a JPEG is halved: at the same number of bytes whole colours at a lower quality are
#: nearer to the pixels (512 pixels wide, of photographs of 12 megapixels: 40.6 dB in 67 kB, and 40.8 dB in 76 kB).
FORMATS = {
    "JPEG": Format(("jpg", "jpeg", "jpe", "jfif"), frozenset(["L", "RGB", "CMYK"]), {"subsampling": 0}),
    "PNG": Format(("png",), frozenset(["L", "LA", "RGB", "RGBA", "I;16"])),
    "WEBP": Format(("webp",), frozenset(["RGB", "RGBA"])),
}


def check_quality(quality: Any) -> None:
    """Raise ConfigError for what is no quality of a JPEG or WebP: a whole number from 1 to 100."""
    if not isinstance(quality, int) or isinstance(quality, bool) or not 1 <= quality <= 100:
        raise ConfigError(f"quality={quality!r}: expected a whole number from 1 to 100")


def encode(image: Image.Image, form: str, quality: int, **others: Any) -> bytes:
    """The file of an image.

    Parameters
    ----------
    image
        Of a mode that the format holds.
    form
        One of `FORMATS`.
    quality
        1 to 100, of JPEG and WebP.
    others
        Options of Pillow's for it besides.
    """
    file = io.BytesIO()
    image.save(file, form, quality=quality, **FORMATS[form].options, **others)
    return file.getvalue()
