"""Outputs of rows, and tables of duplicates: files of Parquet, from which rows are taken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.errors import OutputError
from curator_dask.frames.faults import faults_told
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import open_parquet, read_record, read_whole, write_table
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.failed import find_errors, output_files
from curator_dask.outputs.removed import DUPLICATES
from curator_dask.outputs.saving import opened
from curator_dask.outputs.selecting import Folder
from curator_dask.outputs.taken_down import Marks, taken_down
from curator_dask.removing.asking import KEY, Asked
from curator_dask.removing.places import Look, read_some, report_of
from curator_dask.runs.reports import report_of as counts_of
from curator_dask.webdataset.stamps import stamp


def read_all(path: str, options: Any) -> pa.Table:
    """All of a file."""
    with faults_told(path), open_parquet(path, options) as file:
        return file.read()


@dataclass(frozen=True)
class RowsPlace:
    """An output of rows: embeddings, what passes a filter, rows that an export was made of."""

    folder: Folder
    kind: str = "rows"
    unit: str = "file"

    def names(self) -> list[str]:
        """Of its files, without those of failed rows, which are looked at with them."""
        return output_files(*self.folder)

    def open(self) -> AbstractContextManager[Any]:
        """Keep others from writing there."""
        return opened(*self.folder)

    def _paths(self, name: str) -> list[str]:
        path = self.folder.file(name)
        aside = find_errors(self.folder.path, name.removesuffix(".parquet"), self.folder.options)
        return [path, *([] if aside is None else [aside])]

    def look(self, name: str, kinds: Collection[str], asked: Asked) -> Look:
        """The rows of a file, and those that failed and lie elsewhere."""
        paths = self._paths(name)
        id_col = _id_col(paths[0], self.folder.options)
        tables = [
            read_some(path, self.folder.options, id_col, [URL_COLUMN], kinds, asked).replace_schema_metadata()
            for path in paths
        ]
        table = pa.concat_tables(tables, promote_options="permissive")
        return Look(Marks.of(table, id_col, kinds), table, id_col, np.ones(len(table), bool))

    def rewrite(self, name: str, again: Mapping[str, Any]) -> dict[str, Any]:
        """Take rows out, and say of which state the shard's tar is now, where that was rewritten by the same call."""
        record, options = taken_down(*self.folder), self.folder.options
        paths = self._paths(name)
        gone, size, every = 0, 0, Counter[str]()
        examples: dict[str, list[str]] = {}
        aside = 0
        for path in reversed(paths):  # that of failed rows first: the file itself tells how many these are
            table = read_all(path, options)
            made = FileRecord.parse(table.schema.metadata) or FileRecord("")
            id_col = made.id_col or KEY
            is_gone = np.zeros(len(table), bool)
            if record is not None:
                is_gone = record.mask(Marks.of(table, id_col, record.kinds))
            left = table.filter(pa.array(~is_gone))
            counts = counts_of(name.removesuffix(".parquet"), left, id_col)
            every.update(counts["reasons"])
            for kind, some in counts["examples"].items():
                examples[kind] = [*examples.get(kind, []), *some][:3]
            now = since(made, again)
            gone += int(is_gone.sum())
            if path != paths[0]:
                aside = len(left)
            if is_gone.any() or now is not made or (path == paths[0] and gone):
                went = table.filter(pa.array(is_gone))
                told = {"reasons": dict(every), "examples": examples}
                now = _without(now, len(left), len(went), gone, aside, told)
                write_table(path, left, now, options)
                size += stamp(path, options).size
        return report_of(name, gone, size)

    def finish(self, removed: int) -> None:
        """Nothing speaks of its files."""


def _id_col(path: str, options: Any) -> str:
    record = read_record(path, options)
    return (record and record.id_col) or KEY


def since(record: FileRecord, again: Mapping[str, Any]) -> FileRecord:
    """The record, with the state of its tar where that was rewritten: the images that are left are what they were."""
    new = again.get(record.url or "")
    tar = (record.shard or {}).get("tar")
    if new is None or record.shard is None or tar != new["before"]:
        return record
    shard = {**record.shard, "tar": new["after"]}
    earlier = {
        name: {**said, "tar": new["after"]} if said.get("tar") == tar else said
        for name, said in record.earlier.items()
    }
    return replace(record, shard=shard, earlier=earlier)


def _without(
    record: FileRecord, rows: int, own: int, gone: int, aside: int, told: Mapping[str, Any]
) -> FileRecord:
    """The record of a file without some rows.

    Parameters
    ----------
    record
        As it was.
    rows, own
        That are left in the file, and that went out of it.
    gone, aside
        That went, also of the failed ones that lie elsewhere; and of these those that are left.
    told
        Reasons and examples of rows that failed, of all that are left.
    """
    report = record.report
    if report is not None and gone:
        dropped = aside if report.get("dropped") else 0
        report = {**report, "rows": rows + dropped, "dropped": dropped, **told}
        report["failed"] = sum(told["reasons"].values())
    earlier = {}
    for name, said in record.earlier.items():
        counts = said.get("report")
        if counts is not None and gone:
            left = max(0, counts["rows"] - gone)
            counts = {**counts, "rows": left, "failed": min(counts["failed"], left), "examples": {}}
            said = {**said, "report": counts}
        earlier[name] = said
    return replace(record, report=report, earlier=earlier, removed=record.removed + own)


@dataclass(frozen=True)
class DuplicatesPlace:
    """A table of duplicates, of which rows are taken: those of groups whose best went stay out as they did."""

    folder: Folder
    kind: str = "duplicates"
    unit: str = "file"

    def names(self) -> list[str]:
        """That of the one file."""
        return [DUPLICATES]

    def open(self) -> AbstractContextManager[Any]:
        """Keep others from writing there."""
        return opened(*self.folder)

    def look(self, name: str, kinds: Collection[str], asked: Asked) -> Look:
        """Its rows: shards and keys alone."""
        path = self.folder.file(name)
        columns = read_whole(path, self.folder.options).columns
        if not {"id", URL_COLUMN} <= {*columns}:
            raise OutputError(f"{path}: is no table of duplicates")
        table = read_some(path, self.folder.options, "id", [URL_COLUMN], (), asked)
        marks = Marks.of(table, "id", ())
        if KEY not in table.column_names:  # as rows call it
            table = table.append_column(KEY, table.column("id"))
        return Look(marks, table, "id", np.ones(len(table), bool))

    def rewrite(self, name: str, again: Mapping[str, Any]) -> dict[str, Any]:
        """Take rows out."""
        path, options = self.folder.file(name), self.folder.options
        record = taken_down(*self.folder)
        table = read_all(path, options)
        gone = np.zeros(len(table), bool) if record is None else record.mask(Marks.of(table, "id", ()))
        if not gone.any():
            return report_of(name, 0)
        left, went = table.filter(pa.array(~gone)), table.filter(pa.array(gone))
        headed = pc.unique(left.filter(left.column("kept")).column("group"))
        headless = pc.invert(
            pc.is_in(
                left.column("group"),
                value_set=headed.combine_chunks() if isinstance(headed, pa.ChunkedArray) else headed,
            )
        )
        lost = len(pc.unique(left.filter(headless).column("group")))
        made = FileRecord.parse(table.schema.metadata) or FileRecord("")
        report = dict(made.report or {})
        if "removed" in report:
            report["removed"] -= pc.sum(pc.invert(went.column("kept"))).as_py() or 0
        made = replace(made, report=report or None, removed=made.removed + len(went))
        write_table(path, left, made, options)
        return report_of(name, len(went), stamp(path, options).size, lost=lost)

    def finish(self, removed: int) -> None:
        """Nothing speaks of it."""
