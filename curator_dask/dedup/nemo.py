"""`ClusteringModel` and `SemanticClusterLevelDedup`: semantic deduplication as scripts of NeMo Curator 0.9 call it."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

from curator_dask.datasets.documents import DocumentDataset
from curator_dask.decode.spec import check_counts
from curator_dask.dedup.arguments import check_eps, check_rule, local_folder
from curator_dask.dedup.cluster_files import ClusterFiles
from curator_dask.dedup.clustering import Clustering
from curator_dask.dedup.matching import Match
from curator_dask.dedup.phases import WORK_SUFFIX, Phase
from curator_dask.dedup.ranking import RankingStrategy
from curator_dask.dedup.removing import (
    Remove,
    match_clusters,
    remove_by_stars,
    remove_duplicates,
)
from curator_dask.dedup.scanning import find_sources
from curator_dask.errors import ConfigError, ShardError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.parquet import without_leftovers
from curator_dask.outputs.lock import RunLock
from curator_dask.outputs.saving import check_writable, save
from curator_dask.runs.lineage import trace
from curator_dask.storage import join

logger = logging.getLogger("curator_dask")

#: Below the folder of the clustering.
_BY_CLUSTER = "embs_by_nearest_center"
_LABEL = "nearest_cent"


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
        The files have all columns of the rows, and not the ids and vectors alone; while they are put in order, the
        client holds these.

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
        check_counts(max_iter=max_iter, n_clusters=n_clusters)
        self.id_column = id_column
        self.max_iter = max_iter
        self.n_clusters = n_clusters
        self.clustering_output_dir = local_folder("clustering_output_dir", clustering_output_dir)
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
        with RunLock(folder), without_leftovers(folder, work):
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
            Phase(folder).save("kmeans_centroids.npy", centroids)
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
        check_counts(n_clusters=n_clusters)
        check_rule(rule, which_to_keep)
        self.files = ClusterFiles(
            local_folder("emb_by_clust_dir", emb_by_clust_dir),
            _LABEL,
            n_clusters,
            id_column,
            embedding_column,
        )
        self.ranking = RankingStrategy.of(which_to_keep, id_column, sim_metric)
        self.which_to_keep = which_to_keep
        self.output_dir = local_folder("output_dir", output_dir)
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
            counts = remove_by_stars(self.files, eps, self.which_to_keep, folder)
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
        with Phase(self.output_dir).writing(f"dedup_summary_{eps_to_extract}.csv") as file:
            file.write(f"{','.join(said)}\n{','.join(map(str, said.values()))}\n".encode())
        return DocumentDataset.read_parquet(folder)
