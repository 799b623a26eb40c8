"""Trying the failed rows of an output again, and only these.

What `save_metadata` wrote says all that is needed: each row its shard and key, each file what made its vectors.
So the dataset that it came from need not be given again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask import backend
from curator_dask.cluster.leaving import leave_if_broken
from curator_dask.cluster.setup import OpenWorkers, at_work
from curator_dask.errors import OutputError, ShardError
from curator_dask.frames.faults import faults_told
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.frames.parquet import (
    Footer,
    conform,
    list_parquet,
    open_parquet,
    read_record,
    whole_footers,
    write_table,
)
from curator_dask.frames.record import MADE_BY, FileRecord, inputs_of, made_by_model
from curator_dask.outputs.conflicts import describe_difference
from curator_dask.outputs.failed import as_wide, find_errors, list_errors, output_files, write_failed
from curator_dask.outputs.file_parts import is_of
from curator_dask.outputs.given import check_one_output
from curator_dask.outputs.hopeless import rows_without_sample
from curator_dask.outputs.lock import RunLock
from curator_dask.outputs.placing import locate
from curator_dask.outputs.redoing import load_again, steps_of
from curator_dask.outputs.stale import lacking_columns
from curator_dask.outputs.unchanged import check_unchanged
from curator_dask.outputs.writing import Output
from curator_dask.rows.remarks import add_up, noticing, summed, without_not_made
from curator_dask.runs.awaiting import with_origins
from curator_dask.runs.fit import Fit
from curator_dask.runs.parts import Part, told_part
from curator_dask.runs.passes import run_steps
from curator_dask.runs.reports import report_frame, report_of
from curator_dask.runs.settle import file_tasks, run_targets
from curator_dask.runs.state import clear_stages
from curator_dask.runs.step import SharingStep
from curator_dask.runs.summary import SaveSummary
from curator_dask.runs.targets import Target
from curator_dask.storage import Options, join
from curator_dask.threads import in_threads

logger = logging.getLogger("curator_dask")


#: Of what is noticed, that of rows which had failed.
_COUNTED = ("corrupt", "captions", "detections", "answers")


@dataclass(frozen=True)
class RetryFile:
    """Embeds the failed rows of one file again and writes it anew, where any has a vector or another reason now.

    Attributes
    ----------
    steps
        The embedder's, and those of statistics and scores; of these a file is done those that it has.
    column
        Of the vectors, or the first of those that a model makes else.
    sure
        That of these which only rows lack that have failed.
    id_col
        Column of the keys.
    output
        Where the files are.
    shard_options
        For fsspec, of the shards.
    unfinished
        Rows are given up: a rerun is to make the file again.
    """

    steps: tuple[SharingStep, ...]
    column: str
    sure: str
    id_col: str
    output: Output
    shard_options: Options = None
    unfinished: bool = False

    def give_up(self, reason: str) -> RetryFile:
        """The same without the work that kills workers: the rows get this reason, and a rerun makes the file again."""
        steps = tuple(step.give_up(reason) for step in self.steps)
        return replace(self, steps=steps, unfinished=True)  # type: ignore[arg-type]

    def __call__(self, name: str) -> pd.DataFrame:
        """Do it; returns a report as `WritePartition` does, of the rows that were tried.

        Raises
        ------
        ShardError
            The shard cannot be read, or has changed since the file was written.
        """
        folder, options = self.output.folder, self.output.options
        table, record = _read(path := join(folder, f"{name}.parquet"), options)
        urls = pc.unique(table.column(URL_COLUMN)).to_pylist()
        check_unchanged(path, urls, record, self.shard_options)
        kept, dropped = table.slice(0, 0), table.slice(0, 0)
        errors_path = find_errors(folder, name, options)
        is_tidy, apart = True, list[str]()
        if errors_path is not None:
            beside, apart = as_wide(_read(errors_path, options)[0], table)
            aside = _without(beside, table, self.id_col)
            is_tidy = len(aside) == len(beside)
            lacking = pc.is_null(aside.column(self.sure))
            kept, dropped = aside.filter(pc.invert(lacking)), aside.filter(lacking)
        bad = pc.indices_nonzero(pc.is_null(table.column(self.sure)))
        tried = pa.concat_tables([table.take(bad), dropped])
        steps = steps_of(self.steps, table.column_names, record)
        with noticing() as noticed:
            done = backend.frame_to_arrow(run_steps(steps, backend.rows_of(tried)))
        leave_if_broken(name)  # before images are blamed for it in the file
        done = conform(done, tried.schema.remove_metadata(), name)
        failed = done.filter(pc.is_null(done.column(self.sure)))
        report = {**report_of(name, failed, self.id_col), "rows": len(done)}
        # Column by column: whether a schema allows nulls makes no other rows.
        same = all(done.column(each).equals(tried.column(each)) for each in tried.column_names)
        if same and is_tidy and not self.unfinished:
            return report_frame(report)  # the file stays as it is, and what was made of it is still finished
        mended, again = done.slice(0, len(bad)), done.slice(len(bad))
        # What was dropped is good when nothing is wrong with it, in another embedding's eyes either.
        good = pc.is_null(again.column(ERROR_COLUMN))
        table = pa.concat_tables([_replaced(table, bad, mended), again.filter(good)])
        record = _tried(
            record, self.column, {name for step in steps for name in step.columns}, self.unfinished
        )
        good_now = done.filter(pc.is_valid(done.column(self.sure)))
        if len(good_now):
            apart = apart if pc.any(good).as_py() else []
            record, report["remarks"] = _unscored(record, self.column, apart, steps, good_now)
        # They had failed, so nobody has counted them.
        found = noticed.on(pc.unique(done.column(URL_COLUMN)).drop_null().to_pylist())
        new = {url: {kind: facts[kind] for kind in _COUNTED if kind in facts} for url, facts in found.items()}
        record = replace(record, remarks=summed(record.remarks, new))
        report["remarks"] = summed(report.get("remarks", {}), new)
        # In this order a death in between leaves rows in both places, and `_without` forgives that; never in none.
        write_table(path, table, record, options)
        left = pa.concat_tables([kept, again.filter(pc.invert(good))])
        write_failed(folder, name, left, record, options)
        return report_frame(report)


def retry(
    path: str,
    column: str,
    make_steps: Callable[[Mapping[str, FileRecord], str, Sequence[str]], Sequence[SharingStep]],
    options: Options = None,
    shard_options: Options = None,
    workers: OpenWorkers = nullcontext,
    sure: str | None = None,
    part: Part | None = None,
) -> SaveSummary:
    """Embed the failed rows of an output again; see `ImageEmbedder.retry`.

    Parameters
    ----------
    path
        Of the output.
    column
        The embedding.
    make_steps
        Makes the step that embeds, and those of what else is to be made of its rows: given the records of the files
        by path, the column of the keys and the other embeddings of the output.
    options
        For fsspec, of the output.
    shard_options
        The same of the shards.
    workers
        Opens the cluster to work on, once there are failed rows; else it is the one that is there.
    sure
        Another column of the same model, null where a row has failed; None: `column` is.
    part
        Whose files are tried, beside other parts.
    """
    started = time.monotonic()
    output = _output(path, options)
    summary = SaveSummary(output.folder, again=True, column=column)
    if not list_parquet(output.folder, options):
        raise _nothing_there(output, column)
    check_one_output(output.folder, output_files(output.folder, options))
    with RunLock(output.folder, options, part) as lock:
        found, targets, remarks, summary.part = _find(output, column, part)
        record = next(iter(found.values())).record or FileRecord("")
        summary.made = made_by_model(record.models[column])
        others = [name for name in record.embeddings if name != column]
        id_col = record.id_col or ""
        records = {path: footer.record for path, footer in found.items() if footer.record is not None}
        steps = tuple(make_steps(records, id_col, others))
        _check_derived(found, steps)
        summary.add_remarks(without_not_made(remarks, column))
        failed = [(each.name, each.path, records[each.path]) for each in targets]
        summary.without_sample = rows_without_sample(failed, column, output, shard_options) or 0
        if targets and not summary.without_sample:
            with at_work(workers) as client:
                try:
                    steps, loaded = load_again(steps, client, len(targets), records)
                    before = {name: info for each in records.values() for name, info in each.models.items()}
                    described = with_origins(loaded.described, steps, before)
                    _check_same(output, records.values(), steps[0], described)
                    summary.startup_seconds = time.monotonic() - started
                    retry_file = RetryFile(steps, column, sure or column, id_col, output, shard_options)
                    names, fit = [each.name for each in targets], Fit(steps, loaded)
                    tasks = file_tasks(retry_file, names, "retry-file", client, fit)
                    run_targets(tasks, client, targets, summary, held=lock.check_held)
                finally:
                    clear_stages(client)
            lock.check_held()
    summary.seconds = time.monotonic() - started
    logger.info("%s", summary)
    return summary


def _output(path: str, options: Options) -> Output:
    return Output(locate(path, options), options, in_place=False, overwrite=False, drop_failed=False)


def _find(
    output: Output, column: str, part: Part | None
) -> tuple[dict[str, Footer], list[Target], dict[str, Any], dict[str, int] | None]:
    """The files with the column by path; of a part those with failed rows, what was noticed of its shards, and it."""
    aside = list_errors(output.folder, output.options)
    files = sorted({*list_parquet(output.folder, output.options), *aside})
    footers = whole_footers(files, output.options)
    mine: dict[str, FileRecord] = {}
    found: dict[str, Footer] = {}
    for path, footer in footers.items():
        if footer.record is None or column not in footer.record.models:
            continue
        mine[path], found[path] = footer.record, footer
        needed = [footer.record.id_col, URL_COLUMN, ERROR_COLUMN]
        lacking = [name for name in needed if name not in footer.columns]
        if lacking:
            raise OutputError(
                f"{path}: has no columns {lacking}, by which failed rows and their images are found. Only an output"
                " with them can be retried: run embed again, with overwrite"
            )
    if not mine:
        raise _nothing_there(output, column)
    first, *others = mine.values()
    for other in others:
        difference = describe_difference(first.models[column], other.models[column])
        if difference:
            raise OutputError(
                f"{output.folder}: the files do not have one model: column {column!r} {difference}"
            )
    with_errors = {aside[path] for path in mine if path in aside}
    there = [path for path in mine if path not in aside]
    names = {path: path.removeprefix(output.folder).lstrip("/").removesuffix(".parquet") for path in there}
    paths = [path for path, name in names.items() if is_of(part, name)]
    failed = in_threads(lambda path: _has_failed(path, output.options), paths)
    targets = [
        Target(names[path], path, "", dict(mine[path].shard or {}) or None, None, None)
        for path, has_failed in zip(paths, failed, strict=True)
        if has_failed or names[path] in with_errors
    ]
    remarks: dict[str, Any] = {}
    for path, record in mine.items():
        if is_of(part, names[path] if path in names else aside[path]):
            add_up(remarks, record.remarks)
    told = None if part is None else told_part(part, len(paths), len(names))
    return found, targets, remarks, told


def _check_derived(found: Mapping[str, Footer], steps: Sequence[SharingStep]) -> None:
    """Raise OutputError where rows would have a vector again, and not what was made of it; scores can come later."""
    for path, footer in found.items():
        record = footer.record or FileRecord("")
        made = {name for step in steps_of(steps, footer.columns, record) for name in step.columns}
        lacking = [name for name in record.derived if name not in made and name not in record.scores]
        if lacking:
            raise OutputError(
                f"{path}: after the embedding {', '.join(lacking)} was made, which a retry cannot make"
                " again: mended rows would have a vector, and not that. Remove the files with failed rows, and run the"
                " script that wrote them again"
            )


def _unscored(
    record: FileRecord, column: str, apart: Sequence[str], steps: Sequence[SharingStep], mended: pa.Table
) -> tuple[FileRecord, dict[str, Any]]:
    """The record that says which scores rows lack that have a vector now; the same alone, as remarks on shards."""
    made = {name for step in steps for name in step.columns}
    # Of classes of images, too: they lack those that could not be read.
    of_these = [
        name
        for name, said in record.scores.items()
        if name in apart or column in inputs_of(said) or MADE_BY in said
    ]
    return lacking_columns(record, [name for name in of_these if name not in made], mended)


def _check_same(
    output: Output,
    records: Collection[FileRecord],
    step: SharingStep,
    described: Mapping[str, Mapping[str, Any]],
) -> None:
    """Raise OutputError where the model that is to be retried did not make what files have of its columns."""
    for name in step.columns:
        for models in (record.models for record in records if name in record.models):
            difference = describe_difference(models[name], described.get(name, {}))
            if difference:
                raise OutputError(f"{output.folder}: column {name!r} {difference}: retry with the same model")


def _nothing_there(output: Output, column: str) -> OutputError:
    return OutputError(
        f"{output.folder}: no file there has a column {column!r} that curator_dask made. Give the folder that"
        " save_metadata (or embed) wrote to, and the name of the column"
    )


def _has_failed(path: str, options: Options) -> bool:
    """Whether a row has an ``image_error``, by the footer alone where that says it."""
    with faults_told(path), open_parquet(path, options) as file:
        # Columns of a footer are counted by their leaves; a list's stand before it.
        leaves = [file.metadata.schema.column(number).path for number in range(file.metadata.num_columns)]
        column = leaves.index(ERROR_COLUMN)
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        counts = [group.column(column).statistics for group in groups if group.num_rows]
        if any(count is None or not count.has_null_count for count in counts):
            return bool(file.read(columns=[ERROR_COLUMN]).column(0).drop_null())
        return bool(sum(count.null_count for count in counts) < file.metadata.num_rows)


def _read(path: str, options: Options) -> tuple[pa.Table, FileRecord]:
    record = read_record(path, options)
    with faults_told(path, ShardError), open_parquet(path, options) as file:
        table = file.read()
    return table.replace_schema_metadata(None), record or FileRecord("")


def _tried(record: FileRecord, column: str, others: Collection[str], unfinished: bool) -> FileRecord:
    """The record of a file of which a column's rows were tried again; what was given up has been tried then.

    What others of its columns came to is not known any more, as those rows have been done again for them, too.
    """
    run = record.run_of(column)
    fingerprint = run["fingerprint"] if unfinished else run["complete_as"] or run["fingerprint"]
    record = replace(record, remarks=without_not_made(record.remarks, column))
    earlier = {
        name: {**told, "report": None} if name in others else told for name, told in record.earlier.items()
    }
    record = replace(record, earlier=earlier)
    if column not in record.earlier:
        return replace(record, fingerprint=fingerprint, report=None)  # it is of the rows as they were
    run = {**run, "fingerprint": fingerprint, "report": None}
    return replace(record, earlier={**record.earlier, column: run})


def _without(table: pa.Table, other: pa.Table, id_col: str) -> pa.Table:
    """The rows of one table that the other has not: a retry that died may have left them in both."""
    columns = [URL_COLUMN, id_col]
    there = set(zip(*(other.column(name).to_pylist() for name in columns), strict=True))
    rows = zip(*(table.column(name).to_pylist() for name in columns), strict=True)
    return table.filter(pa.array([row not in there for row in rows], pa.bool_()))


def _replaced(table: pa.Table, rows: pa.Array, by: pa.Table) -> pa.Table:
    """The table with other rows in some places."""
    order = np.arange(len(table))
    order[np.asarray(rows)] = len(table) + np.arange(len(by))
    return pa.concat_tables([table, by]).take(pa.array(order))
