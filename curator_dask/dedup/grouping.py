"""Who stays: of pairs and an order, groups around rows that are kept."""

from __future__ import annotations

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


def stars(count: int, better: np.ndarray, worse: np.ndarray, cosine: np.ndarray, ranks: np.ndarray) -> Groups:
    """A row is kept if no row that is better, within eps and kept is there.

    Parameters
    ----------
    count
        Rows.
    better, worse, cosine
        Of pairs within eps, the numbers of their rows.
    ranks
        int64 (count,): places in the order; the better of a pair has the lower.
    """
    undecided = np.zeros(count, bool)
    undecided[worse] = True  # no other has a better one
    kept = ~undecided
    left, right = better, worse
    for _ in range(_ROUNDS):
        if not len(left):
            break
        gone = np.unique(right[kept[left]])
        undecided[gone] = False
        # What is gone decides nothing, and what is decided needs no pair.
        open_ = undecided[right] & (undecided[left] | kept[left])
        left, right = left[open_], right[open_]
        still = np.zeros(count, bool)
        still[right] = True
        kept |= undecided & ~still
        undecided &= still
    if len(left):
        kept |= _one_by_one(left, right, kept, ranks)
    return Groups(kept, *_best(count, better, worse, cosine, ranks, kept))


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


def _best(
    count: int,
    better: np.ndarray,
    worse: np.ndarray,
    cosine: np.ndarray,
    ranks: np.ndarray,
    kept: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The best row that stays of each that goes, and the cosine of the two."""
    star, found = np.full(count, NONE, np.int64), np.full(count, np.nan)
    good = kept[better] & ~kept[worse]
    better, worse, cosine = better[good], worse[good], cosine[good]
    order = np.lexsort((ranks[better], worse))
    firsts = np.unique(worse[order], return_index=True)
    star[firsts[0]] = better[order][firsts[1]]
    found[firsts[0]] = cosine[order][firsts[1]]
    return star, found
