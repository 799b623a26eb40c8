"""Rows that may be shown, with their vectors: read by their numbers in the output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.cluster.mapping import on_cluster
from curator_dask.errors import OutputError
from curator_dask.frames.columns import list_to_matrix, unit
from curator_dask.frames.names import CAPTION_COLUMN, URL_COLUMN
from curator_dask.report.folder import File, Folder, blocks
from curator_dask.report.rows import column_values, short
from curator_dask.rows.lookup import key_texts
from curator_dask.storage import Options


@dataclass
class Picked:
    """Rows, in the order of the output.

    Attributes
    ----------
    rows
        int64 (n,): their numbers.
    ids, urls, captions
        Key as it is stored, shard and caption of each.
    keys
        The key as text, as labels are found by; None where there is none that could be a key.
    vectors
        float32 (n, dim), of length 1; those that are not ``valid`` are of any values.
    valid
        bool (n,): it has a vector of finite values that are not all 0, and a key.
    """

    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    ids: list[Any] = field(default_factory=list)
    urls: list[str | None] = field(default_factory=list)
    captions: list[str | None] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    vectors: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    valid: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Where rows stand, by their numbers; those without a vector or a key are left out."""
        places = np.searchsorted(self.rows, rows)
        valid: np.ndarray = places[self.valid[places]]
        return valid


@dataclass(frozen=True)
class PickRows:
    """Reads some rows of a file.

    Attributes
    ----------
    vectors
        Column of the vectors.
    options
        For fsspec.
    """

    vectors: str
    options: Options

    def __call__(self, task: tuple[File, np.ndarray]) -> Picked:
        """Read those of these numbers, which rise and count from the file's first row."""
        file, wanted = task
        parts = []
        columns = [file.id_col, URL_COLUMN, CAPTION_COLUMN, self.vectors]
        for start, table in blocks(file, columns, self.options) if len(wanted) else ():
            inside = wanted[(wanted >= start) & (wanted < start + table.num_rows)]
            if len(inside):
                taken = table.take(pa.array(inside - start)).combine_chunks()
                parts.append(self._of(taken, file, inside + file.first))
            if wanted[-1] < start + table.num_rows:
                break
        return joined(parts)

    def _of(self, table: pa.Table, file: File, rows: np.ndarray) -> Picked:
        try:
            keys = key_texts(table.column(file.id_col))[0].to_pylist()
        except ValueError as error:
            raise OutputError(f"{file.path}: {file.id_col!r}: {error}: no label can be found by it") from None
        vectors, valid = np.zeros((len(rows), 0), np.float32), np.zeros(len(rows), bool)
        if self.vectors in table.column_names:
            try:
                matrix, valid = list_to_matrix(table.column(self.vectors))
            except ValueError as error:
                raise OutputError(f"{file.path}: {self.vectors!r}: {error}") from error
            vectors = unit(matrix)
            valid = valid & np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)
        return Picked(
            rows,
            column_values(table, file.id_col),
            [None if each is None else str(each) for each in column_values(table, URL_COLUMN)],
            [short(each) for each in column_values(table, CAPTION_COLUMN)],
            keys,
            vectors,
            valid & np.array([key is not None for key in keys]),
        )


def joined(parts: Sequence[Picked]) -> Picked:
    """Rows one after the other.

    Raises
    ------
    OutputError
        Vectors differ in length.
    """
    dims = {each.vectors.shape[1] for each in parts if each.valid.any()}
    if len(dims) > 1:
        raise OutputError(f"vectors of one length are expected, found {sorted(dims)} values (--column)")
    dim = next(iter(dims), 0)
    found = Picked(vectors=np.zeros((0, dim), np.float32))
    for each in parts:
        for name in ("ids", "urls", "captions", "keys"):
            getattr(found, name).extend(getattr(each, name))
    none = (np.zeros((len(each.rows), dim), np.float32) for each in parts)
    of_dim = [each.vectors if each.valid.any() else empty for each, empty in zip(parts, none, strict=True)]
    found.vectors = np.concatenate([found.vectors, *of_dim])
    found.rows = np.concatenate([found.rows, *(each.rows for each in parts)])
    found.valid = np.concatenate([found.valid, *(each.valid for each in parts)])
    return found


def pick_rows(folder: Folder, vectors: str, rows: np.ndarray) -> Picked:
    """Rows of an output by their numbers, each once."""
    rows = np.unique(rows)
    tasks = []
    for file in folder.files:
        start, end = np.searchsorted(rows, [file.first, file.first + file.rows])
        tasks.append((file, rows[start:end] - file.first))
    tasks = [task for task in tasks if len(task[1])]
    return joined(list(on_cluster(PickRows(vectors, folder.options), tasks)))
