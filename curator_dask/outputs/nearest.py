"""Rows of an output whose vectors are nearest to another: the searches by a text and by an image end here."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.errors import ConfigError, DatasetError, OutputError
from curator_dask.frames.columns import list_to_matrix, unit
from curator_dask.frames.faults import faults_told
from curator_dask.frames.names import CAPTION_COLUMN, URL_COLUMN
from curator_dask.frames.parquet import open_parquet, whole_footers
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.given import given_files, rows_with_shards
from curator_dask.outputs.placing import locate
from curator_dask.outputs.ranking import Ranked, exact_cosines, may_be_best
from curator_dask.outputs.rows_at import rows_at
from curator_dask.rows.ids import check_id_type, exact_ids
from curator_dask.rows.images import values_of
from curator_dask.storage import Options, join
from curator_dask.webdataset.keys import id_text
from curator_dask.words import counted, some_of_these

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

    @property
    def name(self) -> str:
        """The key as text."""
        return self.key.decode(errors="replace") if isinstance(self.key, bytes) else str(self.key)


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
    def find(
        cls, path: str | os.PathLike[str], column: str, options: Options, needed: bool = True
    ) -> VectorFiles:
        """Those of an output.

        Parameters
        ----------
        path, column, options
            Which.
        needed
            Whether each must have the column.

        Raises
        ------
        OutputError
            There are none, or one has no such column.
        """
        folder = locate(os.fspath(path), options)
        paths = [join(folder, name) for name in given_files(folder, options)]
        footers = whole_footers(paths, options)
        for file, footer in footers.items():
            if needed and column not in footer.columns:
                raise OutputError(
                    f"{file}: has no column {column!r} of vectors; "
                    f"it has {some_of_these(footer.columns, column)}. Give the name of theirs"
                    " (--column), or the folder that embed wrote to"
                )
        return cls({file: footer.record for file, footer in footers.items()}, column, options)

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
        return self.hits(self.ranked(vector, of, top))

    def ranked(
        self, vector: np.ndarray, of: str, top: int, passing: Mapping[str, np.ndarray] | None = None
    ) -> Ranked:
        """The same, as numbers of files (in the order of `records`) and rows, which are not read.

        Parameters
        ----------
        vector, of, top
            See `nearest`.
        passing
            Bool (rows,) of each file: of these rows alone; None: of all.
        """
        best = Ranked(top)
        for number, path in enumerate(self.records):
            first = 0
            for batch in self._blocks(path, [self.id_col(path), URL_COLUMN, self.column], [self.column]):
                matrix, valid = self.matrix(path, batch)
                if passing is not None:
                    valid = valid & passing[path][first : first + len(valid)]
                if valid.any():
                    self._rank(best, path, number, first, matrix, valid, vector, of)
                first += len(valid)
        return best

    def _rank(
        self,
        best: Ranked,
        path: str,
        file: int,
        first: int,
        matrix: np.ndarray,
        valid: np.ndarray,
        vector: np.ndarray,
        of: str,
    ) -> None:
        if matrix.shape[1] != len(vector):
            raise ConfigError(
                f"{path}: {self.column!r} has vectors of {matrix.shape[1]} values, {of} has one of"
                f" {len(vector)}: expected both from one model"
            )
        rows = unit(matrix)
        fast = rows @ vector
        # Zeros are near nothing, and must take the place of none that is further away than at a right angle.
        fast[~valid | ~np.isfinite(fast) | ~rows.any(1)] = -np.inf
        places = may_be_best(fast, best.top, best.least)
        best.add(exact_cosines(rows[places], vector), np.full(len(places), file), first + places)

    def hits(self, ranked: Ranked) -> list[Hit]:
        """The rows of a ranking, read from the files."""
        paths, found = list(self.records), {}
        for file in np.unique(ranked.files).tolist():
            at = np.flatnonzero(ranked.files == file)
            path, id_col = paths[file], self.id_col(paths[file])
            table = rows_at(path, ranked.rows[at], [id_col, URL_COLUMN, CAPTION_COLUMN], self.options)
            batch = table.to_batches()[0]
            for place, row in enumerate(at.tolist()):
                found[row] = _hit(batch, place, id_col, float(ranked.cosines[row]))
        return [found[row] for row in range(len(ranked))]

    def directions(self) -> Iterator[np.ndarray]:
        """All vectors that can be compared, float32 (n, dim), of length 1: by files and rows, some thousand at a time.

        Raises
        ------
        OutputError
            They are of several lengths.
        """
        dim = None
        for path in self.records:
            with faults_told(path), open_parquet(path, self.options) as file:
                for batch in file.iter_batches(batch_size=_BLOCK, columns=[self.column]):
                    matrix, valid = self.matrix(path, batch)
                    vectors = unit(matrix[valid])
                    vectors = vectors[np.isfinite(vectors).all(1) & vectors.any(1)]
                    if len(vectors) and dim not in (None, vectors.shape[1]):
                        raise OutputError(
                            f"{path}: {self.column!r} has vectors of {vectors.shape[1]} values, files before it of"
                            f" {dim}: expected those of one model"
                        )
                    if len(vectors):
                        dim = vectors.shape[1]
                        yield vectors

    def row_of(self, key: str, shard: str | None = None) -> tuple[Hit, np.ndarray]:
        """A row, and its vector, float32 (dim,), of length 1.

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
        found: list[tuple[Hit, str, int]] = []
        for path in self.records:
            id_col = self.id_col(path)
            first = 0
            for batch in self._blocks(path, [id_col, URL_COLUMN]):
                for row in self._rows_with(path, batch.column(id_col), key):
                    url = _value(batch, URL_COLUMN, row)
                    if shard is None or shard in (url or ""):
                        found.append((_hit(batch, row, id_col, 1.0), path, first + row))
                first += batch.num_rows
        of = f"no row has the key {key!r}" + (
            "" if shard is None else f" and {shard!r} in the URL of its shard"
        )
        if not found:
            raise ConfigError(
                f"{of}, in {counted(len(self.records), 'file')}, {next(iter(self.records))} for example"
            )
        if len(found) > 1:
            urls = ", ".join(str(own.url) for own, _, _ in found[:5])
            raise ConfigError(
                f"{len(found)} rows have the key {key!r}: say which by a part of its shard's URL (--shard), of {urls}"
            )
        ((own, path, row),) = found
        vector = self.vector_at(path, row)
        if vector is None or not np.isfinite(vector).all():
            raise ConfigError(
                f"{key} of {own.url or path}: has no vector in {self.column!r}, so nothing is near it; its image_error"
                " says why"
            )
        return own, vector

    def vector_at(self, path: str, row: int) -> np.ndarray | None:
        """The vector of a row by its number, float32 (dim,), of length 1; None where it has none."""
        table = rows_at(path, np.array([row]), [self.column], self.options)
        matrix, valid = self.matrix(path, table.to_batches()[0])
        return unit(matrix)[0] if valid[0] else None

    def id_col(self, path: str) -> str:
        """The column of the keys in a file."""
        record = self.records[path]
        return (record and record.id_col) or "key"

    def _blocks(
        self, path: str, columns: list[str], read: list[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Some rows after the other, with those of these columns that there are; the first must be there.

        Where `read` says so, the others are looked at and not read.
        """
        with faults_told(path), open_parquet(path, self.options) as file:
            names = file.schema_arrow.names
            if columns[0] not in names:
                raise OutputError(
                    f"{path}: has no column {columns[0]!r} of keys; it has {some_of_these(names, columns[0])}"
                )
            if URL_COLUMN in {*columns} & {*names} and not _is_text(
                kind := file.schema_arrow.field(URL_COLUMN).type
            ):
                raise OutputError(
                    f"{path}: {URL_COLUMN!r}: expected text, the shard of each row, found {kind}. Write it as text, or"
                    " give it another name"
                )
            yield from rows_with_shards(file, path, read or columns, _BLOCK, self.options)

    def _rows_with(self, path: str, ids: pa.Array, key: str) -> list[int]:
        """The rows whose id is a key, by its text; bytes may also be those of a UUID."""
        if pa.types.is_string(ids.type):
            rows: list[int] = pc.indices_nonzero(pc.fill_null(pc.equal(ids, key), False)).to_pylist()
            return rows
        try:
            check_id_type(ids.type, self.id_col(path))
        except DatasetError:
            raise OutputError(
                f"{path}: {self.id_col(path)!r}: expected keys as text, bytes, whole numbers, dates or UUIDs, found"
                f" {ids.type}: no row can be found by its key. Write that column as text"
            ) from None
        return [row for row, value in enumerate(exact_ids(ids)) if value is not None and key in _texts(value)]

    def matrix(self, path: str, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        """The vectors of some rows of a file, and which rows have one, as `list_to_matrix` has them.

        Raises
        ------
        OutputError
            They are of several lengths, or no vectors.
        """
        try:
            return list_to_matrix(batch.column(self.column))
        except ValueError as error:
            raise OutputError(f"{path}: {self.column!r}: {error}") from error


def _hit(batch: pa.RecordBatch, row: int, id_col: str, score: float) -> Hit:
    key, url, caption = (_value(batch, name, row) for name in (id_col, URL_COLUMN, CAPTION_COLUMN))
    return Hit(score, key, url, None if caption is None else str(caption))


def _value(batch: pa.RecordBatch, name: str, row: int) -> Any:
    """Of a row, None where there is no such column."""
    return values_of(batch.column(name).slice(row, 1))[0] if name in batch.schema.names else None


def _texts(value: Any) -> set[str | None]:
    """What an id is called: by its text, and, where it is 16 bytes, as a UUID."""
    is_uuid = isinstance(value, bytes) and len(value) == 16
    return {id_text(value)[0], *([str(uuid.UUID(bytes=value))] if is_uuid else [])}


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(is_kind(kind) for is_kind in texts)
