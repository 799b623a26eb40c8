"""From encoded images to batches of pixels on the model's device, in the background.

A `Loader` reads, sniffs and decodes in a thread of its own while the caller's model works on the batch
before. Images are decoded in chunks, which are bounded in decoded pixels and have nothing to do with the
model's batches; good images are gathered into full batches, bad ones into reasons. Each image is decoded once,
and gathered for each of the loader's transforms.
"""

from __future__ import annotations

import contextlib
import contextvars
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator

from curator_dask import backend
from curator_dask.cluster.timing import Stopwatch
from curator_dask.decode.batches import Batch, Collector, Gather, GatherWhole, collect
from curator_dask.decode.chunks import Chunk, ChunkDecoder
from curator_dask.decode.sniff import Encoded
from curator_dask.decode.spec import LoaderSpec
from curator_dask.decode.transforms import TransformSpec
from curator_dask.errors import ConfigError, CuratorError

_QUEUED = 2
"""Finished batches that may wait for the caller, for each transform."""

_QUEUED_WHOLE = 1
"""The same, for all transforms together, where one of them is whole images, which are many times as large.

Alive at once in a load are then at most three batches (one with the caller, one queued, one being gathered) of
`curator_dask.decode.batches.WHOLE_PIXELS` each, and two chunks (one being decoded, one being read or taken over)
of as many pixels: 1 GB. What the last image of a chunk has too many comes on top, and a batch of one image is as
large as that is: with `DEFAULT_MAX_PIXELS`, 537 MB each. Beside other transforms the images handed out are copies,
one chunk more.
"""

_POLL = 0.05
"""Seconds between two looks at whether the other side has gone."""


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
        self._decoder = ChunkDecoder(spec, self._backend)
        self._busy = threading.Lock()
        self._users: set[int] = set()
        self._closed = False
        _let_pillow_open(spec.max_pixels)

    def load(self, images: Iterable[tuple[int, Encoded | Exception]]) -> Generator[Batch, None, None]:
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
            Of each transform (`Batch.which`) each position is in exactly one batch, in `positions` or in `errors`.
            All batches of a transform but its last are full; of whole images some are closed early. Take them
            in the order in which they come: while too many wait, nothing is decoded for any transform.

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
        run = _Run(self, images, Stopwatch())
        self._users.add(me)
        try:
            for batch in run.batches():
                self._hand_over(batch)
                yield batch
        finally:
            self._users.discard(me)
            run.stop()

    def close(self) -> None:
        """End all threads and let DALI's memory go; what was handed out stays as it is."""
        self._closed = True
        self._decoder.close()

    def _collectors(self, put: Callable[[Batch], None]) -> list[Collector]:
        made: list[Collector] = []
        each = zip(self.spec.transforms, self.spec.batch_sizes, strict=True)
        for which, (transform, batch_size) in enumerate(each):
            if transform is None:
                made.append(GatherWhole(batch_size, self._backend, put, which))
                continue
            shape = (*transform.size, 3) if isinstance(transform, TransformSpec) else None
            made.append(Gather(batch_size, shape, self._backend, put, which))
        return made

    def _hand_over(self, batch: Batch) -> None:
        """Make pixels that come from the loader's stream the caller's, in the caller's thread."""
        if self.spec.transforms[batch.which] is not None:
            self._backend.adopt(batch.pixels)
            return
        for tensor in batch.pixels:
            self._backend.adopt(tensor)
        batch.pixels = [backend.array_of(tensor) for tensor in batch.pixels]


class _Run:
    """One call of `Loader.load`: its thread and the queue between."""

    def __init__(
        self, loader: Loader, images: Iterable[tuple[int, Encoded | Exception]], watch: Stopwatch
    ) -> None:
        self._loader = loader
        self._images = images
        self._watch = watch
        transforms = loader.spec.transforms
        self._queue: queue.Queue[Batch | BaseException | None] = queue.Queue(
            _QUEUED_WHOLE if None in transforms else _QUEUED * len(transforms)
        )
        self._stopped = threading.Event()
        # With the caller's context: what is noticed while the images are read belongs to the caller's task.
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._work,), name="curator-load", daemon=True
        )
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
        before = self._watch.turn_to(None)
        self._watch.tell()
        if not self._stopped.is_set():
            self._queue.put(item)  # where it is full for good, `stop` empties it
        self._watch.turn_to(before)

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
        decoder, collectors = self._loader._decoder, self._loader._collectors(self._put)
        chunk, running = Chunk(), Chunk()
        try:
            self._watch.turn_to("fetch")
            for position, data in self._images:
                self._watch.turn_to("decode")
                if self._stopped.is_set():
                    return
                if decoder.admit(chunk, position, data):
                    decoder.finish(running, collectors, following=chunk)
                    done, running, chunk = running, chunk, Chunk()
                    collect(done.pooled, done.errors, collectors)
                self._watch.turn_to("fetch")
            self._watch.turn_to("decode")
            decoder.finish(running, collectors, following=chunk)
            collect(running.pooled, running.errors, collectors)
            decoder.finish(chunk, collectors)
            collect(chunk.pooled, chunk.errors, collectors)
            for collector in collectors:
                collector.flush()
        finally:
            self._watch.turn_to(None)
            decoder.drop(running, chunk)  # after an error or an early stop


def _let_pillow_open(max_pixels: int) -> None:
    """Pillow refuses above twice its own limit: raise that, for this process, where more was asked for."""
    from PIL import Image

    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = -(-max_pixels // 2)
