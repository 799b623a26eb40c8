"""Spherical k-means on a sample: where to look for what is near a vector."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curator_dask.dedup.phases import Phase
from curator_dask.dedup.products import exact_dots, on_device, plain_products

#: Rows of the sample for each cluster, and those that first centroids are picked of.
SAMPLE = 64
_FIRST = 8192
_BLOCK = 4096
_TIE = 1e-5  # float32 products that differ by less are decided by exact ones


@dataclass(frozen=True)
class Cluster:
    """Makes the centroids.

    Attributes
    ----------
    phase
        Where they go; the sample, ``sample.vectors``, is there.
    dim, clusters
        How long vectors are, and how many centroids are wanted.
    iterations
        At most.
    seed
        Of what is picked by chance.
    """

    phase: Phase
    dim: int
    clusters: int
    iterations: int = 20
    seed: int = 0

    def make(self, name: str) -> int:
        """Write ``centroids.npy``, and ``said.npy``: iterations, were they enough, clusters filled again."""
        vectors = np.array(self.phase.vectors("sample.vectors", self.dim))
        centroids, said = cluster(vectors, self.clusters, self.iterations, self.seed)
        self.phase.save("said.npy", said)
        self.phase.save("centroids.npy", centroids)
        return len(vectors)


def nearest(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """int64 (n,): number of the nearest centroid of each vector; of equal ones the first."""
    columns = on_device(centroids)
    labels = np.zeros(len(vectors), np.int64)
    for start in range(0, len(vectors), _BLOCK):
        block = np.ascontiguousarray(vectors[start : start + _BLOCK])
        labels[start : start + _BLOCK] = decide(block, centroids, plain_products(block, columns))
    return labels


def decide(block: np.ndarray, centroids: np.ndarray, found: np.ndarray) -> np.ndarray:
    """The same from float32 products, of which close ones are made exact."""
    labels: np.ndarray = found.argmax(axis=1)
    best = found[np.arange(len(block)), labels]
    rows, columns = np.nonzero(found >= best[:, None] - _TIE)
    many = np.bincount(rows, minlength=len(block)) > 1
    if many.any():
        close = many[rows]
        rows, columns = rows[close], columns[close]
        exact = exact_dots(block[rows], centroids[columns])
        order = np.lexsort((columns, -exact, rows))
        firsts = np.unique(rows[order], return_index=True)
        labels[firsts[0]] = columns[order][firsts[1]]
    return labels


def cluster(vectors: np.ndarray, clusters: int, iterations: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit centroids, float32 (clusters, dim), and what is to be said of them.

    Sums are made in float64 and in the order of rows, so the same vectors give the same centroids to the bit.
    """
    random = np.random.default_rng(seed)
    centroids = _first(vectors, clusters, random)
    filled = 0
    before = -1.0
    for iteration in range(1, iterations + 1):
        labels = nearest(vectors, centroids)
        dots = exact_dots(vectors, centroids[labels])
        score = float(dots.mean())
        if score - before < 1e-4 * abs(score):
            return centroids, np.array([iteration, 1, filled])
        before = score
        order = np.argsort(labels, kind="stable")
        counts = np.bincount(labels, minlength=clusters)
        sums = np.zeros((clusters, vectors.shape[1]))
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        for each in np.flatnonzero(counts):
            rows = order[starts[each] : starts[each] + counts[each]]
            sums[each] = vectors[rows].sum(axis=0, dtype=np.float64)
        lengths = np.sqrt(np.square(sums).sum(axis=1))
        good = lengths > 0
        centroids[good] = (sums[good] / lengths[good, None]).astype(np.float32)
        if not good.all():  # the rows that are worst off make clusters of their own
            worst = np.lexsort((np.arange(len(dots)), dots))[: int((~good).sum())]
            centroids[~good] = vectors[worst]
            filled += len(worst)
    return centroids, np.array([iterations, 0, filled])


def _first(vectors: np.ndarray, clusters: int, random: np.random.Generator) -> np.ndarray:
    """Vectors to begin with, far from one another as k-means++ picks them."""
    size = min(len(vectors), max(_FIRST, 2 * clusters))
    some = vectors[np.sort(random.choice(len(vectors), size, replace=False))]
    picked = [int(random.integers(len(some)))]
    far = np.full(len(some), np.inf)
    for _ in range(1, clusters):
        # einsum's own loop: a BLAS would add in an order of its own
        far = np.minimum(far, np.maximum(0, 1 - np.einsum("ij,j->i", some, some[picked[-1]])))
        total = np.cumsum(far, dtype=np.float64)
        at = np.searchsorted(total, random.random() * total[-1], side="right") if total[-1] > 0 else 0
        picked.append(int(min(at, len(some) - 1)))
    first: np.ndarray = some[picked].copy()
    return first
