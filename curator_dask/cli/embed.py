"""``embed``: vectors of the images of shards."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curator_dask.cli.options import (
    EXIT_SHARD,
    BatchSize,
    Captions,
    Checkpoint,
    Cluster,
    ClusterType,
    Compile,
    Decoder,
    DecodeScale,
    DropFailed,
    Gray16,
    HowDecoded,
    IdColumn,
    ImageColumn,
    ImageMember,
    Images,
    ImagesPath,
    JsonFile,
    LanguageModelFile,
    MaxPixels,
    Metadata,
    ModelKwargs,
    NestedJson,
    Orientation,
    Output,
    OutputOptions,
    Overwrite,
    PartOfRun,
    Pretrained,
    RaiseOnError,
    RowSource,
    RowsPerPartition,
    SchedulerAddress,
    SchedulerFile,
    StorageOptions,
    TextPrefix,
    TextStatisticsOption,
    Threads,
    Workers,
    check_language_model,
    json_object,
    names_in,
    summary_to,
    told_plainly,
)
from curator_dask.cli.over_images import EachImage, OverImages, Steps
from curator_dask.frames.names import CAPTION_COLUMN

if TYPE_CHECKING:
    from curator_dask.datasets import ImageTextPairDataset
    from curator_dask.image.statistics import ImageStatistics
    from curator_dask.text import TextStatistics
    from curator_dask.webdataset.shards import ShardSet

#: Options of the model, and of what it makes.
_OF_MODEL = (
    *("model_dir", "batch_size", "column", "model_output", "model_kwargs", "pretrained", "checkpoint"),
    *("normalize", "autocast", "decode_scale", "cover", "compile", "raise_on_error"),
)


def embed(
    context: typer.Context,
    input_path: ImagesPath,
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Directory or URL for the Parquet files.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="Any timm model: a name with or without tag, hf-hub:org/repo, local-dir:/folder. Or transformers'"
            " CLIP or SigLIP: org/repo (openai/clip-vit-large-patch14), or its folder. Not needed for --statistics or"
            " --text-statistics alone.",
            show_default=False,
        ),
    ] = None,
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
    image_column: ImageColumn = "auto",
    each_image: EachImage = False,
    captions: Captions = "txt",
    rows_per_partition: RowsPerPartition = None,
    batch_size: BatchSize = 256,
    threads: Threads = 4,
    column: Annotated[str, typer.Option(help="Name of the embedding's column.")] = "image_embedding",
    model_output: Annotated[
        Output, typer.Option(help="Which output of the model is the vector.")
    ] = Output.auto,
    max_pixels: MaxPixels = None,
    model_kwargs: ModelKwargs = None,
    decoder: HowDecoded = Decoder.dali,
    pretrained: Pretrained = True,
    checkpoint: Checkpoint = None,
    normalize: Annotated[bool, typer.Option(help="Make vectors unit length.")] = True,
    autocast: Annotated[bool, typer.Option(help="bf16 or fp16 where that is fast, and exact enough.")] = True,
    orientation: Orientation = "stored",
    gray16: Gray16 = "scale",
    decode_scale: DecodeScale = "exact",
    cover: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Boxes, as of `detect`, that are covered with the colour around them before the model sees an image:"
            " of OUTPUT, or of the dataset.",
            show_default=False,
        ),
    ] = None,
    statistics: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A,B",
            help="Columns that say of each image what it is, made in the same pass: phash,blurriness, or all;"
            " metadata for what files say of places, authors, rights and AI. Several times, too.",
            show_default=False,
        ),
    ] = None,
    prefix: Annotated[
        str, typer.Option(help="Before the statistics' names, where the dataset has columns of these.")
    ] = "",
    text_statistics: TextStatisticsOption = None,
    text: Annotated[
        str, typer.Option(help="Column of the captions, for --text-statistics.")
    ] = CAPTION_COLUMN,
    text_prefix: TextPrefix = "text_",
    language_model: LanguageModelFile = None,
    image: ImageMember = None,
    compile: Compile = None,
    part: PartOfRun = None,
    overwrite: Overwrite = False,
    drop_failed: DropFailed = False,
    raise_on_error: RaiseOnError = False,
    min_good: Annotated[
        float, typer.Option(min=0, max=1, help="Exit code 1 if a smaller share of the images has a vector.")
    ] = 0.0,
    nested_json: NestedJson = False,
    storage_options: StorageOptions = None,
    output_storage_options: OutputOptions = None,
    json_file: JsonFile = None,
) -> None:
    """Embed every image, and write one Parquet file a shard; without --model, measure images or captions alone.

    An interrupted run is started again with the same command: finished shards are skipped.

    Exit code 0: done, failed images are counted in the summary. 1: a shard could not be read, or not all of it, or an
    image with --raise-on-error; no image has a vector, or fewer than --min-good. 2: wrong usage.
    """
    options = json_object(storage_options, "--storage-options") or None
    kwargs = json_object(model_kwargs, "--model-kwargs")
    output_options = json_object(output_storage_options, "--output-storage-options")
    names = names_in(statistics, "--statistics")
    of_texts = names_in(text_statistics, "--text-statistics")
    check_language_model(language_model, of_texts)
    if model is None:
        _check_without_model(context, names, of_texts)
    told = OverImages(context.params, options, output_options)

    def make(found: ShardSet) -> Steps:
        from curator_dask.image.embedders.making import finder_of, make_embedder
        from curator_dask.image.statistics import ImageStatistics

        reading = told.reading
        rows: dict[str, Any] = {
            "metadata": metadata.value,
            "captions": captions,
            "nested_json": nested_json,
            "storage_options": options,
        }
        measures: list[ImageStatistics | TextStatistics] = []
        if names is not None:
            not_its = ("batch_size", "decode_scale", "on_error")
            how = {name: value for name, value in reading.items() if name not in not_its}
            measure = ImageStatistics(names, prefix=prefix, **how)
            measure.check(found, id_col, **rows)
            measures.append(measure)
        if of_texts is not None:
            from curator_dask.text import TextStatistics

            texts = TextStatistics(of_texts, text, prefix=text_prefix, language_model=language_model)
            texts.check(found, id_col, **rows)
            measures.append(texts)
        embedder = finder = None
        if cover is not None:
            finder = finder_of(output, cover, output_options or options)
        if model is not None:
            embedder = make_embedder(
                model,
                model_dir,
                {
                    "pretrained": pretrained,
                    "output": model_output.value,
                    "checkpoint_path": checkpoint,
                    "model_kwargs": kwargs,
                },
                image_embedding_column=column,
                normalize_embeddings=normalize,
                autocast=autocast,
                compile="auto" if compile is None else compile,
                cover=cover,
                **reading,
            )

        def steps(dataset: ImageTextPairDataset) -> ImageTextPairDataset:
            for measure in measures:
                dataset = measure(dataset)
            dataset = dataset if finder is None else finder(dataset)
            return dataset if embedder is None else embedder(dataset)

        return steps

    interrupted = "finished shards are kept, the same command goes on from there"
    with summary_to(json_file) as put, told_plainly(interrupted):
        summary = told.run("" if model is None else column, make)
        put(summary.to_dict())
    if summary.good < min_good:
        print(
            f"error: {summary.good:.1%} of the images have a vector, --min-good {min_good}", file=sys.stderr
        )
    if not summary.complete or not summary.good or summary.good < min_good:
        raise typer.Exit(EXIT_SHARD)


def _check_without_model(context: typer.Context, *measured: list[str] | None) -> None:
    """Raise BadParameter where nothing is asked for but of a model, or something that is the model's."""
    if not any(measured):
        raise typer.BadParameter(
            "give a model, such as resnet50; or, for no vectors, --statistics or --text-statistics",
            param_hint="--model",
        )
    for name in _OF_MODEL:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = next(each for each in context.command.params if each.name == name).opts[0]
            raise typer.BadParameter("is of a model: give --model as well", param_hint=option)
