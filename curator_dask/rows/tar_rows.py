"""Rows of a shard that has no Parquet: from the captions and the JSON in its tar."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from curator_dask.errors import CuratorError
from curator_dask.frames.names import CAPTION_COLUMN, URL_COLUMN
from curator_dask.rows.remarks import fact_of, remark
from curator_dask.webdataset.index import warn_once
from curator_dask.webdataset.reader import ShardReader
from curator_dask.webdataset.samples import Sample, key_text
from curator_dask.webdataset.shards import Shard, ShardRange

logger = logging.getLogger("curator_dask")

#: Samples of each shard looked at whose JSON is read to learn the columns.
SCHEMA_SAMPLES = 64
#: Bytes of a remote shard that are fetched for that.
SCHEMA_BYTES = 1 << 24


def read_tar_rows(
    part: ShardRange, schema: pa.Schema, id_col: str, storage_options: Mapping[str, Any] | None = None
) -> pa.Table:
    """One row a sample of the range: its key, its caption and the scalar fields of its JSON.

    A value that does not fit the column's type becomes null; how many is logged once a shard.
    """
    # An index file is compared with the tar in a few places only, and here its names would become the rows' keys.
    with ShardReader(part.shard.url, use_index_files=False, storage_options=storage_options) as reader:
        if reader.index.problem:
            warn_once(f"{part.shard.url}: {reader.index.problem}")
        remark(part.shard.url, "damaged", reader.index.problem)
        remark(part.shard.url, "duplicates", fact_of(reader.index.duplicates))
        samples = reader.index.samples[part.start : part.stop]
        rows = [tar_row(reader, sample, id_col) for sample in samples]
    arrays, misfits = [], {}
    for field in schema:
        if field.name == URL_COLUMN:
            arrays.append(pa.repeat(pa.scalar(part.shard.url, pa.string()), len(rows)))
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


def tar_schema(shard: Shard, id_col: str, storage_options: Mapping[str, Any] | None) -> pa.Schema:
    """The columns of a shard's rows, from the JSON of its first samples: the key, the caption, then the fields."""
    columns: dict[str, pa.DataType] = {}
    with ShardReader(shard.url, storage_options=storage_options, first=SCHEMA_BYTES) as reader:
        for sample in reader.index.samples[:SCHEMA_SAMPLES]:
            for name, value in tar_row(reader, sample, id_col).items():
                columns[name] = _join_types(columns.get(name, pa.null()), _type_of(value))
    head = {id_col: pa.string(), CAPTION_COLUMN: pa.string()}
    return pa.schema([*head.items(), *((name, kind) for name, kind in columns.items() if name not in head)])


def tar_row(reader: ShardReader, sample: Sample, id_col: str) -> dict[str, Any]:
    """A sample's key, caption and the scalar fields of its JSON; what cannot be read is left out."""
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


def join_tar(one: pa.Schema, other: pa.Schema) -> pa.Schema:
    """The columns of two shards together. JSON has no types of its own: what differs is text."""
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
