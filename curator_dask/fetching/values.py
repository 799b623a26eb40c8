"""Values of a table as shards can have them: text in UTF-8, and what goes into a sample's JSON."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.errors import DatasetError
from curator_dask.outputs.json_fields import json_value


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column as text; what is no UTF-8 in it is U+FFFD, as Parquet's writers do not all look at what they write.

    Raises
    ------
    pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError
        It holds something else.
    """
    try:
        found = pc.cast(column, pa.string())
        found.validate(full=True)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        if _as_bytes(column.type) not in (pa.binary(), pa.large_binary()):
            raise
        return _decoded(column, pa.string())
    return found


def in_utf8(table: pa.Table) -> pa.Table:
    """A table whose text is UTF-8, by the same rule, also within lists and fields."""
    for place, each in enumerate(table.schema):
        column = table.column(place)
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            table = table.set_column(place, each, _decoded(column, each.type))
    return table


def _decoded(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    values = column.cast(_as_bytes(column.type)).to_pylist()
    return pa.chunked_array([pa.array([_text_in(each, kind) for each in values], kind)])


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    """A type with bytes in the place of text."""
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pa.binary() if pa.types.is_string(kind) else pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct([each.with_type(_as_bytes(each.type)) for each in kind])
    if pa.types.is_map(kind):
        return pa.map_(_as_bytes(kind.key_type), _as_bytes(kind.item_type))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        make = pa.list_ if pa.types.is_list(kind) else pa.large_list
        return make(kind.value_field.with_type(_as_bytes(kind.value_type)))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_as_bytes(kind.value_type)), kind.list_size)
    return kind


def _text_in(value: Any, kind: pa.DataType) -> Any:
    """A value of a type, whose text is bytes as yet."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace") if _as_bytes(kind) != kind else value
    if isinstance(value, dict):
        return {each.name: _text_in(value[each.name], each.type) for each in kind}
    if isinstance(value, list) and pa.types.is_map(kind):
        return [(_text_in(name, kind.key_type), _text_in(each, kind.item_type)) for name, each in value]
    if isinstance(value, list):
        return [_text_in(each, kind.value_type) for each in value]
    return value


def json_rows(table: pa.Table) -> list[dict[str, Any]]:
    """The rows as JSON can have them.

    Raises
    ------
    DatasetError
        A column has what there is no word for.
    """
    columns = {name: _told(name, table.column(name)) for name in table.column_names}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _told(name: str, column: pa.ChunkedArray) -> list[Any]:
    try:
        return [json_value(each) for each in column.to_pylist()]
    except (ValueError, OverflowError) as error:
        said = error
    # A date after the year 9999, or a zone, that Python does not have: as its number, in the column's unit.
    for kind in (pa.int64(), pa.int32()):
        try:
            found: list[Any] = pc.cast(column, kind).to_pylist()
            return found
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            continue
    raise DatasetError(
        f"column {name!r} ({column.type}) cannot be written as JSON: {said}. Leave it out (columns=, --columns)"
    ) from said
