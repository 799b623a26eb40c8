"""Pairs that were found, in the order in which it is decided who stays; some at a time, however many there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

_BUCKETS = 1 << 16  # ranks are counted by so many ranges
_SLICE = 1 << 20  # pairs of a file that are looked at at a time


@dataclass(frozen=True)
class Found:
    """Pairs of several searches.

    Attributes
    ----------
    searches
        Of each, the arrays of pairs that its tasks have written: one pair may be in two of them.
    ranks
        int64 (rows,): places in the order of who stays; the better of a pair has the lower.
    most
        Pairs that are held at a time, about: those of one row are not parted.
    """

    searches: tuple[tuple[np.ndarray, ...], ...]
    ranks: np.ndarray
    most: int

    def parts(self, least: float) -> Iterator[np.ndarray]:
        """Each pair of a search once, of those with at least such a cosine.

        All pairs of a worse row are in one part, and those of rows that come earlier in the order in earlier parts.
        """
        if len(self._edges) == 2:
            yield self._whole[self._whole["cosine"] >= least]
            return
        for start, stop in pairwise(self._edges):
            yield self._part(start, stop, least)

    def count(self, least: float) -> int:
        """How many they are, without those that hashes make."""
        return sum(int(np.isfinite(part["cosine"]).sum()) for part in self.parts(least))

    @cached_property
    def _edges(self) -> list[int]:
        return edges([file for files in self.searches for file in files], self.ranks, self.most)

    @cached_property
    def _whole(self) -> np.ndarray:
        return self._part(0, self._edges[-1], -np.inf)

    def _part(self, start: int, stop: int, least: float) -> np.ndarray:
        return np.concatenate(
            [_once(in_range(files, self.ranks, start, stop, least)) for files in self.searches]
        )


def _once(pairs: np.ndarray) -> np.ndarray:
    """Rows of two clusters may have met in both."""
    pairs = pairs[np.lexsort((pairs["worse"], pairs["better"]))]
    same = (np.diff(pairs["better"], prepend=-1) == 0) & (np.diff(pairs["worse"], prepend=-1) == 0)
    found: np.ndarray = pairs[~same]
    return found


def edges(files: Sequence[np.ndarray], ranks: np.ndarray, most: int) -> list[int]:
    """Where ranges of ranks begin and end, so that no more pairs have their worse row in one of them, or a few more."""
    end = int(ranks.max(initial=0)) + 1
    if sum(map(len, files)) <= most:
        return [0, end]
    step = -(-end // _BUCKETS)
    counts = np.zeros(-(-end // step), np.int64)
    for file in files:
        for at in range(0, len(file), _SLICE):
            counts += np.bincount(ranks[file["worse"][at : at + _SLICE]] // step, minlength=len(counts))
    found, held = [0], 0
    for bucket in np.flatnonzero(counts).tolist():
        if held and held + counts[bucket] > most:
            found.append(bucket * step)
            held = 0
        held += int(counts[bucket])
    return [*found, end]


def in_range(
    files: Sequence[np.ndarray], ranks: np.ndarray, start: int, stop: int, least: float = -np.inf
) -> np.ndarray:
    """Pairs of files whose worse row has a rank in a range, with at least such a cosine."""
    found = [file[:0] for file in files[:1]]
    for file in files:
        for at in range(0, len(file), _SLICE):
            some = np.array(file[at : at + _SLICE])
            rank = ranks[some["worse"]]
            found.append(some[(rank >= start) & (rank < stop) & (some["cosine"] >= least)])
    return np.concatenate(found)
