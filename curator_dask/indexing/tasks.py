"""What is done on workers to make an index: vectors are read, put in the order of clusters, and compared with some."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curator_dask.dedup.kmeans import decide
from curator_dask.dedup.nearest import NOWHERE, Best, compare
from curator_dask.dedup.phases import Phase
from curator_dask.dedup.products import Block, on_device, plain_products
from curator_dask.errors import OutputError
from curator_dask.frames.columns import unit
from curator_dask.indexing.contents import Content, key_digests
from curator_dask.indexing.manifest import Source
from curator_dask.outputs.vectors import FAULTS, vectors_of

#: Where a vector is from: number of the file among those of its segment, of the row in it, and digest of key and shard.
PLACE = np.dtype([("file", "<u4"), ("row", "<u4"), ("key", "<u8")])
#: Ends the name of the file of what tells other content of the files of a group.
CONTENTS = ".contents.npy"
#: Rows that are multiplied at once.
BLOCK = 8192


@dataclass(frozen=True)
class Stored:
    """Vectors of a segment that are on the disk.

    Attributes
    ----------
    phase
        The index's folder.
    dim, dtype
        Of the vectors.
    """

    phase: Phase
    dim: int
    dtype: str

    def map(self, name: str) -> np.ndarray:
        """(n, dim), mapped into memory, as they are stored."""
        path = self.phase.path(name)
        try:
            size = os.path.getsize(path)  # noqa: PTH202
        except OSError as error:
            raise OutputError(
                f"{path}: {error.strerror}. Remove {self.phase.folder}, and build the index again"
            ) from None
        rows = size // (np.dtype(self.dtype).itemsize * self.dim)
        if not rows:
            return np.zeros((0, self.dim), self.dtype)
        return np.memmap(path, self.dtype, "r", shape=(rows, self.dim))

    def load(self, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """An array, mapped into memory, of this shape where one is given; -1: of whatever length."""
        path = self.phase.path(name)
        try:
            array = self.phase.load(name)
        except (OSError, ValueError, EOFError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OutputError(
                f"{path}: {reason}. Remove {self.phase.folder}, and build the index again"
            ) from None
        if shape is not None and (
            array.ndim != len(shape)
            or any(wanted not in (-1, size) for wanted, size in zip(shape, array.shape, strict=True))
        ):
            raise OutputError(
                f"{path}: expected an array of shape {shape}, found {array.shape}: it is not the index's own. Remove"
                f" {self.phase.folder}, and build the index again"
            )
        return array

    def blocks(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """Unit vectors, float32, some at a time, with the number of the first."""
        vectors = self.map(name)
        for start in range(0, len(vectors), BLOCK):
            yield start, unit(np.asarray(vectors[start : start + BLOCK], np.float32))


@dataclass(frozen=True)
class Read:
    """Reads the vectors of some files of the output.

    Attributes
    ----------
    stored
        Where they go: ``NAME.raw``, ``NAME.places.npy``, and ``NAME.read.npy``, how many there are, and rows aside.
    source
        The output.
    groups
        By name, its files.
    """

    stored: Stored
    source: Source
    groups: dict[str, tuple[str, ...]]

    def make(self, name: str) -> int:
        """Read those of a group."""
        phase, every, parts, contents = self.stored.phase, Counter[str](), [np.zeros(0, PLACE)], []
        with phase.writing(f"{name}.raw") as out:
            for number, file in enumerate(self.groups[name]):
                path = self.source.path(file)
                goods, content, aside = [np.zeros(0, bool)], Content(), Counter[str]()
                for matrix, good in vectors_of(
                    path, self.source.options, self.source.column, self.stored.dim, aside, 4096
                ):
                    out.write(np.ascontiguousarray(matrix[good], self.stored.dtype))
                    content.add(matrix, good)
                    goods.append(good)
                good = np.concatenate(goods)
                places = np.zeros(int(good.sum()), PLACE)
                places["file"], places["row"] = number, np.flatnonzero(good)
                keys = key_digests(path, self.source.options)
                places["key"] = keys[good]
                contents.append(content.of(keys, aside))
                every += aside
                parts.append(places)
        whole = np.concatenate(parts)
        phase.save(f"{name}.places.npy", whole)
        phase.save(f"{name}{CONTENTS}", np.array(contents))
        phase.save(f"{name}.read.npy", np.array([len(whole), *(every[fault] for fault in FAULTS)]))
        return len(whole)


@dataclass(frozen=True)
class Sort:
    """Puts the vectors that were read in the order of clusters.

    Attributes
    ----------
    stored
        Where they are and go: ``NAME.vectors``, ``NAME.scales.npy`` (float32, one divided by their lengths),
        ``NAME.sorted.npy`` (`PLACE`), and last ``NAME.starts.npy``, where clusters begin and the last ends.
    centroids
        Name of their file.
    raw
        By name of the segment, that of the group that was read; its files go then.
    """

    stored: Stored
    centroids: str
    raw: dict[str, str]

    def make(self, name: str) -> int:
        """Sort those of a segment."""
        stored, phase, raw = self.stored, self.stored.phase, self.raw[name]
        centroids = np.array(stored.load(self.centroids))
        here = on_device(centroids)
        vectors = stored.map(f"{raw}.raw")
        labels = np.empty(len(vectors), np.int32)
        for start, block in stored.blocks(f"{raw}.raw"):
            labels[start : start + len(block)] = decide(block, centroids, plain_products(block, here))
        order = np.argsort(labels, kind="stable")
        scales = np.empty(len(vectors), np.float32)
        with phase.writing(f"{name}.vectors") as file:
            for start in range(0, len(order), BLOCK):
                some = np.asarray(vectors[order[start : start + BLOCK]])
                file.write(np.ascontiguousarray(some))
                lengths = np.linalg.norm(some.astype(np.float64), axis=1)
                with np.errstate(over="ignore"):
                    scales[start : start + BLOCK] = 1 / lengths
        phase.save(f"{name}.scales.npy", scales)
        phase.save(f"{name}.sorted.npy", stored.load(f"{raw}.places.npy")[order])
        counts = np.bincount(labels, minlength=len(centroids))
        phase.save(f"{name}.starts.npy", np.cumsum([0, *counts]))
        with suppress(OSError):
            Path(phase.path(f"{raw}.raw")).unlink()
        return len(labels)


@dataclass(frozen=True)
class Compare:
    """Finds the nearest rows of some queries in a segment, by comparing all.

    Attributes
    ----------
    stored
        Where they are; ``PREFIX.queries.npy`` is there, and ``PREFIX-NAME.npy`` is written: cosine, number of the row
        in the output and of its cluster, float64 (3, queries, top).
    prefix
        Of those files.
    firsts
        By segment, for each of its files the number of its first row in the output.
    top
        How many are found of each query.
    """

    stored: Stored
    prefix: str
    firsts: dict[str, np.ndarray]
    top: int

    def make(self, name: str) -> int:
        """Compare with a segment."""
        phase, stored = self.stored.phase, self.stored
        asked = Block(np.array(stored.load(f"{self.prefix}.queries.npy")))
        best = Best.none(len(asked.vectors), self.top)
        for start, block in stored.blocks(f"{name}.vectors"):
            compare(asked, Block(block), np.arange(start, start + len(block)), best)
        places, starts = stored.load(f"{name}.sorted.npy"), np.array(stored.load(f"{name}.starts.npy"))
        there = best.places != NOWHERE
        at = np.where(there, best.places, 0)
        clusters = np.searchsorted(starts, at, side="right") - 1
        found = (
            np.array(places[at.reshape(-1)]).reshape(at.shape) if len(places) else np.zeros(at.shape, PLACE)
        )
        numbers = self.firsts[name][found["file"]] + found["row"]
        numbers = np.where(there, numbers, -1)
        phase.save(
            f"{self.prefix}-{name}.npy", np.stack([best.cosines, numbers, clusters]).astype(np.float64)
        )
        return len(places)
