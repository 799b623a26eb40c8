"""From shards to the shards that are trained on: embed, measure, filter, balance, leave out duplicates, export.

Each step is that of its own command, and writes to a folder of its own below the output, so that each can be looked at,
and a second run does of each what is missing.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from curator_dask.balancing.choosing import DRAWN
from curator_dask.balancing.given import balance_by, columns_of
from curator_dask.cluster.setup import OpenWorkers, at_work
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.dedup.work import Work
from curator_dask.errors import ConfigError, NoMatchError, ShardError
from curator_dask.fetching.place import SUFFIX
from curator_dask.frames.names import EMBEDDING_COLUMN
from curator_dask.image.classifiers import score_output
from curator_dask.models.sources import Sources
from curator_dask.outputs.card import Making
from curator_dask.outputs.curated import Choice, CurationSummary, check_places, remove_gone
from curator_dask.outputs.curated_names import (
    BALANCED,
    DUPLICATES,
    EMBEDDINGS,
    FETCHED,
    LINKS,
    PASSING,
    SHARDS,
)
from curator_dask.outputs.exporting import export_output
from curator_dask.outputs.failed import output_files
from curator_dask.outputs.filtering import FilterSummary, filter_output
from curator_dask.outputs.finished import FinishedCommand, repository_of
from curator_dask.outputs.placing import locate
from curator_dask.outputs.removed import check_removed
from curator_dask.outputs.taken_down import REMOVED
from curator_dask.recipe import Recipe
from curator_dask.recipe_steps import check_balance_columns, check_columns, check_steps, with_columns
from curator_dask.rows.image_files import captions_of
from curator_dask.rows.reading import choose_source
from curator_dask.runs.summary import SaveSummary
from curator_dask.settings import check_local
from curator_dask.storage import Options, absolute, exists, is_remote, join
from curator_dask.tables import TableColumns
from curator_dask.webdataset.finding import find_shards
from curator_dask.webdataset.shards import ShardSet

__all__ = ["Recipe", "curate"]

logger = logging.getLogger("curator_dask")


def curate(
    input_path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    recipe: Recipe,
    *,
    overwrite: bool = False,
    append: bool = False,
    work: str | os.PathLike[str] | None = None,
    storage_options: Options = None,
    output_storage_options: Options = None,
    workers: OpenWorkers = nullcontext,
    device: str | None = None,
    ahead: Callable[[], object] = lambda: None,
) -> CurationSummary:
    """Do what a recipe says: from shards, or a table of URLs, to the shards that are left.

    Below `output` are ``embeddings`` (a row a sample, with vectors, scores and statistics), ``passing`` (the rows that
    pass the condition), ``balanced`` (of these those that were drawn, where it is balanced), ``duplicates``
    (which of these have a better twin) and ``shards``. The same call again does of each step what is missing.

    Parameters
    ----------
    input_path
        Shards, as `ImageTextPairDataset.from_webdataset` takes them, or a folder of image files without tars. Where the
        recipe says what is to be fetched: the folder or URL that the fetched shards go to.
    output
        A folder that all workers see, or a URL.
    recipe
        What is done.
    overwrite
        Replace the shards of another recipe or of other rows. Without it such a call ends before anything is replaced;
        where shards or rows of a table are new, before these are fetched or embedded.
    append
        The dataset has grown: the tars that are there stay as they are, and what is new goes into tars behind them. A
        new row near an earlier one goes, and of new rows that are near one another the best stays, by the same recipe.
        ``top``, ``at_most`` and ``balance`` depend on all rows together, and are refused.
    work
        Where `recipe` asks for duplicates: the folder, which all workers see, or URL of what lies between vectors and
        duplicates, from which an interrupted call goes on. None: beside the others.
    storage_options, output_storage_options
        For fsspec, where `input_path` and `output` (or `work`) are URLs; without the second those of `input_path`, too.
    workers
        Opens the cluster to work on, once there is something to do; else it is the one that is there.
    device
        Of the workers that `workers` starts on this machine: then it may be known without them that ``embeddings`` is
        finished (`curator_dask.outputs.finished`). None: they are asked.
    ahead
        Called before the cluster is opened to embed on it.

    Raises
    ------
    NoMatchError
        A table that was joined has none of the rows. What was embedded stays, and nothing is exported.
    CuratorError
        As of the steps.
    """
    started = time.monotonic()
    asked = there = storage_options if output_storage_options is None else output_storage_options
    if isinstance(output, Path):  # to which a URL has one slash
        check_local(output)
    folder = locate(os.fspath(output), there)
    there = there if is_remote(folder) else None
    places = {name: join(folder, name) for name in (EMBEDDINGS, PASSING, BALANCED, DUPLICATES, SHARDS)}
    summary = CurationSummary(folder)
    _check_append(recipe, append, overwrite)
    find, given = recipe.deduplication(), os.fspath(input_path)
    between = None if find is None else Work.of(places[DUPLICATES], work, asked, [*places.values()])
    choice = Choice(folder, recipe.choice(), overwrite, append, there)
    choice.check()
    if (groups := recipe.options(overwrite).split_groups) and absolute(groups, there) != places[DUPLICATES]:
        check_removed(absolute(groups, there), there)
    which = {name: getattr(recipe, name) for name in ("images", "image_column", "id_col", "each_image")}
    fetch = recipe.fetches()
    read = [given] if fetch is None else [given, f"{given.rstrip('/')}{SUFFIX}"]
    chosen = [between.folder] if between is not None and between.is_given else []
    check_places(read, [*places.values(), *chosen], storage_options)
    if fetch is not None:
        links = fetch.make_table(given, append=append, output_options=storage_options, workers=workers)
        summary.steps |= {} if links is None else {LINKS: links}
        summary.steps[FETCHED] = fetch(
            given,
            lambda folder: _look_ahead(folder, recipe, workers, choice),
            append=append,
            output_storage_options=storage_options,
            workers=workers,
        )
        fetched = summary.steps[FETCHED]
        summary.unfetched = fetched.failed - fetched.reasons[REMOVED]  # no rows are made of those
    found = find_shards(input_path, storage_options, **which)
    choice.check_new(shard.name for shard in found)
    of_images = captions_of(recipe.captions, found, recipe.id_col, storage_options)
    place = places[EMBEDDINGS]
    if fetch is not None and overwrite:
        remove_gone(place, found, there)
    before = None
    if device is not None and (sources := recipe.sources()) is not None:
        before = _before(found, place, recipe, sources, device, overwrite, storage_options, there)
    saved = None if before is None else before.summary()
    if saved is None:
        check_steps(found, recipe, storage_options)
        if recipe.model is not None or recipe.models():
            ahead()
        with at_work(workers) as client:
            dataset = ImageTextPairDataset.from_shards(
                found, recipe.id_col, **of_images, storage_options=storage_options
            )
            wanted = with_columns(dataset, recipe)
            if not exists(place, there):  # else there may be columns that a command has added
                check_columns(wanted, recipe)
            saved = wanted.save_metadata(place, overwrite=overwrite, storage_options=there)
            if before is not None:
                before.remember(saved, repository_of(before.sources, recipe.model, client))
    summary.steps[EMBEDDINGS] = saved
    if saved.failed_shards:
        name, why = next(iter(saved.failed_shards.items()))
        raise ShardError(
            f"{name}: its rows could not be read, and nothing was filtered: {why}. Mend it, or leave it out, and run"
            " again"
        )
    if of_all := [scorer for scorer, _ in recipe.of_all_rows().values()]:
        _all_written(EMBEDDINGS, score_output(place, of_all, storage_options=there, workers=workers))
    _count_joined(summary, recipe.joins(), place, there)
    if recipe.balance is not None:
        check_balance_columns(place, recipe, there)
    choice.check_rows(output_files(place, there))
    # The files between are this recipe's alone: what an earlier one has left there is replaced, unless its tars stay.
    choice.clear(PASSING, output_files(place, there), columns_of(recipe.balance))
    passing = filter_output(
        place,
        places[PASSING],
        where=recipe.condition,
        top=recipe.best(),
        at_most=recipe.cap(),
        by=recipe.by,
        overwrite=choice.replaces,
        storage_options=there,
        workers=workers,
    )
    _all_written(PASSING, passing.output)
    summary.steps[PASSING] = passing
    good = next(iter(passing.passing.values())) if recipe.knows_failed else passing.rows
    summary.rows, summary.failed = passing.rows, passing.rows - good
    summary.filtered = good - passing.kept
    left = places[PASSING]
    if recipe.balance is not None and passing.kept:
        left = places[BALANCED]
        balanced = balance_by(places[PASSING], recipe.balance, choice.replaces, workers, there)
        _all_written(PASSING, balanced.output)
        summary.steps[BALANCED] = balanced
        name = recipe.balance.get("prefix", "") + DRAWN
        choice.clear(BALANCED, output_files(places[PASSING], there), columns_of(recipe.balance))
        drawn = filter_output(
            places[PASSING],
            left,
            where=f'"{name}"',
            overwrite=choice.replaces,
            storage_options=there,
            workers=workers,
        )
        _all_written(BALANCED, drawn.output)
        summary.unbalanced = passing.kept - drawn.kept
    else:
        choice.clear(BALANCED)
    if find is not None:
        find.storage_options = there if find.storage_options is None else find.storage_options
        find.exported = places[SHARDS] if choice.adds else find.exported
    without = None
    if find is not None and passing.kept > summary.unbalanced:
        summary.steps[DUPLICATES] = find(left).save(
            places[DUPLICATES], workers=workers, work=work, output_storage_options=asked
        )
        summary.duplicates, without = summary.steps[DUPLICATES].removed, places[DUPLICATES]
    else:
        choice.clear(DUPLICATES)
    choice.write()
    exported = export_output(
        left,
        places[SHARDS],
        replace(recipe.options(overwrite, without), append=append),
        id_col=recipe.id_col,
        storage_options=there,
        shard_storage_options=storage_options or {},
        workers=workers,
        making=_making(summary, recipe, passing),
    )
    summary.steps[SHARDS] = exported
    summary.missing, summary.kept = exported.missing, exported.kept + exported.earlier
    summary.earlier, summary.stay = exported.earlier, max(0, exported.earlier_samples - exported.earlier)
    choice.write(summary.stay)
    summary.complete = saved.complete and exported.complete
    summary.seconds = time.monotonic() - started
    logger.info("%s", summary)
    return summary


def _look_ahead(folder: Path, recipe: Recipe, workers: OpenWorkers, choice: Choice) -> None:
    """`check_steps` and `check_columns` of shards that are yet to be fetched, by one without rows."""
    choice.check_new(None)
    found = find_shards(str(folder), None, image_column=recipe.image_column)
    check_steps(found, recipe, None)
    with at_work(workers):
        dataset = ImageTextPairDataset.from_shards(found, recipe.id_col, quiet=True)
        check_columns(with_columns(dataset, recipe), recipe)


def _check_append(recipe: Recipe, append: bool, overwrite: bool) -> None:
    """Raise ConfigError where tars cannot be added to."""
    given = {"top": recipe.top, "at_most": recipe.at_most, "balance": recipe.balance}
    if append and overwrite:
        raise ConfigError(
            "append and overwrite: one leaves the tars that are there, the other replaces them: give one"
        )
    replace(recipe.options(overwrite), append=append)  # says what cannot be
    if append and (named := [name for name, value in given.items() if value is not None]):
        raise ConfigError(
            f"append: {' and '.join(named)} would choose among all rows anew, earlier ones too, whose tars stay as they"
            " are. Leave it out, or write to another path"
        )


def _making(summary: CurationSummary, recipe: Recipe, passing: FilterSummary) -> Making:
    """What came before the export, for a card."""
    left_out = {
        "with an image that cannot be used": summary.failed,
        "filtered out": summary.filtered,
        "not drawn by the balance": summary.unbalanced,
        "with a better twin": summary.duplicates,
    }
    return Making(recipe.given, summary.rows, left_out, passing.passing, passing.unknown)


def _all_written(name: str, saved: SaveSummary | None) -> None:
    """Raise ShardError where a file of a step was not written: those of an earlier run may lie in its place."""
    if saved is not None and saved.failed_shards:
        shard, why = next(iter(saved.failed_shards.items()))
        raise ShardError(
            f"{shard}: could not be written to {name}, and nothing was exported: {why}. Mend it, and run again"
        )


def _before(
    found: ShardSet,
    place: str,
    recipe: Recipe,
    sources: Sources,
    device: str,
    overwrite: bool,
    options: Options,
    output_options: Options,
) -> FinishedCommand:
    """What is about to be embedded, to be compared with what was."""
    later = ["same_captions", "neg_clip_loss", "where", "preset", "top", "at_most", "by", "balance"]
    later += ["duplicates", "export", "fetch"]
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
        output_options,
    )


def _count_joined(
    summary: CurationSummary, tables: Sequence[TableColumns], place: str, options: Options
) -> None:
    """Count the rows that tables have; raise NoMatchError where one has none, but for a list that only marks."""
    for number, table in enumerate(tables):
        if any(table.on in later.names for later in tables[number + 1 :]):
            continue  # what the rows were found by is there no more
        found = table.found_in(place, options)
        summary.joined.append(found)
        if not found.found and found.without and not table.marks_alone:
            raise NoMatchError(
                f"join: {found.table}: has none of the rows: {found.examples_of_both}. Mend `join` in the recipe, or"
                f" leave the table out, and run again; nothing was filtered or exported, {place} stays"
            )
