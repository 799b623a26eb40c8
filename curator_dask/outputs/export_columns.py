"""The columns of an export: those of the rows that it takes, and those of the Parquet beside each new tar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from curator_dask.errors import OutputError
from curator_dask.frames.faults import faults_told
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import open_parquet
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.selecting import Folder
from curator_dask.threads import in_threads


def schema_of(rows: Folder, names: Sequence[str]) -> pa.Schema:
    """The columns of all files together."""

    def look(name: str) -> pa.Schema:
        with faults_told(rows.file(name)), open_parquet(rows.file(name), rows.options) as file:
            return file.schema_arrow.remove_metadata()

    try:
        return pa.unify_schemas(in_threads(look, names), promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise OutputError(f"{rows.path}: the columns of its files do not fit each other: {error}") from error


def texts_of(table: pa.Table, column: str) -> list[bytes | None]:
    """The bytes of a column of text, all of them null where a file has no such column."""
    if column not in table.column_names:
        return [None] * len(table)
    # By way of text, as a dictionary of it cannot be cast to bytes; what is no UTF-8 stays as it is.
    texts: list[bytes | None] = (
        table.column(column).cast(pa.large_string()).cast(pa.large_binary()).to_pylist()
    )
    return texts


def as_pickled(kind: pa.DataType) -> pa.DataType:
    """A type as pickle leaves it, which names the values of fixed-size lists anew: whoever writes, it is the same."""
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(as_pickled(kind.value_type), kind.list_size)
    if pa.types.is_struct(kind):
        return pa.struct([each.with_type(as_pickled(each.type)) for each in kind])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(as_pickled(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(as_pickled(kind.value_type)))
    return kind


def schema_beside(
    found: pa.Schema, id_col: str, text_keys: bool, old_id_col: str | None, made: Sequence[pa.Field] = ()
) -> pa.Schema:
    """The columns of the Parquet beside each tar: all but the shard, which is another now, and those that are made."""
    fields = [
        each.with_type(pa.string())
        if each.name == id_col and text_keys
        else each.with_type(as_pickled(each.type))
        for each in found
        if each.name != URL_COLUMN and each.name not in {new.name for new in made}
    ]
    if old_id_col is not None:
        fields.append(pa.field(old_id_col, pa.string()))
    return pa.schema([*fields, *made])


def conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of a schema, null where the table has none."""
    columns = {
        each.name: table.column(each.name).cast(each.type)
        if each.name in table.column_names
        else pa.nulls(len(table), each.type)
        for each in schema
    }
    return pa.table(columns, schema=schema)


def common_record(records: Sequence[FileRecord], id_col: str) -> FileRecord:
    """What the records of several files say alike of their vectors and scores."""

    def alike(name: str) -> dict[str, Any]:
        said = [getattr(record, name) for record in records]
        return {
            column: value
            for column, value in (said[0].items() if said else ())
            if all(each.get(column) == value for each in said)
        }

    return FileRecord(
        "", id_col=id_col, embeddings=alike("embeddings"), scores=alike("scores"), derived=("export",)
    )


def type_said(kind: pa.DataType) -> str:
    """A type without the name of a list's values, of which Arrow and Parquet have two that mean the same."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"list of {type_said(kind.value_type)}"
    if pa.types.is_fixed_size_list(kind):
        return f"{kind.list_size} of {type_said(kind.value_type)}"
    return str(kind)
