"""``search``: the images of an output that are nearest to a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from curator_dask.cli.options import (
    Embeddings,
    EmbeddingsOptions,
    check_sheet,
    json_object,
    save_sheet,
    told_plainly,
)
from curator_dask.frames.names import EMBEDDING_COLUMN


def search(
    embeddings: Embeddings,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What is looked for.")],
    model: Annotated[
        str,
        typer.Option(
            help="The text tower that belongs to the image vectors: transformers' CLIP or SigLIP (org/repo, or a"
            " folder), or a folder of sentence-transformers."
        ),
    ],
    model_dir: Annotated[
        str | None,
        typer.Option(help="Folder with the files of a repository, or for them.", show_default=False),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many images, at most.")] = 24,
    sheet: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw them into this file, such as found.png.", show_default=False),
    ] = None,
    column: Annotated[str, typer.Option(help="Column of the vectors.")] = EMBEDDING_COLUMN,
    check: Annotated[bool, typer.Option(help="Refuse vectors that the model is not for.")] = True,
    storage_options: EmbeddingsOptions = None,
) -> None:
    """Find the images whose vectors are nearest to a text's: score, key, shard and caption of each, a line an image.

    Every vector is compared, in this process. Images are read for --sheet alone, out of their tars.

    Exit code 0: done. 1: a shard could not be read. 2: wrong usage, a model that is not for these vectors among it.
    """
    options = json_object(storage_options, "--storage-options") or None
    check_sheet(sheet)

    from curator_dask.text.embedders import make_text_embedder
    from curator_dask.text.search import search as search_vectors
    from curator_dask.text.sheet import draw_sheet

    with told_plainly("nothing was written"):
        embedder = make_text_embedder(model, model_dir)
        hits = search_vectors(
            embeddings, text, embedder, top=top, column=column, check=check, storage_options=options
        )
        for hit in hits:
            caption = " ".join((hit.caption or "").split())
            print("\t".join([f"{hit.score:.4f}", str(hit.key), hit.url or "", caption]).rstrip("\t"))
        if sheet is not None:
            save_sheet(draw_sheet(text, hits, options), sheet)
