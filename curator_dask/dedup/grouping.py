"""Who stays: of pairs and an order, groups around rows that are kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

_ROUNDS = 200  # of all pairs at once; what is left then are chains, which go row by row
NONE = -1


@dataclass(frozen=True)
class Groups:
    """What becomes of rows.

    Attributes
    ----------
    kept
        bool (n,).
    star
        int64 (n,): for rows that go, the best row that stays within eps; -1 for the others.
    cosine
        float64 (n,): of the two; NaN where there is none.
    """

    kept: np.ndarray
    star: np.ndarray
    cosine: np.ndarray


def stars(count: int, parts: Iterable[np.ndarray], ranks: np.ndarray) -> Groups:
    """A row is kept if no row that is better, within eps and kept is there.

    Parameters
    ----------
    count
        Rows.
    parts
        Pairs within eps, by the numbers of their rows. All of one worse row are in one part; parts are in the order.
    ranks
        int64 (count,): places in the order; the better of a pair has the lower.
    """
    groups = Groups(np.ones(count, bool), np.full(count, NONE, np.int64), np.full(count, np.nan))
    for pairs in parts:
        _decide(groups.kept, pairs["better"], pairs["worse"], ranks)
        _find_best(groups, pairs, ranks)
    return groups


def _decide(kept: np.ndarray, better: np.ndarray, worse: np.ndarray, ranks: np.ndarray) -> None:
    """Say which of the worse rows are kept; of what comes before them that is said."""
    undecided = np.zeros(len(kept), bool)
    undecided[worse] = True  # no other has a better one
    kept[worse] = False
    left, right = better, worse
    for _ in range(_ROUNDS):
        if not len(left):
            break
        gone = np.unique(right[kept[left]])
        undecided[gone] = False
        # What is gone decides nothing, and what is decided needs no pair.
        open_ = undecided[right] & (undecided[left] | kept[left])
        left, right = left[open_], right[open_]
        still = np.zeros(len(kept), bool)
        still[right] = True
        kept |= undecided & ~still
        undecided &= still
    if len(left):
        kept |= _one_by_one(left, right, kept, ranks)


def _one_by_one(left: np.ndarray, right: np.ndarray, kept: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    order = np.argsort(ranks[right], kind="stable")
    stays = kept.copy()
    rows, betters = right[order].tolist(), left[order].tolist()
    start = 0
    for at in range(1, len(rows) + 1):
        if at < len(rows) and rows[at] == rows[start]:
            continue
        row = rows[start]
        if not any(stays[each] for each in betters[start:at]):
            stays[row] = True
        start = at
    return stays


def _find_best(groups: Groups, pairs: np.ndarray, ranks: np.ndarray) -> None:
    """Of each row that goes, the best row that stays, and the cosine of the two."""
    pairs = pairs[groups.kept[pairs["better"]] & ~groups.kept[pairs["worse"]]]
    pairs = pairs[np.lexsort((ranks[pairs["better"]], pairs["worse"]))]
    rows, firsts = np.unique(pairs["worse"], return_index=True)
    groups.star[rows] = pairs["better"][firsts]
    groups.cosine[rows] = pairs["cosine"][firsts]
