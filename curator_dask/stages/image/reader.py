"""`ImageReaderStage`: from shards to batches of decoded images."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from curator_dask.cache import LOADERS
from curator_dask.cluster.progress import report
from curator_dask.cluster.timing import Stopwatch
from curator_dask.dashboard.topics import WAITING
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.datasets.ranges import check_options
from curator_dask.decode.loader import Loader
from curator_dask.decode.orientation import EXIF_COLUMN, check_exif_column, turned
from curator_dask.decode.spec import DEFAULT_MAX_PIXELS, ImageOptions, LoaderSpec, check_counts
from curator_dask.frames.columns import embedding_columns, to_array
from curator_dask.frames.names import URL_COLUMN
from curator_dask.rows.ids import exact_ids
from curator_dask.rows.images import add_status, read_images, remark_corrupt, values_of, vectors_of
from curator_dask.stages.base import Names, ProcessingStage
from curator_dask.tasks import FileGroupTask, ImageBatch, ImageObject
from curator_dask.webdataset.folders import place_of
from curator_dask.webdataset.samples import key_text
from curator_dask.webdataset.stamps import Watched

logger = logging.getLogger("curator_dask")


class ImageReaderStage(ProcessingStage[FileGroupTask, ImageBatch]):
    """Reads shards and decodes their images, each at its own size; second stage of a pipeline.

    Every row of the dataset becomes one `ImageObject`, in batches that are decoded while the stages after it work
    on those before. An image that cannot be used is an object with an ``error``.

    Parameters
    ----------
    dali_batch_size
        Decoded images in a batch, at most: large ones fill it sooner (at about 200 MB of pixels).
    verbose
        Log each batch.
    num_threads
        Threads that decode, at most; on a CPU no more than the worker's share of the cores are used.
    num_gpus_per_worker
        See `curator_dask.stages.base.Stage`.
    id_col, metadata
        As for `ImageTextPairDataset.from_webdataset`: the column of the keys, and where the rows come from.
    decoder, max_pixels, use_index_files, image_member, gray16, orientation
        As for `curator_dask.image.embedders.ImageEmbedder`.
    batch_size
        Another name for `dali_batch_size`.

    Raises
    ------
    ConfigError
        An argument has a value that it cannot have.
    """

    name = "image_reader"
    thread_safe = True

    def __init__(
        self,
        dali_batch_size: int = 100,
        verbose: bool = False,
        num_threads: int = 8,
        num_gpus_per_worker: float = 0.25,
        *,
        id_col: str = "key",
        metadata: str = "auto",
        decoder: str = "dali",
        max_pixels: int = DEFAULT_MAX_PIXELS,
        use_index_files: bool = True,
        batch_size: int | None = None,
        image_member: str | None = None,
        gray16: str = "scale",
        orientation: str = "stored",
    ) -> None:
        dali_batch_size = dali_batch_size if batch_size is None else batch_size
        check_counts(dali_batch_size=dali_batch_size)
        self.dali_batch_size = dali_batch_size
        self.verbose = verbose
        self.num_threads = num_threads
        self.num_gpus_per_worker = num_gpus_per_worker
        check_options(id_col, metadata)
        self.id_col = id_col
        self.metadata = metadata
        self.decoder = decoder
        self.max_pixels = max_pixels
        self.use_index_files = use_index_files
        self.image_member = image_member
        self.gray16 = gray16
        self.orientation = orientation
        _ = self.options  # checks them

    @property
    def batch_size(self) -> int:
        """Another name for `dali_batch_size`."""
        return self.dali_batch_size

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        check_counts(batch_size=size)
        self.dali_batch_size = size

    @property
    def options(self) -> ImageOptions:
        """How images are read, decoded and put into batches."""
        return ImageOptions(
            self.dali_batch_size,
            self.num_threads,
            self.decoder,
            self.max_pixels,
            self.use_index_files,
            image_member=self.image_member,
            gray16=self.gray16,
            orientation=self.orientation,
        )

    def inputs(self) -> Names:
        """Groups of shards."""
        return ["data"], ["shards"]

    def outputs(self) -> Names:
        """Images, decoded."""
        return ["data"], ["image_path", "image_id", "metadata", "image_data", "error"]

    def process(self, task: FileGroupTask) -> Iterator[ImageBatch]:
        """Read and decode the shards of a group, one after the other.

        Raises
        ------
        ShardError, DatasetError
            A shard cannot be read at all.
        """
        dataset = ImageTextPairDataset.from_webdataset(
            task.data, self.id_col, metadata=self.metadata, storage_options=task.storage_options
        )
        for part in dataset.metadata.to_delayed():
            yield from self.read(part.compute(scheduler="sync"), task.storage_options, task.dataset_name)

    def read(
        self,
        frame: Any,
        storage_options: Mapping[str, Any] | None = None,
        dataset_name: str = "",
        reading: str = "",
    ) -> Generator[ImageBatch, None, None]:
        """The images of a frame's rows, found by shard and key, in the order of the tars.

        Parameters
        ----------
        frame
            pandas or cuDF, with the columns `id_col` and ``__url__``.
        storage_options
            For fsspec, where shards are URLs.
        dataset_name
            For the batches.
        reading
            Name of this reading, for `ImageObject.origin`.
        """
        ids = exact_ids(to_array(frame[self.id_col]))
        urls = to_array(frame[URL_COLUMN]).to_pylist()
        if not ids:
            return
        found_as: dict[int, tuple[str, str]] = {}
        watched = Watched()
        images: Iterator[tuple[int, Any]] = read_images(
            ids,
            urls,
            self.id_col,
            use_index_files=self.use_index_files,
            storage_options=storage_options,
            found_as=found_as,
            image_member=self.image_member,
            watched=watched,
        )
        if self.orientation == "exif-column":
            check_exif_column(self.orientation, frame.columns)
            images = turned(images, to_array(frame[EXIF_COLUMN]).to_pylist())
        make = _Maker(reading, ids, urls, self.rows(frame), found_as)
        spec = LoaderSpec.here((None,), [self.options])
        with LOADERS.lease(spec, lambda: Loader(spec)) as loader:
            watch = Stopwatch()
            watch.turn_to(WAITING)
            said: dict[int, str] = {}
            bad: set[int] = set()
            for number, batch in enumerate(loader.load(images)):
                said |= batch.said
                bad.update(batch.errors)
                watch.turn_to("forward")  # what other stages do with the batch
                started = time.monotonic()
                pixels = zip(batch.positions.tolist(), batch.pixels, strict=True)
                objects = [make(row, data, None) for row, data in pixels]
                objects += [make(row, None, why) for row, why in _with_status(batch.errors, frame).items()]
                batch.pixels.clear()  # else they would live until the next batch is decoded
                yield ImageBatch(objects, dataset_name, f"{urls[0]} batch {number}")
                failed = sum(image.error is not None for image in objects)  # also what failed after here
                report(images=len(objects), failed=failed)
                watch.turn_to(WAITING)
                watch.tell()
                if self.verbose:
                    _say(urls[0], number, len(objects), failed, time.monotonic() - started)
        watched.check()
        remark_corrupt({row: words for row, words in said.items() if row not in bad}, ids, urls)

    def unread(self, frame: Any, reason: str, reading: str = "") -> list[ImageObject]:
        """The rows of a frame as images that were not looked at, all with this error."""
        ids = exact_ids(to_array(frame[self.id_col]))
        urls = to_array(frame[URL_COLUMN]).to_pylist()
        make = _Maker(reading, ids, urls, self.rows(frame), {})
        report(images=0, failed=len(ids))
        return [make(row, None, reason) for row in range(len(ids))]

    def rows(self, frame: Any) -> list[dict[str, Any]]:
        """The rows of a frame as dictionaries; vectors of other embeddings as NumPy arrays."""
        vectors = set(embedding_columns(frame))
        columns = [
            (vectors_of if name in vectors else values_of)(to_array(frame[name])) for name in frame.columns
        ]
        return [dict(zip(frame.columns, values, strict=True)) for values in zip(*columns, strict=True)]


@dataclass(frozen=True)
class _Maker:
    """Makes the objects of a reading's rows."""

    reading: str
    ids: Sequence[Any]
    urls: Sequence[str | None]
    rows: Sequence[dict[str, Any]]
    found_as: Mapping[int, tuple[str, str]]

    def __call__(self, row: int, pixels: Any, error: str | None) -> ImageObject:
        key, member = self.found_as.get(row, (str(self.ids[row]), ""))
        url = str(self.urls[row])
        path = f"{place_of(url)}/{member}" if member else url
        return ImageObject(
            image_path=key_text(path),
            image_id=key_text(key),
            metadata=self.rows[row],
            image_data=pixels,
            error=error,
            origin=(self.reading, row),
        )


def _with_status(errors: Mapping[int, str], frame: Any) -> dict[int, str]:
    """The reasons, with what the downloader knew of the images that are missing."""
    if not errors:
        return {}
    reasons: list[str | None] = [errors.get(row) for row in range(len(frame))]
    return {row: reason for row, reason in enumerate(add_status(reasons, frame)) if reason is not None}


def _say(url: str | None, number: int, images: int, failed: int, seconds: float) -> None:
    logger.info(
        "%s batch %d: %d images, %d failed; the stages after it took %.2f s",
        url,
        number,
        images,
        failed,
        seconds,
    )
