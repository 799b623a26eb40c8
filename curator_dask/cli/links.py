"""``links``: from the files of a crawl of the web to a table of images and captions."""

from __future__ import annotations

from enum import StrEnum
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
    names_in,
    summary_to,
    told_plainly,
    workers_of,
)


class Unique(StrEnum):
    """What is taken once."""

    pair = "pair"
    url = "url"


def links(
    crawl: Annotated[
        str,
        typer.Argument(
            metavar="CRAWL",
            help="WAT or WARC files: one, a folder, glob or URL, or a list of them such as wat.paths.gz.",
        ),
    ],
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder or URL for the table.")],
    prefix: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Stands before the paths of a list: https://data.commoncrawl.org/ or s3://commoncrawl/."
            "  [default: the list's folder]",
            show_default=False,
        ),
    ] = None,
    first: Annotated[
        int | None, typer.Option(min=1, help="Read no more than so many files.", show_default=False)
    ] = None,
    min_characters: Annotated[int, typer.Option(min=1, help="Of a caption, at least.")] = 5,
    min_words: Annotated[int, typer.Option(min=1, help="The same.")] = 1,
    languages: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A,B", help="Of pages whose images are taken: en,de.  [default: all]", show_default=False
        ),
    ] = None,
    unique: Annotated[
        Unique, typer.Option(help="What is there once: an address with a caption, or an address.")
    ] = Unique.pair,
    rows_per_file: Annotated[
        int, typer.Option(min=1, help="Links of each file of the table, about.")
    ] = 500_000,
    overwrite: Annotated[
        bool, typer.Option(help="Replace files in OUTPUT that something else has made.")
    ] = False,
    keep_work: Annotated[
        bool, typer.Option(help="Keep what was found in each file: a longer list goes on from there.")
    ] = False,
    work: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder that all workers see, or URL, for what lies between.  [default: OUTPUT.work]",
            show_default=False,
        ),
    ] = None,
    cluster: Cluster = ClusterType.cpu,
    scheduler_address: SchedulerAddress = None,
    scheduler_file: SchedulerFile = None,
    workers: Workers = None,
    storage_options: Annotated[
        str | None, typer.Option(help="JSON object for fsspec, where CRAWL is a URL.", show_default=False)
    ] = None,
    output_storage_options: OutputOptions = None,
    json_file: JsonFile = None,
) -> None:
    """Make a table of the images and captions of a crawl of the web, such as Common Crawl: what `fetch` begins with.

    The captions are what `alt` says. Each link is there once, over all files. The same command again does only what is
    missing.

    Exit code 0: done. 1: a file could not be read, or not to its end, or no link was found. 2: wrong usage.
    """
    options = json_object(storage_options, "--storage-options") or None
    output_options = json_object(output_storage_options, "--output-storage-options") or None

    from curator_dask.crawls import extract_links

    interrupted = "files that were read are kept, the same command goes on from there"
    with summary_to(json_file) as put, told_plainly(interrupted):
        summary = extract_links(
            crawl,
            output,
            prefix=prefix,
            first=first,
            min_characters=min_characters,
            min_words=min_words,
            languages=names_in(languages, "--languages"),
            unique=unique.value,
            rows_per_file=rows_per_file,
            overwrite=overwrite,
            keep_work=keep_work,
            work=work,
            storage_options=options,
            output_storage_options=output_options,
            workers=partial(workers_of, cluster, scheduler_address, scheduler_file, workers),
        )
        put(summary.to_dict())
    if not summary.complete or not summary.rows:
        raise typer.Exit(EXIT_SHARD)
