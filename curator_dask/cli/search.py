"""``search``: the images of an output that are nearest to a text, or to an image."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from curator_dask.cli.indexing import opened_index
from curator_dask.cli.options import (
    Cluster,
    ClusterType,
    Embeddings,
    EmbeddingsOptions,
    ModelDir,
    Recall,
    SchedulerAddress,
    SchedulerFile,
    Workers,
    check_sheet,
    json_object,
    save_sheet,
    told_plainly,
)
from curator_dask.frames.names import EMBEDDING_COLUMN
from curator_dask.settings import check_local


def search(
    embeddings: Embeddings,
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="What is looked for.", show_default=False)
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Instead of a text: an image of the output; itself it is not found.",
            show_default=False,
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="PART", help="Of the URL of its shard, where several have the key.", show_default=False
        ),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Instead of a text: an image in a file; it is embedded as those of the output were.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="For a text, the tower that belongs to the image vectors: transformers' CLIP or SigLIP (org/repo, or"
            " a folder), or a folder of sentence-transformers.",
            show_default=False,
        ),
    ] = None,
    model_dir: ModelDir = None,
    top: Annotated[int, typer.Option(min=1, help="How many images, at most.")] = 24,
    sheet: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw them into this file, such as found.png.", show_default=False),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(metavar="CONDITION", help='Only rows that pass: "width >= 256".', show_default=False),
    ] = None,
    index: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Search by an index of the vectors, in milliseconds; where need be it is made there, or made to fit.",
            show_default=False,
        ),
    ] = None,
    recall: Recall = None,
    column: Annotated[str, typer.Option(help="Column of the vectors.")] = EMBEDDING_COLUMN,
    check: Annotated[bool, typer.Option(help="Refuse vectors that the model is not for.")] = True,
    cluster: Cluster = ClusterType.auto,
    scheduler_address: SchedulerAddress = None,
    scheduler_file: SchedulerFile = None,
    workers: Workers = None,
    storage_options: EmbeddingsOptions = None,
) -> None:
    """Find the images whose vectors are nearest to a text's or an image's.

    Prints score, key, shard (or the folder of image files) and caption of each, a line an image.

    Every vector is compared, in this process, unless --index says where an index is or is to be. Workers are started
    where a large one is made. Images are read for --sheet alone, out of their tars.

    Exit code 0: done. 1: a shard could not be read. 2: wrong usage, a model that is not for these vectors among it.
    """
    options = json_object(storage_options, "--storage-options") or None
    check_sheet(sheet)
    given = {"TEXT": text, "--like": like, "--image": image}
    if sum(each is not None for each in given.values()) != 1:
        raise typer.BadParameter(f"expected one of {', '.join(given)}: what is looked for")
    if (text is None) != (model is None):
        raise typer.BadParameter("expected TEXT and --model together; or --like or --image, without --model")
    if shard is not None and like is None:
        raise typer.BadParameter("--shard is that of --like, which is not given")

    if index is None and (recall is not None or workers or scheduler_address or scheduler_file):
        raise typer.BadParameter("--recall, --workers and --scheduler-… are for --index, which is not given")

    said = "what is finished of the index is kept, the same command goes on from there"
    with told_plainly("nothing was written" if index is None else said):
        check_local(image or "")
        from curator_dask.indexing.searching import RECALL

        share = RECALL if recall is None else recall
        found = None
        if index is not None:
            place = scheduler_address, scheduler_file, workers
            with redirect_stdout(sys.stderr):  # progress is no result
                found = opened_index(embeddings, index, column, options, cluster, *place)
            print(f"{found.recall(top, share)}", file=sys.stderr)
        how: dict[str, Any] = {
            "top": top,
            "column": column,
            "where": where,
            "index": found,
            "recall": share,
            "storage_options": options,
        }
        if text is not None and model is not None:
            from curator_dask.text.embedders import make_text_embedder
            from curator_dask.text.search import search as search_vectors

            embedder, title = make_text_embedder(model, model_dir), f"“{text}”"
            hits = search_vectors(embeddings, text, embedder, check=check, **how)
        elif like is not None:
            from curator_dask.image.embedders.similar import similar_to_key

            title = f"like {like}"
            hits = similar_to_key(embeddings, like, shard=shard, **how)
        else:
            from curator_dask.image.embedders.similar import similar_to_image

            assert image is not None
            title = f"like {image.name}"
            hits = similar_to_image(embeddings, image, **how)
        from curator_dask.webdataset.folders import place_of

        for hit in hits:
            caption = " ".join((hit.caption or "").split())
            print("\t".join([f"{hit.score:.4f}", hit.name, place_of(hit.url or ""), caption]).rstrip("\t"))
        if sheet is not None:
            from curator_dask.text.sheet import draw_sheet

            save_sheet(draw_sheet(title, hits, options), sheet)
