"""``curate``: all steps from shards to the shards that are left."""

from __future__ import annotations

from typing import Annotated

import typer

from curator_dask.cli.options import (
    EXIT_SHARD,
    Cluster,
    ClusterType,
    ImagesPath,
    JsonFile,
    SchedulerAddress,
    SchedulerFile,
    StorageOptions,
    Workers,
    json_object,
    summary_to,
    told_plainly,
    workers_of,
)


def curate(
    input_path: ImagesPath,
    output: Annotated[
        str, typer.Argument(metavar="OUTPUT", help="Folder for all that is made, seen by all workers.")
    ],
    config: Annotated[
        str,
        typer.Option(
            metavar="FILE.yaml",
            help="What is done: model, captions, statistics, aesthetic, nsfw, where, duplicates, export.",
        ),
    ],
    overwrite: Annotated[bool, typer.Option(help="Replace what another config has left there.")] = False,
    cluster: Cluster = ClusterType.auto,
    scheduler_address: SchedulerAddress = None,
    scheduler_file: SchedulerFile = None,
    workers: Workers = None,
    storage_options: StorageOptions = None,
    json_file: JsonFile = None,
) -> None:
    """Embed, measure, filter, leave out duplicates, and write the shards that are left.

    OUTPUT gets the folders embeddings, passing, duplicates and shards. The same command again does what is missing.

    Exit code 0: done. 1: a shard could not be read, or not all of it, or not written; nothing is left. 2: wrong usage.
    """
    options = json_object(storage_options, "--storage-options") or None

    from curator_dask.cluster.client import load_ahead
    from curator_dask.curation import Recipe
    from curator_dask.curation import curate as do
    from curator_dask.rows.image_files import captions_of
    from curator_dask.webdataset.finding import find_shards

    interrupted = "what was finished is kept, the same command goes on from there"
    with summary_to(json_file) as put, told_plainly(interrupted):
        recipe = Recipe.read(config)
        # What is wrong should not cost the start of a cluster.
        captions_of(
            recipe.captions, find_shards(input_path, options, images=recipe.images), recipe.id_col, options
        )
        if not (scheduler_address or scheduler_file):
            load_ahead(cluster.value, workers)
        with workers_of(cluster, scheduler_address, scheduler_file, workers):
            summary = do(input_path, output, recipe, overwrite=overwrite, storage_options=options)
        put(summary.to_dict())
    if not summary.complete or not summary.kept:
        raise typer.Exit(EXIT_SHARD)
