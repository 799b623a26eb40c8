"""From encoded images to batches of pixels on the model's device, in the background.

A `Loader` reads, sniffs and decodes in a thread of its own while the caller's model works on the batch
before. Images are decoded in chunks, which are bounded in decoded pixels and have nothing to do with the
model's batches; good images are gathered into full batches, bad ones into reasons.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from curator_dask import backend
from curator_dask.decode.batches import Batch, Gather
from curator_dask.decode.sniff import Encoded, buffer_of, sniff
from curator_dask.decode.transforms import TransformSpec
from curator_dask.errors import ConfigError, CuratorError, ImageError

if TYPE_CHECKING:
    import PIL.Image
    import torch

    from curator_dask.decode.dali import DaliDecoder

log = logging.getLogger("curator_dask")

DEFAULT_MAX_PIXELS = 178_956_970
"""Twice ``PIL.Image.MAX_IMAGE_PIXELS``: where Pillow takes an image for a decompression bomb."""

CHUNK_PIXELS = 1 << 28
"""Decoded pixels at which a chunk closes at the latest (3 bytes each, two chunks at a time: 1.6 GB)."""

CHUNK_PIXELS_A_THREAD = 1 << 25
"""The same for each decode thread: about three photographs of 12 megapixels."""

SMALLEST_FOR_DALI = 8
"""Pixels of an edge below which DALI's resize handles the border so unlike Pillow's that it can be seen."""

_QUEUED = 2
"""Finished batches that may wait for the caller."""

_POLL = 0.05
"""Seconds between two looks at whether the other side has gone."""


@dataclass(frozen=True)
class LoaderSpec:
    """What a `Loader` does; hashable, so that a process can keep one loader a spec.

    Attributes
    ----------
    transform
        A `TransformSpec`, or any callable that makes a tensor of an upright RGB ``PIL.Image.Image``. With a
        callable Pillow decodes, whatever `decoder` says.
    batch_size
        Images in a batch for the model.
    num_threads
        Decode threads.
    decoder
        ``"dali"``, or ``"pillow"`` for the exact reference.
    max_pixels
        Height times width above which an image is refused before it is decoded.
    device
        ``"cpu"`` or ``"gpu"``: where the pixels are wanted (``backend.Backend.device``).

    Raises
    ------
    ConfigError
        A field that no loader could have.
    """

    transform: TransformSpec | Callable[[PIL.Image.Image], torch.Tensor]
    batch_size: int
    num_threads: int
    decoder: str = "dali"
    max_pixels: int = DEFAULT_MAX_PIXELS
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not isinstance(self.transform, TransformSpec) and not callable(self.transform):
            raise ConfigError(
                "LoaderSpec.transform: expected a TransformSpec or a callable that takes a PIL image, "
                f"got {type(self.transform).__name__}"
            )
        for name in ("batch_size", "num_threads", "max_pixels"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"LoaderSpec.{name}: expected a whole number of at least 1, got {value!r}")
        for name, known in (("decoder", ("dali", "pillow")), ("device", ("cpu", "gpu"))):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"LoaderSpec.{name}: expected {known[0]!r} or {known[1]!r}, got {getattr(self, name)!r}"
                )


@dataclass
class _Chunk:
    """Images that are decoded together."""

    dali: list[tuple[int, np.ndarray, tuple[int, int]]] = field(default_factory=list)
    pillow: list[tuple[int, Future]] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)
    pixels: int = 0

    def __len__(self) -> int:
        return len(self.dali) + len(self.pillow) + len(self.errors)


class Loader:
    """Decodes images with one DALI pipeline and one pool of threads, kept from call to call.

    Parameters
    ----------
    spec
        What to do.

    Raises
    ------
    ConfigError
        DALI or the device that the spec asks for is not there.
    """

    def __init__(self, spec: LoaderSpec):
        here = backend.current()
        if spec.device == "gpu" and here.device != "gpu":
            raise ConfigError("LoaderSpec.device='gpu', but this process computes on the CPU")
        self.spec = spec
        self._backend = here if spec.device == here.device else backend.Backend("cpu", "pandas")
        self._stream = self._backend.side_stream()
        self._pool = ThreadPoolExecutor(spec.num_threads, thread_name_prefix="curator-decode")
        self._busy = threading.Lock()
        self._users: set[int] = set()
        self._closed = False
        self._dali: DaliDecoder | None = None
        self._chunk_size = min(spec.batch_size, _chunk_size(spec))
        on_cpu = self._backend.device == "cpu"
        self._chunk_pixels = (
            min(CHUNK_PIXELS, CHUNK_PIXELS_A_THREAD * spec.num_threads) if on_cpu else CHUNK_PIXELS
        )
        self._resize: Callable[[np.ndarray], np.ndarray] | None = None
        self._finish_image = _finisher(spec.transform)
        if spec.decoder == "dali" and isinstance(spec.transform, TransformSpec):
            self._prepare_dali(spec.transform)
        _let_pillow_open(spec.max_pixels)

    def _prepare_dali(self, transform: TransformSpec) -> None:
        from curator_dask.decode.dali import DALI_MODES, DaliDecoder
        from curator_dask.decode.resize import TORCH_MODES, HostResize

        on_gpu = self._backend.device == "gpu"
        if on_gpu and transform.interpolation not in DALI_MODES:
            log.warning(
                "decoding with Pillow on the CPU: DALI has no %r resize as Pillow does it (it has %s)",
                transform.interpolation,
                ", ".join(DALI_MODES),
            )
            return
        if not on_gpu:
            if transform.interpolation not in TORCH_MODES:
                log.warning(
                    "resizing with Pillow after DALI's decoding: there is no faster %r resize with the same "
                    "result (there is for %s)",
                    transform.interpolation,
                    ", ".join(TORCH_MODES),
                )
            self._resize = HostResize(transform)
        self._dali = DaliDecoder(
            self._chunk_size,
            self.spec.num_threads,
            device_id=self._backend.dali_device_id,
            decoder=self._backend.dali_decoder,
            transform=transform if on_gpu else None,
        )

    def load(self, images: Iterable[tuple[int, Encoded | Exception]]) -> Iterator[Batch]:
        """Decode images into batches, one ahead of the caller.

        Several threads may load with one loader: they take turns, each when the one before has decoded its
        last image.

        Parameters
        ----------
        images
            Pairs of a position and an encoded image, or the exception that stands in its place. Read in a
            background thread, as far ahead as two chunks and a few batches. The bytes are not referred to
            any more once the iterator has ended or was closed.

        Yields
        ------
        Batch
            Each position is in exactly one batch, in `positions` or in `errors`. All batches but the last
            are full.

        Raises
        ------
        Exception
            What `images` raises.
        CuratorError
            The loader was closed, or this thread is still in the middle of another `load` of it.
        """
        if self._closed:
            raise CuratorError("Loader.load: this loader was closed; make a new one")
        me = threading.get_ident()
        if me in self._users:
            raise CuratorError("Loader.load: finish or close the iterator of the load before this one first")
        run = _Run(self, images)
        self._users.add(me)
        try:
            for batch in run.batches():
                self._backend.adopt(batch.pixels)
                yield batch
        finally:
            self._users.discard(me)
            run.stop()

    def close(self) -> None:
        """End all threads and let DALI's memory go."""
        self._closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._dali is not None:
            self._dali.close()

    # What follows runs in the thread of a `_Run`.

    def _admit(self, chunk: _Chunk, position: int, data: Encoded | Exception) -> None:
        """Sniff one image and put it where it will be decoded."""
        if isinstance(data, Exception):
            chunk.errors[position] = str(data) or type(data).__name__
            return
        try:
            header = sniff(data, self.spec.max_pixels)
        except ImageError as error:
            chunk.errors[position] = str(error)
            return
        chunk.pixels += header.height * header.width
        # A copy, unless the bytes are their own: a memory-mapped shard is read here, while DALI decodes, and
        # can be closed when the load ends.
        owned = data if isinstance(data, bytes) else buffer_of(data).tobytes()
        large = self._resize is not None or min(header.height, header.width) >= SMALLEST_FOR_DALI
        if self._dali is not None and header.plain and large:
            chunk.dali.append((position, np.frombuffer(owned, np.uint8), (header.height, header.width)))
        else:
            chunk.pillow.append((position, self._pool.submit(self._by_pillow, owned)))

    def _by_pillow(self, data: Encoded) -> Any:
        from curator_dask.decode.pillow import decode

        return self._finish_image(decode(data, self.spec.max_pixels))

    def _start(self, chunk: _Chunk) -> None:
        if self._dali is not None and chunk.dali:
            self._dali.start([data for _, data, _ in chunk.dali], [size for _, _, size in chunk.dali])

    def _finish(self, chunk: _Chunk, gather: Gather) -> None:
        """Wait for DALI's part of a chunk and hand out the rest of the work on it."""
        if self._dali is None or not chunk.dali:
            return
        items, chunk.dali = chunk.dali, []
        try:
            pixels, found = self._dali.finish()
        except Exception as error:  # DALI's own, of many types; memory that it could not get
            log.debug("DALI lost a chunk of %d images and is asked for its halves: %s", len(items), error)
            self._halve(items, chunk, gather)
            return
        self._take(items, pixels, found, chunk, gather)

    def _halve(self, items: list, chunk: _Chunk, gather: Gather) -> None:
        """Find the images that DALI cannot decode; the others keep DALI's result."""
        if len(items) == 1:
            position, data, _ = items[0]
            chunk.pillow.append((position, self._pool.submit(self._by_pillow, data)))
            return
        for half in (items[: len(items) // 2], items[len(items) // 2 :]):
            part = _Chunk(dali=half)
            self._start(part)
            self._finish(part, gather)
            chunk.pillow += part.pillow

    def _take(self, items: list, pixels: Any, found: list, chunk: _Chunk, gather: Gather) -> None:
        right = [size == decoded for (_, _, size), decoded in zip(items, found, strict=True)]
        for index, (position, data, _) in enumerate(items):
            if not right[index]:  # DALI reads the header in another way, so the crop was planned wrongly
                chunk.pillow.append((position, self._pool.submit(self._by_pillow, data)))
            elif self._resize is not None:
                chunk.pillow.append((position, self._pool.submit(self._resize, pixels[index])))
        if self._resize is None and any(right):
            kept = [index for index, fits in enumerate(right) if fits]
            block = pixels if len(kept) == len(items) else pixels[kept]
            with self._backend.wait_for_outputs():  # DALI reuses its memory after this
                gather.add([items[index][0] for index in kept], block)


class _Run:
    """One call of `Loader.load`: its thread and the queue between."""

    def __init__(self, loader: Loader, images: Iterable[tuple[int, Encoded | Exception]]):
        self._loader = loader
        self._images = images
        self._queue: queue.Queue[Batch | BaseException | None] = queue.Queue(_QUEUED)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="curator-load", daemon=True)
        self._thread.start()

    def batches(self) -> Iterator[Batch]:
        while True:
            item = self._queue.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def stop(self) -> None:
        """End the thread, wherever it is, and wait for it."""
        self._stopped.set()
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):
                self._queue.get_nowait()
            self._thread.join(_POLL)

    def _put(self, item: Batch | BaseException | None) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=_POLL)
                return

    def _work(self) -> None:
        # The loader is this run's until its last image is decoded, not until the caller is through with it: so
        # the next task's first batch is decoded while the model works on the last of this one's.
        while not self._loader._busy.acquire(timeout=_POLL):
            if self._stopped.is_set():
                return
        end: BaseException | None = None
        try:
            with self._loader._stream:
                self._produce()
        except BaseException as error:
            end = error
        finally:
            self._loader._busy.release()
        self._put(end)

    def _produce(self) -> None:
        loader = self._loader
        transform = loader.spec.transform
        shape = (*transform.size, 3) if isinstance(transform, TransformSpec) else None
        gather = Gather(loader.spec.batch_size, shape, loader._backend, self._put)
        chunk, running = _Chunk(), _Chunk()
        try:
            for position, data in self._images:
                if self._stopped.is_set():
                    return
                loader._admit(chunk, position, data)
                if len(chunk) >= loader._chunk_size or chunk.pixels >= loader._chunk_pixels:
                    loader._finish(running, gather)
                    loader._start(chunk)
                    done, running, chunk = running, chunk, _Chunk()
                    gather.collect(done.pillow, done.errors)
            for last in (running, chunk):
                loader._finish(last, gather)
                if last is running:
                    loader._start(chunk)
                gather.collect(last.pillow, last.errors)
            gather.flush()
        finally:
            # After an error or an early stop: nothing may still be at work on bytes or in the pipeline.
            for _, future in running.pillow + chunk.pillow:
                future.cancel()
            for _, future in running.pillow + chunk.pillow:
                if not future.cancelled():
                    future.exception()
            if loader._dali is not None:
                loader._dali.drop()


def _finisher(transform: Any) -> Callable[[PIL.Image.Image], Any]:
    """What makes a row of a decoded RGB image."""
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


def _chunk_size(spec: LoaderSpec) -> int:
    """Images decoded together: enough for every thread to be busy to the end."""
    return 128 if spec.device == "gpu" else max(64, 4 * spec.num_threads)


def _let_pillow_open(max_pixels: int) -> None:
    """Pillow refuses above twice its own limit: raise that, for this process, where more was asked for."""
    from PIL import Image

    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = -(-max_pixels // 2)
