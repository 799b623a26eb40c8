"""``curate``: all steps from shards to the shards that are left."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from curator_dask.cli.options import (
    EXIT_SHARD,
    Cluster,
    ClusterType,
    ImagesPath,
    JsonFile,
    OutputOptions,
    SchedulerAddress,
    SchedulerFile,
    StorageOptions,
    Workers,
    json_object,
    summary_to,
    told_plainly,
    workers_when_needed,
)


def curate(
    input_path: ImagesPath,
    output: Annotated[
        str,
        typer.Argument(metavar="OUTPUT", help="Folder, seen by all workers, or URL for all that is made."),
    ],
    config: Annotated[
        str,
        typer.Option(
            metavar="FILE.yaml",
            help="What is done: fetch, model, model_options, id_col, images, image_column, each_image, captions,"
            " statistics, prefix, buckets, text_statistics, same_captions, classify, caption, detect, ask, aesthetic,"
            " nsfw, neg_clip_loss, near, near_norm, clusters, join, where, preset, top or at_most (and by), balance,"
            " duplicates, export. Or, for vectors of others: import, clip_score, and of these what needs no image.",
        ),
    ],
    overwrite: Annotated[
        bool, typer.Option(help="Replace the shards of another config, or of other rows.")
    ] = False,
    append: Annotated[
        bool,
        typer.Option(
            "--append",
            help="INPUT has grown: shards that are there stay as they are, what is new goes into shards behind them.",
        ),
    ] = False,
    work: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder that all workers see, or URL, for what lies between vectors and duplicates.  [default:"
            " OUTPUT/duplicates.work]",
            show_default=False,
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="PAGE", help="Write a page of it in the end, as `report` does: report.html."),
    ] = None,
    cluster: Cluster = ClusterType.auto,
    scheduler_address: SchedulerAddress = None,
    scheduler_file: SchedulerFile = None,
    workers: Workers = None,
    storage_options: StorageOptions = None,
    output_storage_options: OutputOptions = None,
    json_file: JsonFile = None,
) -> None:
    """Fetch, embed, measure, filter, balance, leave out duplicates, and write the shards that are left.

    OUTPUT gets the folders embeddings, passing, balanced, duplicates and shards. The same command again does what is
    missing. Where the config begins with fetch, INPUT is the folder that the fetched shards go to. Where it begins with
    import, INPUT are tables and vectors of others, and OUTPUT gets pool, chosen, and what is fetched of these.

    A config, of which each line may be left out; docs/curation.md has all names:

    \b
      fetch: {table: urls.parquet, url_column: URL, caption_column: TEXT}
      model: vit_large_patch14_clip_quickgelu_224.openai
      statistics: [blurriness]
      where: least(width, height) >= 256 and blurriness > 10
      duplicates: {eps: 0.07}
      export: {shuffle: 7, splits: {val: 0.01}}

    Exit code 0: done. 1: a shard could not be read, or not all of it, or not written; nothing is left. 2: wrong usage.
    """  # noqa: D301 (the backspace keeps the lines apart)
    options = json_object(storage_options, "--storage-options") or None
    output_options = json_object(output_storage_options, "--output-storage-options") or None

    from curator_dask.cluster.client import load_ahead
    from curator_dask.cluster.device import device_of_new_workers
    from curator_dask.curation import curate as do
    from curator_dask.curation_of_vectors import POOL, VectorRecipe, curate_vectors, read_recipe
    from curator_dask.outputs.curated_names import EMBEDDINGS
    from curator_dask.report.making import check_page, make_report
    from curator_dask.storage import is_remote, join

    interrupted = "what was finished is kept, the same command goes on from there"
    elsewhere = bool(scheduler_address or scheduler_file)  # where files of a model are others
    with (
        summary_to(json_file) as put,
        told_plainly(interrupted),
        workers_when_needed(cluster, scheduler_address, scheduler_file, workers) as start,
    ):
        if report is not None:
            check_page(report)
        recipe = read_recipe(config)
        if isinstance(recipe, VectorRecipe):
            if append or work is not None:
                raise typer.BadParameter(
                    "does not go with a config that begins with import", param_hint="--append, --work"
                )
            chosen = curate_vectors(
                input_path,
                output,
                recipe,
                overwrite=overwrite,
                storage_options=options,
                output_storage_options=output_options,
                workers=start,
            )
            put(chosen.to_dict())
            if report is not None:
                stored = (is_remote(output) and output_options) or options
                make_report(join(output, POOL), report, storage_options=stored)
            if not chosen.complete or not chosen.kept:
                raise typer.Exit(EXIT_SHARD)
            return
        summary = do(
            input_path,
            output,
            recipe,
            overwrite=overwrite,
            append=append,
            work=work,
            storage_options=options,
            output_storage_options=output_options,
            workers=start,
            device=None if elsewhere else device_of_new_workers(cluster.value)[0],
            ahead=(lambda: None) if elsewhere else partial(load_ahead, cluster.value, workers),
        )
        put(summary.to_dict())
        if report is not None:
            make_report(
                output,
                report,
                run=summary.steps[EMBEDDINGS].to_dict(),
                storage_options=(is_remote(output) and output_options) or options,
            )
    if not summary.complete or not summary.kept:
        raise typer.Exit(EXIT_SHARD)
