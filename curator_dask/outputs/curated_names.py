"""The folders of what `curator_dask.curation` writes, by which others know its output."""

from __future__ import annotations

from collections.abc import Iterable

#: Rows with vectors and measures; those that pass; of these those that balance concepts; the table of duplicates; the
#: new tars.
EMBEDDINGS, PASSING, BALANCED = "embeddings", "passing", "balanced"
DUPLICATES, SHARDS = "duplicates", "shards"


def of_curate(names: Iterable[str]) -> bool:
    """Whether files, by their names below a folder, are of several of its outputs."""
    first = {name.partition("/")[0] for name in names}
    return EMBEDDINGS in first and not first.isdisjoint({PASSING, SHARDS})
