"""Which row of an output has a value: an index of digests, 16 bytes a row, that a worker makes once and keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from curator_dask.cache import POSSESSIONS, Remembered
from curator_dask.errors import ShardError
from curator_dask.frames.faults import faults_told
from curator_dask.frames.parquet import open_parquet
from curator_dask.importing.checking import row_range
from curator_dask.rows.ids import id_texts
from curator_dask.storage import Options

#: Rows with one value that are looked at: of a value in more than one, none is taken.
MOST_ROWS = 8
_ROW_BITS = 40  # of a place; the rest is the file's number
_INDEXES: Remembered[Index] = POSSESSIONS.add("vectors-by-value", Remembered(1))


@dataclass(frozen=True)
class Index:
    """Places of rows, by digests of a value.

    Attributes
    ----------
    digests
        uint64 (n,), in order.
    places
        int64 (n,): number of the file and of the row in it.
    """

    digests: np.ndarray
    places: np.ndarray

    @classmethod
    def of(cls, files: Sequence[str], column: str, options: Options, token: str) -> Index:
        """That of the rows of some files with a value in the column; made once in a process for a token.

        Raises
        ------
        ShardError
            A file cannot be read.
        """
        return _INDEXES.get((token, column), lambda: cls._made(files, column, options))

    @classmethod
    def _made(cls, files: Sequence[str], column: str, options: Options) -> Index:
        digests, places = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
        for number, file in enumerate(files):
            with faults_told(file, ShardError), open_parquet(file, options) as opened:
                at = 0
                for batch in _batches(opened, column):
                    texts = pa.array(id_texts(batch), pa.string())
                    there = np.flatnonzero(texts.is_valid().to_numpy(zero_copy_only=False))
                    digests.append(digests_of(texts.take(pa.array(there))))
                    places.append((np.int64(number) << _ROW_BITS) + at + there)
                    at += len(texts)
        whole, where = np.concatenate(digests), np.concatenate(places)
        order = np.argsort(whole, kind="stable")
        return cls(whole[order], where[order])

    def candidates(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows that may have values: by number of the value, of the file, and of the row in it, each int64 (m,).

        Of a value they are at most `MOST_ROWS`: in a column that is none of keys, one may stand in all rows.
        """
        there = np.flatnonzero(texts.is_valid().to_numpy(zero_copy_only=False))
        wanted = digests_of(texts.take(pa.array(there)))
        first = np.searchsorted(self.digests, wanted, "left")
        counts = np.minimum(np.searchsorted(self.digests, wanted, "right") - first, MOST_ROWS)
        ends = np.cumsum(counts)
        within = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
        places = self.places[np.repeat(first, counts) + within]
        return np.repeat(there, counts), places >> _ROW_BITS, places & ((1 << _ROW_BITS) - 1)


def _batches(file: pq.ParquetFile, column: str) -> list[pa.Array]:
    return [batch.column(0) for batch in file.iter_batches(65_536, columns=[column])]


def digests_of(texts: pa.Array) -> np.ndarray:
    """uint64 (n,): of texts, none of them null."""
    found: np.ndarray = pd.util.hash_array(
        texts.to_numpy(zero_copy_only=False).astype(object), categorize=False
    )
    return found


def rows_of(path: str, rows: np.ndarray, columns: list[str], options: Options) -> pa.Table:
    """Rows of a file, by their numbers, in ascending order and each once; a few thousand are in memory besides them.

    Raises
    ------
    ShardError
        The file cannot be read.
    """
    first = int(rows[0])
    parts = []
    for at, batch in row_range(path, columns, first, int(rows[-1]) + 1, options):
        begin, end = np.searchsorted(rows, [first + at, first + at + batch.num_rows])
        if begin < end:
            parts.append(batch.take(pa.array(rows[begin:end] - first - at)))
    table = pa.Table.from_batches(parts).combine_chunks() if parts else None
    if table is None or len(table) != len(rows):
        raise ShardError(
            f"{path}: expected {int(rows[-1]) + 1:,} rows, found fewer: it was changed. Run again"
        )
    return table
