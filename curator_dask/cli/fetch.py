"""``fetch``: a table of image URLs becomes shards."""

from __future__ import annotations

import sys
from functools import partial
from typing import Annotated

import typer

from curator_dask.cli.export_options import ImageFormat, MaxSide, MinSide, Quality, SmallerFormat
from curator_dask.cli.options import (
    EXIT_SHARD,
    Cluster,
    ClusterType,
    JsonFile,
    OutputOptions,
    PartOfRun,
    SchedulerAddress,
    SchedulerFile,
    Workers,
    bytes_in,
    json_object,
    names_in,
    summary_to,
    told_plainly,
    workers_of,
)


def fetch(
    table: Annotated[
        str,
        typer.Argument(
            metavar="TABLE",
            help="Parquet, CSV, TSV or JSONL with a URL a row, or .txt with one a line (.gz, too); a folder or glob of"
            " these, or a URL.",
        ),
    ],
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Directory or URL for the shards.")],
    url_column: Annotated[str, typer.Option(help="Column of the images' URLs.")] = "url",
    caption_column: Annotated[
        str | None, typer.Option(help="Column of the captions.", show_default=False)
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option(
            help="Column of the keys.  [default: the shard's number and the row's]", show_default=False
        ),
    ] = None,
    sha256_column: Annotated[
        str | None,
        typer.Option(help="Column of digests that the images' bytes must have.", show_default=False),
    ] = None,
    md5_column: Annotated[str | None, typer.Option(help="The same, of MD5.", show_default=False)] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A,B",
            help="Other columns to keep; several times, too.  [default: all]",
            show_default=False,
        ),
    ] = None,
    column_names: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A,B",
            help="All columns of a CSV or TSV that has no line with their names.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Only so many rows, from the first on; later more.  [default: all]",
            show_default=False,
        ),
    ] = None,
    rows_per_shard: Annotated[int, typer.Option(min=1, help="Rows of the table a shard.")] = 10_000,
    connections: Annotated[int, typer.Option(min=1, help="Downloads at a time, of each worker.")] = 128,
    per_host: Annotated[int, typer.Option(min=1, help="Of these, from one host.")] = 8,
    timeout: Annotated[
        float, typer.Option(min=0.001, help="Seconds for an image in all, each time it is tried.")
    ] = 30.0,
    retries: Annotated[
        int, typer.Option(min=0, help="Times it is tried again, where the fault may pass.")
    ] = 2,
    max_wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait at most where a server says when to come again.")
    ] = 60.0,
    max_bytes: Annotated[str, typer.Option(metavar="SIZE", help="Larger images fail.")] = "64MB",
    max_redirects: Annotated[int, typer.Option(min=0, help="From one URL to the next.")] = 5,
    max_pixels: Annotated[
        int | None,
        typer.Option(min=1, help="Larger images fail.  [default: Pillow's limit]", show_default=False),
    ] = None,
    max_side: MaxSide = None,
    min_side: MinSide = None,
    quality: Quality = None,
    image_format: SmallerFormat = ImageFormat.keep,
    user_agent: Annotated[
        str | None,
        typer.Option(
            help="Who asks; say how to reach you.  [default: curator-dask/VERSION]", show_default=False
        ),
    ] = None,
    ignore_robots_tags: Annotated[
        bool, typer.Option("--ignore-robots-tags", help="Take images also where X-Robots-Tag says not to.")
    ] = False,
    allow_private: Annotated[
        bool, typer.Option("--allow-private", help="Connect also to addresses of your own network.")
    ] = False,
    proxy: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Go through this proxy.  [default: none]", show_default=False),
    ] = None,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Try failed rows of finished shards again, where it may help."),
    ] = False,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Do not stop where no server answers.")
    ] = False,
    min_good: Annotated[
        float, typer.Option(min=0, max=1, help="Exit code 1 if a smaller share of the rows has an image.")
    ] = 0.0,
    part: PartOfRun = None,
    overwrite: Annotated[
        bool, typer.Option(help="Replace shards of another table, or of other settings.")
    ] = False,
    append: Annotated[
        bool,
        typer.Option(
            "--append",
            help="TABLE has grown: the last shard, which was not full, may be made anew, and no other.",
        ),
    ] = False,
    cluster: Cluster = ClusterType.cpu,
    scheduler_address: SchedulerAddress = None,
    scheduler_file: SchedulerFile = None,
    workers: Workers = None,
    storage_options: Annotated[
        str | None,
        typer.Option(help="JSON object for fsspec, where TABLE is a URL.", show_default=False),
    ] = None,
    output_storage_options: OutputOptions = None,
    json_file: JsonFile = None,
) -> None:
    """Turn a table of image URLs into shards: image, caption and JSON a sample, and all rows beside them in Parquet.

    Images keep their bytes, unless --max-side or --min-side makes large ones smaller. A row without an image says why.
    The same command again does only what is missing. OUTPUT.fetch keeps what that needs.

    Exit code 0: done, rows that failed are counted. 1: a shard could not be written, or no row has an image, or a
    smaller share than --min-good. 2: wrong usage, or no server answers.
    """
    options = json_object(storage_options, "--storage-options") or None
    output_options = json_object(output_storage_options, "--output-storage-options") or None
    given = {"user_agent": user_agent, "max_pixels": max_pixels}

    from curator_dask.fetching import fetch_images

    interrupted = "shards that are finished are kept, the same command goes on from there"
    with summary_to(json_file) as put, told_plainly(interrupted):
        summary = fetch_images(
            table,
            output,
            storage_options=options,
            output_storage_options=output_options,
            workers=partial(workers_of, cluster, scheduler_address, scheduler_file, workers),
            part=part,
            url_column=url_column,
            caption_column=caption_column,
            id_column=id_column,
            sha256_column=sha256_column,
            md5_column=md5_column,
            columns=names_in(columns, "--columns"),
            column_names=names_in(column_names, "--column-names"),
            limit=limit,
            rows_per_shard=rows_per_shard,
            connections=connections,
            per_host=per_host,
            timeout=timeout,
            retries=retries,
            max_wait=max_wait,
            max_bytes=bytes_in(max_bytes, "--max-bytes"),
            max_redirects=max_redirects,
            max_side=max_side,
            min_side=min_side,
            quality=quality,
            image_format=image_format.value,
            ignore_robots_tags=ignore_robots_tags,
            allow_private=allow_private,
            proxy=proxy,
            retry_failed=retry_failed,
            keep_going=keep_going,
            overwrite=overwrite,
            append=append,
            **{name: value for name, value in given.items() if value is not None},
        )
        put(summary.to_dict())
    if summary.good < min_good:
        print(f"error: {summary.good:.1%} of the rows have an image, --min-good {min_good}", file=sys.stderr)
    if not summary.complete or not summary.good or summary.good < min_good:
        raise typer.Exit(EXIT_SHARD)
