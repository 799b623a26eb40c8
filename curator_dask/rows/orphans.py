"""Samples of a tar that no row of its Parquet names."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np

from curator_dask.errors import ShardError
from curator_dask.frames.columns import to_array
from curator_dask.rows.ids import exact_ids
from curator_dask.rows.reading import companion_ids
from curator_dask.rows.remarks import fact_of, remark
from curator_dask.webdataset.index import ShardIndex
from curator_dask.webdataset.shards import stamp

_LIMIT = 256  # shards whose answer is kept
_known: OrderedDict[tuple, dict[str, Any] | None] = OrderedDict()
_lock = threading.Lock()


def find_orphans(
    url: str,
    index: ShardIndex,
    found: np.ndarray,
    id_col: str,
    storage_options: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """The remark on samples without a row, None if there are none, or if the rows came from the tar.

    Where every sample was found nothing is read. Else rows may have been filtered away, or be in other partitions:
    then the ids of the Parquet file beside the tar decide, which are read once for all parts of a shard.

    Parameters
    ----------
    url
        Of the tar.
    index
        Its samples.
    found
        int64, what `ShardIndex.find` gave for the rows at hand.
    id_col
        Column of the ids.
    storage_options
        For fsspec.
    """
    if len(np.unique(found[found >= 0])) == len(index.samples):
        return None
    try:
        states = tuple(stamp(path, storage_options) for path in (url, url[:-4] + ".parquet"))
    except ShardError:  # no Parquet: the rows are the samples
        return None
    key = (url, id_col, *states)
    with _lock:
        if key in _known:
            return _known[key]
    ids = companion_ids(url, id_col, storage_options)
    fact = None
    if ids is not None:
        named = set(index.find(exact_ids(to_array(ids))).tolist()) - {-1}
        if len(ids) and not named and not index.problem:
            # Not a few images that were lost: the wrong column, or another shard's file.
            remark(
                url,
                "damaged",
                f"none of the {len(ids)} ids of its Parquet (column {id_col!r}) is the key of one of its"
                f" {len(index.samples)} samples: give id_col (--id-col) the column that has the keys, and see that tar"
                " and Parquet belong together",
            )
        fact = fact_of(sample.key for number, sample in enumerate(index.samples) if number not in named)
    with _lock:
        _known[key] = fact
        while len(_known) > _LIMIT:
            _known.popitem(last=False)
    return fact
