"""Decoding one chunk of images: by DALI, and by Pillow what DALI cannot take.

A chunk is a matter of decoding alone; it has nothing to do with the batches that a model gets.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from curator_dask.backend import Backend
from curator_dask.decode.batches import WHOLE_PIXELS, Collector
from curator_dask.decode.sniff import Encoded, buffer_of, sniff
from curator_dask.decode.transforms import TransformSpec
from curator_dask.errors import ImageError

if TYPE_CHECKING:
    import PIL.Image

    from curator_dask.decode.dali import DaliDecoder
    from curator_dask.decode.spec import LoaderSpec

log = logging.getLogger("curator_dask")

CHUNK_PIXELS = 1 << 28
"""Decoded pixels at which a chunk closes at the latest (3 bytes each, two chunks at a time: 1.6 GB)."""

CHUNK_PIXELS_A_THREAD = 1 << 25
"""The same for each decode thread: about three photographs of 12 megapixels."""

_SHARES = 4
"""Parts of a chunk that each thread resizes: small enough that none waits long for the last."""

SMALLEST_FOR_DALI = 8
"""Pixels of an edge below which DALI's resize handles the border so unlike Pillow's that it can be seen."""


@dataclass
class Chunk:
    """Images that are decoded together.

    Attributes
    ----------
    dali
        Position, encoded bytes, height and width of each image that is DALI's.
    pooled
        Positions, and the list of results, of what threads make: an array of an image, or the exception in its place.
    errors
        Reason by position.
    pixels
        Decoded pixels of all of them.
    """

    dali: list[tuple[int, np.ndarray, tuple[int, int]]] = field(default_factory=list)
    pooled: list[tuple[list[int], Future]] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)
    pixels: int = 0

    def __len__(self) -> int:
        return len(self.dali) + sum(len(positions) for positions, _ in self.pooled) + len(self.errors)


class ChunkDecoder:
    """Decodes chunks with one DALI pipeline and one pool of threads; for one thread at a time.

    Parameters
    ----------
    spec
        The loader's.
    place
        Backend on whose device the pixels are wanted.

    Raises
    ------
    ConfigError
        DALI is not installed.
    """

    def __init__(self, spec: LoaderSpec, place: Backend):
        self._spec = spec
        self._place = place
        self._pool = ThreadPoolExecutor(spec.num_threads, thread_name_prefix="curator-decode")
        self._dali: DaliDecoder | None = None
        on_gpu = place.device == "gpu"
        # Enough images for every thread to be busy to the end.
        self._most_images = min(spec.batch_size, 128 if on_gpu else max(64, 4 * spec.num_threads))
        a_thread = CHUNK_PIXELS if on_gpu else CHUNK_PIXELS_A_THREAD
        self._most_pixels = min(CHUNK_PIXELS, a_thread * spec.num_threads)
        if spec.transform is None:
            self._most_pixels = min(self._most_pixels, WHOLE_PIXELS)
        self._smallest = 1
        # What threads make of an image that left DALI whole; None: it is taken as it is.
        self._resize: Callable[[np.ndarray], np.ndarray] | None = None
        self._finish_image = _finisher(spec.transform)
        if spec.decoder == "dali" and (spec.transform is None or isinstance(spec.transform, TransformSpec)):
            self._prepare_dali(spec.transform)

    def _prepare_dali(self, transform: TransformSpec | None) -> None:
        from curator_dask.decode.dali import DALI_MODES, DaliDecoder
        from curator_dask.decode.resize import TORCH_MODES, HostResize

        on_gpu = self._place.device == "gpu"
        if transform is not None and on_gpu and transform.interpolation not in DALI_MODES:
            log.warning(
                "decoding with Pillow on the CPU: DALI has no %r resize as Pillow does it (it has %s)",
                transform.interpolation,
                ", ".join(DALI_MODES),
            )
            return
        if transform is not None and not on_gpu:
            if transform.interpolation not in TORCH_MODES:
                log.warning(
                    "resizing with Pillow after DALI's decoding: there is no faster %r resize with the same "
                    "result (there is for %s)",
                    transform.interpolation,
                    ", ".join(TORCH_MODES),
                )
            resize = HostResize(transform)
            self._resize = resize
            # What Pillow decodes is resized as the others are: so it is where the resize comes later, too.
            self._finish_image = lambda image: resize(np.asarray(image))
        if on_gpu and transform is not None:
            self._smallest = SMALLEST_FOR_DALI
        self._dali = DaliDecoder(
            self._most_images,
            self._spec.num_threads,
            device_id=self._place.dali_device_id,
            decoder=self._place.dali_decoder,
            transform=transform if on_gpu else None,
        )

    def admit(self, chunk: Chunk, position: int, data: Encoded | Exception) -> bool:
        """Sniff one image and put it where it will be decoded.

        Returns
        -------
        bool
            Whether the chunk is full.
        """
        if isinstance(data, Exception):
            chunk.errors[position] = str(data) or type(data).__name__
        else:
            try:
                self._place_image(chunk, position, data)
            except ImageError as error:
                chunk.errors[position] = str(error)
        return len(chunk) >= self._most_images or chunk.pixels >= self._most_pixels

    def _place_image(self, chunk: Chunk, position: int, data: Encoded) -> None:
        header = sniff(data, self._spec.max_pixels)
        chunk.pixels += header.height * header.width
        # A copy, unless the bytes are their own: a memory-mapped shard is read here, while DALI decodes, and
        # can be closed when the load ends.
        owned = data if isinstance(data, bytes) else buffer_of(data).tobytes()
        if self._dali is not None and header.plain and min(header.height, header.width) >= self._smallest:
            chunk.dali.append((position, np.frombuffer(owned, np.uint8), (header.height, header.width)))
        else:
            self._submit(chunk, [position], self._by_pillow, [owned])

    def _submit(
        self, chunk: Chunk, positions: list[int], work: Callable[[Any], Any], images: list[Any]
    ) -> None:
        chunk.pooled.append((positions, self._pool.submit(_each, work, images)))

    def _by_pillow(self, data: Encoded) -> Any:
        from curator_dask.decode.pillow import decode

        return self._finish_image(decode(data, self._spec.max_pixels))

    def finish(self, chunk: Chunk, gather: Collector, following: Chunk | None = None) -> None:
        """Wait for DALI's part of a chunk that was started, and hand out the rest of the work on it.

        The `following` chunk is started as soon as DALI is free.
        """
        items, chunk.dali = chunk.dali, []
        taken: tuple[Any, list] | None = None
        if items and self._dali is not None:
            try:
                taken = self._dali.finish()
            except Exception as error:  # DALI's own, of many types; memory that it could not get
                log.debug("DALI lost a chunk of %d images and is asked for its halves: %s", len(items), error)
                self._halve(items, chunk, gather)
        if following is not None:
            self._start(following)
        if taken is not None:
            self._take(items, *taken, chunk, gather)

    def _start(self, chunk: Chunk) -> None:
        if self._dali is not None and chunk.dali:
            self._dali.start([data for _, data, _ in chunk.dali], [size for _, _, size in chunk.dali])

    def _halve(self, items: list, chunk: Chunk, gather: Collector) -> None:
        """Find the images that DALI cannot decode; the others keep DALI's result."""
        if len(items) == 1:
            position, data, _ = items[0]
            self._submit(chunk, [position], self._by_pillow, [data])
            return
        for half in (items[: len(items) // 2], items[len(items) // 2 :]):
            part = Chunk(dali=half)
            self._start(part)
            self.finish(part, gather)
            chunk.pooled += part.pooled

    def _take(self, items: list, pixels: Any, found: list, chunk: Chunk, gather: Collector) -> None:
        right = [size == decoded for (_, _, size), decoded in zip(items, found, strict=True)]
        for (position, data, _), fits in zip(items, right, strict=True):
            if not fits:  # DALI reads the header in another way, so the crop was planned wrongly
                self._submit(chunk, [position], self._by_pillow, [data])
        kept = [index for index, fits in enumerate(right) if fits]
        positions = [items[index][0] for index in kept]
        if self._resize is not None:
            # Several at a time: to hand an image to a thread and back costs a quarter of its resize.
            each = math.ceil(len(kept) / (_SHARES * self._spec.num_threads))
            for start in range(0, len(kept), each or 1):
                some = slice(start, start + each)
                images = [pixels[index] for index in kept[some]]
                self._submit(chunk, positions[some], self._resize, images)
        elif kept:
            if len(kept) < len(items):
                pixels = [pixels[index] for index in kept] if isinstance(pixels, list) else pixels[kept]
            with self._place.wait_for_outputs():  # DALI has its memory back after this
                gather.add(positions, pixels)

    def drop(self, *chunks: Chunk) -> None:
        """Let unfinished chunks go: nothing is at work on their bytes any more, nor in the pipeline."""
        futures = [future for chunk in chunks for _, future in chunk.pooled]
        for future in futures:
            future.cancel()
        for future in futures:
            if not future.cancelled():
                future.exception()
        if self._dali is not None:
            self._dali.drop()

    def close(self) -> None:
        """End all threads and let DALI's memory go."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._dali is not None:
            self._dali.close()


def _each(work: Callable[[Any], Any], images: list[Any]) -> list[Any]:
    """What becomes of each image, or the exception in its place. The list is emptied on the way."""
    made: list[Any] = []
    while images:
        try:
            made.append(work(images.pop(0)))
        except Exception as error:
            made.append(error)
    return made


def _finisher(transform: Any) -> Callable[[PIL.Image.Image], Any]:
    """What makes an array of a decoded RGB image."""
    if transform is None:
        return np.array  # a copy: the image's own memory is read-only
    if isinstance(transform, TransformSpec):
        from curator_dask.decode.pillow import PillowResize

        return PillowResize(transform)

    def finish(image: PIL.Image.Image) -> np.ndarray:
        import torch

        try:
            made = transform(image)
            return torch.as_tensor(made).detach().to("cpu", torch.float32).numpy()
        except Exception as error:
            raise ImageError(f"the transform failed: {type(error).__name__}: {error}") from error

    return finish
