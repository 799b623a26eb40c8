"""How many rows of each cluster stay where clusters are in clusters: shared out evenly from the top down.

The hierarchical sampling of Vo et al. 2024 (arXiv 2405.15613, section 3.4 and algorithm 2): what is to be kept is
divided evenly among the clusters of the highest level; where one has fewer rows, the others share what it leaves; and
what each gets is divided among the clusters in it in the same way, down to the first level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from curator_dask.rows.draws import mixed, text_digests


def shared(
    numbers: Sequence[int], sizes: np.ndarray, parents: Sequence[np.ndarray], keep: int, seed: int
) -> np.ndarray:
    """int64 (clusters of the first level,): how many rows of each are kept, `keep` in all, or all that there are.

    What does not divide evenly goes to clusters that are drawn. A larger `keep` gives no cluster fewer rows.

    Parameters
    ----------
    numbers
        Of clusters, by level.
    sizes
        int64: rows of each cluster of the first level.
    parents
        Of each level but the last, the cluster of the next that each of its clusters is of.
    keep
        Rows in all.
    seed
        Of the draw.
    """
    below = [np.asarray(sizes, np.int64)]
    for of, number in zip(parents, numbers[1:], strict=True):
        below.append(np.bincount(of, below[-1], number).astype(np.int64))
    given = evenly(below[-1], keep, _turns(len(below[-1]), len(parents), seed))
    for level in reversed(range(len(parents))):
        own, of = below[level], parents[level]
        found, turns = np.zeros_like(own), _turns(len(own), level, seed)
        order = np.argsort(of, kind="stable")
        ends = np.cumsum(np.bincount(of, minlength=len(given)))
        for cluster in np.flatnonzero(given).tolist():
            inside = order[ends[cluster - 1] if cluster else 0 : ends[cluster]]
            found[inside] = evenly(own[inside], int(given[cluster]), turns[inside])
        given = found
    return given


def evenly(sizes: np.ndarray, keep: int, turns: np.ndarray) -> np.ndarray:
    """int64 (clusters,): as many of each, or all that it has, which add up to `keep` or to all that there are.

    Parameters
    ----------
    sizes
        int64 (clusters,).
    keep
        In all.
    turns
        By which is said who of those that have more gets one more, the least first.
    """
    keep = min(keep, int(sizes.sum()))
    # With the smallest first: what is left for each of the others when these are used up.
    ascending = np.sort(sizes)
    before = np.cumsum(ascending) - ascending
    others = np.arange(len(sizes), 0, -1)
    full = int(np.argmax(before + ascending * others > keep)) if len(sizes) else 0
    if not len(sizes) or keep == sizes.sum():
        return sizes.astype(np.int64)
    level = (keep - int(before[full])) // int(others[full])
    found: np.ndarray = np.minimum(sizes, level).astype(np.int64)
    more = np.flatnonzero(sizes > level)
    found[more[np.argsort(turns[more], kind="stable")[: keep - int(found.sum())]]] += 1
    return found


def _turns(number: int, level: int, seed: int) -> np.ndarray:
    """uint64 (number,): in what order the clusters of a level get one more."""
    return mixed(np.arange(number, dtype=np.uint64) + text_digests([f"{seed}\0{level}"]), 0)


def figures(
    numbers: Sequence[int], sizes: np.ndarray, parents: Sequence[np.ndarray], quotas: Any
) -> list[dict[str, Any]]:
    """What each level has, the highest first: how many clusters, and how many rows these have and keep.

    Parameters
    ----------
    numbers, sizes, parents
        See `shared`.
    quotas
        int64: rows of each cluster of the first level that are kept; None: nothing is.

    Returns
    -------
    list
        By level ``level``, ``clusters``, ``empty``, and ``rows`` and ``kept`` of those that have some: least, median
        and most.
    """
    found, kept = [], quotas
    for level, number in enumerate(numbers, 1):
        if level > 1:
            of = parents[level - 2]
            sizes = np.bincount(of, sizes, number).astype(np.int64)
            kept = None if kept is None else np.bincount(of, kept, number).astype(np.int64)
        some = sizes > 0
        said = {"level": level, "clusters": number, "empty": int((~some).sum()), "rows": _spread(sizes[some])}
        found.append({**said, "kept": None if kept is None else _spread(kept[some])})
    return found[::-1]


def _spread(values: np.ndarray) -> list[int]:
    return [int(values.min()), int(np.median(values)), int(values.max())] if len(values) else [0, 0, 0]
