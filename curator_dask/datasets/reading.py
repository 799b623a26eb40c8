"""Rows of a shard: from its companion Parquet, or from the tar's own captions and JSON."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from curator_dask import backend
from curator_dask.errors import CuratorError, DatasetError, ShardError
from curator_dask.frames.parquet import METADATA_KEY
from curator_dask.webdataset.index import Sample, key_text
from curator_dask.webdataset.reader import ShardReader
from curator_dask.webdataset.shards import Shard, ShardRange, stamp

logger = logging.getLogger("curator_dask")

URL_COLUMN = "__url__"
CAPTION_COLUMN = "caption"
#: Shards that are looked at on the client to learn the columns, spread evenly over the dataset.
SCHEMA_SHARDS = 16
#: Samples of each of these whose JSON is read, where there is no Parquet.
SCHEMA_SAMPLES = 64


@dataclass(frozen=True)
class ReadShard:
    """Reads the rows of a `ShardRange` as a frame; the root of every dataset's graph.

    Attributes
    ----------
    id_col
        Column of the keys.
    source
        ``"parquet"`` (the companion file) or ``"tar"``.
    schema
        Columns of every partition; the last is ``__url__``.
    storage_options
        For fsspec.
    """

    id_col: str
    source: str
    schema: pa.Schema
    storage_options: Mapping[str, Any] | None = None

    @property
    def recipe(self) -> tuple[str, str]:
        """What is done to a shard, for fingerprints: the columns found in it are none of that."""
        return ("read", self.id_col)

    def __dask_tokenize__(self) -> Any:
        schema = str(self.schema.to_string(show_schema_metadata=False))
        return (type(self).__name__, self.id_col, self.source, schema, self.storage_options)

    def __call__(self, part: ShardRange) -> Any:
        """The rows of the range, in the order of the Parquet or of the tar.

        Raises
        ------
        ShardError
            The Parquet (or, without one, the tar) cannot be read or does not fit the dataset's columns.
        """
        read = read_parquet_rows if self.source == "parquet" else read_tar_rows
        try:
            table = read(part, self.schema, self.id_col, self.storage_options)
        except UnicodeEncodeError as error:
            raise ShardError(
                f"{part.shard.url!r}: a name that is not UTF-8 cannot be a value: {error}"
            ) from error
        return backend.current().from_arrow(table)

    def count(self, shard: Shard) -> int:
        """Rows of a shard, from the Parquet's footer or the tar's index."""
        if self.source == "parquet":
            with _open_parquet(shard, self.storage_options) as file:
                return file.metadata.num_rows
        with ShardReader(shard.url, storage_options=self.storage_options) as reader:
            return len(reader.index.samples)


def learn_schema(
    shards: Sequence[Shard], source: str, id_col: str, storage_options: Mapping[str, Any] | None = None
) -> pa.Schema:
    """The columns of a dataset, from at most `SCHEMA_SHARDS` of its shards, ``__url__`` last.

    A column that some of them lack is null there; numbers widen.

    Raises
    ------
    DatasetError
        No key column, or two shards whose columns cannot be one.
    """
    step = max(1, -(-len(shards) // SCHEMA_SHARDS))
    looked = list(dict.fromkeys([*shards[::step], shards[-1]]))
    look = _parquet_schema if source == "parquet" else _tar_schema
    join = _join_parquet if source == "parquet" else _join_tar
    schema, problems = pa.schema([]), []
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda shard: _try(look, shard, id_col, storage_options), looked)
        for shard, result in zip(looked, found, strict=True):
            if isinstance(result, CuratorError):
                problems.append(result)  # a shard that cannot be read is that shard's own trouble
                continue
            try:
                schema = join(schema, result)
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise DatasetError(
                    f"{shard.parquet or shard.url}: its columns do not fit those of the shards before it: {error}."
                    " Rewrite it with the same types, or make two datasets"
                ) from error
    if len(problems) == len(looked):
        raise DatasetError(
            f"none of the {len(looked)} shards looked at can be read; the first: {problems[0]}"
        )
    if id_col not in schema.names:
        raise DatasetError(
            f"id_col={id_col!r}: no such column in {shards[0].parquet or shards[0].url}; it has {schema.names}."
            " Give the column whose values are the keys in the tar"
        )
    if pa.types.is_nested(schema.field(id_col).type):
        raise DatasetError(f"id_col={id_col!r}: expected text or numbers, found {schema.field(id_col).type}")
    fields = [
        # Only nulls were seen so far: text is what such columns (error messages, mostly) turn out to hold.
        pa.field(field.name, _plain(field.type))
        for field in schema
        if field.name != URL_COLUMN
    ]
    return pa.schema([*fields, pa.field(URL_COLUMN, pa.string())])


def read_parquet_rows(
    part: ShardRange, schema: pa.Schema, id_col: str, storage_options: Mapping[str, Any] | None = None
) -> pa.Table:
    """The range's rows of the companion Parquet, with the schema's columns and types.

    If that is the output of an earlier run over a shard without Parquet, and the tar has changed since, the rows
    are the tar's.
    """
    with _open_parquet(part.shard, storage_options) as file:
        found = file.schema_arrow
        if _outdated(found, part.shard, storage_options):
            return read_tar_rows(part, schema, id_col, storage_options)
        wanted = [name for name in schema.names if name in found.names and name != URL_COLUMN]
        extra = set(found.names) - set(schema.names)
        if extra and METADATA_KEY not in (found.metadata or {}):
            raise ShardError(
                f"{part.shard.parquet}: has columns {sorted(extra)} that the shards looked at first do not have"
                f" ({schema.names}). Give all companion files the same columns"
            )
        table = _row_range(file, wanted, part.start, part.stop)
    arrays = []
    for field in schema:
        if field.name == URL_COLUMN:
            arrays.append(_constant(part.shard.url, table.num_rows))
        elif field.name not in wanted:
            arrays.append(pa.nulls(table.num_rows, field.type))
        else:
            arrays.append(_widen(table.column(field.name), field, part.shard))
    return pa.table(arrays, schema=schema)


def read_tar_rows(
    part: ShardRange, schema: pa.Schema, id_col: str, storage_options: Mapping[str, Any] | None = None
) -> pa.Table:
    """One row a sample of the range: its key, its caption and the scalar fields of its JSON.

    A value that does not fit the column's type becomes null; how many is logged once a shard.
    """
    with ShardReader(part.shard.url, storage_options=storage_options) as reader:
        if reader.index.problem:
            logger.warning("%s: %s", part.shard.url, reader.index.problem)
        samples = reader.index.samples[part.start : part.stop]
        rows = [_tar_row(reader, sample, id_col) for sample in samples]
    arrays, misfits = [], {}
    for field in schema:
        if field.name == URL_COLUMN:
            arrays.append(_constant(part.shard.url, len(rows)))
            continue
        values = [_scalar(row.get(field.name), field.type) for row in rows]
        lost = sum(
            row.get(field.name) is not None and value is None for row, value in zip(rows, values, strict=True)
        )
        if lost:
            misfits[field.name] = lost
        arrays.append(pa.array(values, field.type))
    if misfits:
        logger.warning(
            "%s: values in the JSON that do not fit their column became null: %s", part.shard.url, misfits
        )
    return pa.table(arrays, schema=schema)


def _open_parquet(shard: Shard, storage_options: Mapping[str, Any] | None) -> pq.ParquetFile:
    assert shard.parquet is not None
    try:
        if "://" in shard.parquet:
            return pq.ParquetFile(fsspec.open(shard.parquet, "rb", **(storage_options or {})).open())
        return pq.ParquetFile(shard.parquet)
    except (OSError, pa.ArrowInvalid) as error:
        raise ShardError(
            f"{shard.parquet}: not a Parquet file that can be read: {error}. Restore it, or read the rows from the"
            " tars with metadata='tar'"
        ) from error


def _outdated(schema: pa.Schema, shard: Shard, storage_options: Mapping[str, Any] | None) -> bool:
    try:
        stored = json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))
        return stored.get("source") == "tar" and stored["shard"]["tar"] != vars(
            stamp(shard.url, storage_options)
        )
    except (ValueError, KeyError, TypeError, AttributeError, ShardError):
        return False


def _row_range(file: pq.ParquetFile, columns: list[str], start: int, stop: int | None) -> pa.Table:
    """Rows ``start:stop``, reading only the row groups that hold them."""
    first, groups, skipped = 0, [], 0
    for number in range(file.num_row_groups):
        last = first + file.metadata.row_group(number).num_rows
        if last <= start:
            skipped = last
        elif stop is None or first < stop:
            groups.append(number)
        first = last
    table = file.read_row_groups(groups, columns=columns)
    return table.slice(start - skipped, None if stop is None else stop - start)


def _parquet_schema(shard: Shard, id_col: str, storage_options: Mapping[str, Any] | None) -> pa.Schema:
    with _open_parquet(shard, storage_options) as file:
        return file.schema_arrow.remove_metadata()


def _tar_schema(shard: Shard, id_col: str, storage_options: Mapping[str, Any] | None) -> pa.Schema:
    columns: dict[str, pa.DataType] = {}
    with ShardReader(shard.url, storage_options=storage_options) as reader:
        for sample in reader.index.samples[:SCHEMA_SAMPLES]:
            for name, value in _tar_row(reader, sample, id_col).items():
                columns[name] = _join_types(columns.get(name, pa.null()), _type_of(value))
    head = {id_col: pa.string(), CAPTION_COLUMN: pa.string()}
    return pa.schema([*head.items(), *((name, kind) for name, kind in columns.items() if name not in head)])


def _tar_row(reader: ShardReader, sample: Sample, id_col: str) -> dict[str, Any]:
    row: dict[str, Any] = {}
    document, caption = sample.component("json"), sample.component("txt")
    if document is not None:
        try:
            parsed = json.loads(bytes(reader.read(document)).decode("utf-8-sig"))
        except (ValueError, RecursionError, CuratorError):
            parsed = None  # the image may be well: only the fields are missing
        if isinstance(parsed, dict):
            row = {
                _clean(name): _clean(value)
                for name, value in parsed.items()
                if isinstance(value, bool | int | float | str)
            }
    if caption is not None:
        try:
            row[CAPTION_COLUMN] = _text(bytes(reader.read(caption)))
        except CuratorError:
            row.pop(CAPTION_COLUMN, None)
    row.pop(URL_COLUMN, None)
    # A name that is not UTF-8 cannot be a text value: its odd bytes are shown as \xNN.
    row[id_col] = key_text(sample.key)
    return row


def _clean(value: Any) -> Any:
    """Text without lone surrogates, which JSON can write and no column can hold; other values as they are."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _text(data: bytes) -> str:
    """UTF-8, with or without byte order mark; what is not UTF-8 is Latin-1, which every byte string is."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _type_of(value: Any) -> pa.DataType:
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        return pa.int64() if -(2**63) <= value < 2**63 else pa.string()
    return pa.float64() if isinstance(value, float) else pa.string()


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type that a column of this type is read as."""
    if pa.types.is_null(kind) or pa.types.is_string_view(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind


def _join_parquet(one: pa.Schema, other: pa.Schema) -> pa.Schema:
    return pa.unify_schemas([one, other], promote_options="permissive")


def _join_tar(one: pa.Schema, other: pa.Schema) -> pa.Schema:
    """The same for JSON, which has no types of its own: what differs is text."""
    kinds = {field.name: field.type for field in one}
    for field in other:
        kinds[field.name] = _join_types(kinds.get(field.name, pa.null()), field.type)
    return pa.schema(list(kinds.items()))


def _join_types(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    if one == other or pa.types.is_null(one):
        return other
    return pa.float64() if {one, other} == {pa.int64(), pa.float64()} else pa.string()


def _scalar(value: Any, kind: pa.DataType) -> Any:
    """The value as `kind`, or None where it does not fit."""
    if value is None or isinstance(value, str):
        return value if value is None or pa.types.is_string(kind) else None
    if pa.types.is_string(kind):
        return json.dumps(value)
    if kind == pa.float64() and not isinstance(value, bool):
        return float(value)
    return value if _type_of(value) == kind else None


def _widen(column: pa.ChunkedArray, field: pa.Field, shard: Shard) -> pa.ChunkedArray:
    if column.type == field.type:
        return column
    if _plain(column.type) == field.type:
        return column.cast(field.type)
    try:
        both = pa.unify_schemas(
            [pa.schema([(field.name, column.type)]), pa.schema([field])], promote_options="permissive"
        )
        if both.field(0).type == field.type:
            return column.cast(field.type)
        reason = ""
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        reason = f" ({error})"
    raise ShardError(
        f"{shard.parquet}: column {field.name!r}: expected {field.type}, found {column.type}{reason}. Rewrite the file"
        " with the type that the other shards have"
    )


def _constant(text: str, rows: int) -> pa.Array:
    return pa.repeat(pa.scalar(text, pa.string()), rows)


def _try(function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except CuratorError as error:
        return error
