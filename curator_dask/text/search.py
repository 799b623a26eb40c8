"""Search by a text: the images whose vectors are nearest to its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.cluster.workers import current_client, run_everywhere
from curator_dask.decode.spec import check_counts
from curator_dask.errors import ConfigError, OutputError
from curator_dask.frames.columns import list_to_matrix
from curator_dask.frames.names import CAPTION_COLUMN, EMBEDDING_COLUMN, URL_COLUMN
from curator_dask.frames.parquet import open_parquet, read_footer
from curator_dask.image.classifiers.origins import Origin, one_origin
from curator_dask.models.texts import TextSpec, unit
from curator_dask.outputs.failed import output_files
from curator_dask.outputs.placing import locate
from curator_dask.storage import Options, join
from curator_dask.text.embedders import TextEmbedder
from curator_dask.text.pairs import check_together
from curator_dask.threads import in_threads

_BLOCK = 8192  # rows that are read at once


@dataclass(frozen=True)
class Hit:
    """An image that was found.

    Attributes
    ----------
    score
        Cosine of its vector and the text's.
    key, url
        Of the row: its key, and its shard; None where the files do not say that.
    caption
        Where the files have one.
    """

    score: float
    key: Any
    url: str | None
    caption: str | None


def search(
    path: str | os.PathLike[str],
    text: str,
    embedder: TextEmbedder,
    *,
    top: int = 24,
    column: str = EMBEDDING_COLUMN,
    check: bool = True,
    storage_options: Mapping[str, Any] | None = None,
) -> list[Hit]:
    """The images of an output that are nearest to a text, the nearest first; of equal ones the first in the files.

    Every vector is compared. Files are read in blocks of rows: memory does not grow with them.

    Parameters
    ----------
    path
        What `save_metadata` or ``curator-dask embed`` wrote, or other Parquet files with lists of float32.
    text
        What is looked for.
    embedder
        Embeds the text; on the workers where there is a cluster.
    top
        How many, at most.
    column
        Of the images' vectors.
    check
        See `curator_dask.text.ClipScore`.
    storage_options
        For fsspec, where `path` is a URL.

    Raises
    ------
    ConfigError
        The text is empty, or the vectors do not belong together.
    OutputError
        There are no such vectors.
    """
    check_counts(top=top)
    if not text.strip():
        raise ConfigError(f"text={text!r}: expected some words")
    folder = locate(os.fspath(path), storage_options)
    paths = [join(folder, name) for name in output_files(folder, storage_options)]
    if not paths:
        raise OutputError(f"{path}: no Parquet file is there. Give the folder that embed wrote to")
    footers = in_threads(lambda each: read_footer(each, storage_options), paths)
    for file, footer in zip(paths, footers, strict=True):
        if column not in footer.columns:
            raise OutputError(
                f"{file}: has no column {column!r} of vectors; it has {footer.columns}. Give the name of theirs"
                " (--column)"
            )
    records = {file: footer.record for file, footer in zip(paths, footers, strict=True)}
    ask = _Ask(embedder.encoder_spec(), text, one_origin(column, records), check)
    vector = next(iter(run_everywhere(ask, current_client()).values()))
    best: list[Hit] = []
    for file, record in records.items():
        best = _nearest(best, file, column, (record and record.id_col) or "key", vector, top, storage_options)
    return best


@dataclass(frozen=True)
class _Ask:
    """Embeds the text, and sees whether it belongs to the images' vectors."""

    spec: TextSpec
    text: str
    images: Origin
    check: bool

    def __call__(self) -> np.ndarray:
        encoder = self.spec.build()
        try:
            if self.check:
                check_together(self.images, encoder.info.to_dict(), None, f"search ({self.spec})")
            vector: np.ndarray = unit(encoder([self.text], 1).vectors)[0]
            return vector
        finally:
            encoder.close()


def _nearest(
    best: list[Hit], path: str, column: str, id_col: str, vector: np.ndarray, top: int, options: Options
) -> list[Hit]:
    """The best of those that are known and of the rows of a file."""
    with open_parquet(path, options) as file:
        names = file.schema_arrow.names
        if id_col not in names:
            raise OutputError(f"{path}: has no column {id_col!r} of keys; it has {names}")
        read = [name for name in (id_col, URL_COLUMN, CAPTION_COLUMN, column) if name in names]
        for batch in file.iter_batches(batch_size=_BLOCK, columns=read):
            try:
                matrix, valid = list_to_matrix(batch.column(column))
            except ValueError as error:
                raise OutputError(f"{path}: {column!r}: {error}") from error
            if not valid.any():
                continue
            if matrix.shape[1] != len(vector):
                raise ConfigError(
                    f"{path}: {column!r} has vectors of {matrix.shape[1]} values, the text's has {len(vector)}:"
                    " expected both from one model"
                )
            scores = unit(matrix) @ vector
            scores[~valid | ~np.isfinite(scores)] = -np.inf
            for row in np.argsort(-scores, kind="stable")[:top]:
                if np.isfinite(scores[row]) and (len(best) < top or scores[row] > best[-1].score):
                    best = sorted([*best, _hit(batch, int(row), id_col, float(scores[row]))], key=_order)[
                        :top
                    ]
    return best


def _hit(batch: pa.RecordBatch, row: int, id_col: str, score: float) -> Hit:
    url, caption = (
        batch.column(name)[row].as_py() if name in batch.schema.names else None
        for name in (URL_COLUMN, CAPTION_COLUMN)
    )
    return Hit(score, batch.column(id_col)[row].as_py(), url, None if caption is None else str(caption))


def _order(hit: Hit) -> float:
    return -hit.score
