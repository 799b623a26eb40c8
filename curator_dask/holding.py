"""What cuDF can hold of Arrow's types, and the way back.

cuDF 26.10 has no fixed-size or large list, map, bytes, time, decimal of 256 bits, half float, nested dictionary nor
extension type; some it refuses with a TypeError, of others (bytes, maps) it says text. A column of such a type is held
as another without loss: bytes as lists of uint8, a map as a list of pairs, a time as its number. The Arrow schema of
what was read stays the truth: by it a column is restored before it is written.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.errors import ShardError

BYTES = pa.list_(pa.uint8())
_MOST = np.iinfo(np.int32).max  # values of all lists of a column

_kinds = pa.types


def held_type(kind: pa.DataType) -> pa.DataType:
    """The type as which cuDF holds a column of a type: often the same.

    Text of all kinds is ``string``, as which cuDF gives it back.
    """
    if kind == pa.uuid() or _kinds.is_null(kind) or _is_text(kind) or _kinds.is_decimal256(kind):
        return pa.string()
    if isinstance(kind, pa.BaseExtensionType):
        return held_type(kind.storage_type)
    if _kinds.is_dictionary(kind) or _kinds.is_run_end_encoded(kind):
        return held_type(kind.value_type)
    if _is_bytes(kind):
        return BYTES
    if _kinds.is_map(kind):
        return held_type(_as_pairs(kind))
    if _is_list(kind):
        return pa.list_(held_type(kind.value_type))
    if _kinds.is_struct(kind):
        return pa.struct([(field.name, held_type(field.type)) for field in kind])
    return _NUMBERS.get(kind, kind)


#: Types with a number behind them, and what that is held as. Dates are cuDF's own choice, said here for what is nested.
_NUMBERS = {
    pa.float16(): pa.float32(),
    pa.date32(): pa.timestamp("s"),
    pa.date64(): pa.timestamp("s"),
    pa.time32("s"): pa.int32(),
    pa.time32("ms"): pa.int32(),
    pa.time64("us"): pa.int64(),
    pa.time64("ns"): pa.int64(),
}


def hold(array: pa.Array) -> pa.Array:
    """An array as cuDF can hold it: of type `held_type`, with the same values and nulls."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType) and kind != pa.uuid():
        return hold(array.storage)
    if _kinds.is_dictionary(kind) or _kinds.is_run_end_encoded(kind):
        return hold(
            pc.run_end_decode(array) if _kinds.is_run_end_encoded(kind) else array.dictionary_decode()
        )
    wanted = held_type(kind)
    if kind == wanted:
        return array
    if kind == pa.uuid():
        return pa.array([None if each is None else str(each) for each in array.to_pylist()], pa.string())
    if _is_bytes(kind):
        return _bytes_to_lists(array)
    if _kinds.is_map(kind):
        return hold(array.cast(pa.list_(_as_pairs(kind).value_type)))
    if _is_list(kind):
        return _list_of(array, hold(pc.list_flatten(array)))
    if _kinds.is_struct(kind):
        fields = [hold(each) for each in array.flatten()]
        return pa.StructArray.from_arrays(fields, fields=list(wanted), mask=array.is_null())
    return array.cast(wanted)


def held_table(table: pa.Table) -> pa.Table:
    """A table whose columns are all of a type that cuDF can hold."""
    columns = [
        pa.chunked_array([hold(chunk) for chunk in column.chunks], held_type(column.type))
        for column in table.columns
    ]
    return pa.table(columns, names=table.column_names)


def with_nested_types(table: pa.Table, kinds: Sequence[pa.DataType | None]) -> pa.Table:
    """A table that cuDF gave, with the types of its lists and structs: without a value they are forgotten.

    Parameters
    ----------
    table
        Of `cudf.DataFrame.to_arrow`.
    kinds
        What the types of the frame's columns are to Arrow; None for a column that has none.
    """
    for number, (field, kind) in enumerate(zip(table.schema, kinds, strict=True)):
        column = with_nested_type(table.column(number), kind)
        if column.type != field.type:
            table = table.set_column(number, field.name, column)
    return table


def with_nested_type(
    array: pa.Array | pa.ChunkedArray, kind: pa.DataType | None
) -> pa.Array | pa.ChunkedArray:
    """The same of one column."""
    if kind is None or array.type == kind or not (_is_list(kind) or _kinds.is_struct(kind)):
        return array
    if isinstance(array, pa.ChunkedArray):
        return pa.chunked_array([restore(chunk, kind) for chunk in array.chunks], kind)
    return restore(array, kind)


def restore(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """An array of a type again; the inverse of `hold`, and elsewhere a cast.

    What cuDF forgets of a column without a value, the type within a list or a struct, is given back too.

    Raises
    ------
    pa.ArrowException, ValueError
        A value does not fit the type.
    """
    if array.type == kind:
        return array
    if _kinds.is_null(array.type) or (_kinds.is_null(kind) and array.null_count == len(array)):
        return pa.nulls(len(array), kind)
    if kind == pa.uuid() and _is_text(array.type):
        raw = [None if each is None else uuid.UUID(each).bytes for each in array.to_pylist()]
        return pa.ExtensionArray.from_storage(kind, pa.array(raw, kind.storage_type))
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, restore(array, kind.storage_type))
    if _kinds.is_dictionary(kind):
        return restore(array, kind.value_type).dictionary_encode().cast(kind)
    if _is_bytes(kind) and array.type == BYTES:
        return _lists_to_bytes(array).cast(kind)
    if _kinds.is_map(kind) and _is_list(array.type):
        pairs = restore(array, pa.list_(_as_pairs(kind).value_type))
        keys, items = pc.list_flatten(pairs).flatten()
        return pa.MapArray.from_arrays(_offsets_with_nulls(pairs), keys, items, type=kind)
    if _is_list(kind) and _is_list(array.type):
        return _to_lists(array, kind)
    if _kinds.is_struct(kind) and _kinds.is_struct(array.type):
        given = dict(zip([each.name for each in array.type], array.flatten(), strict=True))
        if set(given) == {each.name for each in kind}:
            fields = [restore(given[each.name], each.type) for each in kind]
            return pa.StructArray.from_arrays(fields, fields=list(kind), mask=array.is_null())
    return array.cast(kind)


def _is_text(kind: pa.DataType) -> bool:
    return bool(_kinds.is_string(kind) or _kinds.is_large_string(kind) or _kinds.is_string_view(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    tests = (_kinds.is_binary, _kinds.is_large_binary, _kinds.is_fixed_size_binary, _kinds.is_binary_view)
    return any(is_kind(kind) for is_kind in tests)


def _is_list(kind: pa.DataType) -> bool:
    tests = (_kinds.is_list, _kinds.is_large_list, _kinds.is_fixed_size_list)
    return any(is_kind(kind) for is_kind in tests)


def _as_pairs(kind: pa.MapType) -> pa.DataType:
    return pa.list_(pa.struct([kind.key_field, kind.item_field]))


def _offsets(lengths: Any) -> pa.Array:
    counts = pc.fill_null(lengths, 0).to_numpy(zero_copy_only=False)
    ends = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    if ends[-1] > _MOST:
        raise ShardError(
            f"{len(counts)} rows have {ends[-1]} bytes or values in one column, a column of lists or bytes on a GPU"
            f" holds at most {_MOST}: use smaller partitions (rows_per_partition), or workers on CPUs"
        )
    return pa.array(ends.astype(np.int32))


def _offsets_with_nulls(lists: pa.Array) -> pa.Array:
    """As Arrow takes them where it takes no mask: null before what is null."""
    offsets = _offsets(pc.list_value_length(lists)).to_numpy()
    missing = np.append(lists.is_null().to_numpy(zero_copy_only=False), False)
    return pa.array(offsets, mask=missing)


def _list_of(array: pa.Array, values: pa.Array) -> pa.Array:
    """Lists as long as those of an array, of these values."""
    return pa.ListArray.from_arrays(_offsets(pc.list_value_length(array)), values, mask=array.is_null())


def _bytes_to_lists(array: pa.Array) -> pa.Array:
    array = array.cast(pa.large_binary())
    offsets = _offsets(pc.binary_length(array))
    whole = b"".join(each for each in array.to_pylist() if each is not None)
    values = pa.array(np.frombuffer(whole, np.uint8))
    return pa.ListArray.from_arrays(offsets, values, mask=array.is_null())


def _lists_to_bytes(array: pa.Array) -> pa.Array:
    values = pc.list_flatten(array).to_numpy(zero_copy_only=False).tobytes()
    offsets = _offsets(pc.list_value_length(array)).to_numpy()
    missing = array.is_null().to_numpy(zero_copy_only=False)
    pairs = zip(offsets[:-1], offsets[1:], missing, strict=True)
    return pa.array([None if gone else values[first:last] for first, last, gone in pairs], pa.binary())


def _to_lists(array: pa.Array, kind: pa.DataType) -> pa.Array:
    values = restore(pc.list_flatten(array), kind.value_type)
    if not _kinds.is_fixed_size_list(kind):
        return _list_of(array, values).cast(kind)
    lengths = pc.list_value_length(array)
    odd = pc.unique(lengths).drop_null().to_pylist()
    if odd not in ([], [kind.list_size]):
        raise ValueError(f"expected lists of one length {kind.list_size}, found lengths {sorted(odd)[:5]}")
    missing = array.is_null().to_numpy(zero_copy_only=False)
    places = np.zeros((len(array), kind.list_size), np.int64)
    places[~missing] = np.arange(len(values)).reshape(-1, kind.list_size)
    taken = values.take(pa.array(places.reshape(-1), mask=np.repeat(missing, kind.list_size)))
    return pa.FixedSizeListArray.from_arrays(taken, type=kind, mask=pa.array(missing))
