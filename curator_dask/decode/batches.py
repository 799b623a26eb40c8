"""What a loader hands out, and the gathering of single rows into full batches."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from curator_dask.errors import ImageError

if TYPE_CHECKING:
    import torch

    from curator_dask.backend import Backend


@dataclass
class Batch:
    """Some of the images given to `Loader.load`, decoded, and what became of the bad ones on the way.

    Attributes
    ----------
    positions
        int64 of shape (n,): the caller's positions of the images in `pixels`. n may be 0.
    pixels
        uint8 of shape (n, height, width, 3) on the loader's device; for a callable transform its results,
        stacked, float32 of shape (n, ...).
    errors
        Reason by position, for images that could not be used. In no other batch.
    """

    positions: np.ndarray
    pixels: torch.Tensor
    errors: dict[int, str]

    def __repr__(self) -> str:
        shape = tuple(self.pixels.shape)
        return f"Batch({shape} {self.pixels.dtype} on {self.pixels.device}, errors={len(self.errors)})"


class Gather:
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
    """

    def __init__(
        self, batch_size: int, shape: tuple[int, ...] | None, place: Backend, put: Callable[[Batch], None]
    ):
        self._batch_size = batch_size
        self._is_pixels = shape is not None
        self._shape = shape
        self._place = place
        self._put = put
        self._new()

    def _new(self) -> None:
        self._buffer: torch.Tensor | None = None
        self._positions: list[int] = []
        self._errors: dict[int, str] = {}

    def collect(self, futures: list[tuple[int, Future]], errors: dict[int, str]) -> None:
        """Wait for the rows that threads make, each with its position, and take errors that are known."""
        self._errors.update(errors)
        for position, future in futures:
            try:
                row = future.result()
                if self._shape is not None and tuple(row.shape) != self._shape:
                    raise ImageError(
                        f"the transform gave shape {tuple(row.shape)}, expected {self._shape} as before"
                    )
            except ImageError as error:
                self._errors[position] = str(error)
            except Exception as error:
                self._errors[position] = f"could not be decoded: {type(error).__name__}: {error}"
            else:
                self.add([position], row[None])

    def add(self, positions: list[int], block: Any) -> None:
        """Add rows: a NumPy array or tensor whose first axis runs along `positions`."""
        size = self._batch_size
        at = 0
        while at < len(positions):
            if self._buffer is None:
                self._buffer = self._empty(size, block.shape[1:])
            filled = len(self._positions)
            count = min(size - filled, len(positions) - at)
            _copy(block[at : at + count], self._buffer[filled : filled + count])
            self._positions += positions[at : at + count]
            at += count
            if filled + count == size:
                self.flush()

    def flush(self) -> None:
        """Give out what there is."""
        if not self._positions and not self._errors:
            return
        if self._buffer is None:
            self._buffer = self._empty(0, self._shape or ())
        pixels = self._buffer[: len(self._positions)]
        with self._place.wait_for_outputs():
            pass  # what the caller gets is there, on whichever stream it works
        self._put(Batch(np.array(self._positions, np.int64), pixels, self._errors))
        self._new()

    def _empty(self, size: int, shape: Any) -> torch.Tensor:
        import torch

        if size:
            self._shape = tuple(shape)
        dtype = torch.uint8 if self._is_pixels else torch.float32
        return torch.empty((size, *shape), dtype=dtype, device=self._place.torch_device)


def _copy(block: Any, rows: torch.Tensor) -> None:
    import torch

    if rows.device.type == "cpu":
        # NumPy's copy stays in this thread; torch's would wake a team of threads for each row.
        np.copyto(rows.numpy(), block)
    else:
        rows.copy_(torch.as_tensor(block))
