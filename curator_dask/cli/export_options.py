"""Options of ``export``: what their words mean, and those of images, splits and the card."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Keys(StrEnum):
    """Which keys the samples have."""

    original = "original"
    sequential = "sequential"


class Names(StrEnum):
    """How members are named."""

    original = "original"
    portable = "portable"


class ImageFormat(StrEnum):
    """What the files of smaller images are."""

    keep = "keep"
    jpeg = "jpeg"
    webp = "webp"
    png = "png"


class Format(StrEnum):
    """What the samples are in."""

    webdataset = "webdataset"
    parquet = "parquet"


class Columns(StrEnum):
    """Where the columns go."""

    parquet = "parquet"
    json = "json"
    none = "none"


MaxSide = Annotated[
    int | None,
    typer.Option(
        metavar="PIXELS",
        min=1,
        help="Make larger images smaller: the longest side at most so long.",
        show_default=False,
    ),
]
MinSide = Annotated[
    int | None,
    typer.Option(metavar="PIXELS", min=1, help="The same of the shortest side, instead.", show_default=False),
]
Quality = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=100,
        help="Of smaller or blurred JPEG and WebP images.  [default: 90]",
        show_default=False,
    ),
]
SmallerFormat = Annotated[
    ImageFormat, typer.Option(help="Of smaller images; a format is that of all, where it can be.")
]


class Whole(StrEnum):
    """Which of a sample's images must pass, where samples are exported whole."""

    all = "all"
    any = "any"
    first = "first"


Samples = Annotated[
    Whole | None,
    typer.Option(
        metavar="all|any|first",
        help="Of rows that are images of samples: whole samples, all images of which, any, or the first pass. Else each"
        " image is a sample of its own.",
        show_default=False,
    ),
]


class MetadataOut(StrEnum):
    """What metadata images lose."""

    all = "all"
    location = "location"


StripMetadata = Annotated[
    MetadataOut | None,
    typer.Option(
        metavar="WHAT",
        help="Leave metadata out of JPEG, PNG and WebP, their pixels as they are: all, or location (where they were"
        " taken) alone.",
        show_default=False,
    ),
]
By = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN",
        help="Tars of rows of one value, in a folder of each: OUTPUT/en, with --split OUTPUT/train/en. Or an"
        " expression of columns.",
        show_default=False,
    ),
]
ByMost = Annotated[
    int | None,
    typer.Option(min=1, help="Of --by: more values are refused.  [default: 1000]", show_default=False),
]
BucketSize = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN",
        help="Column of sizes (832x1216), as score --bucket makes it, or one size for all: images are resized and"
        " cropped to them.",
        show_default=False,
    ),
]
Split = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=SHARE",
        help="A share (val=0.01) or number (test=1000) of samples for tars in OUTPUT/NAME; all others go to"
        " OUTPUT/train. Several times, too.",
        show_default=False,
    ),
]
SplitBy = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN", help="Rows with the same value there go to one split.", show_default=False
    ),
]
SplitGroups = Annotated[
    str | None,
    typer.Option(
        metavar="DUPLICATES",
        help="Folder that dedup wrote to: near copies of one group go to one split.",
        show_default=False,
    ),
]
SplitSeed = Annotated[int, typer.Option(min=0, help="Of the hash that decides.")]
Index = Annotated[bool, typer.Option(help="DALI's .idx beside each tar.")]
Sizes = Annotated[
    bool | None,
    typer.Option(
        "--sizes/--no-sizes",
        help="sizes.json beside the tars, which open_clip reads.  [default: unless they are alone there]",
        show_default=False,
    ),
]
Card = Annotated[
    bool, typer.Option("--card", help="README.md in OUTPUT, a card of the dataset, where there is none.")
]
CardField = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=TEXT",
        help="What the card says of license, source, pretty_name, task_categories, language or tags; several"
        " times, too. Of the last three commas part several: tags=photo,street.",
        show_default=False,
    ),
]
