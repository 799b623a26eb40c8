"""Image files of fewer pixels: the same picture in the same colours, upright, in the file's format or another.

What a format cannot hold is not thrown away: such an image, and one that cannot be decoded, fails with an `ImageError`
whose text is the reason, so that the caller keeps the file that it has.
"""

from __future__ import annotations

import itertools
import struct
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from curator_dask.decode.blurring import Box, blur
from curator_dask.decode.cropping import Crop, Stored
from curator_dask.decode.encoding import FORMATS, check_quality, encode
from curator_dask.decode.gray import is_deep_gray, to_gray8
from curator_dask.decode.orientation import (
    ON_THEIR_SIDE,
    has_orientation,
    is_upright,
    upright_size,
    with_orientation,
)
from curator_dask.decode.quiet import libtiff_lines
from curator_dask.decode.sniff import (
    Encoded,
    Header,
    buffer_of,
    check_size,
    open_image,
    png_chunks,
    reason_of,
    sniff,
)
from curator_dask.decode.spec import DEFAULT_MAX_PIXELS, check_counts
from curator_dask.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from PIL import Image

#: What files of smaller images may be: of the format that they were, or of one of these.
KEEP, IMAGE_FORMATS = "keep", ("keep", "jpeg", "webp", "png")
#: Of JPEG and WebP, where nothing is said. Of photographs of 12 megapixels that are made 512 pixels wide, 90 loses 40.6
#: dB (85: 39.0, 95: 43.2) in 67 kB (53, 98), a fortieth of the 2.1 MB that they were.
DEFAULT_QUALITY = 90

# A JPEG is decoded at a half, a quarter or an eighth where so many times the pixels are left, of each edge: 53 dB from
# the Lanczos of the whole at the least, far less than its encoding loses, in a third of the time.
_JPEG_GAP = 2
# Other images are halved, thirded and so on first where so many times the pixels are left: 51 dB.
_GAP = 3.0
_LARGE = 1 << 26  # pixels of images of which one at a time is decoded: 4 bytes each, or more
_one_large = threading.Lock()
# Chunks of a PNG that say which colours its numbers are.
_COLOUR_CHUNKS = frozenset([b"cHRM", b"gAMA", b"sRGB", b"cICP"])
# Those of sRGB, by the PNG specification (11.3.2), in 100,000ths; and how near others are
# that are the same but for rounding.
_SRGB = {
    b"gAMA": (45455,),
    b"cHRM": (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),
}
_SRGB_NEAR = 100
_SRGB_CICP = bytes([1, 13, 0, 1])
_TIFF_BITS = 258


@dataclass(frozen=True)
class SmallerImages:
    """How large images may be, and what the files of smaller ones are.

    Attributes
    ----------
    max_side, min_side
        Pixels: the longest side is at most so long; or the shortest, so that no side is shorter. One of the two, or
        with `any_size` none.
    image_format
        One of `IMAGE_FORMATS`.
    quality
        1 to 100, of JPEG and WebP.
    any_size
        No image is too large.

    Raises
    ------
    ConfigError
        A value is none that it can have.
    """

    max_side: int | None = None
    min_side: int | None = None
    image_format: str = KEEP
    quality: int = DEFAULT_QUALITY
    any_size: bool = False

    def __post_init__(self) -> None:
        if (self.max_side is None) == (self.min_side is None) and not (
            self.any_size and self.max_side is None
        ):
            raise ConfigError(
                f"max_side={self.max_side!r}, min_side={self.min_side!r}: give one of the two (--max-side, --min-side)"
            )
        check_counts(**{name: value for name, value in self._sides.items() if value is not None})
        if self.image_format not in IMAGE_FORMATS:
            raise ConfigError(
                f"image_format={self.image_format!r}: expected one of {', '.join(map(repr, IMAGE_FORMATS))}"
            )
        check_quality(self.quality)

    @property
    def changes_format(self) -> bool:
        """Whether one is asked for."""
        return self.image_format != KEEP

    @property
    def _sides(self) -> dict[str, int | None]:
        return {"max_side": self.max_side, "min_side": self.min_side}

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of what an image becomes: its own where it is small enough."""
        side, limit = max(width, height), self.max_side
        if limit is None:
            side, limit = min(width, height), self.min_side
        if limit is None or side <= limit:
            return width, height
        return max(1, round(width * limit / side)), max(1, round(height * limit / side))


class Smaller(NamedTuple):
    """What became of an image file.

    Attributes
    ----------
    width, height
        Pixels, upright.
    data
        The new file; None: the old one stays.
    form
        Pillow's name of the format.
    fewer
        Whether it has fewer pixels than the old one.
    crop
        How it was cropped; None: it was not.
    pixels
        uint8 (height, width, 3), RGB, alpha dropped, as `curator_dask.decode.pillow.decode` gives them; None: they were
        not asked for.
    """

    width: int
    height: int
    data: bytes | None
    form: str
    fewer: bool = False
    crop: Crop | None = None
    pixels: np.ndarray | None = None


def make_smaller(
    data: Encoded,
    how: SmallerImages,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    boxes: Sequence[Box] = (),
    strength: float = 1.0,
    size: tuple[int, int] | None = None,
    pixels: bool = False,
    write: bool = True,
) -> Smaller:
    """Make an image file smaller, if it is too large or of another format than is asked for; or blur regions of it.

    Or have it exactly of some size: resized to cover that, and cropped. A file that has it, upright, stays.

    Orientation is applied to the pixels. An ICC profile stays, and in a PNG what else says which colours it has; other
    metadata (EXIF, XMP, comments) is left out. Alpha is resized premultiplied, CMYK as such, grey of 16 bits with all
    of them; a palette becomes the colours that it stands for.

    Parameters
    ----------
    data
        The file.
    how
        How large, and in which format.
    max_pixels
        Height times width above which an image is not decoded.
    boxes, strength
        What is blurred, and how much: see `curator_dask.decode.blurring.blur`. With boxes the file is always made anew.
    size
        Width and height that it gets, upright, however large it is; None: as `how` says.
    pixels
        Give them, too: before they are encoded.
    write
        False: the pixels alone are wanted, and no file is made, so that what a format does not hold is no reason.

    Raises
    ------
    ImageError
        With the reason why it stays as it is: it cannot be decoded, or the format does not hold all of it.
    """
    header = sniff(data, max_pixels)
    form = how.image_format.upper() if how.changes_format else header.kind
    if not write:
        form = header.kind if header.kind in FORMATS else "PNG"
    if not boxes and form == header.kind:
        whole = upright_size(data, header)
        if size is None and how.size(header.width, header.height) == (header.width, header.height):
            return Smaller(*whole, None, form)
        if size == whole and is_upright(data):
            has = _decoded(data, size, max_pixels) if pixels else None
            return Smaller(*whole, None, form, crop=Crop.of(*whole, size), pixels=has)
    if form not in FORMATS:
        raise ImageError(
            f"format: {form} is made smaller in another format only: give image_format (--image-format)"
        )
    large = header.width * header.height > _LARGE
    with libtiff_lines() as said, _one_large if large else nullcontext():
        try:
            with open_image(data) as opened:
                check_size(opened.height, opened.width, max_pixels)
                _check_whole(opened, header, data)
                if header.kind == "PNG" != form and write:
                    _check_colours(opened, data, form)
                image, fewer, crop = _resized(opened, header, how, form, size)
                if boxes:
                    blur(image, boxes, strength)
                seen = _rgb(image, opened, data) if pixels else None
                options = _options(opened, header, data, image, form)
        except Exception as error:
            raise ImageError(reason_of(error, data, max_pixels, *said[:1])) from None
    if not write:
        return Smaller(*image.size, None, form, fewer, crop, seen)
    try:
        made: Encoded = encode(image, form, how.quality, **options)
    except Exception as error:  # of Pillow, of any type: it has too many pixels for the format, say
        raise ImageError(f"not written: as {form}: {error or type(error).__name__}") from None
    # A row may know of an orientation, too, as img2dataset's do: a file that says its own is not turned by it again.
    if has_orientation(data):
        made = with_orientation(made, 1)
    return Smaller(*image.size, bytes(made), form, fewer, crop, seen)


def _decoded(data: Encoded, size: tuple[int, int], max_pixels: int) -> np.ndarray:
    """The pixels of a file that stays; raises ImageError where they are not of the size that it says."""
    from curator_dask.decode.pillow import decode

    image = decode(data, max_pixels)
    if image.size != size:
        raise ImageError(
            f"size: its headers say {size[0]}x{size[1]} pixels, it has {image.width}x{image.height}"
        )
    return np.asarray(image)


def _rgb(image: Image.Image, opened: Image.Image, data: Encoded) -> np.ndarray:
    """The pixels of an image that was made of one that Pillow has opened."""
    deep = to_gray8(image, opened, data) if is_deep_gray(image) else image
    return np.asarray(deep.convert("RGB"))


def _check_whole(opened: Image.Image, header: Header, data: Encoded) -> None:
    """Raise ImageError where Pillow does not decode all that there is: other pictures, or more than 8 bits a colour."""
    if header.kind != "JPEG" and getattr(opened, "is_animated", False):
        raise ImageError("animated: an image of several pictures is not made smaller")
    if header.kind == "PNG":
        depth, colour = buffer_of(data)[24:26]
        deep = depth == 16 and colour != 0
    else:
        tags: Any = getattr(opened, "tag_v2", {})
        deep = opened.mode in ("RGB", "RGBA", "CMYK") and max(tags.get(_TIFF_BITS, (8,))) > 8
    if deep:
        raise ImageError("deep: colours of more than 8 bits, of which Pillow decodes 8")


def _colour_chunks(data: Encoded) -> dict[bytes, bytes]:
    """What a PNG says of its colours, besides an ICC profile."""
    before = itertools.takewhile(lambda chunk: chunk[0] != b"IDAT", png_chunks(buffer_of(data)))
    return {name: chunk[8:-4].tobytes() for name, chunk in before if name in _COLOUR_CHUNKS}


def _check_colours(opened: Image.Image, data: Encoded, form: str) -> None:
    """Raise ImageError where a PNG has colours that only its own chunks can say: others are taken for sRGB.

    By the PNG specification (4.3) cICP is before an ICC profile, which is before sRGB, gAMA and cHRM.
    """
    said = _colour_chunks(data)
    cicp = said.pop(b"cICP", None)
    profile = opened.info.get("icc_profile")
    if cicp is None:
        if profile or b"sRGB" in said:
            return
        odd = [name for name, value in said.items() if not _is_srgb(name, value)]
    else:
        odd = [b"cICP"] if cicp != _SRGB_CICP or profile else []  # the profile would be followed
    if odd:
        names = ", ".join(sorted(name.decode() for name in odd))
        raise ImageError(
            f"colours: {form} does not hold what the PNG says of them ({names}), which is not sRGB"
        )


def _is_srgb(name: bytes, value: bytes) -> bool:
    """Whether gAMA or cHRM says what sRGB has; of another length they say nothing."""
    expected = _SRGB[name]
    if len(value) != 4 * len(expected):
        return True
    found = struct.unpack(f">{len(expected)}I", value)
    return all(abs(one - other) <= _SRGB_NEAR for one, other in zip(found, expected, strict=True))


def _resized(
    opened: Image.Image, header: Header, how: SmallerImages, form: str, asked: tuple[int, int] | None
) -> tuple[Image.Image, bool, Crop | None]:
    """The image upright, of the size that it is to have, of a mode that the format holds.

    Besides whether it has fewer pixels than before, and how it was cropped.
    """
    from PIL import Image

    from curator_dask.decode.pillow import orientation_of, upright

    def sizes(whole: tuple[int, int]) -> tuple[tuple[int, int], Stored | None, Crop | None]:
        if asked is None:
            return how.size(*whole), None, None
        turn = orientation_of(opened)
        crop = Crop.of(*(whole[::-1] if turn in ON_THEIR_SIDE else whole), asked)
        stored = crop.stored(turn)
        return stored.resized, stored, crop

    whole: tuple[int, int] = opened.size
    box: tuple[float, float, float, float] | None = None
    if header.kind == "JPEG":
        (wide, high), _, _ = sizes(whole)
        drafted = opened.draft(None, (_JPEG_GAP * wide, _JPEG_GAP * high))
        box = None if drafted is None else drafted[1]
    opened.load()
    if header.kind != "JPEG":
        whole = opened.size  # a TIFF is turned as it is loaded
    image = _in_mode(opened, form)
    size, stored, crop = sizes(whole)
    if stored is not None:
        size, box = stored.size, stored.within(*(image.size if box is None else box[2:]))
    if image.size != size or stored is not None:
        gap = None if image.mode == "I;16" or header.kind == "JPEG" else _GAP
        image = image.resize(size, Image.Resampling.LANCZOS, box, gap)
    return upright(image), size[0] * size[1] < whole[0] * whole[1], crop


def _in_mode(opened: Image.Image, form: str) -> Image.Image:
    """The image in a mode that can be resized and that the format holds."""
    clear = "transparency" in opened.info
    mode = {
        "1": "LA" if clear else "L",
        "L": "LA" if clear else "L",
        "P": "RGBA" if clear else "RGB",
        "RGB": "RGBA" if clear else "RGB",
        "PA": "RGBA",
        "RGBa": "RGBA",
        "La": "LA",
        "RGBX": "RGB",
        "YCbCr": "RGB",
    }.get(opened.mode, opened.mode)
    modes = FORMATS[form].modes
    image = opened.convert(mode) if mode != opened.mode else opened
    if mode in ("LA", "RGBA") and mode not in modes and image.getchannel("A").getextrema() == (255, 255):
        image = image.convert(mode := mode.removesuffix("A"))
    if mode in ("L", "LA") and mode not in modes and (grey := f"RGB{mode[1:]}") in modes:
        if opened.info.get("icc_profile", b"")[16:20] == b"GRAY":
            raise ImageError(f"grey: {form} does not hold its ICC profile, which is of grey")
        image = image.convert(mode := grey)
    if mode not in modes or (mode == "I;16" and clear):
        what = {"LA": "transparent", "RGBA": "transparent", "CMYK": "CMYK"}.get(mode, "deep")
        raise ImageError(f"{what}: {form} does not hold pixels of Pillow's mode {mode}")
    return image


def _options(
    opened: Image.Image, header: Header, data: Encoded, image: Image.Image, form: str
) -> dict[str, Any]:
    """How the file is written besides: with the colours that the old one says, and without loss where it had none."""
    from PIL.PngImagePlugin import PngInfo

    options: dict[str, Any] = {"icc_profile": opened.info.get("icc_profile")}
    image.info.clear()  # of which Pillow would write some
    if form == header.kind == "PNG":
        options["pnginfo"] = PngInfo()
        for name, value in _colour_chunks(data).items():
            options["pnginfo"].add(name, value)
    if form == header.kind == "WEBP":
        view, at, name = buffer_of(data), 12, b""
        while at + 8 <= view.nbytes and name not in (b"VP8 ", b"VP8L"):
            name, length = view[at : at + 4].tobytes(), int.from_bytes(view[at + 4 : at + 8], "little")
            at += 8 + length + length % 2
        options["lossless"] = name == b"VP8L"
    return options
