"""Rows of an output that someone has labelled, with their vectors: what a head is fitted to."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.errors import ConfigError
from curator_dask.frames.faults import faults_told
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import open_parquet
from curator_dask.image.classifiers.origins import one_origin
from curator_dask.image.fitting.sources import LabelColumn, LabelTables, without_nan
from curator_dask.outputs.given import rows_with_shards
from curator_dask.outputs.nearest import VectorFiles
from curator_dask.rows.ids import id_texts
from curator_dask.storage import Options
from curator_dask.words import counted

_BLOCK = 8192  # rows that are read at once


@dataclass(frozen=True)
class Labelled:
    """Rows with a label and a vector.

    Attributes
    ----------
    vectors
        Float32 (n, dim), finite.
    labels
        Of each, of the column's own type; none is null.
    keys, urls
        Of each, as text, and its shard; None where the files do not say that.
    info
        What made the vectors, as their record has it (`EncoderInfo`); None where nothing says it.
    found, without_vector
        How many rows have a label, and how many of these have no vector.
    unused
        Labels of tables that are no row's.
    overruled
        Rows of which an earlier table says something else than a later one, which counts.
    """

    vectors: np.ndarray
    labels: pa.Array
    keys: list[str | None]
    urls: list[str | None]
    info: Mapping[str, Any] | None
    found: int
    without_vector: int
    unused: int = 0
    overruled: int = 0

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def told(self) -> str:
        """How many rows there are, in words."""
        taken = len(self) + self.without_vector
        picked = f"{taken:,} of {self.found:,} labelled rows, picked by chance"
        said = picked if taken < self.found else counted(taken, "labelled row")
        said += f"; {self.without_vector:,} of them have no vector" if self.without_vector else ""
        said += f"; {counted(self.unused, 'label')} of no row" if self.unused else ""
        if self.overruled:
            said += f"; {counted(self.overruled, 'row')} with several labels that differ: that of the last table counts"
        return said


def labelled_rows(
    path: str | os.PathLike[str],
    label: str,
    *,
    tables: Sequence[str | os.PathLike[str]] = (),
    most: int,
    column: str,
    seed: int,
    storage_options: Options = None,
) -> Labelled:
    """Read the rows that have a label; of more than `most` as many, picked by chance.

    Parameters
    ----------
    path, label, most, column, seed, storage_options
        See `curator_dask.image.fitting.fit_head`.
    tables
        Of which the labels are a column, beside the rows' keys and, where a table has it, ``__url__``; none: of the
        output.

    Raises
    ------
    ConfigError
        No row has a label.
    DatasetError
        The vectors are of several models, or the table cannot be used.
    NoColumnError
        A file has no such column.
    OutputError
        There are no vectors.
    """
    files = VectorFiles.find(path, column, storage_options)
    id_col = files.id_col(next(iter(files.records)))
    source: LabelColumn | LabelTables = (
        LabelTables.read(tables, label, id_col, storage_options) if tables else LabelColumn.of(files, label)
    )
    info = one_origin(column, files.records).info()
    counts = {
        file: sum(len(labels) - labels.null_count for _, labels in _blocks(files, file, source, []))
        for file in files.records
    }
    source.check()
    unused, overruled, found = source.unused, source.overruled, sum(counts.values())
    if not found:
        raise ConfigError(f"{os.fspath(path)}: no row has a label in {label!r}{source.why_none}")
    chosen = np.sort(np.random.default_rng(seed).choice(found, min(found, most), replace=False))
    parts: list[tuple[np.ndarray, pa.Array]] = []
    names: list[tuple[str | None, str | None]] = []
    start = 0
    for file, count in counts.items():
        first, last = np.searchsorted(chosen, [start, start + count])
        if first < last:
            for matrix, labels, taken in _taken(files, file, source, chosen[first:last] - start):
                parts.append((matrix, labels))
                names += _names(taken, files.id_col(file))
        start += count
    if not names:
        raise ConfigError(
            f"{os.fspath(path)}: none of the {found:,} rows with a label in {label!r} has a vector in {column!r}"
        )
    if len(dims := sorted({matrix.shape[1] for matrix, _ in parts})) > 1:
        raise ConfigError(
            f"{os.fspath(path)}: {column!r} has vectors of {dims} values: expected those of one model"
        )
    vectors = np.concatenate([matrix for matrix, _ in parts])
    together = _together([each for _, each in parts], label)
    keys, urls = map(list, zip(*names, strict=True))
    lost = len(chosen) - len(vectors)
    return Labelled(vectors, together, keys, urls, info, found, lost, unused, overruled)


def _blocks(
    files: VectorFiles, file: str, source: LabelColumn | LabelTables, columns: list[str]
) -> Iterator[tuple[pa.RecordBatch, pa.Array]]:
    """Some rows of a file after the other, and their labels; NaN is null."""
    with faults_told(file), open_parquet(file, files.options) as opened:
        wanted = [*source.columns, *columns]
        for batch in rows_with_shards(opened, file, wanted, _BLOCK, files.options):
            labels = source.labels(batch, file)
            if pa.types.is_string_view(labels.type):  # which Arrow cannot pick rows of
                labels = labels.cast(pa.large_string())
            yield batch, without_nan(labels)


def _taken(
    files: VectorFiles, file: str, source: LabelColumn | LabelTables, chosen: np.ndarray
) -> Iterator[tuple[np.ndarray, pa.Array, pa.RecordBatch]]:
    """Of the rows of a file that have a label those with these numbers, which have a vector."""
    start = 0
    for batch, labels in _blocks(files, file, source, [files.id_col(file), URL_COLUMN, files.column]):
        rows = np.flatnonzero(labels.is_valid().to_numpy(zero_copy_only=False))
        first, last = np.searchsorted(chosen, [start, start + len(rows)])
        places = pa.array(rows[chosen[first:last] - start])
        start += len(rows)
        taken = batch.take(places)
        matrix, valid = files.matrix(file, taken)
        valid &= np.isfinite(matrix).all(axis=1)
        if valid.any():
            good = pa.array(valid)
            yield matrix[valid], labels.take(places).filter(good), taken.filter(good)


def _names(rows: pa.RecordBatch, id_col: str) -> list[tuple[str | None, str | None]]:
    """Keys and shards."""
    names = rows.schema.names
    none = [None] * len(rows)
    keys = id_texts(rows.column(id_col)) if id_col in names else none
    urls = rows.column(URL_COLUMN).cast(pa.string()).to_pylist() if URL_COLUMN in names else none
    return list(zip(keys, urls, strict=True))


def _together(parts: list[pa.Array], label: str) -> pa.Array:
    plain = [each.dictionary_decode() if pa.types.is_dictionary(each.type) else each for each in parts]
    try:
        return pa.concat_arrays([each.cast(plain[0].type) for each in plain])
    except pa.ArrowException as error:
        raise ConfigError(
            f"the labels {label!r} are of several types: {sorted({str(each.type) for each in plain})}"
        ) from error
