"""Pairs of vectors within eps: each cluster's own with one another, and with those that are near to it.

Of two, the better is the one that comes first in the order of who stays. A row has pairs with a few of its betters
only, the best of them: of 50,000 images that look alike there would be a billion. A row that has more is written down,
and looked at again where none of those few stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from curator_dask.dedup.found import edges, in_range
from curator_dask.dedup.memory import COLUMNS, NO_LIMIT, QUERIES, Memory
from curator_dask.dedup.phases import Phase
from curator_dask.dedup.places import Places, Reader
from curator_dask.dedup.sides import Finder, Side, cosines

#: A pair, by the places of its rows in the order of clusters.
PAIR = np.dtype([("better", np.int32), ("worse", np.int32), ("cosine", np.float64)])
#: Betters of a row that are written down.
FEW = 64
_QUERIES = 4096  # rows that a piece compares with a cluster
_PIECES = 64  # tasks, unless they would be smaller or larger than
_LEAST, _MOST = 2e7, 1e9  # so many products


@dataclass(frozen=True)
class Again:
    """What is looked for once more, of rows with more betters than were written down.

    Attributes
    ----------
    wanted
        bool (rows,): whose betters are.
    rows
        bool (rows,): which may be betters; None: all.
    labels
        int64 (rows,): two rows with the same need no pair; None: all need one.
    """

    wanted: np.ndarray
    rows: np.ndarray | None
    labels: np.ndarray | None

    @classmethod
    def read(cls, phase: Phase) -> Again | None:
        """From a phase's files; None: it looks at all for the first time."""
        if not phase.has("open.npy"):
            return None
        rows, labels = (phase.load(name) if phase.has(name) else None for name in ("kept.npy", "labels.npy"))
        return cls(phase.load("open.npy"), rows, labels)

    def save(self, phase: Phase) -> None:
        """Put it there."""
        for name, array in (("kept.npy", self.rows), ("labels.npy", self.labels), ("open.npy", self.wanted)):
            if array is not None:
                phase.save(name, array)

    def new(self, better: np.ndarray, worse: np.ndarray) -> np.ndarray:
        """Which pairs are looked for, bool (n,)."""
        good: np.ndarray = self.wanted[worse]
        return good if self.labels is None else good & (self.labels[better] != self.labels[worse])


@dataclass(frozen=True)
class Order:
    """Which rows are compared with which.

    Attributes
    ----------
    ranks
        int64 (rows,): places in the order of who stays, of the rows in the order of clusters.
    bounds
        int64 (clusters + 1,): where each cluster begins and ends.
    near, near_bounds
        The rows that are near to each cluster, and where those of one begin and end.
    """

    ranks: np.ndarray
    bounds: np.ndarray
    near: np.ndarray
    near_bounds: np.ndarray

    @classmethod
    def read(cls, phase: Phase) -> Order:
        """From a phase's files."""
        return cls(*(phase.load(f"{name}.npy") for name in ("ranks", "bounds", "near", "near-bounds")))

    def rows(self, cluster: int) -> tuple[np.ndarray, np.ndarray]:
        """A cluster's own, and the same followed by those near to it."""
        own = np.arange(*self.bounds[cluster : cluster + 2])
        near = self.near[slice(*self.near_bounds[cluster : cluster + 2])]
        return own, np.concatenate([own, near])


@dataclass(frozen=True)
class Pairs:
    """Finds pairs.

    Attributes
    ----------
    places
        The vectors in the order of clusters; its ``order`` has ``ranks.npy``, the place of each in the order of who
        stays; ``bounds.npy``, where each cluster begins and ends; and the rows that are near to each, ``near.npy`` and
        ``near-bounds.npy``.
    phase
        With ``pieces.npy`` and ``tasks.npy``, which pieces are a file's; where the files go. What is looked at again is
        there, too; see `Again`.
    eps
        A pair has a cosine of at least 1 - eps.
    fixed
        Rows of a lower rank stay whatever they are like: two of them are no pair.
    memory
        What is held at a time.
    """

    places: Places
    phase: Phase
    eps: float
    fixed: int = 0
    memory: Memory = NO_LIMIT

    def names(self) -> list[str]:
        """Of the files; what each is to do is planned where it is not yet."""
        if not self.phase.has("tasks.npy"):
            pieces, tasks = plan(
                *(self.places.order.load(f"{each}.npy") for each in ("bounds", "near-bounds"))
            )
            self.phase.save("pieces.npy", pieces)
            self.phase.save("tasks.npy", tasks)
        return [str(number) for number in range(len(self.phase.load("tasks.npy")) - 1)]

    def make(self, name: str) -> int:
        """Write a file's pairs, ``NAME.npy``, and rows that have more betters, ``NAME-more.npy``."""
        tasks, pieces = self.phase.load("tasks.npy"), self.phase.load("pieces.npy")
        order, again = Order.read(self.places.order), Again.read(self.phase)
        held = Held(self.phase, order.ranks, self.memory.held(self.places.layout.dim))
        rows = 0
        finder = Finder(Reader(self.places), self.places, self.eps, self.memory.hits(self.places.layout.dim))
        for cluster, start, stop in pieces[tasks[int(name)] : tasks[int(name) + 1]].tolist():
            rows += stop - start
            own, queries = order.rows(cluster)
            self._piece(finder, own, queries[start:stop], held, again)
        held.save(name)
        return rows

    def _piece(
        self, finder: Finder, own: np.ndarray, queries: np.ndarray, held: Held, again: Again | None
    ) -> None:
        """Compare rows with a cluster's own."""
        ranks, first, last = held.ranks, own[0], own[-1]
        if again is not None:
            if not (again.wanted[own].any() or again.wanted[queries].any()):
                return
            if again.rows is not None:
                own, queries = own[again.rows[own]], queries[again.rows[queries]]
        inside = (queries >= first) & (queries <= last)
        # Two rows that stay are no pair: of a cluster's own they are the first.
        groups = [(queries[inside & (ranks[queries] >= self.fixed)], True), (queries[~inside], False)]
        parts = [(part, within) for rows, within in groups for part in _parts(rows, QUERIES)]
        some = self.memory.queries(self.places.layout.dim)
        for at in range(0, len(parts), some):
            self._compare(finder, own, parts[at : at + some], held, again)

    def _compare(
        self,
        finder: Finder,
        own: np.ndarray,
        parts: list[tuple[np.ndarray, bool]],
        held: Held,
        again: Again | None,
    ) -> None:
        """Look for pairs of a cluster's rows and some of those, blocks of its own or of others."""
        sides = [Side(finder.reader, part) for part, _ in parts]
        full = [np.zeros(len(part), np.int64) for part, _ in parts]
        for columns in _parts(own, COLUMNS):
            theirs = Side(finder.reader, columns)
            for at, (part, within) in enumerate(parts):
                size = int(np.searchsorted(columns, part[-1])) if within else len(columns)
                active = np.flatnonzero(full[at] < FEW) if within else np.arange(len(part))
                if not size or not len(active):
                    continue
                mine, candidates = sides[at], np.zeros(0, PAIR)
                for left, right in finder.near(mine, theirs, size, active, within):
                    if within:  # each pair once, with its worse row here
                        left, right = _lower(part, left, columns, right)
                    some, cut = self._candidates(part, left, columns, right, candidates, held.ranks, again)
                    candidates = some
                    held.more.append(cut)
                left, right = np.divmod(candidates["cosine"].astype(np.int64), COLUMNS)
                candidates["cosine"] = cosines(mine, left, theirs, right)
                pairs = candidates[candidates["cosine"] >= 1 - self.eps]
                held.add(pairs)
                if within:
                    np.add.at(full[at], np.searchsorted(part, pairs["worse"]), 1)
                    held.more.append(part[full[at] >= FEW].astype(np.int32))

    def _candidates(
        self,
        rows: np.ndarray,
        left: np.ndarray,
        columns: np.ndarray,
        right: np.ndarray,
        before: np.ndarray,
        ranks: np.ndarray,
        again: Again | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of each row with the best of its betters, and the rows that have more of these.

        Instead of the cosine they have the place of the product in its block.
        """
        a, b = rows[left], columns[right]
        is_worse = ranks[a] > ranks[b]
        found = np.empty(len(a), PAIR)
        found["better"], found["worse"] = np.where(is_worse, b, a), np.where(is_worse, a, b)
        found["cosine"] = left * COLUMNS + right
        good = ranks[found["worse"]] >= self.fixed
        if again is not None:
            good &= again.new(found["better"], found["worse"])
        return few(np.concatenate([before, found[good]]), ranks, FEW)


class Held:
    """The pairs of a task while they are found: what is too much waits in a file.

    Parameters
    ----------
    phase
        Where the task's files go.
    ranks
        int64 (rows,): places in the order of who stays.
    most
        Pairs that are held.
    """

    def __init__(self, phase: Phase, ranks: np.ndarray, most: int) -> None:
        self.ranks = ranks
        #: int32 (n,) each: rows that have more betters than are written down.
        self.more: list[np.ndarray] = [np.zeros(0, np.int32)]
        self._phase, self._most = phase, most
        self._pairs: list[np.ndarray] = [np.zeros(0, PAIR)]
        self._count = 0
        self._scratch: Any = None

    def add(self, pairs: np.ndarray) -> None:
        """Take some more."""
        self._pairs.append(pairs)
        self._count += len(pairs)
        if self._count > self._most:
            best = self._best(np.concatenate(self._pairs))
            if len(best) > self._most // 2:
                self._put_aside(best)
                best = best[:0]
            self._pairs, self._count = [best], len(best)

    def save(self, name: str) -> None:
        """Write the task's files: of each row the pairs with the best of its betters, and the rows that have more."""
        files = [np.concatenate(self._pairs)]
        if self._scratch is not None:
            files.append(np.memmap(self._scratch, PAIR, "r"))
        ranges = pairwise(edges(files, self.ranks, self._most))
        self._phase.save_parts(
            f"{name}.npy", PAIR, (self._best(in_range(files, self.ranks, *ends)) for ends in ranges)
        )
        self._phase.save(f"{name}-more.npy", np.unique(np.concatenate(self.more)))

    def _best(self, pairs: np.ndarray) -> np.ndarray:
        best, cut = few(pairs, self.ranks, FEW)
        self.more.append(cut)
        return best

    def _put_aside(self, pairs: np.ndarray) -> None:
        if self._scratch is None:
            self._scratch = self._phase.scratch()
        with self._phase.told(self._phase.folder):
            self._scratch.write(pairs.tobytes())
            self._scratch.flush()


def few(pairs: np.ndarray, ranks: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of each row with the best of its betters; and the rows (int32) that had more, or may have had."""
    if not len(pairs) or np.unique(pairs["worse"], return_counts=True)[1].max() <= limit:
        return pairs, np.zeros(0, np.int32)
    order = np.lexsort((ranks[pairs["better"]], pairs["worse"]))
    pairs = pairs[order]
    begins = np.flatnonzero(np.diff(pairs["worse"], prepend=-1))
    sizes = np.diff(begins, append=len(pairs))
    within = np.arange(len(pairs)) - np.repeat(begins, sizes)
    return pairs[within < limit], pairs["worse"][begins[sizes > limit]]


def _lower(
    rows: np.ndarray, left: np.ndarray, columns: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    good = columns[right] < rows[left]
    return left[good], right[good]


def _parts(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def plan(bounds: np.ndarray, near_bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pieces (cluster, and which of its rows and those near to it), and the first piece of each task.

    Tasks are planned by what there is, and not by workers: so the files are the same for all of them.
    """
    pieces, costs = [], []
    for cluster, (own, near_to) in enumerate(zip(np.diff(bounds), np.diff(near_bounds), strict=True)):
        rows = int(own + near_to) if own else 0
        for start in range(0, rows, _QUERIES):
            stop = min(rows, start + _QUERIES)
            pieces.append((cluster, start, stop))
            costs.append((stop - start) * int(own))
    each = float(np.clip(sum(costs) / _PIECES, _LEAST, _MOST))
    tasks, cost = [0], 0
    for number, more in enumerate(costs):
        if cost and cost + more > each:
            tasks.append(number)
            cost = 0
        cost += more
    return np.array(pieces, np.int64).reshape(-1, 3), np.array([*tasks, len(pieces)])
