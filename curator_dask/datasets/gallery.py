"""Rows as small pictures, for a notebook."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import dask
import dask.dataframe as dd
from PIL import Image

from curator_dask.errors import ConfigError, DatasetError
from curator_dask.frames.columns import to_array
from curator_dask.frames.names import CAPTION_COLUMN, URL_COLUMN
from curator_dask.rows.images import values_of
from curator_dask.rows.thumbnails import data_uri, read_thumbnails
from curator_dask.runs.filtering import some_columns
from curator_dask.runs.graph import steps_of
from curator_dask.runs.lineage import replace_functions
from curator_dask.runs.step import GivesUp
from curator_dask.storage import Options
from curator_dask.words import counted, some_of_these

#: Pixels of a picture's longer side.
SIZE = 160
_SHOWN = 120  # characters of a caption; the rest is in its tooltip
_QUALITY = 80
_EMPTY = (
    f"display:flex;align-items:center;justify-content:center;width:{SIZE}px;height:{SIZE}px;background:#8883;"
    "font-size:11px;overflow-wrap:anywhere;overflow:hidden;text-align:center"
)


@dataclass(frozen=True)
class Tile:
    """A row that is shown.

    Attributes
    ----------
    key, url
        By which its image is found.
    text
        Its caption.
    framed
        Whether it stands out among the others.
    """

    key: Any
    url: str | None
    text: str = ""
    framed: bool = False


class Gallery:
    """Small pictures of rows, in groups; shown where a notebook shows a cell's last value.

    Parameters
    ----------
    groups
        By heading (empty: none), their tiles. One whose image cannot be read is grey, with the reason.
    options
        For fsspec, where shards are URLs.
    """

    def __init__(self, groups: Sequence[tuple[str, Sequence[Tile]]], options: Options = None) -> None:
        self.groups = groups
        tiles = [tile for _, some in groups for tile in some]
        pictures = dict(
            read_thumbnails([each.key for each in tiles], [each.url for each in tiles], SIZE, options)
        )
        self._pictures = [_picture(pictures[number]) for number in range(len(tiles))]

    def __len__(self) -> int:
        return len(self._pictures)

    def __repr__(self) -> str:
        return f"<{counted(len(self), 'image')}; a notebook shows them>"

    def _repr_html_(self) -> str:
        pictures = iter(self._pictures)
        parts = [
            (f"<div><b>{escape(heading)}</b></div>" if heading else "")
            + _row(zip(tiles, pictures, strict=False))
            for heading, tiles in self.groups
        ]
        return "".join(parts) or "<i>no image</i>"


def check_count(n: object) -> None:
    """Refuse what is no whole number of at least 1."""
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ConfigError(f"n={n!r}: expected a whole number of at least 1")


def first_tiles(frame: dd.DataFrame, id_col: str, n: int) -> list[Tile]:
    """The first rows of a frame; only as many partitions are computed as that takes.

    Parameters
    ----------
    frame
        With the columns of keys and shards.
    id_col
        Column of the keys.
    n
        How many.

    Raises
    ------
    ConfigError
        `n` is no whole number of at least 1.
    DatasetError
        The frame lacks the columns by which a row finds its image.
    """
    check_count(n)
    missing = [name for name in (id_col, URL_COLUMN) if name not in frame.columns]
    if missing:
        raise DatasetError(
            f"the metadata lacks {missing}, by which a row finds its image; "
            f"it has {some_of_these(frame.columns, missing[0])}."
            " Keep these columns when selecting others"
        )
    names = [name for name in (id_col, URL_COLUMN, CAPTION_COLUMN) if name in frame.columns]
    frame = frame[names]
    tiles: list[Tile] = []
    start, count = 0, 1
    while len(tiles) < n and start < frame.npartitions:
        # Arrow's tables come here: frames of GPU workers would need cuDF, and a GPU.
        parts = frame.partitions[start : start + count].to_delayed()
        for rows in dask.compute(*(dask.delayed(some_columns)(part, names) for part in parts)):
            keys, urls, *captions = (values_of(to_array(rows.column(name))) for name in names)
            texts = captions[0] if captions else [None] * len(keys)
            tiles += [
                Tile(key, url, "" if text is None else str(text))
                for key, url, text in zip(keys, urls, texts, strict=True)
            ]
        start, count = start + count, 2 * count
    return tiles[:n]


def without_looking(frame: dd.DataFrame, wanted: Collection[str]) -> dd.DataFrame:
    """The frame without the work of its steps, where neither its rows nor the columns `wanted` depend on that."""
    steps = steps_of(frame)
    made = {name for step in steps for name in step.columns}
    if made & {*wanted} or not all(step.keeps_rows for step in steps):
        return frame
    return replace_functions(frame, _unseen)


def _unseen(function: Any) -> Any:
    return function.give_up("not looked at") if isinstance(function, GivesUp) else function


def _row(shown: Iterable[tuple[Tile, str]]) -> str:
    return (
        f'<div style="display:flex;flex-wrap:wrap;gap:10px">{"".join(_figure(*each) for each in shown)}</div>'
    )


def _figure(tile: Tile, picture: str) -> str:
    text = " ".join(tile.text.split())
    cut = text if len(text) <= _SHOWN else f"{text[:_SHOWN].rstrip()}…"
    frame = "outline:3px solid #3b82c4;" if tile.framed else ""
    said = f"{tile.key} {tile.text}".strip()
    return (
        f'<figure style="margin:3px;width:{SIZE}px" title="{escape(said)}">'
        f'<div style="{frame}height:{SIZE}px;display:flex;align-items:center;justify-content:center">{picture}</div>'
        f'<figcaption style="font-size:11px;overflow-wrap:anywhere"><code>{escape(str(tile.key))}</code><br>'
        f"{escape(cut)}</figcaption></figure>"
    )


def _picture(made: Image.Image | str) -> str:
    if isinstance(made, str):
        return f'<div style="{_EMPTY}">{escape(made)}</div>'
    return f'<img alt="" src="{data_uri(made, "JPEG", _QUALITY)}">'
