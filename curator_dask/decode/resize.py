"""Resize and crop of decoded pixels, to Pillow's result: on the CPU in a fraction of its time, and on a GPU.

On the CPU torch's antialiased resize of uint8 pixels is Pillow's algorithm (two passes, width first, each rounded to
uint8) in vector instructions: 4 to 6 times as fast as Pillow's, 11 times as fast as two of DALI's passes on
the CPU, and on average 0.003/255 away from Pillow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from curator_dask import backend
from curator_dask.decode.batches import copy_rows
from curator_dask.decode.transforms import Axis, TransformSpec
from curator_dask.errors import CuratorError, ImageError, ShardError

if TYPE_CHECKING:
    import torch

    from curator_dask.decode.pillow import PillowResize

TORCH_MODES = ("bilinear", "bicubic")
"""The interpolations for which torch has Pillow's algorithm."""

_WORTH = 12
"""torch can only resize whole images. Pillow's resize of the crop's region alone wins where less than about
a twelfth of the resized image is kept, as of a panorama (375 pixels high, to 224 x 224, in ms of torch and of
Pillow: 1.3 and 2.1 at a width of 2,000 pixels, 2.2 and 2.4 at 3,500)."""

_LARGEST_SHRINK = 64
"""Pixels of the image to one of the result above which torch has no resize on a GPU: there the weights of a row
of output pixels lie in shared memory, and the 48 KB that every GPU has are used up at 91 (bicubic)."""

_LARGEST_ON_DEVICE = 1 << 25
"""Pixels of an image above which a GPU does not resize it: as float32 they take 12 bytes each, twice."""


class HostResize:
    """The transform's resize and crop, for pixels in host memory.

    Parameters
    ----------
    spec
        The transform. Interpolations that are not among `TORCH_MODES` are done by Pillow.
    """

    def __init__(self, spec: TransformSpec):
        from curator_dask.decode.pillow import PillowResize

        self._spec = spec
        self._pillow: PillowResize = PillowResize(spec)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Turn uint8 pixels (h, w, 3) of any size into uint8 pixels of the transform's size."""
        import torch
        from PIL import Image

        from curator_dask.decode.pillow import width_first

        rows, columns = self._spec.geometry(*pixels.shape[:2])
        if self._spec.interpolation not in TORCH_MODES:
            return self._pillow(Image.fromarray(pixels))
        if rows.resized * columns.resized > _WORTH * rows.kept * columns.kept:
            return self._pillow.region(Image.fromarray(pixels))
        # Indexed before it is turned: else the one image's stride is 3, torch does not see that channels come last, and
        # its result, channel by channel, costs as much again to be put back.
        whole = backend.tensor_of(pixels)[None].permute(0, 3, 1, 2)
        # torch does the width first; alone, the height's pass comes before it where Pillow does so.
        passes = [(rows.resized, columns.resized)]
        if not width_first(rows, columns):
            passes.insert(0, (rows.resized, columns.source))
        for size in passes:
            whole = torch.nn.functional.interpolate(
                whole, size=size, mode=self._spec.interpolation, antialias=True
            )
        kept = (
            whole[0]
            .permute(1, 2, 0)
            .numpy()[rows.start : rows.start + rows.kept, columns.start : columns.start + columns.kept]
        )
        if kept.shape[:2] == self._spec.size:
            return kept
        bordered = np.empty((*self._spec.size, 3), np.uint8)
        bordered[:] = self._spec.fill
        bordered[rows.pad : rows.pad + rows.kept, columns.pad : columns.pad + columns.kept] = kept
        return bordered


class DeviceResize:
    """The transform's resize and crop, for pixels on any device, in float32.

    Two passes in Pillow's order, each rounded as Pillow rounds: on average 0.001/255 away from it and 2/255 at most;
    0.1/255 on average where bilinear enlarges by a ratio like 3:2, whose many exact halves go either way. (Measured on
    a CPU, where the same code runs but `HostResize` is seven times as fast.)

    Some images go through host memory and `HostResize`: those with more than 33 million pixels, or 64 times as long
    as the result; those of which less than a twelfth is kept, as of a panorama; every image where the interpolation is
    not among `TORCH_MODES`; and those for which a GPU has no memory left.

    Parameters
    ----------
    spec
        The transform.
    """

    def __init__(self, spec: TransformSpec):
        self._spec = spec
        self._on_host = HostResize(spec)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Turn uint8 pixels (h, w, 3) of any size into uint8 pixels of the transform's size, on their device."""
        import torch

        rows, columns = self._spec.geometry(*pixels.shape[:2])
        if self._fits(rows, columns):
            try:
                return self._on_device(pixels, rows, columns)
            except Exception as error:
                if not backend.is_out_of_memory(error):
                    raise
        return torch.from_numpy(self._on_host(pixels.cpu().numpy())).to(pixels.device)

    def _on_device(self, pixels: torch.Tensor, rows: Axis, columns: Axis) -> torch.Tensor:
        import torch

        from curator_dask.decode.pillow import width_first

        by_width = width_first(rows, columns)
        middle = (rows.source, columns.resized) if by_width else (rows.resized, columns.source)
        # Channel by channel: neighbours in a row side by side, as the threads of a GPU read them.
        image = pixels.permute(2, 0, 1)[None].to(torch.float32, memory_format=torch.contiguous_format)
        for size in (middle, (rows.resized, columns.resized)):
            image = torch.nn.functional.interpolate(
                image, size=size, mode=self._spec.interpolation, antialias=True
            )
            image.add_(0.5).floor_().clamp_(0, 255)  # torch.round would take halves to the even number
        kept = image[
            0, :, rows.start : rows.start + rows.kept, columns.start : columns.start + columns.kept
        ].to(torch.uint8)
        made = torch.empty((*self._spec.size, 3), dtype=torch.uint8, device=pixels.device)
        if kept.shape[1:] != made.shape[:2]:
            for channel, value in enumerate(self._spec.fill):
                made[..., channel].fill_(value)
        made[rows.pad : rows.pad + rows.kept, columns.pad : columns.pad + columns.kept] = kept.permute(
            1, 2, 0
        )
        return made

    def _fits(self, rows: Axis, columns: Axis) -> bool:
        return (
            self._spec.interpolation in TORCH_MODES
            and rows.resized * columns.resized <= _WORTH * rows.kept * columns.kept
            and rows.source * columns.source <= _LARGEST_ON_DEVICE
            and all(axis.source <= _LARGEST_SHRINK * axis.resized for axis in (rows, columns))
            and min(columns.source, columns.resized) > 1  # on a CPU torch 2.15 resizes such floats to noise
        )


class BatchResize:
    """Resizes whole images to batches for a model, in the background and on this process's device.

    Several threads may use one of these.

    Parameters
    ----------
    transform
        What the model wants.
    num_threads
        Threads on a CPU. On a GPU one thread hands out the work.
    exact
        Resize with Pillow, on the host: the reference.
    """

    def __init__(self, transform: TransformSpec, num_threads: int, exact: bool = False):
        self._size = transform.size
        self._place = backend.current()
        self._stream = self._place.side_stream()
        self._together = self._place.device == "gpu"
        self._resize: Any = DeviceResize(transform) if self._together else HostResize(transform)
        if exact:
            self._resize = _pillow_resize(transform)
        self._pool = ThreadPoolExecutor(
            1 if self._together else num_threads, thread_name_prefix="curator-resize"
        )
        self._closed = False

    def start(self, images: Sequence[Any]) -> Callable[[], tuple[torch.Tensor, dict[int, str]]]:
        """Begin to resize.

        Parameters
        ----------
        images
            uint8 arrays of shape (h, w, 3), NumPy or CuPy, each of any size; they must not be changed before the
            result is there.

        Returns
        -------
        Callable
            Waits for the result: uint8 pixels (n, height, width, 3) of the n images that could be used, in their
            order, on this process's device; and the reason for each of the others by its index.

        Raises
        ------
        CuratorError
            It was closed.
        """
        import torch

        if self._closed:
            raise CuratorError("BatchResize.start: this one was closed; make a new one")
        errors: dict[int, str] = {}
        good: dict[int, Any] = {}
        for index, image in enumerate(images):
            try:
                # In this thread, on whose stream a stage may still be at work on the image.
                good[index] = backend.tensor_of(_checked(image)) if self._together else _checked(image)
            except Exception as error:
                errors[index] = _reason(error)
        shape, device = (len(good), *self._size, 3), self._place.torch_device
        rows = self._place.again_if_full(lambda: torch.empty(shape, dtype=torch.uint8, device=device))
        numbered = list(enumerate(good.values()))
        ready = self._place.mark()
        parts = [numbered] if self._together else [[one] for one in numbered]
        futures = [self._pool.submit(self._work, part, rows, ready) for part in parts]
        return partial(self._finish, futures, rows, list(good), errors)

    def close(self) -> None:
        """Finish what was started and end the threads."""
        self._closed = True
        self._pool.shutdown(wait=True)

    def _work(
        self, part: list[tuple[int, Any]], rows: torch.Tensor, ready: Callable[[], None]
    ) -> dict[int, str]:
        """Fill some of the rows, in a thread of the pool; why by row where that failed."""
        failed = {}
        with self._stream, self._place.wait_for_outputs():
            ready()
            self._place.adopt(rows)
            for row, image in part:
                try:
                    self._place.again_if_full(partial(self._fill, rows[row], image))
                except Exception as error:
                    # A GPU that is full is not the image's fault: a rerun may have more.
                    if self._place.device == "gpu" and backend.is_out_of_memory(error):
                        raise ShardError(
                            f"not resized: {error}. Fewer tasks a GPU leave more memory to each"
                        ) from error
                    failed[row] = _reason(error)
        return failed

    def _fill(self, row: torch.Tensor, image: Any) -> None:
        # What a stage has changed on the host comes to the GPU here.
        on_device = image.to(self._place.torch_device) if self._together else image
        copy_rows(self._resize(on_device), row)

    def _finish(
        self,
        futures: list[Future[dict[int, str]]],
        rows: torch.Tensor,
        indices: list[int],
        errors: dict[int, str],
    ) -> tuple[torch.Tensor, dict[int, str]]:
        failed: dict[int, str] = {}
        for future in futures:
            failed |= future.result()
        self._place.adopt(rows)
        if failed:
            rows = rows[[row for row in range(len(rows)) if row not in failed]]
        return rows, errors | {indices[row]: reason for row, reason in failed.items()}


def _pillow_resize(transform: TransformSpec) -> Callable[[Any], np.ndarray]:
    from PIL import Image

    from curator_dask.decode.pillow import PillowResize

    pillow = PillowResize(transform)

    def resize(pixels: Any) -> np.ndarray:
        on_host = pixels if isinstance(pixels, np.ndarray) else pixels.cpu().numpy()
        return pillow(Image.fromarray(on_host))

    return resize


def _checked(image: Any) -> Any:
    on_gpu = hasattr(image, "__cuda_array_interface__")
    if not isinstance(image, np.ndarray) and not on_gpu:
        found = type(image).__name__
    elif str(image.dtype) == "uint8" and image.ndim == 3 and image.shape[2] == 3 and 0 not in image.shape:
        return image
    else:
        found = f"{image.dtype} of shape {tuple(image.shape)}"
    raise ImageError(f"not resized: expected uint8 RGB pixels of shape (height, width, 3), got {found}")


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ImageError) else f"not resized: {type(error).__name__}: {error}"
