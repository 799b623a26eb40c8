"""``embed``: vectors of the images of shards."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curator_dask.cli.options import (
    EXIT_SHARD,
    Captions,
    Cluster,
    ClusterType,
    Decoder,
    IdColumn,
    Images,
    ImagesPath,
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

if TYPE_CHECKING:
    from curator_dask.outputs.finished import FinishedCommand
    from curator_dask.runs.summary import SaveSummary

#: Arguments that do not decide what is made.
_NOT_MADE_BY = ("json_file", "min_good", "workers")


def embed(
    context: typer.Context,
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
    captions: Captions = "txt",
    rows_per_partition: Annotated[
        int | None, typer.Option(min=1, help="Cut shards into partitions of so many rows.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a forward pass, at most.")] = 256,
    threads: Annotated[int, typer.Option(min=1, help="Decoding threads a worker.")] = 4,
    column: Annotated[str, typer.Option(help="Name of the embedding's column.")] = "image_embedding",
    model_output: Annotated[
        Output, typer.Option(help="Which output of the model is the vector.")
    ] = Output.auto,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Larger images are not decoded.  [default: Pillow's limit]")
    ] = None,
    model_kwargs: Annotated[
        str | None,
        typer.Option(help="JSON object of arguments for timm's model, for example '{\"img_size\": 336}'."),
    ] = None,
    decoder: Annotated[Decoder, typer.Option(help="dali, or pillow: slower, the reference.")] = Decoder.dali,
    pretrained: Annotated[
        bool, typer.Option(help="The weights of its name, or random ones, for a trial.")
    ] = True,
    checkpoint: Annotated[str | None, typer.Option(help="Weights in place of its own: a state dict.")] = None,
    normalize: Annotated[bool, typer.Option(help="Make vectors unit length.")] = True,
    autocast: Annotated[bool, typer.Option(help="bf16 or fp16 where that is fast, and exact enough.")] = True,
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
            help="Columns that say of each image what it is, made in the same pass: phash,blurriness, or all.",
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

    from curator_dask.cluster.client import load_ahead
    from curator_dask.cluster.device import device_of_new_workers
    from curator_dask.models.sources import Sources
    from curator_dask.outputs.finished import FinishedCommand, repository_of
    from curator_dask.outputs.lock import RunLock
    from curator_dask.outputs.placing import locate
    from curator_dask.rows.reading import choose_source
    from curator_dask.storage import absolute, is_remote
    from curator_dask.webdataset.finding import find_shards

    own_workers = not (scheduler_address or scheduler_file)

    def run() -> SaveSummary:
        if own_workers:
            load_ahead(cluster.value, workers)

        from curator_dask.datasets import ImageTextPairDataset
        from curator_dask.decode.spec import DEFAULT_MAX_PIXELS
        from curator_dask.image.embedders.making import make_embedder
        from curator_dask.image.statistics import ImageStatistics
        from curator_dask.models.hub import is_transformers
        from curator_dask.models.weights import check_name
        from curator_dask.rows.image_files import captions_of
        from curator_dask.rows.reading import learn_schema

        of_images = captions_of(captions, found, id_col, options)
        if source == "parquet":
            learn_schema(found.shards, source, id_col, options)
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
            measure.check(
                found,
                id_col,
                metadata=metadata.value,
                captions=captions,
                nested_json=nested_json,
                storage_options=options,
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
        if own_workers and not is_transformers(model):
            check_name(model)
        with workers_of(cluster, scheduler_address, scheduler_file, workers) as client:
            dataset = ImageTextPairDataset.from_shards(
                found,
                id_col,
                metadata=metadata.value,
                rows_per_partition=rows_per_partition,
                nested_json=nested_json,
                storage_options=options,
                **of_images,
            )
            dataset = dataset if measure is None else measure(dataset)
            done = embedder(dataset).save_metadata(
                output, overwrite=overwrite, drop_failed=drop_failed, **saving
            )
            if before is not None:
                before.remember(done, repository_of(before.sources, model, client))
        return done

    interrupted = "finished shards are kept, the same command goes on from there"
    with summary_to(json_file) as put, told_plainly(interrupted):
        if own_workers and not (is_remote(output) or os.path.lexists(absolute(output))):
            load_ahead(cluster.value, workers)  # all is left to do
        # What is wrong with the arguments should not cost the start of a cluster.
        found = find_shards(input_path, options, images=images)
        source = choose_source(metadata.value, found, options)
        if not is_remote(output):
            if Path(absolute(output)).is_file():
                from curator_dask.outputs.saving import check_writable

                check_writable(absolute(output))  # which says so
            RunLock(absolute(output)).check()
        before: FinishedCommand | None = None
        files = () if captions in ("txt", "none") else (captions,)
        sources = Sources.of(model, model_dir, checkpoint, pretrained, files)
        if sources is not None and own_workers:  # workers elsewhere have other files
            asked = {name: value for name, value in context.params.items() if name not in _NOT_MADE_BY}
            same = output.partition("://")[0] == found.root.partition("://")[0]
            there = output_options if saving else options if same else None
            before = FinishedCommand(
                {**asked, "folder": str(Path.cwd())},
                found,
                source,
                locate(output, there),
                column,
                sources,
                device_of_new_workers(cluster.value)[0],
                options,
                there,
            )
        summary = (before.summary() if before is not None else None) or run()
        put(summary.to_dict())
    if summary.good < min_good:
        print(
            f"error: {summary.good:.1%} of the images have a vector, --min-good {min_good}", file=sys.stderr
        )
    if not summary.complete or not summary.good or summary.good < min_good:
        raise typer.Exit(EXIT_SHARD)
