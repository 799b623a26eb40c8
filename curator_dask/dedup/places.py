"""Vectors in the order of clusters, by their places in it: where they were scanned, or in files of that order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from distributed.system import MEMORY_LIMIT

from curator_dask.dedup.layout import Layout
from curator_dask.dedup.memory import COLUMNS, NO_LIMIT, Memory
from curator_dask.dedup.phases import Phase
from curator_dask.threads import in_threads

#: Rows of a file of vectors in the order of clusters.
PART = 1 << 15
_OPEN = 256  # files that stay open
_MANY = 8  # vectors of a cluster in a file, on average, with which its vectors lie in few enough files
_FEW = 4  # places to each vector that is wanted, with which they are read one by one
_SHARE = 4  # of this machine's memory that vectors take, at most, to be read here and there


@dataclass(frozen=True)
class Places:
    """The distinct vectors in the order of clusters.

    Attributes
    ----------
    order
        With ``order.npy``: the number of the vector at each place.
    layout
        Where the vectors are.
    apart
        They are read where they are; else from files of their order, ``PART.vectors``, which `Sort` writes.
    fits
        The memory holds them with all else; else each look at a single one may go to the disk.
    """

    order: Phase
    layout: Layout
    apart: bool
    fits: bool = True

    @classmethod
    def of(cls, order: Phase, layout: Layout, count: int, clusters: int) -> Places:
        """Of so many vectors. A copy in order is of use where they are read from a disk, or lie in many files."""
        fits = 4 * layout.dim * count * _SHARE <= MEMORY_LIMIT
        together = min(count // clusters, COLUMNS)
        return cls(order, layout, fits and together >= _MANY * len(layout.names), fits)

    @property
    def parts(self) -> list[str]:
        """Names of the files in order; none where there are none."""
        count = 0 if self.apart else len(self.order.load("order.npy"))
        return [str(number) for number in range(-(-count // PART))]


class Reader:
    """Reads vectors by their places; what it opens goes with it.

    Parameters
    ----------
    places
        Where they are.
    """

    def __init__(self, places: Places) -> None:
        self._places = places
        #: The phase of the order of clusters.
        self.order = places.order
        self._files: dict[str, Any] = {}
        self._slots: dict[str, np.ndarray] = {}

    @cached_property
    def _order(self) -> np.ndarray:
        return self._places.order.load("order.npy")

    @cached_property
    def _firsts(self) -> np.ndarray:
        return np.array(self._places.layout.distinct.load("firsts.npy"))

    def read(self, places: np.ndarray) -> np.ndarray:
        """float32 (n, dim): vectors by their places; those rise."""
        return self.read_scanned(places) if self._places.apart else self._read_in_order(places)

    def read_scanned(self, places: np.ndarray) -> np.ndarray:
        """The same, from where they were scanned.

        Vector by vector: of files that are mapped into memory the system shows 32 times what is looked at.
        """
        layout, numbers = self._places.layout, np.asarray(self._order[places])
        found, size = np.empty((len(places), layout.dim), np.float32), 4 * layout.dim
        rows = found.reshape(-1).view(np.uint8).data
        files = np.searchsorted(self._firsts, numbers, side="right") - 1
        order = np.argsort(files, kind="stable")
        starts = np.flatnonzero(np.diff(files[order], prepend=-1)).tolist()

        def read(start: int, end: int) -> None:
            at = order[start:end]
            number = int(files[at[0]])
            name = layout.names[number]
            wanted = size * self._slots_of(name)[numbers[at] - self._firsts[number]]
            with self._file(name, wanted, size) as file:
                handle = file.fileno()
                for row, slot in zip((at * size).tolist(), wanted.tolist(), strict=True):
                    if os.preadv(handle, [rows[row : row + size]], slot) < size:
                        raise layout.cut_short(layout.scan.path(f"{name}.vectors"), slot // size + 1)

        in_threads(lambda each: read(*each), [*pairwise([*starts, len(order)])])
        return found

    def _read_in_order(self, places: np.ndarray) -> np.ndarray:
        found = np.empty((len(places), self._places.layout.dim), np.float32)
        parts = places // PART
        bounds = [*np.flatnonzero(np.diff(parts, prepend=-1)).tolist(), len(places)]

        def read(start: int, end: int) -> None:
            part = int(parts[start])
            name, wanted = f"{part}.vectors", places[start:end] - part * PART
            few = end - start < (wanted[-1] - wanted[0]) // _FEW
            if few and not self._places.fits:
                self._read_few(name, wanted, found[start:end])
            else:
                found[start:end] = self._places.order.some_vectors(name, self._places.layout.dim, wanted)

        in_threads(lambda each: read(*each), [*pairwise(bounds)])
        return found

    def _read_few(self, name: str, wanted: np.ndarray, found: np.ndarray) -> None:
        """Some of a file in order, as `read_scanned`."""
        size, order = 4 * self._places.layout.dim, self._places.order
        rows = found.reshape(-1).view(np.uint8).data
        with order.open(name, wanted * size, size) as file:
            handle = file.fileno()
            for at, place in enumerate((wanted * size).tolist()):
                if os.preadv(handle, [rows[at * size : (at + 1) * size]], place) < size:
                    raise self._places.layout.cut_short(order.path(name), place // size + 1)

    def _slots_of(self, name: str) -> np.ndarray:
        """The place of each distinct vector in a file that was scanned."""
        found = self._slots.get(name)
        if found is None:
            found = self._places.layout.distinct.load(f"{name}.npy")
            if len(self._slots) < _OPEN:
                self._slots[name] = found
        return found

    @contextmanager
    def _file(self, name: str, wanted: np.ndarray, size: int) -> Iterator[Any]:
        """A file that was scanned; some stay open for the next time, but of a store's, of which not all is here."""
        found, scan = self._files.get(name), self._places.layout.scan
        if found is None:
            found = scan.open(f"{name}.vectors", wanted, size)
            if len(self._files) < _OPEN and not scan.is_stored:
                self._files[name] = found
        try:
            yield found
        finally:
            if name not in self._files:
                found.close()


@dataclass(frozen=True)
class Sort:
    """Writes vectors in the order of clusters.

    Attributes
    ----------
    places
        Where they are.
    memory
        What is held at a time.
    """

    places: Places
    memory: Memory = NO_LIMIT

    def make(self, name: str) -> int:
        """Write one of the files, ``NAME.vectors``; its name is its number."""
        phase, reader = self.places.order, Reader(self.places)
        start, count = int(name) * PART, len(phase.load("order.npy"))
        places = np.arange(start, min(start + PART, count))
        size = self.memory.sorted_rows(self.places.layout.dim)
        with phase.writing(f"{name}.vectors") as file:
            for at in range(0, len(places), size):
                file.write(reader.read_scanned(places[at : at + size]))
        return len(places)
