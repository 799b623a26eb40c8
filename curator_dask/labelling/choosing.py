"""Which rows are shown, and in which order. Vectors have length 1; a near copy has a cosine of at least 1 - eps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: Of a cosine of float32 vectors, whose self-product is not quite 1.
_ROUNDING = 1e-6
_BLOCK = 256
#: Of how far a row is from those that were drawn: its power is how likely it is the next. 1 is k-means++'s D², whose
#: draw from many rows of one kind and few of another has few of the latter; the larger, the more it is farthest-first,
#: which takes outliers before all else. Of 1, 2, 4 and farthest-first, 4 gave the best heads (docs/labelling.md).
_POWER = 4


def spread(
    vectors: np.ndarray, count: int, eps: float, seed: int, known: np.ndarray | None = None
) -> list[int]:
    """Rows that are spread over all: each next is drawn, more likely the farther it is from those that were drawn.

    That is the seeding of k-means++ (Arthur and Vassilvitskii, 2007) with another power.

    Parameters
    ----------
    vectors
        float32 (n, dim).
    count
        How many, at most: no near copy of a row is drawn.
    eps, seed
        How far a near copy is, at most; of the draw.
    known
        Float32 (m, dim): rows that have been drawn before.
    """
    if not len(vectors):
        return []
    random = np.random.default_rng(seed)
    nearest = np.full(len(vectors), np.inf)  # 1 - the largest cosine
    found = []
    if known is None or not len(known):
        found = [int(random.integers(len(vectors)))]
        known = vectors[found]
    for start in range(0, len(known), _BLOCK):
        far = 1 - vectors @ known[start : start + _BLOCK].T
        np.minimum(nearest, far.min(axis=1), out=nearest)
    while len(found) < count:
        ends = np.cumsum(np.where(nearest > eps + _ROUNDING, nearest, 0.0) ** _POWER)
        if not ends[-1] > 0:
            break
        found.append(int(np.searchsorted(ends, random.random() * ends[-1], side="right")))
        np.minimum(nearest, 1 - vectors @ vectors[found[-1]], out=nearest)
    return found


def near_copies(vectors: np.ndarray, of: np.ndarray, eps: float) -> np.ndarray:
    """Bool (n,): which rows are near copies of one of some others.

    Parameters
    ----------
    vectors, of
        float32 (n, dim) and (m, dim).
    eps
        How far a near copy is, at most.
    """
    near = np.zeros(len(vectors), bool)
    for start in range(0, len(of), _BLOCK):
        near |= (vectors @ of[start : start + _BLOCK].T > 1 - eps - _ROUNDING).any(axis=1)
    return near


def apart(
    vectors: np.ndarray, order: np.ndarray, count: int, eps: float, taken: Sequence[int] = ()
) -> list[int]:
    """The first rows of an order that are no near copies of one another, nor of those that are taken.

    Parameters
    ----------
    vectors
        float32 (n, dim).
    order
        Numbers of rows.
    count
        How many, at most.
    eps, taken
        How far a near copy is, at most; rows that are shown already.
    """
    found: list[int] = []
    known = np.empty((len(taken) + count, vectors.shape[1]), np.float32)
    known[: len(taken)] = vectors[list(taken)]
    for row in order.tolist():
        if len(found) == count:
            break
        end = len(taken) + len(found)
        if not (known[:end] @ vectors[row] > 1 - eps - _ROUNDING).any():
            known[end] = vectors[row]
            found.append(row)
    return found


def interleave(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Which list's which item comes next, so that each beginning has about the shares of the whole."""
    places = [
        ((number + 0.5) / length, kind, number)
        for kind, length in enumerate(lengths)
        for number in range(length)
    ]
    return [(kind, number) for _, kind, number in sorted(places)]
