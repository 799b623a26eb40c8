"""What a dataset says of itself."""

from __future__ import annotations

import html

import dask.dataframe as dd

from curator_dask.datasets.ranges import row_counts
from curator_dask.runs.graph import is_apart
from curator_dask.runs.lineage import trace


def html_of(path: str, shards: int, id_col: str, metadata: dd.DataFrame) -> str:
    """For notebooks."""
    columns = "".join(
        f"<tr><td><code>{html.escape(str(name))}</code></td><td>{html.escape(str(kind))}</td></tr>"
        for name, kind in metadata.dtypes.items()
    )
    return (
        f"<div><b>ImageTextPairDataset</b> {html.escape(path)}<br>{shards} shards,"
        f" {metadata.npartitions} partitions, keys in <code>{html.escape(id_col)}</code>"
        f"<table><tr><th>column</th><th>type</th></tr>{columns}</table></div>"
    )


def describe_first(metadata: dd.DataFrame, count: int) -> str:
    """The first partitions of a frame, in words."""
    what = f"{count} of {metadata.npartitions} partitions"
    if not is_apart(metadata):
        return f"{what}, and all that is mixed into them,"
    lineage = trace(metadata)
    if lineage.ranges is None or lineage.reader is None:
        return what
    ranges = lineage.ranges[:count]
    rows = sum(row_counts(lineage.reader, ranges))
    return f"{what} ({rows} rows, the first of {ranges[0].name})"
