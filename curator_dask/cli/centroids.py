"""``centroids``: clusters of an output's vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from curator_dask.cli.options import Embeddings, EmbeddingsOptions, json_object, told_plainly
from curator_dask.frames.names import EMBEDDING_COLUMN
from curator_dask.settings import check_local


def centroids(
    embeddings: Embeddings,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Where the centroids go, such as centroids.safetensors.")
    ],
    number: Annotated[int | None, typer.Option(min=1, help="Of clusters.", show_default=False)] = None,
    levels: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,…",
            help="In its place, clusters of clusters: how many on each level, such as 10000,1000,100 (hierarchical"
            " k-means).",
            show_default=False,
        ),
    ] = None,
    resample: Annotated[
        str,
        typer.Option(
            metavar="N|N,N,…",
            help="Of --levels: how often each is made again of the points nearest to its centroids, which spreads these"
            " evenly; for all, or for each.",
        ),
    ] = "10",
    seed: Annotated[int, typer.Option(min=0, help="Of what is picked by chance.")] = 0,
    column: Annotated[str, typer.Option(help="Column of the vectors.")] = EMBEDDING_COLUMN,
    overwrite: Annotated[bool, typer.Option(help="Replace FILE.")] = False,
    storage_options: EmbeddingsOptions = None,
) -> None:
    """Cluster the vectors of an output by k-means, in this process.

    `score --cluster-number NAME=FILE` then gives each image the number of its cluster, and `balance --clusters FILE`
    keeps some of each; of --levels as many of each branch. The same command again finds the same centroids, and leaves
    FILE as it is.

    Exit code 0: done. 2: wrong usage, fewer vectors than clusters among it.
    """
    options = json_object(storage_options, "--storage-options") or None
    if file.suffix != ".safetensors":
        raise typer.BadParameter(f"{file}: expected a name that ends in .safetensors", param_hint="FILE")
    if (number is None) == (levels is None):
        raise typer.BadParameter("give one of --number and --levels", param_hint="--number")
    other = f"{file}: is there, and has other centroids; give another name, or --overwrite"
    keep = file.exists() and not overwrite
    if levels is not None:
        how = {"levels": _whole(levels, "--levels"), "resampling": _whole(resample, "--resample")}
        if len(how["resampling"]) == 1:
            how["resampling"] *= len(how["levels"])
        _levels(embeddings, file, keep, other, column=column, seed=seed, storage_options=options, **how)
        return
    assert number is not None
    from curator_dask.image.classifiers.centroids import find_centroids, read_centroids

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


def _whole(text: str, option: str) -> list[int]:
    try:
        return [int(each) for each in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"{text!r}: expected whole numbers, such as 10000,1000,100", param_hint=option
        ) from None


def _levels(embeddings: str, file: Path, keep: bool, other: str, **how: Any) -> None:
    from curator_dask.image.classifiers.hierarchical import Drawn
    from curator_dask.image.classifiers.levels import made_of

    with told_plainly("nothing was written"):
        check_local(file)
        drawn = Drawn.of(embeddings, **how)
        if keep:
            if made_of(file) != drawn.made:
                raise typer.BadParameter(other, param_hint="FILE")
            print(f"{file}: nothing to do, it has these centroids")
            return
        found = drawn.cluster()
        found.levels.save(file)
        print(f"{found}\n{file}")
