"""``centroids``: clusters of an output's vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from curator_dask.cli.options import Embeddings, EmbeddingsOptions, json_object, told_plainly
from curator_dask.frames.names import EMBEDDING_COLUMN
from curator_dask.settings import check_local


def centroids(
    embeddings: Embeddings,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Where the centroids go, such as centroids.safetensors.")
    ],
    number: Annotated[int, typer.Option(min=1, help="Of clusters.")],
    seed: Annotated[int, typer.Option(min=0, help="Of what is picked by chance.")] = 0,
    column: Annotated[str, typer.Option(help="Column of the vectors.")] = EMBEDDING_COLUMN,
    overwrite: Annotated[bool, typer.Option(help="Replace FILE.")] = False,
    storage_options: EmbeddingsOptions = None,
) -> None:
    """Cluster the vectors of an output by k-means, in this process.

    `score --cluster-number NAME=FILE` then gives each image the number of its cluster. The same command
    again finds the same centroids, and leaves FILE as it is.

    Exit code 0: done. 2: wrong usage, fewer vectors than clusters among it.
    """
    options = json_object(storage_options, "--storage-options") or None
    if file.suffix != ".safetensors":
        raise typer.BadParameter(f"{file}: expected a name that ends in .safetensors", param_hint="FILE")
    from curator_dask.image.classifiers.centroids import find_centroids, read_centroids

    other = f"{file}: is there, and has other centroids; give another name, or --overwrite"
    keep = file.exists() and not overwrite
    with told_plainly("nothing was written"):
        check_local(file)
        if keep and len(read_centroids(file)[0]) != number:  # known before the vectors are read
            raise typer.BadParameter(other, param_hint="FILE")
        found = find_centroids(embeddings, number, column=column, seed=seed, storage_options=options)
        if keep:
            if file.read_bytes() != found.as_bytes():
                raise typer.BadParameter(other, param_hint="FILE")
            print(f"{file}: nothing to do, it has these centroids")
            return
        found.save(file)
        print(f"{found}: {file}")
