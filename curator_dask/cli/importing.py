"""``import``: tables and vectors that were made elsewhere become an output."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from typing import Annotated

import typer

from curator_dask.cli.options import (
    EXIT_SHARD,
    Cluster,
    ClusterType,
    JsonFile,
    OutputOptions,
    PartOfRun,
    SchedulerAddress,
    SchedulerFile,
    Workers,
    json_object,
    names_in,
    summary_to,
    told_plainly,
    workers_of,
)


class Layout(StrEnum):
    """How vectors lie beside their tables."""

    auto = "auto"
    datacomp = "datacomp"
    clip_retrieval = "clip-retrieval"
    parquet = "parquet"


class Stored(StrEnum):
    """Of the vectors' numbers."""

    float32 = "float32"
    float16 = "float16"


def import_(
    vectors: Annotated[
        str,
        typer.Argument(
            metavar="VECTORS",
            help="Folder or URL of Parquet with .npz beside (DataComp), of metadata/ and img_emb/ (clip-retrieval), or"
            " of Parquet with lists of floats; with --rows an output.",
        ),
    ],
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Directory or URL for the Parquet files.")],
    layout: Annotated[Layout, typer.Option(help="Which of these it is.")] = Layout.auto,
    image_vectors: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Array, folder or column that becomes image_embedding: l14_img.  [default: the only one]",
            show_default=False,
        ),
    ] = None,
    text_vectors: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The same for text_embedding: l14_txt. Where one of the two is given it alone is taken.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="What made the vectors, as you say: openai/clip-vit-large-patch14. It is recorded as a claim.",
            show_default=False,
        ),
    ] = None,
    text_model: Annotated[
        str | None, typer.Option(help="The same of the texts'.  [default: --model]", show_default=False)
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option(
            help='Column of the keys, such as uid.  [default: "key", else file and number of the row]',
            show_default=False,
        ),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A,B", help="Others to keep; several times, too.  [default: all]", show_default=False
        ),
    ] = None,
    normalize: Annotated[bool, typer.Option(help="Make vectors unit length.")] = True,
    stored: Annotated[
        Stored, typer.Option(help="Numbers of the vectors; float16 takes half the disk.")
    ] = Stored.float32,
    rows_per_file: Annotated[
        int, typer.Option(min=1, help="Tables of more rows go into several files.")
    ] = 50_000,
    rows: Annotated[
        str | None,
        typer.Option(
            metavar="SHARDS",
            help="Give the rows of these shards, fetched since, the vectors of the output VECTORS.",
            show_default=False,
        ),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN[=ITS_COLUMN]",
            help="Of --rows: by what rows find theirs, and what it is called in VECTORS: uid, key=uid.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option(help="Replace files in OUTPUT that something else has made.")
    ] = False,
    part: PartOfRun = None,
    cluster: Cluster = ClusterType.cpu,
    scheduler_address: SchedulerAddress = None,
    scheduler_file: SchedulerFile = None,
    workers: Workers = None,
    storage_options: Annotated[
        str | None, typer.Option(help="JSON object for fsspec, where VECTORS is a URL.", show_default=False)
    ] = None,
    rows_storage_options: Annotated[
        str | None, typer.Option(help="The same for SHARDS, where that differs.", show_default=False)
    ] = None,
    output_storage_options: OutputOptions = None,
    json_file: JsonFile = None,
) -> None:
    """Make an output of vectors and tables of others: filter, score and deduplicate before you download an image.

    Of a table and its vectors, rows are told by their places: where the counts differ the file is not taken. The same
    command again does only what is missing. No image is opened.

    Exit code 0: done, rows without a usable vector are counted in the summary. 1: a file could not be read, or its
    counts differ; or no row has a vector. 2: wrong usage.
    """
    options = json_object(storage_options, "--storage-options") or None
    output_options = json_object(output_storage_options, "--output-storage-options") or None
    names = names_in(columns, "--columns")
    if (rows is None) != (on is None):
        raise typer.BadParameter("expected --rows and --on together", param_hint="--rows")
    of_vectors: dict[str, object] = {
        "--layout": layout != Layout.auto,
        "--image-vectors": image_vectors,
        "--text-vectors": text_vectors,
    }
    of_vectors |= {"--model": model, "--text-model": text_model, "--columns": names, "--id-column": id_column}
    of_vectors |= {"--part": part, "--stored": stored != Stored.float32}
    if rows is not None and (wrong := [name for name, value in of_vectors.items() if value]):
        raise typer.BadParameter(
            "is for vectors as they came; with --rows they are of an output, which says it",
            param_hint=wrong[0],
        )

    from curator_dask.importing import import_vectors, return_vectors

    interrupted = "files that were written are kept, the same command goes on from there"
    with summary_to(json_file) as put, told_plainly(interrupted):
        opens = partial(workers_of, cluster, scheduler_address, scheduler_file, workers)
        if rows is not None and on is not None:
            summary = return_vectors(
                vectors,
                rows,
                output,
                on=on,
                overwrite=overwrite,
                storage_options=options,
                shard_storage_options=json_object(rows_storage_options, "--rows-storage-options") or None,
                output_storage_options=output_options,
                workers=opens,
            )
        else:
            summary = import_vectors(
                vectors,
                output,
                layout=layout.value,
                image_vectors=image_vectors,
                text_vectors=text_vectors,
                model=model,
                text_model=text_model,
                id_column=id_column,
                columns=names,
                normalize=normalize,
                stored=stored.value,
                rows_per_file=rows_per_file,
                overwrite=overwrite,
                part=part,
                storage_options=options,
                output_storage_options=output_options,
                workers=opens,
            )
        put(summary.to_dict())
    if not summary.complete or not summary.good:
        raise typer.Exit(EXIT_SHARD)
