"""Two sides of a comparison, of which no more is read than is needed: sketches, and vectors where these say little."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from curator_dask.dedup.places import Places, Reader
from curator_dask.dedup.products import (
    MARGIN,
    PAIR_COST,
    Block,
    are_near,
    exact_pairs,
    margin_of,
    near_if_few,
    near_in_parts,
    products,
)
from curator_dask.dedup.sketches import SKETCH_MARGIN, sketches_of, widths_of, widths_there

_WORTH = 1 << 16  # products of a block that are made by sketches
_AFRESH = 32  # blocks after which the smallest sketches are tried again


class Side:
    """Some rows.

    Parameters
    ----------
    reader
        Of their vectors.
    places
        int64 (n,): theirs in the order of clusters; they rise.
    """

    def __init__(self, reader: Reader, places: np.ndarray) -> None:
        self.places = places
        self._reader = reader
        self._block: Block | None = None
        self._sketches: dict[int, Block] = {}

    def block(self, beside: Side | None = None) -> Block:
        """All of their vectors; of another side's block, where they are side by side in it."""
        if self._block is None:
            self._block = self._part_of(beside) or Block(self._reader.read(self.places))
        return self._block

    def _part_of(self, beside: Side | None) -> Block | None:
        if beside is None:
            return None
        first, last = np.searchsorted(beside.places, self.places[[0, -1]]).tolist()
        inside = last < len(beside.places) and beside.places[first] == self.places[0]
        if inside and last - first == len(self.places) - 1:
            return beside.block().part(first, last + 1)
        return None

    def sketches(self, width: int) -> Block:
        """All of their sketches."""
        if width not in self._sketches:
            self._sketches[width] = Block(sketches_of(self._reader.order, width, self.places))
        return self._sketches[width]

    def some(self, at: np.ndarray, width: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Vectors, or sketches of such a width, that have those of some rows; and where in these they are."""
        block = self._sketches.get(width) if width else self._block
        if block is not None:
            return block.vectors, at
        numbers, which = np.unique(at, return_inverse=True)
        places = self.places[numbers]
        return sketches_of(self._reader.order, width, places) if width else self._reader.read(places), which


def cosines(left: Side, rows: np.ndarray, right: Side, columns: np.ndarray, width: int = 0) -> np.ndarray:
    """float64 (n,): of rows of two sides, by their numbers; with a width, products of their sketches."""
    mine, at = left.some(rows, width)
    theirs, others = right.some(columns, width)
    return exact_pairs(mine, at, theirs, others)


class Finder:
    """Finds what is near; it goes on with the sketches that were of use before.

    Parameters
    ----------
    reader
        Of vectors.
    places
        Where they are, and their sketches, if there are any.
    eps
        Two rows are near with a cosine of at least 1 - eps.
    hits
        Products that are looked at at a time, where very many say that rows are near.
    """

    def __init__(self, reader: Reader, places: Places, eps: float, hits: int) -> None:
        self.reader = reader
        self._least, self._hits = 1 - eps, hits
        self._widths = widths_there(places.order, widths_of(places.layout.dim))
        # By kind: of a cluster's own rows, and of others.
        self._begin, self._blocks = {True: 0, False: 0}, {True: 0, False: 0}

    def near(
        self, mine: Side, theirs: Side, size: int, active: np.ndarray, within: bool
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows and columns that are near, some at a time.

        All are decided here: of a row's many that only may be, no few could be picked without losing one that is.

        Parameters
        ----------
        mine, theirs
            The rows, and the columns.
        size
            Columns that are asked for: the first ones.
        active
            int64 (n,): rows that are.
        within
            Both are of one cluster.
        """
        every = len(active) == len(mine.places)
        only, at = None if every else active, slice(0, size)
        for width in self._tried(len(active) * size, within):
            rows, columns = mine.sketches(width), theirs.sketches(width)
            found = products(rows, columns, at, only)
            few = near_if_few(
                found, self._least - margin_of(rows, columns) - SKETCH_MARGIN, len(active) * size // PAIR_COST
            )
            if few is not None:
                self._begin[within] = self._widths.index(width)
                left, right = active[few[0]], few[1]
                # Of wider sketches less has to be read than of vectors.
                for wider in self._widths[self._begin[within] + 1 :]:
                    good = cosines(mine, left, theirs, right, wider) >= self._least - SKETCH_MARGIN - MARGIN
                    left, right = left[good], right[good]
                if len(left):
                    good = cosines(mine, left, theirs, right) >= self._least
                    yield left[good], right[good]
                return
            self._begin[within] = self._widths.index(width) + 1
        rows, columns = mine.block(theirs), theirs.block()
        found = products(rows, columns, at, only)
        for left, right in near_in_parts(found, self._least - margin_of(rows, columns), self._hits):
            if len(left):
                some = active[left[0] : left[-1] + 1]
                good = are_near(rows.vectors[some], left - left[0], columns, right, self._least)
                yield active[left[good]], right[good]

    def _tried(self, count: int, within: bool) -> tuple[int, ...]:
        """Widths of sketches for a block of so many products."""
        if count < _WORTH:
            return ()
        self._blocks[within] += 1
        return self._widths[0 if self._blocks[within] % _AFRESH == 0 else self._begin[within] :]
