"""The nearest rows of files of a pool, for each query: found by fast products, decided by exact ones.

Every vector is compared with every query. A fast product says which may be among the nearest; that is decided by the
same sum in float64, a pair at a time, and of equal ones the first in the pool goes before. So what is found depends on
neither blocks, nor how files are dealt out, nor devices.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from curator_dask.dedup.nearest import NOWHERE, Best, compare
from curator_dask.dedup.phases import Phase
from curator_dask.dedup.products import Block
from curator_dask.dedup.scanning import Source
from curator_dask.frames.columns import unit
from curator_dask.outputs.vectors import FAULTS, vectors_of

#: The file of the queries' vectors, of the phase.
QUERIES = "queries.vectors"
_ROWS = 4096  # of the pool that are read at once


@dataclass(frozen=True)
class FindNearest:
    """Finds the nearest rows of groups of files.

    Attributes
    ----------
    phase
        With `QUERIES`; where the files of each group go.
    groups
        By name, files of the pool.
    column
        Of the vectors.
    dim
        Their length.
    top
        How many rows a query, at most.
    least
        Cosine that they have at least.
    """

    phase: Phase
    groups: dict[str, tuple[Source, ...]]
    column: str
    dim: int
    top: int
    least: float

    def finished(self, name: str) -> bool:
        """Whether a group was done."""
        return self.phase.has(f"{name}-counts.npy")

    def make(self, name: str) -> int:
        """Do a group; places are numbers of rows, from its first file's first on."""
        asked = Block(np.array(self.phase.vectors(QUERIES, self.dim)))
        best, aside, first = Best.none(len(asked.vectors), self.top), Counter[str](), 0
        for source in self.groups[name]:
            for matrix, good in vectors_of(source.path, source.options, self.column, self.dim, aside, _ROWS):
                rows = np.flatnonzero(good)
                if len(rows):
                    compare(asked, Block(unit(matrix[rows])), first + rows, best, self.least)
                first += len(good)
        self.phase.save(f"{name}-cosines.npy", best.cosines)
        self.phase.save(f"{name}-places.npy", best.places)
        self.phase.save(f"{name}-counts.npy", np.array([first, *(aside[fault] for fault in FAULTS)]))
        return first

    def load(self, name: str, first: int) -> tuple[Best, np.ndarray]:
        """What a group came to, as rows from a number on; and its rows, and of these those set aside for each fault."""
        places = np.array(self.phase.load(f"{name}-places.npy"))
        places[places != NOWHERE] += first
        counts = np.array(self.phase.load(f"{name}-counts.npy"))
        return Best(np.array(self.phase.load(f"{name}-cosines.npy")), places), counts
