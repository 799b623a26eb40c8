"""``score``: heads on the vectors of an output, and statistics of its captions and images."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from curator_dask.cli.bucket_options import (
    Bucket,
    BucketColumn,
    BucketMax,
    BucketMin,
    BucketOf,
    BucketRatio,
    BucketStep,
    BucketUpscale,
    resolutions_in,
)
from curator_dask.cli.options import (
    EXIT_SHARD,
    Cluster,
    ClusterType,
    Embeddings,
    EmbeddingsOptions,
    JsonFile,
    LanguageModelFile,
    ModelDir,
    OutputOptions,
    PartOfRun,
    SchedulerAddress,
    SchedulerFile,
    TextPrefix,
    TextStatisticsOption,
    Workers,
    check_language_model,
    json_object,
    names_in,
    summary_to,
    told_plainly,
    workers_of,
)
from curator_dask.frames.names import CAPTION_COLUMN, EMBEDDING_COLUMN

if TYPE_CHECKING:
    from curator_dask.image.classifiers.files import Scorer, Scorers

#: In the place of a file: the one that is published, as the class finds it.
PUBLISHED = "default"
#: Of an embedder's arguments those that say how images are read.
_READING = ("decoder", "max_pixels", "use_index_files", "image_member", "gray16", "orientation")


def score(
    embeddings: Embeddings,
    output: Annotated[
        str | None,
        typer.Argument(
            metavar="OUTPUT", help="Where the files go with their scores.  [default: in their place]"
        ),
    ] = None,
    aesthetic: Annotated[
        str | None,
        typer.Option(
            help="LAION's aesthetic predictor: a file, or 'default', which is fetched. Column aesthetic_score.",
            show_default=False,
        ),
    ] = None,
    nsfw: Annotated[
        str | None,
        typer.Option(
            help="LAION's NSFW detector: a file, or 'default' for the one that is fetched once. Column nsfw_score.",
            show_default=False,
        ),
    ] = None,
    head: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE", help="A head of your own, and its column; several times.", show_default=False
        ),
    ] = None,
    clip_score: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Cosine of image and caption, by the text tower that belongs to the image vectors: a folder, or a"
            " repository of the hub. Column clip_score, or --clip-score-column.",
            show_default=False,
        ),
    ] = None,
    text_vectors: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="The same where the captions' vectors are there: their column, such as text_embedding. No model.",
            show_default=False,
        ),
    ] = None,
    clip_score_column: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the column of these two.")
    ] = "clip_score",
    neg_clip_loss: Annotated[
        bool,
        typer.Option(
            "--neg-clip-loss",
            help="CLIP score less how well image and caption fit those of other rows. Of the vectors in text_embedding"
            " (or --text-vectors), or by the model of --clip-score. Column neg_clip_loss.",
        ),
    ] = False,
    temperature: Annotated[
        float, typer.Option(help="Of --neg-clip-loss: 1 / the logit scale of the model.")
    ] = 0.01,
    contrast_batch: Annotated[
        int,
        typer.Option(
            min=1, metavar="ROWS", help="Of --neg-clip-loss: rows that each is compared with at a time."
        ),
    ] = 32768,
    contrast_batches: Annotated[
        int, typer.Option(min=1, metavar="NUMBER", help="Of --neg-clip-loss: how many such batches.")
    ] = 10,
    near: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FOLDER",
            help="Cosine to the nearest vector of another output of the same model, and its column; several times.",
            show_default=False,
        ),
    ] = None,
    near_norm: Annotated[
        str,
        typer.Option(
            metavar="max|2",
            help="Of --near: the largest cosine, or the root of the sum of their squares (NormSim, norms ∞ and 2).",
        ),
    ] = "max",
    cluster_number: Annotated[
        list[str] | None,
        typer.Option(
            "--cluster-number",
            metavar="NAME=FILE",
            help="Number of the nearest centroid in a file of `centroids`, and its column; several times.",
            show_default=False,
        ),
    ] = None,
    cluster_levels: Annotated[
        bool,
        typer.Option(
            "--cluster-levels",
            help="Of --cluster-number: of a file of several levels (`centroids --levels`) also the clusters above, in"
            " columns NAME_2, NAME_3 …",
        ),
    ] = False,
    cluster_distance: Annotated[
        list[str] | None,
        typer.Option(
            "--cluster-distance",
            metavar="NAME=FILE",
            help="Cosine distance to that centroid, and its column; several times.",
            show_default=False,
        ),
    ] = None,
    statistics: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A,B",
            help="Columns that say of each image what it is: phash,blurriness, or all; several times, too. Images are"
            " read as for the vectors.",
            show_default=False,
        ),
    ] = None,
    prefix: Annotated[str, typer.Option(help="Before the names of --statistics.")] = "",
    bucket: Bucket = None,
    bucket_step: BucketStep = 64,
    bucket_min: BucketMin = None,
    bucket_max: BucketMax = None,
    bucket_ratio: BucketRatio = None,
    bucket_upscale: BucketUpscale = True,
    bucket_of: BucketOf = None,
    bucket_column: BucketColumn = "bucket",
    text_statistics: TextStatisticsOption = None,
    same_captions: Annotated[
        bool,
        typer.Option(
            "--same-captions",
            help="How many rows, of all files, have the same caption. Column text_same_captions.",
        ),
    ] = False,
    text: Annotated[
        str, typer.Option(help="Column of the captions, for --clip-score and those that measure captions.")
    ] = CAPTION_COLUMN,
    text_prefix: TextPrefix = "text_",
    language_model: LanguageModelFile = None,
    model_dir: ModelDir = None,
    column: Annotated[str, typer.Option(help="Column of the vectors.")] = EMBEDDING_COLUMN,
    check: Annotated[bool, typer.Option(help="Refuse vectors that a head is not for.")] = True,
    overwrite: Annotated[
        bool, typer.Option(help="Replace scores of other heads, and others' columns.")
    ] = False,
    part: PartOfRun = None,
    cluster: Cluster = ClusterType.auto,
    scheduler_address: SchedulerAddress = None,
    scheduler_file: SchedulerFile = None,
    workers: Workers = None,
    storage_options: EmbeddingsOptions = None,
    output_storage_options: OutputOptions = None,
    json_file: JsonFile = None,
) -> None:
    """Score the vectors of an output, or measure its captions or images: a column for each, all else stays as it is.

    The same command again does only what is missing. No tar is opened, and no image decoded, but for --statistics.

    Exit code 0: done. 1: a file could not be read. 2: wrong usage, a head that is not for these vectors among it.
    """
    if part is not None and same_captions:
        raise typer.BadParameter(
            "counts the rows of all parts together: run it without --part, once all are done",
            param_hint="--same-captions",
        )
    options = json_object(storage_options, "--storage-options") or None
    output_options = json_object(output_storage_options, "--output-storage-options")
    files, folders = _pairs(head, "--head", "FILE"), _pairs(near, "--near", "FOLDER")
    centroids = _pairs(cluster_number, "--cluster-number", "FILE")
    distances = _pairs(cluster_distance, "--cluster-distance", "FILE")
    names = names_in(text_statistics, "--text-statistics")
    check_language_model(language_model, names)
    of_images = names_in(statistics, "--statistics")
    of_rows = names or of_images or same_captions or bucket
    if clip_score and text_vectors:
        raise typer.BadParameter(
            "--clip-score makes what --text-vectors has: give one", param_hint="--text-vectors"
        )
    if cluster_levels and not centroids:
        raise typer.BadParameter("needs --cluster-number NAME=FILE", param_hint="--cluster-levels")
    of_pairs = clip_score or text_vectors or neg_clip_loss
    if not (aesthetic or nsfw or files or folders or centroids or distances or of_pairs or of_rows):
        raise typer.BadParameter(
            "give a head, --aesthetic, --nsfw, --head, --near, --cluster-number, --clip-score, --text-vectors or"
            " --neg-clip-loss, or --statistics, --bucket, --text-statistics or --same-captions",
            param_hint="--head",
        )

    from curator_dask.image.classifiers import (
        AestheticClassifier,
        ClusterDistance,
        ClusterNumber,
        HeadClassifier,
        NsfwClassifier,
        ReferenceSimilarity,
        score_output,
    )
    from curator_dask.image.classifiers.levels import read_levels
    from curator_dask.image.statistics import AspectBuckets, ImageStatistics
    from curator_dask.image.statistics.buckets import measured_sides
    from curator_dask.outputs.settings_there import settings_of
    from curator_dask.text import ClipScore, NegClipLoss, SameCaptions, TextStatistics
    from curator_dask.text.embedders import TEXT_EMBEDDING_COLUMN, make_text_embedder

    interrupted = "files that were scored are kept, the same command goes on from there"
    with summary_to(json_file) as put, told_plainly(interrupted):
        heads: list[Scorer | Scorers] = []
        if aesthetic:
            path = None if aesthetic == PUBLISHED else aesthetic
            heads.append(AestheticClassifier(column, model_path=path, check=check))
        if nsfw:
            path = None if nsfw == PUBLISHED else nsfw
            heads.append(NsfwClassifier(column, model_path=path, check=check))
        heads += [HeadClassifier(path, name, column, check=check) for name, path in files]
        heads += [
            ReferenceSimilarity(path, name, column, check=check, norm=near_norm) for name, path in folders
        ]
        heads += [ClusterNumber(path, name, column, check=check) for name, path in centroids]
        if cluster_levels:
            heads += [
                ClusterNumber(path, f"{name}_{level}", column, check=check, level=level)
                for name, path in centroids
                for level in range(2, len(read_levels(path)) + 1)
            ]
        heads += [ClusterDistance(path, name, column, check=check) for name, path in distances]
        embedder = make_text_embedder(clip_score, model_dir, text_column=text) if clip_score else None
        if embedder is not None:
            heads.append(
                ClipScore(embedder, image_embedding_column=column, pred_column=clip_score_column, check=check)
            )
        if text_vectors:
            heads.append(
                ClipScore(
                    image_embedding_column=column,
                    text_embedding_column=text_vectors,
                    pred_column=clip_score_column,
                    check=check,
                )
            )
        if neg_clip_loss:
            heads.append(
                NegClipLoss(
                    embedder,
                    image_embedding_column=column,
                    text_embedding_column=text_vectors or TEXT_EMBEDDING_COLUMN,
                    temperature=temperature,
                    batch_size=contrast_batch,
                    batches=contrast_batches,
                    check=check,
                )
            )
        if names:
            heads.append(TextStatistics(names, text, prefix=text_prefix, language_model=language_model))
        if of_images:
            how = settings_of(embeddings, column, options)
            its = {name: how[name] for name in _READING if name in how}
            heads.append(ImageStatistics(of_images, prefix=prefix, **its))
        if bucket:
            if bucket_of is None:
                sides = measured_sides(of_images, prefix)
            else:
                sides = dict(
                    zip(("width", "height"), map(str.strip, bucket_of.partition(",")[::2]), strict=True)
                )
            heads.append(
                AspectBuckets(
                    resolutions_in(bucket),
                    step=bucket_step,
                    min_side=bucket_min,
                    max_side=bucket_max,
                    max_ratio=bucket_ratio,
                    upscale=bucket_upscale,
                    column=bucket_column,
                    **sides,
                )
            )
        if same_captions:
            heads.append(SameCaptions(text, prefix=text_prefix))
        summary = score_output(
            embeddings,
            heads,
            output,
            overwrite=overwrite,
            storage_options=options,
            output_storage_options=output_options if output_storage_options else None,
            workers=partial(workers_of, cluster, scheduler_address, scheduler_file, workers),
            part=part,
        )
        put(summary.to_dict())
    if not summary.complete:
        raise typer.Exit(EXIT_SHARD)


def _pairs(given: list[str] | None, option: str, what: str) -> list[tuple[str, str]]:
    """Names and paths of an option that is ``NAME=PATH``."""
    pairs = [each.partition("=") for each in given or ()]
    bad = [name + equals + path for name, equals, path in pairs if not (name and path)]
    if bad:
        raise typer.BadParameter(f"{bad[0]!r}: expected NAME={what}", param_hint=option)
    return [(name, path) for name, _, path in pairs]
