"""Decoding one chunk of images: by DALI, and by Pillow what DALI cannot take.

A chunk is a matter of decoding alone; it has nothing to do with the batches that a model gets.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from curator_dask.backend import Backend, is_out_of_memory
from curator_dask.cache import ENCODERS, LONG_UNUSED
from curator_dask.decode.batches import WHOLE_PIXELS, Collector, Made
from curator_dask.decode.makers import Maker
from curator_dask.decode.quiet import essential_png
from curator_dask.decode.sniff import Encoded, Header, buffer_of, sniff
from curator_dask.decode.transforms import TransformSpec
from curator_dask.errors import ImageError

if TYPE_CHECKING:
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

SPARED = 2
"""Times the resized edge that are left of an image which is decoded smaller than it is: what libjpeg averages away is
then less than what the resize does after it."""

_IN_DALI = "decoding with Pillow on the CPU: DALI has no %r resize as Pillow does it (it has %s)"
_AFTER_DALI = (
    "resizing with Pillow after DALI's decoding: there is no faster %r resize with the same "
    "result (there is for %s)"
)


@dataclass
class Chunk:
    """Images that are decoded together.

    Attributes
    ----------
    dali
        Position, encoded bytes, height and width of each image that is DALI's.
    pooled
        What threads make.
    errors
        Reason by position.
    images
        How many there are.
    pixels
        Decoded pixels of all of them.
    """

    dali: list[tuple[int, np.ndarray, tuple[int, int]]] = field(default_factory=list)
    pooled: list[Made] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)
    images: int = 0
    pixels: int = 0


class ChunkDecoder:
    """Decodes chunks with one DALI pipeline and one pool of threads; for one thread at a time.

    Each image is decoded once, for all of the transforms. On a CPU it leaves DALI whole, and threads make each
    transform's array of it; what DALI cannot take they decode with Pillow first. A loader of whole images alone
    takes them as DALI has them, and where all transforms are callables Pillow decodes. DALI decodes to Pillow's very
    pixels there, so a transform's do not depend on which others there are.

    On a GPU DALI's pipeline decodes once, too, and has a resize for each `TransformSpec`, and the whole image. Its
    pixels are not quite Pillow's there. So a callable, and a `TransformSpec` whose interpolation DALI lacks, gets
    Pillow's as it does alone: beside others the image is decoded a second time for them. (What does depend on the
    others are whole images with an edge below `SMALLEST_FOR_DALI`: beside a `TransformSpec` they are Pillow's.)

    Parameters
    ----------
    spec
        The loader's.
    place
        Backend on whose device the pixels are wanted.
    in_dali
        Whether DALI's pipeline resizes; by default on a GPU alone.

    Raises
    ------
    ConfigError
        DALI is not installed.
    """

    def __init__(self, spec: LoaderSpec, place: Backend, in_dali: bool | None = None):
        self._spec = spec
        self._place = place
        self._pool = ThreadPoolExecutor(spec.num_threads, thread_name_prefix="curator-decode")
        on_gpu = place.device == "gpu"
        self._most_images = min(max(spec.batch_sizes), 128 if on_gpu else _images_of(spec.num_threads))
        a_thread = CHUNK_PIXELS if on_gpu else CHUNK_PIXELS_A_THREAD
        self._most_pixels = min(CHUNK_PIXELS, a_thread * spec.num_threads)
        if None in spec.transforms:
            self._most_pixels = min(self._most_pixels, WHOLE_PIXELS)
        # Whether what leaves DALI is finished; else the threads make the transforms' arrays of it.
        self._in_dali = spec.transforms == (None,) or (on_gpu if in_dali is None else in_dali)
        self._all = tuple(range(len(spec.transforms)))
        #: Numbers of the transforms for which DALI decodes, and of the others.
        self._dalis = self._for_dali()
        self._others = tuple(number for number in self._all if number not in self._dalis)
        self._maker = Maker(spec.transforms, by_pillow=self._in_dali or not self._dalis)
        self._smallest = 1
        self._dali: DaliDecoder | None = None
        self._was_full = False
        if self._dalis:
            self._prepare_dali()

    def _for_dali(self) -> tuple[int, ...]:
        transforms = self._spec.transforms
        are_specs = [isinstance(each, TransformSpec) for each in transforms]
        if self._spec.decoder != "dali" or not (any(are_specs) or None in transforms):
            return ()
        from curator_dask.decode.dali import DALI_MODES
        from curator_dask.decode.resize import TORCH_MODES

        known: Collection[str] = DALI_MODES if self._in_dali else TORCH_MODES
        numbers = []
        for number, each in enumerate(transforms):
            missing = isinstance(each, TransformSpec) and each.interpolation not in known
            if isinstance(each, TransformSpec) and missing:
                log.warning(_IN_DALI if self._in_dali else _AFTER_DALI, each.interpolation, ", ".join(known))
            if not self._in_dali or each is None or (are_specs[number] and not missing):
                numbers.append(number)
        return tuple(numbers)

    def _prepare_dali(self) -> None:
        from curator_dask.decode.dali import DaliDecoder

        made: list[Any] = [self._spec.transforms[number] for number in self._dalis]
        if not self._in_dali:
            made = [None]
        elif made != [None] * len(made):
            self._smallest = SMALLEST_FOR_DALI
        self._dali = DaliDecoder(
            self._most_images,
            self._spec.num_threads,
            device_id=self._place.dali_device_id,
            decoder=self._place.dali_decoder,
            transforms=made,
        )

    def admit(self, chunk: Chunk, position: int, data: Encoded | Exception) -> bool:
        """Sniff one image and put it where it will be decoded.

        Returns
        -------
        bool
            Whether the chunk is full.
        """
        chunk.images += 1
        if isinstance(data, Exception):
            chunk.errors[position] = str(data) or type(data).__name__
        else:
            try:
                self._place_image(chunk, position, data)
            except ImageError as error:
                chunk.errors[position] = str(error)
        return chunk.images >= self._most_images or chunk.pixels >= self._most_pixels

    def _place_image(self, chunk: Chunk, position: int, data: Encoded) -> None:
        header = sniff(data, self._spec.max_pixels)
        shrink = self._shrink(header)
        chunk.pixels += header.height * header.width // shrink**2
        # A copy, unless the bytes are their own: a memory-mapped shard is read here, while DALI decodes, and
        # can be closed when the load ends.
        owned = data if isinstance(data, bytes) else buffer_of(data).tobytes()
        if shrink > 1:
            size = (header.height, header.width)
            self._submit(chunk, self._all, [position], partial(self._smaller, size, shrink), [owned])
            return
        dalis: bytes | None = None
        if self._dali is not None and header.plain and min(header.height, header.width) >= self._smallest:
            dalis = essential_png(owned) if header.kind == "PNG" else owned
        if dalis is not None:
            chunk.dali.append((position, np.frombuffer(dalis, np.uint8), (header.height, header.width)))
            if self._others:
                self._to_pillow(chunk, self._others, position, owned)
        else:
            self._to_pillow(chunk, self._all, position, owned)

    def _shrink(self, header: Header) -> int:
        """By how much an image may be smaller when it is decoded: 1, or a power of 2 that libjpeg can save work by."""
        if self._spec.decode_scale != "fast" or self._place.device == "gpu":
            return 1
        if not header.plain or header.kind != "JPEG":
            return 1
        spare = math.inf
        for transform in self._spec.transforms:
            if not isinstance(transform, TransformSpec):
                return 1  # which may look at any pixel
            for axis in transform.geometry(header.height, header.width):
                spare = min(spare, axis.source / axis.resized)
        return next((scale for scale in (8, 4, 2) if spare >= SPARED * scale), 1)

    def _to_pillow(self, chunk: Chunk, which: tuple[int, ...], position: int, data: Encoded) -> None:
        self._submit(chunk, which, [position], partial(self._by_pillow, which), [data])

    def _submit(
        self,
        chunk: Chunk,
        which: tuple[int, ...],
        positions: list[int],
        work: Callable[[Any], Any],
        images: list[Any],
    ) -> None:
        chunk.pooled.append(Made(which, positions, self._pool.submit(_each, work, images)))

    def _by_pillow(self, which: tuple[int, ...], data: Encoded) -> list[Any]:
        from curator_dask.decode.pillow import decode

        return self._maker.of_image(decode(data, self._spec.max_pixels, self._spec.gray16), which)

    def _smaller(self, size: tuple[int, int], shrink: int, data: Encoded) -> list[Any]:
        from curator_dask.decode.pillow import decode

        image = decode(data, self._spec.max_pixels, self._spec.gray16, shrink)
        if (image.height, image.width) == size:
            return self._maker.of_image(image, self._all)
        return self._maker.of_smaller(image, size, shrink, self._all)

    def finish(self, chunk: Chunk, collectors: Sequence[Collector], following: Chunk | None = None) -> None:
        """Wait for DALI's part of a chunk that was started, and hand out the rest of the work on it.

        The `following` chunk is started as soon as DALI is free.
        """
        items, chunk.dali = chunk.dali, []
        taken: tuple[list[Any], list[Any]] | None = None
        if items and self._dali is not None:
            try:
                taken = self._dali.finish()
            except Exception as error:  # DALI's own, of many types; memory that it could not get
                self._say_lost(len(items), error)
                self._halve(items, chunk, collectors)
            else:
                self._say_found(items, collectors)
        if following is not None:
            self._start(following)
        if taken is not None:
            self._take(items, *taken, chunk, collectors)

    def _say_found(
        self, items: list[tuple[int, np.ndarray, tuple[int, int]]], collectors: Sequence[Collector]
    ) -> None:
        """Say of which images of a chunk that DALI is through with its libraries said something."""
        if self._dali is not None and self._dali.said:
            for number, lines in self._dali.found(*zip(*((d, s) for _, d, s in items), strict=True)):
                collectors[0].say(items[number][0], lines)

    def _say_lost(self, images: int, error: Exception) -> None:
        """Say why DALI gave nothing; aloud, the first time, where the images are not to blame."""
        is_full = is_out_of_memory(error)
        aloud = is_full and not self._was_full
        if is_full:
            self._was_full = True
            ENCODERS.make_room(LONG_UNUSED)
            self._place.release_memory()
        log.log(
            logging.WARNING if aloud else logging.DEBUG,
            "DALI lost a chunk of %d images and is asked for its halves, which is slower%s: %s",
            images,
            ": it ran out of memory; fewer tasks a worker, or a smaller batch_size, leave it more"
            if is_full
            else "",
            error,
        )

    def _start(self, chunk: Chunk) -> None:
        if self._dali is not None and chunk.dali:
            self._dali.start([data for _, data, _ in chunk.dali], [size for _, _, size in chunk.dali])

    def _halve(self, items: list[Any], chunk: Chunk, collectors: Sequence[Collector]) -> None:
        """Find the images that DALI cannot decode; the others keep DALI's result."""
        if len(items) == 1:
            position, data, _ = items[0]
            self._say_found(items, collectors)
            self._to_pillow(chunk, self._dalis, position, data)
            return
        for half in (items[: len(items) // 2], items[len(items) // 2 :]):
            part = Chunk(dali=half)
            self._start(part)
            self.finish(part, collectors)
            chunk.pooled += part.pooled

    def _take(
        self,
        items: list[Any],
        outputs: list[Any],
        found: list[Any],
        chunk: Chunk,
        collectors: Sequence[Collector],
    ) -> None:
        right = [size == decoded for (_, _, size), decoded in zip(items, found, strict=True)]
        for (position, data, _), fits in zip(items, right, strict=True):
            if not fits:  # DALI reads the header in another way, so the crop was planned wrongly
                self._to_pillow(chunk, self._dalis, position, data)
        kept = [index for index, fits in enumerate(right) if fits]
        positions = [items[index][0] for index in kept]
        if not self._in_dali:
            # Several at a time: to hand an image to a thread and back costs a quarter of its resize.
            each = math.ceil(len(kept) / (_SHARES * self._spec.num_threads))
            work = partial(self._maker.of_pixels, which=self._all)
            (whole,) = outputs
            for start in range(0, len(kept), each or 1):
                some = slice(start, start + each)
                images = [whole[index] for index in kept[some]]
                self._submit(chunk, self._all, positions[some], work, images)
        elif kept:
            with self._place.wait_for_outputs():  # DALI has its memory back after this
                for number, pixels in zip(self._dalis, outputs, strict=True):
                    if len(kept) < len(items):
                        pixels = (
                            [pixels[index] for index in kept] if isinstance(pixels, list) else pixels[kept]
                        )
                    collectors[number].add(positions, pixels)

    def drop(self, *chunks: Chunk) -> None:
        """Let unfinished chunks go: nothing is at work on their bytes any more, nor in the pipeline."""
        futures = [made.future for chunk in chunks for made in chunk.pooled]
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


def _images_of(threads: int) -> int:
    """Images of a chunk on a CPU: enough for every thread to be busy to the end, and no more.

    DALI has a chunk's pixels in one block of memory, and malloc's heap grows by holes of its size. With one thread and
    photographs of half a megapixel 16 images a chunk take no more processor time than 64, and the heap of a worker
    without a model grows to 300 MiB, not 440; with EfficientNet-Lite0 to 490, not 560; of whole images to 330 to 360,
    not 360 to 500.
    """
    return max(min(64, 16 * threads), 4 * threads)
