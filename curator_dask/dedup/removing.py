"""What goes, by SemDeDup's rule or by that of `SemanticDeduplication`, among rows that are in clusters."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curator_dask.cluster.setup import client_at_work
from curator_dask.dedup.cluster_files import ClusterFiles
from curator_dask.dedup.matching import VERSION, Match, nearest_of
from curator_dask.dedup.phases import run_phase
from curator_dask.dedup.ranking import COSINE_DISTANCE
from curator_dask.dedup.semantic import SemanticDeduplication
from curator_dask.dedup.summary import DedupSummary
from curator_dask.errors import ShardError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.faults import faults_told
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import open_parquet, read_footer, write_table
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.removed import DUPLICATES
from curator_dask.storage import join

logger = logging.getLogger("curator_dask")

_REMOVED = "removed"


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
        with faults_told(path, ShardError), open_parquet(path) as file:
            table = file.read()
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


def match_clusters(match: Match) -> None:
    """Make the tables of matches that are not there."""
    client_at_work()
    expected = {match.path(cluster) for name in match.files.names for cluster in match.clusters_of(name)}
    _remove_others(match.folder, expected)
    run_phase("matches", match, match.files.names, match.finished, match.folder)


def remove_duplicates(remove: Remove) -> dict[str, int]:
    """Make the files of ids that are not there, and say what they come to; see `Remove.counts`."""
    client_at_work()
    names = [name for name in remove.matches.files.names if remove.matches.clusters_of(name)]
    _remove_others(remove.folder, {remove.path(name) for name in names})
    run_phase("duplicates", remove, names, remove.finished, remove.folder)
    counts = [remove.counts(name) for name in names]
    total = {name: sum(each[name] for each in counts) for name in ("removed", "alone", "total")}
    # What is lost is told where nobody has asked for messages, too.
    told = logger.warning if total["alone"] else logger.info
    told(
        "%d of %d items are within eps=%g of one before them in their cluster, and go%s",
        total["removed"],
        total["total"],
        remove.eps,
        f"; {total['alone']} of them have none in it within eps that stays (rule='stars' leaves one)"
        if total["alone"]
        else "",
    )
    return total


def find_by_stars(files: ClusterFiles, eps: float, keep: str, place: str) -> DedupSummary:
    """Duplicates among the items of clusters by `SemanticDeduplication`, which looks beyond their borders."""
    return SemanticDeduplication(eps, keep, embedding_column=files.column)(files.folder).save(place)


def remove_by_stars(files: ClusterFiles, eps: float, keep: str, folder: str) -> dict[str, int]:
    """Write the ids of the items that `SemanticDeduplication` removes, as those of a `Remove` with details.

    Parameters
    ----------
    files
        The clusters.
    eps
        An item goes if one that stays has a cosine of at least 1 - eps.
    keep
        ``"hard"`` or ``"easy"``.
    folder
        Where the file goes; what was found goes beside it, to `folder` and ``.duplicates``.
    """
    place = f"{folder}.duplicates"
    summary = find_by_stars(files, eps, keep, place)
    found = pq.read_table(join(place, DUPLICATES), columns=["id", "kept"])
    removed = found.filter(pc.invert(found.column("kept"))).column("id")
    parts = []
    for cluster in range(files.count):
        if files.paths(cluster):
            rows = files.read(cluster, [files.id_col, COSINE_DISTANCE])
            number = pa.repeat(pa.scalar(cluster, pa.int32()), len(rows))
            goes = pc.is_in(rows.column(files.id_col).cast(pa.string()), removed)
            parts.append(rows.append_column("cluster", number).filter(goes))
    table = pa.concat_tables(parts, promote_options="permissive").sort_by(files.id_col)
    _remove_others(folder, set())
    write_table(join(folder, "part.0.parquet"), table, FileRecord("", id_col=files.id_col))
    return {"removed": len(table), "alone": 0, "total": summary.rows}


def _remove_others(folder: str, expected: set[str]) -> None:
    """Files of a run before with more clusters are not to be read with those of this one."""
    for path in Path(folder).glob("*.parquet"):
        if str(path) not in expected:
            path.unlink()
