"""Images of rows at one size, side by side on a sheet, and text that fits below them."""

from __future__ import annotations

from typing import Any

from PIL import Image, ImageDraw, ImageFont

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


def put_tile(sheet: Image.Image, x: int, y: int, tile: Image.Image | str) -> None:
    """Put a small picture on a sheet (`curator_dask.rows.thumbnails`); in place of one that is not, the reason."""
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((x, y, x + TILE - 1, y + TILE - 1), fill=EMPTY)
    if isinstance(tile, str):
        font = fonts()[2]
        draw.text((x + 6, y + 6), cut(tile, font, TILE - 12), fill=FAINT, font=font)
        return
    sheet.paste(tile, (x + (TILE - tile.width) // 2, y + (TILE - tile.height) // 2))


def cut(text: str, font: Any, width: int) -> str:
    """As much of a text as fits into so many pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text.rstrip()}…"
