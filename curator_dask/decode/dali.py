"""Decoding with DALI: on the CPU to whole images, on the GPU to the transforms' pixels or whole images too.

Resizing is DALI's own work on the GPU only. It takes two passes there, in Pillow's order, each rounded to
uint8 and each on the crop's region alone: one pass is 0.15/255 away from Pillow, two are 0.002/255.
On the CPU the same two passes cost five times torch's resize (`curator_dask.decode.resize`), so the images
leave DALI whole.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from curator_dask.decode.overheard import overheard
from curator_dask.decode.pillow import width_first
from curator_dask.decode.transforms import TransformSpec
from curator_dask.errors import ConfigError

if TYPE_CHECKING:
    import torch

log = logging.getLogger("curator_dask")

_GIVEN = ("size", "roi_start", "roi_end")  # per image, for each of the two passes

DALI_MODES = {"bilinear": "INTERP_LINEAR", "bicubic": "INTERP_CUBIC", "lanczos": "INTERP_LANCZOS3"}
"""timm's interpolations that DALI resizes as Pillow does, and DALI's names of them."""


class DaliDecoder:
    """One DALI pipeline, fed with one chunk of images at a time.

    A chunk is started and finished; between the two the caller may do something else.

    Parameters
    ----------
    max_chunk
        Largest number of images in a chunk.
    num_threads
        DALI's own decode threads.
    device_id
        GPU of the pipeline; None keeps it off the GPU.
    decoder
        Device of DALI's image decoder: ``"cpu"`` or ``"mixed"``.
    transforms
        For each the pipeline, which decodes once, has an output: resized and cropped, or whole where it is None.

    Raises
    ------
    ConfigError
        DALI is not installed.
    """

    def __init__(
        self,
        max_chunk: int,
        num_threads: int,
        *,
        device_id: int | None = None,
        decoder: str = "cpu",
        transforms: Sequence[TransformSpec | None] = (None,),
    ):
        try:
            import nvidia.dali  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                "decoder='dali' needs NVIDIA DALI, which cannot be imported here "
                f"({error}): install curator-dask[cpu] or [cuda13], or use decoder='pillow'"
            ) from error
        self._options: dict[str, Any] = {
            "batch_size": max_chunk,
            "num_threads": num_threads,
            "device_id": device_id,
            "prefetch_queue_depth": 1,
            "exec_dynamic": True,  # an output's memory is its own for as long as anyone holds it
        }
        self._decoder = decoder
        self._transforms = tuple(transforms)
        self._pipeline: Any = None
        self._fed: list[np.ndarray] = []  # not empty: a chunk is being decoded
        self._taking = threading.Lock()
        #: What came of the chunk, or why nothing did; None before anyone has waited for it.
        self._came: Sequence[Any] | BaseException | None = None
        #: What the libraries said while they had the last chunk, a line each; of another thread's images too.
        self.said: list[str] = []

    def start(self, encoded: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> None:
        """Begin to decode.

        Parameters
        ----------
        encoded
            One flat uint8 array an image; they stay untouched until `finish`.
        sizes
            Height and width of each image, upright.
        """
        if self._pipeline is None:
            self._pipeline = self._build()
        fed = list(encoded)  # DALI reads from these very arrays

        def schedule() -> None:
            self._pipeline.schedule_run()
            self._fed, self._came = fed, None

        try:
            self._feed(fed, sizes)
            overheard.begin(self, schedule)
        except BaseException:
            self._pipeline = None  # else what it has of these would be the next chunk's
            raise

    def _feed(self, encoded: list[np.ndarray], sizes: Sequence[tuple[int, int]]) -> None:
        self._pipeline.feed_input("encoded", encoded)
        for number, transform in enumerate(self._transforms):
            if transform is None:
                continue
            plans = [_plan(transform, *size) for size in sizes]
            for name in plans[0]:
                given = np.array([plan[name] for plan in plans], np.float32)
                self._pipeline.feed_input(_source(name, number), given)

    def settle(self) -> None:
        """Wait until DALI is through with the chunk that was started; any thread may."""
        with self._taking:
            if self._fed and self._came is None:
                try:
                    self._came = self._pipeline.share_outputs()
                except BaseException as error:
                    self._came = error.with_traceback(None)  # whose frames would keep the pipeline alive
                finally:
                    self.said = overheard.end(self)

    def finish(self) -> tuple[list[Any], list[tuple[int, int]]]:
        """Wait for the chunk that was started.

        Returns
        -------
        tuple
            For each transform a uint8 tensor (n, height, width, 3); where it is None a list of uint8 (h, w, 3), on
            the CPU arrays that keep DALI's memory alive. What is on a GPU are tensors in DALI's memory, which is
            theirs for as long as they live. Then each image's decoded height and width.

        Raises
        ------
        Exception
            DALI's error, mostly a RuntimeError, if any image of the chunk could not be decoded. The next
            `start` gets a new pipeline.
        """
        self.settle()
        came, self._came, self._fed = self._came, None, []
        try:
            if isinstance(came, BaseException):
                raise came
            assert came is not None, "no chunk was started"
            *outputs, shapes = came
            found = [(int(height), int(width)) for height, width, _ in shapes.as_array()]
            pixels = [self._taken(*each) for each in zip(self._transforms, outputs, strict=True)]
            self._pipeline.release_outputs()
        except BaseException:
            self._pipeline = None
            raise
        finally:
            came = None  # an error would be held by its own traceback
        return pixels, found

    def _taken(self, transform: TransformSpec | None, images: Any) -> Any:
        if transform is not None:
            return _as_torch(images.as_tensor())
        as_array = np.asarray if self._options["device_id"] is None else _as_torch
        return [as_array(images[index]) for index in range(len(images))]

    def found(
        self, encoded: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[int, list[str]]]:
        """Of which images of the last chunk the libraries said what they said: numbers, and the lines of each.

        The images are decoded again, one at a time, while no other thread of this process decodes any, until all lines
        are found. Lines that none of them gets again are most likely those of another thread's images.

        Parameters
        ----------
        encoded, sizes
            As they were given to `start`; what it gave has been taken.
        """
        left, named = Counter(self.said), []
        with overheard.alone():
            for number, (data, size) in enumerate(zip(encoded, sizes, strict=True)):
                lines = self._alone(data, size)
                if lines:
                    named.append((number, lines))
                left -= Counter(lines)
                if not left:
                    break
        if left:
            log.debug("of none of %d images: %s", len(encoded), "; ".join(left))
        return named

    def _alone(self, data: np.ndarray, size: tuple[int, int]) -> list[str]:
        """What the libraries say of one image."""
        self.start([data], [size])
        with contextlib.suppress(Exception):
            self.finish()
        return self.said

    def drop(self) -> None:
        """Wait for a chunk that was started and forget it."""
        if self._fed:
            with contextlib.suppress(Exception):
                self.finish()

    def close(self) -> None:
        """Let the pipeline, its threads and its memory go; `start` would make a new one."""
        self.drop()
        self._pipeline = None

    def _build(self) -> Any:
        from nvidia.dali import fn, pipeline_def
        from nvidia.dali import types as dali_types

        types: Any = dali_types  # its constants are made at run time
        on_gpu = self._options["device_id"] is not None

        @pipeline_def(**self._options)
        def graph() -> Any:
            encoded = fn.external_source(name="encoded", no_copy=True)
            image = fn.decoders.image(
                encoded,
                device=self._decoder,
                output_type=types.RGB,
                jpeg_fancy_upsampling=True,  # chroma as libjpeg-turbo has it, on the GPU too
                affine=False,  # threads tied to cores would be on those of another GPU's worker, too
            )
            device = "gpu" if on_gpu else "cpu"
            made = [
                image if transform is None else _resize(image, transform, device, number)
                for number, transform in enumerate(self._transforms)
            ]
            return *made, image.shape()

        pipeline = graph()
        pipeline.build()
        overheard.listen()  # the libraries are loaded by now
        return pipeline


def _source(name: str, number: int) -> str:
    """What the pipeline calls an entry of `_plan` for the transform with this number."""
    return f"{name}_{number}"


def _resize(image: Any, spec: TransformSpec, device: str, number: int) -> Any:
    """Both passes and the border, as DALI operators; `_plan` makes what they are fed with."""
    from nvidia.dali import fn
    from nvidia.dali import types as dali_types

    types: Any = dali_types
    kernel: dict[str, Any] = {
        "interp_type": getattr(types, DALI_MODES[spec.interpolation]),
        "antialias": True,
    }
    for which in ("first", "second"):
        given: dict[str, Any] = {
            what: fn.external_source(name=_source(f"{which}_{what}", number)) for what in _GIVEN
        }
        image = fn.resize(image, device=device, **given, **kernel)
    if spec.pads:
        image = fn.slice(
            image,
            device=device,
            start=fn.cast(fn.external_source(name=_source("pad", number)), dtype=types.INT32),
            shape=list(spec.size),
            axes=[0, 1],
            out_of_bounds_policy="pad",
            fill_values=list(spec.fill),
        )
    return image


def _plan(spec: TransformSpec, height: int, width: int) -> dict[str, tuple[float, float]]:
    """Sizes and regions of both passes for one image, (rows, columns) each, in pixels."""
    rows, columns = spec.geometry(height, width)
    (top, bottom), (left, right) = rows.region, columns.region
    first: tuple[tuple[float, float], ...]
    second: tuple[tuple[float, float], ...]
    if width_first(rows, columns):
        start, end = rows.needed(spec.interpolation)
        first = (end - start, columns.kept), (start, left), (end, right)
        second = (rows.kept, columns.kept), (top - start, 0), (bottom - start, columns.kept)
    else:
        start, end = columns.needed(spec.interpolation)
        first = (rows.kept, end - start), (top, start), (bottom, end)
        second = (rows.kept, columns.kept), (0, left - start), (rows.kept, right - start)
    plan = {
        f"{name}_{what}": value
        for name, values in (("first", first), ("second", second))
        for what, value in zip(_GIVEN, values, strict=True)
    }
    return {**plan, "pad": (-rows.pad, -columns.pad)} if spec.pads else plan


def _as_torch(tensor: Any) -> torch.Tensor:
    import torch

    return torch.from_dlpack(tensor)
