"""Hierarchical k-means: clusters of vectors, clusters of their centroids, and so on, each level spread evenly.

Vo et al. 2024, "Automatic Data Curation for Self-Supervised Learning: A Clustering-Based Approach" (arXiv 2405.15613):
k-means makes the more clusters of a thing, the more often it is there. So on each level clusters are made again of the
few points of each cluster that are nearest to its centroid, several times: centroids then lie where there is something,
however much of it.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import numbers
import os
import posixpath
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from curator_dask.dedup.kmeans import SAMPLE, Sample, cluster, decide
from curator_dask.dedup.products import exact_dots, on_device, plain_products
from curator_dask.errors import ConfigError, OutputError
from curator_dask.frames.columns import unit
from curator_dask.frames.names import EMBEDDING_COLUMN, URL_COLUMN
from curator_dask.frames.parquet import read_footer
from curator_dask.image.classifiers.levels import Levels
from curator_dask.image.classifiers.origins import one_origin
from curator_dask.outputs.choosing import read_rows
from curator_dask.outputs.nearest import VectorFiles
from curator_dask.outputs.rows_at import rows_at
from curator_dask.rows.best import is_number
from curator_dask.rows.draws import row_digests, text_digests
from curator_dask.storage import Options
from curator_dask.threads import in_threads
from curator_dask.words import counted

logger = logging.getLogger("curator_dask")

_ITERATIONS, _LEAST, _FIRST = 20, 1e-4, 8192  # those of `curator_dask.dedup.kmeans.Cluster`
_PRODUCTS = 1 << 25  # that are made at a time
_FILES = 64  # whose keys are looked at at a time
_QUIET = 10  # seconds


@dataclass(frozen=True)
class Level:
    """What was found on a level.

    Attributes
    ----------
    points
        What was clustered: vectors, or centroids of the level below.
    sizes
        int64 (clusters,): how many of these each has.
    steps, taken
        How often clusters were made again, and of how many points each at most.
    """

    points: int
    sizes: np.ndarray
    steps: int
    taken: int

    def __str__(self) -> str:
        empty = int((self.sizes == 0).sum())
        again = f", made again {self.steps} times of {self.taken} each" if self.steps else ""
        return (
            f"{counted(len(self.sizes), 'cluster')} of {self.points:,}{again}: {int(self.sizes.min()):,} to"
            f" {int(self.sizes.max()):,} each, half of them at most {int(np.median(self.sizes)):,}"
            + (f"; {empty:,} are empty" if empty else "")
        )


@dataclass(frozen=True)
class Hierarchy:
    """Levels that were found, and how.

    Attributes
    ----------
    levels
        The centroids.
    found
        By level, the first first.
    rows, sample
        Of the output, and vectors of them that the first level is of.
    """

    levels: Levels
    found: tuple[Level, ...]
    rows: int
    sample: int

    def __str__(self) -> str:
        lines = [
            f"{counted(len(self.found), 'level')} of {self.sample:,} vectors of {counted(self.rows, 'row')}"
        ]
        return "\n".join(
            [*lines, *(f"  level {number}: {each}" for number, each in enumerate(self.found, 1))]
        )


@dataclass(frozen=True)
class Drawn:
    """Vectors that were drawn of an output, and what is to be made of them.

    Attributes
    ----------
    vectors
        float32 (n, dim), of length 1, in the order of the draw.
    rows
        Of the output.
    info
        What made the vectors; None where nothing says it.
    numbers, resampling, seed
        See `find_hierarchy`.
    """

    vectors: np.ndarray
    rows: int
    info: Any
    numbers: tuple[int, ...]
    resampling: tuple[int, ...]
    seed: int

    @classmethod
    def of(
        cls,
        path: str | os.PathLike[str],
        levels: Sequence[int],
        *,
        resampling: int | Sequence[int] = 10,
        column: str = EMBEDDING_COLUMN,
        seed: int = 0,
        storage_options: Options = None,
    ) -> Drawn:
        """Draw them; see `find_hierarchy`."""
        steps = _checked(levels, resampling, seed)
        files = VectorFiles.find(path, column, storage_options)
        info = one_origin(column, files.records).info()
        vectors, rows = _drawn(files, SAMPLE * levels[0], seed)
        if len(vectors) < levels[0]:
            raise ConfigError(
                f"{path}: has {len(vectors):,} vectors that can be compared, fewer than {levels[0]:,} clusters"
            )
        return cls(vectors, rows, info, tuple(levels), steps, int(seed))

    @property
    def made(self) -> dict[str, Any]:
        """What decides the centroids."""
        content = hashlib.sha256(np.ascontiguousarray(self.vectors, "<f4").data).hexdigest()
        how = {"levels": list(self.numbers), "resampling": list(self.resampling), "seed": self.seed}
        return {**how, "vectors": content, "version": 1}

    def cluster(self) -> Hierarchy:
        """Find the clusters of all levels; what is done is told by the log."""
        points, centroids, parents, found = self.vectors, [], [], []
        for level, (number, steps) in enumerate(zip(self.numbers, self.resampling, strict=True), 1):
            matrix, labels, said = _level(points, number, steps, self.seed, level)
            centroids.append(matrix)
            parents.append(labels)
            found.append(said)
            points = matrix
        levels = Levels(tuple(centroids), tuple(parents[1:]), self.info, self.made)
        return Hierarchy(levels, tuple(found), self.rows, len(self.vectors))


def find_hierarchy(
    path: str | os.PathLike[str],
    levels: Sequence[int],
    *,
    resampling: int | Sequence[int] = 10,
    column: str = EMBEDDING_COLUMN,
    seed: int = 0,
    storage_options: Options = None,
) -> Hierarchy:
    """Cluster the vectors of an output by spherical k-means, then the centroids, and so on, in this process.

    The first level is of a sample of 64 vectors a cluster, or all that there are: 4 bytes a value are held. It is drawn
    by digests of rows' keys and the names of their shards (of files without keys, by their names and rows' numbers), so
    that files, their order and workers play no part. After k-means a level is made again, some times: of each
    cluster the points that are nearest to its centroid, half as many as a cluster has on average, are clustered from
    the beginning, and all points go to the nearest of the new centroids (Vo et al. 2024, arXiv 2405.15613).

    Parameters
    ----------
    path
        What `save_metadata` or ``curator-dask embed`` wrote, or other Parquet files with lists of float32.
    levels
        Numbers of clusters, the first level first, each smaller than the one before.
    resampling
        How often levels are made again: 10, as in the paper; or a number for each level. 0: never. A level of two
        points a cluster or fewer never is.
    column
        Of the vectors.
    seed
        Of what is picked by chance.
    storage_options
        For fsspec, where `path` is a URL.

    Raises
    ------
    ConfigError
        An argument has a value that it cannot have, or there are not as many vectors.
    DatasetError
        They are of several models.
    OutputError
        There are none.
    """
    how: dict[str, Any] = {"resampling": resampling, "column": column, "seed": seed}
    return Drawn.of(path, levels, **how, storage_options=storage_options).cluster()


def _checked(levels: Any, resampling: Any, seed: Any) -> tuple[int, ...]:
    """How often each level is made again."""

    def whole(value: Any, least: int) -> bool:
        return is_number(value, numbers.Integral) and value >= least

    good = isinstance(levels, Sequence) and not isinstance(levels, str) and len(levels) > 0
    falling = good and all(whole(each, 1) for each in levels)
    if not falling or any(above >= below for below, above in itertools.pairwise(levels)):
        raise ConfigError(
            f"levels={levels!r}: expected numbers of clusters, the first level's first and each smaller than the one"
            " before, such as 10000,1000,100"
        )
    steps = [resampling] * len(levels) if is_number(resampling) else resampling
    if (
        not isinstance(steps, Sequence)
        or len(steps) != len(levels)
        or not all(whole(each, 0) for each in steps)
    ):
        raise ConfigError(
            f"resampling={resampling!r}: expected a whole number of at least 0, or one for each of"
            f" {counted(len(levels), 'level')}"
        )
    if not whole(seed, 0):
        raise ConfigError(f"seed={seed!r}: expected a whole number of at least 0")
    return tuple(int(each) for each in steps)


def _digests(files: VectorFiles, path: str, seed: int) -> np.ndarray:
    """uint64 (rows,): by which the rows of a file are drawn."""
    footer, id_col = read_footer(path, files.options), files.id_col(path)
    if id_col not in footer.columns:
        name = posixpath.basename(path)
        return text_digests(f"{seed}\0{name}\0{row}" for row in range(footer.rows))
    names = [each for each in (id_col, URL_COLUMN) if each in footer.columns]
    return row_digests(read_rows(path, files.options, names), id_col, seed)


def _drawn(files: VectorFiles, size: int, seed: int) -> tuple[np.ndarray, int]:
    """float32 (at most `size`, dim), vectors of the rows that are first in the draw; and how many rows there are."""
    paths = list(files.records)
    wanted = size + size // 8 + 64  # some rows have no vector
    while True:
        least, rows = np.zeros(0, np.uint64), 0
        for start in range(0, len(paths), _FILES):
            some = in_threads(lambda path: _digests(files, path, seed), paths[start : start + _FILES])
            rows += sum(map(len, some))
            least = np.concatenate([least, *some])
            if len(least) > wanted:
                least = np.partition(least, wanted - 1)[:wanted]
        last = least.max() if rows > wanted else np.uint64(2**64 - 1)
        look = partial(_first_rows, files, seed=seed, last=last)
        found = [each for each in in_threads(look, paths) if len(each[0])]
        if sum(len(each[0]) for each in found) >= size or rows <= wanted:
            break
        wanted *= 4
    if not found:
        return np.zeros((0, 1), np.float32), rows
    if len(widths := {each[1].shape[1] for each in found}) > 1:
        raise OutputError(
            f"{paths[0]}: {files.column!r} has vectors of {sorted(widths)} values in {counted(len(paths), 'file')}:"
            " expected those of one model"
        )
    digests, vectors = (np.concatenate(each) for each in zip(*found, strict=True))
    order = np.argsort(digests, kind="stable")
    if (np.diff(digests[order]) == 0).any():  # rows of one key and shard are in the order of their vectors
        texts = np.array([hashlib.blake2b(each.tobytes(), digest_size=8).digest() for each in vectors])
        order = np.lexsort((texts.view("<u8"), digests))
    return vectors[order[:size]], rows


def _first_rows(files: VectorFiles, path: str, seed: int, last: np.uint64) -> tuple[np.ndarray, np.ndarray]:
    """Digests, and vectors of length 1, of the rows of a file up to a digest that have some."""
    digests = _digests(files, path, seed)
    rows = np.flatnonzero(digests <= last)
    if not len(rows):
        return digests[:0], np.zeros((0, 1), np.float32)
    table = rows_at(path, rows, [files.column], files.options, beside=False).combine_chunks()
    matrix, valid = files.matrix(path, table.to_batches()[0])
    vectors = unit(matrix)
    good = valid & np.isfinite(vectors).all(1) & vectors.any(1)
    return digests[rows][good], vectors[good]


def _level(
    points: np.ndarray, number: int, steps: int, seed: int, level: int
) -> tuple[np.ndarray, np.ndarray, Level]:
    """Of a level the centroids, which of them each point is nearest to, and what was found."""
    heard = time.monotonic()

    def centroids_of(some: np.ndarray, step: int) -> np.ndarray:
        own = int(np.random.SeedSequence([seed, level, step]).generate_state(1)[0])
        block = max(64, min(4096, _PRODUCTS // number))
        sample = Sample(len(some), some.shape[1], some.__getitem__, block)
        return cluster(sample, number, _ITERATIONS, own, _LEAST, _FIRST)[0]

    centroids = centroids_of(points, 0)
    labels, cosines = _nearest(points, centroids)
    taken = -(-len(points) // number // 2)
    done = 0
    for step in range(1, steps + 1 if taken > 1 else 1):
        if (now := time.monotonic()) - heard > _QUIET:
            heard = now
            logger.info("level %d: clusters were made again %d of %d times", level, step - 1, steps)
        some = nearest_of_each(labels, cosines, taken)
        if len(some) < number:
            break
        centroids = centroids_of(points[some], step)
        labels, cosines = _nearest(points, centroids)
        done = step
    found = Level(len(points), np.bincount(labels, minlength=number), done, taken if done else 0)
    logger.info("level %d: %s", level, found)
    return centroids, labels, found


def _nearest(points: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64 (n,), the nearest centroid of each point, and float64 (n,), their cosine."""
    here, block = on_device(centroids), max(64, min(4096, _PRODUCTS // len(centroids)))
    labels, cosines = np.empty(len(points), np.int64), np.empty(len(points))
    for start in range(0, len(points), block):
        some = np.ascontiguousarray(points[start : start + block])
        of = decide(some, centroids, plain_products(some, here))
        labels[start : start + block] = of
        cosines[start : start + block] = exact_dots(some, centroids[of])
    return labels, cosines


def nearest_of_each(labels: np.ndarray, cosines: np.ndarray, taken: int) -> np.ndarray:
    """int64, ascending: of each cluster the points that are nearest to its centroid, at most so many.

    Parameters
    ----------
    labels, cosines
        Of each point its cluster, and the cosine with its centroid.
    taken
        Of each cluster, at most; of equal cosines the first points.
    """
    order = np.lexsort((-cosines, labels))
    of = labels[order]
    place = np.arange(len(of)) - np.searchsorted(of, of)
    return np.sort(order[place < taken])
