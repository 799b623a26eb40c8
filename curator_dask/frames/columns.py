"""Embeddings as list columns, and columns as matrices.

In memory an embedding column is ``list<float32>`` in pandas (Arrow-backed) and cuDF alike; in Parquet it is
``fixed_size_list<float32>[dim]`` (`curator_dask.frames.parquet`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask import backend
from curator_dask.errors import ConfigError

EMBEDDING_TYPE = pa.list_(pa.float32())
_LEAST_NORM = 1e-15  # squares of what is below are no longer exact in float32


def vectors_to_list(matrix: np.ndarray, valid: np.ndarray) -> pa.ListArray:
    """Rows of a matrix as a list array, without copying them where every row is valid.

    Parameters
    ----------
    matrix
        float32 (n, dim).
    valid
        bool (n,); a row that is not valid becomes null.

    Raises
    ------
    ConfigError
        The valid rows have more values than an Arrow list column can hold.
    """
    rows, dim = matrix.shape
    offsets = np.zeros(rows + 1, np.int64)
    np.cumsum(np.where(valid, dim, 0), out=offsets[1:])
    if offsets[-1] > np.iinfo(np.int32).max:
        raise ConfigError(
            f"{rows} vectors of {dim} are {offsets[-1]} values, a partition's column holds at most 2**31 - 1:"
            " use smaller partitions (rows_per_partition)"
        )
    values = matrix if valid.all() else matrix[valid]
    return pa.ListArray.from_arrays(
        pa.array(offsets.astype(np.int32)),
        pa.array(np.ascontiguousarray(values, np.float32).reshape(-1)),
        mask=pa.array(~valid),
    )


def list_to_matrix(column: Any, dim: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A list column (Series, Arrow array) as a matrix; the inverse of `vectors_to_list`.

    Parameters
    ----------
    column
        Arrow ``list`` or ``fixed_size_list`` of numbers, or a pandas or cuDF Series of them.
    dim
        Expected length of a vector; None takes the column's own (0 if all rows are null).

    Returns
    -------
    matrix
        float32 (n, dim); zeros where the row is null.
    valid
        bool (n,).

    Raises
    ------
    ValueError
        Not a column of lists, or two rows, or a row and `dim`, differ in length.
    """
    array = to_array(column)
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(is_kind(array.type) for is_kind in kinds):
        if array.null_count < len(array):
            raise ValueError(f"expected vectors, found {array.type}")
        array = pa.nulls(len(array), EMBEDDING_TYPE)
    valid = ~np.asarray(array.is_null().to_numpy(zero_copy_only=False), bool)
    lengths = (
        array.value_lengths().drop_null().to_numpy(zero_copy_only=False) if valid.any() else np.array([])
    )
    found = np.unique(lengths).tolist()
    if len(found) > 1 or (found and dim is not None and found != [dim]):
        raise ValueError(
            f"expected vectors of one length{f' {dim}' if dim else ''}, found lengths {found[:5]}"
        )
    width = int(found[0]) if found else dim or 0
    matrix = np.zeros((len(array), width), np.float32)
    if width:
        flat = array.drop_null().flatten()
        if not (pa.types.is_floating(flat.type) or pa.types.is_integer(flat.type)):
            try:
                flat = flat.cast(pa.float32())
            except pa.ArrowException as error:
                raise ValueError(f"expected vectors, found {array.type}") from error
        matrix[valid] = flat.to_numpy(zero_copy_only=False).reshape(-1, width)
    return matrix, valid


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors divided by their L2 norms; zeros stay."""
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
        odd = ~((norms[..., 0] > _LEAST_NORM) & np.isfinite(norms[..., 0]))
        if odd.any():  # also zeros
            norms = norms.astype(np.float64)
            norms[odd] = np.linalg.norm(vectors[odd].astype(np.float64), axis=-1, keepdims=True)
        divided: np.ndarray = vectors / np.where(norms > 0, norms, 1)
    return divided.astype(np.float32)


def embedding_columns(meta: Any) -> list[str]:
    """Names of the columns of a frame that hold vectors; see `vectors_in`."""
    return vectors_in(backend.frame_to_arrow(meta).schema)


def vectors_in(schema: pa.Schema) -> list[str]:
    """Names of the columns of a schema that hold lists of float32, or of float16 that are all of one length."""
    lists = [
        field for field in schema if pa.types.is_list(field.type) or pa.types.is_fixed_size_list(field.type)
    ]
    half = (pa.float16(), pa.types.is_fixed_size_list)
    return [
        field.name
        for field in lists
        if field.type.value_type == pa.float32() or (field.type.value_type == half[0] and half[1](field.type))
    ]


def to_array(column: Any) -> pa.Array:
    """One contiguous Arrow array from a Series or an Arrow array."""
    array = column if isinstance(column, pa.Array | pa.ChunkedArray) else backend.series_to_arrow(column)
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def with_columns(frame: Any, columns: Mapping[str, pa.Array]) -> Any:
    """The frame with these columns last, in this order; columns of the same name are replaced.

    Parameters
    ----------
    frame
        pandas or cuDF. It is not changed; its other columns are shared, not copied.
    columns
        Arrow arrays, one value a row, in the frame's row order.
    """
    replaced = [name for name in frame.columns if name in columns]
    kept = frame.drop(columns=replaced) if replaced else frame.copy(deep=False)
    for name, array in columns.items():
        kept[name] = backend.series_like(frame, array)
    return kept


def values_of(kind: pa.DataType | None) -> pa.DataType | None:
    """The type within a list; None of others."""
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return kind.value_type if kind is not None and any(is_kind(kind) for is_kind in lists) else None


def is_boxes(kind: pa.DataType) -> bool:
    """Whether a type may be that of boxes: lists of lists of numbers."""
    inner = values_of(values_of(kind))
    return inner is not None and bool(pa.types.is_floating(inner) or pa.types.is_integer(inner))
