"""Groups of duplicates as small pictures, for a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curator_dask.datasets.gallery import Gallery, Tile, check_count
from curator_dask.dedup.sheet import find_groups
from curator_dask.frames.names import URL_COLUMN
from curator_dask.storage import Options


def show_groups(folder: str, n: int, options: Options, folder_options: Options = None) -> Gallery:
    """The largest groups of a table of duplicates, and as many of those with the least similar rows.

    Parameters
    ----------
    folder
        Of the table.
    n
        Groups.
    options
        For fsspec, where shards are URLs.
    folder_options
        The same of the folder.
    """
    check_count(n)
    shown = []
    for number, group in enumerate(find_groups(folder, n, folder_options), 1):
        alike = [row["similarity"] for row in group.rows if not row["kept"] and row["similarity"] is not None]
        least = f", the least similar {min(alike):.4f}" if alike else ""
        shown.append((f"group {number}: {group.size} rows{least}", [_tile(row) for row in group.rows]))
    return Gallery(shown, options)


def _tile(row: Mapping[str, Any]) -> Tile:
    alike = row["similarity"]
    said = "stays" if row["kept"] else "by hash" if alike is None else f"{alike:.4f}"
    return Tile(row["id"], row[URL_COLUMN], said, framed=bool(row["kept"]))
