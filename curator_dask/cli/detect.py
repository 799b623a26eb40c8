"""``detect``: what a model of transformers' finds in the images of shards, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from curator_dask.cli.options import (
    EXIT_SHARD,
    Captions,
    Cluster,
    ClusterType,
    Decoder,
    DropFailed,
    Gray16,
    HowDecoded,
    IdColumn,
    ImageColumn,
    ImageMember,
    Images,
    JsonFile,
    MaxPixels,
    Metadata,
    NestedJson,
    OutputOptions,
    Overwrite,
    PartOfRun,
    RaiseOnError,
    RowSource,
    RowsPerPartition,
    SchedulerAddress,
    SchedulerFile,
    StorageOptions,
    Threads,
    Workers,
    json_object,
    names_in,
    summary_to,
    told_plainly,
)
from curator_dask.cli.over_images import Arithmetic, EachImage, ModelDir, OverImages, Steps, Together

if TYPE_CHECKING:
    from curator_dask.webdataset.shards import ShardSet


def detect(
    context: typer.Context,
    input_path: Annotated[
        str,
        typer.Argument(
            metavar="INPUT", help="Shards, a folder of image files, or Parquet with images, as of embed."
        ),
    ],
    output: Annotated[
        str,
        typer.Argument(
            metavar="OUTPUT",
            help="Directory or URL for the Parquet files; those of embed that are there get the column.",
        ),
    ],
    *,
    model: Annotated[
        str,
        typer.Option(
            help="A model of transformers' for object detection, or for what texts name: org/repo, or its folder."
        ),
    ],
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Scores are larger.  [default: 0.5, with prompts 0.1, of text 0.6]",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A,B", help="Of the model's classes, these alone; several times, too.", show_default=False
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="What is looked for, by a model that is asked (OWLv2, Grounding DINO); several times.",
            show_default=False,
        ),
    ] = None,
    prefix: Annotated[str, typer.Option(help="Of the columns' names.")] = "detected",
    model_dir: ModelDir = None,
    dtype: Arithmetic = "auto",
    cluster: Cluster = ClusterType.auto,
    scheduler_address: SchedulerAddress = None,
    scheduler_file: SchedulerFile = None,
    workers: Workers = None,
    id_col: IdColumn = "key",
    metadata: RowSource = Metadata.auto,
    images: Images = False,
    image_column: ImageColumn = "auto",
    each_image: EachImage = False,
    captions: Captions = "txt",
    rows_per_partition: RowsPerPartition = None,
    batch_size: Together = 16,
    threads: Threads = 4,
    max_pixels: MaxPixels = None,
    decoder: HowDecoded = Decoder.dali,
    gray16: Gray16 = "scale",
    image: ImageMember = None,
    part: PartOfRun = None,
    overwrite: Overwrite = False,
    drop_failed: DropFailed = False,
    raise_on_error: RaiseOnError = False,
    nested_json: NestedJson = False,
    storage_options: StorageOptions = None,
    output_storage_options: OutputOptions = None,
    json_file: JsonFile = None,
) -> None:
    """Have a model find things in every image, and add them as columns: boxes, labels, scores, how many, how large.

    Where OUTPUT has embeddings, statistics or other columns of the same shards, they stay. The same command again does
    only what is missing. `export --blur detected_boxes` blurs what is found.

    Exit code 0: done, failed images are counted in the summary. 1: a shard could not be read, or not all of it, or an
    image with --raise-on-error; no image could be looked at. 2: wrong usage.
    """
    names = names_in(only, "--only")
    options = json_object(storage_options, "--storage-options") or None
    output_options = json_object(output_storage_options, "--output-storage-options")
    told = OverImages(context.params, options, output_options)

    def make(found: ShardSet) -> Steps:
        from curator_dask.image.detection import DetectionModel

        finds = DetectionModel(
            model,
            threshold=threshold,
            only=names or (),
            prompts=prompt or (),
            prefix=prefix,
            model_dir=model_dir,
            dtype=dtype,
            **told.reading,
        )
        how = {"metadata": metadata.value, "captions": captions, "nested_json": nested_json}
        finds.check(found, id_col, options, **how)
        return finds

    interrupted = "finished shards are kept, the same command goes on from there"
    with summary_to(json_file) as put, told_plainly(interrupted):
        summary = told.run(f"{prefix}_boxes", make)
        put(summary.to_dict())
    if not summary.complete or not summary.good:
        raise typer.Exit(EXIT_SHARD)
