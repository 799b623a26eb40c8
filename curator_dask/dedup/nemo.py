"""`ClusteringModel` and `SemanticClusterLevelDedup`: semantic deduplication as scripts of NeMo Curator 0.9 call it."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curator_dask.cluster.setup import set_up_workers
from curator_dask.cluster.workers import current_client
from curator_dask.datasets.documents import DocumentDataset
from curator_dask.dedup.cluster_files import ClusterFiles
from curator_dask.dedup.clustering import Clustering
from curator_dask.dedup.matching import Match, Remove
from curator_dask.dedup.phases import WORK_SUFFIX, run_phase
from curator_dask.dedup.ranking import COSINE_DISTANCE, RankingStrategy
from curator_dask.dedup.scanning import find_sources
from curator_dask.dedup.semantic import SemanticDeduplication
from curator_dask.errors import ConfigError, ShardError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.parquet import remove_leftovers, write_table
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.lock import RunLock
from curator_dask.outputs.removed import DUPLICATES
from curator_dask.outputs.saving import check_writable, locate, save
from curator_dask.runs.lineage import trace
from curator_dask.storage import is_remote, join

logger = logging.getLogger("curator_dask")

#: Below the folder of the clustering.
_BY_CLUSTER = "embs_by_nearest_center"
_LABEL = "nearest_cent"
_RULES = ("semdedup", "stars")


class ClusteringModel:
    """Puts vectors into clusters by k-means, and each row into the folder of its cluster.

    `clustering_output_dir` gets ``kmeans_centroids.npy``, float32 (clusters, dim) of unit length, and
    ``embs_by_nearest_center/nearest_cent=0/part.0.parquet`` and so on: ids, vectors of unit length,
    ``l2_dist_to_cent`` and ``cosine_dist_to_cent``. Rows without a vector are counted, and in no cluster. What lies
    between is in a folder beside it, with ``.work`` behind its name: where the rows are a dataset's, whose shards are
    known, a call that was interrupted goes on there, and one with the same rows makes nothing again.

    Parameters
    ----------
    id_column
        Names each row: its values are all different.
    max_iter
        Rounds of k-means, at most.
    n_clusters
        At most as many as there are rows.
    clustering_output_dir
        Folder of this machine that all workers see.
    embedding_column
        Of the vectors, of any length.
    random_state
        Of what k-means picks by chance.
    clustering_input_partition_size
        Taken for the sake of scripts of NeMo Curator 0.9: vectors are streamed.
    logger
        A logger for what is said; a folder, as 0.9 has it, gets no file: then it is the package's own.
    profile_dir
        Taken as well: `distributed.performance_report` makes a profile.
    keep_all_columns
        The files have all columns of the rows, and not the ids and vectors alone.

    Raises
    ------
    ConfigError
        An argument has a value that it cannot have.
    """

    def __init__(
        self,
        id_column: str = "id",
        max_iter: int = 100,
        n_clusters: int = 1000,
        clustering_output_dir: str | os.PathLike[str] = "./clustering_results",
        embedding_column: str = "embeddings",
        random_state: int = 1234,
        clustering_input_partition_size: str | None = "2gb",
        logger: logging.Logger | str = "./",
        profile_dir: str | None = None,
        keep_all_columns: bool = False,
    ) -> None:
        _check_count("max_iter", max_iter)
        _check_count("n_clusters", n_clusters)
        self.id_column = id_column
        self.max_iter = max_iter
        self.n_clusters = n_clusters
        self.clustering_output_dir = _local(clustering_output_dir, "clustering_output_dir")
        self.embedding_column = embedding_column
        self.random_state = random_state
        self.keep_all_columns = keep_all_columns

    def __call__(self, embeddings_dataset: DocumentDataset) -> DocumentDataset:
        """Cluster the rows; what is lazy is computed.

        Parameters
        ----------
        embeddings_dataset
            ``DocumentDataset(dataset.metadata)``, for example.

        Returns
        -------
        DocumentDataset
            Of the files, a partition a cluster.

        Raises
        ------
        ConfigError
            A column is not there, an id names two rows, or there are fewer rows than clusters.
        ShardError
            Rows could not be computed.
        """
        if not isinstance(embeddings_dataset, DocumentDataset):
            raise ConfigError(
                f"expected DocumentDataset(dataset.metadata), found {type(embeddings_dataset).__name__}"
            )
        frame = embeddings_dataset.df
        lacking = [name for name in (self.id_column, self.embedding_column) if name not in frame.columns]
        if lacking:
            raise ConfigError(f"columns {lacking} are not among those of the rows, {list(frame.columns)}")
        folder = self.clustering_output_dir
        check_writable(folder)
        files = ClusterFiles(
            join(folder, _BY_CLUSTER), _LABEL, self.n_clusters, self.id_column, self.embedding_column
        )
        work = f"{folder}{WORK_SUFFIX}"
        with RunLock(folder):
            remove_leftovers(folder)
            rows = self._saved(frame, work)
            task = Clustering(
                tuple(find_sources(rows, None)),
                files,
                work,
                columns=None if self.keep_all_columns else (),
                by_shard=False,
                iterations=self.max_iter,
                seed=self.random_state,
            )
            centroids = task.run()
            np.save(join(folder, "kmeans_centroids.npy"), centroids)
        paths = [path for cluster in range(self.n_clusters) for path in files.paths(cluster)]
        return DocumentDataset.read_parquet(paths)

    def _saved(self, frame: Any, work: str) -> str:
        """The folder with the rows."""
        columns = [
            name
            for name in frame.columns
            if self.keep_all_columns or name in (self.id_column, self.embedding_column)
        ]
        name = f"input-{fingerprint({'frame': frame.expr._name, 'columns': columns})[:16]}"
        for other in Path(work).glob("input-*"):
            if other.name != name:
                shutil.rmtree(other)
        summary = save(
            frame,
            [],
            work,
            join(work, name),
            id_col=self.id_column,
            columns=columns,
            overwrite=True,
            drop_failed=False,
            input_options=getattr(trace(frame).reader, "storage_options", None),
            output_options=None,
        )
        if summary.failed_shards:
            shard, reason = next(iter(summary.failed_shards.items()))
            raise ShardError(
                f"{len(summary.failed_shards)} partitions could not be computed, {shard} for example: {reason}. What"
                " was finished is kept: run again"
            )
        return join(work, name)


class SemanticClusterLevelDedup:
    """Finds duplicates within the clusters of `ClusteringModel`.

    Call `compute_semantic_match_dfs`, then `extract_dedup_data` with one eps or several.

    Parameters
    ----------
    n_clusters
        As many as `ClusteringModel` has made.
    emb_by_clust_dir
        ``embs_by_nearest_center`` in its folder.
    id_column, embedding_column
        As there.
    which_to_keep
        Which item comes before which: ``"hard"``, the farthest from its centroid first; ``"easy"``, the nearest; or
        ``"random"``.
    sim_metric
        Which distance that is: ``"cosine"`` or ``"l2"``.
    output_dir
        Folder of this machine that all workers see.
    batched_cosine_similarity
        Taken for the sake of scripts of NeMo Curator 0.9: products are made in blocks.
    logger, profile_dir
        As for `ClusteringModel`.
    rule
        ``"semdedup"``: an item goes if any item of its cluster that comes before it is within eps, also one that goes
        itself. ``"stars"``: that of `curator_dask.dedup.SemanticDeduplication`, which looks beyond the borders of
        clusters, and leaves for each row that goes one within eps that stays.

    Raises
    ------
    ConfigError
        An argument has a value that it cannot have.
    """

    def __init__(
        self,
        n_clusters: int = 1000,
        emb_by_clust_dir: str | os.PathLike[str] = "./clustering_results/embs_by_nearest_center",
        id_column: str = "id",
        which_to_keep: str = "hard",
        sim_metric: str = "cosine",
        output_dir: str | os.PathLike[str] = "./clustering_results",
        embedding_column: str = "embeddings",
        batched_cosine_similarity: int = 1024,
        logger: logging.Logger | str = "./",
        profile_dir: str | None = None,
        *,
        rule: str = "semdedup",
    ) -> None:
        _check_count("n_clusters", n_clusters)
        if rule not in _RULES:
            raise ConfigError(f"rule={rule!r}: expected one of {list(_RULES)}")
        self.files = ClusterFiles(
            _local(emb_by_clust_dir, "emb_by_clust_dir"), _LABEL, n_clusters, id_column, embedding_column
        )
        if rule == "stars" and which_to_keep == "random":
            raise ConfigError("which_to_keep='random': with rule='stars' it is 'hard' or 'easy'")
        self.ranking = RankingStrategy.of(which_to_keep, id_column, sim_metric)
        self.which_to_keep = which_to_keep
        self.output_dir = _local(output_dir, "output_dir")
        self.rule = rule
        self._match: Match | None = None

    def compute_semantic_match_dfs(self) -> None:
        """Write ``semdedup_pruning_tables/cluster_0.parquet`` and so on.

        Each has a row an item of the cluster, in their order: ``id``; ``max_id``, of the nearest item before it (its
        own, of the first); and ``cosine_sim_score``, their cosine (0, of the first). Tables that are there are not
        made again.

        Raises
        ------
        OutputError, ConfigError, ShardError
            The clusters are not there, are more than `n_clusters`, or cannot be read.
        """
        self.files.check()
        check_writable(self.output_dir)
        match = Match(self.files, self.ranking, join(self.output_dir, "semdedup_pruning_tables"))
        with RunLock(self.output_dir):
            match_clusters(match)
        self._match = match

    def extract_dedup_data(self, eps_to_extract: float) -> DocumentDataset:
        """Say which items go: ``unique_ids_{eps}.parquet``, in spite of its name, and ``dedup_summary_{eps}.csv``.

        Parameters
        ----------
        eps_to_extract
            Two items are duplicates when their cosine is at least 1 - eps.

        Returns
        -------
        DocumentDataset
            The ids of the items to remove, in a column of the name of theirs; ``cosine_dist_to_cent`` and ``cluster``.

        Raises
        ------
        ConfigError
            `eps_to_extract` is no number from 0 up and below 1, or `compute_semantic_match_dfs` was not called.
        """
        eps = check_eps("eps_to_extract", eps_to_extract)
        if self._match is None:
            raise ConfigError("call compute_semantic_match_dfs() before extract_dedup_data()")
        folder = join(self.output_dir, f"unique_ids_{eps_to_extract}.parquet")
        if self.rule == "stars":
            counts = self._stars(eps, folder)
        else:
            with RunLock(self.output_dir):
                counts = remove_duplicates(Remove(self._match, eps, folder, self.files.id_col, details=True))
        said = {
            "eps": eps,
            "kept": counts["total"] - counts["removed"],
            "removed": counts["removed"],
            "total": counts["total"],
            "removed_without_twin": counts["alone"],
        }
        summary = Path(self.output_dir, f"dedup_summary_{eps_to_extract}.csv")
        summary.write_text(f"{','.join(said)}\n{','.join(map(str, said.values()))}\n", encoding="utf-8")
        return DocumentDataset.read_parquet(folder)

    def _stars(self, eps: float, folder: str) -> dict[str, int]:
        """By the other rule: the same file, of what `SemanticDeduplication` finds."""
        files = self.files
        find = SemanticDeduplication(eps, self.which_to_keep, embedding_column=files.column)
        place = join(self.output_dir, f"duplicates_{eps}")
        found = find(files.folder).save(place)
        removed = pq.read_table(join(place, DUPLICATES), columns=["id"], filters=pc.field("kept") == False)  # noqa: E712
        parts = []
        for cluster in range(files.count):
            if files.paths(cluster):
                rows = files.read(cluster, [files.id_col, COSINE_DISTANCE])
                goes = pc.is_in(rows.column(files.id_col).cast(pa.string()), removed.column("id"))
                parts.append(
                    rows.append_column(
                        "cluster", pa.repeat(pa.scalar(cluster, pa.int32()), len(rows))
                    ).filter(goes)
                )
        _remove_others(folder, set())
        table = pa.concat_tables(parts, promote_options="permissive").sort_by(files.id_col)
        write_table(join(folder, "part.0.parquet"), table, FileRecord("", id_col=files.id_col))
        return {"removed": len(table), "alone": 0, "total": found.rows}


def match_clusters(match: Match) -> None:
    """Make the tables of matches that are not there."""
    _set_up()
    expected = {match.path(cluster) for name in match.files.names for cluster in match.clusters_of(name)}
    _remove_others(match.folder, expected)
    run_phase("matches", match, match.files.names, match.finished, match.folder)


def remove_duplicates(remove: Remove) -> dict[str, int]:
    """Make the files of ids that are not there, and say what they come to; see `Remove.counts`."""
    _set_up()
    names = remove.matches.files.names
    _remove_others(remove.folder, {remove.path(name) for name in names})
    run_phase("duplicates", remove, names, remove.finished, remove.folder)
    counts = [remove.counts(name) for name in names]
    total = {name: sum(each[name] for each in counts) for name in ("removed", "alone", "total")}
    logger.info(
        "%d of %d items are within eps=%g of one before them in their cluster, and go%s",
        total["removed"],
        total["total"],
        remove.eps,
        f"; {total['alone']} of them have no item within eps that stays (rule='stars' leaves one)"
        if total["alone"]
        else "",
    )
    return total


def check_eps(name: str, eps: Any) -> float:
    """A number from 0 up and below 1.

    Raises
    ------
    ConfigError
        It is none.
    """
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 <= eps < 1:
        raise ConfigError(f"{name}={eps!r}: expected a number from 0 up and below 1, such as 0.07")
    return float(eps)


def _remove_others(folder: str, expected: set[str]) -> None:
    """Files of a run before with more clusters are not to be read with those of this one."""
    for path in Path(folder).glob("*.parquet"):
        if str(path) not in expected:
            path.unlink()


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name}={value!r}: expected a whole number from 1 up")


def _local(path: str | os.PathLike[str], name: str) -> str:
    folder = locate(os.fspath(path), None)
    if is_remote(folder):
        raise ConfigError(f"{name}={folder!r}: expected a folder of this machine that all workers see")
    return folder


def _set_up() -> None:
    client = current_client()
    if client is not None:
        set_up_workers(client)
