"""Samples that were taken down are left out of a new tar, whatever rows and settings it is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.frames.columns import to_array
from curator_dask.outputs.contents import contents_of
from curator_dask.outputs.editing import lost_of
from curator_dask.outputs.left_out import keys_before
from curator_dask.outputs.selecting import Folder
from curator_dask.outputs.taken_down import REMOVED, SAMPLE, Marks, kind_of, taken_down
from curator_dask.rows.lookup import TEXT, with_shards


@dataclass(frozen=True)
class Left:
    """The samples of a new tar that are left.

    Attributes
    ----------
    samples, keys, table
        Of those that are: what was looked up, their keys, and their rows.
    places
        int64 (samples,): of each, its place among all that were to be in the tar.
    reasons
        By place, why one is not among them.
    lost
        What reports say of these; empty where there are none.
    """

    samples: pa.Table
    keys: list[str]
    table: pa.Table
    places: np.ndarray
    reasons: dict[int, str]
    lost: dict[str, Any]

    def and_(self, reasons: Mapping[int, str]) -> dict[int, str]:
        """Why samples are not in the tar, where some that are left are not, either: by their number among these."""
        return {**self.reasons, **{int(self.places[each]): reason for each, reason in reasons.items()}}


def columns_of(target: Folder, there: Sequence[str]) -> list[str]:
    """The columns of rows by which those are known that were taken down of an export."""
    record = taken_down(*target)
    return [] if record is None else [each for each in there if kind_of(each) in record.kinds]


def without_taken_down(
    target: Folder,
    samples: pa.Table,
    keys: list[str],
    table: pa.Table,
    looked_up: Callable[[pa.Table, pa.Table], Mapping[str, Any]],
) -> Left:
    """Leave out what was taken down.

    Parameters
    ----------
    target
        Of the tars.
    samples, keys, table
        Of the samples of a tar: what was looked up, the keys that they get, and their rows.
    looked_up
        What a report said of some of them, and their rows, when they were looked up.
    """
    every = np.arange(len(keys))
    record = taken_down(*target)
    if record is not None and len(keys):
        called = keys_before(samples)
        before = with_shards(pa.array(called, TEXT), to_array(samples.column("url")))
        is_gone = record.mask(Marks.of(table, None, record.kinds).also(SAMPLE, before))
        if is_gone.any():
            reasons = dict.fromkeys(every[is_gone].tolist(), REMOVED)
            contents, ends = contents_of(samples, keys, (), (), False, [])
            lost = lost_of(reasons, contents.names, ends, keys, called)
            gone, rest = pa.array(every[is_gone]), pa.array(every[~is_gone])
            lost |= looked_up(samples.take(gone), table.take(gone))
            left = [keys[place] for place in rest.to_pylist()]
            return Left(samples.take(rest), left, table.take(rest), every[~is_gone], reasons, lost)
    return Left(samples, keys, table, every, {}, {})


def both(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What reports say of samples that are lost for one reason, and for another."""
    if not one or not other:
        return dict(one or other)
    summed: dict[str, Any] = {**one}
    for name, value in other.items():
        mine = summed.get(name)
        if mine is None:
            summed[name] = value
        elif isinstance(value, Mapping):
            summed[name] = both(mine, value) if mine else dict(value)
        else:
            summed[name] = mine + value
    return summed
