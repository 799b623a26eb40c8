"""``remove``: samples that must go are taken out of all that was made of them."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from curator_dask.cli.options import (
    EXIT_SHARD,
    Cluster,
    ClusterType,
    JsonFile,
    SchedulerAddress,
    SchedulerFile,
    Workers,
    json_object,
    summary_to,
    told_plainly,
    workers_of,
)


def remove(
    folders: Annotated[
        list[str],
        typer.Argument(
            metavar="FOLDER...",
            help="All that may hold the samples: what curate, fetch, embed, filter, export and dedup wrote; directories"
            " or URLs.",
        ),
    ],
    listed: Annotated[
        str | None,
        typer.Option(
            "--list",
            metavar="TABLE",
            help="Of what is to go: .txt with a value a line, CSV, TSV, JSONL, Parquet or .npy.",
            show_default=False,
        ),
    ] = None,
    on: Annotated[
        str,
        typer.Option(
            metavar="COLUMN[=TABLE_COLUMN]",
            help="By what rows are found, and what it is called in the list: url, key, sha256, url=link.",
        ),
    ] = "key",
    within: Annotated[
        int | None,
        typer.Option(
            metavar="BITS",
            min=0,
            help="Of perceptual hashes (--on pdq): rows whose hash differs from one of the list's in so many bits.",
            show_default=False,
        ),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="CONDITION", help="Rows that pass it go, too: as behind SQL's WHERE.", show_default=False
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Count, and write nothing.")] = False,
    not_found: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Gets the values of the list that no row has, a line each.",
            show_default=False,
        ),
    ] = None,
    rewrite_shards: Annotated[
        bool, typer.Option(help="Rewrite tars of FOLDER, too, that neither fetch nor export wrote.")
    ] = False,
    id_col: Annotated[str, typer.Option(help="Of these: the column of the keys in the Parquet.")] = "key",
    cluster: Cluster = ClusterType.cpu,
    scheduler_address: SchedulerAddress = None,
    scheduler_file: SchedulerFile = None,
    workers: Workers = None,
    storage_options: Annotated[
        str | None,
        typer.Option(help="JSON object for fsspec, where FOLDER is a URL.", show_default=False),
    ] = None,
    list_storage_options: Annotated[
        str | None, typer.Option(help="The same for the list, where that differs.", show_default=False)
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Take samples out of folders, in place, and note by digests that they must not come back.

    A row with the same url or sha256 as one that is found is the same image, and goes, too. Only files and tars are
    rewritten that hold such samples, each whole or not at all; other members byte for byte. The same command again
    finishes what was interrupted; so does one without --list and --where.

    Exit code 0: done, also where nothing was found. 1: a file or tar could not be rewritten. 2: wrong usage.
    """
    options = json_object(storage_options, "--storage-options") or None
    list_options = json_object(list_storage_options, "--list-storage-options") or None

    from curator_dask.removing import remove_samples

    interrupted = "what was rewritten is whole, the same command goes on from there"
    with summary_to(json_file) as put, told_plainly(interrupted):
        summary = remove_samples(
            folders,
            listed,
            on,
            within=within,
            where=where,
            rewrite_shards=rewrite_shards,
            id_col=id_col,
            not_found=not_found,
            dry_run=dry_run,
            storage_options=options,
            list_storage_options=list_options,
            workers=partial(workers_of, cluster, scheduler_address, scheduler_file, workers),
        )
        put(summary.to_dict())
    if not summary.complete:
        raise typer.Exit(EXIT_SHARD)
