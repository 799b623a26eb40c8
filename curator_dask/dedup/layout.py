"""Distinct vectors by number: where each stands among the files that were scanned."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from curator_dask.dedup.phases import Phase
from curator_dask.dedup.rows import Rows
from curator_dask.errors import OutputError

_BLOCK = 4096


@dataclass(frozen=True)
class Layout:
    """The distinct vectors, numbered in the order of files and rows.

    Attributes
    ----------
    scan
        Has the vectors of each file.
    distinct
        Has the places of distinct vectors in each file, ``NAME.npy``, and the number of the first of each,
        ``firsts.npy``.
    names
        Of the files.
    dim
        Length of a vector.
    """

    scan: Phase
    distinct: Phase
    names: tuple[str, ...]
    dim: int

    @classmethod
    def of(cls, scan: Phase, distinct: Phase, names: Sequence[str], rows: Rows) -> Layout:
        """That of files that were scanned; what it needs is written, unless it is there."""
        if not distinct.has("firsts.npy"):
            for name, slots in zip(names, rows.slots, strict=True):
                distinct.save(f"{name}.npy", slots)
            distinct.save("firsts.npy", rows.firsts)
        return cls(scan, distinct, tuple(names), rows.dim)

    def save_some(self, phase: Phase, name: str, numbers: np.ndarray) -> None:
        """Put vectors into a file of a phase, by their numbers."""
        with phase.writing(name) as file:
            for start in range(0, len(numbers), _BLOCK):
                file.write(self.gather(numbers[start : start + _BLOCK]).tobytes())

    def first(self, name: str) -> int:
        """Number of the first distinct vector of a file."""
        return int(self.distinct.load("firsts.npy")[self.names.index(name)])

    def blocks(self, name: str, size: int = _BLOCK) -> Iterator[tuple[int, np.ndarray]]:
        """The distinct vectors of a file, so many at a time, with the number of the first."""
        slots = self.distinct.load(f"{name}.npy")
        first = self.first(name)
        for start in range(0, len(slots), size):
            some = slots[start : start + size]
            yield first + start, take(self._vectors(name, some), some)

    def gather(self, numbers: np.ndarray) -> np.ndarray:
        """float32 (n, dim): vectors by their numbers."""
        firsts = self.distinct.load("firsts.npy")
        found = np.empty((len(numbers), self.dim), np.float32)
        files = np.searchsorted(firsts, numbers, side="right") - 1
        order = np.argsort(files, kind="stable")
        ends = np.flatnonzero(np.diff(files[order], append=-1)) + 1
        start = 0
        for end in ends.tolist():
            at = order[start:end]
            name = self.names[int(files[at[0]])]
            slots = self.distinct.load(f"{name}.npy")[numbers[at] - firsts[files[at[0]]]]
            found[at] = take(self._vectors(name, slots), slots)
            start = end
        return found

    def _vectors(self, name: str, slots: np.ndarray) -> np.ndarray:
        """Of a file, mapped into memory.

        Raises
        ------
        OutputError
            It has less of them than are asked for.
        """
        vectors, needed = self.scan.vectors(f"{name}.vectors", self.dim), int(slots.max(initial=-1)) + 1
        if len(vectors) < needed:
            raise self.cut_short(self.scan.path(f"{name}.vectors"), needed)
        return vectors

    def cut_short(self, path: str, needed: int) -> OutputError:
        """What is to be said where a file has less vectors than it was written with."""
        return OutputError(
            f"{path}: has less than {needed} vectors, which were written: it was cut short."
            f" Remove {os.path.dirname(self.scan.folder)}, which is made anew, and run again"  # noqa: PTH120
        )


def take(vectors: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Some rows of vectors that are mapped into memory, in memory."""
    first, count = int(places[0]) if len(places) else 0, len(places)
    # Most often they are side by side, which is quicker to copy.
    if count and int(places[-1]) - first == count - 1 and (np.diff(places) == 1).all():
        return np.array(vectors[first : first + count])
    return np.asarray(vectors[places])
