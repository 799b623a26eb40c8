"""Samples of a tar that no row of its Parquet names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.cache import POSSESSIONS, Remembered
from curator_dask.errors import ShardError
from curator_dask.frames.columns import to_array
from curator_dask.frames.parquet import open_parquet
from curator_dask.frames.record import FileRecord
from curator_dask.rows.ids import exact_ids
from curator_dask.rows.remarks import fact_of, remark
from curator_dask.storage import Options
from curator_dask.webdataset.index import ShardIndex
from curator_dask.webdataset.parquet import is_parquet_shard
from curator_dask.webdataset.several_names import is_each
from curator_dask.webdataset.stamps import stamp

#: What is to be said of shards, by their states: many parts of one ask the same.
_SAID: Remembered[tuple[Any, str | None]] = POSSESSIONS.add("orphans", Remembered(256))


def remark_orphans(
    url: str,
    index: ShardIndex,
    found: np.ndarray,
    id_col: str,
    storage_options: Options = None,
) -> None:
    """Remark on samples without a row, if the rows did not come from the tar.

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
    if is_parquet_shard(url) or is_each(url):  # the rows are the samples
        return
    orphans, damaged = None, None
    if len(np.unique(found[found >= 0])) < len(index.samples):
        try:
            states = tuple(stamp(path, storage_options) for path in (url, url[:-4] + ".parquet"))
        except ShardError:  # no Parquet: the rows are the samples
            states = ()
        if states:
            orphans, damaged = _SAID.get(
                (url, id_col, *states), lambda: _find(url, index, id_col, storage_options)
            )
    remark(url, "orphans", orphans)
    if damaged is not None:
        remark(url, "damaged", damaged)


def _find(url: str, index: ShardIndex, id_col: str, storage_options: Options) -> tuple[Any, str | None]:
    """The fact that samples have no row, and what is wrong where none has."""
    ids = _companion_ids(url, id_col, storage_options)
    if ids is None:
        return None, None
    named = set(index.find(exact_ids(to_array(ids))).tolist()) - {-1}
    damaged = None
    if len(ids) and not named and not index.problem:
        # Not a few images that were lost: the wrong column, or another shard's file.
        damaged = (
            f"none of the {len(ids)} ids of its Parquet (column {id_col!r}) is the key of one of its"
            f" {len(index.samples)} samples: give id_col (--id-col) the column that has the keys, and see that tar"
            " and Parquet belong together"
        )
    return fact_of(sample.key for number, sample in enumerate(index.samples) if number not in named), damaged


def _companion_ids(url: str, id_col: str, storage_options: Options) -> pa.ChunkedArray | None:
    """All ids in the Parquet file beside a tar.

    None if there is none that can be read, if it lacks the column, or if it is itself the output of a run that
    took its rows from the tar.
    """
    try:
        with open_parquet(url[:-4] + ".parquet", storage_options) as file:
            record = FileRecord.parse(file.schema_arrow.metadata)
            if id_col not in file.schema_arrow.names or (record is not None and record.source == "tar"):
                return None
            return file.read(columns=[id_col]).column(0)
    except Exception:  # of Arrow, of the file system, of a store
        return None
