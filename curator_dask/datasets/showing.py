"""What a dataset looks like in a terminal and in a notebook, and what is said before its first rows are computed."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import dask.dataframe as dd

from curator_dask.datasets.ranges import row_counts
from curator_dask.runs.graph import is_apart
from curator_dask.runs.lineage import trace


def as_text(path: str, id_col: str, facts: Mapping[str, Any], frame: dd.DataFrame) -> str:
    """For a terminal."""
    said = ", ".join(f"{value} {name}" for name, value in facts.items())
    columns = ", ".join(f"{name}: {kind}" for name, kind in frame.dtypes.items())
    return f"ImageTextPairDataset({path!r}, {said}, id_col={id_col!r})\n  {columns}"


def as_html(path: str, id_col: str, facts: Mapping[str, Any], frame: dd.DataFrame) -> str:
    """For a notebook."""
    said = ", ".join(f"{value} {name}" for name, value in facts.items())
    columns = "".join(
        f"<tr><td><code>{html.escape(str(name))}</code></td><td>{html.escape(str(kind))}</td></tr>"
        for name, kind in frame.dtypes.items()
    )
    return (
        f"<div><b>ImageTextPairDataset</b> {html.escape(path)}<br>{said}, keys in <code>{html.escape(id_col)}</code>"
        f"<table><tr><th>column</th><th>type</th></tr>{columns}</table></div>"
    )


def describe_first(frame: dd.DataFrame, npartitions: int) -> str:
    """How much the first partitions are; below 0: all."""
    count = frame.npartitions if npartitions < 0 else min(npartitions, frame.npartitions)
    what = f"{count} of {frame.npartitions} partitions"
    if not is_apart(frame):
        return f"{what}, and all that is mixed into them,"
    lineage = trace(frame)
    if lineage.ranges is None or lineage.reader is None:
        return what
    ranges = lineage.ranges[:count]
    rows = sum(row_counts(lineage.reader, ranges))
    return f"{what} ({rows} rows, the first of {ranges[0].name})"
