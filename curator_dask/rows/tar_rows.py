"""Rows of a shard that has no Parquet: from the captions, classes and JSON in its tar, or beside its image files."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from curator_dask.errors import ImageError
from curator_dask.frames.names import CAPTION_COLUMN, CLASS_COLUMN, FILE_COLUMN, URL_COLUMN
from curator_dask.rows.remarks import fact_of, remark
from curator_dask.rows.several import TYPES
from curator_dask.storage import Options
from curator_dask.webdataset.folder_reader import FolderReader
from curator_dask.webdataset.folders import is_folder_shard
from curator_dask.webdataset.headers import Member
from curator_dask.webdataset.index import warn_once
from curator_dask.webdataset.opening import Reader, open_shard
from curator_dask.webdataset.samples import Sample, key_text, suffix_of
from curator_dask.webdataset.several import ImageSample, ImagesIndex
from curator_dask.webdataset.several_names import COLUMNS, is_each
from curator_dask.webdataset.shards import Shard, ShardRange

logger = logging.getLogger("curator_dask")

#: Samples of each shard looked at whose JSON is read to learn the columns.
SCHEMA_SAMPLES = 64
#: Kinds of what rows leave out that are kept of a shard, and those that are told.
_KINDS_KEPT, _KINDS_SHOWN = 200, 10
#: Marks the columns of a schema that the first version did not take.
_LATER = {b"curator_dask": b"later"}
_DIGITS = 18  # that every int64 can have
#: Bytes of a remote shard that are fetched for that.
SCHEMA_BYTES = 1 << 24


def read_tar_rows(
    part: ShardRange,
    schema: pa.Schema,
    id_col: str,
    storage_options: Options = None,
    nested_json: bool = False,
) -> pa.Table:
    """One row a sample of the range: its key, its caption, its class and the fields of its JSON.

    A value that does not fit the column's type becomes null; how many is logged once a shard.
    """
    # An index file is compared with the tar in a few places only, and here its names would become the rows' keys.
    with open_shard(part.shard.url, use_index_files=False, storage_options=storage_options) as reader:
        if reader.index.problem:
            warn_once(f"{part.shard.url}: {reader.index.problem}")
        remark(part.shard.url, "damaged", reader.index.problem)
        remark(part.shard.url, "duplicates", fact_of(reader.index.duplicates))
        remark(part.shard.url, "unread", fact_of(map(str, reader.index.unread)))
        if isinstance(reader.index, ImagesIndex):
            remark(part.shard.url, "imageless", fact_of(map(key_text, reader.index.imageless)))
        samples = reader.index.samples[part.start : part.stop]
        left_out: dict[str, None] = {}
        reader.expect(texts_of(samples))
        rows = [tar_row(reader, sample, id_col, nested_json, left_out) for sample in samples]
        remark(part.shard.url, "left-out", fact_of(left_out, _KINDS_SHOWN))
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


def tar_schema(shard: Shard, id_col: str, storage_options: Options, nested_json: bool = False) -> pa.Schema:
    """The columns of a shard's rows, from its first samples: the key, the caption, then the other fields."""
    own = (FILE_COLUMN,) if is_folder_shard(shard.url) else COLUMNS if is_each(shard.url) else ()
    names = (id_col, *own, CAPTION_COLUMN)
    columns: dict[str, pa.DataType] = dict.fromkeys(names, pa.string())
    columns |= {name: kind for name, kind in TYPES.items() if name in columns}
    plain = set(columns)
    with open_shard(shard.url, storage_options=storage_options, first=SCHEMA_BYTES) as reader:
        samples = reader.index.samples[:SCHEMA_SAMPLES]
        reader.expect(texts_of(samples))
        for sample in samples:
            row = tar_row(reader, sample, id_col, nested_json)
            for name, value in row.items():
                if name not in names:
                    columns[name] = _join_types(columns.get(name, pa.null()), _type_of(value))
            if sample.component("json") is not None:
                plain |= row.keys() - ({CLASS_COLUMN} if sample.component(CLASS_COLUMN) else set())
    return pa.schema([_field(name, kind, name not in plain) for name, kind in columns.items()])


def _field(name: str, kind: pa.DataType, later: bool) -> pa.Field:
    return pa.field(name, kind, metadata=_LATER if later else None)


def later_columns(schema: pa.Schema) -> frozenset[str]:
    """Columns that the first version did not take from tars: files without them are no less finished."""
    return frozenset(field.name for field in schema if field.metadata == _LATER)


def tar_row(
    reader: Reader,
    sample: Sample,
    id_col: str,
    nested_json: bool = False,
    left_out: dict[str, None] | None = None,
) -> dict[str, Any]:
    """A sample's key, caption, class and the fields of its JSON; what cannot be read is left out.

    Parameters
    ----------
    reader, sample
        Of the shard.
    id_col
        Name of the key's column.
    nested_json
        Take lists and objects of the JSON too, as text; else only its scalars.
    left_out
        Gets the kinds of components and the fields that are not in the row.
    """
    row: dict[str, Any] = {}
    document, caption, label = _texts_of(sample)
    for name, value in _fields(reader, document).items():
        if isinstance(value, bool | int | float | str):
            row[_clean(name)] = _clean(value)
        elif nested_json and value is not None:
            row[_clean(name)] = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode()
        elif value is not None and left_out is not None and len(left_out) < _KINDS_KEPT:
            left_out[f"field {_clean(name)!r} of the JSON"] = None
    for column, member in ((CAPTION_COLUMN, caption), (CLASS_COLUMN, label)):
        if member is None:
            continue
        try:
            text = decoded(bytes(reader.read(member)))
        except ImageError:
            row.pop(column, None)
            continue
        row[column] = text if column == CAPTION_COLUMN else _number_or_text(text.strip())
    row.pop(URL_COLUMN, None)
    if isinstance(reader, FolderReader) and (image := sample.image()) is not None:
        row[FILE_COLUMN] = key_text(image.target)
    # A name that is not UTF-8 cannot be a text value: its odd bytes are shown as \xNN.
    row[id_col] = key_text(sample.key)
    if isinstance(sample, ImageSample):
        if left_out is not None:
            left_out.update({f"field {name!r} of the JSON": None for name in COLUMNS if name in row})
        place = sample.place
        values = (key_text(place.sample), place.number, place.of, key_text(place.name))
        row.update(zip(COLUMNS, values, strict=True))
    if left_out is not None and len(left_out) < _KINDS_KEPT:
        taken = (document, caption, label, sample.image())
        left_out.update({f".{suffix_of(member)}": None for member in sample.members if member not in taken})
    return row


def _texts_of(sample: Sample) -> tuple[Member | None, Member | None, Member | None]:
    """JSON, caption and class."""
    return (
        sample.text("json", "metadata.json"),
        sample.text("txt", "caption.txt"),
        sample.component(CLASS_COLUMN),
    )


def texts_of(samples: Iterable[Sample]) -> Iterator[Member]:
    """What `tar_row` reads of samples, in this order."""
    return (each for sample in samples for each in _texts_of(sample) if each is not None)


def _fields(reader: Reader, document: Member | None) -> dict[str, Any]:
    """The fields of a JSON object; none where it cannot be read, for the image may be well."""
    if document is None:
        return {}
    try:
        parsed = json.loads(bytes(reader.read(document)).decode("utf-8-sig"))
    except (ValueError, RecursionError, ImageError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _number_or_text(text: str) -> int | str:
    """A class: most are numbers."""
    is_number = len(text) <= _DIGITS and text.isascii() and text.isdigit() and str(int(text)) == text
    return int(text) if is_number else text


def _clean(value: Any) -> Any:
    """Text without lone surrogates, which JSON can write and no column can hold; other values as they are."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def decoded(data: bytes) -> str:
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
    kinds: dict[str, pa.DataType] = {}
    plain: set[str] = set()
    for schema in (one, other):
        kinds |= {field.name: _join_types(kinds.get(field.name, pa.null()), field.type) for field in schema}
        plain |= {*schema.names} - later_columns(schema)
    return pa.schema([_field(name, kind, name not in plain) for name, kind in kinds.items()])


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
