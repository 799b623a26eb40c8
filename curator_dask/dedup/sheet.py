"""A contact sheet of groups of duplicates: what stays, and what goes for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageDraw

from curator_dask.frames.names import URL_COLUMN
from curator_dask.outputs.removed import check_removed, read_duplicates
from curator_dask.rows.thumbnails import read_thumbnails
from curator_dask.rows.tiles import COLUMNS, FAINT, GAP, INK, MARGIN, TILE, cut, fonts, put_tile
from curator_dask.storage import Options

# Pixels.
_HEADER, _TEXT, _FRAME = 72, 46, 4
_STAYS = "#15803d"


@dataclass(frozen=True)
class Group:
    """A group, as far as it is shown.

    Attributes
    ----------
    rows
        ``id``, ``__url__``, ``similarity`` and ``kept``: the one that stays first, then those that are least like it.
    size
        Of the whole group.
    """

    rows: Sequence[dict[str, Any]]
    size: int


def find_groups(folder: str, n: int, options: Options = None) -> list[Group]:
    """The largest groups, and as many of those with the least similar rows.

    Parameters
    ----------
    folder
        Of the table of duplicates.
    n
        Groups, at most.
    options
        For fsspec, where the folder is in a store.

    Raises
    ------
    OutputError
        There is no such table.
    """
    check_removed(folder, options)
    columns = ["id", URL_COLUMN, "group", "similarity", "kept"]
    table = read_duplicates(folder, columns, options)
    table = table.sort_by([("group", "ascending"), ("kept", "descending"), ("similarity", "ascending")])
    numbers = table.column("group").to_numpy()
    begins = np.flatnonzero(np.diff(numbers, prepend=-1))
    sizes = np.diff(begins, append=len(numbers))
    alike = table.column("similarity").to_numpy().astype(np.float64)
    gone = ~np.asarray(pc.fill_null(table.column("kept"), False))
    least = np.minimum.reduceat(np.where(gone & ~np.isnan(alike), alike, 2), begins) if len(begins) else sizes
    doubtful = np.lexsort((np.arange(len(sizes)), -sizes, least))
    largest = np.lexsort((np.arange(len(sizes)), least, -sizes))
    chosen = dict.fromkeys(largest[: -(-n // 2)].tolist())
    chosen |= dict.fromkeys([each for each in doubtful.tolist() if each not in chosen][: n - len(chosen)])
    return [
        Group(_rows(table, int(begins[each]), min(int(sizes[each]), COLUMNS)), int(sizes[each]))
        for each in chosen
    ]


def _rows(table: pa.Table, start: int, count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = table.slice(start, count).to_pylist()
    return found


def draw_groups(groups: Sequence[Group], options: Options = None) -> Image.Image:
    """Groups, a line each: the row that stays framed, below each other one its cosine with it.

    An image that cannot be read is an empty tile with the reason.

    Parameters
    ----------
    groups
        As `find_groups` gives them.
    options
        For fsspec, where shards are URLs.

    Returns
    -------
    PIL.Image.Image
        RGB.
    """
    columns = max((len(group.rows) for group in groups), default=1)
    line = TILE + _TEXT + GAP
    width = max(2 * MARGIN + columns * (TILE + GAP) - GAP, 480)
    sheet = Image.new("RGB", (width, _HEADER + len(groups) * line + MARGIN // 2), "white")
    draw = ImageDraw.Draw(sheet)
    big, bold, small = fonts()
    draw.text(
        (MARGIN, 24), "Duplicates, framed what stays" if groups else "No duplicates", fill=INK, font=big
    )
    rows = [
        (at, column, group, row) for at, group in enumerate(groups) for column, row in enumerate(group.rows)
    ]
    ids, urls = [row["id"] for *_, row in rows], [row[URL_COLUMN] for *_, row in rows]
    for number, tile in read_thumbnails(ids, urls, TILE, options):
        at, column, group, row = rows[number]
        x, y = MARGIN + column * (TILE + GAP), _HEADER + at * line
        put_tile(sheet, x, y, tile)
        if row["kept"]:
            edge = (x - _FRAME, y - _FRAME, x + TILE + _FRAME - 1, y + TILE + _FRAME - 1)
            draw.rectangle(edge, outline=_STAYS, width=_FRAME)
            said = "stays"
        else:
            said = "by hash" if row["similarity"] is None else f"{row['similarity']:.3f}"
        draw.text((x, y + TILE + 7), said, fill=_STAYS if row["kept"] else INK, font=bold)
        key = cut(" ".join(str(row["id"]).split()), small, TILE - 70)
        draw.text((x + TILE, y + TILE + 9), key, fill=FAINT, font=small, anchor="ra")
        if column == len(group.rows) - 1 and group.size > len(group.rows):
            more = f"and {group.size - len(group.rows):,} more"
            draw.text((x, y + TILE + 26), more, fill=FAINT, font=small)
    return sheet
