"""From shards to the shards that are trained on: embed, measure, filter, leave out duplicates, export.

Each step is that of its own command, and writes to a folder of its own below the output, so that each can be looked at,
and a second run does of each what is missing.
"""

from __future__ import annotations

import difflib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from curator_dask.cluster.setup import OpenWorkers, at_work
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.dedup import SemanticDeduplication
from curator_dask.errors import ConfigError, ShardError
from curator_dask.frames.names import EMBEDDING_COLUMN, ERROR_COLUMN
from curator_dask.image.classifiers import AestheticClassifier, ImageClassifier, NsfwClassifier
from curator_dask.image.embedders.making import make_embedder
from curator_dask.image.statistics import ImageStatistics
from curator_dask.models.sources import Sources
from curator_dask.outputs.curated import DUPLICATES, EMBEDDINGS, PASSING, SHARDS, CurationSummary
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.exporting import export_output
from curator_dask.outputs.filtering import filter_output
from curator_dask.outputs.finished import FinishedCommand, repository_of
from curator_dask.rows.best import check_best
from curator_dask.rows.image_files import captions_of
from curator_dask.rows.reading import choose_source
from curator_dask.storage import Options, absolute, is_remote, join
from curator_dask.webdataset.finding import find_shards
from curator_dask.webdataset.shards import ShardSet

logger = logging.getLogger("curator_dask")

_BEGINS = "'model: resnet50', with a name and its value in each line (docs/curation.md)"
_TIMMS = {"pretrained": True, "output": "auto", "checkpoint_path": None, "model_kwargs": {}}


@dataclass(frozen=True)
class Recipe:
    """What is done to a dataset; a YAML file has the same names.

    Attributes
    ----------
    model
        timm's name, or a repository or folder of transformers' CLIP or SigLIP. None: nothing is embedded.
    model_options
        Other arguments of `TimmImageEmbedder` or `ClipImageEmbedder`, such as ``batch_size``.
    id_col
        Column of the keys.
    images
        Take the image files of the folder even where it has tars.
    captions
        Of image files: ``"txt"``, ``"none"``, or a table, as for ``curator-dask embed``.
    statistics
        Names of `curator_dask.image.statistics.STATISTICS`.
    prefix
        Before the statistics' names, where the dataset has columns of these names.
    aesthetic, nsfw
        The file of a head, or True: as `AestheticClassifier` and `NsfwClassifier` find theirs.
    where
        A condition as behind SQL's WHERE. Images that cannot be used never pass.
    top
        A column, and the share or the number of rows that are kept of those that pass, by the largest values there,
        as of `filter_output`: ``{"blurriness": 0.3}``, ``{"blurriness": 1000}``.
    duplicates
        Arguments of `SemanticDeduplication`, without a model with ``exact``. None: none are looked for.
    export
        Arguments of `ExportOptions`, such as ``samples_per_shard``.

    Raises
    ------
    ConfigError
        They do not fit each other.
    """

    model: str | None = None
    model_options: Mapping[str, Any] = field(default_factory=dict)
    id_col: str = "key"
    images: bool = False
    captions: str = "txt"
    statistics: Sequence[str] = ()
    prefix: str = ""
    aesthetic: str | bool = False
    nsfw: str | bool = False
    where: str | None = None
    top: Mapping[str, float] | None = None
    duplicates: Mapping[str, Any] | None = None
    export: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for names, kinds, expected in (
            (("model", "where"), str | None, "text"),
            (("id_col", "prefix"), str, "text"),
            (("aesthetic", "nsfw"), str | bool, "the path of a head's file, or true or false"),
        ):
            for name in names:
                if not isinstance(getattr(self, name), kinds):
                    raise ConfigError(f"{name}: expected {expected}, found {getattr(self, name)!r}")
        wants = [
            name for name in ("aesthetic", "nsfw", "duplicates") if getattr(self, name) not in (False, None)
        ]
        if self.model is None and isinstance(self.duplicates, Mapping) and self.duplicates.get("exact"):
            wants.remove("duplicates")  # hashes alone decide
        if self.model is None and wants:
            hashes = ", or duplicates by hashes alone (exact)" if "duplicates" in wants else ""
            raise ConfigError(f"{', '.join(wants)}: needs vectors: give a model{hashes}")
        if taken := {"where", "without", "overwrite", "dry_run"} & {*self.export}:
            raise ConfigError(f"export: {sorted(taken)} is not given there, but for all steps")
        for name in ("model_options", "duplicates", "export"):
            if not isinstance(getattr(self, name) or {}, Mapping):
                raise ConfigError(f"{name}: expected names and values, found {getattr(self, name)!r}")
        if not isinstance(self.captions, str) or not isinstance(self.images, bool):
            raise ConfigError(
                f"captions={self.captions!r}, images={self.images!r}: expected txt, none or the path of a table; and"
                " true or false"
            )
        if not isinstance(self.statistics, list | tuple) or not all(
            isinstance(each, str) for each in self.statistics
        ):
            raise ConfigError(f"statistics={self.statistics!r}: expected a list of names")
        self.best()
        self.deduplication()  # says what is wrong with its arguments, as do those below
        self.options(overwrite=False)
        if self.model is not None:
            self.embedder()

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Recipe:
        """From a YAML file.

        Raises
        ------
        ConfigError
            It cannot be read, or has other names.
        """
        import yaml

        try:
            found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{path}: there is no such file. A recipe begins so: {_BEGINS}") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            said = " ".join(str(error).split())
            raise ConfigError(
                f"{path}: not a YAML file that can be read: {said}. It begins so: {_BEGINS}"
            ) from None
        if not isinstance(found, Mapping):
            raise ConfigError(
                f"{path}: expected names and values, found {type(found).__name__}. It begins so: {_BEGINS}"
            )
        known = [each.name for each in fields(cls)]
        for name in found:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1)
                hint = f": did you mean {near[0]}?" if near else "."
                raise ConfigError(f"{path}: unknown name {name!r}{hint} There are {', '.join(known)}")
        return cls(**found)

    @property
    def opens_images(self) -> bool:
        """Whether it is known which images cannot be used."""
        return self.model is not None or bool(self.statistics)

    @property
    def condition(self) -> str:
        """Which rows pass."""
        good = f'"{ERROR_COLUMN}" IS NULL'
        if not self.opens_images:
            return self.where or "TRUE"
        return good if self.where is None else f"{good} AND ({self.where})"

    def best(self) -> tuple[str, float] | None:
        """The column by which rows are best, and how many of them are kept."""
        if self.top is None:
            return None
        single = isinstance(self.top, Mapping) and len(self.top) == 1
        return check_best(next(iter(self.top.items())) if single else self.top)

    def embedder(self) -> Any:
        """What embeds."""
        assert self.model is not None
        given = dict(self.model_options)
        timms = {name: given.pop(name, unset) for name, unset in _TIMMS.items()}
        try:
            return make_embedder(self.model, given.pop("model_dir", None), timms, **given)
        except TypeError as error:
            raise ConfigError(f"model_options: {error}") from None

    def heads(self) -> list[ImageClassifier]:
        """What scores the vectors."""
        given = ((AestheticClassifier, self.aesthetic), (NsfwClassifier, self.nsfw))
        return [head(model_path=None if file is True else file) for head, file in given if file]

    def sources(self) -> Sources | None:
        """All files that decide what is in ``embeddings``, but the shards; None where they are not all here yet."""
        others = [] if self.captions in ("txt", "none") else [self.captions]
        others += [path for head in self.heads() for path in head.files]
        if self.model is None:
            return Sources(tuple(absolute(each) for each in others))
        given = {name: self.model_options.get(name, unset) for name, unset in _TIMMS.items()}
        folder = self.model_options.get("model_dir")
        return Sources.of(self.model, folder, given["checkpoint_path"], bool(given["pretrained"]), others)

    def deduplication(self) -> SemanticDeduplication | None:
        """What finds duplicates, if it is asked for."""
        if self.duplicates is None:
            return None
        try:
            return SemanticDeduplication(**self.duplicates)
        except TypeError as error:
            raise ConfigError(f"duplicates: {error}") from None

    def options(self, overwrite: bool, without: str | None = None) -> ExportOptions:
        """Of the export."""
        try:
            return ExportOptions(**self.export, overwrite=overwrite, without=without)
        except TypeError as error:
            raise ConfigError(f"export: {error}") from None


def curate(
    input_path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    recipe: Recipe,
    *,
    overwrite: bool = False,
    storage_options: Options = None,
    workers: OpenWorkers = nullcontext,
    device: str | None = None,
    ahead: Callable[[], object] = lambda: None,
) -> CurationSummary:
    """Do what a recipe says: from shards to the shards that are left.

    Below `output` are ``embeddings`` (a row a sample, with vectors, scores and statistics), ``passing`` (the rows that
    pass the condition), ``duplicates`` (which of these have a better twin) and ``shards``. The same call again does of
    each step what is missing.

    Parameters
    ----------
    input_path
        Shards, as `ImageTextPairDataset.from_webdataset` takes them, or a folder of image files without tars.
    output
        A folder of this machine that all workers see.
    recipe
        What is done.
    overwrite
        Replace what another recipe has left there.
    storage_options
        For fsspec, where `input_path` is a URL.
    workers
        Opens the cluster to work on, once there is something to do; else it is the one that is there.
    device
        Of the workers that `workers` starts on this machine: then it may be known without them that ``embeddings`` is
        finished (`curator_dask.outputs.finished`). None: they are asked.
    ahead
        Called before the cluster is opened to embed on it.

    Raises
    ------
    CuratorError
        As of the steps.
    """
    started, folder = time.monotonic(), os.fspath(output)
    if is_remote(folder):
        raise ConfigError(
            f"{folder}: expected a folder that all workers see; copy the shards to a store afterwards"
        )
    folder = absolute(folder)
    places = {name: join(folder, name) for name in (EMBEDDINGS, PASSING, DUPLICATES, SHARDS)}
    summary = CurationSummary(folder)
    found = find_shards(input_path, storage_options, images=recipe.images)
    of_images = captions_of(recipe.captions, found, recipe.id_col, storage_options)
    place = places[EMBEDDINGS]
    before = None
    if device is not None and (sources := recipe.sources()) is not None:
        before = _before(found, place, recipe, sources, device, overwrite, storage_options)
    saved = None if before is None else before.summary()
    if saved is None:
        if recipe.statistics:
            measure = ImageStatistics(list(recipe.statistics), prefix=recipe.prefix)
            measure.check(found, recipe.id_col, captions=recipe.captions, storage_options=storage_options)
        if recipe.model is not None:
            ahead()
        with at_work(workers) as client:
            dataset = ImageTextPairDataset.from_shards(
                found, recipe.id_col, **of_images, storage_options=storage_options
            )
            saved = _with_columns(dataset, recipe).save_metadata(place, overwrite=overwrite)
            if before is not None:
                before.remember(saved, repository_of(before.sources, recipe.model, client))
    summary.steps[EMBEDDINGS] = saved
    if saved.failed_shards:
        name, why = next(iter(saved.failed_shards.items()))
        raise ShardError(
            f"{name}: its rows could not be read, and nothing was filtered: {why}. Mend it, or leave it out, and run"
            " again"
        )
    # The files between are this recipe's alone, so what an earlier one has left there is always replaced.
    passing = filter_output(
        place, places[PASSING], where=recipe.condition, top=recipe.best(), overwrite=True, workers=workers
    )
    summary.steps[PASSING] = passing
    good = next(iter(passing.passing.values())) if recipe.opens_images else passing.rows
    summary.rows, summary.failed = passing.rows, passing.rows - good
    summary.filtered = good - passing.kept
    find = recipe.deduplication()
    without = None
    if find is not None and passing.kept:
        summary.steps[DUPLICATES] = find(places[PASSING]).save(places[DUPLICATES], workers=workers)
        summary.duplicates, without = summary.steps[DUPLICATES].removed, places[DUPLICATES]
    exported = export_output(
        places[PASSING],
        places[SHARDS],
        recipe.options(overwrite, without),
        id_col=recipe.id_col,
        storage_options=storage_options,
        output_storage_options={},
        workers=workers,
    )
    summary.steps[SHARDS] = exported
    summary.missing, summary.kept = exported.missing, exported.kept
    summary.complete = saved.complete and exported.complete
    summary.seconds = time.monotonic() - started
    logger.info("%s", summary)
    return summary


def _before(
    found: ShardSet,
    place: str,
    recipe: Recipe,
    sources: Sources,
    device: str,
    overwrite: bool,
    options: Options,
) -> FinishedCommand:
    """What is about to be embedded, to be compared with what was."""
    later = ("where", "top", "duplicates", "export")
    asked = {name: value for name, value in vars(recipe).items() if name not in later}
    column = recipe.model_options.get("image_embedding_column", EMBEDDING_COLUMN)
    return FinishedCommand(
        {"curate": asked, "overwrite": overwrite, "folder": str(Path.cwd())},
        found,
        choose_source("auto", found, options),
        place,
        "" if recipe.model is None else column,
        sources,
        device,
        options,
    )


def _with_columns(dataset: ImageTextPairDataset, recipe: Recipe) -> ImageTextPairDataset:
    """The dataset with all that the recipe wants to know of its images."""
    if recipe.statistics:
        dataset = ImageStatistics(list(recipe.statistics), prefix=recipe.prefix)(dataset)
    if recipe.model is not None:
        dataset = recipe.embedder()(dataset)
    for head in recipe.heads():
        dataset = head(dataset)
    return dataset
