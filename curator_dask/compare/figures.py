"""What is found of two outputs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from curator_dask.compare.columns import Columns
from curator_dask.compare.neighbours import Neighbours
from curator_dask.info.found import plain


@dataclass
class Compared:
    """One of the outputs.

    Attributes
    ----------
    path, files, rows
        Where it is, its files and their rows.
    vectors
        That are compared.
    aside
        Rows whose vector is not, by what is wrong with it: ``null``, ``not finite``, ``zero``.
    failed
        Rows with an ``image_error``.
    """

    path: str
    files: int = 0
    rows: int = 0
    vectors: int = 0
    aside: dict[str, int] = field(default_factory=dict)
    failed: int = 0


@dataclass
class Distance:
    """A distance of A to B, and, of as many rows, that of two random parts of one output.

    Attributes
    ----------
    a_b, a_a, b_b
        Of a part of A to one of B, of two parts of A, of two parts of B.
    rows
        Of each part; the smallest.
    all
        Of all rows, or all of the sample, of A to all of B.
    """

    a_b: float
    a_a: float
    b_b: float
    rows: int
    all: float


@dataclass
class Frechet(Distance):
    """The Fréchet distance.

    Attributes
    ----------
    unlimited
        What it would be of any number of rows, by a line through those of parts and of twice as many rows, over one by
        the rows (Chong and Forsyth 2020).
    """

    unlimited: float


@dataclass
class Cmmd(Distance):
    """CMMD, as the authors' program has it: with the pairs of a vector and itself.

    Attributes
    ----------
    unbiased
        `all` without these pairs.
    p
        How likely two sets of one kind are as far apart, by dealing the sample's rows anew; None: it was not asked for.
    permutations
        How often this was done.
    """

    unbiased: float
    p: float | None
    permutations: int


@dataclass
class Shared:
    """Precision, recall, density and coverage with A as the reference, and those of two parts of one output.

    Attributes
    ----------
    k
        Of the nearest neighbours.
    rows
        Of each part.
    a_b, a_a, b_b
        As of `Distance`.
    """

    k: int
    rows: int
    a_b: Neighbours
    a_a: Neighbours
    b_b: Neighbours


@dataclass
class Near:
    """The share of one output's rows that have a near one in all of the other.

    Attributes
    ----------
    rows
        Of a sample, that were looked at.
    median
        Of the cosine of their nearest.
    shares
        By eps, as text: the share whose nearest has a cosine of at least 1 - eps, and between what it is in 95 of
        100 cases (Wilson's interval). ``"0"`` is the same vector, but for rounding.
    """

    rows: int
    median: float
    shares: dict[str, tuple[float, float, float]]


@dataclass
class Figures:
    """What `curator_dask.compare.compare_outputs` has found.

    Attributes
    ----------
    a, b
        The outputs.
    column, dim
        Of the vectors, and their length.
    model
        What made them, in words; None: nothing says it.
    frechet, cmmd, neighbours
        How far the vectors are apart, by which measure. Of neighbours None where a part has not more than k vectors.
    near
        Of A's rows in B, and of B's in A.
    columns
        That both have.
    seed
        Of what is drawn.
    notes
        What to know before the figures are believed.
    seconds
        That it took.
    """

    a: Compared
    b: Compared
    column: str
    dim: int
    model: str | None
    frechet: Frechet
    cmmd: Cmmd
    neighbours: Shared | None
    near: tuple[Near, Near]
    columns: Columns
    seed: int
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: the attributes; what is not finite as text."""
        found: dict[str, Any] = plain(asdict(self))
        return found
