"""The columns that a recipe wants of a dataset, and whether all it says can be done: before hours go into images."""

from __future__ import annotations

from collections.abc import Sequence

from curator_dask.balancing.given import columns_of, needed_column
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, NoColumnError
from curator_dask.frames.parquet import read_footer
from curator_dask.image.statistics import ImageStatistics
from curator_dask.outputs.failed import output_files
from curator_dask.recipe import Recipe
from curator_dask.storage import Options, join
from curator_dask.webdataset.shards import ShardSet


def with_columns(dataset: ImageTextPairDataset, recipe: Recipe) -> ImageTextPairDataset:
    """The dataset with all that the recipe wants to know of its images."""
    if recipe.statistics:
        dataset = ImageStatistics(list(recipe.statistics), prefix=recipe.prefix)(dataset)
    for model in recipe.models():
        dataset = model(dataset)
    if recipe.model is not None:
        dataset = recipe.embedder()(dataset)
    for head in recipe.heads():
        dataset = head(dataset)
    for table in recipe.joins():
        dataset = table(dataset)
    if (buckets := recipe.bucketed()) is not None:
        dataset = buckets(dataset)
    for texts in recipe.of_texts():  # last: their captions may be a table's
        dataset = texts(dataset)
    return dataset


def check_steps(found: ShardSet, recipe: Recipe, storage_options: Options) -> None:
    """Raise where steps cannot be done of such shards, before anything is computed."""
    if recipe.statistics:
        measure = ImageStatistics(list(recipe.statistics), prefix=recipe.prefix)
        measure.check(found, recipe.id_col, captions=recipe.captions, storage_options=storage_options)
    for head in (*recipe.heads(), *(each for each, _ in recipe.of_all_rows().values())):
        head.look()
    for table in recipe.joins():
        table.look()
    made = [name for model in recipe.models() for name in model.columns]
    for texts in recipe.of_texts():
        texts.check(
            found,
            recipe.id_col,
            captions=recipe.captions,
            further=[*made, *(name for table in recipe.joins() for name in table.names)],
            storage_options=storage_options,
        )
    for model in recipe.models():
        model.check(found, recipe.id_col, storage_options, captions=recipe.captions)


def check_columns(dataset: ImageTextPairDataset, recipe: Recipe) -> None:
    """Raise ConfigError where the rows will lack what they are filtered by, before anything is embedded."""
    of_all = recipe.of_all_rows()
    known = {each.pred_column: 1 for each, text in of_all.values() if text in dataset.metadata.columns}
    if known:
        dataset = dataset.with_metadata(dataset.metadata.assign(**known))
    if recipe.asked() is not None:
        try:
            dataset.filter(recipe.condition)
        except NoColumnError:
            raise
        except ConfigError:
            pass  # types may be others on GPUs than in the files, which decide
    options = recipe.options(overwrite=False)
    best, cap, columns = recipe.best(), recipe.cap(), list(dataset.metadata.columns)
    named = {"top": best and best[0], "at_most": cap and cap[0], "by": recipe.by}
    named |= {"bucket_size": options.size_column, **{name: text for name, (_, text) in of_all.items()}}
    if recipe.balance is not None:
        named["balance"] = needed_column(recipe.balance)
        _refuse_balance(recipe, columns)
    for name, column in named.items():
        if column is not None and column not in columns:
            raise ConfigError(f"{name}: there is no column {column!r}. The rows will have {columns}")
    parted = [each.by for each in (options.sharing, options.grouping) if each is not None]
    for by in parted:
        if by is not None and not by.columns(columns):
            raise ConfigError(
                f"export: {by.option}: there is no column {by.text!r}. The rows will have {columns}"
            )


def check_balance_columns(place: str, recipe: Recipe, options: Options) -> None:
    """Raise ConfigError where columns of a balance would take the place of the dataset's own in files of before."""
    for path in [join(place, name) for name in output_files(place, options)][:1]:
        footer = read_footer(path, options)
        made = {} if footer.record is None else footer.record.scores
        _refuse_balance(recipe, [name for name in footer.columns if name not in made])


def _refuse_balance(recipe: Recipe, columns: Sequence[str]) -> None:
    taken = [name for name in columns if name not in (recipe.clusters or {})]
    if own := [name for name in columns_of(recipe.balance) if name in taken]:
        raise ConfigError(
            f"balance: the dataset has columns of its own named {own}, which would be lost: give a prefix (balance:"
            " {prefix: ...})"
        )
