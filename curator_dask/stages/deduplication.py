"""`SemanticDeduplicationWorkflow`: from files of vectors to the ids of duplicates, as NeMo Curator 1.x has it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from curator_dask.decode.spec import check_counts
from curator_dask.dedup import RankingStrategy
from curator_dask.dedup.arguments import check_eps, check_rule, local_folder
from curator_dask.dedup.cluster_files import ClusterFiles
from curator_dask.dedup.clustering import Clustering
from curator_dask.dedup.matching import Match
from curator_dask.dedup.phases import WORK_SUFFIX
from curator_dask.dedup.removing import (
    Remove,
    find_by_stars,
    match_clusters,
    remove_duplicates,
)
from curator_dask.dedup.scanning import find_sources
from curator_dask.errors import ConfigError
from curator_dask.frames.parquet import without_leftovers
from curator_dask.outputs.lock import RunLock
from curator_dask.outputs.placing import locate
from curator_dask.outputs.saving import check_apart, check_writable
from curator_dask.storage import join

__all__ = ["RankingStrategy", "SemanticDeduplicationWorkflow", "WorkflowRunResult"]


@dataclass
class WorkflowRunResult:
    """What a workflow came to.

    Attributes
    ----------
    workflow_name
        Which it was.
    metadata
        ``total_time``, ``kmeans_time`` and ``pairwise_time`` in seconds; with an eps ``num_duplicates``, the items
        that go, and ``num_without_twin``, those of them within eps of which none stays.
    """

    workflow_name: str
    metadata: dict[str, Any] = field(default_factory=dict)

    def get_metadata(self, key: str) -> Any:
        """One of them; None where it is not there."""
        return self.metadata.get(key)


class SemanticDeduplicationWorkflow:
    """Clusters vectors by k-means, compares those of a cluster, and writes the ids of those that go.

    ``kmeans_results/centroid=0/part.0.parquet`` and so on have the rows by cluster, ``pairwise_results`` a table a
    cluster, as `curator_dask.dedup.SemanticClusterLevelDedup` writes them; ``duplicates`` has the ids, in a column
    ``id``, and their shard, ``__url__``, where the input has that. What is finished is not done again.

    Parameters
    ----------
    input_path
        Folder or URL of the Parquet files, or a list of these.
    output_path
        Folder of this machine that all workers see: gets ``duplicates``.
    n_clusters
        At most as many as there are rows with a vector.
    cache_path
        Gets the other two, and beside it, with ``.work`` behind its name, what lies between. None: `output_path`.
    id_field, embedding_field
        Columns of the ids and of the vectors. An id, or an id and a shard, must name one row.
    embedding_dim
        Not used, as the other arguments below that are said to be taken: it is known from the files.
    metadata_fields
        Columns that are kept with the rows, for `ranking_strategy`.
    input_filetype
        ``"parquet"``.
    input_file_extensions
        Taken.
    max_iter, random_state
        Rounds of k-means, at most, and the seed of what it picks by chance, and of ``which_to_keep="random"``.
    tol, init, n_init, oversampling_factor, max_samples_per_batch, fit_data_fraction
        Taken: k-means is begun as k-means++ does, on a sample, and ends when it comes to rest.
    distance_metric
        ``"cosine"`` or ``"l2"``: by which distance from the centroid items are ordered.
    which_to_keep
        As for `curator_dask.dedup.SemanticClusterLevelDedup`.
    ranking_strategy
        In the place of the two.
    pairwise_batch_size
        Taken: products are made in blocks.
    eps
        Two items are duplicates when their cosine is at least 1 - eps. None: no ids are written.
    read_kwargs
        ``{"storage_options": ...}``, for fsspec, where `input_path` is a URL.
    cache_kwargs, write_kwargs, clear_output, verbose
        Taken: files that are there and fit are kept.
    rule
        As for `curator_dask.dedup.SemanticClusterLevelDedup`. By ``"stars"``, ``duplicates`` has the table of
        `curator_dask.dedup.Duplicates.save`, with those that stay marked in ``kept``.

    Raises
    ------
    ConfigError
        An argument has a value that it cannot have.
    """

    def __init__(
        self,
        input_path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        output_path: str | os.PathLike[str],
        n_clusters: int,
        cache_path: str | os.PathLike[str] | None = None,
        id_field: str = "id",
        embedding_field: str = "embeddings",
        embedding_dim: int | None = None,
        metadata_fields: Sequence[str] | None = None,
        input_filetype: str = "parquet",
        input_file_extensions: Sequence[str] | None = None,
        max_iter: int = 300,
        tol: float = 1e-4,
        random_state: int = 42,
        init: Any = "k-means||",
        n_init: int | str = 1,
        oversampling_factor: float = 2.0,
        max_samples_per_batch: int = 1 << 15,
        fit_data_fraction: float | None = None,
        distance_metric: str = "cosine",
        which_to_keep: str = "hard",
        ranking_strategy: RankingStrategy | None = None,
        pairwise_batch_size: int = 1024,
        eps: float | None = None,
        read_kwargs: Mapping[str, Any] | None = None,
        cache_kwargs: Mapping[str, Any] | None = None,
        write_kwargs: Mapping[str, Any] | None = None,
        clear_output: bool = True,
        verbose: bool = True,
        *,
        rule: str = "semdedup",
    ) -> None:
        check_counts(n_clusters=n_clusters, max_iter=max_iter)
        if input_filetype != "parquet":
            raise ConfigError(f"input_filetype={input_filetype!r}: expected 'parquet'")
        check_rule(rule, which_to_keep)
        if rule == "stars" and ranking_strategy is not None:
            raise ConfigError("ranking_strategy: with rule='stars' which_to_keep says which item stays")
        if set(read_kwargs or {}) - {"storage_options"}:
            raise ConfigError(f"read_kwargs={read_kwargs!r}: expected storage_options alone")
        self.input_path = [input_path] if isinstance(input_path, str | os.PathLike) else list(input_path)
        self.output_path = local_folder("output_path", output_path)
        self.cache_path = self.output_path if cache_path is None else local_folder("cache_path", cache_path)
        self.eps = None if eps is None else check_eps("eps", eps)
        self.ranking = ranking_strategy or RankingStrategy.of(
            which_to_keep, id_field, distance_metric, random_state
        )
        self.files = ClusterFiles(
            join(self.cache_path, "kmeans_results"), "centroid", n_clusters, id_field, embedding_field
        )
        self.metadata_fields = tuple(metadata_fields or ())
        self.max_iter, self.random_state = max_iter, random_state
        self.which_to_keep, self.rule = which_to_keep, rule
        self.storage_options = (read_kwargs or {}).get("storage_options") or None

    def run(
        self, kmeans_executor: Any = None, pairwise_executor: Any = None, checkpoint_path: Any = None
    ) -> WorkflowRunResult:
        """Do what is missing, on the client's cluster if there is one.

        Parameters
        ----------
        kmeans_executor, pairwise_executor, checkpoint_path
            Taken for the sake of scripts of NeMo Curator 1.x: there is one cluster, and what is finished is kept.

        Raises
        ------
        ConfigError
            More clusters than rows, or an id that names two rows.
        OutputError, ShardError
            Something cannot be read or written.
        """
        started = time.monotonic()
        for folder in (self.cache_path, self.output_path):
            check_writable(folder)
        local = (self.cache_path, f"{self.cache_path}{WORK_SUFFIX}", self.output_path)
        with RunLock(self.cache_path), without_leftovers(*local):
            self._clustering().run()
            clustered = time.monotonic()
            match = Match(self.files, self.ranking, join(self.cache_path, "pairwise_results"))
            match_clusters(match)
            found = {} if self.eps is None else self._removed(match, self.eps)
        ended = time.monotonic()
        times = {
            "total_time": ended - started,
            "kmeans_time": clustered - started,
            "pairwise_time": ended - clustered,
        }
        return WorkflowRunResult("semantic_deduplication", {**times, **found})

    def _clustering(self) -> Clustering:
        sources = []
        for each in self.input_path:
            folder = locate(os.fspath(each), self.storage_options)
            for output in (self.cache_path, self.output_path):
                check_apart(folder, output)
            sources += find_sources(folder, self.storage_options)
        return Clustering(
            tuple(sources),
            self.files,
            f"{self.cache_path}{WORK_SUFFIX}",
            columns=self.metadata_fields,
            by_shard=True,
            iterations=self.max_iter,
            seed=self.random_state,
        )

    def _removed(self, match: Match, eps: float) -> dict[str, int]:
        folder = join(self.output_path, "duplicates")
        if self.rule == "stars":
            summary = find_by_stars(self.files, eps, self.which_to_keep, folder)
            return {"num_duplicates": summary.removed, "num_without_twin": 0}
        counts = remove_duplicates(Remove(match, eps, folder, "id", details=False))
        return {"num_duplicates": counts["removed"], "num_without_twin": counts["alone"]}
