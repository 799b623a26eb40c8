"""``export``: the samples of chosen rows in new tars."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext
from functools import partial
from typing import Annotated

import typer

from curator_dask.cli import latent_options as latent
from curator_dask.cli.export_options import (
    BucketSize,
    By,
    ByMost,
    Card,
    CardField,
    Columns,
    Format,
    ImageFormat,
    Index,
    Keys,
    MaxSide,
    MinSide,
    Names,
    Quality,
    Samples,
    Sizes,
    SmallerFormat,
    Split,
    SplitBy,
    SplitGroups,
    SplitSeed,
    StripMetadata,
)
from curator_dask.cli.options import (
    EXIT_SHARD,
    Blur,
    BlurKeepUnseen,
    BlurOnly,
    BlurStrength,
    Cluster,
    ClusterType,
    IdColumn,
    ImageColumn,
    Images,
    JsonFile,
    ModelDir,
    OutputOptions,
    PartOfRun,
    SchedulerAddress,
    SchedulerFile,
    StorageOptions,
    Workers,
    bytes_in,
    json_object,
    names_in,
    summary_to,
    told_plainly,
    workers_of,
)


def export(
    input_path: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="Shards or images, as embed takes them; or what embed, score or filter wrote.",
        ),
    ],
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Directory or URL for the tars.")],
    where: Annotated[
        str | None,
        typer.Option(
            metavar="CONDITION",
            help='Rows to take, as behind SQL\'s WHERE: "aesthetic_score > 5.5". Null never passes.',
            show_default=False,
        ),
    ] = None,
    filter_column: Annotated[
        str | None, typer.Option(help="A column of booleans: rows to take.", show_default=False)
    ] = None,
    without: Annotated[
        str | None,
        typer.Option(
            metavar="DUPLICATES",
            help="Folder that dedup wrote to: rows with a better twin stay out.",
            show_default=False,
        ),
    ] = None,
    next_best: Annotated[
        bool,
        typer.Option(
            "--next-best",
            help="Of --without: where the best of a group does not pass, the best that passes stays.",
        ),
    ] = False,
    samples: Samples = None,
    format: Annotated[
        Format, typer.Option(help="Tars, or Parquet files with the images in them.")
    ] = Format.webdataset,
    samples_per_shard: Annotated[
        int, typer.Option(min=1, help="Samples of every tar but the last.")
    ] = 10_000,
    shard_bytes: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="At most so much a tar instead: 1GB.", show_default=False),
    ] = None,
    shards: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="So many tars of equal size instead: a multiple of ranks times workers that train.",
            show_default=False,
        ),
    ] = None,
    max_shards: Annotated[int, typer.Option(min=1, help="Digits of the tars' numbers.")] = 5,
    keys: Annotated[
        Keys | None,
        typer.Option(
            help="original, or sequential: the tar's number and the sample's.  [default: original]",
            show_default=False,
        ),
    ] = None,
    old_id_col: Annotated[
        str | None,
        typer.Option(
            help="Column and JSON field for the key before; makes keys sequential.", show_default=False
        ),
    ] = None,
    layout: Annotated[
        Names | None,
        typer.Option(
            help="Names as they were, or such that readers take them alike.  [default: portable with sequential keys]",
            show_default=False,
        ),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A,B",
            help="Columns that become fields of each sample's JSON; several times, too.",
            show_default=False,
        ),
    ] = None,
    caption: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column of text for each sample's .txt.", show_default=False),
    ] = None,
    npy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A,B",
            help="Columns of vectors that become members, KEY.A.npy; several times, too.",
            show_default=False,
        ),
    ] = None,
    metadata: Annotated[
        Columns, typer.Option(help="All columns: beside each tar, in each sample's JSON, or nowhere.")
    ] = Columns.parquet,
    shuffle: Annotated[
        int | None,
        typer.Option(metavar="SEED", min=0, help="A random order over all samples.", show_default=False),
    ] = None,
    max_side: MaxSide = None,
    min_side: MinSide = None,
    quality: Quality = None,
    image_format: SmallerFormat = ImageFormat.keep,
    image: Annotated[
        str | None,
        typer.Option(
            help="Which of several images of a sample is made smaller, or goes into Parquet, as image.png.",
            show_default=False,
        ),
    ] = None,
    blur: Blur = None,
    blur_only: BlurOnly = None,
    blur_strength: BlurStrength = 1.0,
    blur_keep_unseen: BlurKeepUnseen = False,
    strip_metadata: StripMetadata = None,
    bucket_size: BucketSize = None,
    latents: latent.Model = None,
    latents_form: latent.Form = None,
    latents_scaled: latent.Scaled = False,
    latents_stored: latent.Kept = None,
    latents_dtype: latent.Dtype = None,
    latents_seed: latent.Seed = None,
    latents_batch: latent.Batch = None,
    latents_only: latent.Only = False,
    text_states: latent.States = None,
    model_dir: ModelDir = None,
    by: By = None,
    by_most: ByMost = None,
    split: Split = None,
    split_by: SplitBy = None,
    split_groups: SplitGroups = None,
    split_seed: SplitSeed = 0,
    index: Index = True,
    sizes: Sizes = None,
    card: Card = False,
    card_field: CardField = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Write and leave nothing: say how many tars, and whether the disk has room."
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace what another export has written there.")] = False,
    append: Annotated[
        bool,
        typer.Option(
            "--append",
            help="Tars that are there stay as they are: samples that are in none of them go into new tars behind.",
        ),
    ] = False,
    id_col: IdColumn = "key",
    images: Images = False,
    image_column: ImageColumn = "auto",
    part: PartOfRun = None,
    cluster: Cluster = ClusterType.auto,
    scheduler_address: SchedulerAddress = None,
    scheduler_file: SchedulerFile = None,
    workers: Workers = None,
    storage_options: StorageOptions = None,
    output_storage_options: OutputOptions = None,
    json_file: JsonFile = None,
) -> None:
    """Write the samples of the rows that pass into new tars, every member byte for byte, with all columns beside.

    With --max-side or --min-side large images are made smaller on the way, with --blur regions of some are blurred,
    with --bucket-size all get a size, and with --latents a VAE's latents; all others are copied. With --format parquet
    images and columns go into Parquet files, of which Hugging Face's datasets and its hub show the images.

    The same command again does only what is missing. OUTPUT.export keeps what that needs, and says in its manifest
    where each sample comes from.

    Exit code 0: done. 1: a tar could not be read, or not all of it, or not written; no sample is
    left. 2: wrong usage.
    """
    size = bytes_in(shard_bytes, "--shard-bytes")
    names, vectors = names_in(columns, "--columns"), names_in(npy, "--npy")
    how = {"form": latents_form, "scaled": latents_scaled, "stored": latents_stored, "dtype": latents_dtype}
    more = {"seed": latents_seed, "batch_size": latents_batch, "only": latents_only}
    encoding = latent.given(latents, {**how, **more}, model_dir)
    shares = {name: _share(text) for name, text in _pairs(split, "--split", "val=0.01").items()} or None
    from curator_dask.outputs.card_fields import LISTS

    said = _pairs(card_field, "--card-field", "license=cc-by-4.0", LISTS)
    options = json_object(storage_options, "--storage-options") or None
    output_options = json_object(output_storage_options, "--output-storage-options") or None

    from curator_dask import backend
    from curator_dask.cluster.device import device_of_new_workers
    from curator_dask.datasets import ImageTextPairDataset
    from curator_dask.errors import OutputError
    from curator_dask.outputs.export_options import ExportOptions
    from curator_dask.outputs.exporting import export_frame, export_output
    from curator_dask.outputs.failed import output_files
    from curator_dask.outputs.groups import MOST
    from curator_dask.outputs.placing import locate
    from curator_dask.rows.reading import choose_source, learn_schema
    from curator_dask.runs.parts import Part
    from curator_dask.webdataset.finding import find_shards
    from curator_dask.webdataset.shards import NoTarsError

    interrupted = "tars that are finished are kept, the same command goes on from there"
    with summary_to(json_file) as put, told_plainly(interrupted):
        chosen = ExportOptions(
            filter_column=filter_column,
            samples_per_shard=samples_per_shard,
            max_shards=max_shards,
            old_id_col=old_id_col,
            where=where,
            columns=names,
            keys=None if keys is None else keys.value,
            layout=None if layout is None else layout.value,
            shard_bytes=size,
            shards=shards,
            shuffle=shuffle,
            metadata=None if metadata is Columns.none else metadata.value,
            index=index,
            overwrite=overwrite,
            append=append,
            dry_run=dry_run,
            without=without,
            next_best=next_best,
            samples=None if samples is None else samples.value,
            caption=caption,
            max_side=max_side,
            min_side=min_side,
            quality=quality,
            image_format=image_format.value,
            image_member=image,
            bucket_size=bucket_size,
            latents=encoding,
            text_states=latent.states(text_states),
            by=by,
            by_most=MOST if by_most is None else by_most,
            splits=shares,
            split_by=split_by,
            split_groups=split_groups,
            split_seed=split_seed,
            sizes=sizes,
            card=said or card,
            blur=blur,
            blur_only=names_in(blur_only, "--blur-only") or (),
            blur_strength=blur_strength,
            blur_keep_unseen=blur_keep_unseen,
            npy=vectors,
            format=format.value,
            strip_metadata=None if strip_metadata is None else strip_metadata.value,
        )
        only = Part.of_given(part)
        try:
            found = find_shards(input_path, options, images=images, image_column=image_column, id_col=id_col)
        except NoTarsError as error:
            found = None
            if not output_files(locate(input_path, options), options):
                raise OutputError(f"neither a tar nor a Parquet file is there: {error}") from None
        if found is not None and only is not None:
            raise OutputError(
                f"{input_path}: part {only} of an export is of rows that are there, which all parts plan by: give what"
                " embed, score or filter wrote, or leave out --part"
            )
        start = partial(workers_of, cluster, scheduler_address, scheduler_file, workers)
        if found is None:
            summary = export_output(
                input_path,
                output,
                chosen,
                id_col=id_col,
                storage_options=options,
                output_storage_options=output_options,
                workers=start,
                part=part,
            )
        else:
            of_rows = (where, columns, filter_column, old_id_col, caption, npy, split_by, by, samples)
            if any((*of_rows, chosen.size_column, blur)):
                source = choose_source("auto", found, options)
                schema = learn_schema(found.shards, source, id_col, options)
                chosen.check_columns(schema.empty_table(), schema.names)
            elsewhere = bool(scheduler_address or scheduler_file)
            # Frames must be of the kind that workers make: it is known without them where they are as this process.
            alike = not elsewhere and device_of_new_workers(cluster.value)[0] == backend.current().device
            with nullcontext() if alike else start():
                dataset = ImageTextPairDataset.from_shards(found, id_col, storage_options=options)
                summary = export_frame(
                    dataset.metadata,
                    (),
                    dataset.tar_files,
                    output,
                    chosen,
                    id_col=id_col,
                    input_options=options,
                    output_options=output_options,
                    workers=start if alike else nullcontext,
                )
        put(summary.to_dict())
    if not summary.complete or summary.empty:
        raise typer.Exit(EXIT_SHARD)


def _pairs(
    given: list[str] | None, option: str, example: str, several: Collection[str] = ()
) -> dict[str, str]:
    """Names and what stands behind each ``=``; of those that may come several times all of it, with commas between."""
    found: dict[str, str] = {}
    for text in given or ():
        name, mark, value = (part.strip() for part in text.partition("="))
        if not (name and mark and value):
            raise typer.BadParameter(
                f"{text!r}: expected a name and a value, as {example}", param_hint=option
            )
        if name in found and name in several:
            value = f"{found[name]},{value}"
        elif name in found:
            raise typer.BadParameter(f"{text!r}: {name} is there twice", param_hint=option)
        found[name] = value
    return found


def _share(text: str) -> float | int:
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r}: expected a share, as val=0.01, or a number of samples, as test=1000",
            param_hint="--split",
        ) from None
