"""``classify``: what an image classification model sees in the images of shards."""

from __future__ import annotations

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
    JsonFile,
    MaxPixels,
    Metadata,
    ModelKwargs,
    NestedJson,
    Orientation,
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
    Threads,
    Workers,
    json_object,
    summary_to,
    told_plainly,
)
from curator_dask.cli.over_images import EachImage, OverImages, Steps

if TYPE_CHECKING:
    from curator_dask.image.classifiers import ClassificationModel
    from curator_dask.webdataset.shards import ShardSet


def classify(
    context: typer.Context,
    input_path: Annotated[
        str | None,
        typer.Argument(
            metavar="INPUT",
            help="Shards, a folder of image files, or Parquet with images, as of embed.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Argument(
            metavar="OUTPUT",
            help="Directory or URL for the Parquet files; those of embed that are there get columns.",
            show_default=False,
        ),
    ] = None,
    *,
    model: Annotated[
        str,
        typer.Option(
            help="Any timm model with a classifier: a name with or without tag, hf-hub:org/repo, local-dir:/folder. Or"
            " transformers' model for image classification: org/repo, or its folder."
        ),
    ],
    model_dir: Annotated[
        str | None,
        typer.Option(
            help="Folder with the weights of transformers', or for them.  [default: the hub's cache]"
        ),
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            metavar="COLUMN=CLASS[+CLASS]",
            help="A column with the probability of a class, or the sum of several; several times.",
            show_default=False,
        ),
    ] = None,
    label: Annotated[
        bool, typer.Option(help="Columns label and score: the likeliest class and its probability.")
    ] = True,
    prefix: Annotated[str, typer.Option(help="Before the name of each column.")] = "",
    class_names: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Names of the classes, one a line, in place of the model's own."),
    ] = None,
    activation: Annotated[
        str, typer.Option(help="softmax, sigmoid or none of the model's outputs; auto: as the model says.")
    ] = "auto",
    show: Annotated[
        bool, typer.Option("--list", help="Print the model's classes, and do nothing else.")
    ] = False,
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
    max_pixels: MaxPixels = None,
    model_kwargs: ModelKwargs = None,
    decoder: HowDecoded = Decoder.dali,
    pretrained: Pretrained = True,
    checkpoint: Checkpoint = None,
    autocast: Annotated[bool, typer.Option(help="Half precision on GPUs, where it is exact enough.")] = True,
    orientation: Orientation = "stored",
    gray16: Gray16 = "scale",
    decode_scale: DecodeScale = "exact",
    image: ImageMember = None,
    compile: Compile = None,
    part: PartOfRun = None,
    overwrite: Overwrite = False,
    drop_failed: DropFailed = False,
    raise_on_error: RaiseOnError = False,
    nested_json: NestedJson = False,
    storage_options: StorageOptions = None,
    output_storage_options: OutputOptions = None,
    json_file: JsonFile = None,
) -> None:
    """Classify every image, and write columns: the likeliest class, and the probabilities of those that you name.

    Where OUTPUT has embeddings, statistics or other classes of the same shards, they stay. The same command again does
    only what is missing.

    Exit code 0: done, failed images are counted in the summary. 1: a shard could not be read, or not all of it, or an
    image with --raise-on-error; no image could be classified. 2: wrong usage, an unknown class among it.
    """
    options = json_object(storage_options, "--storage-options") or None
    kwargs = json_object(model_kwargs, "--model-kwargs")
    output_options = json_object(output_storage_options, "--output-storage-options")
    chosen = _classes(classes)
    told = OverImages(context.params, options, output_options)

    def made(**reading: Any) -> ClassificationModel:
        from curator_dask.image.classifiers import ClassificationModel

        return ClassificationModel(
            model,
            pretrained=pretrained,
            checkpoint_path=checkpoint,
            model_kwargs=kwargs,
            model_dir=model_dir,
            prefix=prefix,
            classes=chosen,
            label=label,
            activation=activation,
            class_names=class_names,
            autocast=autocast,
            compile="auto" if compile is None else compile,
            **reading,
        )

    def make(found: ShardSet) -> Steps:
        classifies = made(**told.reading)
        how = {"metadata": metadata.value, "captions": captions, "nested_json": nested_json}
        classifies.check(found, id_col, options, **how)
        return classifies

    if show:
        with told_plainly("nothing was written"):
            print("\n".join(made().class_list()))
        return
    if input_path is None or output is None:
        raise typer.BadParameter("give INPUT and OUTPUT, or --list", param_hint="INPUT OUTPUT")
    first = prefix + ("label" if label else next(iter(chosen), ""))
    interrupted = "finished shards are kept, the same command goes on from there"
    with summary_to(json_file) as put, told_plainly(interrupted):
        summary = told.run(first, make)
        put(summary.to_dict())
    if not summary.complete or not summary.good:
        raise typer.Exit(EXIT_SHARD)


def _classes(given: list[str] | None) -> dict[str, list[str]]:
    """Columns and their classes, of ``COLUMN=CLASS+CLASS``."""
    found: dict[str, list[str]] = {}
    for each in given or ():
        column, _, names = each.partition("=")
        every = [name.strip() for name in names.split("+")]
        if not column or not all(every) or column in found:
            raise typer.BadParameter(
                f"{each!r}: expected COLUMN=CLASS or COLUMN=CLASS+CLASS, each column once. Give a class whose name has"
                " a + by its number",
                param_hint="--class",
            )
        found[column] = every
    return found
