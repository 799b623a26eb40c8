"""The stages of a pipeline as one step of a dataset's graph: from the rows of a shard to its rows with more columns.

So reading, resuming, progress, retries and writing are the dataset API's own, and pixels stay within the task.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import pickle
import uuid
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cloudpickle
import pandas as pd
import pyarrow as pa

from curator_dask import backend
from curator_dask.errors import ConfigError
from curator_dask.fingerprint import code_digest, fingerprint
from curator_dask.frames.columns import to_array
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.models.encoders import EncoderInfo, EncoderSpec
from curator_dask.rows.remarks import remarks_on
from curator_dask.runs.reports import report_frame, report_of, report_row
from curator_dask.runs.turns import turn
from curator_dask.stages.base import ProcessingStage, image_outputs, names_of
from curator_dask.stages.image.embedding import ImageEmbeddingStage
from curator_dask.stages.image.reader import ImageReaderStage
from curator_dask.stages.live import CHAINS, ChainSpec
from curator_dask.stages.rows import place, table_of
from curator_dask.tasks import ImageBatch, ImageObject, Task


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
        fields = [(name, str(kind)) for name, kind in self.fields]
        plain = is_plain(self.chain.stages)
        rest = () if plain else ([_description(stage) for stage in self.chain.stages], fields)
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
        reading = uuid.uuid4().hex
        if self.given_up is not None:
            images = self.reader.unread(frame, self.given_up, reading)
        else:
            with contextlib.closing(self.tasks(frame, reading)) as tasks:
                for task in tasks:
                    images += self._images(task)
        placed = place(frame, images, reading, self.id_col)
        return backend.current().from_arrow(table_of(frame, placed, self.fields, self.column, self.others))

    def give_up(self, reason: str) -> RunStages:
        """The same, but no tar is opened and no stage run: every row gets this reason."""
        return replace(self, given_up=reason)

    def tasks(self, frame: Any, reading: str) -> Generator[Task, None, None]:
        """What comes out of the last stage, one after the other; close it when you stop early."""
        urls = to_array(frame[URL_COLUMN]).to_pylist()
        first = next((url for url in urls if url is not None), None)
        with turn(first, self.storage_options), CHAINS.lease(self.chain, self.chain.build) as chain:
            reader: Any = chain.stages[0]
            batches = chain.feed(reader.read(frame, self.storage_options, self.dataset_name, reading))
            with contextlib.closing(batches):
                yield from batches

    def _images(self, task: Task) -> list[ImageObject]:
        if not isinstance(task, ImageBatch):
            last = names_of(self.chain.stages[-1])
            raise ConfigError(f"stage {last}: the writer takes ImageBatch; it gave {type(task).__name__}")
        for image in task.data:
            image.image_data = None
        return list(task.data)


@dataclass(frozen=True)
class RunEmbeddingStages(RunStages):
    """The same where one of the stages embeds.

    Attributes
    ----------
    dim
        Length of a vector where a stage of the user's own makes or changes them; None: the model's.
    """

    dim: int | None = None

    @property
    def encoder(self) -> EncoderSpec | str:
        """What builds the model."""
        return self._makers if self._model is None else self._model.encoder_spec()

    def describe(self) -> EncoderInfo:
        """Set the stages up and say what makes the vectors; run on every worker before the first task."""
        with CHAINS.lease(self.chain, self.chain.build):
            info = None if self._model is None else self._model.describe_model()
        if info is not None and is_plain(self.chain.stages):
            return info
        if info is not None:
            # Other stages may have changed pixels or vectors: these are not the model's alone.
            digest = fingerprint({"stages": [_description(stage) for stage in self.chain.stages]})[:12]
            names = ", ".join(type(stage).__qualname__ for stage in _own(self.chain.stages))
            output = f"{info.output}, with the stages {names} [{digest}]"
            return replace(
                info, output=output, dim=self.dim or info.dim, normalized=info.normalized and not self.dim
            )
        assert self.dim is not None
        return EncoderInfo(
            model=self._makers,
            source="stages",
            weights="unknown",
            transform="of the stages",
            output="stages",
            dim=self.dim,
            dtype="float32",
            normalized=False,
        )

    @property
    def _model(self) -> ImageEmbeddingStage | None:
        return next((stage for stage in self.chain.stages if isinstance(stage, ImageEmbeddingStage)), None)

    @property
    def _makers(self) -> str:
        """Names of the user's stages that make or change vectors."""
        makers = [_description(stage) for stage in embedding_makers(self.chain.stages)]
        return ", ".join(f"{name} [{digest}]" for name, _, digest in makers)


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
        """A report as `curator_dask.runs.reports.report_of` makes it, and the tasks beside it."""
        return collected_frame(*self._collect(frame, target_frame["target"].iloc[0]))

    def row(self, frame: Any, text: str) -> dict[str, Any]:
        """The same as a row, given the target as JSON."""
        report, tasks = self._collect(frame, text)
        return {**report_row(report), self.COLUMN: _packed(tasks)}

    def give_up(self, reason: str) -> CollectTasks:
        """As `RunStages.give_up`."""
        return replace(self, given_up=reason)

    def known_row(self, text: str) -> None:
        """Nothing is written, so nothing is known."""

    def _collect(self, frame: Any, text: str) -> tuple[dict[str, Any], list[Task]]:
        target = json.loads(text)
        name, reading, step = target["name"], uuid.uuid4().hex, self.step
        tasks: list[Task] = []
        if self.given_up is not None:
            tasks = [ImageBatch(step.reader.unread(frame, self.given_up, reading), step.dataset_name, name)]
        else:
            with contextlib.closing(step.tasks(frame, reading)) as stream:
                for task in stream:
                    for image in images_of(task):
                        image.image_data = None
                    tasks.append(task)
        images = [image for task in tasks for image in images_of(task)]
        if all(isinstance(task, ImageBatch) for task in tasks):
            place(frame, images, reading, step.id_col)
        counted = {
            step.id_col: pa.array([image.image_id for image in images], pa.string()),
            ERROR_COLUMN: pa.array([image.error for image in images], pa.string()),
        }
        report = report_of(name, pa.table(counted), step.id_col)
        return {**report, "remarks": remarks_on([target["shard"]["url"]])}, tasks


def collected_frame(report: Mapping[str, Any], tasks: Sequence[Task]) -> pd.DataFrame:
    """What `CollectTasks` gives: one row."""
    packed = pd.array([_packed(tasks)], dtype=pd.ArrowDtype(pa.large_binary()))
    return report_frame(report).assign(**{CollectTasks.COLUMN: packed})


def _packed(tasks: Sequence[Task]) -> bytes:
    # As bytes: a column of objects would be turned into text by Dask. A user's own tasks may be of `__main__`.
    return cloudpickle.dumps(list(tasks))


def collected_tasks(row: Mapping[str, Any]) -> list[Task]:
    """The tasks in a row that `CollectTasks` made; it comes from a worker of this cluster, as all Dask's results."""
    return pickle.loads(row[CollectTasks.COLUMN])


def images_of(task: Task) -> list[ImageObject]:
    """The images of a task; none if it is no batch of them."""
    return task.data if isinstance(task, ImageBatch) else []


def embedding_makers(stages: Sequence[ProcessingStage]) -> list[ProcessingStage]:
    """The stages, besides `ImageEmbeddingStage`, that make or change vectors."""
    makers = [stage for stage in stages if "embedding" in image_outputs(stage)]
    return [stage for stage in makers if not isinstance(stage, ImageEmbeddingStage)]


def is_plain(stages: Sequence[ProcessingStage]) -> bool:
    """Whether all stages are the package's own, so that what they make is what the dataset API makes."""
    return not _own(stages)


def _own(stages: Sequence[ProcessingStage]) -> list[ProcessingStage]:
    """Those that are not the package's, whose code and settings decide the result."""
    return [stage for stage in stages if type(stage) not in (ImageReaderStage, ImageEmbeddingStage)]


def _description(stage: ProcessingStage) -> tuple[str, ...]:
    """What decides what a stage makes of an image: its code and settings, but not how fast or how loud it is."""
    ours = [ImageReaderStage, ImageEmbeddingStage, *ImageEmbeddingStage.__mro__]
    classes = [kind for kind in type(stage).__mro__ if kind not in ours]
    if not classes:
        return (type(stage).__qualname__,)  # its place counts; the model is described by itself
    common = {"name", "num_gpus_per_worker", "thread_safe", "_resize"}
    for kind in (ImageReaderStage, ImageEmbeddingStage):
        common |= set(inspect.signature(kind).parameters) if isinstance(stage, kind) else set()
    settings = {name: value for name, value in sorted(vars(stage).items()) if name not in common}
    return (type(stage).__qualname__, stage.version, code_digest(settings, classes))
