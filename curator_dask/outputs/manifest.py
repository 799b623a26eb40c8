"""The manifest of an export: of each sample in a new tar, where it comes from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from curator_dask.webdataset.samples import key_text


def where_from(
    name: str,
    keys: Sequence[str],
    samples: pa.Table,
    members: Sequence[str],
    offsets: np.ndarray,
    sizes: np.ndarray,
    source_offsets: np.ndarray,
    ends: Sequence[int],
) -> pa.Table:
    """A row a sample: where it is now, and where it comes from.

    Parameters
    ----------
    name
        Of the tar.
    keys, samples
        Of its samples, and what was looked up of them.
    members, offsets, sizes, source_offsets
        Of all samples: their names, where in the tar they are, and where in their source; -1: in none.
    ends
        Behind the last member of each sample; 0 before them.
    """
    old = [
        key_text(key.decode("utf-8", "surrogateescape")) for key in samples.column("source_key").to_pylist()
    ]
    lists = {
        "members": pa.array([key_text(each) for each in members], pa.string()),
        "offsets": pa.array(offsets),
        "sizes": pa.array(sizes),
        "source_offsets": pa.array(source_offsets),
    }
    return pa.table(
        {
            "shard": pa.array([name] * len(keys), pa.string()),
            "key": pa.array([key_text(key) for key in keys], pa.string()),
            "source_shard": samples.column("url"),
            "source_key": pa.array(old, pa.string()),
            **{
                column: pa.ListArray.from_arrays(pa.array(ends, pa.int32()), values)
                for column, values in lists.items()
            },
        }
    )
