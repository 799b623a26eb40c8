"""Precision, recall, density and coverage of two sets of vectors, by the nearest neighbours in each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from curator_dask import backend

if TYPE_CHECKING:
    import torch

_BLOCK = 2048
_SAME = 1e-12  # of squared lengths: what is nearer is the same vector, and its distance rounding


@dataclass(frozen=True)
class Neighbours:
    """What one set of vectors, the reference, and another have in common.

    Attributes
    ----------
    precision
        Share of the other's vectors that lie in a ball around one of the reference, as wide as that one's k-th
        nearest of its own set is far (Kynkäänniemi et al. 2019).
    recall
        Share of the reference's vectors that lie in such a ball of the other.
    density
        In how many balls of the reference a vector of the other lies, divided by k (Naeem et al. 2020); about 1 where
        both are alike.
    coverage
        Share of the reference's balls in which one of the other lies.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def radii(vectors: np.ndarray, k: int) -> np.ndarray:
    """float64 (n,): squared distance of each vector to its k-th nearest of the others."""
    import torch

    found = []
    with torch.inference_mode():
        whole, squares = _ready(vectors)
        for start in range(0, len(whole), _BLOCK):
            apart = _apart(whole, squares, slice(start, start + _BLOCK), whole, squares)
            rows = torch.arange(len(apart), device=apart.device)
            apart[rows, rows + start] = torch.inf
            found.append(apart.kthvalue(k, dim=1).values.cpu().numpy())
    return np.concatenate(found)


def reach(vectors: np.ndarray, others: np.ndarray, k: int) -> np.ndarray:
    """float64 (n,): squared distance of each vector to its k-th nearest of another set."""
    import torch

    found = []
    with torch.inference_mode():
        (whole, squares), (right, theirs) = _ready(vectors), _ready(others)
        for start in range(0, len(whole), _BLOCK):
            apart = _apart(whole, squares, slice(start, start + _BLOCK), right, theirs)
            found.append(apart.kthvalue(k, dim=1).values.cpu().numpy())
    return np.concatenate(found)


def most_own(
    vectors: np.ndarray, own: np.ndarray, others: np.ndarray, k: int, count: int
) -> list[tuple[int, float]]:
    """The vectors of a set that are most like its others, and least like another set's.

    By the distance to the k-th nearest of their own over that to the k-th of the others: near 0 where the other set has
    nothing like it. Of vectors that lie in one ball one is taken.

    Parameters
    ----------
    vectors, own
        Float32 (n, dim), and their `radii` by k.
    others
        Float32 (m, dim).
    k, count
        Which neighbour; how many are wanted.

    Returns
    -------
    Numbers of the vectors, and the ratio of the distances of each.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.sqrt(own / reach(vectors, others, k))
    found: list[tuple[int, float]] = []
    for at in np.argsort(np.nan_to_num(ratio, nan=1.0), kind="stable").tolist():
        if not ratio[at] < 1 or len(found) == count:
            break
        chosen = [each for each, _ in found]
        apart = np.square(vectors[chosen].astype(np.float64) - vectors[at]).sum(1)
        if (apart > np.maximum(own[at], own[chosen])).all():
            found.append((at, float(ratio[at])))
    return found


def neighbours(
    reference: np.ndarray, own: np.ndarray, others: np.ndarray, theirs: np.ndarray, k: int
) -> Neighbours:
    """Compare two sets.

    Parameters
    ----------
    reference, others
        Float32 (n, dim) and (m, dim).
    own, theirs
        Their `radii`.
    k
        By which these are.
    """
    import torch

    inside, within, reached = np.zeros(len(others), np.int64), np.zeros(len(reference), bool), []
    with torch.inference_mode():
        left, left_squares = _ready(reference)
        right, right_squares = _ready(others)
        mine, ours = (torch.from_numpy(each).to(left.device) for each in (own, theirs))
        for start in range(0, len(left), _BLOCK):
            part = slice(start, start + _BLOCK)
            apart = _apart(left, left_squares, part, right, right_squares)
            in_mine = apart <= mine[part, None]
            inside += in_mine.sum(0).cpu().numpy()
            reached.append(in_mine.any(1).cpu().numpy())
            within[part] = (apart <= ours[None]).any(1).cpu().numpy()
    return Neighbours(
        float((inside > 0).mean()),
        float(within.mean()),
        float(inside.mean() / k),
        float(np.concatenate(reached).mean()),
    )


def _ready(vectors: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    whole = torch.from_numpy(np.ascontiguousarray(vectors)).to(backend.current().torch_device).double()
    return whole, whole.square().sum(1)


def _apart(
    whole: torch.Tensor,
    squares: torch.Tensor,
    part: slice,
    others: torch.Tensor,
    their_squares: torch.Tensor,
) -> torch.Tensor:
    """Squared distances in float64, 0 where two vectors are the same."""
    apart = whole[part] @ others.T
    apart.mul_(-2).add_(squares[part, None]).add_(their_squares)
    apart[apart <= _SAME * squares[part, None]] = 0
    return apart
