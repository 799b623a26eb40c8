"""A sample of rows compared with all rows exactly: how far to look for neighbours, and what is found that way."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from curator_dask.dedup.kmeans import decide
from curator_dask.dedup.layout import Layout
from curator_dask.dedup.phases import Phase
from curator_dask.dedup.products import Block, exact_dots, exact_pairs, largest, margin_of, near, products

#: Of the table that says how many rows would go.
EPS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2)
#: Pairs of a row with a block of others that are looked at: of a crowd more say nothing new, and fill the memory.
_MANY = 64
_ENOUGH = 1 << 14  # pairs that say how far to look
_BLOCK = 2048
_Z = 1.96  # of an interval of 95 %


@dataclass(frozen=True)
class CompareSample:
    """Compares the sample with the distinct vectors of files.

    Attributes
    ----------
    layout
        Where the vectors are.
    phase
        With ``numbers.npy`` and ``sample.vectors``, the sample; where the files go.
    eps
        A pair has a cosine of at least 1 - eps.
    """

    layout: Layout
    phase: Phase
    eps: float

    def make(self, name: str) -> int:
        """Write a file's pairs: number in the sample, number of the other, cosine; and by eps how many there are."""
        import torch

        numbers = self.phase.load("numbers.npy")
        sample = np.array(self.phase.vectors("sample.vectors", self.layout.dim))
        rows = Block(sample)
        counts = np.zeros((len(sample), len(EPS)), np.int64)
        pairs = [np.zeros((0, 3))]
        seen = 0
        # Blocks have one size: what is picked of a crowd's pairs, and so how far to look, goes by them.
        for first, vectors in self.layout.blocks(name):
            seen += len(vectors)
            block = Block(vectors)
            close = self.eps + margin_of(rows, block)
            with torch.inference_mode():
                found = products(rows, block, slice(0, len(vectors)))
                own = np.flatnonzero((numbers >= first) & (numbers < first + len(vectors)))
                found[own, numbers[own] - first] = -1
                few = (largest(found) >= 1 - max(EPS[-1], close)).nonzero()[:, 0]
                some, at = found[few].float(), few.cpu().numpy()
                for number, eps in enumerate(EPS):
                    counts[at, number] += (some >= 1 - eps).sum(1).cpu().numpy()
            left, right = near(some, 1 - close)
            left, right = _some(at[left], right, first)
            cosines = exact_pairs(sample, left, vectors, right)
            good = cosines >= 1 - self.eps
            pairs.append(np.column_stack([left[good], first + right[good], cosines[good]]))
        self.phase.save(f"{name}-counts.npy", counts)
        self.phase.save(f"{name}.npy", np.concatenate(pairs))
        return seen


def _some(left: np.ndarray, right: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Of a row with very many pairs a random part of them, the same each time."""
    if not len(left) or np.bincount(left).max() <= _MANY:
        return left, right
    order = np.random.default_rng(seed).permutation(len(left))
    order = order[np.argsort(left[order], kind="stable")]
    begins = np.flatnonzero(np.diff(left[order], prepend=-1))
    within = np.arange(len(order)) - np.repeat(begins, np.diff(begins, append=len(order)))
    kept = np.sort(order[within < _MANY])
    return left[kept], right[kept]


def share_going(near: np.ndarray, ordered: bool) -> float:
    """About the share of rows that go.

    Parameters
    ----------
    near
        int (n,): of each row of a sample, how many rows are near it.
    ordered
        A row goes for one near it that stays. Of k rows that are all near one another one stays, so each of them goes
        with a chance of (k - 1) / k; of others more stay. False: each row that has one near it may go.
    """
    return float((near / (near + 1) if ordered else near > 0).mean()) if len(near) else 0.0


@dataclass(frozen=True)
class Share:
    """A share that was measured.

    Attributes
    ----------
    value
        Of 1; 1 where there was nothing to find.
    low, high
        Between these it is in 95 of 100 cases.
    pairs
        That were looked for.
    """

    value: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        if not self.pairs:
            return "no pair in the sample"
        return f"{self.value:.2%} ({self.low:.1%} to {self.high:.1%}, of {self.pairs:,} pairs)"


def share(rows: np.ndarray, found: np.ndarray) -> Share:
    """The share of pairs that were found.

    Parameters
    ----------
    rows
        int (n,): the row of the sample that each pair is of. The pairs of one row are found or missed together, so the
        interval (Wilson's) counts as many as there would be if each row had as many.
    found
        bool (n,).
    """
    if not len(rows):
        return Share(1.0, 0.0, 1.0, 0)
    counts = np.bincount(rows)
    n = float(counts.sum()) ** 2 / float(np.square(counts, dtype=np.float64).sum())
    p = float(found.mean())
    middle = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    return Share(p, min(p, middle - half), max(p, middle + half), len(rows))


def choose_gap(
    pairs: np.ndarray, sample: np.ndarray, layout: Layout, centroids: np.ndarray, eps: float, recall: float
) -> float:
    """How much nearer than another cluster a row's own may be, for the row to be compared with the other's.

    Parameters
    ----------
    pairs
        float64 (n, 3): of rows of the sample, as `CompareSample` writes them; those of the rows with even numbers are
        taken, the others are for measuring.
    sample
        float32 (rows, dim).
    layout
        Where the others are.
    centroids
        float32 (clusters, dim).
    eps, recall
        As they are asked for. What may be missed is halved, since it is measured on other rows.
    """
    target = 1 - (1 - recall) / 2
    some = pairs[pairs[:, 0] % 2 == 0]
    counts = np.bincount(some[:, 0].astype(np.int64)) if len(some) else np.zeros(1)
    alike = counts.sum() ** 2 / max(1.0, float(np.square(counts, dtype=np.float64).sum()))
    if len(some) > _ENOUGH:
        some = some[np.sort(np.random.default_rng(2).choice(len(some), _ENOUGH, replace=False))]
    gaps = _gaps(some, sample, layout, centroids)
    # The largest gap of n pairs is that of about n in n + 1 of all: fewer say nothing of a share as high as `recall`.
    if alike * (1 - recall) < 1:
        of_sample = np.einsum("id,kd->ik", sample, centroids, optimize=False)
        dots = exact_dots(sample, np.roll(sample, -1, axis=0))
        gaps = np.concatenate([gaps, _made_up(of_sample, dots, eps)])
    return float(np.quantile(gaps, target, method="higher")) + 1e-6 if len(gaps) else 1e-6


def _gaps(pairs: np.ndarray, sample: np.ndarray, layout: Layout, centroids: np.ndarray) -> np.ndarray:
    """float64 (n,): how much nearer its own centroid one of two rows is than that of the other, the lesser of both."""
    found = np.zeros(len(pairs))
    of = decide(sample, centroids, sample @ centroids.T)
    for start in range(0, len(pairs), _BLOCK):
        part = slice(start, start + _BLOCK)
        left, other = pairs[part, 0].astype(np.int64), pairs[part, 1].astype(np.int64)
        numbers, which = np.unique(other, return_inverse=True)
        vectors = layout.gather(numbers)
        one, two = of[left], decide(vectors, centroids, vectors @ centroids.T)[which]
        here, there = centroids[one], centroids[two]
        mine, theirs = sample[left], vectors[which]
        gaps = [
            exact_dots(mine, here) - exact_dots(mine, there),
            exact_dots(theirs, there) - exact_dots(theirs, here),
        ]
        found[part] = np.where(one == two, 0, np.maximum(0, np.minimum(*gaps)))
    return found


def _made_up(of_sample: np.ndarray, dots: np.ndarray, eps: float) -> np.ndarray:
    """Gaps between each row and a vector at eps from it, in the direction of the next row."""
    cosine, sine = 1 - eps, math.sqrt(max(0.0, 1 - (1 - eps) ** 2))
    good = np.abs(dots) < 1 - 1e-6
    left, dots = of_sample[good], dots[good, None]
    right = np.roll(of_sample, -1, axis=0)[good]
    theirs = cosine * left + sine * (right - dots * left) / np.sqrt(1 - dots**2)
    at = np.arange(len(left))
    if not len(left):
        return np.zeros(0)
    mine, home = left.argmax(axis=1), theirs.argmax(axis=1)
    gaps = np.minimum(left[at, mine] - left[at, home], theirs[at, home] - theirs[at, mine])
    return np.asarray(np.maximum(gaps, 0), np.float64)
