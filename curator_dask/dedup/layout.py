"""Distinct vectors by number: where each stands among the files that were scanned."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from curator_dask.dedup.phases import Phase
from curator_dask.dedup.rows import Rows
from curator_dask.errors import OutputError
from curator_dask.threads import in_threads

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
            in_threads(
                lambda each: distinct.save(f"{each[0]}.npy", each[1]), [*zip(names, rows.slots, strict=True)]
            )
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
            yield first + start, self._taken(name, some)

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
            found[at] = self._taken(name, slots)
            start = end
        return found

    def _taken(self, name: str, slots: np.ndarray) -> np.ndarray:
        """Some of a file.

        Raises
        ------
        OutputError
            It has less of them than are asked for.
        """
        file, needed = f"{name}.vectors", int(slots.max(initial=-1)) + 1
        if self.scan.count(file, self.dim) < needed:
            raise self.cut_short(self.scan.path(file), needed)
        return self.scan.some_vectors(file, self.dim, slots)

    def cut_short(self, path: str, needed: int) -> OutputError:
        """What is to be said where a file has less vectors than it was written with."""
        return OutputError(
            f"{path}: has less than {needed} vectors, which were written: it was cut short."
            f" Remove {os.path.dirname(self.scan.folder)}, which is made anew, and run again"  # noqa: PTH120
        )
