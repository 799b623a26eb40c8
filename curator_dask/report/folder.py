"""The output that a report is of: its files, what made them, and its columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa

from curator_dask.errors import OutputError
from curator_dask.frames.columns import vectors_in
from curator_dask.frames.faults import faults_told
from curator_dask.frames.names import EMBEDDING_COLUMN, ERROR_COLUMN
from curator_dask.frames.parquet import open_parquet
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.failed import list_errors
from curator_dask.outputs.given import given_files, rows_with_shards
from curator_dask.storage import Options, join

#: Rows that are read at once.
BLOCK = 8192


class File(NamedTuple):
    """A Parquet file of the output.

    Attributes
    ----------
    path
        Path or URL.
    first, rows
        Number of its first row among those of all files, and how many it has.
    id_col
        Column of the keys.
    """

    path: str
    first: int
    rows: int
    id_col: str


@dataclass
class Folder:
    """The output: its files, what made them, and its columns.

    Attributes
    ----------
    path
        Where it is.
    options
        For fsspec.
    files
        In order.
    records
        Of those files that have one.
    aside
        Files with the failed rows that are not among the others.
    types
        Arrow type by column, of all files.
    nulls
        By column, as far as the files' statistics say it.
    vectors
        Column of vectors; None where there is none.
    """

    path: str
    options: Options
    files: list[File] = field(default_factory=list)
    records: list[FileRecord] = field(default_factory=list)
    aside: list[File] = field(default_factory=list)
    types: dict[str, pa.DataType] = field(default_factory=dict)
    nulls: dict[str, int | None] = field(default_factory=dict)
    vectors: str | None = None

    @property
    def rows(self) -> int:
        """Of all files."""
        return sum(file.rows for file in self.files)

    @property
    def numbers(self) -> list[str]:
        """Columns of numbers, but for the keys."""
        keys = {file.id_col for file in self.files}
        return [name for name, kind in self.types.items() if is_number(kind) and name not in keys]

    @property
    def texts(self) -> list[str]:
        """Columns of text and of true and false."""
        return [name for name, kind in self.types.items() if _is_text(kind) and name != ERROR_COLUMN]


def is_number(kind: pa.DataType) -> bool:
    """Whether values of a type can be compared with a threshold."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_text(kind: pa.DataType) -> bool:
    text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean)
    return any(is_kind(kind) for is_kind in text)


def open_folder(path: str, column: str | None, options: Options) -> Folder:
    """Look at the footers of an output's files.

    Raises
    ------
    OutputError
        There is no such output or column, or a file cannot be read.
    """
    names = given_files(path, options)
    folder = Folder(path, options)
    first = 0
    for name in names:
        file = _open_file(folder, join(path, name), first)
        folder.files.append(file)
        first += file.rows
    folder.aside = [_open_file(Folder(path, options), each, 0) for each in sorted(list_errors(path, options))]
    lists = vectors_in(pa.schema(list(folder.types.items())))
    if column is not None and column not in lists:
        raise OutputError(f"{path}: has no column {column!r} of vectors; those it has are {lists} (--column)")
    preferred = [name for name in lists if name == EMBEDDING_COLUMN]
    folder.vectors = column or next(iter([*preferred, *lists]), None)
    return folder


def _open_file(folder: Folder, path: str, first: int) -> File:
    with faults_told(path), open_parquet(path, folder.options) as file:
        schema, footer = file.schema_arrow, file.metadata
        record = FileRecord.parse(schema.metadata)
        if record is not None:
            folder.records.append(record)
        nulls: Counter[str] = Counter()
        unsaid = set()
        for group in range(footer.num_row_groups):
            for number in range(footer.num_columns):
                chunk = footer.row_group(group).column(number)
                name, said = chunk.path_in_schema, chunk.statistics
                if said is None or not said.has_null_count:
                    unsaid.add(name)
                else:
                    nulls[name] += said.null_count
        for each in schema:
            folder.types.setdefault(each.name, each.type)
            known = None if each.name in unsaid or pa.types.is_nested(each.type) else nulls[each.name]
            before = folder.nulls.get(each.name, 0)
            folder.nulls[each.name] = None if known is None or before is None else before + known
        return File(path, first, footer.num_rows, (record and record.id_col) or "key")


def blocks(file: File, columns: Sequence[str], options: Options) -> Iterator[tuple[int, pa.Table]]:
    """The rows of a file, some at a time, with the number of the first; columns that it lacks are left out."""
    with faults_told(file.path), open_parquet(file.path, options) as opened:
        start = 0
        for batch in rows_with_shards(opened, file.path, columns, BLOCK, options):
            yield start, pa.Table.from_batches([batch])
            start += batch.num_rows
