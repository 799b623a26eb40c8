"""Folders of clusters, a folder a cluster, as NeMo Curator has them: ``nearest_cent=0/part.0.parquet``."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from curator_dask.errors import ConfigError, OutputError, ShardError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.columns import list_to_matrix
from curator_dask.frames.faults import faults_told
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import open_parquet
from curator_dask.storage import join
from curator_dask.webdataset.stamps import stamp

logger = logging.getLogger("curator_dask")

#: Tasks of a phase, at most.
_TASKS = 256
_UNIT = 0.01  # lengths of unit vectors are off by less


@dataclass(frozen=True)
class ClusterFiles:
    """The files of clusters.

    Attributes
    ----------
    folder
        Has a folder for each cluster.
    label
        Begins their names: ``"nearest_cent"`` in 0.9, ``"centroid"`` in 1.x.
    count
        Clusters, those without an item too.
    id_col, column
        Columns of the ids and of the vectors.
    """

    folder: str
    label: str
    count: int
    id_col: str
    column: str

    def path(self, cluster: int) -> str:
        """Of the file of a cluster that is written here."""
        return join(self.folder, f"{self.label}={cluster}/part.0.parquet")

    def paths(self, cluster: int) -> list[str]:
        """Of all files of a cluster; none of one without an item."""
        return sorted(map(str, Path(self.folder, f"{self.label}={cluster}").glob("*.parquet")))

    def state(self, cluster: int) -> str:
        """What changes when a file of a cluster changes."""
        return fingerprint({path: vars(stamp(path)) for path in self.paths(cluster)})

    def check(self) -> None:
        """See that there are clusters, and not more of them than are looked at.

        Raises
        ------
        OutputError
            There are none.
        ConfigError
            There are more.
        """
        pattern = re.compile(rf"{re.escape(self.label)}=(\d+)")
        names = [pattern.fullmatch(path.name) for path in Path(self.folder).glob("*")]
        found = [int(match[1]) for match in names if match]
        if not found:
            raise OutputError(
                f"{self.folder}: has no {self.label}=0/part.0.parquet or the like. Give the folder that ClusteringModel"
                " has written (CLUSTERING_OUTPUT_DIR/embs_by_nearest_center)"
            )
        if max(found) >= self.count:
            raise ConfigError(
                f"n_clusters={self.count}: {self.folder} has cluster {max(found)}, whose items would not be looked at:"
                " give as many as to ClusteringModel"
            )

        empty = [number for number in found if not self.paths(number)]
        if empty:
            raise OutputError(
                f"{self.folder}: the folder {self.label}={min(empty)} has no Parquet file, so its rows would"
                " not be looked at. Run ClusteringModel again, which makes what is missing"
            )
        lacking = sorted({*range(self.count)} - {*found})
        if lacking:
            logger.warning(
                "%s: has no rows of %d of %d clusters, %s=%d for example; where there were some, run ClusteringModel"
                " again",
                self.folder,
                len(lacking),
                self.count,
                self.label,
                lacking[0],
            )

    def read(self, cluster: int, columns: Sequence[str]) -> pa.Table:
        """Rows of a cluster, with these columns and, where there is one, that of the shard.

        Raises
        ------
        ShardError
            A file cannot be read.
        ConfigError
            It lacks a column.
        """
        tables = []
        for path in self.paths(cluster):
            with faults_told(path, ShardError), open_parquet(path) as file:
                names = file.schema_arrow.names
                lacking = [name for name in columns if name not in names]
                if lacking:
                    raise ConfigError(f"{path}: has no columns {lacking}; it has {names}")
                both = [*columns, *([URL_COLUMN] if URL_COLUMN in names else [])]
                tables.append(file.read(columns=list(dict.fromkeys(both))))
        return pa.concat_tables(tables, promote_options="permissive").replace_schema_metadata(None)

    def vectors(self, rows: pa.Table, cluster: int) -> np.ndarray:
        """float32 (rows, dim), of unit length.

        Raises
        ------
        ShardError
            They are not.
        """
        path = f"{self.folder}/{self.label}={cluster}"
        try:
            matrix, valid = list_to_matrix(rows.column(self.column))
        except ValueError as error:
            raise ShardError(f"{path}: {self.column!r}: {error}") from None
        lengths = np.sqrt(np.square(matrix, dtype=np.float64).sum(axis=1))
        if not valid.all() or not (np.abs(lengths - 1) <= _UNIT).all():
            raise ShardError(
                f"{path}: {self.column!r}: expected vectors of unit length, as ClusteringModel writes them"
            )
        return matrix

    @property
    def names(self) -> Sequence[str]:
        """Of the tasks of a phase; see `clusters_of`."""
        return [str(number) for number in range(-(-self.count // self._each))]

    def clusters_of(self, name: str) -> Iterator[int]:
        """The clusters of a task."""
        first = int(name) * self._each
        yield from range(first, min(self.count, first + self._each))

    @property
    def _each(self) -> int:
        return -(-self.count // _TASKS)
