"""Mean and covariance of vectors that come some at a time, and the Fréchet distance of two sets of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from curator_dask import backend

if TYPE_CHECKING:
    import torch


@dataclass
class Moments:
    """What is kept of vectors: sums around their mean, which do not lose digits where the mean is far from zero.

    Attributes
    ----------
    count
        Vectors.
    mean
        float64 (dim,).
    scatter
        float64 (dim, dim): the sum over vectors x of (x - mean)(x - mean)ᵀ.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def none(cls, dim: int) -> Moments:
        """Of no vectors."""
        return cls(0, np.zeros(dim), np.zeros((dim, dim)))

    @classmethod
    def of(cls, vectors: np.ndarray) -> Moments:
        """Of float32 (n, dim), summed in float64 on this process's device."""
        import torch

        if not len(vectors):
            return cls.none(vectors.shape[1])
        with torch.inference_mode():
            some = torch.from_numpy(np.ascontiguousarray(vectors)).to(backend.current().torch_device)
            some = some.double()
            mean = some.mean(0)
            some -= mean
            return cls(len(vectors), mean.cpu().numpy(), (some.T @ some).cpu().numpy())

    def add(self, other: Moments) -> None:
        """Count another set in, as Chan, Golub and LeVeque (1983) do."""
        if not other.count:
            return
        count = self.count + other.count
        apart = other.mean - self.mean
        self.scatter += other.scatter
        self.scatter += np.outer(apart, apart) * (self.count * other.count / count)
        self.mean = self.mean + apart * (other.count / count)
        self.count = count

    def __add__(self, other: Moments) -> Moments:
        """Of both sets."""
        both = Moments(self.count, self.mean, self.scatter.copy())
        both.add(other)
        return both


class Gaussian:
    """The Gaussian with these moments, on this process's device; several distances may be taken of one.

    Parameters
    ----------
    moments
        Of vectors; the covariance is divided by one less than these, as `numpy.cov` and the scores in use do.
    """

    def __init__(self, moments: Moments) -> None:
        import torch

        self.mean = moments.mean
        covariance = torch.from_numpy(moments.scatter / max(1, moments.count - 1))
        self.covariance = covariance.to(backend.current().torch_device)

    @cached_property
    def factor(self) -> torch.Tensor:
        """F, such that the covariance is F Fᵀ: Cholesky's, which takes a tenth of the time; or else its root.

        Cholesky's fails where the covariance is singular, as of fewer vectors than values.
        """
        import torch

        found: torch.Tensor
        found, failed = torch.linalg.cholesky_ex(self.covariance)
        if int(failed):
            values, vectors = torch.linalg.eigh(self.covariance)
            found = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        return found


def frechet(one: Gaussian, other: Gaussian) -> float:
    """The Fréchet distance of two Gaussians (Heusel et al. 2017, equation 6).

    ``|m - n|² + tr C + tr D - 2 tr (CD)^½``. The last is the sum of the square roots of the eigenvalues of
    ``Fᵀ D F``, where ``C = F Fᵀ``: these are those of ``CD``. It is symmetric: no root of a matrix that is not is
    taken, which fails where a covariance is singular, as it is of fewer vectors than values. Eigenvalues below 0 are
    rounding, and count as 0.
    """
    import torch

    with torch.inference_mode():
        product = one.factor.T @ other.covariance @ one.factor
        shared = float(torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum())
        traces = float(one.covariance.trace() + other.covariance.trace())
    apart = one.mean - other.mean
    return max(0.0, float(apart @ apart) + traces - 2 * shared)
