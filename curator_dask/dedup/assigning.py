"""Which cluster each vector is of, and which others it is near to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curator_dask.dedup.kmeans import decide
from curator_dask.dedup.layout import Layout
from curator_dask.dedup.memory import NO_LIMIT, Memory
from curator_dask.dedup.phases import Phase
from curator_dask.dedup.products import exact_dots, on_device, places_of, plain_products
from curator_dask.dedup.sketches import file_of, sketch, widths_of

_TIE = 1e-5  # float32 products that differ by less are decided by exact ones


@dataclass(frozen=True)
class Assign:
    """Finds the clusters of the distinct vectors of files.

    Attributes
    ----------
    layout
        Where the vectors are.
    phase
        Where the files go.
    clusters
        With the centroids.
    gap
        A vector is near a cluster whose centroid is at most so much farther than its own, as cosines.
    centres
        Say how far each is from its centroid.
    memory
        What is held at a time.
    """

    layout: Layout
    phase: Phase
    clusters: Phase
    gap: float
    centres: bool
    memory: Memory = NO_LIMIT

    def make(self, name: str) -> int:
        """Write ``NAME-near.npy`` (numbers of vectors and of other clusters), and ``NAME.npy``: their own clusters.

        Where the clusters have ``axes.npy``, the vectors' sketches too.
        """
        centroids = np.array(self.clusters.load("centroids.npy"))
        here = on_device(centroids)
        size = self.memory.assigned(self.layout.dim, len(centroids))
        labels, visits = [np.zeros(0, np.int32)], [np.zeros((0, 2), np.int64)]
        own = [np.zeros(0)]
        axes = np.array(self.clusters.load("axes.npy")) if self.clusters.has("axes.npy") else None
        widths = widths_of(self.layout.dim) if axes is not None else ()
        sketches = {width: [np.zeros((0, width), np.float16)] for width in widths}
        for first, vectors in self.layout.blocks(name, size):
            found = plain_products(vectors, here)
            home = decide(vectors, centroids, found)
            best = found[np.arange(len(home)), home]
            rows, columns = places_of(found >= (best - self.gap - _TIE)[:, None])
            other = columns != home[rows]
            rows, columns = rows[other], columns[other]
            close = np.flatnonzero(np.abs(best[rows] - found[rows, columns] - self.gap) <= 2 * _TIE)
            good = np.ones(len(rows), bool)
            if len(close):
                left, right = vectors[rows[close]], columns[close]
                gaps = exact_dots(left, centroids[home[rows[close]]]) - exact_dots(left, centroids[right])
                good[close] = gaps <= self.gap
            labels.append(home.astype(np.int32))
            visits.append(np.column_stack([first + rows[good], columns[good]]))
            if axes is not None:
                for width, some in sketch(vectors, axes).items():
                    sketches[width].append(some)
            if self.centres:
                own.append(exact_dots(vectors, centroids[home]))
        self.phase.save(f"{name}-centre.npy", np.concatenate(own))
        self.phase.save(f"{name}-near.npy", np.concatenate(visits))
        for width, several in sketches.items():
            self.phase.save(file_of(width, name), np.concatenate(several))
        self.phase.save(f"{name}.npy", np.concatenate(labels))
        return sum(map(len, labels))
