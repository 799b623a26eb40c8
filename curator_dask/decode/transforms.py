"""What timm's evaluation transform, or CLIP's own, does to an image: a small spec and exact geometry.

`TransformSpec` is what travels: sizes, interpolation, mean and std. `TransformSpec.geometry` says in whole
pixels how large an image becomes and which part of it is kept, with the rounding of torchvision and timm, or
of transformers; both decoders work from it. timm's source: ``timm/data/transforms_factory.py``,
``transforms_imagenet_eval``; transformers': ``transformers/image_processing_backends.py``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from curator_dask.errors import ConfigError

if TYPE_CHECKING:
    import torch

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
"""timm's words for Pillow's filters, without ``random``, which is for training."""

_REACH = {"nearest": 1, "bilinear": 1, "bicubic": 2, "box": 1, "hamming": 1, "lanczos": 3}
"""Pixels to each side that a filter looks at, times the scale where it shrinks."""

CROP_MODES = ("center", "squash", "border", "center_floor")

_TIMM_CROP_PCT = 0.875  # timm.data.DEFAULT_CROP_PCT: what timm takes where a config has none


class Axis(NamedTuple):
    """One axis of a resize and crop, in pixels.

    Attributes
    ----------
    source
        Length of the image along this axis.
    resized
        Its length after the resize of the whole image.
    start
        First pixel of the resized image that is kept.
    kept
        Number of pixels kept, at most the output's length.
    pad
        Pixels of fill before the kept ones; what the output still lacks follows them.
    """

    source: int
    resized: int
    start: int
    kept: int
    pad: int

    @property
    def region(self) -> tuple[float, float]:
        """Start and end of the kept pixels in coordinates of the source."""
        scale = self.source / self.resized
        return self.start * scale, (self.start + self.kept) * scale

    def needed(self, interpolation: str) -> tuple[int, int]:
        """First and last (exclusive) source pixel that the kept pixels are made of."""
        start, end = self.region
        margin = math.ceil(_REACH[interpolation] * max(1.0, self.source / self.resized)) + 1
        return max(0, math.floor(start) - margin), min(self.source, math.ceil(end) + margin)


@dataclass(frozen=True)
class TransformSpec:
    """A resize, a crop and a normalisation, as timm's evaluation transform or CLIP's own does them.

    Attributes
    ----------
    size
        Height and width of the output in pixels.
    interpolation
        One of `INTERPOLATIONS`.
    mean, std
        Per channel (red, green, blue), on the scale 0 to 1.
    crop_pct
        Part of the resized image that the crop keeps along an edge; the image is resized to
        ``floor(size / crop_pct)``.
    crop_mode
        ``"center"``: the shorter edge is resized, the middle is kept. ``"squash"``: both edges are resized,
        the aspect is lost. ``"border"``: the longer edge is resized and a border is added. These three are
        timm's. ``"center_floor"`` is transformers' (CLIP's own): as ``"center"``, but a crop that cannot lie in
        the middle begins half a pixel before it, where torchvision rounds the half to an even number.

    Raises
    ------
    ConfigError
        A field that no transform could have.
    """

    size: tuple[int, int]
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_pct: float = 1.0
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        for name, kind, length in (("size", int, 2), ("mean", float, 3), ("std", float, 3)):
            value = getattr(self, name)
            try:
                fixed = tuple(kind(item) for item in value)
            except (TypeError, ValueError):
                fixed = ()
            if len(fixed) != length or fixed != tuple(value):
                raise ConfigError(
                    f"TransformSpec.{name}: expected {length} {kind.__name__} values, got {value!r}"
                )
            object.__setattr__(self, name, fixed)  # a list would not hash
        if min(self.size) < 1:
            raise ConfigError(f"TransformSpec.size: expected height and width of at least 1, got {self.size}")
        if min(self.std) <= 0:
            raise ConfigError(f"TransformSpec.std: expected values above 0, got {self.std}")
        if self.interpolation not in INTERPOLATIONS:
            raise ConfigError(
                f"TransformSpec.interpolation: expected one of {', '.join(INTERPOLATIONS)}; "
                f"got {self.interpolation!r}"
            )
        if self.crop_mode not in CROP_MODES:
            raise ConfigError(
                f"TransformSpec.crop_mode: expected one of {', '.join(CROP_MODES)}; got {self.crop_mode!r}"
            )
        if not 0 < self.crop_pct < math.inf or min(self.scale_size) < 1:
            raise ConfigError(
                f"TransformSpec.crop_pct: expected a number above 0, 1.0 at most as a rule, and no larger "
                f"than the size {self.size}; got {self.crop_pct!r}"
            )

    @classmethod
    def from_timm(cls, data_config: Mapping[str, Any]) -> TransformSpec:
        """Make the spec of the transform that timm would make.

        Parameters
        ----------
        data_config
            What ``timm.data.resolve_data_config`` returns.

        Raises
        ------
        ConfigError
            A key is missing, or the model wants something else than three channels.
        """
        try:
            channels, height, width = data_config["input_size"]
            mean, std = data_config["mean"], data_config["std"]
            interpolation = data_config["interpolation"]
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                "TransformSpec.from_timm: expected what timm.data.resolve_data_config returns (input_size of "
                f"three numbers, interpolation, mean, std); got {data_config!r}"
            ) from error
        if channels != 3:
            raise ConfigError(
                f"TransformSpec.from_timm: the model wants {channels} channels; images are decoded to 3 (RGB)"
            )
        return cls(
            size=(height, width),
            interpolation=interpolation,
            mean=tuple(mean),
            std=tuple(std),
            crop_pct=data_config.get("crop_pct") or _TIMM_CROP_PCT,
            crop_mode=data_config.get("crop_mode") or "center",
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields with lists for tuples, ready for JSON."""
        return {
            "size": list(self.size),
            "interpolation": self.interpolation,
            "mean": list(self.mean),
            "std": list(self.std),
            "crop_pct": self.crop_pct,
            "crop_mode": self.crop_mode,
        }

    @property
    def scale_size(self) -> tuple[int, int]:
        """Height and width that the resize aims at, before the crop."""
        height, width = self.size
        return math.floor(height / self.crop_pct), math.floor(width / self.crop_pct)

    @property
    def pads(self) -> bool:
        """Whether an image may end smaller than the output, and fill is needed."""
        return self.crop_mode == "border" or self.crop_pct > 1

    @property
    def fill(self) -> tuple[int, int, int]:
        """Colour of the border: timm's rounded mean for ``"border"``, else torchvision's black."""
        if self.crop_mode != "border":
            return (0, 0, 0)
        red, green, blue = (round(255 * value) for value in self.mean)
        return red, green, blue

    def geometry(self, height: int, width: int) -> tuple[Axis, Axis]:
        """Rows and columns of an upright image of this size on their way to the output."""
        resized = self._resized(height, width)
        rows, columns = (
            _crop(source, target, crop, floor=self.crop_mode == "center_floor")
            for source, target, crop in zip((height, width), resized, self.size, strict=True)
        )
        return rows, columns

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        target_height, target_width = self.scale_size
        if self.crop_mode == "squash":
            return target_height, target_width
        if self.crop_mode in ("center", "center_floor") and target_height == target_width:
            # torchvision's Resize(int): the shorter edge exactly, the longer one truncated.
            if height <= width:
                return target_height, int(target_height * width / height)
            return int(target_width * height / width), target_width
        # timm's ResizeKeepRatio, to the last floating-point operation.
        ratio_height, ratio_width = height / target_height, width / target_width
        longest = 1.0 if self.crop_mode == "border" else 0.0
        ratio = max(ratio_height, ratio_width) * longest + min(ratio_height, ratio_width) * (1.0 - longest)
        # timm's own transform fails where a very long image would become 0 pixels wide; here 1 is left.
        return max(1, round(height / ratio)), max(1, round(width / ratio))

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Turn pixels into what the model takes, as ToTensor and Normalize do.

        Parameters
        ----------
        pixels
            uint8 of shape (n, height, width, 3), on any device.

        Returns
        -------
        torch.Tensor
            ``(pixels / 255 - mean) / std`` as float32 of shape (n, 3, height, width), to 5e-7, in channels_last
            memory format, on the same device.
        """
        import torch

        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
            raise ConfigError(
                f"TransformSpec.normalize: expected uint8 pixels (n, height, width, 3), "
                f"got {pixels.dtype} {tuple(pixels.shape)}"
            )
        count, height, width, _ = pixels.shape
        scale, shift = _scale_and_shift(self.mean, self.std, width, pixels.device)
        rows = torch.empty((count, height, width * 3), dtype=torch.float32, device=pixels.device)
        given = pixels.reshape(rows.shape)
        # On a CPU image by image, each of which its cache holds from one step to the next.
        for these, those in zip(rows, given, strict=True) if rows.device.type == "cpu" else [(rows, given)]:
            torch.addcmul(shift, these.copy_(those), scale, out=these)
        return rows.view(count, height, width, 3).permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=8)  # made anew for each batch they would make a GPU wait
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device
) -> tuple[Any, Any]:
    """What a row of pixels is multiplied with, and what is added.

    A whole row of each: beside vectors of three the arithmetic would be twice as slow.
    """
    import torch

    factors = 1 / (255 * np.array(std)), -np.array(mean) / np.array(std)
    scale, shift = (torch.tensor(each, dtype=torch.float32, device=device).repeat(width) for each in factors)
    return scale, shift


def _crop(source: int, resized: int, crop: int, *, floor: bool) -> Axis:
    """One axis of torchvision's CenterCrop and timm's CenterCropOrPad, which agree; floored, of transformers'."""
    if crop > resized:
        return Axis(source, resized, start=0, kept=resized, pad=(crop - resized) // 2)
    start = (resized - crop) // 2 if floor else round((resized - crop) / 2)
    return Axis(source, resized, start, kept=crop, pad=0)
