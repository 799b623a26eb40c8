"""Giving the files of an output that is there columns of a table: all else in them stays as it is."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.cluster.setup import OpenWorkers
from curator_dask.errors import NoMatchError, OutputError
from curator_dask.frames.faults import faults_told
from curator_dask.frames.parquet import open_parquet
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.adding import AddedStep, add_columns
from curator_dask.rows.lookup import Lookup
from curator_dask.runs.summary import SaveSummary
from curator_dask.storage import Options
from curator_dask.tables.columns import TableColumns, none_of_these
from curator_dask.threads import in_threads
from curator_dask.words import counted

_FEW = 3  # values that an error gives


@dataclass
class JoinSummary(SaveSummary):
    """What came of `join_output`, over all files, those that were finished before among them.

    Attributes
    ----------
    found, without
        Rows that the table has, and that it has not.
    unasked
        Rows of the table that no row asked for.
    without_key
        Rows of the table that were left out, for they have no value to be found by.
    examples_of_both
        Where no row was found, some values of the rows and of the table, in words; else empty.
    """

    found: int = 0
    without: int = 0
    unasked: int = 0
    without_key: int = 0
    examples_of_both: str = ""

    def _own_lines(self) -> list[str]:
        left = f"; {counted(self.without_key, 'row')} of it without a value there, left out"
        told = (
            f"  {counted(self.found, 'row')} found in the table, {self.without:,} without;"
            f" {counted(self.unasked, 'row')} of the table that no row asked for"
            f"{left if self.without_key else ''}"
        )
        return [told, *([f"  NONE found: {self.examples_of_both}"] if self.examples_of_both else [])]


def join_output(
    path: str | os.PathLike[str],
    table: str | os.PathLike[str],
    on: str = "key",
    columns: Sequence[str] | None = None,
    mark: str | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    table_storage_options: Mapping[str, Any] | None = None,
    output_storage_options: Mapping[str, Any] | None = None,
    workers: OpenWorkers = nullcontext,
) -> JoinSummary:
    """Add columns of a table to an output: no tar is opened, no vector changed.

    Each file is written whole or not at all. The same call again does only what is missing; where the table has changed
    its columns are made anew.

    Parameters
    ----------
    path
        What `save_metadata` or ``curator-dask embed`` wrote, or other Parquet files.
    table, on, columns, mark
        See `TableColumns`.
    output
        Where the files go with their columns; None: in the place of those that are there.
    overwrite
        Replace columns of these names that did not come from this table, and files that others made.
    storage_options, table_storage_options, output_storage_options
        For fsspec, where `path`, `table` and `output` are URLs; without the others the first is theirs, too.
    workers
        Opens the cluster to work on, once there are files that lack columns; else it is the one that is there.

    Raises
    ------
    ConfigError, DatasetError
        The table, or what is wanted of it, cannot be used.
    NoMatchError
        No row was found, and there is more to add than a mark.
    OutputError
        The files have no such column, or something would be replaced.
    """
    adds = TableColumns(
        table,
        on,
        columns,
        mark,
        storage_options=storage_options if table_storage_options is None else table_storage_options,
    )
    summary = JoinSummary("", opened=False)

    def steps(records: Mapping[str, FileRecord | None]) -> list[AddedStep]:
        step, lookup = adds.opened(adds.taken(records))
        _count(summary, adds, lookup, list(records), storage_options)
        if summary.examples_of_both and step.kinds:
            raise NoMatchError(f"{os.fspath(table)}: has none of the rows: {summary.examples_of_both}")
        return [step]

    add_columns(
        os.fspath(path),
        steps,
        None if output is None else os.fspath(output),
        overwrite=overwrite,
        options=storage_options,
        output_options=storage_options if output_storage_options is None else output_storage_options,
        workers=workers,
        summary=summary,
    )
    return summary


def _count(
    summary: JoinSummary, adds: TableColumns, lookup: Lookup, paths: Sequence[str], options: Options
) -> None:
    """Count what files' rows find, before anything is written."""
    asked = np.zeros(len(lookup.texts), bool)

    def look(path: str) -> tuple[int, int, list[Any]]:
        with faults_told(path), open_parquet(path, options) as file:
            names = file.schema_arrow.names
            if adds.on not in names:
                raise OutputError(f"{path}: {none_of_these(adds.on, names)} (--on)")
            column = file.read(columns=[adds.on]).column(0)
        try:
            rows = lookup.find(column)
        except ValueError as error:
            raise OutputError(f"{path}: column {adds.on!r}: {error}. Give another column (--on)") from None
        found = rows[rows >= 0]
        asked[found] = True
        return len(found), len(rows), column.slice(0, _FEW).to_pylist()

    looked = in_threads(look, paths)
    summary.found = sum(found for found, _, _ in looked)
    summary.without = sum(rows for _, rows, _ in looked) - summary.found
    summary.without_key = int(lookup.texts.null_count)
    # Of rows with one value any is asked for where one is.
    firsts = lookup.firsts
    there = firsts >= 0
    summary.unasked = int(np.count_nonzero(~asked[firsts[there]]))
    if not summary.found:
        ours = next((some for _, _, some in looked if some), [])
        theirs = lookup.texts.filter(pa.array(there))[:_FEW].to_pylist()
        summary.examples_of_both = (
            f"column {adds.on!r} of the rows has {_told(ours)}, {adds.key!r} of the table {_told(theirs)}. By"
            " another column it is --on COLUMN=TABLE_COLUMN"
        )


def _told(values: Sequence[Any]) -> str:
    return ", ".join(map(repr, values)) or "no values"
