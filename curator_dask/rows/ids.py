"""The ids of a shard's rows: which of them can be keys, what must not be among them, and what they leave out."""

from __future__ import annotations

import contextlib
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.errors import DatasetError, ShardError
from curator_dask.holding import BYTES, held_type, restore

_FEW = 3  # rows that an error names
_SIGNIFICAND = {pa.float16(): 11, pa.float32(): 24, pa.float64(): 53}  # bits
#: Types that Arrow's functions do not all know.
_PLAINER = {pa.float16(): pa.float32(), pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}

_ID_KINDS = (
    *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
    *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary),
    *(pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_date, pa.types.is_null),
)


def exact_ids(ids: pa.Array) -> list[Any]:
    """The ids as Python values; None for a number that a narrow float cannot hold exactly, whose key is lost."""
    ids = _as_read(_decoded(ids))
    values: list[Any] = ids.to_pylist()
    digits = _SIGNIFICAND.get(ids.type)
    if digits is None:
        return values
    return [None if value is None or abs(value) >= 2**digits else value for value in values]


def id_texts(ids: pa.Array) -> list[str | None]:
    """The ids as text, as Arrow writes them: as those of a file are, also where cuDF holds them as another type."""
    texts: list[str | None] = _as_read(ids).cast(pa.string()).to_pylist()
    return texts


def check_id_type(kind: pa.DataType, id_col: str) -> None:
    """See that the values of a column of this type have a text that can be a key.

    Raises
    ------
    DatasetError
        They have none, or one that is written in several ways (times), or too few differ (booleans).
    """
    if not any(is_kind(_value_type(kind)) for is_kind in _ID_KINDS):
        raise DatasetError(
            f"id_col={id_col!r}: expected text, bytes, whole numbers, dates or UUIDs, found {kind}. Give id_col"
            " (--id-col) the column whose values are the keys of images, or write that column as text"
        )


def _value_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values that a dictionary, or a type that is no one of Arrow's own, holds."""
    if pa.types.is_dictionary(kind):
        return _value_type(kind.value_type)
    return _value_type(kind.storage_type) if isinstance(kind, pa.BaseExtensionType) else kind


def _decoded(ids: pa.Array) -> pa.Array:
    return ids.dictionary_decode() if pa.types.is_dictionary(ids.type) else ids


def _as_read(ids: pa.Array) -> pa.Array:
    """Ids as they were before cuDF held them: there bytes are lists, and dates times, which no ids are."""
    if ids.type == BYTES:
        return restore(ids, pa.binary())
    if ids.type == held_type(pa.date32()):
        with contextlib.suppress(pa.ArrowInvalid):  # of a time that is not midnight
            return ids.cast(pa.date32())
    return ids


def check_ids(ids: pa.ChunkedArray, id_col: str, path: str) -> None:
    """See that every row of a companion Parquet has an id, and no two have the same.

    Parameters
    ----------
    ids
        The column of the whole file.
    id_col
        Its name, for the message.
    path
        The file's, for the message.

    Raises
    ------
    ShardError
        There are null (or NaN) or repeated ids; names the rows, counted from 0.
    """
    values = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    values = _decoded(values)
    digits = _SIGNIFICAND.get(values.type)
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    values = values.cast(_PLAINER.get(values.type, values.type))
    _check_text(values, id_col, path)
    nulls = values.is_null(nan_is_null=True)
    if pc.any(nulls).as_py():
        rows = pc.indices_nonzero(nulls).to_pylist()
        raise ShardError(
            f"{path}: {len(rows)} of {len(values)} rows have no id (column {id_col!r} is null): rows {_listed(rows)}."
            " No image can be found for them: give them the keys of their images, or leave them out"
        )
    if digits is not None:  # numbers that became equal by rounding match nothing, each on its own account
        values = pc.if_else(pc.less(pc.abs(values), 2.0**digits), values, pa.scalar(None, values.type))
    if len(pc.unique(values).drop_null()) == len(values) - values.null_count:
        return
    raise ShardError(f"{path}: {_repeated(values, id_col)}")


def _check_text(values: pa.Array, id_col: str, path: str) -> None:
    try:
        values.validate(full=True)
    except pa.ArrowInvalid:
        for row, raw in enumerate(values.cast(pa.large_binary()).to_pylist()):
            try:
                (raw or b"").decode()
            except UnicodeDecodeError:
                raise ShardError(
                    f"{path}: expected text in the column {id_col!r}, found bytes that are not UTF-8 in row {row}:"
                    f" {raw[:40]!r}. Write the column as binary, or the keys as UTF-8"
                ) from None


def _repeated(values: pa.Array, id_col: str) -> str:
    rows_of: dict[Any, list[int]] = {}
    for row, value in enumerate(values.to_pylist()):
        rows_of.setdefault(value, []).append(row)
    doubled = {value: rows for value, rows in rows_of.items() if len(rows) > 1 and value is not None}
    shown = [f"{value!r} in rows {_listed(rows)}" for value, rows in [*doubled.items()][:_FEW]]
    more = f" and {len(doubled) - _FEW} more" if len(doubled) > _FEW else ""
    return (
        f"{len(doubled)} ids stand in several rows (column {id_col!r}): {'; '.join(shown)}{more}. Which row is the"
        " image's cannot be told: leave one row of each, or give id_col the column whose values are the keys in the"
        " tar"
    )


def _listed(rows: list[int]) -> str:
    more = f", … ({len(rows)} in all)" if len(rows) > _FEW else ""
    return ", ".join(map(str, rows[:_FEW])) + more
