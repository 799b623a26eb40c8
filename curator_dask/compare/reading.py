"""One pass over the vectors of an output: their moments, and a sample of them.

Each row draws a number by its place in the files and the seed. By this it belongs to one of two parts of an output,
which are as large as those of the other output, or to its rest; and the lowest numbers of a part are its sample. So
what is drawn depends on neither blocks nor workers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from curator_dask.cluster.mapping import on_cluster
from curator_dask.compare.moments import Moments
from curator_dask.dedup.products import exact_dots
from curator_dask.errors import OutputError
from curator_dask.frames.columns import unit
from curator_dask.outputs.vectors import vectors_of
from curator_dask.storage import Options

#: Parts of an output that are compared, and with the rest all of it.
PARTS = 2
_BLOCK = 8192  # rows that are read at once
_TASKS = 16  # each gives back a matrix of dim x dim for each part


@dataclass(frozen=True)
class Side:
    """The files of one of the outputs, and how its rows are drawn.

    Attributes
    ----------
    paths, column, options
        Its files, in order; the column of vectors; for fsspec.
    seed
        Of the numbers that rows draw.
    part
        Share of the rows that each of the two parts has, 0 to 0.5.
    taken
        Share of the rows, at most `part`, among which is the sample of a part.
    spare
        Share of the rows, of those in neither part, that are kept, too: for what needs more rows than the parts have.
    """

    paths: tuple[str, ...]
    column: str
    options: Options
    seed: tuple[int, ...]
    part: float
    taken: float
    spare: float = 0.0


@dataclass
class Drawn:
    """The sample of one part.

    Attributes
    ----------
    order
        float64 (n,): the numbers that rows drew, which rise.
    places
        int64 (n, 2): number of the file, and of the row in it.
    vectors
        Float32 (n, dim).
    """

    order: np.ndarray
    places: np.ndarray
    vectors: np.ndarray

    def lowest(self, count: int) -> Drawn:
        """So many of them, at most."""
        first = np.argsort(self.order, kind="stable")[:count]
        return Drawn(self.order[first], self.places[first], self.vectors[first])


@dataclass
class Seen:
    """What a pass over files has come to.

    Attributes
    ----------
    dim
        Length of a vector; 0: there is none.
    aside
        Vectors that are set aside, by what is wrong with them.
    moments
        Of the two parts, and of the rest.
    drawn
        By part, and of the rest.
    """

    dim: int = 0
    aside: Counter[str] = field(default_factory=Counter)
    moments: list[Moments] = field(default_factory=list)
    drawn: list[list[Drawn]] = field(default_factory=lambda: [[] for _ in range(PARTS + 1)])

    def add(self, other: Seen) -> None:
        """Count other files in."""
        self.aside.update(other.aside)
        if not other.dim:
            return
        if not self.dim:
            self.dim, self.moments = other.dim, other.moments
        else:
            for mine, theirs in zip(self.moments, other.moments, strict=True):
                mine.add(theirs)
        for part, some in zip(self.drawn, other.drawn, strict=True):
            part += some

    @property
    def whole(self) -> Moments:
        """Of all vectors."""
        both = self.moments[0] + self.moments[1]
        both.add(self.moments[2])
        return both

    def sample(self, part: int) -> Drawn:
        """All that was taken of a part, or of the rest."""
        some = self.drawn[part] or [Drawn(np.zeros(0), np.zeros((0, 2), np.int64), np.zeros((0, self.dim)))]
        return Drawn(*(np.concatenate([getattr(each, name) for each in some]) for name in vars(some[0])))


@dataclass(frozen=True)
class ReadVectors:
    """Reads files of a side.

    Attributes
    ----------
    side
        Which.
    """

    side: Side

    def __call__(self, numbers: Sequence[int]) -> Seen:
        """Read some files, one after the other, by their numbers."""
        seen = Seen()
        for number in numbers:
            random = np.random.default_rng([*self.side.seed, number])
            first, side = 0, self.side
            for matrix, good in vectors_of(
                side.paths[number], side.options, side.column, seen.dim, seen.aside, _BLOCK
            ):
                draws = random.random(len(good))
                if not seen.dim and good.any():
                    seen.dim = matrix.shape[1]
                    seen.moments = [Moments.none(seen.dim) for _ in range(PARTS + 1)]
                if good.any():
                    self._count(seen, number, first, matrix, np.flatnonzero(good), draws)
                first += len(good)
        return seen

    def _count(
        self, seen: Seen, number: int, first: int, matrix: np.ndarray, rows: np.ndarray, draws: np.ndarray
    ) -> None:
        side, draws = self.side, draws[rows]
        part = np.searchsorted([side.part, PARTS * side.part], draws, side="right")
        for which, moments in enumerate(seen.moments):
            mine = part == which
            moments.add(Moments.of(matrix[rows[mine]]))
            share = side.taken if which < PARTS else side.spare
            taken = mine & (draws - which * side.part < share)
            places = np.column_stack([np.full(taken.sum(), number), first + rows[taken]])
            seen.drawn[which].append(Drawn(draws[taken], places, matrix[rows[taken]]))


@dataclass(frozen=True)
class FindNearest:
    """Finds the nearest vector of files.

    Attributes
    ----------
    side
        Their side.
    asked
        Float32 (n, dim), of length 1: of what.
    """

    side: Side
    asked: np.ndarray

    def __call__(self, numbers: Sequence[int]) -> np.ndarray:
        """float64 (n,): the largest cosine with a vector of some files; -1 where these have none.

        Which is the largest is seen in float32, and what it is summed in float64.
        """
        import torch

        from curator_dask import backend

        best, dim = np.full(len(self.asked), -1.0), self.asked.shape[1]
        device = backend.current().torch_device
        asked, side = torch.from_numpy(self.asked).to(device), self.side
        for number in numbers:
            for matrix, good in vectors_of(side.paths[number], side.options, side.column, dim, Counter()):
                vectors = unit(matrix[good])
                if len(vectors):
                    with torch.inference_mode():
                        nearest = (asked @ torch.from_numpy(vectors).to(device).T).argmax(1).cpu().numpy()
                    best = np.maximum(best, exact_dots(self.asked, vectors[nearest]))
        return np.asarray(np.minimum(best, 1))


def read_side(side: Side) -> Seen:
    """All of an output, on the cluster where there is one."""
    total = Seen()
    for seen in on_cluster(ReadVectors(side), _shares(len(side.paths))):
        if seen.dim and total.dim and seen.dim != total.dim:
            raise OutputError(
                f"{side.paths[0]}: {side.column!r} has vectors of {total.dim} values, later files of {seen.dim}: all"
                " vectors of an output are to be of one model"
            )
        total.add(seen)
    return total


def nearest_in(side: Side, asked: np.ndarray) -> np.ndarray:
    """float64 (n,): of each unit vector the largest cosine with one of a side."""
    best = np.full(len(asked), -1.0)
    for found in on_cluster(FindNearest(side, asked), _shares(len(side.paths))):
        best = np.maximum(best, found)
    return best


def _shares(files: int) -> list[range]:
    """Numbers of files that a task reads: so many tasks whatever workers there are, as sums round by them."""
    ends = np.linspace(0, files, min(files, _TASKS) + 1).round().astype(int).tolist()
    return [range(start, end) for start, end in pairwise(ends)]
