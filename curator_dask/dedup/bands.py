"""Pairs of rows whose hashes of 256 bits differ in some: all of them are found, by what is nearly the same in a band.

Two hashes that differ in r bits differ, in one of their halves, in at most r // 2; in one of that half's halves in at
most r // 4; and so on down to one of 16 bands of 16 bits, in at most r // 16 (the pigeonhole principle). So hashes are
compared whose bands differ in so few bits and whose two neighbouring bands do, which one pair of random hashes in
20,000 reaches.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from curator_dask.dedup.pairing import FEW

#: Of a hash of 256 bits.
BANDS = 16
_VALUES = 1 << 16  # of a band
_TOGETHER = 1 << 20  # pairs that are looked at at a time: 40 MB
_ROWS = 1 << 15  # whose betters are looked for at a time
_STEP = 64  # betters of a row that are looked at before it is asked whether it has enough


def find_in_band(
    values: np.ndarray, ranks: np.ndarray, wanted: np.ndarray, labels: np.ndarray, band: int, bits: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs of rows that one band finds first, and the rows that may have more betters; some at a time.

    A row is compared with its betters in their order, and with no more of them once `FEW` are near: however many rows
    are the same in a band, or altogether, what is held is bounded.

    Parameters
    ----------
    values
        uint64 (n, 4).
    ranks
        int64 (n,): the better of two has the lower.
    wanted
        bool (n,): the rows whose betters are looked for.
    labels
        int64 (n,): two rows with the same need no pair.
    band
        Which of the bands.
    bits
        In which two values may differ, 0 to 31.

    Yields
    ------
    tuple
        int64 (pairs,) the better, and the worse of each; int64 (rows,) those with at least `FEW` betters.
    """
    own = np.ascontiguousarray(values).view(np.uint16)[:, band].astype(np.int64)
    order = np.lexsort((ranks, own))
    own = own[order]
    starts = np.searchsorted(own, np.arange(_VALUES + 1))
    # The rank among these rows: with the band's value it is one number, by which betters are counted.
    place = np.empty(len(ranks), np.int64)
    place[np.argsort(ranks, kind="stable")] = np.arange(len(ranks))
    keys = own << 32 | place[order]
    wide = np.ascontiguousarray(values).view(np.uint32)[order, band // 2]
    asked = np.flatnonzero(wanted[order])
    masks = [0, *(1 << at for at in range(16))] if bits >= BANDS else [0]
    for start in range(0, len(asked), _ROWS):
        rows = asked[start : start + _ROWS]
        count = np.zeros(len(rows), np.int64)
        for mask in masks:
            open_ = np.flatnonzero(count < FEW)
            first = starts[own[rows[open_]] ^ mask]
            last = np.searchsorted(keys, keys[rows[open_]] ^ (mask << 32))
            some = last > first
            open_, first, last = open_[some], first[some], last[some]
            step = _STEP
            while len(open_):
                step = max(1, min(step, _TOGETHER // len(open_)))
                sizes = np.minimum(last - first, step)
                which = np.repeat(np.arange(len(open_)), sizes)
                other = np.arange(len(which)) - np.repeat(np.cumsum(sizes) - sizes - first, sizes)
                near = np.bitwise_count(wide[rows[open_]][which] ^ wide[other]) <= bits // (BANDS // 2)
                which, better = which[near], order[other[near]]
                worse = order[rows[open_[which]]]
                differ = values[better] ^ values[worse]
                hit = (np.bitwise_count(differ).sum(axis=1, dtype=np.int64) <= bits) & (
                    labels[better] != labels[worse]
                )
                np.add.at(count, open_[which[hit]], 1)
                better, worse, differ = better[hit], worse[hit], differ[hit]
                new = ~_found_before(differ, band, bits)
                full = count[open_] >= FEW
                yield better[new], worse[new], order[rows[open_[full]]]
                first = first + sizes
                left = ~full & (first < last)
                open_, first, last = open_[left], first[left], last[left]
                step *= 4


def _found_before(differ: np.ndarray, band: int, bits: int) -> np.ndarray:
    """Bool (n,): whether an earlier band finds a pair whose bits that differ are these, uint64 (n, 4)."""
    narrow = np.bitwise_count(differ.view(np.uint16)) <= bits // BANDS
    wide = np.bitwise_count(differ.view(np.uint32)) <= bits // (BANDS // 2)
    found: np.ndarray = narrow & np.repeat(wide, 2, axis=1)
    return np.asarray(found[:, :band].any(axis=1))
