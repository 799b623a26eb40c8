"""`ImageStatistics`: columns that say of each image what it is, made while it is read for the model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.decode.batches import Batch
from curator_dask.decode.orientation import EXIF_COLUMN, check_exif_column
from curator_dask.decode.spec import DEFAULT_MAX_PIXELS, ImageOptions
from curator_dask.errors import ConfigError, ImageError, OutputError
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.frames.parquet import read_record
from curator_dask.frames.record import FileRecord
from curator_dask.image.statistics.header import HEADER, read_header
from curator_dask.image.statistics.imageless import check_images
from curator_dask.image.statistics.metadata import METADATA, read_metadata
from curator_dask.image.statistics.names import EVERY, chosen_names
from curator_dask.image.statistics.pixels import MEASURED, Measure
from curator_dask.rows.image_files import caption_table, images_schema
from curator_dask.rows.reading import choose_source, learn_schema
from curator_dask.runs.lineage import trace
from curator_dask.runs.passes import run_steps
from curator_dask.runs.step import Known, Made, Reading, Rows, Wanted, Work, read_by, types_of
from curator_dask.storage import Options, is_remote
from curator_dask.webdataset.shards import ShardSet

_BATCH = 256  # images whose values are handed over together
WHAT = "statistics"  # what ``image_error`` calls these columns


class ImageStatistics:
    """Adds statistics of each image as columns, in the pass that embeds it, or by themselves.

    Alone or with an embedder before or after it on the same dataset, each image is fetched and decoded once.

    Parameters
    ----------
    names
        Which of `STATISTICS`; all by default (``"all"``). ``"metadata"`` stands for what is said below of files.

        Of the headers: ``width``, ``height`` (pixels, of the upright image), ``aspect`` (width / height), ``format``
        and ``mode`` (Pillow's names), ``bytes`` (of the file), ``orientation`` (EXIF's, 1 to 8, null where there is
        none), ``animated``.

        Of the pixels: ``phash`` and ``dhash`` (64 bits, imagehash's of the upright RGB image); ``blurriness`` (the
        standard deviation of the edges at 64 pixels, the smaller the blurrier: CleanVision's, without the outermost
        pixels, which Pillow leaves unfiltered), ``brightness`` (0 to 1, CleanVision's), ``entropy`` (bits, Pillow's,
        of all three channels; 1.58 of a plain picture), ``colourfulness`` (Hasler and Süsstrunk 2003; 0 is grey),
        ``grey`` (all channels equal in every pixel), ``border`` (the share of the area that plain bars of the first
        corner's colour take).

        Not among all: ``pdq`` and ``pdq_quality``, the hash in which lists of known images are exchanged
        (`curator_dask.image.statistics.pdq`).

        Of what files say, not among all: ``has_gps``, ``taken``, ``camera``, ``software``, ``creator``, ``copyright``,
        ``license_url``, ``digital_source``, ``ai_claimed``, ``has_c2pa``, ``data_mining``, ``data_mining_prohibited``
        (`curator_dask.frames.names.METADATA_DEFINITIONS`).
    prefix
        Before each name, where the dataset has columns of these names.
    num_threads_per_worker, decoder, max_pixels, use_index_files, image_member, gray16, orientation
        As for `curator_dask.image.embedders.ImageEmbedder`; where an embedder's are the same, it shares its images.

    Raises
    ------
    ConfigError
        There is no such statistic, or an option is wrong.
    """

    def __init__(
        self,
        names: Sequence[str] | None = None,
        *,
        prefix: str = "",
        num_threads_per_worker: int = 4,
        decoder: str = "dali",
        max_pixels: int = DEFAULT_MAX_PIXELS,
        use_index_files: bool = True,
        image_member: str | None = None,
        gray16: str = "scale",
        orientation: str = "stored",
    ) -> None:
        self.names = chosen_names(names)
        self.prefix = prefix
        self.options = ImageOptions(
            _BATCH,
            num_threads_per_worker,
            decoder,
            max_pixels,
            use_index_files,
            image_member=image_member,
            gray16=gray16,
            orientation=orientation,
        )

    def __call__(self, dataset: ImageTextPairDataset) -> ImageTextPairDataset:
        """The dataset with the statistics as its last columns; nothing is computed yet.

        Raises
        ------
        ConfigError
            The dataset has another column of one of these names.
        """
        check_exif_column(self.options.orientation, dataset.metadata.columns)
        options, inputs = dataset.storage_options, trace(dataset.metadata).inputs or ()
        parquet = (part.shard.parquet for part in inputs)
        step = self._step(dataset.id_col, options)
        self._refuse(_own_columns(types_of(dataset.metadata._meta), parquet, step, options))
        return dataset.apply(step)

    def check(
        self,
        found: ShardSet,
        id_col: str,
        *,
        metadata: str = "auto",
        captions: str = "txt",
        nested_json: bool = False,
        storage_options: Options = None,
    ) -> None:
        """See before there is a cluster that no column is lost; of tars in a store, which are not fetched, it is not.

        Parameters
        ----------
        found
            The shards.
        id_col, metadata, nested_json, storage_options
            As for `ImageTextPairDataset.from_shards`.
        captions
            As of the command line.

        Raises
        ------
        ConfigError
            The dataset has another column of one of these names.
        """
        schema = schema_ahead(
            found,
            id_col,
            metadata=metadata,
            captions=captions,
            nested_json=nested_json,
            storage_options=storage_options,
        )
        if schema is None:
            return
        parquet = (shard.parquet for shard in found.shards)
        step = self._step(id_col, storage_options)
        self._refuse(_own_columns(schema, parquet, step, storage_options))

    @property
    def pred_column(self) -> str:
        """The first of the columns."""
        return self.prefix + self.names[0]

    def of_files(self, records: Mapping[str, FileRecord | None], options: Options = None) -> MeasureImages:
        """The step for files that are there, by what made them; `options` are for fsspec, of the shards, too.

        Raises
        ------
        ConfigError
            A statistic has the name of the keys' column, of the shards' or of vectors.
        OutputError
            The files have keys in columns of several names, or are of tables without images.
        """
        check_images(records.values(), options)
        of: dict[str, str] = {}
        for path, record in records.items():
            of.setdefault((record and record.id_col) or "key", path)
        if len(of) > 1:
            (id_col, one), (other, path) = list(of.items())[:2]
            raise OutputError(
                f"{one} has its keys in {id_col!r}, {path} in {other!r}: measure them one folder at a time"
            )
        vectors = {name for record in records.values() if record is not None for name in record.embeddings}
        (id_col,) = of
        step = self._step(id_col, options)
        self._refuse(sorted({id_col, URL_COLUMN, *vectors} & {*step.columns}))
        return step

    def _step(self, id_col: str, options: Options) -> MeasureImages:
        return MeasureImages(tuple(self.names), self.prefix, id_col, self.options, options)

    def _refuse(self, own: list[str]) -> None:
        if own:
            raise ConfigError(
                f"the dataset has columns of its own named {own}, which would be lost: give the statistics other names"
                " (prefix='image_', --prefix image_, in a recipe prefix: image_), or leave these out (names=,"
                " --statistics, in a recipe statistics:)"
            )

    def __repr__(self) -> str:
        return f"ImageStatistics({self.names!r}, prefix={self.prefix!r})"


def schema_ahead(
    found: ShardSet,
    id_col: str,
    *,
    metadata: str = "auto",
    captions: str = "txt",
    nested_json: bool = False,
    storage_options: Options = None,
) -> pa.Schema | None:
    """The columns of a dataset, before there is a cluster; None of tars in a store, which are not fetched.

    Parameters
    ----------
    found, id_col, metadata, captions, nested_json, storage_options
        See `ImageStatistics.check`.
    """
    if captions != "txt":
        return images_schema(id_col, None if captions == "none" else caption_table(captions, storage_options))
    source = choose_source(metadata, found, storage_options)
    if source == "tar" and is_remote(found.root):
        return None
    return learn_schema(found.shards, source, id_col, storage_options, nested_json)


def _own_columns(
    types: pa.Schema, parquet: Iterable[str | None], step: MeasureImages, options: Options
) -> list[str]:
    """Columns of the dataset that are none of an earlier run's statistics in its files, which are made anew."""
    there = [name for name in step.columns if name in types.names and name != ERROR_COLUMN]
    path = next((path for path in parquet if path is not None), None) if there else None
    record = None if path is None else read_record(path, options)
    if record is None:
        return there
    return [name for name in there if not _same(types.field(name).type, step.columns[name])]


def _same(one: pa.DataType, other: pa.DataType) -> bool:
    return bool(one == other or (pa.types.is_large_string(one) and pa.types.is_string(other)))


@dataclass(frozen=True)
class MeasureImages:
    """The step of `ImageStatistics`, with its settings.

    Attributes
    ----------
    names, prefix
        See `ImageStatistics`.
    id_col
        Column of the keys.
    options
        How images are read.
    storage_options
        For fsspec, where shards are URLs.
    given_up
        Why nothing is to be opened, if so.
    beside
        The rows have other statistics, which stay: so does why they lack these.
    """

    names: tuple[str, ...]
    prefix: str
    id_col: str
    options: ImageOptions
    storage_options: Options = None
    given_up: str | None = None
    beside: bool = False

    label = "image statistics"
    called = WHAT
    keeps_rows = True

    @property
    def needs(self) -> frozenset[str]:
        """Bytes for what headers say, pixels for the rest."""
        kinds = {"bytes": {**HEADER, **METADATA}, "pixels": MEASURED}
        return frozenset(need for need, known in kinds.items() if any(name in known for name in self.names))

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """The statistics, and why there are none."""
        return {**{self.prefix + name: EVERY[name] for name in self.names}, ERROR_COLUMN: pa.string()}

    @property
    def recipe(self) -> tuple[Any, ...]:
        """Which, and of what."""
        options = self.options
        return (
            WHAT,
            1,
            self.id_col,
            self.prefix,
            self.names,
            options.decoder,
            options.max_pixels,
            *options.named,
        )

    @property
    def arguments(self) -> dict[str, Any]:
        """None: a retry makes them again by `read_by`."""
        return dict.fromkeys(self.columns)

    @property
    def read_by(self) -> dict[str, str]:
        """By column, which statistic it is and how images are read."""
        how = read_by(self.id_col, self.options)
        return {self.prefix + name: f"{name} {WHAT} 1 {how}" for name in self.names}

    def describe(self) -> dict[str, dict[str, Any]]:
        """There is no model."""
        return {}

    @property
    def inputs(self) -> list[str]:
        """Columns by which images are found and read."""
        exif = [EXIF_COLUMN] if self.options.orientation == "exif-column" else []
        return [self.id_col, URL_COLUMN, *exif]

    def only(self, columns: Collection[str], others: Mapping[str, str]) -> MeasureImages:
        """The same for some of its columns, where rows have `others`: these columns, as `read_by` says of them."""
        names = tuple(name for name in self.names if self.prefix + name in columns)
        beside = any(way.split(" ")[1:2] == [WHAT] for way in others.values())
        return replace(self, names=names, beside=beside)

    def give_up(self, reason: str) -> MeasureImages:
        """The same, but no tar is opened."""
        return replace(self, given_up=reason)

    def reading(self, rows: Rows) -> Reading | None:
        """How the images of these rows are read; None where nothing is to be opened."""
        if self.given_up is not None or not len(rows) or self._known(rows) is not None:
            return None
        return Reading.of(self.id_col, self.options, self.storage_options)

    def begin(self, rows: Rows) -> AbstractContextManager[Work]:
        """Begin with the rows of a partition."""
        known = None if self.given_up is not None else self._known(rows)
        if known is not None:
            return nullcontext(Known(Made(known[0], {WHAT: known[1]})))
        return nullcontext(_Measuring(self, rows.reasons(WHAT) if self.beside else [None] * len(rows)))

    def _known(self, rows: Rows) -> tuple[dict[str, pa.Array], list[str | None]] | None:
        types = {name: kind for name, kind in self.columns.items() if name != ERROR_COLUMN}
        return rows.known_columns(
            types, WHAT, nullable=[self.prefix + name for name in ("orientation", *METADATA)]
        )

    def __call__(self, frame: Any) -> Any:
        """The frame with the statistics, its rows in the same order."""
        return run_steps((self,), frame)


class _Measuring(Work):
    def __init__(self, step: MeasureImages, before: list[str | None]) -> None:
        self._step, self._before, rows = step, before, len(before)
        self._reasons: list[str | None] = [step.given_up] * rows
        self._headers: dict[int, dict[str, Any]] = {}
        self._looks_for_metadata = any(name in METADATA for name in step.names)
        self._measure = Measure(tuple(name for name in step.names if name in MEASURED))
        self._values = np.zeros((rows, self._measure.width), np.float32)
        self._measured = np.zeros(rows, bool)
        if self._measure.names:
            self.wanted = Wanted(self._measure, step.options)

    def take_bytes(self, row: int, image: Any) -> None:
        """Read the headers of an image."""
        try:
            if isinstance(image, Exception):
                raise ImageError(str(image) or type(image).__name__)
            self._headers[row] = read_header(image, self._step.options.max_pixels)
            if self._looks_for_metadata:
                self._headers[row] |= read_metadata(image)
        except ImageError as error:
            self._reasons[row] = str(error)

    def take(self, batch: Batch) -> set[int]:
        """Take what was measured of some images."""
        for row, reason in batch.errors.items():
            self._reasons[row] = reason
        if len(batch.positions):
            self._values[batch.positions] = batch.pixels.cpu().numpy()
            self._measured[batch.positions] = True
        return set()

    def finish(self) -> Made:
        """The columns, null where there is a reason."""
        step, rows = self._step, range(len(self._reasons))
        made = self._measure.columns(self._values, self._measured)
        for name in step.names:
            if name not in MEASURED:
                values = [self._headers[row][name] if row in self._headers else None for row in rows]
                made[name] = pa.array(values, EVERY[name])
        reasons = [now or before for now, before in zip(self._reasons, self._before, strict=True)]
        return Made({step.prefix + name: made[name] for name in step.names}, {WHAT: reasons})
