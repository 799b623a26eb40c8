"""The command line: ``embed``, and the commands for what comes before it and after."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any

import typer

import curator_dask
from curator_dask.cli.curate import curate
from curator_dask.cli.dedup import dedup
from curator_dask.cli.export import export
from curator_dask.cli.filter import filter_rows
from curator_dask.cli.options import (
    EXIT_SHARD,
    Cluster,
    ClusterType,
    Decoder,
    IdColumn,
    Images,
    ImagesPath,
    InputPath,
    JsonFile,
    Metadata,
    Output,
    RowSource,
    SchedulerAddress,
    SchedulerFile,
    StorageOptions,
    Workers,
    json_object,
    summary_to,
    told_plainly,
    workers_of,
)
from curator_dask.cli.report import report
from curator_dask.cli.score import score
from curator_dask.cli.search import search
from curator_dask.console import show_messages

FEW_SHARDS = 16  # are indexed without a cluster

app = typer.Typer(
    help="Embed the images of WebDataset shards on a Dask cluster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its table cuts the options' names where the terminal is narrow
)


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Options before a command."""
    show_messages()
    if version:
        print(f"curator-dask {curator_dask.__version__}")
        raise typer.Exit


@app.command()
def embed(
    input_path: ImagesPath,
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Directory or URL for the Parquet files.")],
    model: Annotated[
        str,
        typer.Option(
            help="Any timm model: a name with or without tag, hf-hub:org/repo, local-dir:/folder. Or transformers'"
            " CLIP or SigLIP: org/repo (openai/clip-vit-large-patch14), or its folder."
        ),
    ],
    model_dir: Annotated[
        str | None,
        typer.Option(help="Folder with the CLIP's weights, or for them.  [default: the hub's cache]"),
    ] = None,
    cluster: Cluster = ClusterType.auto,
    scheduler_address: SchedulerAddress = None,
    scheduler_file: SchedulerFile = None,
    workers: Workers = None,
    id_col: IdColumn = "key",
    metadata: RowSource = Metadata.auto,
    images: Images = False,
    captions: Annotated[
        str,
        typer.Option(
            help="Of image files: txt beside each, a Parquet, CSV or JSONL file with file_name, or none."
        ),
    ] = "txt",
    rows_per_partition: Annotated[
        int | None, typer.Option(min=1, help="Cut shards into partitions of so many rows.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a forward pass, at most.")] = 256,
    threads: Annotated[int, typer.Option(min=1, help="Decoding threads a worker.")] = 4,
    column: Annotated[str, typer.Option(help="Name of the embedding's column.")] = "image_embedding",
    model_output: Annotated[Output, typer.Option(help="Of the model: what is the vector.")] = Output.auto,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Larger images are not decoded.  [default: Pillow's limit]")
    ] = None,
    model_kwargs: Annotated[
        str | None,
        typer.Option(help="JSON object of arguments for timm's model, for example '{\"img_size\": 336}'."),
    ] = None,
    decoder: Annotated[Decoder, typer.Option(help="dali, or pillow: slower, the reference.")] = Decoder.dali,
    pretrained: Annotated[bool, typer.Option(help="Load the weights of the model's name.")] = True,
    checkpoint: Annotated[str | None, typer.Option(help="State dict to load over the model.")] = None,
    normalize: Annotated[bool, typer.Option(help="Make vectors unit length.")] = True,
    autocast: Annotated[bool, typer.Option(help="bf16 or fp16 where that is fast.")] = True,
    orientation: Annotated[
        str, typer.Option(help="stored, or exif-column: by img2dataset's 'exif' where the file has none.")
    ] = "stored",
    gray16: Annotated[str, typer.Option(help="Grey of over 8 bits: scale, or pillow: clip.")] = "scale",
    decode_scale: Annotated[
        str,
        typer.Option(
            help="exact, or fast: JPEGs of many megapixels are decoded smaller, twice as fast on a CPU."
        ),
    ] = "exact",
    statistics: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Columns that say of each image what it is, made in the same pass: width,height,phash, or all.",
            show_default=False,
        ),
    ] = None,
    prefix: Annotated[
        str, typer.Option(help="Before the statistics' names, where the dataset has columns of these.")
    ] = "",
    image: Annotated[str | None, typer.Option(help="Which of several images a sample, as image.png.")] = None,
    compile: Annotated[
        bool | None,
        typer.Option(help="torch.compile: always, or never; else where it pays.", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace files that this command did not make.")] = False,
    drop_failed: Annotated[bool, typer.Option(help="Write failed rows to OUTPUT.errors instead.")] = False,
    raise_on_error: Annotated[bool, typer.Option(help="Stop at the first image that fails.")] = False,
    min_good: Annotated[
        float, typer.Option(min=0, max=1, help="Exit code 1 if a smaller share of the images has a vector.")
    ] = 0.0,
    nested_json: Annotated[bool, typer.Option(help="Nested JSON of tars as columns of text.")] = False,
    storage_options: StorageOptions = None,
    output_storage_options: Annotated[
        str | None, typer.Option(help="The same for OUTPUT, where that differs.", show_default=False)
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Embed every image, and write one Parquet file a shard.

    An interrupted run is started again with the same command: finished shards are skipped.

    Exit code 0: done, failed images are counted in the summary. 1: a shard could not be read, or not all of it, or an
    image with --raise-on-error; no image has a vector, or fewer than --min-good. 2: wrong usage.
    """
    options = json_object(storage_options, "--storage-options") or None
    kwargs = json_object(model_kwargs, "--model-kwargs")
    # Without this option those of the dataset hold for the output, too.
    output_options = json_object(output_storage_options, "--output-storage-options")
    saving: dict[str, Any] = {"storage_options": output_options} if output_storage_options else {}

    from curator_dask.datasets import ImageTextPairDataset
    from curator_dask.decode.spec import DEFAULT_MAX_PIXELS
    from curator_dask.image.embedders.making import is_transformers, make_embedder
    from curator_dask.image.statistics import ImageStatistics
    from curator_dask.models.weights import check_name
    from curator_dask.outputs.lock import RunLock
    from curator_dask.rows.image_files import captions_of
    from curator_dask.rows.reading import choose_source, learn_schema
    from curator_dask.storage import absolute, is_remote
    from curator_dask.webdataset.finding import find_shards

    interrupted = "finished shards are kept, the same command goes on from there"
    with summary_to(json_file) as put, told_plainly(interrupted):
        # What is wrong with the arguments should not cost the start of a cluster.
        found = find_shards(input_path, options, images=images)
        source = choose_source(metadata.value, found, options)
        of_images = captions_of(captions, found, id_col)
        if source == "parquet":
            learn_schema(found.shards, source, id_col, options)
        if not is_remote(output):
            RunLock(absolute(output)).check()
        measure = None
        if statistics is not None:
            names = None if statistics == "all" else [name.strip() for name in statistics.split(",")]
            measure = ImageStatistics(
                names,
                prefix=prefix,
                num_threads_per_worker=threads,
                decoder=decoder.value,
                max_pixels=max_pixels or DEFAULT_MAX_PIXELS,
                image_member=image,
                gray16=gray16,
                orientation=orientation,
            )
        embedder = make_embedder(
            model,
            model_dir,
            {
                "pretrained": pretrained,
                "output": model_output.value,
                "checkpoint_path": checkpoint,
                "model_kwargs": kwargs,
            },
            batch_size=batch_size,
            num_threads_per_worker=threads,
            image_embedding_column=column,
            normalize_embeddings=normalize,
            autocast=autocast,
            compile="auto" if compile is None else compile,
            max_pixels=max_pixels or DEFAULT_MAX_PIXELS,
            image_member=image,
            gray16=gray16,
            orientation=orientation,
            decode_scale=decode_scale,
            decoder=decoder.value,
            on_error="raise" if raise_on_error else "null",
        )
        if not (scheduler_address or scheduler_file or is_transformers(model)):
            check_name(model)
        with workers_of(cluster, scheduler_address, scheduler_file, workers):
            if of_images is not None:
                dataset = ImageTextPairDataset.from_images(found.root, id_col, **of_images)
            else:
                dataset = ImageTextPairDataset.from_shards(
                    found,
                    id_col,
                    metadata=metadata.value,
                    rows_per_partition=rows_per_partition,
                    nested_json=nested_json,
                    storage_options=options,
                )
            dataset = dataset if measure is None else measure(dataset)
            summary = embedder(dataset).save_metadata(
                output, overwrite=overwrite, drop_failed=drop_failed, **saving
            )
        put(summary.to_dict())
    if summary.good < min_good:
        print(
            f"error: {summary.good:.1%} of the images have a vector, --min-good {min_good}", file=sys.stderr
        )
    if not summary.complete or not summary.good or summary.good < min_good:
        raise typer.Exit(EXIT_SHARD)


@app.command()
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
    """Embed only the failed rows of an output again, with the model that made it; in JSON, a summary by column.

    Exit code 0: done, images that failed again are counted in the summary. 1: a shard could not be read.
    2: wrong usage.
    """
    from curator_dask.errors import OutputError
    from curator_dask.image.embedders.making import from_settings
    from curator_dask.outputs.retrying import find_settings

    options = json_object(storage_options, "--storage-options") or None
    interrupted = "files that were finished are kept, the same command goes on from there"
    with summary_to(json_file) as put, told_plainly(interrupted):
        found = find_settings(output, options)
        columns = [column] if column is not None else list(found)
        lacking = [name for name in columns if name not in found]
        if lacking or not columns:
            raise OutputError(
                f"{output}: its files do not say which model made {', '.join(lacking) or 'an embedding'} (they"
                f" do for {', '.join(found) or 'none'}). An embedder of your own is retried in Python, by its retry()"
            )
        changed = {"max_pixels": max_pixels, "decoder": None if decoder is None else decoder.value}
        changed = {name: value for name, value in changed.items() if value is not None}
        embedders = [from_settings({**found[name], **changed, "on_error": "null"}) for name in columns]
        with workers_of(cluster, scheduler_address, scheduler_file, workers):
            summaries = [embedder.retry(output, storage_options=options) for embedder in embedders]
        put({name: each.to_dict() for name, each in zip(columns, summaries, strict=True)})
    if not all(summary.complete for summary in summaries):
        raise typer.Exit(EXIT_SHARD)


@app.command()
def check(
    input_path: ImagesPath,
    id_col: IdColumn = "key",
    metadata: RowSource = Metadata.auto,
    images: Images = False,
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
            storage_options=options,
        )
        print(found)
        put(found.to_dict())
    if not found.ok:
        raise typer.Exit(EXIT_SHARD)


@app.command()
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


app.command()(score)
app.command("filter")(filter_rows)
app.command()(search)
app.command()(export)
app.command()(dedup)
app.command()(curate)
app.command()(report)
