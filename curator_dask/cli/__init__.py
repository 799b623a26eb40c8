"""The command line: ``embed``, and the commands for what comes before it and after."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any

import typer

import curator_dask
from curator_dask.cli.ask import ask
from curator_dask.cli.balance import balance
from curator_dask.cli.browse import browse
from curator_dask.cli.caption import caption
from curator_dask.cli.centroids import centroids
from curator_dask.cli.classify import classify
from curator_dask.cli.compare import compare
from curator_dask.cli.curate import curate
from curator_dask.cli.dedup import dedup
from curator_dask.cli.detect import detect
from curator_dask.cli.embed import embed
from curator_dask.cli.examples import BEGIN, shown
from curator_dask.cli.export import export
from curator_dask.cli.fetch import fetch
from curator_dask.cli.filter import filter_rows
from curator_dask.cli.fit import fit
from curator_dask.cli.importing import import_
from curator_dask.cli.info import info
from curator_dask.cli.join import join
from curator_dask.cli.label import label
from curator_dask.cli.links import links
from curator_dask.cli.options import (
    EXIT_SHARD,
    Captions,
    Cluster,
    ClusterType,
    Decoder,
    IdColumn,
    ImageColumn,
    Images,
    ImagesPath,
    InputPath,
    JsonFile,
    Metadata,
    PartOfRun,
    RowSource,
    SchedulerAddress,
    SchedulerFile,
    StorageOptions,
    Workers,
    json_object,
    summary_to,
    told_plainly,
    workers_of,
    workers_when_needed,
)
from curator_dask.cli.over_images import EachImage
from curator_dask.cli.remove import remove
from curator_dask.cli.report import report
from curator_dask.cli.retrieve import retrieve
from curator_dask.cli.score import score
from curator_dask.cli.search import search
from curator_dask.cli.themes import ThemedGroup
from curator_dask.collector import leave_quickly, look_rarely
from curator_dask.console import show_messages

FEW_SHARDS = 16  # are indexed without a cluster

app = typer.Typer(
    cls=ThemedGroup,
    help="From image URLs, WebDataset shards or folders of images to a curated image-text dataset, on a Dask cluster.",
    epilog=BEGIN,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its table cuts the options' names where the terminal is narrow
)


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Options before a command."""
    look_rarely()
    leave_quickly()
    show_messages()
    if version:
        print(f"curator-dask {curator_dask.__version__}")
        raise typer.Exit


app.command(**shown("fetch"))(fetch)
app.command(**shown("links"))(links)
app.command(**shown("import"))(import_)
app.command(**shown("embed"))(embed)
app.command(**shown("classify"))(classify)
app.command(**shown("caption"))(caption)
app.command(**shown("detect"))(detect)
app.command(**shown("ask"))(ask)


@app.command(**shown("retry"))
def retry(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Directory or URL that embed wrote to.")],
    column: Annotated[
        str | None, typer.Option(help="Of which embedding; without it, all of them.", show_default=False)
    ] = None,
    max_pixels: Annotated[
        int | None,
        typer.Option(min=1, help="Larger images are not decoded.  [default: as before]", show_default=False),
    ] = None,
    decoder: Annotated[
        Decoder | None, typer.Option(help="dali or pillow.  [default: as before]", show_default=False)
    ] = None,
    part: PartOfRun = None,
    cluster: Cluster = ClusterType.auto,
    scheduler_address: SchedulerAddress = None,
    scheduler_file: SchedulerFile = None,
    workers: Workers = None,
    storage_options: Annotated[
        str | None,
        typer.Option(help="JSON object for fsspec, where OUTPUT or its shards are URLs.", show_default=False),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Try the failed rows of an output again, with each model that looked at images; in JSON, by column.

    Exit code 0: done, images that failed again are counted in the summary. 1: a shard could not be read.
    2: wrong usage.
    """
    from curator_dask.errors import OutputError
    from curator_dask.image.embedders.making import made_again
    from curator_dask.outputs.settings_there import find_settings

    options = json_object(storage_options, "--storage-options") or None
    interrupted = "files that were finished are kept, the same command goes on from there"
    with summary_to(json_file) as put, told_plainly(interrupted):
        found = find_settings(output, options)
        columns = [column] if column is not None else list(found)
        lacking = [name for name in columns if name not in found]
        if lacking or not columns:
            raise OutputError(
                f"{output}: its files do not say which model made {', '.join(lacking) or 'an embedding'} (they"
                f" do for {', '.join(found) or 'none'}). What import, or embed without a model, has made the"
                " same command with --overwrite makes anew; an embedder of your own is retried in Python, by its"
                " retry(); of an export give the output that its rows came from"
            )
        changed = {"max_pixels": max_pixels, "decoder": None if decoder is None else decoder.value}
        changed = {name: value for name, value in changed.items() if value is not None}
        embedders = [made_again({**found[name], **changed, "on_error": "null"}) for name in columns]
        with workers_when_needed(cluster, scheduler_address, scheduler_file, workers, embed=True) as start:
            summaries = [
                embedder.retry(output, storage_options=options, workers=start, part=part)
                for embedder in embedders
            ]
        put({name: each.to_dict() for name, each in zip(columns, summaries, strict=True)})
    if not all(summary.complete for summary in summaries):
        raise typer.Exit(EXIT_SHARD)


@app.command(**shown("check"))
def check(
    input_path: ImagesPath,
    id_col: IdColumn = "key",
    metadata: RowSource = Metadata.auto,
    images: Images = False,
    image_column: ImageColumn = "auto",
    each_image: EachImage = False,
    captions: Captions = "txt",
    shards: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of how many shards, evenly spread, all headers and keys are read.",
            show_default=False,
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Of all shards.")] = False,
    dim: Annotated[
        int, typer.Option(min=1, help="Values of an embedding, for the estimate of disk space.")
    ] = 768,
    output: Annotated[
        str | None, typer.Option(help="Where the embeddings are to go: is there space?", show_default=False)
    ] = None,
    max_pixels: Annotated[
        int | None,
        typer.Option(min=1, help="Larger images cannot be used.  [default: Pillow's limit]"),
    ] = None,
    storage_options: StorageOptions = None,
    json_file: JsonFile = None,
) -> None:
    """Look a dataset over before it is embedded: seconds, no model, no cluster.

    Exit code 0: nothing was found that would fail. 1: something would, each with its fix. 2: wrong usage.
    """
    options = json_object(storage_options, "--storage-options") or None
    if every and shards is not None:
        raise typer.BadParameter("--all and --shards exclude one another", param_hint="--shards")
    from curator_dask.checks.preflight import preflight
    from curator_dask.decode.spec import DEFAULT_MAX_PIXELS

    with summary_to(json_file) as put, told_plainly("nothing was changed"):
        found = preflight(
            input_path,
            id_col,
            metadata=metadata.value,
            shards="all" if every else shards,
            dim=dim,
            output=output,
            max_pixels=max_pixels or DEFAULT_MAX_PIXELS,
            images=images,
            image_column=image_column,
            each_image=each_image,
            captions=None if captions == "none" else captions,
            storage_options=options,
        )
        print(found)
        put(found.to_dict())
    if not found.ok:
        raise typer.Exit(EXIT_SHARD)


@app.command(**shown("index"))
def index(
    input_path: InputPath,
    scheduler_address: SchedulerAddress = None,
    scheduler_file: SchedulerFile = None,
    workers: Workers = None,
    overwrite: Annotated[
        bool, typer.Option(help="Write also those that fit, and over files that are no index of DALI's.")
    ] = False,
    storage_options: StorageOptions = None,
    json_file: JsonFile = None,
) -> None:
    """Write DALI's index file (.idx) beside each local tar that has none that fits.

    Exit code 0: each tar has one. 1: some could not be written, and why. 2: wrong usage.
    """
    options = json_object(storage_options, "--storage-options") or None
    from curator_dask.checks.indexing import check_local, write_indexes
    from curator_dask.webdataset.shards import discover

    interrupted = "the index files that are written are whole, the same command goes on from there"
    with summary_to(json_file) as put, told_plainly(interrupted):
        check_local(input_path)
        few = len(discover(input_path, options)) <= FEW_SHARDS
        if few and not (workers or scheduler_address or scheduler_file):
            cluster: AbstractContextManager[Any] = nullcontext()  # done before a cluster has started
        else:
            cluster = workers_of(ClusterType.cpu, scheduler_address, scheduler_file, workers)
        with cluster:
            summary = write_indexes(input_path, overwrite=overwrite, storage_options=options)
        print(summary)
        put(summary.to_dict())
    if summary.failed:
        raise typer.Exit(EXIT_SHARD)


app.command(**shown("info"))(info)
app.command(**shown("score"))(score)
app.command(**shown("join"))(join)
app.command(**shown("filter"))(filter_rows)
app.command(**shown("search"))(search)
app.command(**shown("browse"))(browse)
app.command(**shown("retrieve"))(retrieve)
app.command(**shown("compare"))(compare)
app.command(**shown("export"))(export)
app.command(**shown("centroids"))(centroids)
app.command(**shown("balance"))(balance)
app.command(**shown("label"))(label)
app.command(**shown("fit"))(fit)
app.command(**shown("dedup"))(dedup)
app.command(**shown("curate"))(curate)
app.command(**shown("remove"))(remove)
app.command(**shown("report"))(report)
