"""Options of ``score`` for aspect-ratio buckets: the size to which each image is cropped for training."""

from __future__ import annotations

from typing import Annotated

import typer

from curator_dask.cli.options import names_in

Bucket = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PIXELS",
        help="Aspect-ratio bucket of each image, by its width and height: the side of the square, 1024; of several"
        " (1024,768) the largest that the image has pixels for. Or sizes: 1024x1024,832x1216.",
        show_default=False,
    ),
]
BucketStep = Annotated[int, typer.Option(min=1, help="Sides of buckets are multiples of it.")]
BucketMin = Annotated[
    int | None,
    typer.Option(min=1, help="Shortest side of a bucket.  [default: half of --bucket]", show_default=False),
]
BucketMax = Annotated[
    int | None,
    typer.Option(min=1, help="Longest side of a bucket.  [default: twice --bucket]", show_default=False),
]
BucketRatio = Annotated[
    float | None,
    typer.Option(
        min=1,
        help="Of a bucket's longer side to the shorter, at the most.  [default: any]",
        show_default=False,
    ),
]
BucketUpscale = Annotated[
    bool,
    typer.Option(help="Buckets, too, for images that have fewer pixels; else these get null."),
]
BucketOf = Annotated[
    str | None,
    typer.Option(
        metavar="WIDTH,HEIGHT",
        help="Columns of the pixels of the upright image.  [default: those of --statistics, else width,height]",
        show_default=False,
    ),
]
BucketColumn = Annotated[str, typer.Option(metavar="NAME", help="Name of the column of --bucket.")]


def resolutions_in(given: list[str]) -> list[int | str]:
    """Numbers as such, sizes as they are."""
    return [int(each) if each.isdecimal() else each for each in names_in(given, "--bucket") or ()]
