"""SemDeDup's rule: in a cluster, an item goes if any item before it is within eps, also one that goes itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from curator_dask.dedup.cluster_files import ClusterFiles
from curator_dask.dedup.kmeans import decide
from curator_dask.dedup.memory import COLUMNS
from curator_dask.dedup.products import exact_dots, on_device, plain_products
from curator_dask.dedup.ranking import RankingStrategy
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.parquet import read_footer, write_table
from curator_dask.frames.record import FileRecord
from curator_dask.storage import join

#: Of what is in the files: another number makes all of them anew.
VERSION = 1
_MATCH = "matches"
_TIE = 1e-5  # float32 products that differ by less are decided by exact ones
_MANY = 64
_ROWS = 1024  # of a block of products


def nearest_before(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each vector, which of those before it is the nearest, and their cosine.

    Parameters
    ----------
    vectors
        float32 (n, dim), of unit length. Of those that are equal to the bit, the first stands for all.

    Returns
    -------
    best
        int64 (n,): of several, the first; the first vector's own place, for it has none before it.
    cosine
        float64 (n,); 0 of the first.
    """
    best, cosine = np.arange(len(vectors)), np.zeros(len(vectors))
    firsts = _firsts(vectors)
    heads = np.flatnonzero(firsts == best)
    copies = np.flatnonzero(firsts < best)
    best[copies] = firsts[copies]
    cosine[copies] = exact_dots(vectors[copies], vectors[copies])
    found, near = _nearest(vectors[heads[1:]], vectors[heads[:-1]], np.arange(1, len(heads)))
    best[heads[1:]], cosine[heads[1:]] = heads[found], near
    return best, cosine


def nearest_of(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    """float64 (n,): the cosine of each vector and the nearest of others."""
    return _nearest(vectors, others, np.full(len(vectors), len(others)))[1]


def _nearest(rows: np.ndarray, columns: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of the columns before `ends`, which never get smaller, and its cosine."""
    best, cosine = np.zeros(len(rows), np.int64), np.full(len(rows), -np.inf)
    for first in range(0, len(columns), COLUMNS):
        block = columns[first : first + COLUMNS]
        here = on_device(block)
        for start in range(int(np.searchsorted(ends, first, side="right")), len(rows), _ROWS):
            part = slice(start, start + _ROWS)
            some = np.ascontiguousarray(rows[part])
            found = plain_products(some, here)
            found[np.arange(first, first + len(block)) >= ends[part, None]] = -np.inf
            at = _first_best(some, block, found)
            exact = exact_dots(some, block[at])
            better = exact > cosine[part]
            best[part] = np.where(better, first + at, best[part])
            cosine[part] = np.where(better, exact, cosine[part])
    return best, cosine


def _first_best(rows: np.ndarray, columns: np.ndarray, found: np.ndarray) -> np.ndarray:
    """int64 (n,): the nearest column of each row by float32 products; close ones are decided by those of float64.

    A few pair by pair; many, as of a crowd of near-copies, as a matrix.
    """
    many = (found >= found.max(axis=1)[:, None] - _TIE).sum(axis=1) > _MANY
    at = np.zeros(len(rows), np.int64)
    if many.any():
        exact = rows[many].astype(np.float64) @ columns.T.astype(np.float64)
        exact[np.isneginf(found[many])] = -np.inf
        at[many] = exact.argmax(axis=1)
    if not many.all():
        at[~many] = decide(rows[~many], columns, found[~many])
    return at


def _firsts(vectors: np.ndarray) -> np.ndarray:
    """int64 (n,): place of the first vector that has the same bits."""
    rows = np.ascontiguousarray(vectors)
    whole = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).reshape(-1)
    _, firsts, which = np.unique(whole, return_index=True, return_inverse=True)
    return np.asarray(firsts[which.reshape(-1)], np.int64)


@dataclass(frozen=True)
class Match:
    """Writes a table a cluster: of each item the nearest before it.

    Attributes
    ----------
    files
        The clusters.
    ranking
        Which item comes before which.
    folder
        Where the tables go.
    """

    files: ClusterFiles
    ranking: RankingStrategy
    folder: str

    def path(self, cluster: int) -> str:
        """Of a table."""
        return join(self.folder, f"cluster_{cluster}.parquet")

    def clusters_of(self, name: str) -> list[int]:
        """The clusters of a task that have items."""
        return [cluster for cluster in self.files.clusters_of(name) if self.files.paths(cluster)]

    def identity(self, cluster: int) -> str:
        """Fingerprint of a table."""
        return fingerprint(
            {
                "version": VERSION,
                "state": self.files.state(cluster),
                "ranking": vars(self.ranking),
                "of": self._of,
            }
        )

    @property
    def _of(self) -> list[str]:
        return [self.files.id_col, self.files.column]

    def finished(self, name: str) -> bool:
        """Whether the tables of a task are there."""
        return all(
            read_footer(self.path(cluster)).is_finished(self.identity(cluster))
            for cluster in self.clusters_of(name)
        )

    def ranked(self, cluster: int, *columns: str) -> pa.Table:
        """The items of a cluster, in their order: with their ids, and these columns."""
        needed = [self.files.id_col, *self.ranking.metadata_cols, *columns]
        rows = self.files.read(cluster, list(dict.fromkeys(needed)))
        return rows.take(pa.array(self.ranking.order(rows, cluster)))

    def make(self, name: str) -> int:
        """Write the tables of a task."""
        done = 0
        for cluster in self.clusters_of(name):
            rows = self.ranked(cluster, self.files.column)
            best, cosine = nearest_before(self.files.vectors(rows, cluster))
            ids = rows.column(self.files.id_col)
            table = {"id": ids, "max_id": ids.take(pa.array(best)), "cosine_sim_score": pa.array(cosine)}
            record = FileRecord(self.identity(cluster), id_col="id", derived=(_MATCH,))
            write_table(self.path(cluster), pa.table(table), record)
            done += len(rows)
        return done
