"""Making an index of vectors, and making it fit again when the output has changed.

The index is an inverted file (IVF; Jégou et al. 2011, without their compression): vectors in the order of clusters of
spherical k-means, of which a search looks into a few. faiss's `IndexIVFFlat` is the same idea, and is not used: it has
vectors in memory, or on disk by lists that the caller merges; its float32 sums let equal rows change places; it knows
neither keys nor which file has changed; and all but the lists is here already (k-means, exact products, phases on a
cluster). So vectors are mapped from the disk in the type that the output has, the answers are those of the exact search
to the bit, and a file that changes costs its own segment.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from curator_dask.cluster.setup import OpenWorkers, when_needed
from curator_dask.decode.spec import check_counts
from curator_dask.dedup.arguments import local_folder
from curator_dask.dedup.kmeans import SAMPLE, Sample, cluster
from curator_dask.dedup.phases import Job, Phase, run_phases
from curator_dask.errors import ConfigError, OutputError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.columns import unit
from curator_dask.frames.names import EMBEDDING_COLUMN
from curator_dask.indexing.manifest import VERSION, File, Manifest, Segment, Source
from curator_dask.indexing.measuring import KNOWN, Measured
from curator_dask.indexing.tasks import CONTENTS, Compare, Read, Sort, Stored
from curator_dask.outputs.failed import output_files
from curator_dask.outputs.placing import locate
from curator_dask.outputs.saving import opened
from curator_dask.outputs.vectors import FAULTS, vectors_of
from curator_dask.storage import Options

if TYPE_CHECKING:
    from collections.abc import Callable

    from distributed import Client

logger = logging.getLogger("curator_dask")

#: Bytes of the vectors of a segment, at least, if there are as many.
SEGMENT = 1 << 29
#: Rows that are looked for to measure recall.
QUERIES = 1000
_SAMPLE = 1 << 30  # bytes of the sample that clusters are made of, at most
_ITERATIONS, _LEAST, _FIRST = 10, 1e-3, 8192  # of k-means: clusters only say where to look
_ROWS = 4096
_GROWN = 2  # times as many vectors, or as few, with which clusters are made anew
_OURS = re.compile(r"[rscm]-[0-9a-f]{16}[-.].*")


def build(
    embeddings: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    column: str = EMBEDDING_COLUMN,
    clusters: int | None = None,
    seed: int = 0,
    storage_options: Options = None,
    workers: OpenWorkers = nullcontext,
) -> Manifest:
    """Make an index of an output's vectors, or make the one that is there fit again; where it fits, nothing is done.

    Vectors are read once and written twice, by the workers where there is a cluster. What was interrupted goes on.
    Where files were added, changed or removed since, only segments with these are made anew, unless there are more
    than twice as many rows as before, or less than half.

    Parameters
    ----------
    embeddings
        What `save_metadata` or ``curator-dask embed`` wrote, or other Parquet files with vectors.
    folder
        Of the index, on this machine, and the same on every worker. It takes the size of the vectors, and 20 bytes a
        row; while it is made twice that, at most.
    column
        Of the vectors.
    clusters
        How many; None: the square root of the number of rows.
    seed
        Of what is picked by chance.
    storage_options
        For fsspec, where `embeddings` is a URL.
    workers
        Opens the cluster to work on, once there is something to do; else it is the one that is there.

    Raises
    ------
    ConfigError
        The folder has an index of something else.
    OutputError
        There are no such vectors, or the folder cannot be written to.
    ShardError
        A file cannot be read, or has vectors of another length.
    """
    if clusters is not None:
        check_counts(clusters=clusters)
    place = local_folder("folder", folder)
    before = Manifest.read(place)
    where = locate(os.fspath(embeddings), storage_options)
    if before is not None and before.column != column:
        before.check_of(place, where, column)
    known = () if before is None else before.files
    source = Source.find(where, column, storage_options, known)
    if before is not None:
        differs = source.differences(before)
        if differs:  # else it is the same output, though it may have been moved
            before.check_of(place, where, column)
        if not differs and clusters in (None, before.clusters):
            if (
                source.files != before.files
            ):  # of the same vectors, which need not be read again the next time
                before = replace(before, files=source.files)
                with suppress(OutputError), opened(place, None):  # another search does it, or it is not ours
                    before.write(place)
            return before
        logger.info(
            "index %s: %s: what has changed is made anew", place, differs or "other clusters are wanted"
        )
    elif place == source.folder or (Path(place).is_dir() and output_files(place, None)):
        raise ConfigError(f"folder={place!r}: holds Parquet files: give a folder of the index's own")
    with opened(place, None), when_needed(workers) as client:
        manifest = _Building(source, Phase(place), before, clusters, seed, client).run()
        manifest.write(place)
        _clear(place, manifest)
    return manifest


@dataclass
class _Building:
    """Makes the parts of an index that are not there.

    Attributes
    ----------
    source
        What it is of.
    phase
        Its folder.
    before
        The index that is there.
    clusters, seed
        As given.
    client
        Gives that of the cluster.
    """

    source: Source
    phase: Phase
    before: Manifest | None
    clusters: int | None
    seed: int
    client: Callable[[], Client | None]

    def run(self) -> Manifest:
        """All of it."""
        source, before = self.source, self.before
        total = sum(each.rows for each in source.files)
        dim, dtype = self._shape()
        stored = Stored(self.phase, dim, dtype)
        stay = (
            before is not None
            and (dim, dtype) == (before.dim, before.dtype)
            and self.clusters in (None, before.clusters)
            and before.fitted <= _GROWN * total
            and total <= _GROWN * before.fitted
        )
        digest = {each.name: each.digest for each in source.files}
        kept: list[Segment] = []
        if stay and before is not None:
            then = {each.name: each.digest for each in before.files}
            kept = [
                each for each in before.segments if all(digest.get(name) == then[name] for name in each.files)
            ]
        if stay and before is not None:
            stored.load(before.centroids, (before.clusters, dim))  # others would not be those of what is kept
        groups = self._groups({name for each in kept for name in each.files}, dim, dtype, digest)
        made = {"groups": sorted(groups), "clusters": self.clusters, "seed": self.seed, "version": VERSION}
        centroids = before.centroids if stay and before else f"c-{fingerprint(made)[:16]}.npy"
        names = {raw: f"s-{fingerprint({'raw': raw, 'centroids': centroids})[:16]}" for raw in groups}
        self._read(stored, groups, names)
        counts = {raw: np.array(self.phase.load(f"{raw}.read.npy")).tolist() for raw in groups}
        vectors = sum(each.rows for each in kept) + sum(each[0] for each in counts.values())
        if not vectors:
            raise OutputError(
                f"{source.folder}: no row has a vector in {source.column!r} that can be compared: there is"
                " nothing to index"
            )
        if not self.phase.has(centroids):
            self._cluster(stored, {raw: each[0] for raw, each in counts.items()}, centroids, total)
        sort = Sort(stored, centroids, {name: raw for raw, name in names.items()})
        self._phase("sort", sort, [*sort.raw], lambda name: self.phase.has(f"{name}.starts.npy"), groups)
        files = self._with_contents(groups)
        segments = [*kept, *(Segment(names[raw], groups[raw], counts[raw][0]) for raw in groups)]
        number = len(np.load(self.phase.path(centroids), mmap_mode="r"))
        measured = self._measure(stored, segments, centroids)
        aside = {
            fault: sum(int(self._counts(each)[1 + place]) for each in segments)
            for place, fault in enumerate(FAULTS)
        }
        for each in segments:  # kept for the next time, when the files of the reading have gone
            if not self.phase.has(f"{each.name}.read.npy"):
                self.phase.save(f"{each.name}.read.npy", self._counts(each))
        return Manifest(
            source.folder,
            source.column,
            dim,
            dtype,
            files,
            tuple(segments),
            number,
            centroids,
            before.fitted if stay and before else total,
            {fault: count for fault, count in aside.items() if count},
            measured,
        )

    def _with_contents(self, groups: dict[str, tuple[str, ...]]) -> tuple[File, ...]:
        """The files, with what has been read of them."""
        found: dict[str, str] = {}
        for raw, names in groups.items():
            if self.phase.has(f"{raw}{CONTENTS}"):  # an earlier version, that was interrupted, has none
                found |= dict(zip(names, self.phase.load(f"{raw}{CONTENTS}").tolist(), strict=True))
        return tuple(
            replace(each, content=found[each.name]) if each.name in found else each
            for each in self.source.files
        )

    def _counts(self, segment: Segment) -> np.ndarray:
        """int64: vectors of a segment, and rows aside by `FAULTS`."""
        name = f"{segment.name}.read.npy"
        if not self.phase.has(name):
            name = f"{self._raw_of.get(segment.name, segment.name)}.read.npy"
        return np.array(Stored(self.phase, 0, "").load(name))

    def _shape(self) -> tuple[int, str]:
        dim, dtype = self.source.shape()
        for each in self.source.files if not dim else ():
            path, options = self.source.path(each.name), self.source.options
            for matrix, good in vectors_of(path, options, self.source.column, 0, Counter(), 256):
                if good.any():
                    return matrix.shape[1], dtype
        return dim, dtype

    def _groups(
        self, kept: set[str], dim: int, dtype: str, digest: dict[str, str]
    ) -> dict[str, tuple[str, ...]]:
        """Files that are to be read, those of a segment together, by a name that changes with them."""
        groups, some, size = [], list[str](), 0
        for each in self.source.files:
            if each.name not in kept:
                some.append(each.name)
                size += each.rows * dim * np.dtype(dtype).itemsize
                if size >= SEGMENT:
                    groups.append(tuple(some))
                    some, size = [], 0
        if some:
            groups.append(tuple(some))
        of = {"column": self.source.column, "dim": dim, "dtype": dtype, "version": VERSION}
        return {
            f"r-{fingerprint({**of, 'files': [digest[name] for name in group]})[:16]}": group
            for group in groups
        }

    def _read(self, stored: Stored, groups: dict[str, tuple[str, ...]], names: dict[str, str]) -> None:
        self._raw_of = {name: raw for raw, name in names.items()}

        def finished(raw: str) -> bool:
            sorted_ = self.phase.has(f"{names[raw]}.starts.npy")
            return self.phase.has(f"{raw}.read.npy") and (sorted_ or self.phase.has(f"{raw}.raw"))

        self._phase("read", Read(stored, self.source, groups), [*groups], finished, groups)

    def _phase(
        self,
        label: str,
        task: Read | Sort | Compare,
        names: list[str],
        finished: Callable[[str], bool],
        groups: dict[str, tuple[str, ...]],
    ) -> None:
        def words(name: str) -> str:
            files = groups.get(name) or groups.get(self._raw_of.get(name, ""))
            return f"the files from {files[0]}" if files else "a segment"

        job = Job(f"index, {label}", task, names, finished, words)
        run_phases([job], self.phase.folder, self.client, self.phase.folder)

    def _cluster(self, stored: Stored, counts: dict[str, int], name: str, total: int) -> None:
        vectors = sum(counts.values())
        number = min(vectors, self.clusters or max(1, round(total**0.5)))
        size = min(vectors, max(number, min(SAMPLE * number, _SAMPLE // (4 * stored.dim))))
        chosen = np.sort(np.random.default_rng(self.seed).choice(vectors, size, replace=False))
        sample, start, at = np.empty((size, stored.dim), np.float32), 0, 0
        for raw, count in counts.items():
            places = chosen[(chosen >= start) & (chosen < start + count)] - start
            if len(places):
                sample[at : at + len(places)] = stored.map(f"{raw}.raw")[places]
            at, start = at + len(places), start + count
        sample = unit(sample)
        logger.info("index: k-means, %d clusters of a sample of %d of %d vectors", number, size, vectors)
        found = cluster(
            Sample(size, stored.dim, sample.__getitem__, _ROWS),
            number,
            _ITERATIONS,
            self.seed,
            _LEAST,
            _FIRST,
        )
        self.phase.save(name, found[0])

    def _measure(self, stored: Stored, segments: list[Segment], centroids: str) -> str:
        """Look for some rows exactly; the name of the file of what that says."""
        names = [each.name for each in segments]
        asked = {"segments": names, "seed": self.seed, "queries": QUERIES, "known": KNOWN}
        prefix = f"m-{fingerprint(asked)[:16]}"
        measured = f"{prefix}.ranks.npy"
        if self.phase.has(measured):
            return measured
        starts = np.cumsum([0, *(each.rows for each in self.source.files)])
        first_of = {each.name: int(first) for each, first in zip(self.source.files, starts, strict=False)}
        firsts = {each.name: np.array([first_of[name] for name in each.files], np.int64) for each in segments}
        total = sum(each.rows for each in segments)
        random = np.random.default_rng(self.seed)
        chosen = np.sort(random.choice(total, min(QUERIES, total), replace=False))
        queries, own, start = [], [], 0
        for each in segments:
            places = chosen[(chosen >= start) & (chosen < start + each.rows)] - start
            start += each.rows
            if len(places):
                there = np.array(stored.load(f"{each.name}.sorted.npy")[places])
                queries.append(unit(np.asarray(stored.map(f"{each.name}.vectors")[places], np.float32)))
                own.append(firsts[each.name][there["file"]] + there["row"])
        self.phase.save(f"{prefix}.queries.npy", np.concatenate(queries))
        compare = Compare(stored, prefix, firsts, KNOWN + 1)
        self._phase("measure", compare, names, lambda name: self.phase.has(f"{prefix}-{name}.npy"), {})
        found = Measured.of(
            self.phase, prefix, names, np.concatenate(own), np.array(self.phase.load(centroids))
        )
        self.phase.save(measured, found.ranks)
        return measured


def _clear(folder: str, manifest: Manifest) -> None:
    """Remove what belongs to no part of the index any more: of what was read, and of an index before."""
    used = (*(f"{each.name}." for each in manifest.segments), manifest.centroids, manifest.measured)
    for path in Path(folder).iterdir():
        if _OURS.fullmatch(path.name) and not path.name.startswith(used):
            with suppress(OSError):
                path.unlink()
