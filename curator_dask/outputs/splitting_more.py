"""Sharing out samples that are added to splits: rows that belong together follow those that are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from curator_dask.outputs.earlier import EarlierTars
from curator_dask.outputs.selecting import Folder
from curator_dask.outputs.splits import KEY, REST, SplitCount, Splits, linked
from curator_dask.outputs.splitting import Assigned, Groups, notes_of, units_of_samples, units_of_selected
from curator_dask.threads import in_threads
from curator_dask.words import counted


def split_more(
    splits: Splits,
    selected: Folder,
    rows: Folder,
    names: Sequence[str],
    id_col: str,
    earlier: EarlierTars,
    known: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> Assigned:
    """Share out the samples of tables among splits that have some.

    Splits of a number stay as they are, but for rows that belong to some of theirs.

    Parameters
    ----------
    splits, selected, rows, names, id_col
        As for `curator_dask.outputs.splitting.split_samples`.
    earlier
        The tars that are there.
    known
        By file, rows that have a sample in these, and the places of these samples.
    """
    groups = None if splits.groups is None else Groups(splits.groups, splits, rows.options)
    found = in_threads(lambda name: units_of_selected(splits, groups, selected, rows, name, id_col), names)
    keys = splits.hashed((key.encode() for key in earlier.source.keys.to_pylist()), KEY)
    first, second, both = keys.copy(), keys.copy(), np.zeros(len(keys), bool)
    if not splits.by_key:  # of a sample without a row here its key alone is known

        def of_rows(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
            numbers, places = known[name]
            texts = pa.array([key.encode() for key in earlier.source.keys.take(pa.array(places)).to_pylist()])
            samples = pa.table({"row": pa.array(numbers), "source_key": texts.cast(pa.binary())})
            return units_of_samples(splits, groups, samples, rows, name, id_col)

        some = [name for name, (numbers, _) in known.items() if len(numbers)]
        for name, each in zip(some, in_threads(of_rows, some), strict=True):
            places = known[name][1]
            first[places], second[places], both[places] = each[:3]
    parts = [(first, second, both), *((each[0], each[1], each[2]) for each in found)]
    units = linked(*(np.concatenate([np.asarray(each[at]) for each in parts]) for at in range(3)))
    order = {name: place for place, name in enumerate(splits.names)}
    split_of = np.array([order[each] for each in earlier.splits], np.int16)[earlier.tars]
    of, torn = _follow(units[: len(keys)], split_of, units[len(keys) :])
    fresh = of < 0
    shares = splits.shares
    if shares:  # where the intervals lie depends on shares alone
        assigned, _ = replace(splits, wanted=shares).assign(units[len(keys) :][fresh])
        of[fresh] = np.array([order[name] for name in (REST, *shares)], np.int16)[assigned]
    of[of < 0] = order[REST]
    counts = {}
    for name, place in order.items():
        mine = np.concatenate([units[: len(keys)][split_of == place], units[len(keys) :][of == place]])
        largest = int(np.unique(mine, return_counts=True)[1].max(initial=0))
        before = int((split_of == place).sum())
        counts[name] = SplitCount(len(mine), splits.wanted.get(name), largest, earlier=before)
    notes = notes_of(splits, sum(each[3] for each in found), counts, rows.options)
    if torn:
        notes.append(
            f"{counted(torn, 'new sample belongs', 'new samples belong')} to earlier ones that are in several splits,"
            " and went to the first of these"
        )
    return Assigned(of, counts, notes)


def _follow(units: np.ndarray, splits: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, int]:
    """int16 (new,): the split of each new unit that is in one, else -1; and how many are in several."""
    of = np.full(len(new), -1, np.int16)
    if not len(units):
        return of, 0
    order = np.lexsort((splits, units))
    units, splits = units[order], splits[order]
    first = np.diff(units, prepend=units[:1] + np.uint64(1)) != 0
    names, firsts = units[first], splits[first]
    lasts = splits[np.append(np.flatnonzero(first)[1:], len(units)) - 1]
    at = np.minimum(np.searchsorted(names, new), len(names) - 1)
    there = names[at] == new
    of[there] = firsts[at[there]]
    return of, int((firsts != lasts)[at[there]].sum())
