"""``filter``: the rows of an output that pass, in files of their own."""

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
from curator_dask.presets import PRESETS, all_of


def filter_rows(
    embeddings: Embeddings,
    output: Annotated[
        str | None,
        typer.Argument(
            metavar="OUTPUT", help="Where the rows that pass go.  [default: they are counted alone]"
        ),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="CONDITION",
            help='As behind SQL\'s WHERE: "aesthetic_score > 5.5 and width >= 256". Null never passes.',
            show_default=False,
        ),
    ] = None,
    preset: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=f"A known filter, besides: {', '.join(PRESETS)}; several times.",
            show_default=False,
        ),
    ] = None,
    top: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN=SHARE|ROWS",
            help="Of the rows that pass, those with the largest values, over all files: clip_score=0.3 a share of them"
            " (1: all), clip_score=1000 so many (2 or more).",
            show_default=False,
        ),
    ] = None,
    at_most: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN=ROWS",
            help="Of the rows that pass, so many of each value of a column (a label, a domain), over all files.",
            show_default=False,
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Of --at-most: those with the largest values here.  [default: any, the same each time]",
            show_default=False,
        ),
    ] = None,
    subset: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.npy",
            help="Write the uids of the rows that pass, as DataComp's subsets are, for its resharder.",
            show_default=False,
        ),
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option(
            help="Of --subset: column of the uids.  [default: that of the keys]", show_default=False
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option(help="Replace files in OUTPUT that something else has made, and another --subset.")
    ] = False,
    cluster: Cluster = ClusterType.auto,
    scheduler_address: SchedulerAddress = None,
    scheduler_file: SchedulerFile = None,
    workers: Workers = None,
    storage_options: EmbeddingsOptions = None,
    output_storage_options: OutputOptions = None,
    json_file: JsonFile = None,
) -> None:
    """Keep the rows of an output that pass a condition, with all their columns; says how many pass each part of it.

    Without OUTPUT nothing is written. The same command again does only what is missing. No tar is opened.

    Exit code 0: done. 1: a file could not be read; no row of what is written passes. 2: wrong usage, a condition that
    does not fit the columns among it.
    """
    unknown = [name for name in preset or () if name not in PRESETS]
    if unknown:
        raise typer.BadParameter(
            f"{unknown[0]!r}: expected one of {', '.join(PRESETS)}", param_hint="--preset"
        )
    conditions = [*(PRESETS[name] for name in preset or ()), *([] if where is None else [where])]
    column, equals, most = (top or "").rpartition("=")
    best: tuple[str, float] | None = None
    if top is not None:
        try:
            best = (column, int(most) if most.strip().isdecimal() else float(most))
        except ValueError:
            column = ""
        if not (column and equals):
            raise typer.BadParameter(
                f"{top!r}: expected COLUMN=SHARE or COLUMN=ROWS, such as clip_score=0.3 or clip_score=1000",
                param_hint="--top",
            )
    label, _, number = (at_most or "").rpartition("=")
    if at_most is not None and not (label and number.strip().isdecimal()):
        raise typer.BadParameter(
            f"{at_most!r}: expected COLUMN=ROWS, such as label=100", param_hint="--at-most"
        )
    if not conditions and best is None and at_most is None and output is not None:
        raise typer.BadParameter(
            f"give a condition, or --top, --at-most or --preset: {output!r} is taken for the folder of what passes."
            " Such as --where 'width >= 256'",
            param_hint="--where",
        )
    if id_column is not None and subset is None:
        raise typer.BadParameter("is that of --subset, which is not given", param_hint="--id-column")
    options = json_object(storage_options, "--storage-options") or None
    output_options = json_object(output_storage_options, "--output-storage-options") or None

    from curator_dask.outputs.filtering import filter_output

    interrupted = "files that were written are kept, the same command goes on from there"
    with summary_to(json_file) as put, told_plainly(interrupted):
        summary = filter_output(
            embeddings,
            output,
            where=all_of(conditions),
            top=best,
            at_most=None if at_most is None else (label, int(number)),
            by=by,
            subset=subset,
            id_column=id_column,
            overwrite=overwrite,
            storage_options=options,
            output_storage_options=output_options,
            workers=partial(workers_of, cluster, scheduler_address, scheduler_file, workers),
        )
        put(summary.to_dict())
    written = summary.output is not None or summary.subset is not None
    if (summary.output is not None and not summary.output.complete) or (written and not summary.kept):
        raise typer.Exit(EXIT_SHARD)
