"""Writing one partition as Parquet, on the worker that holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask import backend
from curator_dask.cluster.leaving import leave_if_broken
from curator_dask.cluster.timing import spending
from curator_dask.errors import OutputError
from curator_dask.frames.committing import Commits
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import (
    Footer,
    conform,
    known_record,
    read_footer,
    read_record,
    state_of,
    write_table,
)
from curator_dask.frames.record import FileRecord, inputs_of
from curator_dask.outputs.failed import find_errors, write_failed
from curator_dask.outputs.joining import Joined, Joining
from curator_dask.outputs.keeping import Kept
from curator_dask.outputs.taken_down import gone_of, remark_gone, staying
from curator_dask.rows.known import KnownVectors, StoredRows
from curator_dask.rows.remarks import current_remarks, fact_of, of_kept, remark, summed
from curator_dask.runs.reports import errors_of, report_frame, report_of, report_row
from curator_dask.runs.shardwise import Together
from curator_dask.runs.targets import Target
from curator_dask.storage import Options
from curator_dask.webdataset.stamps import check_planned
from curator_dask.words import counted


@dataclass(frozen=True)
class Output:
    """Where a run writes.

    Attributes
    ----------
    folder
        Local path or fsspec URL.
    options
        For fsspec.
    in_place
        It is the dataset's own folder.
    overwrite
        What other runs or programs made may be replaced.
    drop_failed
        Rows whose image failed go elsewhere (`curator_dask.outputs.failed`).
    """

    folder: str
    options: Options
    in_place: bool
    overwrite: bool
    drop_failed: bool


@dataclass(frozen=True)
class WritePartition:
    """Writes a partition's file and reports its counts; the last node of the graph.

    Attributes
    ----------
    schema
        Of every file.
    output
        Where the files are.
    id_col
        Column of the keys, for messages.
    embeddings
        What made each embedding column.
    settings
        By column, the arguments of the embedder; null for one of the user's own.
    input_options
        For fsspec, where the dataset is in a store.
    unfinished
        Store no fingerprint, so that a rerun makes the file again.
    derived, read_by, scores
        See `FileRecord`.
    keeps_vectors
        Vectors that come with the rows are written as they were read.
    kept
        Columns of other runs.
    """

    schema: pa.Schema
    output: Output
    id_col: str
    embeddings: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    input_options: Options = None
    unfinished: bool = False
    derived: tuple[str, ...] = ()
    read_by: Mapping[str, str] = field(default_factory=dict)
    keeps_vectors: bool = False
    kept: Kept = field(default_factory=Kept)
    scores: Mapping[str, Any] = field(default_factory=dict)

    def __dask_tokenize__(self) -> Any:
        settings = {**vars(self), "schema": self.schema.to_string(), "output": vars(self.output)}
        return (type(self).__name__, settings)

    def __call__(self, frame: Any, target_frame: pd.DataFrame) -> pd.DataFrame:
        """Write one partition whose target is a partition too; the report as `report_frame`."""
        target = Target.from_json(target_frame["target"].iloc[0])
        leave_if_broken(target.name)  # before images are blamed for it in a file
        with spending("write"):
            return report_frame(self._write(frame, target))

    def write(self, frame: Any, target: Target) -> dict[str, Any]:
        """Write one partition.

        Returns
        -------
        dict
            ``target`` is JSON: ``name``, ``rows``, ``failed``, ``dropped``, ``reasons``, ``examples`` and
            ``remarks``.

        Raises
        ------
        OutputError
            The file cannot be written, or would have fewer rows than the one it replaces.
        """
        return report_row(self._write(frame, target))

    def write_together(self, rows: Together | list[Any], targets: Sequence[Target]) -> list[dict[str, Any]]:
        """Do the same with several partitions; of one frame all are converted at once.

        The disk is waited for once, too. Where something goes wrong with one of them, others may be there.
        """
        with Commits() as commits:
            if isinstance(rows, Together):
                converted = self._converted(rows.frame, targets[0].name)
                reports = []
                for (start, end), target in zip(rows.bounds, targets, strict=True):
                    whole, table, errors = (each.slice(start, end - start) for each in converted)
                    reports.append(self._put(whole, table, errors, target, commits))
            else:
                each = zip(rows, targets, strict=True)
                reports = [self._write(frame, target, commits) for frame, target in each]
        return [report_row(report) for report in reports]

    def reusable(self, target: Target) -> KnownVectors | None:
        """Vectors in the file that is to be replaced."""
        if not target.reuse:
            return None
        record = read_record(target.path, self.output.options)
        remarks = record.remarks if record is not None else {}
        gone = gone_of(self.output.folder, self.output.options)
        return KnownVectors(
            self._paths(target), self.output.options, self.id_col, target.reuse, remarks, gone
        )

    def give_up(self, reason: str) -> WritePartition:
        """The same, to be made again by a rerun: what is written lacks what was given up."""
        return replace(self, unfinished=True)

    def known(self, target: Target) -> dict[str, Any] | None:
        """What `write` gave when it wrote the file; None if the file is not there, or is another's."""
        footer = read_footer(target.path, self.output.options)
        report = footer.record.report if footer.record else None
        return report_row(report) if report and footer.is_finished(target.fingerprint) else None

    def _write(self, frame: Any, target: Target, commits: Commits | None = None) -> dict[str, Any]:
        return self._put(*self._converted(frame, target.name), target, commits)

    def _converted(self, frame: Any, name: str) -> tuple[pa.Table, pa.Table, Any]:
        """The frame as Arrow's table, as it is written, and its rows' reasons."""
        whole = backend.frame_to_arrow(frame)
        return whole, conform(whole, self.schema, name), self.kept.reasons(whole, errors_of(whole))

    def _put(
        self, whole: pa.Table, table: pa.Table, errors: Any, target: Target, commits: Commits | None
    ) -> dict[str, Any]:
        stays = staying(self.output.folder, self.output.options, whole, self.id_col)
        if stays is not None:
            remark_gone(whole, stays, (target.shard or {}).get("url"))
            whole, table, errors = (each.filter(pa.array(stays)) for each in (whole, table, errors))
        bad = pc.is_valid(errors)
        report = report_of(target.name, whole, self.id_col, errors)
        report["dropped"] = report["failed"] if self.output.drop_failed else 0
        report["remarks"] = current_remarks().on(_urls(whole, target))
        there = read_footer(target.path, self.output.options)
        if there.is_finished(target.fingerprint):
            # Dask runs a task again when its worker died after writing: to write into the dataset's own file
            # what was made of that file would apply every step twice.
            return {**report, **((there.record and there.record.report) or {})}
        if target.shard is not None:
            check_planned(target.shard)
        rows = len(table)
        if self.output.in_place:
            self._check_rows_kept(target, rows, there)
        said, kept = FileRecord(""), set[str]()
        if self.kept:
            joined = self._join(target, table, errors, there)
            table, bad, said = joined.table, pa.array(joined.failed), joined.said
            report["dropped"] = int(joined.failed.sum()) if self.output.drop_failed else 0
            report["remarks"] = current_remarks().on(_urls(whole, target))
            if there.record is not None and there.record.shard == target.shard:
                kept = {*table.column_names} - {*self.kept.own}
        self._check_rows_kept(target, rows, there)
        record = self._record(target, report, said)
        if kept and there.record is not None:
            before = of_kept(there.record.remarks, kept, record.remarks)
            record = replace(record, remarks=summed(before, record.remarks))
        failed = table.filter(bad) if self.output.drop_failed else table.slice(0, 0)
        write_failed(self.output.folder, target.name, failed, record, self.output.options)
        if self.output.drop_failed:
            table = table.filter(pc.invert(bad))
        write_table(target.path, table, record, self.output.options, commits)
        return report

    def _join(self, target: Target, table: pa.Table, errors: pa.Array, there: Footer) -> Joined:
        scores = there.record.scores.values() if there.record else ()
        scored = {name for said in scores for name in inputs_of(said)}
        others = [name for name in there.columns if name not in self.kept.own or name in scored]
        stored = StoredRows(self._paths(target), self.output.options, self.id_col, others)
        joined = Joining(self.kept, target, stored, there.record, self.id_col, {*self.scores}).join(
            table, errors, self.output.overwrite, self.output.drop_failed
        )
        url = (target.shard or {}).get("url")
        if url is not None and joined.not_made:
            remark(url, "not-made", fact_of(joined.not_made, len(joined.not_made)))
        return joined

    def _paths(self, target: Target) -> list[str]:
        """The target's file that is there, and the rows that were dropped from it."""
        errors = find_errors(self.output.folder, target.name, self.output.options)
        return [target.path, *([] if errors is None else [errors])]

    def _record(self, target: Target, report: Mapping[str, Any], said: FileRecord) -> FileRecord:
        beside = target.companion
        # The rows were read of it a moment ago.
        before = (
            known_record(state_of(beside), lambda: read_record(beside, self.input_options))
            if beside
            else None
        )
        # What made the embeddings that came with the shard's rows and are written unchanged.
        inherited = before.embeddings if before is not None else {}
        return FileRecord(
            fingerprint="" if self.unfinished else target.fingerprint,
            complete_as=target.fingerprint,
            id_col=self.id_col,
            shard=target.shard,
            dataset=target.dataset,
            # Rows that an earlier run took from the tar are the tar's, also when they were read from its output.
            source=(before.source if before is not None else None) or target.source,
            embeddings={
                **{name: info for name, info in inherited.items() if name in self.schema.names},
                **said.embeddings,
                **self.embeddings,
            },
            settings={**(before.settings if before is not None else {}), **said.settings, **self.settings},
            read_by={
                **(self._inherited_ways(before) if before is not None else {}),
                **said.read_by,
                **self.read_by,
            },
            scores={
                **(self._inherited_scores(before) if before is not None else {}),
                **said.scores,
                **self.scores,
            },
            derived=tuple(dict.fromkeys([*said.derived, *self.derived])),
            remarks=report["remarks"],
            report=report,
            earlier=said.earlier,
        )

    def _inherited_ways(self, before: FileRecord) -> dict[str, Any]:
        """How vectors were made that are written as they were read; of other columns that is not known."""
        return {
            name: how
            for name, how in before.read_by.items()
            if self.keeps_vectors and name in before.embeddings
        }

    def _inherited_scores(self, before: FileRecord) -> dict[str, Any]:
        """Those of vectors that are written as they were read."""
        return {
            name: said
            for name, said in before.scores.items()
            if name in self.schema.names
            and self.keeps_vectors
            and not {*inputs_of(said)} & {*self.embeddings}
        }

    def _check_rows_kept(self, target: Target, rows: int, there: Footer) -> None:
        """Rows that are there are not lost: those of the dataset's own files, and of the shard as it still is."""
        own = self.output.in_place
        if self.output.overwrite:
            return
        same = there.record is not None and target.shard is not None and there.record.shard == target.shard
        if (own or same) and there.rows > rows:
            raise OutputError(
                f"{target.path} has {counted(there.rows, 'row')} and would be replaced by one with {rows}. Rows"
                f" were filtered:"
                " give save_metadata another path, or overwrite=True (--overwrite) to drop them"
                + (" from the dataset's own files" if own else "")
            )


def _urls(table: pa.Table, target: Target) -> list[str]:
    """The shards that a partition came from."""
    found = pc.unique(table.column(URL_COLUMN)).to_pylist() if URL_COLUMN in table.column_names else []
    return [url for url in {*found, (target.shard or {}).get("url")} if url is not None]
