"""Keys that samples of several shards have: 8 bytes a sample tell them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from curator_dask.webdataset.headers import encoded
from curator_dask.webdataset.samples import Sample


class Shared(NamedTuple):
    """Samples of a shard whose keys shards before it have: its name, how many, and the name of such a shard."""

    shard: str
    samples: int
    other: str


def key_hashes(samples: Sequence[Sample]) -> np.ndarray:
    """Uint64 (samples,): of their keys."""
    keys = np.array([encoded(sample.key) for sample in samples], object)
    found: np.ndarray = pd.util.hash_array(keys, categorize=False)
    return found


def shared_keys(shards: Sequence[tuple[str, np.ndarray]]) -> Iterator[Shared]:
    """What shards share with those before them; two keys of one hash are rarer than what is worth a note.

    Parameters
    ----------
    shards
        Name, and hashes of the keys, of each.
    """
    keys = np.concatenate([np.empty(0, np.uint64), *(mine for _, mine in shards)])
    owners = np.repeat(np.arange(len(shards)), [len(mine) for _, mine in shards])
    order = np.argsort(keys, kind="stable")
    keys, owners = keys[order], owners[order]
    begins = np.append(True, keys[1:] != keys[:-1])[: len(keys)]
    firsts = owners[np.maximum.accumulate(np.where(begins, np.arange(len(keys)), 0))]
    again = np.flatnonzero(owners != firsts)
    found, places, counts = np.unique(owners[again], return_index=True, return_counts=True)
    for owner, other, count in zip(found, firsts[again[places]], counts.tolist(), strict=True):
        yield Shared(shards[owner][0], count, shards[other][0])
