"""``report``: a page of what a run has made."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from curator_dask.cli.options import (
    Cluster,
    ClusterType,
    Embeddings,
    EmbeddingsOptions,
    JsonFile,
    SchedulerAddress,
    SchedulerFile,
    Workers,
    json_object,
    summary_to,
    told_plainly,
    workers_of,
)
from curator_dask.settings import check_local

_FEW = 32  # files are looked at without a cluster


class Program(StrEnum):
    """What explores embeddings, too."""

    atlas = "embedding-atlas"


def report(
    embeddings: Embeddings,
    page: Annotated[
        Path,
        typer.Argument(
            metavar="PAGE", help="The file to write, such as report.html; with --open-in, rows.parquet."
        ),
    ],
    duplicates: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="What dedup wrote: groups of duplicates.", show_default=False),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(help="Of the vectors.  [default: image_embedding, or the first]", show_default=False),
    ] = None,
    sample: Annotated[
        int, typer.Option(min=1, help="Rows that are shown one by one, at most; all are counted.")
    ] = 50_000,
    summary: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="What embed --json FILE wrote: the page shows its time and versions.",
            show_default=False,
        ),
    ] = None,
    open_in: Annotated[
        Program | None,
        typer.Option(
            help="Write no page, but a Parquet file that this program takes, and say the command that opens it.",
            show_default=False,
        ),
    ] = None,
    cluster: Cluster = ClusterType.auto,
    scheduler_address: SchedulerAddress = None,
    scheduler_file: SchedulerFile = None,
    workers: Workers = None,
    storage_options: EmbeddingsOptions = None,
    json_file: JsonFile = None,
) -> None:
    """Write a page of an output, one HTML file that needs no network: counts, thresholds, a map, duplicates, failures.

    Workers are started where there are more than a few files.

    Exit code 0: done. 2: wrong usage, or there is no such output.
    """
    options = json_object(storage_options, "--storage-options") or None

    from curator_dask.outputs.failed import output_files
    from curator_dask.outputs.placing import locate
    from curator_dask.report.atlas import make_atlas
    from curator_dask.report.making import make_report, read_run

    if open_in is not None and (duplicates or summary):
        raise typer.BadParameter(
            "a file for another program has neither --duplicates nor --summary", param_hint="--open-in"
        )
    with summary_to(json_file) as put, told_plainly("nothing was written"):
        check_local(page)
        run = None if summary is None else read_run(summary)
        few = len(output_files(locate(embeddings, options), options)) <= _FEW
        if few and not (workers or scheduler_address or scheduler_file):
            place: AbstractContextManager[Any] = nullcontext()  # done before a cluster has started
        else:
            place = workers_of(cluster, scheduler_address, scheduler_file, workers)
        with place:
            if open_in is not None:
                put(
                    make_atlas(
                        embeddings, page, column=column, sample=sample, storage_options=options
                    ).to_dict()
                )
                return
            done = make_report(
                embeddings,
                page,
                duplicates=duplicates,
                column=column,
                sample=sample,
                run=run,
                storage_options=options,
            )
        put(done.to_dict())
