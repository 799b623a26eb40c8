"""The folders of what `curator_dask.curation` writes, by which others know its output."""

from __future__ import annotations

import json
from collections.abc import Iterable

from curator_dask.storage import Options, join, read_bytes

#: Rows with vectors and measures; those that pass; of these those that balance concepts; the table of duplicates; the
#: new tars.
EMBEDDINGS, PASSING, BALANCED = "embeddings", "passing", "balanced"
DUPLICATES, SHARDS = "duplicates", "shards"
#: What the summary calls the images that were fetched first; they are no folder of it.
FETCHED = "fetched"
#: The same of a table of links that was made of a crawl.
LINKS = "links"
#: What is noted beside them.
NOTE = "curated.json"


def of_curate(names: Iterable[str]) -> bool:
    """Whether files, by their names below a folder, are of several of its outputs."""
    first = {name.partition("/")[0] for name in names}
    return EMBEDDINGS in first and not first.isdisjoint({PASSING, SHARDS})


def stay_in(folder: str, options: Options) -> int:
    """How many samples are in the tars of an output of curate whose rows would not pass any more, or are gone."""
    try:
        return int(json.loads(read_bytes(join(folder, NOTE), options)).get("stay", 0))
    except (OSError, ValueError, AttributeError, TypeError):
        return 0
