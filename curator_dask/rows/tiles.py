"""Images of rows at one size, side by side on a sheet, and text that fits below them."""

from __future__ import annotations

from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from curator_dask.decode.pillow import decode
from curator_dask.decode.spec import DEFAULT_MAX_PIXELS
from curator_dask.errors import ImageError

#: Pixels: of a tile, between two, and around all.
TILE, GAP, MARGIN = 200, 16, 32
#: Tiles in a line, at most.
COLUMNS = 6
#: Colours of text, of less important text, and of a tile without an image.
INK, FAINT, EMPTY = "#1c1f24", "#6b7280", "#eceef1"


def fonts() -> tuple[Any, Any, Any]:
    """For a heading, for what stands out, and for the rest."""
    big, bold, small = (ImageFont.load_default(size) for size in (24, 15, 12))
    return big, bold, small


def put_tile(sheet: Image.Image, x: int, y: int, image: Any) -> None:
    """Put an encoded image on a sheet; in place of one that cannot be read, or of an exception, the reason."""
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((x, y, x + TILE - 1, y + TILE - 1), fill=EMPTY)
    try:
        if isinstance(image, Exception):
            raise ImageError(str(image))
        tile = decode(image, DEFAULT_MAX_PIXELS)
    except ImageError as error:
        font = fonts()[2]
        draw.text((x + 6, y + 6), cut(str(error), font, TILE - 12), fill=FAINT, font=font)
        return
    tile = ImageOps.contain(tile, (TILE, TILE), Image.Resampling.LANCZOS)
    sheet.paste(tile, (x + (TILE - tile.width) // 2, y + (TILE - tile.height) // 2))


def cut(text: str, font: Any, width: int) -> str:
    """As much of a text as fits into so many pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text.rstrip()}…"
