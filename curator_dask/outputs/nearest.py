"""Rows of an output whose vectors are nearest to another: the searches by a text and by an image end here."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.errors import ConfigError, OutputError
from curator_dask.frames.columns import list_to_matrix, unit
from curator_dask.frames.names import CAPTION_COLUMN, URL_COLUMN
from curator_dask.frames.parquet import open_parquet, read_footer
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.failed import output_files
from curator_dask.outputs.placing import locate
from curator_dask.storage import Options, join
from curator_dask.threads import in_threads

_BLOCK = 8192  # rows that are read at once


@dataclass(frozen=True)
class Hit:
    """An image that was found.

    Attributes
    ----------
    score
        Cosine of its vector and the one that was given.
    key, url
        Of the row: its key, and its shard; None where the files do not say that.
    caption
        Where the files have one.
    """

    score: float
    key: Any
    url: str | None
    caption: str | None


@dataclass(frozen=True)
class VectorFiles:
    """Files with a column of vectors.

    Attributes
    ----------
    records
        What made each, by path; None where it does not say.
    column
        Of the vectors.
    options
        For fsspec, where they are URLs.
    """

    records: Mapping[str, FileRecord | None]
    column: str
    options: Options = None

    @classmethod
    def find(cls, path: str | os.PathLike[str], column: str, options: Options) -> VectorFiles:
        """Those of an output.

        Raises
        ------
        OutputError
            There are none, or one has no such column.
        """
        folder = locate(os.fspath(path), options)
        paths = [join(folder, name) for name in output_files(folder, options)]
        if not paths:
            raise OutputError(f"{path}: no Parquet file is there. Give the folder that embed wrote to")
        footers = in_threads(lambda each: read_footer(each, options), paths)
        for file, footer in zip(paths, footers, strict=True):
            if column not in footer.columns:
                raise OutputError(
                    f"{file}: has no column {column!r} of vectors; it has {footer.columns}. Give the name of theirs"
                    " (--column)"
                )
        return cls(
            {file: footer.record for file, footer in zip(paths, footers, strict=True)}, column, options
        )

    def nearest(self, vector: np.ndarray, of: str, top: int) -> list[Hit]:
        """The rows that are nearest, the nearest first; of equal ones the first in the files.

        Every vector is compared. Files are read in blocks of rows: memory does not grow with them.

        Parameters
        ----------
        vector
            Float32 (dim,), of length 1.
        of
            What it is of, for errors.
        top
            How many, at most.

        Raises
        ------
        ConfigError
            Vectors have another length.
        OutputError
            A file has no keys, or no vectors in this column.
        """
        best: list[Hit] = []
        for file in self.records:
            best = self._nearest(best, file, vector, of, top)
        return best

    def _nearest(self, best: list[Hit], path: str, vector: np.ndarray, of: str, top: int) -> list[Hit]:
        """The best of those that are known and of the rows of a file."""
        id_col = self._id_col(path)
        for batch in self._blocks(path, [id_col, URL_COLUMN, CAPTION_COLUMN, self.column]):
            matrix, valid = self._matrix(path, batch)
            if not valid.any():
                continue
            if matrix.shape[1] != len(vector):
                raise ConfigError(
                    f"{path}: {self.column!r} has vectors of {matrix.shape[1]} values, {of} has one of"
                    f" {len(vector)}: expected both from one model"
                )
            scores = unit(matrix) @ vector
            scores[~valid | ~np.isfinite(scores)] = -np.inf
            least = best[-1].score if len(best) == top else -np.inf
            rows = [int(row) for row in np.argsort(-scores, kind="stable")[:top] if scores[row] > least]
            found = [_hit(batch, row, id_col, float(scores[row])) for row in rows]
            best = sorted([*best, *found], key=_order)[:top]  # of equal ones those of before stand first
        return best

    def vector_of(self, key: str, shard: str | None = None) -> np.ndarray:
        """The vector of a row, float32 (dim,), of length 1.

        Parameters
        ----------
        key
            Of the row.
        shard
            Part of the URL of its shard, where several have the key.

        Raises
        ------
        ConfigError
            No row has the key, several have it, or the one that has it has no vector.
        """
        found: list[tuple[str | None, str, np.ndarray | None]] = []
        for path in self.records:
            id_col = self._id_col(path)
            for batch in self._blocks(path, [id_col, URL_COLUMN, self.column]):
                same = pc.equal(pc.cast(batch.column(id_col), pa.string()), key)
                for row in pc.indices_nonzero(pc.fill_null(same, False)).to_pylist():
                    url = batch.column(URL_COLUMN)[row].as_py() if URL_COLUMN in batch.schema.names else None
                    if shard is None or shard in (url or ""):
                        matrix, valid = self._matrix(path, batch.slice(row, 1))
                        found.append((url, path, unit(matrix)[0] if valid[0] else None))
        of = f"no row has the key {key!r}" + (
            "" if shard is None else f" and {shard!r} in the URL of its shard"
        )
        if not found:
            raise ConfigError(f"{of}, in {len(self.records)} files, {next(iter(self.records))} for example")
        if len(found) > 1:
            urls = ", ".join(str(url) for url, _, _ in found[:5])
            raise ConfigError(
                f"{len(found)} rows have the key {key!r}: say which by a part of its shard's URL (--shard), of {urls}"
            )
        ((url, path, vector),) = found
        if vector is None or not np.isfinite(vector).all():
            raise ConfigError(
                f"{key} of {url or path}: has no vector in {self.column!r}, so nothing is near it; its image_error"
                " says why"
            )
        return vector

    def _id_col(self, path: str) -> str:
        record = self.records[path]
        return (record and record.id_col) or "key"

    def _blocks(self, path: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Some rows after the other, with those of these columns that there are; the first must be there."""
        with open_parquet(path, self.options) as file:
            names = file.schema_arrow.names
            if columns[0] not in names:
                raise OutputError(f"{path}: has no column {columns[0]!r} of keys; it has {names}")
            read = [name for name in columns if name in names]
            yield from file.iter_batches(batch_size=_BLOCK, columns=read)

    def _matrix(self, path: str, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        try:
            return list_to_matrix(batch.column(self.column))
        except ValueError as error:
            raise OutputError(f"{path}: {self.column!r}: {error}") from error


def _hit(batch: pa.RecordBatch, row: int, id_col: str, score: float) -> Hit:
    url, caption = (
        batch.column(name)[row].as_py() if name in batch.schema.names else None
        for name in (URL_COLUMN, CAPTION_COLUMN)
    )
    return Hit(score, batch.column(id_col)[row].as_py(), url, None if caption is None else str(caption))


def _order(hit: Hit) -> float:
    return -hit.score
