"""The vectors of a file, some at a time, and which of them can be compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from curator_dask.errors import ShardError
from curator_dask.frames.columns import list_to_matrix
from curator_dask.frames.faults import faults_told
from curator_dask.frames.parquet import open_parquet
from curator_dask.storage import Options

#: What may be wrong with a vector, so that it is set aside.
FAULTS = ("null", "not finite", "zero")


def vectors_of(
    path: str, options: Options, column: str, dim: int, aside: Counter[str], rows: int = 8192
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The vectors of some rows after the others, float32 (n, dim), and bool (n,): which are finite and not zero.

    Parameters
    ----------
    path, options, column
        Which.
    dim
        How long they are to be; 0: as the first.
    aside
        In which the others are counted, by `FAULTS`.
    rows
        That are read at a time.

    Raises
    ------
    ShardError
        The file cannot be read, or has vectors of another length, or none.
    """
    with faults_told(path, ShardError), open_parquet(path, options) as file:
        for batch in file.iter_batches(batch_size=rows, columns=[column]):
            try:
                matrix, valid = list_to_matrix(batch.column(0), dim or None)
            except ValueError as error:
                raise ShardError(f"{path}: {column!r}: {error}. All are to be of one model") from None
            dim = dim or matrix.shape[1]
            finite, zero = np.isfinite(matrix).all(1), valid & ~matrix.any(1)
            for fault, found in zip(FAULTS, (~valid, ~finite, zero), strict=True):
                if found.any():
                    aside[fault] += int(found.sum())
            yield matrix, valid & finite & ~zero
