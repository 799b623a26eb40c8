"""Models that look at whole images of a dataset and give columns: what classifies them, and what writes about them."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, ClassVar, Self, TypedDict

from curator_dask.arguments import check_names, names_of
from curator_dask.cluster.setup import OpenWorkers
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.decode.orientation import check_exif_column
from curator_dask.decode.spec import ImageOptions
from curator_dask.errors import ConfigError
from curator_dask.frames.parquet import read_record
from curator_dask.frames.record import FileRecord
from curator_dask.image.classifiers.seeing import SeeImages
from curator_dask.image.statistics.again import SeesImages, statistics_again
from curator_dask.image.statistics.step import schema_ahead
from curator_dask.models.hub import is_transformers, names_folder
from curator_dask.models.precision import DTYPES
from curator_dask.models.sources import Sources
from curator_dask.outputs.retrying import retry
from curator_dask.runs.lineage import trace
from curator_dask.runs.parts import Part
from curator_dask.runs.step import SharingStep, how_read
from curator_dask.runs.summary import SaveSummary
from curator_dask.settings import absolute
from curator_dask.storage import Options
from curator_dask.webdataset.shards import ShardSet


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


class WholeModel(ABC):
    """Base of these models: a subclass takes its settings, and gives the step."""

    #: What to give in place of names that a dataset has, for messages.
    named: ClassVar[str]
    #: How its images are read.
    options: ImageOptions

    @abstractmethod
    def step(self, id_col: str, storage_options: Options = None) -> SeeImages:
        """What is done to the rows of a shard."""

    @abstractmethod
    def sources(self) -> Sources | None:
        """The files that decide what it makes; None where they are not all here yet."""

    @classmethod
    def reading(cls, options: Any, without: Collection[str] = (), **defaults: Any) -> ImageOptions:
        """`ReadingOptions` that were given, less those of some names, checked.

        Raises
        ------
        ConfigError
            There is no such option, or it has a value that it cannot have.
        """
        known = [name for name in ReadingOptions.__annotations__ if name not in without]
        check_names(cls.__name__, options, (*names_of(cls), *known))
        given: dict[str, Any] = {"num_threads_per_worker": 4, **defaults, **options}
        return ImageOptions(num_threads=given.pop("num_threads_per_worker"), **given)

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
                f"the dataset has columns of its own named {own}, which would be lost: give {self.named}"
            )

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

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self | None:
        """Make the model again that `settings` are of; None where they are of something else."""
        arguments = dict(settings)
        if arguments.pop("embedder", None) != cls.__name__:
            return None
        return cls(**arguments)

    def retry(
        self,
        path: str | os.PathLike[str],
        *,
        storage_options: Mapping[str, Any] | None = None,
        shard_options: Mapping[str, Any] | None = None,
        workers: OpenWorkers = nullcontext,
        part: tuple[int, int] | str | None = None,
    ) -> SaveSummary:
        """Try the failed rows of an output again, and only these; see `ImageEmbedder.retry`.

        Statistics of the same images, and what another model of the same kind saw in them, are mended with them.
        Vectors are by their embedder's own retry, which mends these columns, too.

        Parameters
        ----------
        path
            What `save_metadata` wrote, with the same model.
        storage_options, shard_options, workers, part
            As for `ImageEmbedder.retry`.

        Raises
        ------
        OutputError
            There is nothing there that this model made.
        """
        of_shards = storage_options if shard_options is None else shard_options

        def steps(records: Mapping[str, FileRecord], id_col: str, _: Sequence[str]) -> Sequence[SharingStep]:
            step = self.step(id_col, of_shards)
            return [step, *statistics_again(step, records), *models_again(step, records, [type(self)])]

        own = self.step("key")
        given = (storage_options, of_shards, workers, own.sure, Part.of_given(part))
        return retry(os.fspath(path), own.column, steps, *given)

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"


def check_model_name(model_name: Any) -> None:
    """Raise ConfigError where there is no name of a model."""
    if not isinstance(model_name, str | os.PathLike) or not os.fspath(model_name):
        raise ConfigError(f"model_name={model_name!r}: expected the name of a model")


class TransformersModel(WholeModel):
    """Base of those that transformers has, each with a processor of its own, which gets whole images."""

    #: What such models can, for messages.
    can: ClassVar[str]
    #: Options of reading that they do not take, each with what it says where it changes nothing.
    without: ClassVar[Mapping[str, str]] = {"decode_scale": "exact"}
    #: Images that go through a model together: what each takes is held until the last is done.
    batch_size: ClassVar[int] = 16

    model_name: str
    model_dir: str | None
    dtype: str

    def _check_name(self, model_name: Any, dtype: str) -> str:
        """The model's name, a folder's absolute, as a worker may have another working directory.

        Raises
        ------
        ConfigError
            It is no name of one, or there is no such arithmetic.
        """
        check_model_name(model_name)
        name = os.fspath(model_name)
        if not names_folder(name) and not is_transformers(name):
            raise ConfigError(
                f"model_name={name!r}: expected a repository of the hub as org/repo, or a folder, with one of"
                f" transformers' models that {self.can}"
            )
        if dtype not in DTYPES:
            raise ConfigError(f"dtype={dtype!r} (--dtype): expected one of {', '.join(DTYPES)}")
        return str(absolute(name)) if names_folder(name) else name

    def _take(self, model_dir: str | os.PathLike[str] | None, dtype: str, options: Mapping[str, Any]) -> None:
        """Take what all of them are told; `options` may be those of `settings`, which have all."""
        self.model_dir = None if model_dir is None else str(absolute(model_dir))
        self.dtype = dtype
        given = {name: value for name, value in options.items() if self.without.get(name, ...) != value}
        self.options = self.reading(given, self.without, batch_size=self.batch_size)

    def sources(self) -> Sources | None:
        """The files that decide what it makes; None where they are not all here yet."""
        return Sources.of(self.model_name, self.model_dir, None, True)


def models_again(
    step: SeesImages, records: Mapping[str, FileRecord], kinds: Sequence[type[WholeModel]]
) -> list[SeeImages]:
    """What saw something in the images of files, each once, to be done again with a step that looks at them.

    What was read as that step's images were is read as it reads them now.

    Parameters
    ----------
    step
        Which is done again.
    records
        Of the files, by path.
    kinds
        Of models.
    """
    found: dict[str, SeeImages] = {}
    for record in records.values():
        for column, settings in record.settings.items():
            if column == step.column or not isinstance(settings, Mapping) or str(settings) in found:
                continue
            model = next((made for kind in kinds if (made := kind.of(settings)) is not None), None)
            if model is None:
                continue
            made_again = model.step(step.id_col, step.storage_options)
            if how_read(record.read_by.get(column, "")) == how_read(record.read_by.get(step.column, "")):
                options = replace(step.options, batch_size=made_again.options.batch_size)
                made_again = replace(made_again, options=options)  # type: ignore[type-var]
            found[str(settings)] = made_again
    return [*found.values()]
