"""What the threads make of a decoded image: an array for each of the transforms, the image decoded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from curator_dask.decode.spec import Transform
from curator_dask.decode.transforms import TransformSpec
from curator_dask.errors import ImageError

if TYPE_CHECKING:
    import PIL.Image


class Maker:
    """Makes an array of an image for each transform; where one fails, the others have theirs.

    Parameters
    ----------
    transforms
        The loader's.
    by_pillow
        Pillow resizes: the exact reference. Else `curator_dask.decode.resize.HostResize`, and each image is a NumPy
        array on its way, also one that Pillow decoded; a callable gets a PIL image of that array, which knows
        nothing of the file (its ``info`` is empty). One that has a method `of_pixels`, of uint8 pixels (h, w, 3) that
        it leaves as they are, gets these as they are.
    """

    def __init__(self, transforms: Sequence[Transform], by_pillow: bool):
        self._by_pillow, self._transforms = by_pillow, tuple(transforms)
        self._smaller: list[Any] | None = None
        alone = len(transforms) == 1
        self._makers = [
            _of_image(transform, alone) if by_pillow else _of_pixels(transform) for transform in transforms
        ]

    def of_image(self, image: PIL.Image.Image, which: Sequence[int]) -> list[Any]:
        """For each of the transforms with these numbers what it makes of an RGB image, or the exception."""
        if not self._by_pillow:
            return self.of_pixels(np.asarray(image), which)
        return [_made(self._makers[number], image) for number in which]

    def of_smaller(
        self, image: PIL.Image.Image, size: tuple[int, int], shrink: int, which: Sequence[int]
    ) -> list[Any]:
        """The same of an image that was decoded `shrink` times smaller than its size; of a `TransformSpec` each."""
        if self._smaller is None:
            from curator_dask.decode.pillow import PillowResize

            self._smaller = [
                PillowResize(each) for each in self._transforms if isinstance(each, TransformSpec)
            ]
        makers = self._smaller
        return [
            _made(partial(makers[number].of_smaller, size=size, shrink=shrink), image) for number in which
        ]

    def of_pixels(self, pixels: np.ndarray, which: Sequence[int]) -> list[Any]:
        """The same of uint8 pixels (h, w, 3), where it is not Pillow that resizes."""
        return [_made(self._makers[number], pixels) for number in which]


def _made(make: Callable[[Any], Any], image: Any) -> Any:
    try:
        return make(image)
    except Exception as error:
        return error


def _of_image(transform: Transform, alone: bool) -> Callable[[Any], Any]:
    """What makes an array of a PIL image, and leaves it as it is unless it is the only transform."""
    if transform is None:
        return np.array  # a copy: the image's own memory is read-only
    if isinstance(transform, TransformSpec):
        from curator_dask.decode.pillow import PillowResize

        return PillowResize(transform)
    call = _Call(transform)
    return call if alone else lambda image: call(image.copy())


def _of_pixels(transform: Transform) -> Callable[[Any], Any]:
    """What makes an array of pixels, and leaves them as they are."""
    if transform is None:
        return np.array  # a copy: the caller may change it while other transforms look at the pixels
    if isinstance(transform, TransformSpec):
        from curator_dask.decode.resize import HostResize

        return HostResize(transform)
    from PIL import Image

    of_pixels = getattr(transform, "of_pixels", None)
    if of_pixels is not None:
        return _Call(of_pixels)
    call = _Call(transform)
    return lambda pixels: call(Image.fromarray(pixels))  # which copies the pixels


class _Call:
    """A caller's transform, whose errors say that they are its own."""

    def __init__(self, transform: Callable[..., Any]):
        self._transform = transform
        self._name = getattr(transform, "__qualname__", type(transform).__qualname__)

    def __call__(self, image: PIL.Image.Image | np.ndarray) -> np.ndarray:
        import torch

        try:
            made = self._transform(image)
            return torch.as_tensor(made).detach().to("cpu", torch.float32).numpy()
        except Exception as error:
            raise ImageError(f"the transform {self._name} failed: {type(error).__name__}: {error}") from error
