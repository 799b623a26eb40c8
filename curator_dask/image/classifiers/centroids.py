"""Centroids of an output's vectors in a file: by them each image gets the number of its cluster."""

from __future__ import annotations

import json
import numbers
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curator_dask.decode.spec import check_counts
from curator_dask.dedup.kmeans import SAMPLE, Sample, cluster
from curator_dask.errors import ConfigError, WeightsError
from curator_dask.frames.columns import unit
from curator_dask.frames.names import EMBEDDING_COLUMN
from curator_dask.image.classifiers.origins import one_origin
from curator_dask.models.heads import entry_of, read_tensors
from curator_dask.outputs.nearest import VectorFiles
from curator_dask.outputs.placing import put
from curator_dask.rows.best import is_number
from curator_dask.settings import absolute
from curator_dask.storage import Options

#: The tensor in the file, and what its metadata has: JSON of what made the vectors, as their record says it.
TENSOR, VECTORS = "centroids", "vectors"
#: Of a tensor of a level above the first, which is in a file of several (`curator_dask.image.classifiers.levels`).
ABOVE = "{}_{}"
_BLOCK = 4096  # rows of the sample that are looked at at a time
_ITERATIONS, _LEAST, _FIRST = 20, 1e-4, 8192  # those of `curator_dask.dedup.kmeans.Cluster`


@dataclass(frozen=True)
class Centroids:
    """What was found.

    Attributes
    ----------
    centroids
        Float32 (number, dim), of length 1.
    info
        What made the vectors, as their record has it (`EncoderInfo`); None where nothing says it.
    vectors, sample
        How many there are, and how many of these the centroids are of.
    iterations, settled
        Of k-means, and whether they were enough.
    """

    centroids: np.ndarray
    info: Mapping[str, Any] | None
    vectors: int
    sample: int
    iterations: int
    settled: bool

    def __str__(self) -> str:
        enough = "" if self.settled else ", and more would still change them"
        return (
            f"{len(self.centroids):,} centroids of {self.sample:,} of {self.vectors:,} vectors,"
            f" {self.iterations} iterations{enough}"
        )

    def as_bytes(self) -> bytes:
        """The file that `save` writes: of the same centroids of the same model's vectors the same bytes."""
        from safetensors.numpy import save

        said = {} if self.info is None else {VECTORS: json.dumps(dict(self.info), sort_keys=True)}
        return bytes(save({TENSOR: self.centroids}, said))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write them as ``.safetensors``, whole or not at all.

        Raises
        ------
        ConfigError
            It is a URL.
        OutputError
            It cannot be written.
        """
        put(os.fspath(absolute(path)), self.as_bytes(), None)


def find_centroids(
    path: str | os.PathLike[str],
    number: int,
    *,
    column: str = EMBEDDING_COLUMN,
    seed: int = 0,
    storage_options: Options = None,
) -> Centroids:
    """Cluster the vectors of an output by spherical k-means, on a sample of 64 vectors a cluster, in this process.

    The same files, number and seed give the same centroids. The sample is held in memory, 4 bytes a value.

    Parameters
    ----------
    path
        What `save_metadata` or ``curator-dask embed`` wrote, or other Parquet files with lists of float32.
    number
        Of clusters.
    column
        Of the vectors.
    seed
        Of what is picked by chance.
    storage_options
        For fsspec, where `path` is a URL.

    Raises
    ------
    ConfigError
        There are not as many vectors.
    DatasetError
        They are of several models.
    OutputError
        There are none.
    """
    check_counts(number=number)
    if not is_number(seed, numbers.Integral) or seed < 0:
        raise ConfigError(f"seed={seed!r}: expected a whole number of at least 0")
    files = VectorFiles.find(path, column, storage_options)
    info = one_origin(column, files.records).info()
    total = sum(map(len, files.directions()))
    if total < number:
        raise ConfigError(
            f"{path}: has {total:,} vectors that can be compared, fewer than {number:,} clusters"
        )
    random = np.random.default_rng(seed)
    size = min(total, SAMPLE * number)
    chosen = np.sort(random.choice(total, size, replace=False))
    parts, start = [], 0
    for block in files.directions():
        first, last = np.searchsorted(chosen, [start, start + len(block)])
        parts.append(block[chosen[first:last] - start])
        start += len(block)
    vectors = np.concatenate(parts)
    sample = Sample(size, vectors.shape[1], vectors.__getitem__, _BLOCK)
    centroids, said = cluster(sample, number, _ITERATIONS, seed, _LEAST, _FIRST)
    return Centroids(centroids, info, total, size, int(said[0]), bool(said[1]))


def read_centroids(path: str | os.PathLike[str]) -> tuple[np.ndarray, Mapping[str, Any] | None]:
    """Centroids of a file, of length 1, and what made the vectors that they are of; None where it does not say.

    Of a file of several levels they are those of the first, which vectors are compared with.

    Parameters
    ----------
    path
        What `Centroids.save` wrote, another ``.safetensors`` or PyTorch file with one matrix, or an ``.npy``.

    Raises
    ------
    WeightsError
        It cannot be read, or holds something else.
    """
    path = Path(path)
    info: Mapping[str, Any] | None = None
    if path.suffix == ".npy":
        try:
            found = np.load(path, allow_pickle=False)
            if not isinstance(found, np.ndarray):
                raise ValueError("it holds several")
        except (OSError, ValueError, EOFError) as error:
            raise WeightsError(f"{path}: cannot be read as a matrix of centroids: {error}") from error
    else:
        tensors = read_tensors(path)
        if len(tensors) != 1 and not set(tensors) >= {TENSOR, ABOVE.format(TENSOR, 2)}:
            raise WeightsError(f"{path}: expected one matrix of centroids, found {sorted(tensors)[:5]}")
        found = tensors[TENSOR if len(tensors) > 1 else next(iter(tensors))].float().numpy()
        info = entry_of(path, VECTORS)
    return unit_rows(found, path), info


def unit_rows(found: np.ndarray, path: str | os.PathLike[str]) -> np.ndarray:
    """float32 (number, dim): centroids of a file, of length 1.

    Raises
    ------
    WeightsError
        They are no matrix of numbers, or one has no direction.
    """
    if found.ndim != 2 or not found.size or found.dtype.kind != "f" or not np.isfinite(found).all():
        raise WeightsError(
            f"{path}: expected a matrix of finite numbers, a centroid a row, found {found.dtype}"
            f" {list(found.shape)}"
        )
    largest = np.abs(found).max(axis=1, keepdims=True)  # float32 has not all that float64 has
    if not largest.all():
        raise WeightsError(
            f"{path}: centroid {int(largest[:, 0].argmin())} is of zeros, and has no direction. Leave it out"
        )
    return unit((found / largest).astype(np.float32))
