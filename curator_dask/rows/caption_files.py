"""Tables of users as files: Parquet, JSON Lines, CSV and TSV."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curator_dask.frames.names import FILE_COLUMN
from curator_dask.rows.caption_csv import read_csv, read_tsv
from curator_dask.rows.caption_json import read_json
from curator_dask.rows.key_column import FILES, KeyColumn

_NAMELESS = b"curator_dask.nameless"  # of a table's metadata
_INDEX = re.compile(r"__index_level_\d+__")  # as pandas calls one in Parquet


def read_captions(path: str, data: bytes) -> pa.Table:
    """The table in a file's bytes, by the suffix of its name, with the files' names as text.

    Raises
    ------
    ValueError
        It is of another type, cannot be read, or has no column ``file_name`` of text.
    """
    table = read_table(path, data, FILES)
    names = table.column(FILE_COLUMN)
    try:
        names = pc.cast(names, pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(
            f"column {FILE_COLUMN!r}: expected text in UTF-8, the paths of the images below their folder, found"
            f" {names.type}: write it as text"
        ) from error
    return table.set_column(table.column_names.index(FILE_COLUMN), FILE_COLUMN, names)


def read_table(path: str, data: bytes, key: KeyColumn) -> pa.Table:
    """The table in a file's bytes, by the suffix of its name, with a column of keys.

    Raises
    ------
    ValueError
        It is of another type, cannot be read, or has no such column.
    """
    read = _READERS.get(Path(path).suffix.lower())
    if read is None:
        raise ValueError(f"expected a file of the type {', '.join(_READERS)}")
    table = tidy(read(data, key))
    key.check(table.column_names)
    return table


#: Views, and what Arrow can pick rows of: within other types, and else.
_OF_VIEWS = {
    pa.string_view(): (pa.string(), pa.large_string()),
    pa.binary_view(): (pa.binary(), pa.large_binary()),
}


def tidy(table: pa.Table) -> pa.Table:
    """Without columns that have no name, and none of the types of which Arrow itself cannot pick rows.

    Raises
    ------
    ValueError
        Several columns have one name.
    """
    table = _named(table)
    if twice := sorted(name for name, count in Counter(table.column_names).items() if count > 1):
        raise ValueError(
            f"several columns are named {', '.join(map(repr, twice))}: give each a name of its own"
        )
    kinds = [plain_kind(each.type) for each in table.schema]
    plain = [each.with_type(kind) for each, kind in zip(table.schema, kinds, strict=True)]
    columns = [_as_plain(column, kind) for column, kind in zip(table.columns, kinds, strict=True)]
    return pa.table(columns, pa.schema(plain, table.schema.metadata))


def plain_kind(kind: pa.DataType, large: bool = True) -> pa.DataType:
    """A type without views, as which some writers have their text and lists, at whatever depth.

    Parameters
    ----------
    kind
        The type.
    large
        Text becomes ``large_string``, of which a column may have more than 2 GB; not within lists.
    """
    if kind in _OF_VIEWS:
        return _OF_VIEWS[kind][large]
    if pa.types.is_struct(kind):
        return pa.struct([each.with_type(plain_kind(each.type, False)) for each in kind])
    if pa.types.is_map(kind):
        keys, values = plain_kind(kind.key_type, False), plain_kind(kind.item_type, False)
        return pa.map_(kind.key_field.with_type(keys), kind.item_field.with_type(values))
    if pa.types.is_list(kind) or pa.types.is_list_view(kind):
        return pa.list_(kind.value_field.with_type(plain_kind(kind.value_type, False)))
    if pa.types.is_large_list(kind) or pa.types.is_large_list_view(kind):
        return pa.large_list(kind.value_field.with_type(plain_kind(kind.value_type, False)))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(plain_kind(kind.value_type, False)), kind.list_size)
    return kind


def _as_plain(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if column.type == kind:
        return column
    if "list_view" not in str(column.type):
        return column.cast(kind)
    # Value by value: Arrow's own cast (26.0) of views of lists makes the last one empty.
    return pa.chunked_array([pa.array(chunk.to_pylist(), kind) for chunk in column.chunks], kind)


def _named(table: pa.Table) -> pa.Table:
    """Without the columns that have no name of their own: pandas writes its index so, spreadsheets empty columns."""
    names = table.column_names
    without = [number for number, name in enumerate(names) if not name.strip() or _INDEX.fullmatch(name)]
    if not without:
        return table
    said = json.dumps([f"column {number + 1}" for number in without])
    kept = table.select([number for number in range(len(names)) if number not in without])
    return kept.replace_schema_metadata({_NAMELESS: said})


def nameless_of(table: pa.Table) -> list[str]:
    """The columns that `read_captions` has left out."""
    found: list[str] = json.loads((table.schema.metadata or {}).get(_NAMELESS, b"[]"))
    return found


def _read_parquet(data: bytes, _: KeyColumn) -> pa.Table:
    with pq.ParquetFile(io.BytesIO(data)) as file:  # `read_table` does not say which columns have one name
        return file.read()


_READERS: dict[str, Callable[[bytes, KeyColumn], pa.Table]] = {
    ".parquet": _read_parquet,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".jsonl": read_json,
}
#: Suffixes of the files that are read.
TABLES = tuple(_READERS)
