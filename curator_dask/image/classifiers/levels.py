"""Clusters of clusters: centroids on several levels in a file, and which cluster each is of on the next level."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curator_dask.errors import ConfigError, WeightsError
from curator_dask.image.classifiers.centroids import ABOVE, TENSOR, VECTORS, read_centroids, unit_rows
from curator_dask.models.heads import entry_of, read_tensors
from curator_dask.outputs.placing import put
from curator_dask.settings import absolute

#: Of the tensor that says of which cluster of a level each one of the level below is, and of what else is said.
PARENTS, MADE = "parents", "made"
METADATA = "__metadata__"  # in the header of a safetensors


@dataclass(frozen=True)
class Levels:
    """Centroids on several levels, of which only the first is of vectors: those of the next are of these centroids.

    Attributes
    ----------
    centroids
        By level, the first first: float32 (number, dim), of length 1.
    parents
        int64 (number,), of each level but the last: the cluster of the next level that each of its clusters is of.
    info
        What made the vectors, as their record has it; None where nothing says it.
    made
        How they were found, JSON-able: by that the same command finds them again.
    """

    centroids: tuple[np.ndarray, ...]
    parents: tuple[np.ndarray, ...]
    info: Mapping[str, Any] | None = None
    made: Mapping[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.centroids)

    @property
    def numbers(self) -> tuple[int, ...]:
        """How many clusters each level has."""
        return tuple(map(len, self.centroids))

    def above(self, level: int) -> np.ndarray:
        """int64 (clusters of the first level,): the cluster of a level that each is in; the first level is 1.

        Raises
        ------
        ConfigError
            There is no such level.
        """
        if not 1 <= level <= len(self):
            raise ConfigError(f"level={level!r}: expected a level of the centroids, from 1 to {len(self)}")
        found = np.arange(len(self.centroids[0]))
        for parents in self.parents[: level - 1]:
            found = parents[found]
        return found

    def as_bytes(self) -> bytes:
        """The file that `save` writes: of the same centroids the same bytes."""
        from safetensors.numpy import save

        tensors = {TENSOR: self.centroids[0]}
        for level, (matrix, parents) in enumerate(zip(self.centroids[1:], self.parents, strict=True), 2):
            tensors[ABOVE.format(TENSOR, level)] = matrix
            tensors[ABOVE.format(PARENTS, level)] = parents.astype(np.int64)
        said = {VECTORS: self.info, MADE: self.made}
        texts = {
            key: json.dumps(dict(each), sort_keys=True) for key, each in said.items() if each is not None
        }
        return _in_order(bytes(save(tensors, texts)))

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


def read_levels(path: str | os.PathLike[str]) -> Levels:
    """The levels of a file; any other file that `read_centroids` takes has one.

    Raises
    ------
    WeightsError
        It cannot be read, or holds something else.
    """
    path = Path(path)
    first, info = read_centroids(path)
    tensors = {} if path.suffix == ".npy" else read_tensors(path)
    if len(tensors) < 2:
        return Levels((first,), (), info)
    centroids, parents = [first], []
    for level in range(2, 2 + len(tensors) // 2):
        names = [ABOVE.format(what, level) for what in (TENSOR, PARENTS)]
        if not {*names} <= {*tensors} or len(tensors) % 2 == 0:
            raise WeightsError(
                f"{path}: expected {' and '.join(names)} of level {level}, found {sorted(tensors)[:9]}"
            )
        matrix, of = unit_rows(tensors[names[0]].float().numpy(), path), tensors[names[1]].numpy()
        wide = matrix.shape[1] == first.shape[1] and of.shape == (len(centroids[-1]),)
        if not wide or of.dtype.kind != "i" or of.min() < 0 or of.max() >= len(matrix):
            raise WeightsError(
                f"{path}: {names[1]}: expected for each of {len(centroids[-1]):,} clusters the number of one of the"
                f" {len(matrix):,} above it, whose centroids have {first.shape[1]} values, found {of.dtype}"
                f" {list(of.shape)} and centroids {list(matrix.shape)}. Make it again (centroids --levels)"
            )
        centroids.append(matrix)
        parents.append(of.astype(np.int64))
    return Levels(tuple(centroids), tuple(parents), info)


def _in_order(file: bytes) -> bytes:
    """The same safetensors, its metadata by their names: it writes several in an order of chance."""
    size = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + size])
    if METADATA not in header:
        return file
    said = {METADATA: dict(sorted(header.pop(METADATA).items())), **header}
    text = json.dumps(said, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # numbers begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + file[8 + size :]


def made_of(path: str | os.PathLike[str]) -> Mapping[str, Any] | None:
    """How the centroids of a file were found; None where it does not say.

    Raises
    ------
    WeightsError
        It cannot be read.
    """
    read_centroids(path)  # says what is wrong with it
    return entry_of(Path(path), MADE)
