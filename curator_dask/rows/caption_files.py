"""Tables of captions as files: Parquet, JSON Lines, CSV and TSV."""

from __future__ import annotations

import codecs
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq

from curator_dask.frames.names import CAPTION_COLUMN, FILE_COLUMN
from curator_dask.rows.caption_csv import check_names, read_csv, read_tsv

_BLOCK_BYTES = 1 << 24  # a row must fit into one


def read_captions(path: str, data: bytes) -> pa.Table:
    """The table in a file's bytes, by the suffix of its name, with the files' names as text.

    Raises
    ------
    ValueError
        It is of another type, cannot be read, or has no column ``file_name`` of text.
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
    table = table.cast(pa.schema(plain, table.schema.metadata))
    check_names(table.column_names)
    names = table.column(FILE_COLUMN)
    try:
        names = pc.cast(names, pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(
            f"column {FILE_COLUMN!r}: expected text in UTF-8, the paths of the images below their folder, found"
            f" {names.type}: write it as text"
        ) from error
    return table.set_column(table.column_names.index(FILE_COLUMN), FILE_COLUMN, names)


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
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".jsonl": _read_json,
}
#: Suffixes of the files that are read.
TABLES = tuple(_READERS)
