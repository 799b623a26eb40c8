"""Giving the files of an output that is there columns of a table: all else in them stays as it is."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from curator_dask.cluster.setup import OpenWorkers
from curator_dask.errors import NoMatchError
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.adding import AddedStep, add_columns
from curator_dask.runs.summary import SaveSummary
from curator_dask.tables.columns import TableColumns
from curator_dask.tables.found import FoundRows, count_found


@dataclass
class JoinSummary(FoundRows, SaveSummary):
    """What came of `join_output`, over all files, those that were finished before among them."""

    __str__ = SaveSummary.__str__

    def _own_lines(self) -> list[str]:
        return [f"  {self.told}", *([f"  {self.none_told}"] if self.none_told else [])]


def join_output(
    path: str | os.PathLike[str],
    table: str | os.PathLike[str],
    on: str = "key",
    columns: Sequence[str] | None = None,
    mark: str | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    within: int | None = None,
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
    table, on, columns, mark, within
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
        within=within,
        storage_options=storage_options if table_storage_options is None else table_storage_options,
    )
    summary = JoinSummary("", opened=False, table=adds.path, on=f"{adds.on}={adds.key}", within=within)

    def steps(records: Mapping[str, FileRecord | None]) -> list[AddedStep]:
        step, lookup = adds.opened(adds.taken(records), adds.shards(records))
        summary.by_shard = step.table.by_shard
        count_found(summary, lookup, list(records), storage_options)
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
