"""Rows that are near copies of one another: a figure of unseen rows is too good where copies of them were seen.

Rows hang together where the cosine of their vectors is at least 1 - eps, as of `curator_dask.dedup`, and by rows
between them. All pairs are compared, a block of rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from curator_dask.words import counted

#: 1 - cosine up to which rows are near copies.
EPS = 0.05
#: Where most rows hang together, as vectors of some models all point one way, a smaller eps is taken: down to this.
_LEAST = EPS / 64
_BLOCK = 256  # rows that are compared with all others at once
_PAIRS = 1 << 23  # that these are, at most


@dataclass(frozen=True)
class Copies:
    """Which rows are near copies of one another.

    Attributes
    ----------
    groups
        int64 (n,): the number of each row's group; rows of one group hang together.
    eps
        1 - cosine up to which two rows hang together.
    apart
        Groups are held apart; False: that cannot be, as too many rows are of one.
    """

    groups: np.ndarray
    eps: float
    apart: bool = True

    @property
    def sizes(self) -> np.ndarray:
        """Rows of each group that has several; int64."""
        counts = np.bincount(self.groups)
        found: np.ndarray = counts[counts > 1]
        return found

    @property
    def told(self) -> str:
        """How many there are, in words; nothing where there are none."""
        sizes = self.sizes
        if not len(sizes):
            return ""
        said = (
            f"{int(sizes.sum()):,} of {len(self.groups):,} rows are near copies of others (1 - cosine up to"
            f" {self.eps:g}), in {counted(len(sizes), 'group')}, the largest of {int(sizes.max()):,}: "
        )
        if self.apart:
            return f"{said}those of a group are left out together, so that no copy of an unseen row was seen"
        return (
            f"{said}they cannot be left out together, as too few others, or none of a kind, would be left; so copies of"
            " unseen rows were seen, and the figures are too good. Label other images, or fewer of these"
        )

    def to_dict(self) -> dict[str, object]:
        """Counts, for JSON."""
        sizes = self.sizes
        return {
            "copies": int(sizes.sum()),
            "copy_groups": len(sizes),
            "copy_eps": self.eps,
            "apart": self.apart,
        }


def alone(rows: int) -> Copies:
    """None of so many rows is a copy."""
    return Copies(np.arange(rows), 0.0)


def find_copies(vectors: np.ndarray, eps: float) -> Iterator[Copies]:
    """Groups of near copies, with an eps that is halved each time; none where fewer than two rows hang together.

    Parameters
    ----------
    vectors
        Float32 (n, dim), finite. Those of zero are copies of nothing.
    eps
        1 - cosine, above 0, up to which two rows hang together.
    """
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    unit = (vectors / np.where(norms, norms, 1)[:, None]).astype(np.float32)
    levels = [eps]
    while levels[-1] > _LEAST:
        levels.append(levels[-1] / 2)
    for level, groups in zip(levels, _grouped(unit, levels), strict=True):
        yield Copies(groups, level)


def _grouped(unit: np.ndarray, levels: list[float]) -> list[np.ndarray]:
    """For each eps the groups of rows, by all pairs; memory is of a block of rows with all others."""
    count = len(unit)
    found = [np.arange(count) for _ in levels]
    block = max(1, min(_BLOCK, _PAIRS // max(1, count)))
    for start in range(0, count, block):
        products = unit[start : start + block] @ unit[start:].T
        for number, eps in enumerate(levels):
            near = products >= 1 - eps
            if np.count_nonzero(near) == np.count_nonzero(
                near.diagonal()
            ):  # nor are there any with a smaller eps
                break
            groups = found[number]
            rows, others = _pairs(near, groups[start : start + len(near)], groups[start:])
            new = groups[rows + start] != groups[others + start]  # of most pairs it is known already
            if new.any():
                found[number] = _joined(groups, rows[new] + start, others[new] + start)
    return [np.unique(each, return_inverse=True)[1] for each in found]


def _pairs(near: np.ndarray, groups: np.ndarray, of_others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and others that are near, without pairs of the largest group, where that has many."""
    values, counts = np.unique(of_others, return_counts=True)
    largest = values[counts.argmax()]
    if 4 * counts.max() < len(of_others):
        rows, others = np.nonzero(near)
        return rows, others
    own, outside = groups == largest, np.flatnonzero(of_others != largest)
    few = np.flatnonzero(~own)
    rows, others = np.nonzero(near[few])
    more, others_of_more = np.nonzero(near[np.ix_(own, outside)])
    rows = np.concatenate([few[rows], np.flatnonzero(own)[more]])
    return rows, np.concatenate([others, outside[others_of_more]])


def _joined(groups: np.ndarray, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The groups when pairs of rows hang together."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(groups)
    # Not made unique first: NumPy's by hashes takes seconds for some millions.
    graph = coo_array((np.ones(len(rows), bool), (groups[rows], groups[others])), (count, count))
    joined: np.ndarray = connected_components(graph, directed=False)[1].astype(np.int64)[groups]
    return joined
