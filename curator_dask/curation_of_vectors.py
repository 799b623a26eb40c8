"""From vectors that others have made to a table of chosen rows, and on to their images and tars, as a recipe says.

Each step is that of its own command, and writes to a folder of its own below the output, so that each can be looked at,
and a second run does of each what is missing.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curator_dask.arguments import make_of, names_of
from curator_dask.balancing.choosing import DRAWN
from curator_dask.balancing.given import balance_by
from curator_dask.cluster.setup import OpenWorkers
from curator_dask.errors import ConfigError, ShardError
from curator_dask.fetching.first import FirstFetch
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import open_parquet, read_record
from curator_dask.image.classifiers import score_output
from curator_dask.importing import import_vectors, return_vectors
from curator_dask.outputs.card import Making
from curator_dask.outputs.curated import CurationSummary, check_places
from curator_dask.outputs.curated_names import BALANCED, DUPLICATES, EMBEDDINGS, FETCHED, PASSING, SHARDS
from curator_dask.outputs.exporting import export_output
from curator_dask.outputs.failed import output_files
from curator_dask.outputs.filtering import filter_output
from curator_dask.outputs.placing import locate, put
from curator_dask.outputs.removed import DUPLICATES as TABLE
from curator_dask.outputs.taken_down import REMOVED
from curator_dask.recipe import Recipe
from curator_dask.storage import Options, exists, is_remote, join, read_bytes
from curator_dask.tables.output import join_output
from curator_dask.text import ClipScore
from curator_dask.words import counted

logger = logging.getLogger("curator_dask")

#: Rows with the vectors; those that pass, marked by whether they have a better twin; the rows that are chosen.
POOL, MARKED, CHOSEN = "pool", "marked", "chosen"
#: What a recipe's file calls that with which it begins.
IMPORT = "import"
_GIVEN = ("output", "overwrite", "part", "storage_options", "output_storage_options", "workers", "path")
#: Of `Recipe`, what needs no image.
_OF_RECIPE = (
    *(
        "text_statistics",
        "same_captions",
        "aesthetic",
        "nsfw",
        "near",
        "near_norm",
        "clusters",
        "join",
        "where",
    ),
    *("preset", "top", "at_most", "by", "balance", "duplicates", "export"),
)


@dataclass(frozen=True)
class VectorRecipe:
    """What is done to vectors of others; a YAML file has the same names, with ``import`` for the first.

    Attributes
    ----------
    import_
        Arguments of `curator_dask.import_vectors`, such as ``{"model": "openai/clip-vit-large-patch14"}``.
    clip_score
        True: rows get ``clip_score``, of the vectors of images and texts; or arguments of `ClipScore`.
    fetch
        How the images of the chosen rows are fetched, as of `Recipe`, without a table. None: none are, and the chosen
        rows are the end.
    choosing
        All else, by the names of `Recipe`: of these what needs no image.

    Raises
    ------
    ConfigError
        They do not fit each other.
    """

    import_: Mapping[str, Any] = field(default_factory=dict)
    clip_score: bool | Mapping[str, Any] = False
    fetch: Mapping[str, Any] | None = None
    choosing: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, given in ((IMPORT, self.import_), ("fetch", self.fetch or {})):
            if not isinstance(given, Mapping):
                raise ConfigError(f"{name}: expected names and values, found {given!r}")
        known = [name for name in names_of(import_vectors) if name not in _GIVEN]
        if unknown := [name for name in self.import_ if name not in known]:
            raise ConfigError(f"{IMPORT}: there is no argument {unknown[0]!r}. There are {', '.join(known)}")
        names = ("clip_score", "fetch", *_OF_RECIPE)
        if wrong := [name for name in self.choosing if name not in _OF_RECIPE]:
            raise ConfigError(
                f"{wrong[0]!r} beside {IMPORT}: there is no image before the rows are chosen. There are"
                f" {', '.join(names)}; all else is of a recipe for the images that were fetched"
            )
        if "table" in (self.fetch or {}):
            raise ConfigError(
                f"fetch: table beside {IMPORT}: the rows that are chosen are fetched: leave it out"
            )
        if self.fetch is None and self.recipe.export:
            raise ConfigError(
                f"export beside {IMPORT}: there is no image to export: say how they are fetched (fetch)"
            )
        _ = self.fetches(CHOSEN), self.clip_scores()

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> VectorRecipe:
        """As a YAML file says it."""
        own = {"import_": given.get(IMPORT) or {}}
        own |= {name: given[name] for name in ("clip_score", "fetch") if name in given}
        rest = {name: value for name, value in given.items() if name not in (IMPORT, "clip_score", "fetch")}
        return cls(**own, choosing=rest)

    @property
    def recipe(self) -> Recipe:
        """The choice of rows; that it has a model says that there are vectors, which none is asked for."""
        return Recipe(model="resnet50", **self.choosing)

    def clip_scores(self) -> list[ClipScore]:
        """What scores image and text."""
        if not self.clip_score:
            return []
        return [make_of("clip_score", ClipScore, {} if self.clip_score is True else self.clip_score)]

    def fetches(self, table: str) -> FirstFetch | None:
        """What fetches the images of a table's rows; None: nothing."""
        return None if self.fetch is None else FirstFetch.of({"table": table, **self.fetch})


@dataclass
class ChosenSummary(CurationSummary):
    """What became of the rows of vectors that others have made."""

    def __str__(self) -> str:
        if SHARDS in self.steps:
            return super().__str__()
        head = (
            f"{join(self.path, CHOSEN)}: {self.kept:,} of {counted(self.rows, 'row')}; {self.seconds:.0f} s"
        )
        return "\n".join([head, *super().__str__().split("\n")[1:]])


def curate_vectors(
    input_path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    recipe: VectorRecipe,
    *,
    overwrite: bool = False,
    storage_options: Options = None,
    output_storage_options: Options = None,
    workers: OpenWorkers = nullcontext,
) -> ChosenSummary:
    """Do what a recipe says: from tables and vectors to the rows that are chosen, and to their images in new tars.

    Below `output` are ``pool`` (all rows, with vectors and scores), ``passing`` (those that pass), ``balanced``,
    ``duplicates``, ``marked`` and ``chosen``; where images are fetched also ``fetched``, ``embeddings`` (the rows of
    these with their vectors) and ``shards``. The same call again does of each step what is missing.

    Parameters
    ----------
    input_path
        As `import_vectors` takes it.
    output
        A folder that all workers see, or a URL.
    recipe
        What is done.
    overwrite
        Replace what another recipe, or other rows, have left in these folders.
    storage_options, output_storage_options
        For fsspec, where `input_path` and `output` are URLs; without the second those of `input_path`, too.
    workers
        Opens the cluster to work on, once there is something to do; else it is the one that is there.

    Raises
    ------
    ShardError
        A table could not be read, or too few images fetched: nothing that follows is done.
    CuratorError
        As of the steps.
    """
    started = time.monotonic()
    asked = storage_options if output_storage_options is None else output_storage_options
    folder, given = locate(os.fspath(output), asked), os.fspath(input_path)
    there = asked if is_remote(folder) else None
    names = (POOL, PASSING, BALANCED, DUPLICATES, MARKED, CHOSEN, FETCHED, EMBEDDINGS, SHARDS)
    places = {name: join(folder, name) for name in names}
    check_places([given], [*places.values()], storage_options)
    summary, choice = ChosenSummary(folder), recipe.recipe
    how: dict[str, Any] = {"storage_options": there, "workers": workers}
    pool = import_vectors(
        given,
        places[POOL],
        **recipe.import_,
        overwrite=overwrite,
        storage_options=storage_options,
        output_storage_options=asked,
        workers=workers,
    )
    summary.steps[POOL] = pool
    if pool.failed_shards:
        name, why = next(iter(pool.failed_shards.items()))
        raise ShardError(
            f"{name}: could not be imported, and nothing was chosen: {why}. Mend it, and run again"
        )
    of_all: list[Any] = [scorer for scorer, _ in choice.of_all_rows().values()]
    every: list[Any] = [*choice.heads(), *recipe.clip_scores(), *choice.of_texts()]
    for scorers in (every, of_all):
        if scorers:
            score_output(places[POOL], scorers, **how)
    for each in choice.join:
        join_output(places[POOL], **each, **how)
    passing = filter_output(
        places[POOL],
        places[PASSING],
        where=choice.condition,
        top=choice.best(),
        at_most=choice.cap(),
        by=choice.by,
        overwrite=overwrite,
        **how,
    )
    summary.steps[PASSING], summary.rows = passing, passing.rows
    good, left, kept = next(iter(passing.passing.values())), places[PASSING], passing.kept
    summary.failed, summary.filtered = passing.rows - good, good - passing.kept
    if choice.balance is not None and kept:
        summary.steps[BALANCED] = balance_by(left, choice.balance, overwrite, workers, there)
        drawn = filter_output(
            left,
            places[BALANCED],
            where=f'"{choice.balance.get("prefix", "") + DRAWN}"',
            overwrite=overwrite,
            **how,
        )
        summary.unbalanced, left, kept = kept - drawn.kept, places[BALANCED], drawn.kept
    id_col = _id_col(places[POOL], there)
    find = choice.deduplication()
    condition = "true"
    if find is not None and kept:
        find.storage_options = there if find.storage_options is None else find.storage_options
        found = find(left).save(places[DUPLICATES], workers=workers, output_storage_options=there)
        summary.steps[DUPLICATES], summary.duplicates = found, found.removed
        if found.removed:
            table = _twins(join(places[DUPLICATES], TABLE), f"{places[MARKED]}.twins/twins.parquet", there)
            on, marked = f"{id_col}=id", places[MARKED]
            join_output(left, table, on, ["kept"], output=marked, overwrite=overwrite, **how)
            left, condition = marked, "kept IS NOT FALSE"
    chosen = filter_output(left, places[CHOSEN], where=condition, overwrite=overwrite, **how)
    summary.steps[CHOSEN], summary.kept = chosen, chosen.kept
    if chosen.kept != kept - summary.duplicates:
        raise ShardError(
            f"{places[CHOSEN]}: has {chosen.kept:,} rows, expected {kept - summary.duplicates:,}: files there, or the"
            " duplicates, are of other rows. Run again with overwrite=True (--overwrite)"
        )
    fetch = recipe.fetches(places[CHOSEN])
    if fetch is not None and chosen.kept:
        _fetched(summary, recipe, fetch, places, id_col, overwrite, there, workers)
    summary.seconds = time.monotonic() - started
    logger.info("%s", summary)
    return summary


def read_recipe(path: str | os.PathLike[str]) -> Recipe | VectorRecipe:
    """From a YAML file: the second where it begins with ``import``.

    Raises
    ------
    ConfigError
        It cannot be read, or has other names.
    """
    import yaml

    try:
        given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        given = None  # it is said below what is wrong with it
    return VectorRecipe.of(given) if isinstance(given, Mapping) and IMPORT in given else Recipe.read(path)


def _fetched(
    summary: ChosenSummary,
    recipe: VectorRecipe,
    fetch: FirstFetch,
    places: Mapping[str, str],
    id_col: str,
    overwrite: bool,
    options: Options,
    workers: OpenWorkers,
) -> None:
    """Fetch the images of the chosen rows, give these their vectors again, and export them; counted in `summary`."""
    images = fetch(places[FETCHED], _nothing, output_storage_options=options, workers=workers)
    back = return_vectors(
        places[CHOSEN],
        places[FETCHED],
        places[EMBEDDINGS],
        on=id_col if id_col != "key" else "table_key=key",
        overwrite=overwrite,
        storage_options=options,
        workers=workers,
    )
    summary.steps |= {FETCHED: images, EMBEDDINGS: back}
    if back.failed_shards:
        name, why = next(iter(back.failed_shards.items()))
        raise ShardError(f"{name}: has no vectors, and nothing was exported: {why}. Mend it, and run again")
    left_out = {
        "without a vector": summary.failed,
        "filtered out": summary.filtered,
        "not drawn by the balance": summary.unbalanced,
        "with a better twin": summary.duplicates,
        "not fetched": images.failed,
    }
    given = {IMPORT: dict(recipe.import_), "fetch": dict(recipe.fetch or {}), **recipe.choosing}
    exported = export_output(
        places[EMBEDDINGS],
        places[SHARDS],
        recipe.recipe.options(overwrite),
        storage_options=options,
        workers=workers,
        making=Making(given, summary.rows, left_out),
    )
    summary.steps[SHARDS] = exported
    summary.unfetched, summary.kept = images.failed, exported.kept
    summary.failed += images.failed
    summary.missing = exported.missing - (
        images.failed - images.reasons[REMOVED]
    )  # no rows are made of those
    summary.filtered += exported.filtered
    summary.complete = exported.complete and back.complete


def _nothing(folder: Path) -> None:
    """What is looked at ahead of a fetch, where nothing that follows asks for columns."""


def _twins(duplicates: str, path: str, options: Options) -> str:
    """Which rows have a better twin, as a table that is written where it is another than before alone.

    Each call writes its table of duplicates anew, and what is made of a table that was written since is made anew, too.
    """
    with open_parquet(duplicates, options) as file:
        found = file.read(["id", URL_COLUMN, "kept"]).replace_schema_metadata()
    buffer = pa.BufferOutputStream()
    pq.write_table(found, buffer)
    data = buffer.getvalue().to_pybytes()
    if not exists(path, options) or read_bytes(path, options) != data:
        put(path, data, options)
    return path


def _id_col(place: str, options: Options) -> str:
    """The column of the keys of an output."""
    for name in output_files(place, options)[:1]:
        record = read_record(join(place, name), options)
        if record is not None and record.id_col:
            return record.id_col
    return "key"
