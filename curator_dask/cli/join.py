"""``join``: columns of a user's own table are added to an output."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from curator_dask.cli.options import (
    EXIT_SHARD,
    Cluster,
    ClusterType,
    Embeddings,
    EmbeddingsOptions,
    JsonFile,
    OutputOptions,
    SchedulerAddress,
    SchedulerFile,
    Workers,
    json_object,
    names_in,
    summary_to,
    told_plainly,
    workers_of,
)


def join(
    embeddings: Embeddings,
    table: Annotated[
        str,
        typer.Argument(
            metavar="TABLE",
            help="Parquet (or a folder or glob of it), CSV, TSV or JSONL; with --mark also .npy, or .txt with a value"
            " a line.",
        ),
    ],
    output: Annotated[
        str | None,
        typer.Argument(
            metavar="OUTPUT", help="Where the files go with their columns.  [default: in their place]"
        ),
    ] = None,
    on: Annotated[
        str,
        typer.Option(
            metavar="COLUMN[=TABLE_COLUMN]",
            help="By what rows find theirs, and what it is called in the table: key, url, sha256, key=id.",
        ),
    ] = "key",
    columns: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A,B",
            help="Of the table; several times, too.  [default: all; with --mark none]",
            show_default=False,
        ),
    ] = None,
    mark: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="A column that says whether the table has the row.", show_default=False
        ),
    ] = None,
    within: Annotated[
        int | None,
        typer.Option(
            metavar="BITS",
            min=0,
            help="With --mark, of perceptual hashes (pdq, phash, dhash): a row is found where its hash differs from one"
            " of the table's in so many bits at most; NAME_distance says in how many.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace columns that are of no or another table.")] = False,
    cluster: Cluster = ClusterType.cpu,
    scheduler_address: SchedulerAddress = None,
    scheduler_file: SchedulerFile = None,
    workers: Workers = None,
    storage_options: EmbeddingsOptions = None,
    table_storage_options: Annotated[
        str | None, typer.Option(help="The same for TABLE, where that differs.", show_default=False)
    ] = None,
    output_storage_options: OutputOptions = None,
    json_file: JsonFile = None,
) -> None:
    """Add columns of a table of yours to an output: captions, scores, labels, or a mark for rows that it lists.

    Rows without a match have null, and are not marked. The same command again does only what is missing, and adds the
    columns anew where the table has changed. No tar is opened.

    Exit code 0: done, also where a list that only marks names none of the rows. 1: a file could not be read, or the
    table has none of the rows. 2: wrong usage.
    """
    options = json_object(storage_options, "--storage-options") or None
    table_options = json_object(table_storage_options, "--table-storage-options") or None
    output_options = json_object(output_storage_options, "--output-storage-options") or None
    names = names_in(columns, "--columns")

    from curator_dask.tables import join_output

    interrupted = "files that have their columns are kept, the same command goes on from there"
    with summary_to(json_file) as put, told_plainly(interrupted):
        summary = join_output(
            embeddings,
            table,
            on,
            names,
            mark,
            output,
            within=within,
            overwrite=overwrite,
            storage_options=options,
            table_storage_options=table_options,
            output_storage_options=output_options,
            workers=partial(workers_of, cluster, scheduler_address, scheduler_file, workers),
        )
        put(summary.to_dict())
    if not summary.complete:
        raise typer.Exit(EXIT_SHARD)
