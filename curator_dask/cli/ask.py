"""``ask``: how likely a model of transformers' finds each answer to a question about the images of shards."""

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


def ask(
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
            help="A model of transformers' that can be asked about images: org/repo, or its folder."
        ),
    ],
    question: Annotated[
        str,
        typer.Option(
            help="What the model is asked; {text} stands for the row's caption, {NAME} for its column NAME."
        ),
    ],
    answer: Annotated[
        list[str],
        typer.Option(
            metavar="[NAME=]TEXT",
            help="An answer, of which the probability goes into a column, COLUMN_NAME; several times.",
        ),
    ],
    column: Annotated[str, typer.Option(help="Begins the names of the columns.")] = "question",
    text: Annotated[str, typer.Option(help="The column that {text} stands for.")] = "caption",
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
    """Ask a model about every image, and add how likely it finds each answer as columns.

    Where OUTPUT has embeddings, statistics or other columns of the same shards, they stay. The same command again does
    only what is missing.

    Exit code 0: done, failed images are counted in the summary. 1: a shard could not be read, or not all of it, or an
    image with --raise-on-error; no image has answers. 2: wrong usage.
    """
    options = json_object(storage_options, "--storage-options") or None
    output_options = json_object(output_storage_options, "--output-storage-options")
    told = OverImages(context.params, options, output_options)

    def make(found: ShardSet) -> Steps:
        from curator_dask.image.asking import QuestionModel

        asks = QuestionModel(
            model,
            question=question,
            answers=_answers(answer),
            column=column,
            text=text,
            model_dir=model_dir,
            dtype=dtype,
            **told.reading,
        )
        how = {"metadata": metadata.value, "captions": captions, "nested_json": nested_json}
        asks.check(found, id_col, options, **how)
        return asks

    interrupted = "finished shards are kept, the same command goes on from there"
    with summary_to(json_file) as put, told_plainly(interrupted):
        summary = told.run(f"{column}_answer", make)
        put(summary.to_dict())
    if not summary.complete or not summary.good:
        raise typer.Exit(EXIT_SHARD)


def _answers(given: list[str]) -> list[str] | dict[str, str]:
    """Answers, or by the end of its column's name each of them, of ``NAME=TEXT``."""
    pairs = [each.partition("=") for each in given]
    if not any(mark for _, mark, _ in pairs):
        return given
    found = {name: text for name, mark, text in pairs if mark and name}
    if len(found) < len(given):
        raise typer.BadParameter(
            f"{given}: expected TEXT of all answers, or NAME=TEXT of all, each name once",
            param_hint="--answer",
        )
    return found
