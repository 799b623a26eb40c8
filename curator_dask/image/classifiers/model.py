"""`ClassificationModel`: any image classification model, run over a dataset, and its classes as columns."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, TypedDict, Unpack

from curator_dask.arguments import check_names, names_of
from curator_dask.cluster.setup import OpenWorkers
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.decode.orientation import check_exif_column
from curator_dask.decode.spec import ImageOptions
from curator_dask.errors import ConfigError
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.frames.parquet import read_record
from curator_dask.frames.record import FileRecord
from curator_dask.image.classifiers.classifying import ClassifyImages
from curator_dask.image.statistics.again import SeesImages, statistics_again
from curator_dask.image.statistics.step import schema_ahead
from curator_dask.models.auto_classifier import AutoClassifier
from curator_dask.models.classes import ACTIVATIONS, check_classes, read_class_names
from curator_dask.models.classification import ClassificationSpec, LogitsSpec, TimmLogits
from curator_dask.models.compiling import CompileSetting, check_compile
from curator_dask.models.hub import is_transformers, names_folder
from curator_dask.models.sources import Sources
from curator_dask.models.timm import TimmSpec, absolute_name
from curator_dask.outputs.retrying import retry
from curator_dask.runs.lineage import trace
from curator_dask.runs.step import SharingStep, how_read
from curator_dask.runs.summary import SaveSummary
from curator_dask.settings import absolute
from curator_dask.storage import Options
from curator_dask.webdataset.shards import ShardSet

_PATHS = ("/", ".", "~")


class ReadingOptions(TypedDict, total=False):
    """How images are read, as `curator_dask.image.embedders.ImageEmbedder` has it."""

    batch_size: int
    num_threads_per_worker: int
    use_index_files: bool
    decoder: str
    max_pixels: int
    on_error: str
    image_member: str | None
    gray16: str
    orientation: str
    decode_scale: str


class ClassificationModel:
    """Adds the classes that a model sees in each image as columns, in the pass that embeds it, or by itself.

    The model is one with a classifier, fine-tuned for it: of NSFW images, watermarks, documents, ImageNet's classes,
    or your own. (A head on vectors that are there is an `ImageClassifier`.)

    Parameters
    ----------
    model_name
        A name of timm's: of its registry, with or without tag, ``"hf-hub:org/repo"``, or ``"local-dir:/folder"`` with
        ``config.json`` and ``model.safetensors``. Or one of transformers' models for image classification: a
        repository of the hub (``"org/repo"``, ``"org/repo@revision"``), or a folder with ``config.json``,
        ``model.safetensors`` and ``preprocessor_config.json``.
    pretrained, checkpoint_path, model_kwargs
        Of timm's, as for `TimmImageEmbedder`.
    model_dir
        Of transformers', as for `ClipImageEmbedder`.
    prefix
        Before the name of each column.
    classes
        A column for each of its names, with the probability of a class, by its name or number, or with the sum of
        several: ``{"nsfw": "NSFW", "person": ["man", "woman"]}``. float32.
    label
        Also ``label``, the name of the likeliest class, and ``score``, its probability, float32.
    activation
        ``"softmax"``: the classes' shares, which add up to 1. ``"sigmoid"``: a probability of each by itself.
        ``"none"``: the model's outputs as they are. ``"auto"``: as the model says, else shares, or of a model of one
        class its probability.
    class_names
        The names of all classes, or a text file with one in each line, in the place of the model's own: what its
        ``config.json`` says, ImageNet's (of 1000 classes and of timm's larger sets) or ``class_0`` and so on.
    autocast
        Run the model in half precision on a GPU, where the probabilities of two pictures stay within
        `curator_dask.models.precision.MOST_SHIFT`.
    compile
        As for `ImageEmbedder`.
    **options
        ``batch_size``, ``num_threads_per_worker``, ``use_index_files``, ``decoder``, ``max_pixels``, ``on_error``,
        ``image_member``, ``gray16``, ``orientation`` and ``decode_scale`` of `ImageEmbedder`; where an embedder's are
        the same, it shares its images.

    Raises
    ------
    ConfigError
        An argument has a value that it cannot have.
    """

    def __init__(
        self,
        model_name: str | os.PathLike[str],
        *,
        pretrained: bool = True,
        checkpoint_path: str | os.PathLike[str] | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        model_dir: str | os.PathLike[str] | None = None,
        prefix: str = "",
        classes: Mapping[str, str | int | Sequence[str | int]] | None = None,
        label: bool = True,
        activation: str = "auto",
        class_names: Sequence[str] | str | os.PathLike[str] | None = None,
        autocast: bool = True,
        compile: CompileSetting = "auto",
        **options: Unpack[ReadingOptions],
    ) -> None:
        if not isinstance(model_name, str | os.PathLike) or not os.fspath(model_name):
            raise ConfigError(f"model_name={model_name!r}: expected the name of a model")
        if activation not in ACTIVATIONS:
            raise ConfigError(
                f"activation={activation!r} (--activation): expected one of {', '.join(ACTIVATIONS)}"
            )
        if not isinstance(autocast, bool):
            raise ConfigError(f"autocast={autocast!r}: expected True or False")
        check_compile(compile)
        name = os.fspath(model_name)
        is_path = isinstance(model_name, os.PathLike) or name.startswith(_PATHS)
        # A folder may have the name of a model of timm's as well.
        is_path |= names_folder(name) and is_transformers(name)
        # A worker may have another working directory than the client.
        self.model_name = str(absolute(name)) if is_path else absolute_name(name)
        self.pretrained = pretrained
        self.checkpoint_path = None if checkpoint_path is None else str(absolute(checkpoint_path))
        self.model_kwargs = dict(model_kwargs or {})
        self.model_dir = None if model_dir is None else str(absolute(model_dir))
        self._check_source()
        self.prefix = prefix
        self.classes = dict(check_classes(classes or {}))
        self.label = label
        self.activation = activation
        self.class_names = None if class_names is None else read_class_names(class_names)
        self.autocast = autocast
        self.compile = compile
        names = (*names_of(ClassificationModel), *ReadingOptions.__annotations__)
        check_names("ClassificationModel", options, names)
        given: dict[str, Any] = dict(options)
        self.options = ImageOptions(num_threads=given.pop("num_threads_per_worker", 4), **given)
        self._check_columns()

    @property
    def spec(self) -> ClassificationSpec:
        """What builds the model on a worker."""
        return ClassificationSpec(
            self._model(), tuple(self.classes.items()), self.activation, self.class_names
        )

    def _model(self) -> LogitsSpec:
        if self._is_transformers:
            return AutoClassifier(
                self.model_name, model_dir=self.model_dir, autocast=self.autocast, compile=self.compile
            )
        return TimmLogits(
            TimmSpec.of(
                self.model_name,
                self.pretrained,
                self.checkpoint_path,
                self.model_kwargs,
                output="logits",
                autocast=self.autocast,
                normalize=False,
                compile=self.compile,
            )
        )

    @property
    def columns(self) -> list[str]:
        """The new columns, without ``image_error``."""
        return [*self.step("key", None).kinds]

    def __call__(self, dataset: ImageTextPairDataset) -> ImageTextPairDataset:
        """The dataset with the columns and ``image_error`` as its last; nothing is computed yet.

        Raises
        ------
        ConfigError
            The dataset has another column of one of these names.
        """
        check_exif_column(self.options.orientation, dataset.metadata.columns)
        options = dataset.storage_options
        parquet = (part.shard.parquet for part in trace(dataset.metadata).inputs or ())
        self._refuse(dataset.metadata.columns, parquet, options)
        return dataset.apply(self.step(dataset.id_col, options))

    def check(self, found: ShardSet, id_col: str, storage_options: Options = None, **how: Any) -> None:
        """See before there is a cluster that no column is lost; see `ImageStatistics.check`.

        Parameters
        ----------
        found
            The shards.
        id_col, storage_options, **how
            As there.

        Raises
        ------
        ConfigError
            The dataset has another column of one of these names.
        """
        schema = schema_ahead(found, id_col, storage_options=storage_options, **how)
        if schema is not None:
            self._refuse(schema.names, (shard.parquet for shard in found.shards), storage_options)

    def _refuse(self, names: Collection[str], parquet: Iterable[str | None], options: Options) -> None:
        path = next((path for path in parquet if path is not None), None)
        record = None if path is None else read_record(path, options)
        models = {} if record is None else record.models  # of an earlier run, and made anew
        own = [name for name in self.columns if name in names and name not in models]
        if own:
            raise ConfigError(
                f"the dataset has columns of its own named {own}, which would be lost: give the classes other names"
                " (prefix='nsfw_', --prefix nsfw_)"
            )

    def class_list(self) -> tuple[str, ...]:
        """The names of all classes, in their order: the model is loaded in this process for that."""
        model = ClassificationSpec(self._model(), (), self.activation, self.class_names).build()
        try:
            return model.names
        finally:
            model.close()

    def settings(self) -> dict[str, Any] | None:
        """JSON-able arguments that make it again, stored in its output; None if there are none such."""
        own = {name: value for name, value in vars(self).items() if name != "options"}
        reading = dict(vars(self.options))
        reading["num_threads_per_worker"] = reading.pop("num_threads")
        made = {"embedder": type(self).__name__, **own, **reading}
        try:
            json.dumps(made)
        except TypeError:
            return None
        return made

    def sources(self) -> Sources | None:
        """The files that decide what it makes; None where they are not all here yet."""
        return Sources.of(self.model_name, self.model_dir, self.checkpoint_path, self.pretrained)

    def retry(
        self,
        path: str | os.PathLike[str],
        *,
        storage_options: Mapping[str, Any] | None = None,
        shard_options: Mapping[str, Any] | None = None,
        workers: OpenWorkers = nullcontext,
    ) -> SaveSummary:
        """Try the failed rows of an output again, and only these; see `ImageEmbedder.retry`.

        Statistics and other models' classes of the same images are mended with them. Vectors are by their embedder's
        own retry, which mends classes, too.

        Parameters
        ----------
        path
            What `save_metadata` wrote, with the same model.
        storage_options, shard_options, workers
            As for `ImageEmbedder.retry`.

        Raises
        ------
        OutputError
            There is nothing there that this model made.
        """
        of_shards = storage_options if shard_options is None else shard_options

        def steps(records: Mapping[str, FileRecord], id_col: str, _: Sequence[str]) -> Sequence[SharingStep]:
            step = self.step(id_col, of_shards)
            return [step, *statistics_again(step, records), *classes_again(step, records)]

        return retry(os.fspath(path), self.columns[0], steps, storage_options, of_shards, workers)

    def step(self, id_col: str, storage_options: Options = None) -> ClassifyImages:
        """What is done to the rows of a shard."""
        return ClassifyImages(
            self.spec,
            self.prefix,
            self.label,
            id_col,
            self.options,
            storage_options,
            json.dumps(self.settings()),
        )

    @property
    def _is_transformers(self) -> bool:
        return is_transformers(self.model_name)

    def _check_source(self) -> None:
        name = self.model_name
        if self._is_transformers:
            given = {
                "pretrained (--no-pretrained)": not self.pretrained,
                "checkpoint_path (--checkpoint)": self.checkpoint_path is not None,
                "model_kwargs (--model-kwargs)": bool(self.model_kwargs),
            }
            wrong = [option for option, is_given in given.items() if is_given]
            if wrong:
                raise ConfigError(
                    f"{name} is transformers' and does not take {', '.join(wrong)}, which timm's models do. A timm"
                    " model of the hub has the prefix hf-hub:, in a folder local-dir:"
                )
        elif self.model_dir is not None:
            raise ConfigError(
                f"model_dir (--model-dir) is for the weights of transformers' models; {name} is timm's"
            )
        elif name.startswith(_PATHS):
            raise ConfigError(
                f"{name} is a path, and its folder is none of transformers': a folder with timm's config.json and"
                f" model.safetensors is named local-dir:{name}"
            )

    def _check_columns(self) -> None:
        if not isinstance(self.prefix, str):
            raise ConfigError(f"prefix={self.prefix!r}: expected text")
        if not (self.label or self.classes):
            raise ConfigError("label=False: nothing is left to be made: give classes")
        names = [self.prefix + name for name in (*(["label", "score"] if self.label else []), *self.classes)]
        taken = [name for name in names if name in (URL_COLUMN, ERROR_COLUMN)]
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if taken or twice:
            raise ConfigError(
                f"the name of the column {(taken or twice)[0]!r} is not free: give another to classes, or a prefix"
            )

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"


def model_from(settings: Mapping[str, Any]) -> ClassificationModel | None:
    """Make the model again that `ClassificationModel.settings` are of; None where they are of something else."""
    arguments = dict(settings)
    if arguments.pop("embedder", None) != ClassificationModel.__name__:
        return None
    return ClassificationModel(**arguments)


def classes_again(step: SeesImages, records: Mapping[str, FileRecord]) -> list[ClassifyImages]:
    """What classified the images of files, each once, to be done again with a step that embeds them.

    What was read as that step's images were is read as it reads them now.

    Parameters
    ----------
    step
        Which is done again.
    records
        Of the files, by path.
    """
    found: dict[str, ClassifyImages] = {}
    for record in records.values():
        for column, settings in record.settings.items():
            if column == step.column or not isinstance(settings, Mapping) or str(settings) in found:
                continue
            model = model_from(settings)
            if model is None:
                continue
            made = model.step(step.id_col, step.storage_options)
            if how_read(record.read_by.get(column, "")) == how_read(record.read_by.get(step.column, "")):
                made = replace(made, options=replace(step.options, batch_size=made.options.batch_size))
            found[str(settings)] = made
    return [*found.values()]
