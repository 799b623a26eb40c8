"""Groups of duplicates as small pictures, for a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow.parquet as pq

from curator_dask.datasets.gallery import Gallery, Tile, check_count
from curator_dask.frames.names import URL_COLUMN
from curator_dask.storage import Options

_TILES = 12  # of a group


def show_groups(path: str, n: int, options: Options) -> Gallery:
    """The largest groups of a table of duplicates; of equally large ones the least similar first.

    Parameters
    ----------
    path
        Of the table.
    n
        Groups.
    options
        For fsspec, where shards are URLs.
    """
    check_count(n)
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in pq.read_table(path).to_pylist():
        groups.setdefault(row["group"], []).append(row)
    least = {number: min((_cosine(row) for row in rows), default=1.0) for number, rows in groups.items()}
    chosen = sorted(groups, key=lambda number: (-len(groups[number]), least[number]))[:n]
    shown = []
    for number in chosen:
        rows = sorted(groups[number], key=lambda row: (not row["kept"], -_cosine(row), row["id"]))
        heading = f"group {number}: {len(rows)} rows, the least similar {least[number]:.4f}"
        shown.append((heading, [_tile(row) for row in rows[:_TILES]]))
    return Gallery(shown, options)


def _cosine(row: Mapping[str, Any]) -> float:
    return 1.0 if row["similarity"] is None else float(row["similarity"])


def _tile(row: Mapping[str, Any]) -> Tile:
    said = "stays" if row["kept"] else "" if row["similarity"] is None else f"{row['similarity']:.4f}"
    return Tile(row["id"], row[URL_COLUMN], said, framed=bool(row["kept"]))
