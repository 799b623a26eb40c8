"""Columns of users' own tables, given to rows by key: captions, scores, labels and lists made elsewhere."""

from curator_dask.tables.columns import TableColumns
from curator_dask.tables.output import JoinSummary, join_output

__all__ = ["JoinSummary", "TableColumns", "join_output"]
