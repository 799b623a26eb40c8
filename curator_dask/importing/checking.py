"""Vectors as they come, and which of them are none: a row whose vector cannot be one gets null and a reason."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.errors import ShardError
from curator_dask.frames.columns import to_array, unit
from curator_dask.frames.faults import faults_told
from curator_dask.frames.parquet import open_parquet
from curator_dask.importing.arrays import MOST_VALUES, VectorArray, open_array
from curator_dask.importing.layouts import Source
from curator_dask.rows.reasons import NO_VECTOR, NOT_FINITE
from curator_dask.storage import Options

#: What vectors may be kept as.
STORED = ("float32", "float16")
_BLOCK = 8192  # rows that are read at once


class Taken:
    """The vectors of some rows of a table, filled in block by block.

    Parameters
    ----------
    rows, dim
        How many, and how long.
    name
        What they are called where they come from.
    normalize
        Divide each by its L2 norm, in float32.
    stored
        Of the numbers that are kept: one of `STORED`.

    Attributes
    ----------
    matrix
        float32 or float16 (rows, dim); zeros where there is a reason.
    reasons
        Why a row has no vector; None where it has one.
    """

    def __init__(self, rows: int, dim: int, name: str, normalize: bool, stored: str = "float32") -> None:
        self.matrix: np.ndarray = np.zeros((rows, dim), np.dtype(stored))
        self.reasons: list[str | None] = [None] * rows
        self._name, self._normalize = name, normalize

    def put(self, start: int, block: np.ndarray) -> None:
        """Take the vectors of rows from `start` on that have one of the right length."""
        self.put_at(np.arange(start, start + len(block)), block)

    def put_at(self, rows: np.ndarray, block: np.ndarray) -> None:
        """The same of any rows."""
        finite = np.isfinite(block).all(axis=1)
        zero = finite & ~block.any(axis=1)
        good = finite & ~zero
        vectors = unit(block[good]) if self._normalize else block[good]
        with np.errstate(over="ignore"):
            kept = vectors.astype(self.matrix.dtype)
        self.matrix[rows[good]] = kept
        # Of vectors that are not of length 1: as float32 they have a larger range.
        out = ~np.isfinite(kept).all(axis=1) | ~kept.any(axis=1)
        for row in rows[good][out].tolist():
            self.matrix[row] = 0
            self.reasons[row] = f"{NOT_FINITE}: {self._name} is out of the range of {self.matrix.dtype}"
        for row in rows[~finite].tolist():
            self.reasons[row] = f"{NOT_FINITE}: {self._name} has NaN or infinity"
        for row in rows[zero].tolist():
            self.reasons[row] = f"{NO_VECTOR}: {self._name} is all zeros"

    def lack(self, row: int, why: str) -> None:
        """A row has none."""
        self.reasons[row] = f"{NO_VECTOR}: {self._name} {why}"

    def column(self) -> pa.Array:
        """As a column: a ``fixed_size_list`` of the matrix' numbers, null where there is a reason."""
        dim = self.matrix.shape[1]
        return pa.FixedSizeListArray.from_arrays(
            pa.array(self.matrix.reshape(-1)),
            type=pa.list_(pa.from_numpy_dtype(self.matrix.dtype), dim),
            mask=pa.array(np.array([reason is not None for reason in self.reasons], bool)),
        )


def dim_of(source: Source, table: str, options: Options) -> int:
    """How long vectors are; 0 where none is there to tell it.

    Raises
    ------
    ShardError
        They cannot be read.
    """
    if source.path != table:
        with open_array(source.path, source.name, options) as array:
            return array.dim
    with faults_told(table, ShardError), open_parquet(table, options) as file:
        kind = file.schema_arrow.field(source.name).type
        if pa.types.is_fixed_size_list(kind):
            return _possible(int(kind.list_size), table, source)
        for batch in file.iter_batches(_BLOCK, columns=[source.name]):
            lengths = pc.list_value_length(batch.column(0)).drop_null()
            if len(lengths):
                return _possible(int(pc.mode(lengths)[0]["mode"].as_py()), table, source)
    return 0


def _possible(dim: int, table: str, source: Source) -> int:
    if dim > MOST_VALUES:
        raise ShardError(
            f"{table}: {source.name!r}: expected vectors of at most {MOST_VALUES:,} values, found {dim:,}"
        )
    return dim


def check_rows(table: str, rows: int | None, options: Options) -> None:
    """See that a table has the rows that the client has found.

    Parameters
    ----------
    table
        Its path.
    rows
        How many; None: it could not be read there.
    options
        For fsspec.

    Raises
    ------
    ShardError
        It cannot be read, or has others now: those would be left out, or be null.
    """
    with faults_told(table, ShardError), open_parquet(table, options) as file:
        found = file.metadata.num_rows
    if found != rows:
        before = "could not be read" if rows is None else f"had {rows:,}"
        raise ShardError(
            f"{table}: has {found:,} rows, and {before} when this run began: it was changed, or its storage failed."
            " Run again"
        )


def take_vectors(
    source: Source,
    table: str,
    start: int,
    stop: int,
    rows: int,
    dim: int,
    normalize: bool,
    options: Options,
    stored: str = "float32",
) -> Taken:
    """The vectors of the rows ``start <= row < stop`` of a table.

    Parameters
    ----------
    source, table
        Where they are, and the table.
    start, stop, rows
        Which rows, of how many.
    dim
        How long they must be.
    normalize
        Divide each by its L2 norm.
    options
        For fsspec.
    stored
        Of the numbers that are kept.

    Raises
    ------
    ShardError
        They cannot be read, or are not those of the table's rows.
    """
    taken = Taken(stop - start, dim, source.name or "the vector", normalize, stored)
    if source.path == table:
        for at, array in _lists(table, source.name or "", start, stop, options):
            _put_lists(taken, at, array, dim)
        return taken
    with open_array(source.path, source.name, options) as vectors:
        _check(vectors, table, rows, dim)
        vectors.skip(start)
        for at in range(0, stop - start, _BLOCK):
            taken.put(at, vectors.read(min(_BLOCK, stop - start - at)))
    return taken


def _check(array: VectorArray, table: str, rows: int, dim: int) -> None:
    if array.rows != rows:
        raise ShardError(
            f"{table} has {rows:,} rows, and {array.where} {array.rows:,} vectors: which is whose is told by their"
            " places alone, so none of them is taken. Fetch both again"
        )
    if array.dim != dim:
        raise ShardError(
            f"{array.where}: expected vectors of {dim} values, as those of the files before it, found {array.dim}:"
            " import vectors of each model into a folder of their own"
        )


def _lists(table: str, name: str, start: int, stop: int, options: Options) -> Iterator[tuple[int, pa.Array]]:
    for at, batch in row_range(table, [name], start, stop, options):
        yield at, to_array(batch.column(0))


def row_range(
    path: str, columns: list[str], start: int, stop: int, options: Options
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Rows ``start <= row < stop`` of a Parquet file, some at a time, with the number of the first from `start`.

    Of the columns those come that there are.

    Raises
    ------
    ShardError
        The file cannot be read.
    """
    with faults_told(path, ShardError), open_parquet(path, options) as file:
        columns = [name for name in columns if name in file.schema_arrow.names]
        first = 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if first + count <= start or first >= stop:
                first += count
                continue
            at = first
            for batch in file.iter_batches(_BLOCK, row_groups=[group], columns=columns):
                begin, end = max(start, at), min(stop, at + batch.num_rows)
                if begin < end:
                    yield begin - start, batch.slice(begin - at, end - begin)
                at += batch.num_rows
            first += count


def _put_lists(taken: Taken, at: int, array: pa.Array, dim: int) -> None:
    lengths = pc.fill_null(pc.list_value_length(array), -1).to_numpy(zero_copy_only=False)
    fits = lengths == dim
    for row in np.flatnonzero(~fits).tolist():
        taken.lack(at + row, "is null" if lengths[row] < 0 else f"has {lengths[row]} values, not {dim}")
    if fits.any():
        flat = pc.list_flatten(array.filter(pa.array(fits))).to_numpy(zero_copy_only=False)
        with np.errstate(over="ignore"):  # told as infinite
            block = np.asarray(flat, np.float32).reshape(-1, dim)
        taken.put_at(at + np.flatnonzero(fits), block)
