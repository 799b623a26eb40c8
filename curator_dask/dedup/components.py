"""Groups as connected components: rows that are duplicates of duplicates belong together."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from curator_dask.dedup.grouping import NONE, Groups
from curator_dask.dedup.places import PART, Reader
from curator_dask.dedup.products import exact_dots

#: Rows of a component up to which all are compared with all for its diameter.
_WHOLE = 1024


def components(count: int, parts: Iterable[np.ndarray], ranks: np.ndarray, fixed: int) -> Groups:
    """The best row of each component is kept, and so are those that are fixed; cosines are left to `spread`.

    Parameters
    ----------
    count
        Rows.
    parts
        Pairs, by the numbers of their rows.
    ranks
        int64 (count,): places in the order of who stays.
    fixed
        Rows of a lower rank stay.
    """
    by_rank = np.argsort(ranks, kind="stable")
    place = np.empty(count, np.int64)
    place[by_rank] = np.arange(count)
    root = np.arange(count)  # of each place, one of its component that is at least as good
    for pairs in parts:
        left, right = place[pairs["better"]], place[pairs["worse"]]
        while True:
            one, other = root[left], root[right]
            apart = one != other
            if not apart.any():
                break
            left, right = left[apart], right[apart]
            low, high = np.minimum(one, other)[apart], np.maximum(one, other)[apart]
            np.minimum.at(root, high, low)
            while (root[root] != root).any():
                root = root[root]
    star = by_rank[root[place]]
    kept = (star == np.arange(count)) | (ranks < fixed)
    star[kept & (star == np.arange(count))] = NONE
    return Groups(kept, star, np.full(count, np.nan))


def heads_of(groups: Groups) -> np.ndarray:
    """int64 (rows,): the best row of each row's component."""
    return np.where(groups.star == NONE, np.arange(len(groups.star)), groups.star)


def spread(reader: Reader, groups: Groups, vectors: int) -> tuple[float, bool]:
    """Fill in the cosine of each row and the best of its component; the largest distance within one.

    Parameters
    ----------
    reader
        Of the vectors.
    groups
        By their places.
    vectors
        Rows before this one have a vector.

    Returns
    -------
    tuple
        1 - cosine of the two rows of one component that are farthest apart, and whether these are; False: there may be
        some that are farther apart, for large components, and those whose best has no vector, are not compared in full.
    """
    heads = heads_of(groups)
    others = np.flatnonzero(
        (heads != np.arange(len(heads))) & (np.arange(len(heads)) < vectors) & (heads < vectors)
    )
    for start in range(0, len(others), PART // 8):
        part = others[start : start + PART // 8]
        used, at = np.unique(heads[part], return_inverse=True)
        groups.cosine[part] = exact_dots(reader.read(part), reader.read(used)[at])
    certain = not ((np.arange(len(heads)) < vectors) & (heads >= vectors)).any()
    if not len(others):
        return 0.0, certain
    others = others[np.argsort(heads[others], kind="stable")]
    begins = np.flatnonzero(np.diff(heads[others], prepend=-1))
    ends = np.append(begins[1:], len(others))
    farthest = np.minimum.reduceat(groups.cosine[others], begins)
    angles = np.arccos(np.clip(farthest, -1, 1))
    found = 1 - float(farthest.min())
    for number in np.argsort(-angles, kind="stable").tolist():
        # Two rows are at most as far apart as both are from the best, taken together.
        if 1 - np.cos(min(np.pi, 2 * angles[number])) <= found:
            break
        members = others[begins[number] : ends[number]]
        if len(members) < 2:
            continue
        rows = np.sort(members)
        if len(rows) <= _WHOLE:
            block = reader.read(rows)
            left, right = np.divmod(int((block @ block.T).argmin()), len(rows))
            found = max(found, 1 - float(exact_dots(block[left : left + 1], block[right : right + 1])[0]))
            continue
        certain = False
        start = members[np.argmin(groups.cosine[members])]
        for _ in range(2):
            cosines = _from(reader, int(start), rows)
            start = rows[np.argmin(cosines)]
            found = max(found, 1 - float(cosines.min()))
    return found, certain


def _from(reader: Reader, row: int, others: np.ndarray) -> np.ndarray:
    """float64 (n,): cosines of a row and others."""
    one = reader.read(np.array([row]))
    found = np.empty(len(others))
    for start in range(0, len(others), PART // 8):
        part = others[start : start + PART // 8]
        theirs = reader.read(part)
        found[start : start + len(part)] = exact_dots(theirs, np.broadcast_to(one, theirs.shape))
    return found
