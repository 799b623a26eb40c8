"""What of a file an index depends on: its vectors, and which rows they are of. All else may change."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from curator_dask.errors import OutputError, ShardError
from curator_dask.frames.faults import faults_told
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import open_parquet
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.vectors import FAULTS, vectors_of
from curator_dask.rows.images import values_of
from curator_dask.storage import Options
from curator_dask.words import some_of_these

_ROWS = 4096  # that are read at once


class Content:
    """A digest of the vectors of a file, in their order, and of the rows that they are of."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, matrix: np.ndarray, good: np.ndarray) -> None:
        """Some rows: float32 (n, dim), and bool (n,): which have a vector that can be compared."""
        self._digest.update(np.ascontiguousarray(good).data)
        self._digest.update(np.ascontiguousarray(matrix[good], "<f4").data)

    def of(self, keys: np.ndarray, aside: Counter[str]) -> str:
        """The digest, with those of the rows' keys and shards (`key_digests`), and how many rows are aside."""
        self._digest.update(np.ascontiguousarray(keys, "<u8").data)
        self._digest.update(repr([aside[fault] for fault in FAULTS]).encode())
        return self._digest.hexdigest()


def content_of(path: str, column: str, options: Options) -> str:
    """The digest of a file; empty where its vectors cannot be read."""
    content, aside = Content(), Counter[str]()
    try:
        for matrix, good in vectors_of(path, options, column, 0, aside, _ROWS):
            content.add(matrix, good)
        return content.of(key_digests(path, options), aside)
    except (ShardError, OutputError):
        return ""


def key_digests(path: str, options: Options) -> np.ndarray:
    """uint64 (n,): of the key and the shard of each row of a file.

    Raises
    ------
    OutputError
        It has no column of keys.
    ShardError
        It cannot be read.
    """
    found = [np.zeros(0, np.uint64)]
    with faults_told(path, ShardError), open_parquet(path, options) as file:
        record = FileRecord.parse(file.schema_arrow.metadata)
        id_col, names = (record and record.id_col) or "key", file.schema_arrow.names
        if id_col not in names:
            raise OutputError(
                f"{path}: has no column {id_col!r} of keys; it has {some_of_these(names, id_col)}"
            )
        read = [name for name in (id_col, URL_COLUMN) if name in names]
        found += [digests_of(batch, id_col) for batch in file.iter_batches(65_536, columns=read)]
    return np.concatenate(found)


def digests_of(batch: pa.RecordBatch, id_col: str) -> np.ndarray:
    """uint64 (n,): of the rows of a batch."""
    keys = values_of(batch.column(id_col))
    urls = (
        values_of(batch.column(URL_COLUMN)) if URL_COLUMN in batch.schema.names else [None] * batch.num_rows
    )
    return digests(keys, urls)


def digests(keys: list[Any], urls: list[str | None]) -> np.ndarray:
    """uint64 (n,): of the key and the shard of each row."""
    texts = [f"{key!r} {url}" for key, url in zip(keys, urls, strict=True)]
    found: np.ndarray = pd.util.hash_array(np.array(texts, object), categorize=False)
    return found
