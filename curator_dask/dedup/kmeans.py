"""Spherical k-means on a sample: where to look for what is near a vector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from curator_dask.dedup.layout import Layout
from curator_dask.dedup.memory import NO_LIMIT, Memory
from curator_dask.dedup.phases import Phase
from curator_dask.dedup.products import exact_dots, on_device, plain_products
from curator_dask.dedup.sketches import axes_of, fit_rows, widths_of

#: Rows of the sample for each cluster.
SAMPLE = 64
_TIE = 1e-5  # float32 products that differ by less are decided by exact ones


@dataclass(frozen=True)
class Cluster:
    """Makes the centroids.

    Attributes
    ----------
    phase
        Where they go; ``numbers.npy``, the numbers of the sample's vectors, is there.
    layout
        Where these are.
    clusters
        How many centroids are wanted.
    iterations
        At most.
    seed
        Of what is picked by chance.
    memory
        What is held at a time.
    least
        By what share of itself the mean cosine grows in an iteration that is not the last.
    first
        Vectors that first centroids are picked of, at least.
    sketch
        Make the axes of sketches too.
    """

    phase: Phase
    layout: Layout
    clusters: int
    iterations: int = 20
    seed: int = 0
    memory: Memory = NO_LIMIT
    least: float = 1e-4
    first: int = 8192
    sketch: bool = False

    def make(self, name: str) -> int:
        """Write ``centroids.npy``, and ``said.npy``: iterations, were they enough, clusters filled again.

        Before them ``axes.npy``, where sketches are wanted and are worth their while.
        """
        numbers, dim = np.array(self.phase.load("numbers.npy")), self.layout.dim
        rows = len(numbers)

        def mapped(part: slice | np.ndarray) -> np.ndarray:
            # Anew each time, so that what was read is given back.
            return np.array(self.phase.vectors("sample.vectors", dim)[part])

        read: Callable[[slice | np.ndarray], np.ndarray] = mapped
        if self.memory.holds(4 * rows * dim):
            read = self.layout.gather(numbers).__getitem__
        else:
            self.layout.save_some(self.phase, "sample.vectors", numbers)
        sample = Sample(rows, dim, read, self.memory.clustered(dim, self.clusters))
        centroids, said = cluster(sample, self.clusters, self.iterations, self.seed, self.least, self.first)
        if self.sketch and widths_of(dim):
            self.phase.save("axes.npy", axes_of(_apart(sample, centroids, self.seed), self.seed))
        self.phase.save("said.npy", said)
        self.phase.save("centroids.npy", centroids)
        return rows


@dataclass(frozen=True)
class Sample:
    """Vectors that clusters are made of.

    Attributes
    ----------
    rows, dim
        How many there are, and how long they are.
    read
        Gives some of them, float32 (n, dim).
    block
        Rows that are looked at at a time.
    """

    rows: int
    dim: int
    read: Callable[[slice | np.ndarray], np.ndarray]
    block: int

    @property
    def parts(self) -> list[slice]:
        """Of all rows."""
        return [slice(start, min(self.rows, start + self.block)) for start in range(0, self.rows, self.block)]


def decide(block: np.ndarray, centroids: np.ndarray, found: np.ndarray) -> np.ndarray:
    """The same from float32 products, of which close ones are made exact."""
    labels: np.ndarray = found.argmax(axis=1)
    best = found[np.arange(len(block)), labels]
    close = found >= best[:, None] - _TIE
    many = np.flatnonzero(np.count_nonzero(close, axis=1) > 1)
    if len(many):
        rows, columns = np.nonzero(close[many])
        rows = many[rows]
        exact = exact_dots(block[rows], centroids[columns])
        order = np.lexsort((columns, -exact, rows))
        firsts = np.unique(rows[order], return_index=True)
        labels[firsts[0]] = columns[order][firsts[1]]
    return labels


def cluster(
    sample: Sample, clusters: int, iterations: int, seed: int, least: float, first: int
) -> tuple[np.ndarray, np.ndarray]:
    """Unit centroids, float32 (clusters, dim), and what is to be said of them.

    Sums are made in float64 and in the order of rows, so the same vectors give the same centroids to the bit.
    """
    random = np.random.default_rng(seed)
    centroids = _first(sample, clusters, first, random)
    filled = 0
    before = -1.0
    for iteration in range(1, iterations + 1):
        dots, sums = _assigned(sample, centroids)
        score = float(dots.mean())
        if score - before < least * abs(score):
            return centroids, np.array([iteration, 1, filled])
        before = score
        lengths = np.sqrt(np.square(sums).sum(axis=1))
        good = lengths > 0
        centroids[good] = (sums[good] / lengths[good, None]).astype(np.float32)
        if not good.all():  # the rows that are worst off make clusters of their own
            worst = np.lexsort((np.arange(len(dots)), dots))[: int((~good).sum())]
            centroids[~good] = sample.read(worst)
            filled += len(worst)
    return centroids, np.array([iterations, 0, filled])


def _assigned(sample: Sample, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each row its cosine with the nearest centroid, float64 (rows,); of each cluster the sum of its rows."""
    here = on_device(centroids)
    dots, sums = np.empty(sample.rows), np.zeros(centroids.shape)
    for part in sample.parts:
        block = np.ascontiguousarray(sample.read(part))
        labels = decide(block, centroids, plain_products(block, here))
        dots[part] = exact_dots(block, centroids[labels])
        order = np.argsort(labels, kind="stable")
        ends = np.cumsum(np.bincount(labels, minlength=len(sums)))
        for each in np.unique(labels).tolist():
            rows = order[ends[each - 1] if each else 0 : ends[each]]
            # One row after the other, whatever the blocks are.
            sums[each] = np.concatenate([sums[each : each + 1], block[rows]]).sum(axis=0)
    return dots, sums


def _first(sample: Sample, clusters: int, least: int, random: np.random.Generator) -> np.ndarray:
    """Vectors to begin with, far from one another as k-means++ picks them."""
    size = min(sample.rows, max(least, 2 * clusters))
    some = sample.read(np.sort(random.choice(sample.rows, size, replace=False)))
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


def _apart(sample: Sample, centroids: np.ndarray, seed: int) -> np.ndarray:
    """Differences of some vectors and their centroids, float32 (n, dim)."""
    count = min(sample.rows, fit_rows(sample.dim))
    some = np.sort(np.random.default_rng(seed).choice(sample.rows, count, replace=False))
    here, found = on_device(centroids), np.empty((count, sample.dim), np.float32)
    for start in range(0, count, sample.block):
        part = slice(start, start + sample.block)
        vectors = np.ascontiguousarray(sample.read(some[part]))
        found[part] = vectors - centroids[plain_products(vectors, here).argmax(axis=1)]
    return found
