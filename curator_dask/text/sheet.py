"""A contact sheet of the images that a search has found."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from curator_dask.errors import OutputError
from curator_dask.outputs.nearest import Hit
from curator_dask.rows.thumbnails import read_thumbnails
from curator_dask.rows.tiles import COLUMNS, FAINT, GAP, INK, MARGIN, TILE, cut, fonts, put_tile
from curator_dask.storage import Options

# Pixels.
TITLE, HEADER = 46, 72


def draw_sheet(title: str, hits: Sequence[Hit], options: Options = None) -> Image.Image:
    """The images in lines, the nearest first, each with its score, its key and its caption.

    One that cannot be read is an empty tile with the reason.

    Parameters
    ----------
    title
        What was looked for.
    hits
        What was found.
    options
        For fsspec, where shards are URLs.

    Returns
    -------
    PIL.Image.Image
        RGB.

    Raises
    ------
    OutputError
        The rows do not say in which shards their images are.
    """
    if hits and all(hit.url is None for hit in hits):
        raise OutputError(
            "the files have no column '__url__' of shards, there are no images in them, and no tars beside them:"
            " without these no image can be found. Give the folder that embed wrote to, or that of an export"
        )
    columns = max(1, min(COLUMNS, len(hits)))
    lines = -(-len(hits) // columns)
    width = max(2 * MARGIN + columns * (TILE + GAP) - GAP, 480)
    sheet = Image.new("RGB", (width, HEADER + lines * (TILE + TITLE + GAP) + MARGIN // 2), "white")
    draw = ImageDraw.Draw(sheet)
    big, bold, small = fonts()
    draw.text((MARGIN, 24), cut(title, big, width - 2 * MARGIN), fill=INK, font=big)
    keys, urls = [hit.key for hit in hits], [hit.url for hit in hits]
    for number, tile in read_thumbnails(keys, urls, TILE, options):
        x = MARGIN + number % columns * (TILE + GAP)
        y = HEADER + number // columns * (TILE + TITLE + GAP)
        hit = hits[number]
        put_tile(sheet, x, y, tile)
        draw.text((x, y + TILE + 5), f"{hit.score:.3f}", fill=INK, font=bold)
        key = cut(hit.name, small, TILE - 56)
        draw.text((x + TILE, y + TILE + 7), key, fill=FAINT, font=small, anchor="ra")
        caption = cut(" ".join((hit.caption or "").split()), small, TILE)
        draw.text((x, y + TILE + 25), caption, fill=FAINT, font=small)
    return sheet
