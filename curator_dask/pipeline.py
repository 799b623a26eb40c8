"""`Pipeline`: stages through which images flow, fused into one Dask task a group of shards."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from curator_dask.cluster.session import DaskExecutor
from curator_dask.cluster.workers import current_client, tell_workers
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError
from curator_dask.frames.columns import embedding_columns
from curator_dask.frames.names import EMBEDDING_COLUMN, ERROR_COLUMN, URL_COLUMN
from curator_dask.outputs.export_summary import ExportSummary
from curator_dask.runs.groups import Layout
from curator_dask.runs.run import run
from curator_dask.runs.summary import SaveSummary
from curator_dask.stages.again import embedder_arguments
from curator_dask.stages.base import (
    CompositeStage,
    ProcessingStage,
    Stage,
    image_inputs,
    image_outputs,
    names_of,
)
from curator_dask.stages.collect import TaskSink, collected_tasks
from curator_dask.stages.fused import RunStages, embedding_fields, images_of, maker_of
from curator_dask.stages.image import FilePartitioningStage, ImageEmbeddingStage, ImageReaderStage
from curator_dask.stages.image.convert import TEXTS
from curator_dask.stages.image.writer import WriterStage
from curator_dask.stages.live import ChainSpec, end_run, end_run_on_worker
from curator_dask.stages.rows import SCORES
from curator_dask.tasks import EMBEDDING, ImageObject, Task

if TYPE_CHECKING:
    from distributed import Client

#: What an image has besides the fields of its metadata, and the shards that it comes from.
_ATTRIBUTES = frozenset({"shards", *ImageObject.__dataclass_fields__})


@dataclass
class PipelineResult:
    """What a run came to.

    Attributes
    ----------
    summary
        Counts, times and failures.
    tasks
        What came out of the last stage, without pixels, in the order of the shards; empty where that is a writer.
    """

    summary: SaveSummary | ExportSummary
    tasks: list[Task[Any]] = field(default_factory=list, repr=False)

    @property
    def objects(self) -> list[ImageObject]:
        """The images of all tasks."""
        return [image for task in self.tasks for image in images_of(task)]

    def __str__(self) -> str:
        return str(self.summary)

    def __iter__(self) -> Iterator[Task[Any]]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)


class Pipeline:
    """Stages in their order: shards are found, read, worked on, and written.

    Parameters
    ----------
    name, description
        For messages and `describe`.
    stages
        The first is a `FilePartitioningStage`, the second an `ImageReaderStage`, the last may be a writer
        (`ImageParquetWriterStage`, `ImageWriterStage`); between them as many as you like.
    """

    def __init__(self, name: str, description: str = "", stages: Sequence[Stage] | None = None) -> None:
        self.name = name
        self.description = description
        self.stages: list[Stage] = []
        if stages is not None and not isinstance(stages, Iterable):
            raise ConfigError(f"pipeline {name!r}: stages={stages!r}: expected a list of stages")
        for stage in stages or ():
            self.add_stage(stage)

    def add_stage(self, stage: Stage) -> Pipeline:
        """Add a stage, or those that a `CompositeStage` stands for, at the end; returns the pipeline."""
        if not isinstance(stage, Stage):
            hint = ": make an object of it" if isinstance(stage, type) else ""
            raise ConfigError(
                f"pipeline {self.name!r}: expected a stage, found {getattr(stage, '__name__', type(stage).__name__)}"
                f"{hint}; stages of your own are subclasses of ProcessingStage"
            )
        if isinstance(stage, CompositeStage):
            for part in stage.parts():
                self.add_stage(part)
        else:
            self.stages.append(stage)
        return self

    def describe(self) -> str:
        """The stages, what each needs and makes, and which of them are one task."""
        lines = [f"Pipeline {self.name!r}" + (f": {self.description}" if self.description else "")]
        for number, stage in enumerate(self.stages, 1):
            needs, makes = (", ".join(names) or "-" for names in (image_inputs(stage), image_outputs(stage)))
            gone = f"; removes {', '.join(stage.removes())}" if stage.removes() else ""
            lines += [f"  {number}. {names_of(stage)}: {stage!r}", f"     needs {needs}; makes {makes}{gone}"]
        size = next(
            (each.files_per_partition for each in self.stages if isinstance(each, FilePartitioningStage)), 1
        )
        share = _gpu_share(self.stages)
        lines.append(
            f"  stages 2 to {len(self.stages)} are one Dask task for {size} shard{'s' if size > 1 else ''}"
            + (f", which takes {share:g} of a GPU" if share else "")
        )
        return "\n".join(lines)

    def build(self) -> None:
        """Check that the stages fit together; `run` does it first.

        Raises
        ------
        ConfigError
            A stage is missing or in the wrong place, or needs what no stage before it makes.
        """
        for stage in self.stages:
            try:
                stage.gpu_share()
            except ConfigError as error:
                raise self._wrong(stage, str(error)) from None
        self._check_inputs()
        for place, kind in enumerate((FilePartitioningStage, ImageReaderStage)):
            found = self.stages[place] if place < len(self.stages) else None
            if not isinstance(found, kind):
                what = "nothing" if found is None else names_of(found)
                raise ConfigError(
                    f"pipeline {self.name!r}: expected a {kind.__name__} as stage {place + 1}, found {what}"
                )
            if type(found).process is not kind.process:
                instead = "find()" if kind is FilePartitioningStage else "read()"
                raise self._wrong(
                    found, f"overrides process(), which a pipeline does not call: override {instead}"
                )
        fields = [stage.embedding_field for stage in self.stages if isinstance(stage, ImageEmbeddingStage)]
        for stage in [each for each in self.stages if isinstance(each, ImageEmbeddingStage)][1:]:
            if fields.count(stage.embedding_field) > 1:
                raise self._wrong(
                    stage,
                    f"an image has one {stage.embedding_field!r}, of a stage before: give another embedding_field",
                )
        for place, stage in enumerate(self.stages[2:], 3):
            if isinstance(stage, FilePartitioningStage | ImageReaderStage):
                raise self._wrong(stage, f"is stage {place}; there can be one only, at the beginning")
            if isinstance(stage, WriterStage):
                if place < len(self.stages):
                    raise self._wrong(stage, f"is stage {place} of {len(self.stages)}; put it last")
                stage.before(self.stages[2:-1])
            elif not isinstance(stage, ProcessingStage):
                raise self._wrong(stage, "expected a subclass of ProcessingStage")

    def run(self, client: Client | DaskExecutor | None = None, checkpoint_path: Any = None) -> PipelineResult:
        """Run the pipeline over all shards, and log a summary.

        With a writer at the end a second run does only what is missing, as `save_metadata` does.

        Parameters
        ----------
        client
            Of the cluster, from `get_client`; None, or a `DaskExecutor`, takes the client that there is, or, if there
            is none, does the work in this process.
        checkpoint_path
            Taken for the sake of scripts of NeMo Curator 1.x: the output itself says what is finished.

        Returns
        -------
        PipelineResult
            The summary, and what the last stage gave, if that is no writer.

        Raises
        ------
        ConfigError
            The stages do not fit together, or not to the dataset.
        CuratorError
            As `ImageTextPairDataset.from_webdataset` and `save_metadata`.
        """
        self.build()
        if client is None or isinstance(client, DaskExecutor):
            client = current_client()
        elif not hasattr(client, "scheduler_info"):
            raise ConfigError(f"client: expected what get_client gives, found {type(client).__name__}")
        partitioning, reader = self.stages[:2]
        assert isinstance(partitioning, FilePartitioningStage) and isinstance(reader, ImageReaderStage)
        layout = Layout(partitioning.files_per_partition, _resources(_gpu_share(self.stages), client))
        chain = ChainSpec.of([reader, *(each for each in self._between if isinstance(each, ProcessingStage))])
        with contextlib.nullcontext() if client is None else client.as_current():
            dataset = ImageTextPairDataset.from_shards(
                partitioning.find(reader.id_col),
                reader.id_col,
                metadata=reader.metadata,
                storage_options=partitioning.storage_options,
            )
            step = self._step(chain, dataset)
            try:
                return self._run(dataset, step, layout)
            finally:
                end_run(chain.run)
                if client is not None:
                    tell_workers(functools.partial(end_run_on_worker, chain.run), client)

    def _run(self, dataset: ImageTextPairDataset, step: RunStages, layout: Layout) -> PipelineResult:
        writer, options, reader = self._writer, dataset.storage_options, self.stages[1]
        assert isinstance(reader, ImageReaderStage)
        if writer is None:
            frame = dataset.metadata
            summary, rows = run(
                frame,
                [step],
                TaskSink(step),
                kept=list(step.columns),
                id_col=dataset.id_col,
                input_options=options,
                layout=layout,
                keep_rows=True,
            )
            return PipelineResult(summary, [task for row in rows for task in collected_tasks(row)])
        embedded = dataset.apply(step)
        columns = list(embedded.metadata.columns)
        unknown = [name for name in writer.fields or () if name not in columns]
        if unknown:
            raise self._wrong(writer, f"fields: nobody makes {unknown}; there are {columns}")
        return PipelineResult(writer.write(dataset, embedded, layout, reader))

    def _step(self, chain: ChainSpec, dataset: ImageTextPairDataset) -> RunStages:
        """What is done to the rows of a shard."""
        writer, meta = self._writer, dataset.metadata._meta
        self._check_fields(list(meta.columns))
        main = EMBEDDING_COLUMN if writer is None else writer.image_embedding_column
        vectors = tuple(
            (main if each == EMBEDDING else each, each) for each in embedding_fields(chain.stages)
        )
        taken = {dataset.id_col, URL_COLUMN, ERROR_COLUMN} & {main, *(column for column, _ in vectors)}
        if taken:
            raise ConfigError(f"image_embedding_column={taken.pop()!r}: this name is not free")
        self._check_vectors(vectors, meta)
        step = RunStages(
            chain=chain,
            id_col=dataset.id_col,
            vectors=vectors,
            fields=() if writer is None else self._typed_fields(writer, list(meta.columns), vectors),
            storage_options=dataset.storage_options,
            dataset_name=dataset.path,
            dims=() if writer is None else self._dims(chain),
        )
        return replace(step, settings=json.dumps(embedder_arguments(step)))

    def _check_vectors(self, vectors: Sequence[tuple[str, str]], meta: Any) -> None:
        """That each embedding has a field, and a column, of its own."""
        columns = [column for column, _ in vectors]
        taken = {name for name in meta.columns if name not in embedding_columns(meta)}
        taken |= _ATTRIBUTES - {EMBEDDING}
        models = [stage for stage in self.stages if isinstance(stage, ImageEmbeddingStage)]
        for stage in models:
            field = stage.embedding_field
            if field in taken or (field != EMBEDDING and columns.count(field) > 1):
                raise self._wrong(
                    stage, f"embedding_field={field!r}: the name is taken; give the vectors another one"
                )

    def _dims(self, chain: ChainSpec) -> tuple[tuple[str, int], ...]:
        """By field, the length of vectors as stages of the user's own state it."""
        dims = []
        for name in embedding_fields(chain.stages):
            stage, kind = maker_of(chain.stages, name)
            if stage is None:
                continue
            if kind is None or not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float32():
                raise self._wrong(
                    stage,
                    f"must say how long its vectors are, to write them: outputs() gives ['data'], {{{name!r}:"
                    " pa.list_(pa.float32(), 64)}",
                )
            dims.append((name, kind.list_size))
        return tuple(dims)

    def _typed_fields(
        self, writer: WriterStage, columns: list[str], vectors: Sequence[tuple[str, str]]
    ) -> tuple[tuple[str, pa.DataType], ...]:
        """The columns that stages add, with their types."""
        made: dict[str, pa.DataType | None] = {}
        for stage in self._between:
            made.update(image_outputs(stage))
        made = {name: kind for name, kind in made.items() if name not in dict(vectors).values()}
        declared = set(made)
        made |= {name: kind for name, kind in writer.types.items() if kind is not None}
        taken = [name for name in writer.types if name in (writer.image_embedding_column, ERROR_COLUMN)]
        of_dataset = [name for name in columns if writer.types.get(name) is not None and name not in declared]
        if of_dataset or any(writer.types[name] is not None for name in taken):
            raise self._wrong(
                writer,
                f"fields: the types of {of_dataset or taken} are settled: give None in place of a type",
            )
        fields = {name: SCORES.get(name, kind) for name, kind in made.items()}
        wanted = {
            name: kind
            for name, kind in fields.items()
            if (name in SCORES or name not in _ATTRIBUTES or (name in TEXTS and kind is not None))
            and (writer.fields is None or name in writer.fields)
            and name not in (writer.image_embedding_column, ERROR_COLUMN)
            and not (kind is None and name in columns)  # changed, not added: its type stays
        }
        untyped = [name for name, kind in wanted.items() if kind is None]
        if untyped:
            raise self._wrong(
                writer,
                f"no stage says the type of {untyped}. Give it in the stage's outputs(), as in"
                f" ['data'], {{{untyped[0]!r}: pa.float32()}}, or in fields={{{untyped[0]!r}: 'float32', ...}}",
            )
        return tuple((name, kind) for name, kind in wanted.items() if kind is not None)

    @property
    def _between(self) -> list[Stage]:
        """The stages between reader and writer, with those that the writer wants."""
        writer = self._writer
        between = self.stages[2:] if writer is None else self.stages[2:-1]
        return [*between, *([] if writer is None else writer.before(between))]

    @property
    def _writer(self) -> WriterStage | None:
        last = self.stages[-1]
        return last if isinstance(last, WriterStage) else None

    def _check_inputs(self) -> None:
        """That attributes of images are made before they are needed; fields of the metadata are for `run`."""
        there: set[str] = set()
        gone: dict[str, str] = {}
        for place, stage in enumerate(self.stages):
            for name in image_inputs(stage):
                if name not in _ATTRIBUTES or name in there:
                    continue
                if name in gone:
                    raise self._wrong(
                        stage, f"needs {name!r}, which {gone[name]} removes: put it before that"
                    )
                later = [names_of(each) for each in self.stages[place + 1 :] if name in image_outputs(each)]
                hint = f"; {later[0]} does, but comes after it" if later else ""
                raise self._wrong(stage, f"needs {name!r}, which no stage before it makes{hint}")
            there |= set(image_outputs(stage))
            there -= set(stage.removes())
            gone |= dict.fromkeys(stage.removes(), names_of(stage))

    def _check_fields(self, columns: list[str]) -> None:
        there = set(columns)
        for stage in self.stages:
            lacking = [name for name in image_inputs(stage) if name not in there | _ATTRIBUTES]
            if lacking:
                raise self._wrong(
                    stage,
                    f"needs {lacking}, which neither the dataset has nor a stage before it makes; the dataset has"
                    f" {columns}",
                )
            there |= set(image_outputs(stage))

    def _wrong(self, stage: Stage, what: str) -> ConfigError:
        return ConfigError(f"pipeline {self.name!r}: stage {names_of(stage)}: {what}")


def _gpu_share(stages: Sequence[Stage]) -> float:
    """What a task takes of a GPU: its stages work in turns, so it is the most that one of them takes."""
    return max((stage.gpu_share() for stage in stages), default=0.0)


def _resources(share: float, client: Client | None) -> dict[str, float] | None:
    """The share as Dask's resource ``GPU``; None where no worker has declared any, as on a CPU cluster."""
    if client is None or not share:
        return None
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    most = max((worker["resources"].get("GPU", 0) for worker in workers), default=0)
    if not most:
        return None
    if share > most:
        raise ConfigError(
            f"num_gpus_per_worker={share:g}: the workers have {most:g} each, and a task runs on one worker"
        )
    return {"GPU": share}
