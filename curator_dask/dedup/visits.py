"""Which other clusters vectors are near to: many times as many pairs as there are vectors, so they stay in files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from curator_dask.dedup.phases import Phase

_BLOCK = 1 << 20  # pairs that are held at a time


@dataclass(frozen=True)
class Visits:
    """Pairs of a distinct vector and another cluster that it is near to.

    Attributes
    ----------
    phase
        Has ``NAME-near.npy`` for each name, int64 (pairs, 2): numbers of vectors, and of clusters.
    names
        In the order of vectors.
    """

    phase: Phase
    names: tuple[str, ...] = ()

    def blocks(self) -> Iterator[np.ndarray]:
        """All pairs, so many at a time."""
        for name in self.names:
            pairs = self.phase.load(f"{name}-near.npy")
            for start in range(0, len(pairs), _BLOCK):
                yield np.asarray(pairs[start : start + _BLOCK])

    def of(self, vectors: np.ndarray, clusters: int) -> np.ndarray:
        """Int64 (pairs,), in order: of some vectors the number of each times `clusters`, and that of the cluster."""
        wanted = np.zeros(int(vectors.max(initial=-1)) + 1, bool)
        wanted[vectors] = True
        found = [np.zeros(0, np.int64)]
        for pairs in self.blocks():
            some = pairs[pairs[:, 0] < len(wanted)]
            some = some[wanted[some[:, 0]]]
            found.append(some[:, 0] * clusters + some[:, 1])
        return np.sort(np.concatenate(found))

    def save_by_cluster(self, phase: Phase, places: np.ndarray, clusters: int) -> None:
        """Write where the vectors that are near to each cluster stand, in order.

        Parameters
        ----------
        phase
            Gets ``near.npy``, int64 (pairs,), those of one cluster after those of another, and ``near-bounds.npy``,
            int64 (clusters + 1,), where those of each begin and end.
        places
            int64 (vectors,): where each stands.
        clusters
            Their number.
        """
        counts = np.zeros(clusters, np.int64)
        for pairs in self.blocks():
            counts += np.bincount(pairs[:, 1], minlength=clusters)
        bounds = np.concatenate([[0], np.cumsum(counts)])
        with phase.scratch() as file:
            file.truncate(max(1, 8 * int(bounds[-1])))
            found = (
                np.memmap(file, np.int64, "r+", shape=(max(1, int(bounds[-1])),))
                if bounds[-1]
                else bounds[:0]
            )
            following = bounds[:-1].copy()
            for pairs in self.blocks():
                order = np.argsort(pairs[:, 1], kind="stable")
                of = pairs[order, 1]
                here = np.bincount(of, minlength=clusters)
                nth = (
                    np.arange(len(of)) - (np.cumsum(here) - here)[of]
                )  # of those of its cluster in this block
                found[following[of] + nth] = places[pairs[order, 0]]
                following += here
            several = (np.sort(found[slice(*bounds[each : each + 2])]) for each in range(clusters))
            phase.save_parts("near.npy", np.dtype(np.int64), several)
        phase.save("near-bounds.npy", bounds)
