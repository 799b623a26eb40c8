"""``caption``: what a model of transformers' writes about the images of shards."""

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
    Orientation,
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
    summary_to,
    told_plainly,
)
from curator_dask.cli.over_images import Arithmetic, EachImage, ModelDir, OverImages, Steps, Together

if TYPE_CHECKING:
    from curator_dask.webdataset.shards import ShardSet


def caption(
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
            help="A model of transformers' that writes texts about images: org/repo, or its folder."
        ),
    ],
    prompt: Annotated[
        str | None,
        typer.Option(
            help="What the model is asked; of BLIP and GIT how a caption begins.  [default: nothing]",
            show_default=False,
        ),
    ] = None,
    column: Annotated[str, typer.Option(help="For the captions.")] = "generated_caption",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a caption, at most.")] = 64,
    num_beams: Annotated[int, typer.Option(min=1, help="1: the likeliest token each time; else beams.")] = 1,
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
    orientation: Orientation = "stored",
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
    """Have a model write about every image, and add its texts as a column.

    Where OUTPUT has embeddings, statistics or other columns of the same shards, they stay. The same command again does
    only what is missing.

    Exit code 0: done, failed images are counted in the summary. 1: a shard could not be read, or not all of it, or an
    image with --raise-on-error; no image has a caption. 2: wrong usage.
    """
    options = json_object(storage_options, "--storage-options") or None
    output_options = json_object(output_storage_options, "--output-storage-options")
    told = OverImages(context.params, options, output_options)

    def make(found: ShardSet) -> Steps:
        from curator_dask.image.captioning import CaptionModel

        writes = CaptionModel(
            model,
            prompt=prompt,
            column=column,
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            model_dir=model_dir,
            dtype=dtype,
            **told.reading,
        )
        how = {"metadata": metadata.value, "captions": captions, "nested_json": nested_json}
        writes.check(found, id_col, options, **how)
        return writes

    interrupted = "finished shards are kept, the same command goes on from there"
    with summary_to(json_file) as put, told_plainly(interrupted):
        summary = told.run(column, make)
        put(summary.to_dict())
    if not summary.complete or not summary.good:
        raise typer.Exit(EXIT_SHARD)
