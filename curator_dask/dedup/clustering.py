"""From files of vectors to files of clusters: k-means, and each row in the folder of its cluster."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curator_dask.cluster.setup import client_at_work
from curator_dask.dedup.assigning import Assign
from curator_dask.dedup.cluster_files import ClusterFiles
from curator_dask.dedup.hashes import Hashes
from curator_dask.dedup.keeping import Keep
from curator_dask.dedup.kmeans import SAMPLE, Cluster
from curator_dask.dedup.layout import Layout
from curator_dask.dedup.phases import Phase, run_phase
from curator_dask.dedup.ranking import COSINE_DISTANCE, L2_DISTANCE
from curator_dask.dedup.rows import Rows, gather_rows
from curator_dask.dedup.scanning import Scan, Source
from curator_dask.errors import ConfigError, OutputError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.faults import faults_told
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import list_parquet, open_parquet, read_footer, write_table
from curator_dask.frames.record import FileRecord
from curator_dask.storage import join
from curator_dask.threads import in_threads

logger = logging.getLogger("curator_dask")

#: Of what is in the files: another number makes all of them anew.
VERSION = 1
_LEAST = 8192  # rows that k-means is fitted to, if there are as many


@dataclass(frozen=True)
class Clustering:
    """Puts rows into the folders of their clusters.

    Attributes
    ----------
    sources
        Files with the vectors.
    files
        Where the rows go.
    work
        Folder of what lies between.
    columns
        Besides the ids and the vectors, what is kept of the rows; None: all.
    by_shard
        Ids are those of a shard's rows, where the rows have a column of their shards; it is kept then.
    iterations, seed
        Of k-means.
    """

    sources: tuple[Source, ...]
    files: ClusterFiles
    work: str
    columns: tuple[str, ...] | None
    by_shard: bool
    iterations: int
    seed: int

    def run(self) -> np.ndarray:
        """Write the files that are not there; returns the centroids, float32 (clusters, dim), of unit length.

        Raises
        ------
        ConfigError
            More clusters than rows; ids that are not all different.
        OutputError, ShardError
            Something cannot be read or written.
        """
        count, files = self.files.count, self.files
        client_at_work()
        scan = self._phase("scan", version=VERSION, column=files.column)
        names = [source.name for source in self.sources]
        task = Scan(scan, self.sources, files.column, Keep.of(None), True, Hashes())
        run_phase("scan", task, names, task.finished, files.folder)
        rows = gather_rows(scan, self.sources, files.folder)
        if len(rows.distinct) < count:
            raise ConfigError(
                f"n_clusters={count}: there are {len(rows.distinct)} rows with a vector. Give at most as many"
            )
        distinct = self._phase("distinct", scan=scan.folder, names=names)
        layout = Layout.of(scan, distinct, names, rows)
        clusters = self._fit(layout, len(rows.carriers))
        assigned = self._phase("assign", clusters=clusters.folder)
        assign = Assign(layout, assigned, clusters, 0.0, True)
        run_phase("assign", assign, names, lambda name: assigned.has(f"{name}.npy"), files.folder)
        empty = self._write(layout, rows, assigned)
        rounds, converged, _ = clusters.load("said.npy").tolist()
        aside = [f"{number} {name}" for name, number in rows.counts.items() if number and name != "good"]
        logger.info(
            "%d rows in %d clusters, k-means %s%s%s",
            len(rows.distinct),
            count - empty,
            f"in {rounds} rounds" if converged else f"not converged after {rounds} rounds (max_iter)",
            f"; {empty} more clusters are empty" if empty else "",
            f"; in no cluster, and not removed: {', '.join(aside)}" if aside else "",
        )
        return np.array(clusters.load("centroids.npy"))

    def _phase(self, phase: str, **parts: object) -> Phase:
        return Phase(join(self.work, f"{phase}-{fingerprint(parts)[:16]}"))

    def _fit(self, layout: Layout, distinct: int) -> Phase:
        count = self.files.count
        phase = self._phase(
            "clusters",
            distinct=layout.distinct.folder,
            clusters=count,
            iterations=self.iterations,
            seed=self.seed,
        )
        if not phase.has("centroids.npy"):
            size = min(distinct, max(_LEAST, SAMPLE * count))
            numbers = np.sort(np.random.default_rng(self.seed).choice(distinct, size, replace=False))
            phase.save("numbers.npy", numbers)
        task = Cluster(phase, layout, count, self.iterations, self.seed)
        run_phase("k-means", task, ["centroids.npy"], phase.has, self.files.folder)
        return phase

    def _write(self, layout: Layout, rows: Rows, assigned: Phase) -> int:
        """Write the files; returns how many clusters have no row."""
        files = self.files
        phase = self._phase(
            "rows",
            assigned=assigned.folder,
            id_col=files.id_col,
            columns=self.columns,
            by_shard=self.by_shard,
        )
        if not phase.has("bounds.npy"):
            labels, own = (
                np.concatenate([assigned.load(f"{name}{suffix}.npy") for name in layout.names])[rows.distinct]
                for suffix in ("", "-centre")
            )
            order = np.argsort(labels, kind="stable")
            table = self._rows(layout.scan).take(pa.array(order))
            with phase.writing("rows.arrow") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
            phase.save("vectors.npy", rows.distinct[order])
            phase.save("cosines.npy", own[order])
            phase.save("bounds.npy", np.searchsorted(labels[order], np.arange(files.count + 1)))
        bounds = phase.load("bounds.npy")
        identity = fingerprint({"rows": phase.folder})
        there = [path for path in sorted(list_parquet(files.folder)) if f"/{files.label}=" in path]
        made = in_threads(_made_by, there)
        good = {path for path, by in zip(there, made, strict=True) if by == identity}
        if len(good) < len(there):
            logger.warning("%s: clusters of other rows or settings are replaced", files.folder)
            for path in {*there} - good:
                Path(path).unlink()
                with suppress(OSError):  # not empty
                    Path(path).parent.rmdir()
        wanted = {
            name: {files.path(at) for at in files.clusters_of(name) if bounds[at + 1] > bounds[at]}
            for name in files.names
        }
        task = WriteClusters(layout, phase, files, identity)
        run_phase("clusters", task, list(wanted), lambda name: wanted[name] <= good, files.folder)
        return int((np.diff(bounds) == 0).sum())

    def _rows(self, scan: Phase) -> pa.Table:
        """The rows with vectors that can be compared, of all files; their ids are all different."""
        id_col, column = self.files.id_col, self.files.column
        tables, faults = [], []
        for source in self.sources:
            with faults_told(source.path), open_parquet(source.path, source.options) as file:
                names = file.schema_arrow.names
                extra = [name for name in names if name != column] if self.columns is None else self.columns
                shard = [URL_COLUMN] if self.by_shard and URL_COLUMN in names else []
                wanted = [*dict.fromkeys([id_col, *shard, *extra])]
                lacking = [name for name in wanted if name not in names]
                if lacking:
                    raise OutputError(f"{source.path}: has no columns {lacking}; it has {names}")
                tables.append(file.read(columns=wanted).replace_schema_metadata(None))
            faults.append(pq.read_table(scan.path(f"{source.name}.parquet"), partitioning=None)["fault"])
        try:
            table = pa.concat_tables(tables, promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise OutputError(f"columns have one type in some files and another in others: {error}") from None
        shard = [URL_COLUMN] if self.by_shard and URL_COLUMN in table.column_names else []
        _check_ids(table.select([id_col, *shard]))
        made = [name for name in (COSINE_DISTANCE, L2_DISTANCE) if name in table.column_names]
        table = table.drop_columns(made)  # of a clustering before
        return table.filter(pc.equal(pa.concat_arrays([c for f in faults for c in f.chunks]), 0))


def _check_ids(ids: pa.Table) -> None:
    """See that an id, or an id and a shard, name one row: duplicates are removed by them.

    Raises
    ------
    ConfigError
        They do not.
    """
    name = ids.column_names[0]
    if ids.column(name).null_count:
        raise ConfigError(
            f"{ids.column(name).null_count} of {len(ids)} rows have no {name!r}, by which they are removed"
        )
    counts = ids.group_by(ids.column_names).aggregate([([], "count_all")])
    twice = counts.filter(pc.greater(counts.column("count_all"), 1))
    if len(twice):
        one = twice.slice(0, 1).to_pylist()[0]
        raise ConfigError(
            f"{name}={one[name]!r} names {one['count_all']} rows, and duplicates are removed by their ids: all of them"
            " would go. Give a column whose values are all different"
        )


@dataclass(frozen=True)
class WriteClusters:
    """Writes the files of clusters.

    Attributes
    ----------
    layout
        Has the vectors.
    phase
        Has the rows in the order of clusters, ``rows.arrow``; the number of each row's vector, and its cosine to the
        centroid; and where each cluster begins and ends.
    files
        What is written.
    identity
        Fingerprint of what is in them.
    """

    layout: Layout
    phase: Phase
    files: ClusterFiles
    identity: str

    def make(self, name: str) -> int:
        """Write those of a task."""
        bounds, done = self.phase.load("bounds.npy"), 0
        with pa.memory_map(self.phase.path("rows.arrow")) as source:
            table = pa.ipc.open_file(source).read_all()
            for cluster in self.files.clusters_of(name):
                start, stop = bounds[cluster : cluster + 2].tolist()
                if start == stop:
                    continue
                rows = self._with_vectors(table.slice(start, stop - start), slice(start, stop))
                write_table(
                    self.files.path(cluster), rows, FileRecord(self.identity, id_col=self.files.id_col)
                )
                done += len(rows)
        return done

    def _with_vectors(self, rows: pa.Table, part: slice) -> pa.Table:
        vectors = self.layout.gather(self.phase.load("vectors.npy")[part])
        cosines = np.array(self.phase.load("cosines.npy")[part])
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), self.layout.dim)
        for name, values in (
            (self.files.column, column),
            (L2_DISTANCE, pa.array(np.sqrt(np.maximum(0, 2 - 2 * cosines)))),
            (COSINE_DISTANCE, pa.array(1 - cosines)),
        ):
            rows = rows.append_column(name, values)
        return rows


def _made_by(path: str) -> str | None:
    record = read_footer(path).record
    return None if record is None else record.fingerprint
