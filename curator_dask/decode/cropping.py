"""Where an image is cropped that is to have exactly some size: resized to cover it, and the middle kept."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

from curator_dask.errors import ConfigError

#: Longest side of a size: WebP's.
LONGEST = 16_383

_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")
#: By EXIF's orientation, how what is stored lies: whether its axes are swapped, and whether it is then mirrored from
#: left to right and from top to bottom, seen in the stored image.
_LIES = {
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


def size_in(text: Any) -> tuple[int, int]:
    """Width and height in a text, as ``832x1216``.

    Raises
    ------
    ConfigError
        There is no size in it, or one that is too large.
    """
    match = _SIZE.fullmatch(text) if isinstance(text, str) else None
    if match is None or max(size := (int(match[1]), int(match[2]))) > LONGEST:
        raise ConfigError(f"{text!r}: expected width and height of at most {LONGEST} pixels, as 832x1216")
    return size


@dataclass(frozen=True)
class Crop:
    """How an image comes to its size.

    Attributes
    ----------
    width, height
        Pixels of the image before, upright.
    resized
        Width and height of the image resized: of its ratio but for rounding, no side shorter than asked for.
    left, top
        Where in that the kept part begins: it is the middle, half a pixel to the beginning where what is cut is odd.
    size
        Of that part: width and height.
    """

    width: int
    height: int
    resized: tuple[int, int]
    left: int
    top: int
    size: tuple[int, int]

    #: What is told of it.
    told: ClassVar[tuple[str, ...]] = ("width", "height", "top", "left")

    @classmethod
    def of(cls, width: int, height: int, size: tuple[int, int]) -> Crop:
        """Of an image of so many pixels, upright, for a size."""
        wide, high = size
        if wide * height >= high * width:  # the width decides
            resized = wide, max(high, round(height * wide / width))
        else:
            resized = max(wide, round(width * high / height)), high
        return cls(width, height, resized, (resized[0] - wide) // 2, (resized[1] - high) // 2, size)

    @property
    def enlarged(self) -> bool:
        """Whether the image is smaller than the size in width or height."""
        return self.width < self.size[0] or self.height < self.size[1]

    @property
    def cut(self) -> float:
        """The share of the area that is cut off."""
        return 1 - self.size[0] * self.size[1] / (self.resized[0] * self.resized[1])

    def stored(self, orientation: int) -> Stored:
        """The same of the image as it is stored, which EXIF's orientation says how to turn."""
        swapped, mirrored, flipped = _LIES.get(orientation, (False, False, False))
        edges = [
            (self.left, self.left + self.size[0], self.resized[0]),
            (self.top, self.top + self.size[1], self.resized[1]),
        ]
        across, down = edges[::-1] if swapped else edges
        if mirrored:
            across = across[2] - across[1], across[2] - across[0], across[2]
        if flipped:
            down = down[2] - down[1], down[2] - down[0], down[2]
        return Stored((across[0], down[0], across[1], down[1]), (across[2], down[2]))


@dataclass(frozen=True)
class Stored:
    """How an image is cropped, as it is stored.

    Attributes
    ----------
    box
        Left, top, right and bottom of what is kept, of the image resized.
    resized
        Its width and height.
    """

    box: tuple[int, int, int, int]
    resized: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of what is kept."""
        left, top, right, bottom = self.box
        return right - left, bottom - top

    def within(self, width: float, height: float) -> tuple[float, float, float, float]:
        """The box in an image of so many pixels that is not resized."""
        wide, high = self.resized
        left, top, right, bottom = self.box
        across, down = width / wide, height / high
        return left * across, top * down, min(width, right * across), min(height, bottom * down)
