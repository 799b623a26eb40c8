"""``info``: what is in an output."""

from __future__ import annotations

from typing import Annotated

import typer

from curator_dask.cli.options import EXIT_SHARD, JsonFile, json_object, names_in, summary_to, told_plainly


def info(
    output: Annotated[
        str,
        typer.Argument(
            metavar="OUTPUT",
            help="Directory or URL that embed, score, classify, filter, dedup, export or curate wrote to, or of other"
            " Parquet files.",
        ),
    ],
    columns: Annotated[
        list[str] | None,
        typer.Option(metavar="A,B", help="To look at these alone; several times, too.", show_default=False),
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Read all rows, also where a sample of them would do.")
    ] = False,
    storage_options: Annotated[
        str | None, typer.Option(help="JSON object for fsspec, where OUTPUT is a URL.", show_default=False)
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Say what is in an output: rows, failures, columns, who made them, how values spread; seconds, no cluster.

    Also what does not fit together: two models under one name, files that lack a column, files that are damaged.

    Exit code 0: done. 1: a file cannot be read, and is named. 2: wrong usage, or there is no such output.
    """
    options = json_object(storage_options, "--storage-options") or None
    names = names_in(columns, "--columns")

    from curator_dask.info import describe_output

    with summary_to(json_file) as put, told_plainly("nothing was changed"):
        found = describe_output(output, columns=names, exact=exact, storage_options=options)
        print(found)
        put(found.to_dict())
    if not found.whole:
        raise typer.Exit(EXIT_SHARD)
