"""How many clusters are to be looked into, by what exact searches of some rows have found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curator_dask.dedup.phases import Phase

#: Neighbours of each query that are known; a search for more looks into more clusters in proportion.
KNOWN = 250
_Z = 1.96  # of 95 %


@dataclass(frozen=True)
class Recall:
    """What share of the nearest rows lies in the clusters that are looked into.

    Attributes
    ----------
    probes, clusters
        How many are looked into, of how many.
    mean
        The share.
    low, high
        Its interval of 95 %, Wilson's of as many trials as there are queries: the share that one query finds varies
        less than a coin of that mean does, so the interval is not too narrow.
    queries, top
        How many rows were looked for, and how many of the nearest of each.
    """

    probes: int
    clusters: int
    mean: float
    low: float
    high: float
    queries: int
    top: int

    def __str__(self) -> str:
        if self.probes == self.clusters:
            return f"recall 1: all {self.clusters:,} clusters are looked into"
        return (
            f"recall {self.mean:.4f} (95 %: {self.low:.4f} to {self.high:.4f}) of the nearest {self.top}, by"
            f" {self.probes:,} of {self.clusters:,} clusters, measured with {self.queries:,} rows"
        )


@dataclass(frozen=True)
class Measured:
    """Where the true neighbours of some rows are.

    Attributes
    ----------
    ranks
        int32 (queries, `KNOWN`): of each neighbour, the nearest first, how many clusters are nearer to the query than
        its own; -1 where there is no such neighbour.
    clusters
        How many there are.
    """

    ranks: np.ndarray
    clusters: int

    @classmethod
    def of(
        cls,
        phase: Phase,
        prefix: str,
        segments: Sequence[str],
        own: np.ndarray | None,
        centroids: np.ndarray,
    ) -> Measured:
        """From the files of `Compare`.

        Parameters
        ----------
        phase, prefix, segments
            Which.
        own
            int64 (queries,): number of the row that is the query, which is no neighbour of its own; None: none is.
        centroids
            float32 (clusters, dim).
        """
        parts = [np.array(phase.load(f"{prefix}-{name}.npy")) for name in segments]
        cosines, numbers, clusters = np.concatenate(parts, axis=2)
        if own is not None:
            cosines = np.where(numbers == own[:, None], -np.inf, cosines)
        order = np.lexsort((numbers, -cosines), axis=1)[:, :KNOWN]
        clusters = np.take_along_axis(clusters, order, 1).astype(np.int64)
        there = np.isfinite(np.take_along_axis(cosines, order, 1))
        queries = np.array(phase.load(f"{prefix}.queries.npy"))
        nearer = np.argsort(-(queries @ centroids.T), axis=1, kind="stable")
        rank = np.empty_like(nearer)
        np.put_along_axis(rank, nearer, np.arange(nearer.shape[1])[None, :], 1)
        ranks = np.where(there, np.take_along_axis(rank, clusters, 1), -1)
        return cls(ranks.astype(np.int32), len(centroids))

    def recall(self, top: int, probes: int) -> Recall:
        """With so many clusters."""
        some = self.ranks[:, : min(top, KNOWN)]
        known = int((some >= 0).sum())
        mean = float(((some >= 0) & (some < probes)).sum() / known) if known else 1.0
        low, high = wilson(mean, len(some))
        return Recall(probes, self.clusters, mean, low, high, len(some), min(top, KNOWN))

    def enough(self, top: int, recall: float) -> Recall:
        """The fewest clusters with which the interval's lower end is so much; all, where fewer are not enough."""
        some = self.ranks[:, : min(top, KNOWN)]
        found = some[some >= 0]
        if recall >= 1 or not len(found):
            return self.recall(top, self.clusters)
        shares = np.cumsum(np.bincount(found, minlength=self.clusters)) / len(found)
        good = np.array([wilson(share, len(some))[0] >= recall for share in shares.tolist()])
        probes = int(good.argmax()) + 1 if good.any() else self.clusters
        more = max(1, math.ceil(top / KNOWN))
        return self.recall(top, min(self.clusters, probes * more))


def wilson(share: float, trials: int) -> tuple[float, float]:
    """Wilson's interval of 95 % for a share of so many trials (Wilson 1927)."""
    if not trials:
        return 0.0, 1.0
    square = _Z * _Z
    middle = (share + square / (2 * trials)) / (1 + square / trials)
    half = _Z / (1 + square / trials) * math.sqrt(share * (1 - share) / trials + square / (4 * trials**2))
    return max(0.0, middle - half), min(1.0, middle + half)
