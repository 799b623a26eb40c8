"""``balance``: columns by which a dataset is balanced over the concepts in its captions."""

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
    summary_to,
    told_plainly,
    workers_of,
)
from curator_dask.frames.names import CAPTION_COLUMN


def balance(
    embeddings: Embeddings,
    concepts: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="Words and phrases: .txt with one a line, .json with a list, or a table (Parquet, CSV, TSV, JSONL).",
        ),
    ],
    output: Annotated[
        str | None,
        typer.Argument(
            metavar="OUTPUT", help="Where the files go with their columns.  [default: in their place]"
        ),
    ] = None,
    most: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="ROWS",
            help="Of a concept that more rows have, about so many are drawn.  [default: it is counted alone, and said"
            " what some numbers would keep]",
            show_default=False,
        ),
    ] = None,
    text: Annotated[str, typer.Option(help="Column of the captions.")] = CAPTION_COLUMN,
    match_case: Annotated[bool, typer.Option("--match-case", help="Apple is not apple.")] = False,
    keep_unmatched: Annotated[
        bool, typer.Option("--keep-unmatched", help="Keep the rows that have no concept.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    prefix: Annotated[str, typer.Option(help="Before the columns' names.", show_default=False)] = "",
    concept_column: Annotated[str, typer.Option(help="Of FILE, where that is a table.")] = "concept",
    id_col: Annotated[
        str | None,
        typer.Option(help="Column of the keys.  [default: as the files say, or key]", show_default=False),
    ] = None,
    counts: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Where counts are remembered.  [default: EMBEDDINGS.balance]",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option(help="Replace columns and files that something else has made.")
    ] = False,
    cluster: Cluster = ClusterType.cpu,
    scheduler_address: SchedulerAddress = None,
    scheduler_file: SchedulerFile = None,
    workers: Workers = None,
    storage_options: EmbeddingsOptions = None,
    concepts_storage_options: Annotated[
        str | None, typer.Option(help="The same for FILE, where that differs.", show_default=False)
    ] = None,
    output_storage_options: OutputOptions = None,
    json_file: JsonFile = None,
) -> None:
    """Say of each row with what probability it is kept so that no concept has too many rows, and draw it, as MetaCLIP.

    Adds the columns concepts, rarest_concept, balance (0 to 1) and balanced (true or false), for `filter --where
    balanced`. The same command again does nothing; a larger --most keeps the rows of a smaller one. No tar is opened.

    Exit code 0: done. 1: a file could not be read. 2: wrong usage.
    """
    options = json_object(storage_options, "--storage-options") or None
    concept_options = json_object(concepts_storage_options, "--concepts-storage-options") or None
    output_options = json_object(output_storage_options, "--output-storage-options") or None
    if output is not None and most is None:
        raise typer.BadParameter(
            f"without it nothing is written, and {output!r} is taken for the folder of what is. Such as --most 20000",
            param_hint="--most",
        )

    from curator_dask.text.balance import balance_output

    interrupted = (
        "what was counted, and files that have their columns, are kept: the same command goes on from there"
    )
    with summary_to(json_file) as put, told_plainly(interrupted):
        summary = balance_output(
            embeddings,
            concepts,
            most,
            output,
            text_column=text,
            id_col=id_col,
            concept_column=concept_column,
            match_case=match_case,
            keep_unmatched=keep_unmatched,
            seed=seed,
            prefix=prefix,
            counts=counts,
            overwrite=overwrite,
            storage_options=options,
            concepts_storage_options=concept_options,
            output_storage_options=output_options,
            workers=partial(workers_of, cluster, scheduler_address, scheduler_file, workers),
        )
        put(summary.to_dict())
    if summary.output is not None and not summary.output.complete:
        raise typer.Exit(EXIT_SHARD)
