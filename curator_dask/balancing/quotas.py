"""How many rows of each cluster stay: as many of each, or the more, the more complex a cluster is.

The second is density-based pruning (Abbas et al., ICLR 2024, arXiv 2401.04578): a cluster whose rows lie far from its
centroid, and far from other clusters, is complex, and keeps more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: What quotas may go by; of the last see `curator_dask.balancing.levels`.
LEVELS = "levels"
BY = ("complexity", "size", LEVELS)
_BLOCK = 1024  # centroids that are compared with all at a time


@dataclass(frozen=True)
class Clusters:
    """What is known of each cluster.

    Attributes
    ----------
    sizes
        int64 (clusters,): rows that may be kept.
    within
        float64 (clusters,): the mean cosine distance of its rows and the centroid, d_intra; NaN where it has none.
    between
        float64 (clusters,): the mean cosine distance of the centroid and the nearest others, d_inter.
    """

    sizes: np.ndarray
    within: np.ndarray
    between: np.ndarray

    @property
    def complexity(self) -> np.ndarray:
        """float64 (clusters,): the product of the two distances; NaN where there is no row."""
        product: np.ndarray = self.within * self.between
        return product

    def quotas(self, keep: int, by: str, temperature: float) -> np.ndarray:
        """int64 (clusters,): how many rows of each are kept, `keep` in all, or all that there are.

        Parameters
        ----------
        keep
            Rows.
        by
            ``"complexity"``: the shares are the softmax of the complexities. ``"size"``: as many of each.
        temperature
            By which complexities are divided.
        """
        some = self.sizes > 0
        wanted = np.zeros(len(self.sizes))
        if by == "complexity" and some.any():
            # Where distances are known of no row that may be kept, the mean: as the paper's code has it.
            known = self.complexity[some & np.isfinite(self.complexity)]
            complexity = np.where(
                np.isfinite(self.complexity), self.complexity, known.mean() if len(known) else 0
            )
            with np.errstate(over="ignore"):  # minus infinity, of which the exponential is 0
                above = (complexity[some] - complexity[some].max()) / temperature
            wanted[some] = keep * np.exp(above) / np.exp(above).sum()
        return nearest_quotas(wanted, self.sizes, keep)


def nearest_quotas(wanted: np.ndarray, sizes: np.ndarray, keep: int) -> np.ndarray:
    """int64 (clusters,): the whole numbers that add up to `keep` and are nearest to what is wanted.

    It solves the quadratic program of density-based pruning: the least ``sum((x - wanted) ** 2)`` with
    ``sum(x) == keep`` and ``low <= x <= sizes``, where `low` is one row of each cluster that has some, if `keep` is
    enough for that. Its solution is ``x = clip(wanted + level, low, sizes)`` with one level for all (by the conditions
    of Karush, Kuhn and Tucker), which is found exactly; then each is rounded down, and the largest remainders up.
    """
    keep = min(keep, int(sizes.sum()))
    high = sizes.astype(float)
    low = np.minimum(1.0, high) if keep >= (sizes > 0).sum() else np.zeros(len(sizes))

    def sum_at(level: float) -> float:
        return float(np.clip(wanted + level, low, high).sum())

    turns = np.unique(np.concatenate([low - wanted, high - wanted]))  # between these the sum is linear
    first, last = 0, len(turns) - 1
    while last - first > 1:
        middle = (first + last) // 2
        first, last = (middle, last) if sum_at(turns[middle]) <= keep else (first, middle)
    level, below, above = turns[first], sum_at(turns[first]), sum_at(turns[last])
    if above > below:
        level += (keep - below) / (above - below) * (turns[last] - turns[first])
    found = np.clip(wanted + level, low, high)
    whole = np.clip(np.floor(found + 1e-9), low, high)
    left = keep - int(whole.sum())
    order = np.argsort(-np.where(whole < high, found - whole, -np.inf), kind="stable")
    whole[order[:left]] += 1
    return np.asarray(whole, np.int64)


def distances_between(centroids: np.ndarray, neighbours: int) -> np.ndarray:
    """float64 (clusters,): the mean cosine distance of each centroid and its nearest others; 0 where it is alone.

    Parameters
    ----------
    centroids
        float32 (clusters, dim), of length 1.
    neighbours
        How many others, at most.
    """
    number, found = min(neighbours, len(centroids) - 1), np.zeros(len(centroids))
    if number < 1:
        return found
    wide = centroids.astype(np.float64)
    for start in range(0, len(wide), _BLOCK):
        cosines = wide[start : start + _BLOCK] @ wide.T
        rows = np.arange(len(cosines))
        cosines[rows, start + rows] = -np.inf  # itself
        nearest = np.partition(cosines, cosines.shape[1] - number, axis=1)[:, -number:]
        found[start : start + _BLOCK] = (1 - nearest).mean(1)
    return found
