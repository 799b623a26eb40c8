"""Searching by an index: a few clusters are looked into, and what is found is decided as the exact search does."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from curator_dask.decode.spec import check_counts
from curator_dask.dedup.arguments import local_folder
from curator_dask.dedup.phases import Phase
from curator_dask.errors import ConfigError, OutputError
from curator_dask.frames.columns import unit
from curator_dask.frames.names import EMBEDDING_COLUMN, URL_COLUMN
from curator_dask.frames.parquet import read_footer
from curator_dask.indexing.building import build
from curator_dask.indexing.contents import digests_of
from curator_dask.indexing.manifest import Manifest, Segment, Source
from curator_dask.indexing.measuring import KNOWN, Measured, Recall
from curator_dask.indexing.tasks import Stored
from curator_dask.outputs.nearest import Hit, VectorFiles
from curator_dask.outputs.passing import Passing
from curator_dask.outputs.ranking import Ranked, exact_cosines, may_be_best
from curator_dask.outputs.rows_at import rows_at
from curator_dask.rows.best import is_number
from curator_dask.rows.where import Where
from curator_dask.storage import Options
from curator_dask.threads import in_threads

#: What share of the nearest rows is to be found, at least, unless another is given.
RECALL = 0.99
_BLOCK = 1 << 16  # rows that are multiplied at once
_LARGEST = 1e30  # one divided by the length of a vector whose products are precise
_FEW = 100_000  # rows that pass a condition and are all compared
_CONDITIONS = 4  # of which it is remembered which rows pass


class VectorIndex:
    """An index of an output's vectors, which `build` has made.

    Vectors are mapped into memory, not read: what a search looks into the system reads, and keeps as long as there is
    room.

    Parameters
    ----------
    folder
        Of the index.
    embeddings
        Path or URL of the output, where it lies elsewhere than when the index was made.
    storage_options
        For fsspec, where the output is a URL.

    Attributes
    ----------
    manifest
        What it is of.

    Raises
    ------
    OutputError
        There is no finished index, or files of the output were added, changed or removed since it was made.
    """

    build = staticmethod(build)

    def __init__(
        self,
        folder: str | os.PathLike[str],
        embeddings: str | os.PathLike[str] | None = None,
        storage_options: Options = None,
    ) -> None:
        self.folder = local_folder("folder", folder)
        found = Manifest.read(self.folder)
        if found is None:
            raise OutputError(
                f"{self.folder}: has no finished index. Make it, or finish it, by VectorIndex.build, or by"
                " curator-dask search EMBEDDINGS … --index FOLDER"
            )
        self.manifest = found
        source = Source.find(
            os.fspath(embeddings or found.embeddings), found.column, storage_options, found.files
        )
        differs = source.differences(found)
        if differs:
            raise OutputError(
                f"{self.folder}: does not fit {source.folder} any more: {differs} since the index was made. Make it fit"
                " again by VectorIndex.build, or by curator-dask search EMBEDDINGS … --index FOLDER: what has not"
                " changed is kept"
            )
        self._source = source
        paths = [source.path(each.name) for each in found.files]
        footers = in_threads(lambda path: read_footer(path, storage_options), paths)
        records = {path: footer.record for path, footer in zip(paths, footers, strict=True)}
        self.files = VectorFiles(records, found.column, storage_options)
        phase = Phase(self.folder)
        self._stored = Stored(phase, found.dim, found.dtype)
        self._centroids = np.array(self._stored.load(found.centroids, (found.clusters, found.dim)))
        self._measured = Measured(np.array(self._stored.load(found.measured, (-1, KNOWN))), found.clusters)
        number_of = {each.name: number for number, each in enumerate(found.files)}
        self._parts = [_Part.of(self._stored, each, number_of, found.clusters) for each in found.segments]
        self._conditions: OrderedDict[str, _Masks] = OrderedDict()

    @property
    def embeddings(self) -> str:
        """Path or URL of the output, where it is now."""
        return self._source.folder

    def __len__(self) -> int:
        return self.manifest.vectors

    def __str__(self) -> str:
        aside = "".join(f", {count:,} {fault}" for fault, count in self.manifest.aside.items())
        return f"{self.folder}: {len(self):,} vectors{aside}; {self.recall()}"

    def recall(self, top: int = 24, wanted: float = RECALL) -> Recall:
        """How many clusters a search looks into, and what it finds so, as measured when the index was made.

        Parameters
        ----------
        top
            How many rows are looked for.
        wanted
            Share of the nearest that is to be found, above 0; 1: all clusters are looked into.
        """
        check_counts(top=top)
        if not is_number(wanted) or not 0 < wanted <= 1:
            raise ConfigError(f"recall={wanted!r}: expected a share, above 0 and up to 1")
        return self._measured.enough(top, float(wanted))

    def search(
        self,
        vectors: Any,
        top: int = 24,
        where: str | None = None,
        recall: float = RECALL,
    ) -> list[list[Hit]]:
        """The nearest rows of each vector, the nearest first; of equal ones the first in the files.

        Parameters
        ----------
        vectors
            float (n, dim) or (dim,); their lengths do not matter.
        top
            How many rows of each, at most.
        where
            Condition that they pass, as of `filter`. Few that do are all compared; of many, more clusters are looked
            into, until about as many rows were compared as without a condition.
        recall
            Share of the nearest that is to be found; see `recall`.

        Returns
        -------
        list
            Of hits, for each vector.

        Raises
        ------
        ConfigError
            Vectors have another length or no direction, or the condition does not fit.
        OutputError
            A file of the output was changed in the meantime.
        """
        try:
            with np.errstate(over="ignore"):
                asked = np.atleast_2d(np.asarray(vectors, np.float32))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"expected vectors of numbers, (n, dim) or (dim,): {error}") from None
        if asked.ndim != 2:
            raise ConfigError(
                f"expected vectors (n, dim) or (dim,), found an array of {asked.ndim} dimensions"
            )
        passing = None if where is None else self.passing(where)
        directions = unit(asked)
        found = []
        for direction in directions:
            if not np.isfinite(direction).all() or not direction.any():
                raise ConfigError("a vector that is looked for is zero or not finite: nothing is near it")
            found.append(self.hits(self.ranked(direction, "the vector", top, passing, recall)))
        return found

    def passing(self, where: str) -> Passing:
        """The rows that pass a condition; those of the last few are remembered.

        Raises
        ------
        ConfigError
            The condition does not fit.
        """
        known = self._conditions.get(where)
        return Passing.of(self.files, Where(where)) if known is None else known.passing

    def ranked(
        self,
        vector: np.ndarray,
        of: str,
        top: int,
        passing: Passing | None = None,
        recall: float = RECALL,
    ) -> Ranked:
        """The nearest rows as numbers of files, in the order of `files`, and of rows in these.

        Parameters
        ----------
        vector
            float32 (dim,), of length 1.
        of
            What it is of, for errors.
        top, recall
            See `search`.
        passing
            Rows among which they are; None: all.
        """
        if len(vector) != self.manifest.dim:
            raise ConfigError(
                f"{self.folder}: has vectors of {self.manifest.dim} values, {of} has one of {len(vector)}: expected"
                " both from one model"
            )
        probes = self.recall(top, recall).probes
        best, masks = Ranked(top), None
        if passing is not None:
            masks = self._masks(passing)
            share = masks.count / max(1, len(self))
            least = max(_FEW, 4 * len(self) * probes // self.manifest.clusters)
            every = masks.count <= least
            probes = self.manifest.clusters if every else min(self.manifest.clusters, round(probes / share))
        nearest = np.argsort(-(self._centroids @ vector), kind="stable")[:probes]
        wanted = np.zeros(self.manifest.clusters, bool)
        wanted[nearest] = True
        for number, part in enumerate(self._parts):
            part.look(best, vector, wanted, None if masks is None else masks.parts[number])
        return best

    def hits(self, ranked: Ranked) -> list[Hit]:
        """The rows of a ranking, read from the files, after it was seen that they are those of the index."""
        self._check(ranked)
        return self.files.hits(ranked)

    def _check(self, ranked: Ranked) -> None:
        """Raise OutputError where a row is not the one that was indexed: its file was written anew meanwhile."""
        paths = list(self.files.records)
        for file in np.unique(ranked.files).tolist():
            rows = ranked.rows[ranked.files == file]
            path, id_col = paths[file], self.files.id_col(paths[file])
            table = rows_at(path, rows, [id_col, URL_COLUMN], self.files.options, beside=False)
            if not (digests_of(table.to_batches()[0], id_col) == self._digests(file, rows)).all():
                raise OutputError(
                    f"{path}: its rows are not those that were indexed: it was written anew in the meantime. Make the"
                    " index fit again: the same command, or VectorIndex.build"
                )

    def _digests(self, file: int, rows: np.ndarray) -> np.ndarray:
        part, number = next(
            (part, int(np.flatnonzero(part.files == file)[0])) for part in self._parts if file in part.files
        )
        return part.digests(number, rows)

    def _masks(self, passing: Passing) -> _Masks:
        """Which rows of each segment pass."""
        known = self._conditions.get(passing.text)
        if known is None or known.passing is not passing:
            masks = list(passing.masks.values())
            parts = [part.mask(masks) for part in self._parts]
            known = _Masks(passing, parts, sum(int(each.sum()) for each in parts))
            self._conditions[passing.text] = known
            while len(self._conditions) > _CONDITIONS:
                self._conditions.popitem(last=False)
        return known


@dataclass(frozen=True)
class _Masks:
    """Bool of each vector of each segment: its row passes."""

    passing: Passing
    parts: Sequence[np.ndarray]
    count: int


@dataclass
class _Part:
    """A segment, mapped into memory.

    Attributes
    ----------
    vectors
        (n, dim), in the order of clusters.
    scales
        float32 (n,): one divided by their lengths.
    places
        `curator_dask.indexing.tasks.PLACE` of each.
    starts
        int64 (clusters + 1,).
    files
        int64: of each of its files, the number among all.
    """

    vectors: np.ndarray
    scales: np.ndarray
    places: np.ndarray
    starts: np.ndarray
    files: np.ndarray

    @classmethod
    def of(cls, stored: Stored, segment: Segment, number_of: Mapping[str, int], clusters: int) -> _Part:
        phase, name = stored.phase, segment.name
        vectors = stored.map(f"{name}.vectors")
        if len(vectors) != segment.rows:
            raise OutputError(
                f"{phase.path(name)}.vectors: has {len(vectors)} vectors, {segment.rows} were written: it was cut"
                f" short. Remove {phase.folder}, and build the index again"
            )
        files = np.array([number_of[each] for each in segment.files], np.int64)
        scales, places = (stored.load(f"{name}.{what}.npy", (segment.rows,)) for what in ("scales", "sorted"))
        starts = np.array(stored.load(f"{name}.starts.npy", (clusters + 1,)))
        return cls(vectors, scales, places, starts, files)

    def look(self, best: Ranked, vector: np.ndarray, wanted: np.ndarray, mask: np.ndarray | None) -> None:
        """Take into the best rows those of some clusters, which may be among them."""
        edges = np.flatnonzero(np.diff(np.concatenate([[False], wanted, [False]]).astype(np.int8)))
        for first, last in edges.reshape(-1, 2).tolist():
            for start in range(int(self.starts[first]), int(self.starts[last]), _BLOCK):
                stop = min(start + _BLOCK, int(self.starts[last]))
                if mask is None:
                    self._rank(best, vector, slice(start, stop), np.arange(start, stop))
                elif (places := start + np.flatnonzero(mask[start:stop])).size:
                    most = 2 * len(places) > stop - start
                    self._rank(best, vector, slice(start, stop) if most else places, places)

    def _rank(self, best: Ranked, vector: np.ndarray, read: slice | np.ndarray, places: np.ndarray) -> None:
        vectors, scales = np.asarray(self.vectors[read], np.float32), np.asarray(self.scales[read])
        with np.errstate(over="ignore", invalid="ignore"):
            fast = vectors @ vector * scales
        odd = np.flatnonzero(~np.isfinite(fast) | (scales > _LARGEST))
        if len(odd):  # of vectors near the ends of float32's range
            fast[odd] = unit(vectors[odd]) @ vector
        if isinstance(read, slice) and len(places) < len(fast):
            fast = fast[places - read.start]
        some = places[may_be_best(fast, best.top, best.least)]
        if len(some):
            rows = unit(np.asarray(self.vectors[some], np.float32))
            at = self.places[some]
            best.add(exact_cosines(rows, vector), self.files[at["file"]], at["row"].astype(np.int64))

    def mask(self, masks: Sequence[np.ndarray]) -> np.ndarray:
        """Bool (n,): which vectors are of rows that pass, given those of each file."""
        found = np.zeros(len(self.places), bool)
        at, rows = np.asarray(self.places["file"]), np.asarray(self.places["row"])
        for number, file in enumerate(self.files.tolist()):
            own = np.flatnonzero(at == number)
            found[own] = masks[file][rows[own]]
        return found

    def digests(self, number: int, rows: np.ndarray) -> np.ndarray:
        """uint64 (n,): of keys and shards of rows of one of its files."""
        files, order = self._by_row
        first = np.searchsorted(files, number)
        of_file = order[first : np.searchsorted(files, number, side="right")]
        at = of_file[np.searchsorted(self.places["row"][of_file], rows)]
        return np.asarray(self.places["key"][at])

    @cached_property
    def _by_row(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.lexsort((self.places["row"], self.places["file"]))
        return np.asarray(self.places["file"])[order], order


def open_index(
    embeddings: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    column: str = EMBEDDING_COLUMN,
    storage_options: Options = None,
    workers: Any = None,
) -> VectorIndex:
    """The index of an output in a folder: it is made, or made to fit again, if need be. See `build`."""
    more = {} if workers is None else {"workers": workers}
    build(embeddings, folder, column=column, storage_options=storage_options, **more)
    return VectorIndex(folder, embeddings, storage_options)
