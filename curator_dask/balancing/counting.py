"""How many rows each cluster has, and how far they are from its centroid: counted a file a task."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from curator_dask import backend
from curator_dask.cluster.setup import OpenWorkers, when_needed
from curator_dask.errors import ShardError
from curator_dask.frames.parquet import read_footer
from curator_dask.image.classifiers import ClusterNumber
from curator_dask.image.classifiers.centroids import read_centroids
from curator_dask.image.classifiers.clusters import CentroidDistance, NearestCentroid
from curator_dask.image.classifiers.origins import one_origin
from curator_dask.outputs.given import given_files
from curator_dask.outputs.nearest import VectorFiles
from curator_dask.outputs.placing import locate
from curator_dask.runs.reports import report_frame
from curator_dask.runs.settle import file_tasks, run_targets
from curator_dask.runs.summary import SaveSummary
from curator_dask.runs.targets import Target
from curator_dask.storage import Options, join

_BLOCK = 2048  # vectors that are compared at a time


@dataclass(frozen=True)
class CountClusters:
    """Counts the rows of a file by cluster.

    Attributes
    ----------
    files
        Where the vectors are.
    folder
        Of the files.
    clusters
        File of the centroids.
    given_up
        The file kills workers: it is not counted, for this reason.
    """

    files: VectorFiles
    folder: str
    clusters: str
    given_up: str | None = None

    def give_up(self, reason: str) -> CountClusters:
        """The same without the work that kills workers."""
        return replace(self, given_up=reason)

    def __call__(self, name: str) -> pd.DataFrame:
        """Look at one file; the report says under ``counts`` and ``sums`` rows and distances, by cluster."""
        import torch

        path = join(self.folder, name)
        if self.given_up is not None:
            raise ShardError(f"{path}: {self.given_up}")
        device = backend.current().torch_device
        centroids = torch.from_numpy(read_centroids(self.clusters)[0]).to(device)
        number, distance = NearestCentroid(centroids), CentroidDistance(centroids)
        counts, sums = np.zeros(len(centroids), np.int64), np.zeros(len(centroids))
        rows = read_footer(path, self.files.options).rows
        mine = VectorFiles({path: None}, self.files.column, self.files.options)
        with torch.inference_mode():
            for vectors in mine.directions():
                if vectors.shape[1] != centroids.shape[1]:
                    raise ShardError(
                        f"{path}: expected vectors of {centroids.shape[1]} values in {self.files.column!r}, found"
                        f" {vectors.shape[1]}: take centroids of this model's"
                    )
                for start in range(0, len(vectors), _BLOCK):
                    block = torch.from_numpy(vectors[start : start + _BLOCK]).to(device)
                    of = number(block).long().cpu().numpy()
                    counts += np.bincount(of, minlength=len(counts))
                    sums += np.bincount(of, distance(block).double().cpu().numpy(), len(sums))
        plain = {"failed": 0, "dropped": 0, "reasons": {}, "examples": {}}
        return report_frame(
            {"name": name, "rows": rows, **plain, "counts": counts.tolist(), "sums": sums.tolist()}
        )


def count_clusters(
    path: str | os.PathLike[str],
    clusters: str | os.PathLike[str],
    column: str,
    check: bool,
    options: Options,
    workers: OpenWorkers,
) -> tuple[np.ndarray, np.ndarray, int]:
    """By cluster, rows and the sum of their distances to the centroid; and how many rows there are. Nothing is written.

    Parameters
    ----------
    path, clusters, column, check, options, workers
        See `curator_dask.balancing.clusters.balance_clusters`.
    """
    head = ClusterNumber(clusters, embedding_column=column, check=check)
    folder = locate(os.fspath(path), options)
    files = VectorFiles.find(path, column, options)
    if check and head.vectors is not None:
        one_origin(column, files.records).check(head.vectors, head.model_name)
    names = given_files(folder, options)
    reports: list[Mapping[str, Any]] = []
    with when_needed(workers) as start:
        client, summary = start(), SaveSummary(folder, opened=False)
        tasks = file_tasks(CountClusters(files, folder, head.centroids), names, "count-clusters", client)
        targets = [Target.of_file(folder, name) for name in names]

        def take(number: int, row: Mapping[str, Any]) -> None:
            reports.append(json.loads(row["target"]))

        run_targets(tasks, client, targets, summary, take)
    for name, reason in summary.failed_shards.items():
        raise ShardError(
            f"{name}: could not be counted: {reason}. Mend the file, or take it away, and run again"
        )
    sizes, sums = (np.sum([each[what] for each in reports], axis=0) for what in ("counts", "sums"))
    return sizes.astype(np.int64), sums, sum(each["rows"] for each in reports)
