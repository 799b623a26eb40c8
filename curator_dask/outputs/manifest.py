"""The manifest of an export: of each sample in a new tar, where it comes from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from curator_dask.webdataset.headers import Member
from curator_dask.webdataset.samples import key_text


def where_from(
    name: str,
    keys: Sequence[str],
    samples: pa.Table,
    members: Sequence[Member],
    ends: np.ndarray,
    made: np.ndarray,
) -> pa.Table:
    """A row a sample: where it is now, and where it comes from.

    Parameters
    ----------
    name
        Of the tar.
    keys, samples
        Of its samples, and what was looked up of them.
    members, ends
        Of all samples, and behind the last of each.
    made
        Bool (members,): which were made anew.
    """
    before = samples.column("offsets").combine_chunks()
    own = before.value_lengths().to_numpy()
    added = np.full(len(members), -1, np.int64)
    # A sample's own members come first.
    kept = np.arange(len(members)) - np.repeat(ends[:-1], np.diff(ends)) < np.repeat(own, np.diff(ends))
    added[kept] = before.flatten().to_numpy()
    added[made] = -1
    old = [
        key_text(key.decode("utf-8", "surrogateescape")) for key in samples.column("source_key").to_pylist()
    ]
    lists = {
        "members": pa.array([key_text(each.name) for each in members], pa.string()),
        "offsets": pa.array([each.offset for each in members], pa.int64()),
        "sizes": pa.array([each.size for each in members], pa.int64()),
        "source_offsets": pa.array(added),
    }
    offsets = pa.array(ends, pa.int32())
    return pa.table(
        {
            "shard": pa.array([name] * len(keys), pa.string()),
            "key": pa.array([key_text(key) for key in keys], pa.string()),
            "source_shard": samples.column("url"),
            "source_key": pa.array(old, pa.string()),
            **{column: pa.ListArray.from_arrays(offsets, values) for column, values in lists.items()},
        }
    )
