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
    # Views, as which some writers have their text.
    kinds = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
    plain = [each.with_type(kinds.get(each.type, each.type)) for each in table.schema]
    return table.cast(pa.schema(plain, table.schema.metadata))


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
