"""The nearest rows of a pool for each of many queries: found by fast products, decided by exact ones.

A fast product says which may be among the nearest; that is decided by the same sum in float64, a pair at a time, and of
equal ones the first in the pool goes before. So what is found depends on neither blocks nor devices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from curator_dask.dedup.products import MARGIN, Block, exact_pairs, largest, margin_of, products

if TYPE_CHECKING:
    import torch

#: How far a float32 product of unit vectors of some thousand values may be off.
_MARGIN = 1e-4
_ASKED = 1024  # queries that are multiplied at once
_MANY = 8  # times as many hits as are wanted, from which on their largest are looked for first
NOWHERE = np.iinfo(np.int64).max  # place of a row that is not there


@dataclass
class Best:
    """The nearest rows so far, the nearest first; of equal ones the first by place.

    Attributes
    ----------
    cosines
        float64 (queries, top); -inf where there is none.
    places
        int64 (queries, top): numbers of rows; `NOWHERE` where there is none.
    """

    cosines: np.ndarray
    places: np.ndarray

    @classmethod
    def none(cls, queries: int, top: int) -> Best:
        """Before anything is found."""
        return cls(np.full((queries, top), -np.inf), np.full((queries, top), NOWHERE))

    def add(self, queries: np.ndarray, cosines: np.ndarray, places: np.ndarray) -> None:
        """Take in pairs (n,): number of the query, cosine, place of the row."""
        if not len(queries):
            return
        touched, number = np.unique(queries, return_inverse=True)
        top = self.cosines.shape[1]
        of = np.concatenate([np.repeat(np.arange(len(touched)), top), number])
        every = np.concatenate([self.cosines[touched].reshape(-1), cosines])
        where = np.concatenate([self.places[touched].reshape(-1), places])
        order = np.lexsort((where, -every, of))
        of = of[order]
        rank = np.arange(len(of)) - np.searchsorted(of, of)
        kept = order[rank < top]
        self.cosines[touched] = every[kept].reshape(-1, top)
        self.places[touched] = where[kept].reshape(-1, top)

    def join(self, other: Best) -> None:
        """Take in those of other rows, of the same queries."""
        cosines = np.concatenate([self.cosines, other.cosines], 1)
        places = np.concatenate([self.places, other.places], 1)
        order = np.lexsort((places, -cosines), axis=1)[:, : self.cosines.shape[1]]
        self.cosines = np.take_along_axis(cosines, order, 1)
        self.places = np.take_along_axis(places, order, 1)


def compare(asked: Block, block: Block, places: np.ndarray, best: Best, least: float = -2.0) -> None:
    """Take into the nearest rows of all queries those of a block.

    Parameters
    ----------
    asked
        The queries.
    block
        Rows of the pool.
    places
        int64 (n,): their numbers, which rise from block to block.
    best
        Of the queries, changed.
    least
        Cosine that rows have at least.
    """
    top = best.cosines.shape[1]
    margin = margin_of(asked, block) - MARGIN + _MARGIN
    for start in range(0, len(asked.vectors), _ASKED):
        part = asked.part(start, min(start + _ASKED, len(asked.vectors)))
        found = products(part, block, slice(0, len(block.vectors)))
        so_far = best.cosines[start : start + len(part.vectors), -1]
        left, right = _may_be(found, np.maximum(so_far, least) - margin, top, margin)
        cosines = exact_pairs(part.vectors, left, block.vectors, right)
        good = (cosines >= least) & (cosines > so_far[left])  # of equal ones those of before go first
        best.add(start + left[good], cosines[good], places[right[good]])


def _may_be(found: torch.Tensor, least: np.ndarray, top: int, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of fast products that may be among the largest of their row.

    Parameters
    ----------
    found
        (rows, columns).
    least
        float64 (rows,): what they are at least.
    top, margin
        How many are wanted of each row, and how far a product may be off.
    """
    import torch

    with torch.inference_mode():
        bound = torch.from_numpy(np.maximum(least, -2).astype(np.float32)).to(found.device)
        # The quick way to the largest needs one above 0.
        tops = largest(found) if len(least) and least.min() > 0 else found.float().amax(1)
        rows = torch.nonzero(tops >= bound).flatten()
        some, bound = found[rows].float(), bound[rows]
        hits = some >= bound[:, None]
        many = torch.nonzero(hits.sum(1) > _MANY * top).flatten()
        if len(many):
            ends = some[many].topk(top, dim=1).values[:, -1] - 2 * margin
            hits[many] = some[many] >= bound[many].maximum(ends)[:, None]
        at = torch.nonzero(hits).cpu()
        return rows.cpu()[at[:, 0]].numpy(), at[:, 1].numpy()
