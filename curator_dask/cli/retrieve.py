"""``retrieve``: the rows of a pool that are nearest to each row of a curated set."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from curator_dask.cli.options import (
    EXIT_SHARD,
    Cluster,
    ClusterType,
    JsonFile,
    OutputOptions,
    SchedulerAddress,
    SchedulerFile,
    Workers,
    json_object,
    summary_to,
    told_plainly,
    workers_of,
)
from curator_dask.frames.names import EMBEDDING_COLUMN


def retrieve(
    pool: Annotated[
        str, typer.Argument(metavar="POOL", help="Directory or URL that embed wrote to: what is searched.")
    ],
    queries: Annotated[
        str, typer.Argument(metavar="QUERIES", help="The same of what is wanted, by the same model.")
    ],
    output: Annotated[
        str, typer.Argument(metavar="OUTPUT", help="Folder or URL for the rows of POOL that are found.")
    ],
    top: Annotated[int, typer.Option(min=1, help="Rows of each query, at most.")] = 4,
    similarity: Annotated[float, typer.Option(min=-1, max=1, help="Cosine that they have at least.")] = -1.0,
    pairs: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Write a Parquet file with a row for each query and row: their keys, shards, rank and similarity.",
            show_default=False,
        ),
    ] = None,
    column: Annotated[str, typer.Option(help="Column of the vectors.")] = EMBEDDING_COLUMN,
    queries_column: Annotated[
        str | None, typer.Option(help="The same of QUERIES, where that differs.", show_default=False)
    ] = None,
    check: Annotated[bool, typer.Option(help="Refuse vectors that two models made.")] = True,
    overwrite: Annotated[
        bool, typer.Option(help="Replace files in OUTPUT, and --pairs, that this did not make.")
    ] = False,
    work: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder that all workers see, or URL, for what lies between.  [default: OUTPUT.work]",
            show_default=False,
        ),
    ] = None,
    cluster: Cluster = ClusterType.auto,
    scheduler_address: SchedulerAddress = None,
    scheduler_file: SchedulerFile = None,
    workers: Workers = None,
    storage_options: Annotated[
        str | None, typer.Option(help="JSON object for fsspec, where POOL is a URL.", show_default=False)
    ] = None,
    queries_storage_options: Annotated[
        str | None, typer.Option(help="The same for QUERIES, where that differs.", show_default=False)
    ] = None,
    output_storage_options: OutputOptions = None,
    json_file: JsonFile = None,
) -> None:
    """Write the rows of a pool that are nearest to each image of a curated set, each once, with all their columns.

    So DINOv2's dataset was made. Every vector is compared with every query. `export OUTPUT` then writes the images.

    Exit code 0: done. 1: a file could not be read. 2: wrong usage, vectors of two models among it.
    """
    options = json_object(storage_options, "--storage-options") or None
    output_options = json_object(output_storage_options, "--output-storage-options") or None
    query_options = json_object(queries_storage_options, "--queries-storage-options") or None

    from curator_dask.retrieval import retrieve as find

    interrupted = "what was compared is kept, the same command goes on from there"
    with summary_to(json_file) as put, told_plainly(interrupted):
        summary = find(
            pool,
            queries,
            output,
            top=top,
            similarity=similarity,
            pairs=pairs,
            column=column,
            queries_column=queries_column,
            check=check,
            overwrite=overwrite,
            work=work,
            storage_options=options,
            queries_storage_options=query_options,
            output_storage_options=output_options,
            workers=partial(workers_of, cluster, scheduler_address, scheduler_file, workers),
        )
        put(summary.to_dict())
    if not summary.complete:
        raise typer.Exit(EXIT_SHARD)
