"""CMMD: how far two sets of unit vectors are by a Gaussian kernel, in blocks of all pairs.

Jayasumana et al. 2024 (Rethinking FID): the squared maximum mean discrepancy with a kernel of sigma 10, times 1000.
Of unit vectors all values of the kernel lie between 0.98 and 1, and what is looked for in their seventh digit. So sums
are of 1 minus the kernel, which float32 holds to seven digits of its own, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curator_dask import backend

#: Of the kernel, and the factor by which the distance is told.
SIGMA, SCALE = 10.0, 1000.0
_BLOCK = 2048


@dataclass(frozen=True)
class Discrepancies:
    """CMMD of sets of equally many vectors with one another.

    Attributes
    ----------
    unlike
        float64 (sets, sets): the sum over all pairs of 1 minus the kernel.
    rows
        Of each set.
    chance
        float64 (permutations,): `biased` of two sets into which all vectors are dealt by chance.
    """

    unlike: np.ndarray
    rows: int
    chance: np.ndarray

    def biased(self, one: Sequence[int], other: Sequence[int]) -> float:
        """CMMD of two unions of as many sets, with the pairs of a vector and itself, as the authors' program has it."""
        within = sum(self.unlike[np.ix_(each, each)].sum() for each in (one, other))
        across = self.unlike[np.ix_(one, other)].sum()
        return float(SCALE * (2 * across - within) / (len(one) * self.rows) ** 2)

    def unbiased(self, one: Sequence[int], other: Sequence[int]) -> float:
        """The same without these pairs: 0 on average where both are of one kind, and so also below it."""
        count = len(one) * self.rows
        within = sum(self.unlike[np.ix_(each, each)].sum() for each in (one, other))
        across = self.unlike[np.ix_(one, other)].sum()
        return float(SCALE * (2 * across / count**2 - within / (count * (count - 1))))


def discrepancies(sets: Sequence[np.ndarray], permutations: int, seed: int) -> Discrepancies:
    """Compare sets of unit vectors, each with each.

    All pairs of vectors are looked at, some thousand a side at a time. With signs s of 1 and -1 for two halves of n
    rows their distance is -sᵀ(1 - K)s / n²: so a permutation costs a column more of a product.

    Parameters
    ----------
    sets
        Float32 (n, dim) each, of length 1; as many of each.
    permutations
        How often all vectors are dealt into two sets by chance.
    seed
        Of that.
    """
    import torch

    rows, whole = len(sets[0]), np.concatenate(sets)
    random = np.random.default_rng([seed, 17])
    halves = np.resize(np.array([1, -1], np.float32), len(whole))
    signs = np.stack([random.permutation(halves) for _ in range(permutations)], 1) if permutations else None
    member = np.zeros((len(whole), len(sets)), np.float32)
    member[np.arange(len(whole)), np.arange(len(whole)) // max(1, rows)] = 1
    sides = member if signs is None else np.concatenate([member, signs], 1)
    device, count = backend.current().torch_device, len(sets)
    unlike, chance = np.zeros((count, count)), np.zeros(permutations)
    with torch.inference_mode():
        vectors, side = torch.from_numpy(whole).to(device), torch.from_numpy(sides).to(device)
        for start in range(0, len(whole), _BLOCK):
            mine, part = vectors[start : start + _BLOCK], side[start : start + _BLOCK].double()
            for other in range(start, len(whole), _BLOCK):
                product = mine @ vectors[other : other + _BLOCK].T
                # exp(-|x - y|² / 2 sigma²), and |x - y|² = 2 - 2xy.
                apart = product.sub_(1).clamp_(max=0).div_(SIGMA**2).expm1_().neg_()
                sums = (apart @ side[other : other + _BLOCK]).double()
                between = (part[:, :count].T @ sums[:, :count]).cpu().numpy()
                unlike += between if other == start else between + between.T
                signed = (part[:, count:] * sums[:, count:]).sum(0).cpu().numpy()
                chance -= signed if other == start else 2 * signed
    return Discrepancies(unlike, rows, SCALE * chance / (len(whole) / 2) ** 2)
