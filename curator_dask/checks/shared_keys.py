"""Keys that samples of several shards have: 8 bytes a sample tell them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from curator_dask.webdataset.headers import encoded
from curator_dask.webdataset.samples import Sample


class Shared(NamedTuple):
    """Samples of a shard whose keys shards before it have: its number, how many, and the number of such a shard."""

    shard: int
    count: int
    other: int


def key_hashes(samples: Sequence[Sample]) -> np.ndarray:
    """Uint64 (samples,): of their keys."""
    keys = np.array([encoded(sample.key) for sample in samples], object)
    found: np.ndarray = pd.util.hash_array(keys, categorize=False)
    return found


def shared_keys(shards: Mapping[int, np.ndarray]) -> Iterator[Shared]:
    """What shards share with those before them; two keys of one hash are rarer than what is worth a note.

    Parameters
    ----------
    shards
        By a shard's number, the hashes of its keys.
    """
    numbers = sorted(shards)
    if not numbers:
        return
    owners = np.repeat(numbers, [len(shards[number]) for number in numbers])
    keys = np.concatenate([shards[number] for number in numbers])
    order = np.argsort(keys, kind="stable")
    keys, owners = keys[order], owners[order]
    begins = np.append(True, keys[1:] != keys[:-1])[: len(keys)]
    firsts = owners[np.maximum.accumulate(np.where(begins, np.arange(len(keys)), 0))]
    again = np.flatnonzero(owners != firsts)
    found, places, counts = np.unique(owners[again], return_index=True, return_counts=True)
    for number, place, count in zip(found.tolist(), places.tolist(), counts.tolist(), strict=True):
        yield Shared(number, count, int(firsts[again[place]]))
