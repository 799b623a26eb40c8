"""`Recipe`: what is done to shards, from embedding to export."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from curator_dask.arguments import make_of
from curator_dask.balancing.given import check_any_balance, identity_of
from curator_dask.dedup import SemanticDeduplication
from curator_dask.errors import ConfigError
from curator_dask.fetching.first import FirstFetch
from curator_dask.fingerprint import code_digest
from curator_dask.frames.names import ERROR_COLUMN, STATUS_COLUMN
from curator_dask.image.classifiers import (
    AestheticClassifier,
    ImageClassifier,
    NsfwClassifier,
    ReferenceSimilarity,
)
from curator_dask.image.classifiers.clusters import cluster_numbers
from curator_dask.image.classifiers.whole import WholeModel
from curator_dask.image.embedders.making import make_embedder
from curator_dask.image.embedders.whole import WHOLE_MODELS, whole_models
from curator_dask.image.statistics.buckets import AspectBuckets, measured_sides
from curator_dask.models.sources import Sources
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.filtering import ALL
from curator_dask.presets import and_also, asked_for
from curator_dask.rows.best import check_best
from curator_dask.rows.capped import check_cap
from curator_dask.storage import absolute, is_remote, looked_for
from curator_dask.tables import TableColumns
from curator_dask.text.given import OfAllRows, of_all_rows, text_statistics_of
from curator_dask.text.statistics import TextStatistics
from curator_dask.words import meant

_BEGINS = "'model: resnet50', with a name and its value in each line (docs/curation.md)"
#: Arguments of an export that a recipe gives for all steps.
_OF_ALL_STEPS = ("where", "without", "next_best", "overwrite", "append", "dry_run", "samples")
_AFTER = (", but for all steps", ": rows are counted here. Export what curate leaves")
_TIMMS = {"pretrained": True, "output": "auto", "checkpoint_path": None, "model_kwargs": {}}


@dataclass(frozen=True)
class Recipe:
    """What is done to a dataset; a YAML file has the same names.

    Attributes
    ----------
    model, model_options
        timm's name, or a repository or folder of transformers' CLIP or SigLIP (None: nothing is embedded); and other
        arguments of `TimmImageEmbedder` or `ClipImageEmbedder`, such as ``batch_size``.
    id_col
        Column of the keys.
    images, image_column, each_image
        As ``curator-dask embed`` takes them.
    captions
        Of image files: ``"txt"``, ``"none"``, or a table, as for ``curator-dask embed``.
    statistics
        Names of `curator_dask.image.statistics.STATISTICS`.
    prefix
        Before the statistics' names, where the dataset has columns of these names.
    buckets
        Arguments of `AspectBuckets`, such as ``{"resolution": 1024}``. None: there is no such column.
    text_statistics
        Names of `curator_dask.text.TEXT_STATISTICS`, or arguments of `TextStatistics`, as
        ``{"names": ["words", "language"], "text": "alt"}``; or several of these, each with a prefix of its own.
        Captions may come from a table of `join`, or from a model of `caption`.
    same_captions
        True, or arguments of `SameCaptions`: rows get ``text_same_captions``, how many have the same caption.
    classify
        Image classification models, each with the arguments of `ClassificationModel`, as
        ``{"model_name": "hf-hub:Marqo/nsfw-image-detection-384", "classes": {"unsafe": "NSFW"}}``.
    caption
        Models that write about images, each with the arguments of `CaptionModel`.
    detect
        Models that find things in images, each with the arguments of `DetectionModel`.
    ask
        Models that are asked about images, each with the arguments of `QuestionModel`.
    aesthetic, nsfw
        The file of a head, or True: as `AestheticClassifier` and `NsfwClassifier` find theirs.
    neg_clip_loss
        True, or arguments of `NegClipLoss`: rows get ``neg_clip_loss``, by the text tower of `model` (or of ``model``
        there).
    near, near_norm
        By column, outputs of the same model: the cosine to their nearest vector, as of `ReferenceSimilarity`; and its
        ``norm``.
    clusters
        By column, files of centroids of vectors of the same model: the number of the nearest, as of `ClusterNumber`;
        of a file of several levels also ``{"file": "centroids.safetensors", "level": 2}``.
    join
        Tables whose columns rows get before they are filtered, each with the arguments of `TableColumns`, as
        ``{"table": "labels.csv", "on": "key=id", "columns": ["label"]}``.
    where
        A condition as behind SQL's WHERE. Images that cannot be used never pass.
    preset
        A name of `curator_dask.presets.PRESETS`, or several: rows must pass all of these, and `where`.
    top
        A column, and the share or the number of rows that are kept of those that pass, by the largest values there,
        as of `filter_output`: ``{"blurriness": 0.3}``, ``{"blurriness": 1000}``.
    at_most, by
        A column, and how many rows of each of its values are kept, as of `filter_output`: ``{"label": 1000}``; and the
        column whose largest are kept. Not with `top`.
    balance
        Arguments of `curator_dask.text.balance.balance_output`, ``concepts`` and ``most`` at least, or of
        `curator_dask.balancing.balance_clusters`, ``clusters`` and ``keep`` at least: of the rows that are kept so far
        those that are drawn stay. None: all of them.
    duplicates
        Arguments of `SemanticDeduplication`, without a model with ``exact``. None: none are looked for.
    export
        Arguments of `ExportOptions`, such as ``samples_per_shard``.
    fetch
        A table of URLs, whose images become the shards, and how: ``{"table": "urls.parquet", "caption_column":
        "TEXT"}``, with other arguments of `FetchOptions`, ``min_good`` and ``storage_options``. None: the shards are
        there.

    Raises
    ------
    ConfigError
        They do not fit each other.
    """

    model: str | None = None
    model_options: Mapping[str, Any] = field(default_factory=dict)
    id_col: str = "key"
    images: bool = False
    each_image: bool = False
    image_column: str = "auto"
    captions: str = "txt"
    statistics: Sequence[str] = ()
    prefix: str = ""
    buckets: Mapping[str, Any] | None = None
    text_statistics: Sequence[str] | Mapping[str, Any] | Sequence[Mapping[str, Any]] = ()
    same_captions: bool | Mapping[str, Any] = False
    classify: Sequence[Mapping[str, Any]] = ()
    caption: Sequence[Mapping[str, Any]] = ()
    detect: Sequence[Mapping[str, Any]] = ()
    ask: Sequence[Mapping[str, Any]] = ()
    aesthetic: str | bool = False
    nsfw: str | bool = False
    neg_clip_loss: bool | Mapping[str, Any] = False
    near: Mapping[str, str] = field(default_factory=dict)
    near_norm: str = "max"
    clusters: Mapping[str, Any] = field(default_factory=dict)
    join: Sequence[Mapping[str, Any]] = ()
    where: str | None = None
    preset: str | Sequence[str] = ()
    top: Mapping[str, float] | None = None
    at_most: Mapping[str, int] | None = None
    by: str | None = None
    balance: Mapping[str, Any] | None = None
    duplicates: Mapping[str, Any] | None = None
    export: Mapping[str, Any] = field(default_factory=dict)
    fetch: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for names, kinds, expected in (
            (("model", "where", "by"), str | None, "text"),
            (("id_col", "image_column", "prefix"), str, "text"),
            (("aesthetic", "nsfw"), str | bool, "the path of a head's file, or true or false"),
        ):
            for name in names:
                if not isinstance(getattr(self, name), kinds):
                    raise ConfigError(f"{name}: expected {expected}, found {getattr(self, name)!r}")
        wants = [
            name
            for name in ("aesthetic", "nsfw", "near", "clusters", "duplicates")
            if getattr(self, name) not in (False, None, {})
        ]
        if self.model is None and isinstance(self.duplicates, Mapping) and self.duplicates.get("exact"):
            wants.remove("duplicates")  # hashes alone decide
        if self.model is None and wants:
            hashes = ", or duplicates by hashes alone (exact)" if "duplicates" in wants else ""
            raise ConfigError(f"{', '.join(wants)}: needs vectors: give a model{hashes}")
        for name in ("model_options", "balance", "duplicates", "export", "near", "clusters"):
            if not isinstance(getattr(self, name) or {}, Mapping):
                raise ConfigError(f"{name}: expected names and values, found {getattr(self, name)!r}")
        if taken := {*_OF_ALL_STEPS} & {*(self.export or {})}:
            raise ConfigError(f"export: {sorted(taken)} is not given there{_AFTER[taken == {'samples'}]}")
        if not all(isinstance(each, str) and each for pair in (self.near or {}).items() for each in pair):
            raise ConfigError(f"near: expected columns and folders, found {self.near!r}")
        if not isinstance(self.captions, str) or {type(self.images), type(self.each_image)} != {bool}:
            said = f"each_image={self.each_image!r}, captions={self.captions!r}, images={self.images!r}"
            raise ConfigError(f"{said}: expected txt, none or the path of a table; and true or false")
        if not isinstance(self.statistics, list | tuple) or {*map(type, self.statistics)} - {str}:
            raise ConfigError(f"statistics={self.statistics!r}: expected a list of names")
        if isinstance(self.join, list | tuple):  # YAML takes the word `on` for true
            join = [_with_on(each) if isinstance(each, Mapping) else each for each in self.join]
            object.__setattr__(self, "join", join)
        checks = (self.best, self.cap, self.joins, self.models, self.of_texts, self.of_all_rows, self.heads)
        for check in (*checks, self.bucketed):
            check()
        check_any_balance(self.balance)
        self.deduplication()  # says what is wrong with its arguments, as do those below
        self.asked()
        if self.model is not None:
            self.embedder()
        if self.fetches() is not None and (self.id_col, self.images) != ("key", False):
            raise ConfigError("fetch: its shards are tars with keys in 'key': leave out id_col and images")

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
            raise ConfigError(
                f"{path}: there is no such file{looked_for(path)}. A recipe begins so: {_BEGINS}"
            ) from None
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
                hint = meant(str(name), known)
                raise ConfigError(f"{path}: unknown name {name!r}{hint}. There are {', '.join(known)}")
        return cls(**found)

    @property
    def given(self) -> dict[str, Any]:
        """What is not as it is by default, by name."""
        asked = ((each, getattr(self, each.name)) for each in fields(self))
        return {
            each.name: value
            for each, value in asked
            if (tuple(value) if isinstance(value, list) else value)
            != (each.default if each.default is not MISSING else {})
        }

    @property
    def opens_images(self) -> bool:
        """Whether it is known which images cannot be used."""
        looks = (self.statistics, *(getattr(self, name) for name in WHOLE_MODELS))
        return self.model is not None or any(looks)

    @property
    def knows_failed(self) -> bool:
        """Whether the first clause of the condition says which images cannot be used."""
        return self.opens_images or self.fetch is not None

    @property
    def condition(self) -> str:
        """Which rows pass."""
        good, asked = f'"{ERROR_COLUMN}" IS NULL', self.asked()
        if not self.opens_images:
            if self.fetch is None:
                return asked or ALL
            good = f"\"{STATUS_COLUMN}\" = 'success'"
        return good if asked is None else and_also(good, asked)

    def asked(self) -> str | None:
        """Which rows are wanted of those whose image can be used, if not all are."""
        wanted, blurring = asked_for(self.preset, self.where), self.options(overwrite=False).blurring
        # What cannot be blurred goes before duplicates are looked for, lest it stays in another's place.
        seen = None if blurring is None else blurring.condition
        return and_also(seen, wanted) if seen and wanted else seen or wanted

    def best(self) -> tuple[str, float] | None:
        """The column by which rows are best, and how many of them are kept."""
        if self.top is None:
            return None
        return check_best(_only(self.top))

    def cap(self) -> tuple[str, int] | None:
        """The column of which so many rows of each value are kept, and how many."""
        given = None if self.at_most is None else _only(self.at_most)
        cap = check_cap(given, self.by, self.top)
        return None if cap is None else (cap.column, cap.most)

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
        return [
            *(head(model_path=None if file is True else file) for head, file in given if file),
            *(
                ReferenceSimilarity(path, name, norm=self.near_norm)
                for name, path in (self.near or {}).items()
            ),
            *cluster_numbers(self.clusters or {}),
        ]

    def models(self) -> list[WholeModel]:
        """What classifies the images, writes about them, finds things in them, and is asked about them."""
        return whole_models({name: getattr(self, name) for name in WHOLE_MODELS})

    def of_texts(self) -> list[TextStatistics]:
        """What measures the captions."""
        return text_statistics_of(self.text_statistics)

    def bucketed(self) -> AspectBuckets | None:
        """What says to which size each image is to be cropped."""
        sides = measured_sides(self.statistics, self.prefix)
        return None if self.buckets is None else make_of("buckets", AspectBuckets, self.buckets, **sides)

    def of_all_rows(self) -> dict[str, tuple[OfAllRows, str]]:
        """By name, what scores rows once all are there, and the column of captions that it is of."""
        return of_all_rows(self.same_captions, self.neg_clip_loss, self.model, self.model_options)

    def joins(self) -> list[TableColumns]:
        """What adds columns of tables."""
        given = self.join
        if not isinstance(given, list | tuple) or not all(isinstance(each, Mapping) for each in given):
            raise ConfigError(
                f"join={given!r}: expected a list of tables, as [{{'table': 'labels.csv', 'on': 'key=id'}}]"
            )
        return [make_of("join", TableColumns, each) for each in given]

    def fetches(self) -> FirstFetch | None:
        """What is fetched before all else; None: nothing."""
        return None if self.fetch is None else FirstFetch.of(self.fetch)

    def sources(self) -> Sources | None:
        """All files that decide what is in ``embeddings``, but the shards; None where they are not all here."""
        near = [each.reference for each in self.heads() if isinstance(each, ReferenceSimilarity)]
        tables = [each.path for each in self.joins()]
        if any(is_remote(path) for path in (*near, *tables)):
            return None
        near += [file for each in self.joins() for file in each.files]
        others = [*near, *([] if self.captions in ("txt", "none") else [self.captions])]
        others += [path for head in self.heads() for path in head.files]
        others += [path for texts in self.of_texts() for path in texts.files]
        named = (each.get("class_names") for each in self.classify)
        others += [os.fspath(name) for name in named if isinstance(name, str | os.PathLike)]
        for model in self.models():
            files = model.sources()
            if files is None or files.repository or files.asks_timm:
                return None  # of one repository alone it is known whether its newest state is here
            others += files.paths
        if self.model is None:
            return Sources(tuple(absolute(each) for each in others))
        given = {name: self.model_options.get(name, unset) for name, unset in _TIMMS.items()}
        folder = self.model_options.get("model_dir")
        return Sources.of(self.model, folder, given["checkpoint_path"], bool(given["pretrained"]), others)

    def choice(self) -> str:
        """A digest of all that decides which rows are exported, but for the rows themselves; it reads the concepts.

        Raises
        ------
        DatasetError
            The file of concepts cannot be read.
        """
        balance = identity_of(self.balance)
        find = self.deduplication()
        duplicates = None
        if find is not None:
            given = {**vars(find.settings), "memory_limit": None, "keep": find.settings.keep.identity}
            duplicates = [given, find.against]
        return code_digest(
            [self.condition, self.best(), self.cap(), self.by, balance, duplicates], written=()
        )

    def deduplication(self) -> SemanticDeduplication | None:
        """What finds duplicates, if it is asked for."""
        if self.duplicates is None:
            return None
        return make_of("duplicates", SemanticDeduplication, self.duplicates)

    def options(self, overwrite: bool, without: str | None = None) -> ExportOptions:
        """Of the export."""
        given = self.export or {}
        return make_of("export", ExportOptions, given, _OF_ALL_STEPS, overwrite=overwrite, without=without)


def _with_on(given: Mapping[Any, Any]) -> dict[Any, Any]:
    return {"on" if name is True else name: value for name, value in given.items()}


def _only(given: Any) -> Any:
    """Name and value of a mapping of one; all else as it is."""
    return next(iter(given.items())) if isinstance(given, Mapping) and len(given) == 1 else given
