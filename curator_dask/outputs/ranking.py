"""The rows that are nearest to one vector: found by fast products, decided by exact ones.

Of equal ones the first in the files goes before. So what is found depends on neither the blocks that are read, nor
their order, nor the library that multiplies: a search of all vectors and one by an index say the same of a row, to the
bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from curator_dask.frames.exact import exact_dots

#: How far a float32 product of unit vectors of some thousand values may be off.
MARGIN = 1e-4


@dataclass
class Ranked:
    """The nearest rows so far, the nearest first; of equal ones the first by file and row.

    Attributes
    ----------
    top
        How many, at most.
    cosines
        float64 (n,).
    files, rows
        int64 (n,): number of the file among those that are searched, and of the row in it.
    """

    top: int
    cosines: np.ndarray = field(default_factory=lambda: np.zeros(0))
    files: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.cosines)

    @property
    def least(self) -> float:
        """Cosine that a row has at least that comes into it."""
        return float(self.cosines[-1]) if len(self) >= self.top else -np.inf

    def add(self, cosines: np.ndarray, files: np.ndarray, rows: np.ndarray) -> None:
        """Take more rows into account."""
        if not len(cosines):
            return
        cosines = np.concatenate([self.cosines, cosines])
        files, rows = np.concatenate([self.files, files]), np.concatenate([self.rows, rows])
        order = np.lexsort((rows, files, -cosines))[: self.top]
        self.cosines, self.files, self.rows = cosines[order], files[order], rows[order]

    def without(self, file: int, row: int) -> Ranked:
        """The same without a row."""
        others = (self.files != file) | (self.rows != row)
        return Ranked(self.top, self.cosines[others], self.files[others], self.rows[others])

    def first(self, top: int) -> Ranked:
        """The nearest of them."""
        return Ranked(top, self.cosines[:top], self.files[:top], self.rows[:top])


def may_be_best(fast: np.ndarray, top: int, least: float) -> np.ndarray:
    """int64 (n,): places of fast products that may be among the largest and pass a cosine; NaN is none.

    Parameters
    ----------
    fast
        float32 (rows,). -inf where a row is none.
    top
        How many are wanted.
    least
        Exact cosine that they have at least.
    """
    bound = max(least - MARGIN, -2.0)
    if len(fast) > top:
        known = np.where(np.isnan(fast), -np.inf, fast)
        bound = max(bound, float(np.partition(known, -top)[-top]) - 2 * MARGIN)
    places: np.ndarray = np.flatnonzero(fast >= bound)
    return places


def exact_cosines(rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """float64 (n,): cosines of float32 unit vectors with another, each by itself."""
    return exact_dots(rows, np.broadcast_to(vector, rows.shape))
