"""The stages of a pipeline as one step of a dataset's graph: from the rows of a shard to its rows with more columns.

So reading, resuming, progress, retries and writing are the dataset API's own, and pixels stay within the task.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import uuid
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from curator_dask import backend
from curator_dask.errors import ConfigError
from curator_dask.fingerprint import code_digest, fingerprint
from curator_dask.frames.columns import EMBEDDING_TYPE, to_array
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.models.encoders import EncoderInfo
from curator_dask.runs.step import Rows, read_by
from curator_dask.runs.turns import turn
from curator_dask.stages.base import ProcessingStage, image_outputs, makes_pixels_or, names_of
from curator_dask.stages.image.embedding import ImageEmbeddingStage
from curator_dask.stages.image.filters import ScoreFilterStage
from curator_dask.stages.image.reader import ImageReaderStage
from curator_dask.stages.live import CHAINS, ChainSpec
from curator_dask.stages.rows import place, table_of
from curator_dask.tasks import EMBEDDING, ImageBatch, ImageObject, Task, set_vector


@dataclass(frozen=True)
class RunStages:
    """Streams the rows of a partition through the stages of a pipeline: the step that a pipeline is.

    Attributes
    ----------
    chain
        The stages, from the reader to the last one before the writer.
    id_col
        Column of the keys.
    vectors
        By the column of each embedding, the field of an image that it comes from.
    fields
        Name and type of the other columns that stages add.
    storage_options
        For fsspec, where shards are URLs.
    dataset_name
        Of the batches.
    settings
        JSON of the arguments of the embedders that would make the same, by column; null where there is none.
    dims
        By field, the length of vectors that stages of the user's own make or change.
    given_up
        Open no tar and run no stage: every row gets this reason.
    """

    chain: ChainSpec
    id_col: str
    vectors: tuple[tuple[str, str], ...] = ()
    fields: tuple[tuple[str, pa.DataType], ...] = ()
    storage_options: Mapping[str, Any] | None = None
    dataset_name: str = ""
    settings: str = "{}"
    dims: tuple[tuple[str, int], ...] = ()
    given_up: str | None = None

    needs = frozenset({"rows", "pixels"})

    def __dask_tokenize__(self) -> Any:
        fields = [(name, str(kind)) for name, kind in self.fields]
        return (type(self).__name__, self.chain.run, self.vectors, fields, self.given_up)

    @property
    def label(self) -> str:
        """The models' names, or the stages'."""
        models = [str(stage.encoder_spec()) for stage in _models(self.chain.stages)]
        return ", ".join(models or [names_of(stage) for stage in self.chain.stages])

    @property
    def reader(self) -> ImageReaderStage:
        """The first stage."""
        reader = self.chain.stages[0]
        assert isinstance(reader, ImageReaderStage)
        return reader

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """The fields that stages add, the embeddings, and ``image_error``."""
        return {
            **dict(self.fields),
            **{column: EMBEDDING_TYPE for column, _ in self.vectors},
            ERROR_COLUMN: pa.string(),
        }

    @property
    def arguments(self) -> dict[str, Any]:
        """By column, the arguments of the embedder that makes the same."""
        found = json.loads(self.settings)
        return {column: found.get(column) for column, _ in self.vectors}

    @property
    def keeps_rows(self) -> bool:
        """Whether a row comes out for each that goes in: reader and models leave none out."""
        return is_plain(self.chain.stages)

    @property
    def recipe(self) -> tuple[Any, ...]:
        """What decides a row besides the models: with the package's own stages the same as in the dataset API."""
        return self.recipes[-1]

    @property
    def recipes(self) -> tuple[tuple[Any, ...], ...]:
        """With the package's own stages alone, that of each embedding, as of embedders one after the other."""
        options = self.reader.options
        how = (options.decoder, options.max_pixels, *options.named)
        columns = [column for column, _ in self.vectors]
        if is_plain(self.chain.stages):
            return tuple(("embed", self.id_col, column, *how) for column in columns) or (
                ("stages", self.id_col, None, *how),
            )
        fields = [(name, str(kind)) for name, kind in self.fields]
        stages = [describe_stage(stage) for stage in self.chain.stages]
        what = "embed" if columns else "stages"
        made = tuple(columns) if len(columns) > 1 else (columns[0] if columns else None)
        return ((what, self.id_col, made, *how, stages, fields),)

    @property
    def read_by(self) -> dict[str, str]:
        """What decides a vector besides model and shard, where no stage of the user's own touches it."""
        return {
            column: read_by(self.id_col, self.reader.options)
            for column, field in self.vectors
            if not self._touching(field)
        }

    def _touching(self, field: str) -> list[ProcessingStage[Any, Any]]:
        """Stages of the user's own that may change pixels, or the vectors of a field."""
        return [
            stage
            for stage in self.chain.stages
            if not is_plain([stage]) and not _embeds(stage, field) and makes_pixels_or(stage, field)
        ]

    def give_up(self, reason: str) -> RunStages:
        """The same, but no tar is opened and no stage run: every row gets this reason."""
        return replace(self, given_up=reason)

    def describe(self) -> dict[str, dict[str, Any]]:
        """Set the stages up and say what makes the vectors; run on every worker before the first task."""
        if not self.vectors:
            return {}
        with CHAINS.lease(self.chain, self.chain.build):
            self._check_heads()
            return {column: self._describe(field) for column, field in self.vectors}

    def _check_heads(self) -> None:
        """Refuse heads on vectors of another model than theirs."""
        models = [stage for stage in _models(self.chain.stages) if stage.embedding_field == EMBEDDING]
        for stage in self.chain.stages:
            if isinstance(stage, ScoreFilterStage):
                stage.check_vectors(models[0].describe_model() if models else None)

    def _describe(self, field: str) -> dict[str, Any]:
        stages = self.chain.stages
        model = next((stage for stage in _models(stages) if stage.embedding_field == field), None)
        touching = [stage for stage in stages if not is_plain([stage]) and makes_pixels_or(stage, field)]
        dim = dict(self.dims).get(field)
        if model is None:
            assert dim is not None
            described = [describe_stage(stage) for stage in _makers(stages, field)]
            name = ", ".join(f"{stage} [{digest}]" for stage, _, digest in described)
            return EncoderInfo(
                model=name,
                source="stages",
                weights="unknown",
                transform="of the stages",
                output="stages",
                dim=dim,
                dtype="float32",
                normalized=False,
            ).to_dict()
        info = model.describe_model()
        if is_plain(stages):
            return info.to_dict()
        before = _changed_by(info, stages, [stage for stage in stages if not is_plain([stage])], dim)
        # Files of the first version count every stage, also those that leave pixels and vectors as they are.
        now = _changed_by(info, stages, touching, dim, [stage for stage in stages if stage in touching])
        return now if now == before else {**now, "formerly": before}

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
        reading, left_by = uuid.uuid4().hex, dict[Any, str]()
        if self.given_up is not None:
            images = self.reader.unread(frame, self.given_up, reading)
        else:
            with contextlib.closing(self.tasks(frame, reading, left_by)) as tasks:
                for task in tasks:
                    images += self._images(task)
        placed = place(frame, images, reading, self.id_col, left_by)
        return backend.current().from_arrow(table_of(frame, placed, self.fields, self.vectors))

    def tasks(self, frame: Any, reading: str, left_by: dict[Any, str]) -> Generator[Task[Any], None, None]:
        """What comes out of the last stage, one after the other; close it when you stop early."""
        urls = to_array(frame[URL_COLUMN]).to_pylist()
        first = next((url for url in urls if url is not None), None)
        with turn(first, self.storage_options), CHAINS.lease(self.chain, self.chain.build) as chain:
            reader: Any = chain.stages[0]
            batches = reader.read(frame, self.storage_options, self.dataset_name, reading)
            batches = chain.feed(self._with_known(batches, Rows(frame)), left_by)
            with contextlib.closing(batches):
                yield from batches

    def _with_known(
        self, batches: Generator[ImageBatch, None, None], rows: Rows
    ) -> Generator[Task[Any], None, None]:
        """The batches of images, with the vectors that an earlier run has made: those are not made again."""
        known, can_be = {}, self.read_by
        for column, field in self.vectors:
            found = rows.known(column, self.id_col) if column in can_be else None
            if found is not None:
                known[field] = found
        with contextlib.closing(batches):
            for batch in batches:
                for image in batch.data:
                    for _, field in self.vectors:
                        image.metadata.pop(field, None)  # the dataset's own, of an earlier run
                    for field, (matrix, reasons) in known.items():
                        if (
                            image.origin is not None
                            and image.error is None
                            and reasons[image.origin[1]] is None
                        ):
                            set_vector(image, field, matrix[image.origin[1]])
                yield batch

    def _images(self, task: Task[Any]) -> list[ImageObject]:
        if not isinstance(task, ImageBatch):
            last = names_of(self.chain.stages[-1])
            raise ConfigError(f"stage {last}: the writer takes ImageBatch; it gave {type(task).__name__}")
        for image in task.data:
            image.image_data = None
        return list(task.data)


def images_of(task: Task[Any]) -> list[ImageObject]:
    """The images of a task; none if it is no batch of them."""
    return task.data if isinstance(task, ImageBatch) else []


def _changed_by(
    info: EncoderInfo,
    stages: Sequence[ProcessingStage[Any, Any]],
    named: Sequence[ProcessingStage[Any, Any]],
    dim: int | None,
    counted: Sequence[ProcessingStage[Any, Any]] | None = None,
) -> dict[str, Any]:
    """What makes a model's vectors where stages of the user's own may have changed pixels or vectors.

    Parameters
    ----------
    info
        The model.
    stages
        All of them.
    named
        Those that may have.
    dim
        Length of the vectors, where these say it.
    counted
        Those that the digest is of; None: all.
    """
    if not named:
        return info.to_dict()
    digest = fingerprint({"stages": [describe_stage(stage) for stage in counted or stages]})[:12]
    names = ", ".join(type(stage).__qualname__ for stage in named)
    return replace(
        info,
        output=f"{info.output}, with the stages {names} [{digest}]",
        dim=dim or info.dim,
        normalized=info.normalized and not dim,
    ).to_dict()


def embedding_fields(stages: Sequence[ProcessingStage[Any, Any]]) -> list[str]:
    """The fields of an image that hold vectors, in the order in which stages make them."""
    made = [stage.embedding_field for stage in _models(stages)]
    made += [EMBEDDING] if _makers(stages, EMBEDDING) else []
    return list(dict.fromkeys(made))


def maker_of(
    stages: Sequence[ProcessingStage[Any, Any]], field: str
) -> tuple[ProcessingStage[Any, Any] | None, pa.DataType | None]:
    """The last stage of the user's own that makes or changes the vectors of a field, and the type that it gives."""
    makers = _makers(stages, field)
    return (makers[-1], image_outputs(makers[-1])[field]) if makers else (None, None)


def _makers(stages: Sequence[ProcessingStage[Any, Any]], field: str) -> list[ProcessingStage[Any, Any]]:
    return [stage for stage in stages if field in image_outputs(stage) and stage not in _models(stages)]


def _embeds(stage: Any, field: str) -> bool:
    """Whether a stage is a model, which is described by itself, though it may be of a class of the user's own."""
    return isinstance(stage, ImageEmbeddingStage) and stage.embedding_field == field


def _models(stages: Sequence[ProcessingStage[Any, Any]]) -> list[ImageEmbeddingStage]:
    return [stage for stage in stages if isinstance(stage, ImageEmbeddingStage)]


def is_plain(stages: Sequence[ProcessingStage[Any, Any]]) -> bool:
    """Whether the stages are readers and models alone, so that what they make is what the dataset API makes."""
    return all(type(stage) in (ImageReaderStage, ImageEmbeddingStage) for stage in stages)


def describe_stage(stage: ProcessingStage[Any, Any]) -> tuple[str, ...]:
    """What decides what a stage makes of an image: its code and settings, but not how fast or how loud it is."""
    ours = [ImageReaderStage, ImageEmbeddingStage, *ImageEmbeddingStage.__mro__]
    classes = [kind for kind in type(stage).__mro__ if kind not in ours]
    if not classes:
        return (type(stage).__qualname__,)  # its place counts; the model is described by itself
    common = {"name", "num_gpus_per_worker", "resources", "thread_safe", "_resize", "_loaded"}
    if isinstance(stage, ScoreFilterStage):
        common |= stage.uncounted
    for kind in (ImageReaderStage, ImageEmbeddingStage):
        common |= set(inspect.signature(kind).parameters) if isinstance(stage, kind) else set()
    settings = {name: value for name, value in sorted(vars(stage).items()) if name not in common}
    return (type(stage).__qualname__, stage.version, code_digest(settings, classes))
