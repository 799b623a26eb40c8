"""Tables of captions as files: Parquet, JSON Lines, and CSV as spreadsheets of all countries write it."""

from __future__ import annotations

import codecs
import csv
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from curator_dask.frames.names import CAPTION_COLUMN, FILE_COLUMN

_DELIMITERS = ",;\t|"
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_BLOCK_BYTES = 1 << 24  # a row must fit into one


def read_captions(path: str, data: bytes) -> pa.Table:
    """The table in a file's bytes, by the suffix of its name.

    Raises
    ------
    ValueError
        It is of another type, or cannot be read.
    """
    read = _READERS.get(Path(path).suffix.lower())
    if read is None:
        raise ValueError(f"expected a file of the type {', '.join(_READERS)}")
    table = read(data)
    if twice := sorted(name for name, count in Counter(table.column_names).items() if count > 1):
        raise ValueError(
            f"several columns are named {', '.join(map(repr, twice))}: give each a name of its own"
        )
    # Arrow itself cannot pick rows of views, as which some writers have their text.
    kinds = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
    plain = [each.with_type(kinds.get(each.type, each.type)) for each in table.schema]
    return table.cast(pa.schema(plain, table.schema.metadata))


def _read_csv(data: bytes) -> pa.Table:
    """A CSV whose captions are text, also where they look like numbers; other columns are what they look like."""
    if data.startswith(_UTF_16):
        raise ValueError("it is UTF-16: save it as UTF-8")
    kinds = {name: pa.string() for name in (FILE_COLUMN, CAPTION_COLUMN)}
    try:
        table = pyarrow.csv.read_csv(
            io.BytesIO(data),
            read_options=pyarrow.csv.ReadOptions(block_size=_BLOCK_BYTES),
            parse_options=pyarrow.csv.ParseOptions(delimiter=_delimiter(data), newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(column_types=kinds),
        )
    except pa.ArrowInvalid as error:
        hint = (
            ". Captions with commas or line ends stand in double quotes"
            if "columns, got" in str(error)
            else ""
        )
        hint = ". Save it as UTF-8" if "invalid UTF8" in str(error) else hint
        raise ValueError(f"{error}{hint}") from error
    if binary := [each.name for each in table.schema if pa.types.is_binary(each.type)]:
        raise ValueError(f"columns {binary} are not UTF-8: save it as that")
    return table


def _delimiter(data: bytes) -> str:
    """What stands between the columns' names: a comma, or what spreadsheets write where that is in numbers."""
    header = data.removeprefix(codecs.BOM_UTF8).split(b"\n", 1)[0].decode("utf-8", "replace").rstrip("\r")
    for delimiter in _DELIMITERS:
        if FILE_COLUMN in next(csv.reader([header], delimiter=delimiter), []):
            return delimiter
    return _DELIMITERS[0]


def _read_json(data: bytes) -> pa.Table:
    def read(schema: pa.Schema | None) -> pa.Table:
        return pyarrow.json.read_json(
            io.BytesIO(data.removeprefix(codecs.BOM_UTF8)),
            read_options=pyarrow.json.ReadOptions(block_size=_BLOCK_BYTES),
            parse_options=pyarrow.json.ParseOptions(explicit_schema=schema),
        )

    table = read(None)
    if CAPTION_COLUMN in table.column_names and pa.types.is_timestamp(
        table.schema.field(CAPTION_COLUMN).type
    ):
        return read(pa.schema({CAPTION_COLUMN: pa.string()}))  # text that looks like a time is text
    return table


def _read_parquet(data: bytes) -> pa.Table:
    with pq.ParquetFile(io.BytesIO(data)) as file:  # `read_table` does not say which columns have one name
        return file.read()


_READERS: dict[str, Callable[[bytes], pa.Table]] = {
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_json,
}
