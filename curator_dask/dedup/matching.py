"""SemDeDup's rule: in a cluster, an item goes if any item before it is within eps, also one that goes itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.dedup.cluster_files import ClusterFiles
from curator_dask.dedup.kmeans import decide
from curator_dask.dedup.products import COLUMNS, ROWS, exact_dots, on_device, plain_products
from curator_dask.dedup.ranking import COSINE_DISTANCE, RankingStrategy
from curator_dask.errors import ShardError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import open_parquet, read_footer, write_table
from curator_dask.frames.record import FileRecord
from curator_dask.storage import join

#: Of what is in the files: another number makes all of them anew.
VERSION = 1
_MATCH = "matches"
_REMOVED = "removed"


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
        for start in range(int(np.searchsorted(ends, first, side="right")), len(rows), ROWS):
            part = slice(start, start + ROWS)
            some = np.ascontiguousarray(rows[part])
            found = plain_products(some, here)
            found[np.arange(first, first + len(block)) >= ends[part, None]] = -np.inf
            at = decide(some, block, found)
            exact = exact_dots(some, block[at])
            better = exact > cosine[part]
            best[part] = np.where(better, first + at, best[part])
            cosine[part] = np.where(better, exact, cosine[part])
    return best, cosine


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


@dataclass(frozen=True)
class Remove:
    """Writes which items go, and counts those of them that have no twin that stays.

    Attributes
    ----------
    matches
        The tables, all there.
    eps
        An item goes if one before it has a cosine of at least 1 - eps.
    folder
        Where the files go.
    id_name
        What the column of the ids is called there.
    details
        With the distance from the centroid, and the cluster.
    """

    matches: Match
    eps: float
    folder: str
    id_name: str
    details: bool

    def path(self, name: str) -> str:
        """Of a task's file."""
        return join(self.folder, f"part.{name}.parquet")

    def identity(self, name: str) -> str:
        """Fingerprint of a file."""
        tables = [self.matches.identity(cluster) for cluster in self.matches.clusters_of(name)]
        return fingerprint(
            {"tables": tables, "eps": self.eps, "id": self.id_name, "details": self.details, "v": VERSION}
        )

    def finished(self, name: str) -> bool:
        """Whether a file is there."""
        return read_footer(self.path(name)).is_finished(self.identity(name))

    def make(self, name: str) -> int:
        """Write a file."""
        parts, alone, total = [], 0, 0
        for cluster in self.matches.clusters_of(name):
            rows = self.matches.ranked(cluster, COSINE_DISTANCE)
            goes, best = self._goes(cluster, rows)
            alone += self._without_twin(cluster, rows, goes, best)
            total += len(rows)
            gone = rows.filter(pa.array(goes))
            columns = {self.id_name: gone.column(self.matches.files.id_col)}
            if URL_COLUMN in gone.column_names:
                columns[URL_COLUMN] = gone.column(URL_COLUMN)
            if self.details:
                columns[COSINE_DISTANCE] = gone.column(COSINE_DISTANCE)
                columns["cluster"] = pa.array(np.full(len(gone), cluster, np.int32))
            parts.append(pa.table(columns))
        table = pa.concat_tables(parts, promote_options="permissive").sort_by(self.id_name)
        report = {"removed": len(table), "alone": alone, "total": total}
        record = FileRecord(self.identity(name), id_col=self.id_name, derived=(_REMOVED,), report=report)
        write_table(self.path(name), table, record)
        return total

    def counts(self, name: str) -> dict[str, int]:
        """Of a file that is there: how many items go, how many of them without a twin that stays, and of how many."""
        record = read_footer(self.path(name)).record
        return {} if record is None or record.report is None else dict(record.report)

    def _goes(self, cluster: int, rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """Which items go, and the place of the nearest before each."""
        path, ids = self.matches.path(cluster), rows.column(self.matches.files.id_col)
        try:
            with open_parquet(path) as file:
                table = file.read()
        except (OSError, pa.ArrowException) as error:
            raise ShardError(f"{path}: cannot be read: {error!r}. Make the tables again") from error
        if not table.column("id").equals(ids):
            raise ShardError(f"{path}: is not of the clusters that are there. Make the tables again")
        goes = table.column("cosine_sim_score").to_numpy() >= 1 - self.eps
        best = pc.index_in(table.column("max_id"), ids.combine_chunks())
        return goes, best.combine_chunks().to_numpy(zero_copy_only=False).astype(np.int64)

    def _without_twin(self, cluster: int, rows: pa.Table, goes: np.ndarray, best: np.ndarray) -> int:
        """How many of the items that go have none within eps that stays."""
        open_ = goes & goes[best]
        if not open_.any():
            return 0
        files = self.matches.files
        with_vectors = self.matches.ranked(cluster, COSINE_DISTANCE, files.column)
        vectors = files.vectors(with_vectors, cluster)
        return int((nearest_of(vectors[open_], vectors[~goes]) < 1 - self.eps).sum())
