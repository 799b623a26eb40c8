"""``balance``: columns by which a dataset is balanced, over concepts in its captions or clusters of its vectors."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

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
from curator_dask.frames.names import CAPTION_COLUMN, EMBEDDING_COLUMN


def balance(
    embeddings: Embeddings,
    output: Annotated[
        str | None,
        typer.Argument(
            metavar="OUTPUT", help="Where the files go with their columns.  [default: in their place]"
        ),
    ] = None,
    concepts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Words and phrases: .txt with one a line, .json with a list, or a table (Parquet, CSV, TSV, JSONL).",
            show_default=False,
        ),
    ] = None,
    clusters: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="In the place of --concepts: a file of `centroids`, of one level or several.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE|ROWS",
            help="Of --clusters: how many rows are kept in all: a share up to 1, such as 0.5, or a number from 2,"
            " such as 1000000.  [default: clusters are told alone]",
            show_default=False,
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="complexity|size|levels",
            help="Of --clusters: complex ones keep more (density-based pruning); all keep as many; or so do those of"
            " the highest level, and those in each of them.  [default: levels where FILE has several, else complexity]",
            show_default=False,
        ),
    ] = None,
    order: Annotated[
        str | None,
        typer.Option(
            metavar="far|near|random|COLUMN",
            help="Of --clusters: the rows of each that are kept: far from the centroid, near it, by chance, or the"
            " largest of a column.  [default: random by levels, else far]",
            show_default=False,
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(help="Of --by complexity, of the softmax.")] = 0.1,
    neighbours: Annotated[
        int, typer.Option(min=1, help="Of --by complexity: nearest centroids that are looked at.")
    ] = 20,
    column: Annotated[str, typer.Option(help="Of --clusters: column of the vectors.")] = EMBEDDING_COLUMN,
    check: Annotated[
        bool, typer.Option(help="Of --clusters: refuse vectors of another model than the centroids'.")
    ] = True,
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
    """Say of each row whether it is kept so that no concept, or cluster, has too many: for `filter --where balanced`.

    By --concepts, as MetaCLIP: adds the columns concepts, rarest_concept, balance (0 to 1) and balanced (true or
    false). The same command again does nothing; a larger --most keeps the rows of a smaller one.

    By --clusters: adds the columns cluster, cluster_distance and balanced. Where --keep is not given clusters are told,
    and nothing is written. No tar is opened by either.

    Exit code 0: done. 1: a file could not be read. 2: wrong usage.
    """
    options = json_object(storage_options, "--storage-options") or None
    concept_options = json_object(concepts_storage_options, "--concepts-storage-options") or None
    output_options = json_object(output_storage_options, "--output-storage-options") or None
    if (concepts is None) == (clusters is None):
        raise typer.BadParameter(
            "give one of --concepts and --clusters: a file of words, or of centroids", param_hint="--concepts"
        )
    needed = most if clusters is None else keep
    if output is not None and needed is None:
        such = "--most 20000" if clusters is None else "--keep 0.5"
        raise typer.BadParameter(
            f"without it nothing is written, and {output!r} is taken for the folder of what is. Such as {such}",
            param_hint=such.partition(" ")[0],
        )

    from curator_dask.balancing import balance_clusters
    from curator_dask.text.balance import balance_output

    interrupted = (
        "what was counted, and files that have their columns, are kept: the same command goes on from there"
    )
    with summary_to(json_file) as put, told_plainly(interrupted):
        shared: dict[str, Any] = {
            "prefix": prefix,
            "overwrite": overwrite,
            "storage_options": options,
            "output_storage_options": output_options,
            "workers": partial(workers_of, cluster, scheduler_address, scheduler_file, workers),
        }
        if clusters is not None:
            how: dict[str, Any] = {"by": by, "order": order, "column": column, "check": check}
            how |= {"temperature": temperature, "neighbours": neighbours, "seed": seed}
            done = balance_clusters(embeddings, clusters, keep, output, **how, **shared)
            saved = done.output
            put(done.to_dict())
        else:
            assert concepts is not None
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
                counts=counts,
                concepts_storage_options=concept_options,
                **shared,
            )
            saved = summary.output
            put(summary.to_dict())
    if saved is not None and not saved.complete:
        raise typer.Exit(EXIT_SHARD)
