"""``dedup``: rows of an output whose vectors are nearly the same."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from curator_dask.cli.options import (
    Cluster,
    ClusterType,
    Embeddings,
    EmbeddingsOptions,
    JsonFile,
    OutputOptions,
    SchedulerAddress,
    SchedulerFile,
    Workers,
    check_sheet,
    json_object,
    save_sheet,
    summary_to,
    told_plainly,
    workers_of,
)


def dedup(
    embeddings: Embeddings,
    output: Annotated[
        str, typer.Argument(metavar="OUTPUT", help="Folder or URL for the table of duplicates.")
    ],
    eps: Annotated[
        float, typer.Option(min=0, max=1, help="Duplicates have a cosine of at least 1 - eps.")
    ] = 0.07,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help="Which stays: a column, or an expression such as 'width * height desc'; again for ties. hard or easy:"
            " the farthest from its cluster's centre, or the nearest.  [default: the first key]",
            show_default=False,
        ),
    ] = None,
    recall: Annotated[
        float, typer.Option(min=0.5, max=1, help="Share of the pairs that is compared, at least.")
    ] = 0.99,
    clusters: Annotated[
        int | None, typer.Option(min=1, help="Of k-means.  [default: by the rows]", show_default=False)
    ] = None,
    column: Annotated[str, typer.Option(help="Of the vectors.")] = "image_embedding",
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Make vectors unit length, instead of leaving them out.")
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="EMBEDDINGS",
            help="Vectors that stay as they are: rows near one of them go.",
            show_default=False,
        ),
    ] = None,
    exported: Annotated[
        str | None,
        typer.Option(
            metavar="TARS",
            help="What export wrote, and is to add to: rows that are in it stay, and rows near one of them go.",
            show_default=False,
        ),
    ] = None,
    exact: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN[=BITS]",
            help="Rows with the same value are duplicates too, or with hashes of 64 bits that differ in so many, at"
            " most 8, or of 256, at most 31: sha256, phash=4, pdq=31. Again for more.",
            show_default=False,
        ),
    ] = None,
    groups: Annotated[
        str,
        typer.Option(
            metavar="stars|components",
            help="components: of rows that are duplicates of duplicates one alone stays; the farthest are told.",
        ),
    ] = "stars",
    memory_limit: Annotated[
        str | None,
        typer.Option(
            metavar="BYTES",
            help="What a worker may hold of vectors and pairs: 4GB, or a share of its own limit, 0.5. The result is the"
            " same.  [default: blocks of a fixed size]",
            show_default=False,
        ),
    ] = None,
    work: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder that all workers see, or URL, for what lies between.  [default: OUTPUT.work]",
            show_default=False,
        ),
    ] = None,
    output_storage_options: OutputOptions = None,
    sheet: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Draw some groups into this file, such as groups.png.", show_default=False
        ),
    ] = None,
    cluster: Cluster = ClusterType.auto,
    scheduler_address: SchedulerAddress = None,
    scheduler_file: SchedulerFile = None,
    workers: Workers = None,
    storage_options: EmbeddingsOptions = None,
    json_file: JsonFile = None,
) -> None:
    """Find rows whose vectors are nearly the same; says which stay, and how many would go by which eps.

    Nothing is removed. The same command goes on after an interruption; one with a smaller eps compares nothing again.

    Exit code 0: done. 1: a file could not be read. 2: wrong usage, or no vectors.
    """
    options = json_object(storage_options, "--storage-options") or None
    output_options = json_object(output_storage_options, "--output-storage-options")
    check_sheet(sheet)
    from curator_dask.dedup import SemanticDeduplication

    wanted: Any = keep[0] if keep and len(keep) == 1 else keep
    interrupted = "what was finished is kept, the same command goes on from there"
    with summary_to(json_file) as put, told_plainly(interrupted):
        find = SemanticDeduplication(
            eps,
            wanted,
            recall,
            clusters or "auto",
            column,
            normalize=normalize,
            against=against,
            exact=_radii(exact or []),
            groups=groups,
            memory_limit=memory_limit,
            exported=exported,
            storage_options=options,
        )
        result = find(embeddings)
        start = partial(workers_of, cluster, scheduler_address, scheduler_file, workers)
        summary = result.save(output, workers=start, work=work, output_storage_options=output_options or None)
        if sheet is not None:
            save_sheet(result.sheet(), sheet)
        put(summary.to_dict())


def _radii(said: list[str]) -> dict[str, int]:
    """By column, in how many bits hashes may differ."""
    found = {}
    for text in said:
        name, _, bits = text.partition("=")
        if not name or (bits and not bits.isdecimal()):
            raise typer.BadParameter(
                f"{text}: expected a column, such as phash, or phash=4", param_hint="--exact"
            )
        found[name] = int(bits or 0)
    return found
