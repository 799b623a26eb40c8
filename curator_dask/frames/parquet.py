"""Parquet files that are there whole, or not at all, and that say what made them (`curator_dask.frames.record`)."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curator_dask import backend
from curator_dask.cache import POSSESSIONS, Remembered
from curator_dask.errors import OutputError, ShardError
from curator_dask.frames.columns import list_to_matrix
from curator_dask.frames.committing import Commits, machine_name, write_local
from curator_dask.frames.faults import fault_of, is_dangling
from curator_dask.frames.record import FileRecord
from curator_dask.holding import held_type, restore
from curator_dask.storage import (
    Options,
    file_state,
    is_remote,
    join,
    local_path,
    walk,
    write_bytes,
)
from curator_dask.threads import in_threads
from curator_dask.webdataset.parquet import open_file

#: Records of files beside shards, by their states: as many as are in a few tasks.
_RECORDS: Remembered[FileRecord | None] = POSSESSIONS.add("records", Remembered(256))


def output_schema(
    meta: Any,
    dims: Mapping[str, int],
    known: Mapping[str, pa.DataType] | None = None,
    made: Mapping[str, pa.DataType] | None = None,
) -> pa.Schema:
    """The one schema of all files of an output.

    Parameters
    ----------
    meta
        Empty frame, pandas or cuDF, with the columns to write.
    dims
        Length of a vector, for each embedding column: these become ``fixed_size_list<float32>[dim]``.
    known
        Types that columns had when they were read, for what the frame does not know: how long text may be, what a
        column of Python objects holds, and all that cuDF holds as another type.
    made
        The same of columns that steps make, for what cuDF holds as another type.
    """
    fields = []
    is_held = backend.on_gpu(meta)
    if is_held:
        promised = {name: kind for name, kind in (made or {}).items() if not _is_text(kind)}
        known = {**(known or {}), **promised}
    for field in backend.frame_to_arrow(meta).schema:
        kind = field.type
        before = (known or {}).get(field.name)
        if field.name in dims:
            kind = pa.list_(pa.float32(), dims[field.name])
        elif pa.types.is_null(kind):
            # An object column of an empty frame has no type: text is what such columns hold, mostly.
            kind = before or pa.string()
        elif is_held and before is not None and held_type(before) == held_type(kind):
            kind = before
        elif _is_text(kind):
            kind = before if before is not None and _is_text(before) else pa.string()
        fields.append(pa.field(field.name, kind))
    return pa.schema(fields)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def conform(table: pa.Table, schema: pa.Schema, shard: str) -> pa.Table:
    """The table with the schema's columns and types, in its order.

    Raises
    ------
    ShardError
        A column is missing, or its values do not fit the type; names the shard and the column.
    """
    arrays = []
    for field in schema:
        if field.name not in table.column_names:
            raise ShardError(f"{shard}: column {field.name!r} is missing; found {table.column_names}")
        column = table.column(field.name)
        try:
            arrays.append(_to_type(column, field.type))
        except (pa.ArrowException, ValueError) as error:
            raise ShardError(
                f"{shard}: column {field.name!r} does not fit the output's schema: expected {field.type}, found"
                f" {column.type} ({error}). All partitions must give the types of the dataset's metadata; a column of"
                " Python objects, which tells no type, is taken for text: give it one by"
                " astype(pandas.ArrowDtype(...))"
            ) from error
    return pa.table(arrays, schema=schema)


def list_parquet(folder: str, options: Options = None) -> frozenset[str]:
    """Paths (or URLs) of the Parquet files below a folder; none where it is not there.

    Raises
    ------
    OutputError
        The store does not answer.
    """
    try:
        return frozenset(join(folder, name) for name in walk(folder, options) if name.endswith(".parquet"))
    except Exception as error:  # a store's own, of many types
        raise OutputError(
            f"{folder}: cannot be listed: {error!r}. Check the address and storage_options"
        ) from error


def open_parquet(path: str, options: Options = None, *, stream: int = 0) -> pq.ParquetFile:
    """A Parquet file on this machine or in a store; close it, or use it as a context manager.

    Parameters
    ----------
    path, options, stream
        Of the file; for fsspec; bytes of a column that are read at a time, 0: all that a row group has of it.

    Raises
    ------
    Exception
        ``OSError`` or ``pyarrow.ArrowException`` for a local file that cannot be read or is no Parquet; of a
        remote one also what its store raises.
    """
    return open_file(path, options, stream)


def write_table(
    path: str, table: pa.Table, record: FileRecord, options: Options = None, commits: Commits | None = None
) -> None:
    """Write a Parquet file (zstd); under its name it is there whole, or as it was before.

    On this machine it is written under a temporary name beside `path` and renamed; in an object store one
    request puts it there.

    Parameters
    ----------
    path
        Local path or fsspec URL; its folder is made if need be.
    table
        What to write.
    record
        What made it, stored in the file with the number of `table`'s rows.
    options
        For fsspec, where `path` is a URL.
    commits
        Has a file on this machine there when its block ends; what then goes wrong is raised as it is.

    Raises
    ------
    OutputError
        The file could not be written (read-only or full device, a type that Parquet has not); nothing is left
        behind.
    """
    stored = {**(table.schema.metadata or {}), **replace(record, rows=len(table)).to_metadata()}
    # A dictionary of float vectors is never smaller than the vectors: only the other columns try one.
    plain = [field.name for field in table.schema if not pa.types.is_nested(field.type)]

    def write(file: Any) -> None:
        whole = table.replace_schema_metadata(stored)
        pq.write_table(whole, file, compression="zstd", use_dictionary=plain or False)

    try:
        if is_remote(path):
            buffer = pa.BufferOutputStream()
            write(buffer)
            write_bytes(path, buffer.getvalue().to_pybytes(), options)
        else:
            write_local(Path(local_path(path)), write, commits)
    except pa.ArrowException as error:
        raise OutputError(
            f"{path}: could not be written: {error}. Leave columns that Parquet cannot hold out by columns="
        ) from error
    except Exception as error:  # a store's own, of many types
        said = (error.strerror if isinstance(error, OSError) else None) or repr(error)
        raise OutputError(
            f"{path}: could not be written: {said}. Nothing was left behind there; make room, or give save_metadata a"
            " path that can be written, and run again: finished shards are kept"
        ) from error


class Footer(NamedTuple):
    """What a Parquet file says of itself.

    Attributes
    ----------
    record
        What made it; None if the file is not from here.
    columns
        Names.
    rows
        Their number.
    fault
        What is wrong with a file that is there and cannot be read, and what to do; else empty.
    """

    record: FileRecord | None
    columns: list[str]
    rows: int
    fault: str = ""

    def is_finished(self, *wanted: str | None, columns: Iterable[str] = ()) -> bool:
        """Whether the file has one of these fingerprints, and still the rows and vectors that it was written with.

        The fingerprint is that of each of the columns of vectors, or of the last run where none is named.
        """
        record = self.record
        if record is None or record.rows != self.rows or not {*record.embeddings} <= {*self.columns}:
            return False
        found = {record.run_of(name).get("fingerprint") for name in columns} or {record.fingerprint}
        return found <= {*wanted}

    def told(self, name: str, column: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """What a finished file tells of its shards and of its rows: remarks, and the report of the run that made it.

        Parameters
        ----------
        name
            Of the file.
        column
            Of the vectors; empty where there are none.
        """
        record = self.record
        report = (record.run_of(column)["report"] if record else None) or {}
        # Of a file whose rows have been tried again it is not known how many failed, nor how many lie elsewhere.
        dropped = report.get("dropped", 0)
        known = report.get("rows", self.rows) - dropped == self.rows
        return record.remarks if record else {}, {
            "rows": self.rows,
            "failed": 0,
            **report,
            "dropped": dropped if known else 0,
            "name": name,
        }


def read_footer(path: str, options: Options = None) -> Footer:
    """Look at a file's footer, once; nothing is known of a file that is not there, or that has a fault.

    Raises
    ------
    OutputError
        The store it is in does not answer.
    """
    try:
        with open_parquet(path, options) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except Exception as error:
        if isinstance(error, FileNotFoundError) and not is_dangling(path):
            return Footer(None, [], 0)
        if is_remote(path) and not isinstance(error, pa.ArrowException):
            raise OutputError(
                f"{path}: the store does not answer as it should: {error!r}. Check storage_options, or run again when"
                " it answers: what is finished is kept"
            ) from error
        return Footer(None, [], 0, fault_of(path, error))
    return Footer(FileRecord.parse(schema.metadata), schema.names, rows)


def read_whole(path: str, options: Options = None) -> Footer:
    """The footer of a file that is to be read.

    Raises
    ------
    OutputError
        It is there and cannot be read, or the store it is in does not answer.
    """
    footer = read_footer(path, options)
    if footer.fault:
        raise OutputError(f"{path}: {footer.fault}")
    return footer


def whole_footers(paths: Sequence[str], options: Options = None) -> dict[str, Footer]:
    """The same of several files, by path.

    Raises
    ------
    OutputError
        Some cannot be read, the first of which is named with what to do, or the store does not answer.
    """
    footers = dict(zip(paths, in_threads(lambda path: read_footer(path, options), paths), strict=True))
    bad = [path for path, footer in footers.items() if footer.fault]
    if bad:
        more = f". {len(bad) - 1} more cannot be read, {bad[1]} for example" if len(bad) > 1 else ""
        raise OutputError(f"{bad[0]}: {footers[bad[0]].fault}{more}")
    return footers


def read_record(path: str, options: Options = None) -> FileRecord | None:
    """The record of a file; None if it has none, or cannot be read."""
    return read_footer(path, options).record


def state_of(path: str) -> Hashable | None:
    """What tells a file on this machine that has changed; None of one in a store, or that is not there."""
    try:
        return None if is_remote(path) else (path, *file_state(local_path(path)))
    except OSError:
        return None


def known_record(state: Hashable | None, find: Callable[[], FileRecord | None]) -> FileRecord | None:
    """The record of a file that is read for its rows and then for what made them: found once.

    Parameters
    ----------
    state
        Of the file, by `state_of`, before it was opened.
    find
        Gives the record where that of this state is not known.
    """
    return find() if state is None else _RECORDS.get(state, find)


#: A file that a process is writing, or was.
TEMPORARY = re.compile(r"^\..+\.(?:parquet|tar|idx|json|md)\.(?P<host>.+)-(?P<pid>\d+)-[0-9a-f]{8}\.tmp$")


#: Seconds after which a file that another machine was writing is one that was left there: it has written nothing since.
_ABANDONED = 86_400.0


def remove_leftovers(folder: str) -> int:
    """Remove temporary files of processes of this machine that are gone, and others' that are a day old; how many."""
    removed = 0
    # `os.walk` passes over folders that another part of the same run removes meanwhile, which `rglob` fails at.
    for path in (Path(top, name) for top, _, names in os.walk(folder) for name in names):
        match = TEMPORARY.match(path.name)
        if match is None:
            continue
        # A folder that cannot be changed is for the writing that follows to complain about.
        with contextlib.suppress(OSError):
            is_here, age = match["host"] == machine_name(), time.time() - path.stat().st_mtime
            if not _alive(int(match["pid"])) if is_here else age > _ABANDONED:
                path.unlink()
                removed += 1
    return removed


@contextlib.contextmanager
def without_leftovers(*folders: str) -> Iterator[None]:
    """Remove what dead processes have left in local folders: of earlier runs before, of workers that died after."""
    local = [folder for folder in folders if not is_remote(folder)]
    try:
        for folder in local:
            remove_leftovers(folder)
        yield
    finally:
        for folder in local:
            remove_leftovers(folder)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _to_type(column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    if column.type == kind:
        return column
    is_vectors = pa.types.is_fixed_size_list(kind) and kind.value_type == pa.float32()
    if not is_vectors or _has_null_elements(column):
        return pa.chunked_array([restore(chunk, kind) for chunk in column.chunks], kind)
    matrix, valid = list_to_matrix(column, kind.list_size)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(matrix).reshape(-1)),
        type=kind,
        mask=pa.array(~valid),
    )


def _has_null_elements(column: pa.ChunkedArray) -> bool:
    return bool(pa.types.is_list(column.type) and pc.list_flatten(column).null_count)
