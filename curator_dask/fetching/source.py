"""The table of URLs: its rows in the order of its files, cut into shards, and read again by ranges."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa

from curator_dask.errors import ConfigError, DatasetError
from curator_dask.fetching.staging import DELIMITERS, HINT, MEANS, TEXTS, TextForm, kind_of, stage
from curator_dask.fetching.values import in_utf8
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.frames.parquet import open_parquet, read_record
from curator_dask.outputs.selecting import Folder
from curator_dask.rows.caption_files import TABLES, tidy
from curator_dask.rows.key_column import KeyColumn
from curator_dask.rows.user_tables import UserTable, faults
from curator_dask.storage import Options, is_remote, join, local_path, walk
from curator_dask.threads import in_threads

_BATCH_ROWS = 1 << 16


@dataclass(frozen=True)
class Piece:
    """A range of rows of a Parquet file.

    Attributes
    ----------
    path
        Of the file.
    start, stop
        Rows, counted from 0.
    digest
        What tells another content of the file.
    """

    path: str
    start: int
    stop: int
    digest: str


@dataclass(frozen=True)
class UrlTable:
    """A table whose files are Parquet, be it that it came as such.

    Attributes
    ----------
    path
        As it was given.
    files, counts, digests
        Its files in their order, the rows of each, and what tells another content of it.
    schema
        Of all columns.
    options
        For fsspec, of the files.
    own
        Columns that are of an output alone, where the files are of one: vectors, shards and reasons.
    """

    path: str
    files: tuple[str, ...]
    counts: tuple[int, ...]
    digests: tuple[str, ...]
    schema: pa.Schema
    options: Options = None
    own: frozenset[str] = frozenset()

    @property
    def rows(self) -> int:
        """Of all files."""
        return sum(self.counts)

    def pieces(self, start: int, stop: int) -> tuple[Piece, ...]:
        """Where rows are, counted over all files."""
        found, first = [], 0
        for file, count, digest in zip(self.files, self.counts, self.digests, strict=True):
            begin, end = max(start, first), min(stop, first + count)
            if begin < end:
                found.append(Piece(file, begin - first, end - first, digest))
            first += count
        return tuple(found)

    def first(self, rows: int | None) -> UrlTable:
        """The table of its first rows alone; None: of all."""
        if rows is None:
            return self
        ends = list(accumulate(self.counts))
        counts = [
            max(0, min(count, rows - end + count)) for count, end in zip(self.counts, ends, strict=True)
        ]
        return replace(self, counts=tuple(counts))

    def mark(self, start: int, stop: int) -> list[Any]:
        """What tells other rows in the place of these."""
        return [[each.digest, each.start, each.stop] for each in self.pieces(start, stop)]


def find_table(
    path: str | os.PathLike[str],
    url_column: str,
    texts: Sequence[str],
    staged: Folder,
    options: Options = None,
    column_names: Sequence[str] | None = None,
) -> UrlTable:
    """The table at a path or URL.

    What is no Parquet, of which no part can be read alone, is written as such first.

    Parameters
    ----------
    path
        A file, a folder of files of one kind, or a glob.
    url_column
        It must have.
    texts
        Other columns that are text, whatever they look like.
    staged
        Where Parquet files go that are made of others.
    options
        For fsspec.
    column_names
        Of files of text that have no line with them.

    Raises
    ------
    ConfigError
        Its files have names of their own.
    DatasetError
        There is none, it cannot be read, or has no such column.
    """
    text = os.fsdecode(path)
    found = UserTable.find(_files_of(text, options), url_column, options, hint=HINT)
    table, at = found, found.options
    kind = kind_of(found.files[0])[0]
    if column_names is not None and kind not in DELIMITERS:
        raise ConfigError(
            "column_names (--column-names) are of a CSV or TSV that has no line with them, and"
            f" {found.files[0]} is none"
        )
    if kind != ".parquet":
        form = TextForm(url_column, tuple(texts), None if column_names is None else tuple(column_names))
        files = [stage(each, number, form, staged, at) for number, each in enumerate(found.files)]
        table, at = UserTable(staged.path, url_column, staged.options, HINT), staged.options
        vars(table)["files"] = tuple(files)  # whatever else an earlier table has left there
    looked = in_threads(lambda file: _look(file, url_column, at), table.files)
    record = read_record(table.files[0], at)
    if not sum(rows for rows, _ in looked):
        raise DatasetError(f"{text}: it has no rows")
    return UrlTable(
        text,
        table.files,
        tuple(rows for rows, _ in looked),
        tuple(each for _, each in looked),
        table.schema,
        at,
        frozenset() if record is None else frozenset({*record.embeddings, URL_COLUMN, ERROR_COLUMN}),
    )


def _files_of(path: str, options: Options) -> str:
    """The path; or a glob of the one kind of files that a folder without Parquet has, or of a compressed file."""
    kind, packed = kind_of(path)
    if packed and kind in TEXTS:
        if not is_remote(path) and Path(local_path(path)).is_file():
            return f"{glob.escape(local_path(path)[:-1])}[{path[-1]}]"
        if is_remote(path) and not {*path} & {*"*?["}:
            return f"{path[:-1]}[{path[-1]}]"
    if kind in (*TABLES, ".txt") or (not is_remote(path) and not Path(local_path(path)).is_dir()):
        return path
    if any(sign in path for sign in "*?[") and is_remote(path):
        return path
    names = [name for name in walk(local_path(path), options) if not name.startswith((".", "_"))]
    kinds = {"".join(kind_of(name)) for name in names if kind_of(name)[0] in TABLES}
    if ".parquet" in kinds or not kinds:
        return path
    if len(kinds) > 1:
        raise DatasetError(
            f"{path}: has files of several kinds, {' and '.join(sorted(kinds))}: give those of one kind"
        )
    folder = path if is_remote(path) else glob.escape(local_path(path))
    return join(folder, f"*{kinds.pop()}")


def _look(file: str, url_column: str, options: Options) -> tuple[int, str]:
    """Rows of a Parquet file, and a digest of its footer: sizes of all columns, and what is least and most in them."""
    with faults(file), open_parquet(file, options) as opened:
        KeyColumn(url_column, MEANS, HINT).check(opened.schema_arrow.names)
        return opened.metadata.num_rows, _digest_of(opened)


def _digest_of(opened: Any) -> str:
    sink = pa.BufferOutputStream()
    opened.metadata.write_metadata_file(sink)
    return hashlib.sha256(sink.getvalue()).hexdigest()


def read_pieces(pieces: Sequence[Piece], schema: pa.Schema, options: Options) -> pa.Table:
    """Rows of a table, with the columns of a schema; those that a file lacks are null.

    Raises
    ------
    DatasetError
        They cannot be read, or are not what they were.
    """
    tables = [schema.empty_table()]
    for piece in pieces:
        with faults(piece.path), open_parquet(piece.path, options) as file:
            if _digest_of(file) != piece.digest:
                raise DatasetError(
                    f"{piece.path}: has changed since this fetch began. Run again when nobody writes to it"
                )
            names = [name for name in schema.names if name in file.schema_arrow.names]
            for some in _batches(file, piece, names):
                arrays = [
                    some.column(each.name).cast(each.type)
                    if each.name in names
                    else pa.nulls(len(some), each.type)
                    for each in schema
                ]
                tables.append(in_utf8(pa.table(arrays, schema=schema)))
    return pa.concat_tables(tables).combine_chunks()


def _batches(file: Any, piece: Piece, names: Sequence[str]) -> list[pa.Table]:
    found, at = [], 0
    for number in range(file.num_row_groups):
        count = file.metadata.row_group(number).num_rows
        if at < piece.stop and at + count > piece.start:
            first = at
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=[number], columns=names):
                begin, end = max(piece.start, first), min(piece.stop, first + len(batch))
                if begin < end:
                    found.append(tidy(pa.Table.from_batches([batch.slice(begin - first, end - begin)])))
                first += len(batch)
                if first >= piece.stop:
                    break
        at += count
    return found
