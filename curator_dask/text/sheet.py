"""A contact sheet of the images that a search has found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from curator_dask.errors import OutputError
from curator_dask.rows.thumbnails import read_thumbnails
from curator_dask.storage import Options
from curator_dask.text.search import Hit

# Pixels.
TILE, GAP, MARGIN, TITLE, HEADER, COLUMNS = 200, 16, 32, 46, 72, 6
_INK, _FAINT, _EMPTY = "#1c1f24", "#6b7280", "#eceef1"


def draw_sheet(text: str, hits: Sequence[Hit], options: Options = None) -> Image.Image:
    """The images in lines, the nearest first, each with its score, its key and its caption.

    One that cannot be read is an empty tile with the reason.

    Parameters
    ----------
    text
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
        raise OutputError("the files have no column '__url__' of shards: without it no image can be found")
    columns = max(1, min(COLUMNS, len(hits)))
    lines = -(-len(hits) // columns)
    width = max(2 * MARGIN + columns * (TILE + GAP) - GAP, 480)
    sheet = Image.new("RGB", (width, HEADER + lines * (TILE + TITLE + GAP) + MARGIN // 2), "white")
    draw = ImageDraw.Draw(sheet)
    big, bold, small = (ImageFont.load_default(size) for size in (24, 15, 12))
    draw.text((MARGIN, 24), _cut(f"“{text}”", big, width - 2 * MARGIN), fill=_INK, font=big)
    keys, urls = [hit.key for hit in hits], [hit.url for hit in hits]
    for number, tile in read_thumbnails(keys, urls, TILE, options):
        x = MARGIN + number % columns * (TILE + GAP)
        y = HEADER + number // columns * (TILE + TITLE + GAP)
        draw.rectangle((x, y, x + TILE - 1, y + TILE - 1), fill=_EMPTY)
        hit = hits[number]
        if isinstance(tile, Image.Image):
            sheet.paste(tile, (x + (TILE - tile.width) // 2, y + (TILE - tile.height) // 2))
        else:
            draw.text((x + 6, y + 6), _cut(tile, small, TILE - 12), fill=_FAINT, font=small)
        draw.text((x, y + TILE + 5), f"{hit.score:.3f}", fill=_INK, font=bold)
        key = _cut(str(hit.key), small, TILE - 56)
        draw.text((x + TILE, y + TILE + 7), key, fill=_FAINT, font=small, anchor="ra")
        caption = _cut(" ".join((hit.caption or "").split()), small, TILE)
        draw.text((x, y + TILE + 25), caption, fill=_FAINT, font=small)
    return sheet


def _cut(text: str, font: Any, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text.rstrip()}…"
