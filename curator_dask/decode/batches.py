"""What a loader hands out, and the gathering of single images into full batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from curator_dask.backend import tensor_of
from curator_dask.errors import ImageError

if TYPE_CHECKING:
    import torch

    from curator_dask.backend import Backend

WHOLE_PIXELS = 1 << 26
"""Pixels that a batch of whole images holds at most, unless its only image has more: 200 MB.

350 photographs of 500 by 375, or five of 12 megapixels. What is alive at once is a handful of batches
(`curator_dask.decode.loader`), so it is a matter of 1 GB whatever the photographs' size.
"""


@dataclass
class Batch:
    """Some of the images given to `Loader.load`, decoded, and what became of the bad ones on the way.

    Attributes
    ----------
    positions
        int64 of shape (n,): the caller's positions of the images in `pixels`. n may be 0.
    pixels
        uint8 of shape (n, height, width, 3) on the loader's device; for a callable transform its results,
        stacked, float32 of shape (n, ...). Without a transform a list of n uint8 arrays (h, w, 3), NumPy or
        CuPy, each of its own size; they are the caller's to keep and to change. (On a CPU, images that were
        decoded together lie in one block of memory, which lives as long as any of them.)
    errors
        Reason by position, for images that could not be used. In no other batch of this transform.
    which
        Number of the transform that `pixels` come from, in `LoaderSpec.transforms`.
    said
        By position, what a decoder's library said of an image, which may be in another batch: that its data are
        corrupt, say. Of the first transform alone.
    """

    positions: np.ndarray
    pixels: Any
    errors: dict[int, str]
    which: int = 0
    said: dict[int, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        if isinstance(self.pixels, list):
            return f"Batch({len(self.pixels)} whole images, errors={len(self.errors)})"
        shape = tuple(self.pixels.shape)
        return f"Batch({shape} {self.pixels.dtype} on {self.pixels.device}, errors={len(self.errors)})"


class Collector(ABC):
    """Collects one transform's images, as they come out of the decoding, into batches.

    Parameters
    ----------
    batch_size
        Images of a full batch.
    place
        Backend on whose device the batches are wanted.
    put
        Takes each batch.
    which
        Number of the transform.
    """

    def __init__(self, batch_size: int, place: Backend, put: Callable[[Batch], None], which: int = 0):
        self._batch_size = batch_size
        self._place = place
        self._put = put
        self._which = which
        self._new()

    def _new(self) -> None:
        self._positions: list[int] = []
        self._errors: dict[int, str] = {}
        self._said: dict[int, str] = {}

    def say(self, position: int, lines: Sequence[str]) -> None:
        """Take what a library said of an image, before that is added."""
        self._said[position] = "; ".join(dict.fromkeys(lines))

    def fail(self, errors: dict[int, str]) -> None:
        """Take reasons by position."""
        self._errors.update(errors)

    def take(self, position: int, image: Any) -> None:
        """Take an array of one image, or the exception in its place."""
        try:
            if isinstance(image, Exception):
                raise image
            image = self._checked(image)
        except ImageError as error:
            self._errors[position] = str(error)
        except Exception as error:
            self._errors[position] = f"could not be decoded: {type(error).__name__}: {error}"
        else:
            self.add([position], image[None])

    def _checked(self, image: np.ndarray) -> np.ndarray:
        return image

    @abstractmethod
    def add(self, positions: list[int], block: Any) -> None:
        """Add the images of a block, which runs along `positions`."""

    def flush(self) -> None:
        """Give out what there is."""
        if not self._positions and not self._errors:
            return
        pixels = self._pixels()
        with self._place.wait_for_outputs():
            pass  # what the caller gets is there, on whichever stream it works
        positions = np.array(self._positions, np.int64)
        self._put(Batch(positions, pixels, self._errors, self._which, self._said))
        self._new()

    @abstractmethod
    def _pixels(self) -> Any:
        """What `Batch.pixels` becomes."""


class Gather(Collector):
    """Collects rows into full batches.

    Parameters
    ----------
    batch_size
        Rows of a full batch.
    shape
        Shape of a row of uint8 pixels; None where a caller's transform makes float32 rows, whose shape the
        first of them tells.
    place
        Backend on whose device the batches are wanted.
    put
        Takes each batch.
    which
        Number of the transform.
    """

    def __init__(
        self,
        batch_size: int,
        shape: tuple[int, ...] | None,
        place: Backend,
        put: Callable[[Batch], None],
        which: int = 0,
    ):
        self._is_pixels = shape is not None
        self._shape = shape
        super().__init__(batch_size, place, put, which)

    def _new(self) -> None:
        super()._new()
        self._buffer: torch.Tensor | None = None

    def _checked(self, image: np.ndarray) -> np.ndarray:
        if self._shape is not None and tuple(image.shape) != self._shape:
            raise ImageError(
                f"the transform gave shape {tuple(image.shape)}, expected {self._shape} as before"
            )
        return image

    def add(self, positions: list[int], block: Any) -> None:
        """Add rows: a NumPy array or tensor whose first axis runs along `positions`."""
        size = self._batch_size
        at = 0
        while at < len(positions):
            if self._buffer is None:
                self._buffer = self._empty(size, block.shape[1:])
            filled = len(self._positions)
            count = min(size - filled, len(positions) - at)
            copy_rows(block[at : at + count], self._buffer[filled : filled + count])
            self._positions += positions[at : at + count]
            at += count
            if filled + count == size:
                self.flush()

    def _pixels(self) -> torch.Tensor:
        if self._buffer is None:
            return self._empty(0, self._shape or ())
        return self._buffer[: len(self._positions)]

    def _empty(self, size: int, shape: Any) -> torch.Tensor:
        import torch

        if size:
            self._shape = tuple(shape)
        dtype = torch.uint8 if self._is_pixels else torch.float32
        return torch.empty((size, *shape), dtype=dtype, device=self._place.torch_device)


class GatherWhole(Collector):
    """Collects whole images, each of its own size, into batches that are bounded in images and in pixels.

    The batches' pixels are lists of tensors (h, w, 3) for now.
    """

    def _new(self) -> None:
        super()._new()
        self._images: list[torch.Tensor] = []
        self._held = 0

    def add(self, positions: list[int], block: Any) -> None:
        """Add images: NumPy arrays, or a GPU's tensors; what is wanted on a GPU is copied there."""
        for position, image in zip(positions, block, strict=True):
            pixels = image.shape[0] * image.shape[1]
            if self._images and self._held + pixels > WHOLE_PIXELS:
                self.flush()
            self._positions.append(position)
            self._images.append(self._own(image))
            self._held += pixels
            if len(self._images) == self._batch_size:
                self.flush()

    def _own(self, image: Any) -> torch.Tensor:
        tensor = tensor_of(image) if isinstance(image, np.ndarray) else image
        if self._place.device == "cpu":
            return tensor
        return self._place.again_if_full(lambda: tensor.to(self._place.torch_device, copy=True))

    def _pixels(self) -> list[torch.Tensor]:
        return self._images


@dataclass
class Made:
    """What a thread makes of some images.

    Attributes
    ----------
    which
        Numbers of the transforms.
    positions
        The images.
    future
        Gives for each position a list with an array for each transform, or the exception in its place; or one
        exception for all of them.
    """

    which: Sequence[int]
    positions: list[int]
    future: Future[Any]


def collect(made: list[Made], errors: dict[int, str], collectors: Sequence[Collector]) -> None:
    """Wait for the images that threads make, and hand them and the errors that are known to their collectors.

    The lists are emptied, so that nothing but its batch keeps an image alive.
    """
    for collector in collectors:
        collector.fail(errors)
    while made:
        some = made.pop(0)
        results = some.future.result()
        which, positions = some.which, some.positions
        del some
        for position in positions:
            result = results.pop(0)
            for at, number in enumerate(which):
                collectors[number].take(position, result if isinstance(result, Exception) else result[at])
            del result


def copy_rows(block: Any, rows: torch.Tensor) -> None:
    """Copy an array or tensor into a tensor of the same shape."""
    import torch

    if rows.device.type == "cpu":
        # NumPy's copy stays in this thread; torch's would wake a team of threads for each row.
        np.copyto(rows.numpy(), block)
    else:
        rows.copy_(torch.as_tensor(block))
