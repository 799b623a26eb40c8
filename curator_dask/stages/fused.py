"""The stages of a pipeline as one step of a dataset's graph: from the rows of a shard to its rows with more columns.

So reading, resuming, progress, retries and writing are the dataset API's own, and pixels stay within the task.
"""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd
import pyarrow as pa

from curator_dask import backend
from curator_dask.datasets.images import keep_reasons, values_of
from curator_dask.datasets.reading import URL_COLUMN
from curator_dask.datasets.turns import turn
from curator_dask.datasets.writing import ERROR_COLUMN, report_frame, report_of
from curator_dask.errors import ConfigError, ShardError
from curator_dask.frames.code import code_digest
from curator_dask.frames.columns import to_array, vectors_to_list
from curator_dask.models.encoders import EncoderInfo, EncoderSpec
from curator_dask.stages.base import ProcessingStage, names_of
from curator_dask.stages.image.embedding import ImageEmbeddingStage
from curator_dask.stages.image.reader import ImageReaderStage
from curator_dask.stages.live import CHAINS, ChainSpec
from curator_dask.tasks import ImageBatch, ImageObject, Task
from curator_dask.webdataset.remarks import fact_of, remark, remarks_on

#: Attributes of an image that become columns, with their types.
SCORES = {"aesthetic_score": pa.float32(), "nsfw_score": pa.float32()}


@dataclass(frozen=True)
class RunStages:
    """Streams the rows of a partition through the stages of a pipeline; a node of the graph.

    Attributes
    ----------
    chain
        The stages, from the reader to the last one before the writer.
    id_col
        Column of the keys.
    column
        Of the embedding; None if no stage embeds.
    fields
        Name and type of the columns that stages add, besides the embedding.
    others
        Other embedding columns of the dataset.
    storage_options
        For fsspec, where shards are URLs.
    dataset_name
        Of the batches.
    settings
        JSON of the arguments of the embedder that would make the same; ``null`` if there is none.
    given_up
        Open no tar and run no stage: every row gets this reason.
    """

    chain: ChainSpec
    id_col: str
    column: str | None
    fields: tuple[tuple[str, pa.DataType], ...] = ()
    others: tuple[str, ...] = ()
    storage_options: Mapping[str, Any] | None = None
    dataset_name: str = ""
    settings: str = "null"
    given_up: str | None = None

    def __dask_tokenize__(self) -> Any:
        fields = [(name, str(kind)) for name, kind in self.fields]
        return (type(self).__name__, self.chain.run, self.column, fields, self.given_up)

    @property
    def reader(self) -> ImageReaderStage:
        """The first stage."""
        reader = self.chain.stages[0]
        assert isinstance(reader, ImageReaderStage)
        return reader

    @property
    def keeps_rows(self) -> bool:
        """Whether a row comes out for each that goes in: the package's own stages leave none out."""
        return not _own(self.chain.stages)

    @property
    def recipe(self) -> tuple[Any, ...]:
        """What decides a row besides the model: with the package's own stages the same as in the dataset API."""
        own = [_description(stage) for stage in _own(self.chain.stages)]
        fields = [(name, str(kind)) for name, kind in self.fields]
        rest = (own, fields) if own or fields else ()
        kind = "stages" if self.column is None else "embed"
        return (kind, self.id_col, self.column, self.reader.decoder, self.reader.max_pixels, *rest)

    def __call__(self, frame: Any) -> Any:
        """The frame with the stages' columns and ``image_error`` last, its rows in the same order.

        Raises
        ------
        ShardError
            A shard cannot be read at all, or a stage fails on it.
        ConfigError
            A stage gives what is no batch of images.
        """
        images: list[ImageObject] = []
        if self.given_up is not None:
            images = self.reader.unread(frame, self.given_up)
        else:
            with contextlib.closing(self.tasks(frame)) as tasks:
                for task in tasks:
                    images += self._images(task)
        return backend.current().from_arrow(self._table(frame, images))

    def tasks(self, frame: Any) -> Generator[Task, None, None]:
        """What comes out of the last stage, one after the other; close it when you stop early."""
        urls = to_array(frame[URL_COLUMN]).to_pylist()
        first = next((url for url in urls if url is not None), None)
        with turn(first, self.storage_options), CHAINS.lease(self.chain, self.chain.build) as chain:
            reader: Any = chain.stages[0]
            batches = chain.feed(reader.read(frame, self.storage_options, self.dataset_name))
            with contextlib.closing(batches):
                yield from batches

    def _images(self, task: Task) -> list[ImageObject]:
        if not isinstance(task, ImageBatch):
            last = names_of(self.chain.stages[-1])
            raise ConfigError(f"stage {last}: the writer takes ImageBatch; it gave {type(task).__name__}")
        for image in task.data:
            image.image_data = None
        return task.data

    def placed(self, frame: Any, images: list[ImageObject]) -> list[tuple[int | None, ImageObject]]:
        """The images with the numbers of their rows, in their order, and a remark on the rows that are left out.

        What a stage has added, or given another key, has no row and comes last.
        """
        ids, urls = values_of(to_array(frame[self.id_col])), values_of(to_array(frame[URL_COLUMN]))
        row_of = {place: row for row, place in enumerate(zip(urls, ids, strict=True))}
        found = [
            (row_of.get((image.metadata.get(URL_COLUMN), image.metadata.get(self.id_col))), image)
            for image in images
        ]
        found.sort(key=lambda item: len(ids) if item[0] is None else item[0])
        left = set(range(len(ids))) - {row for row, _ in found}
        names: dict[str, list[str]] = {url: [] for url in urls if url is not None}
        for row in sorted(left):
            if urls[row] is not None:
                names[urls[row]].append(str(ids[row]))
        for url, filtered in names.items():
            remark(url, "filtered", fact_of(filtered))
        return found

    def _table(self, frame: Any, images: list[ImageObject]) -> pa.Table:
        table = backend.frame_to_arrow(frame)
        found = self.placed(frame, images)
        rows, images = [row for row, _ in found], [image for _, image in found]
        made = self._made(images, frame, rows)
        columns = {
            name: _column(table.column(name), name, rows, images, name in self.others)
            for name in table.column_names
            if name not in made
        }
        return pa.table({**columns, **made})

    def _made(self, images: list[ImageObject], frame: Any, rows: list[int | None]) -> dict[str, pa.Array]:
        """The columns that the stages add, in the order of the output."""
        made = {}
        for name, kind in self.fields:
            values = [
                getattr(image, name) if name in SCORES else image.metadata.get(name) for image in images
            ]
            made[name] = _array(values, kind, name, images)
        if self.column is not None:
            made[self.column] = _vectors(images)
        before = keep_reasons([None] * len(frame), frame, self.others)
        errors = [
            image.error or (None if row is None else before[row])
            for row, image in zip(rows, images, strict=True)
        ]
        made[ERROR_COLUMN] = pa.array(errors, pa.string())
        return made


@dataclass(frozen=True)
class RunEmbeddingStages(RunStages):
    """The same where one of the stages embeds."""

    @property
    def encoder(self) -> EncoderSpec:
        """What builds the model."""
        return self._stage.encoder_spec()

    def describe(self) -> EncoderInfo:
        """Set the stages up and say what the model is; run on every worker before the first task."""
        with CHAINS.lease(self.chain, self.chain.build):
            return self._stage.describe_model()

    @property
    def _stage(self) -> ImageEmbeddingStage:
        # An image has one embedding: the last one's.
        return [stage for stage in self.chain.stages if isinstance(stage, ImageEmbeddingStage)][-1]


@dataclass(frozen=True)
class CollectTasks:
    """Runs the stages on a partition and reports; what came out, without pixels, is part of the report's frame.

    Attributes
    ----------
    step
        The stages.
    given_up
        As for `RunStages`.
    """

    step: RunStages
    given_up: str | None = None

    #: Of the frame: the tasks.
    COLUMN = "tasks"

    def __dask_tokenize__(self) -> Any:
        return (type(self).__name__, self.step.__dask_tokenize__(), self.given_up)

    @property
    def recipe(self) -> tuple[Any, ...]:
        """That of the stages."""
        return ("collect", *self.step.recipe)

    def __call__(self, frame: Any, target_frame: pd.DataFrame) -> pd.DataFrame:
        """A report as `curator_dask.datasets.writing.report_of` makes it, and the tasks beside it."""
        name = json.loads(target_frame["target"].iloc[0])["name"]
        tasks: list[Task] = []
        if self.given_up is not None:
            tasks = [ImageBatch(self.step.reader.unread(frame, self.given_up), self.step.dataset_name, name)]
        else:
            with contextlib.closing(self.step.tasks(frame)) as stream:
                for task in stream:
                    for image in images_of(task):
                        image.image_data = None
                    tasks.append(task)
        images = [image for task in tasks for image in images_of(task)]
        urls = [url for url in set(values_of(to_array(frame[URL_COLUMN]))) if url is not None]
        if all(isinstance(task, ImageBatch) for task in tasks):
            self.step.placed(frame, images)
        counted = {
            self.step.id_col: pa.array([image.image_id for image in images], pa.string()),
            ERROR_COLUMN: pa.array([image.error for image in images], pa.string()),
        }
        report = {**report_of(name, pa.table(counted), self.step.id_col), "remarks": remarks_on(urls)}
        return collected_frame(report, tasks)


def collected_frame(report: Mapping[str, Any], tasks: Sequence[Task]) -> pd.DataFrame:
    """What `CollectTasks` gives: one row."""
    # As bytes: a column of objects would be turned into text by Dask. A user's own tasks may be of `__main__`.
    packed = pd.array([cloudpickle.dumps(list(tasks))], dtype=pd.ArrowDtype(pa.large_binary()))
    return report_frame(report).assign(**{CollectTasks.COLUMN: packed})


def collected_tasks(row: pd.DataFrame) -> list[Task]:
    """The tasks that `collected_frame` packed; they come from a worker of this cluster, as all Dask's results."""
    return pickle.loads(row[CollectTasks.COLUMN].iloc[0])


def images_of(task: Task) -> list[ImageObject]:
    """The images of a task; none if it is no batch of them."""
    return task.data if isinstance(task, ImageBatch) else []


def is_plain(stages: Sequence[ProcessingStage]) -> bool:
    """Whether all stages are the package's own, so that what they make is what the dataset API makes."""
    return not _own(stages)


def _own(stages: Sequence[ProcessingStage]) -> list[ProcessingStage]:
    """Those that are not the package's, whose code and settings decide the result."""
    return [stage for stage in stages if type(stage) not in (ImageReaderStage, ImageEmbeddingStage)]


def _description(stage: ProcessingStage) -> tuple[str, ...]:
    settings = {name: value for name, value in sorted(vars(stage).items()) if name[:1] != "_"}
    classes = [kind for kind in type(stage).__mro__ if kind not in ImageEmbeddingStage.__mro__]
    classes = [kind for kind in classes if kind is not ImageReaderStage]
    return (type(stage).__qualname__, stage.version, code_digest(settings, classes))


def _column(
    column: pa.ChunkedArray, name: str, rows: list[int | None], images: list[ImageObject], is_vectors: bool
) -> Any:
    """A column of the dataset for the rows that are left, with the values that stages have changed."""
    kept = column.take(pa.array(rows, pa.int64()))
    if is_vectors:
        return kept
    before = values_of(kept.combine_chunks())
    now = [image.metadata.get(name) for image in images]
    return kept if now == before else _array(now, column.type, name, images)


def _array(values: list[Any], kind: pa.DataType, name: str, images: list[ImageObject]) -> pa.Array:
    try:
        return pa.array(values, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        for value, image in zip(values, images, strict=True):
            try:
                pa.array([value], kind)
            except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
                raise ShardError(
                    f"{image.image_path}: field {name!r}: expected {kind}, found {value!r} ({error}). Give the field"
                    " the type that its stage's values have, in the stage's outputs() or the writer's fields"
                ) from error
        raise


def _vectors(images: list[ImageObject]) -> pa.Array:
    valid = np.array([image.error is None and image.embedding is not None for image in images], bool)
    vectors = [image.embedding for image, good in zip(images, valid, strict=True) if good]
    lengths = {len(vector) for vector in vectors if vector is not None}
    if len(lengths) > 1:
        raise ShardError(
            f"{images[0].image_path}: expected embeddings of one length, found {sorted(lengths)}: a stage has changed"
            " some of them"
        )
    matrix = np.zeros((len(images), lengths.pop() if lengths else 0), np.float32)
    if vectors:
        matrix[valid] = np.stack(vectors)  # type: ignore[arg-type]
    return vectors_to_list(matrix, valid)
