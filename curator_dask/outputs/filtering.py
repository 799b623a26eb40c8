"""Filtering an output: the rows that pass go into files of their own, all their columns as they are.

First every file is asked which of its rows pass, by the columns that are named alone; then the files are written, each
whole or not at all. So the counts are known before anything is written, and of a second run too.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from curator_dask.cluster.setup import OpenWorkers, at_work
from curator_dask.errors import ConfigError, OutputError, ShardError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.parquet import read_footer, write_table
from curator_dask.frames.record import FILTERED, FileRecord
from curator_dask.outputs.choosing import Chosen, read_rows
from curator_dask.outputs.failed import check_others
from curator_dask.outputs.given import given_files
from curator_dask.outputs.hub_schema import METADATA_KEY
from curator_dask.outputs.placing import locate
from curator_dask.outputs.saving import check_apart, opened
from curator_dask.outputs.subset import uids_of, write_subset
from curator_dask.outputs.taken_down import taken_down, without_taken_down
from curator_dask.outputs.writing import Output
from curator_dask.rows.best import Cut, check_best
from curator_dask.rows.capped import check_cap
from curator_dask.rows.where import Where
from curator_dask.runs.reports import errors_of, report_frame, report_of, report_since
from curator_dask.runs.settle import file_tasks, run_targets
from curator_dask.runs.summary import SaveSummary, installed_versions
from curator_dask.runs.targets import Target
from curator_dask.storage import Options, join, remove
from curator_dask.threads import in_threads
from curator_dask.webdataset.stamps import stamp
from curator_dask.words import counted

logger = logging.getLogger("curator_dask")

#: The condition that every row passes, of which there is nothing to tell.
ALL = "TRUE"


@dataclass
class FilterSummary:
    """What a filter keeps.

    Attributes
    ----------
    rows, kept
        Rows that were looked at, and those that pass.
    passing
        By clause, rows that pass it alone.
    unknown
        By clause, rows of which it says nothing, since a value is null or NaN: they do not pass.
    cut
        Where the best rows end, if only these are kept.
    capped
        Of how many rows of each value are kept, if that is limited: ``column``, ``most``, ``by``, how many ``values``
        there are, how many of these have ``more`` rows, and how many rows that pass else are ``without`` a value there
        or in ``by``. None: it is not.
    output
        What was written, if anything was.
    subset
        How many uids were written, if they were.
    seconds
        Of this call.
    """

    rows: int = 0
    kept: int = 0
    passing: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)
    cut: Cut | None = None
    capped: dict[str, Any] | None = None
    output: SaveSummary | None = None
    subset: int | None = None
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: the attributes, ``output`` as `SaveSummary.to_dict` gives it, and the versions of what ran."""
        output = None if self.output is None else self.output.to_dict()
        cut = None if self.cut is None else vars(self.cut)
        return {**vars(self), "cut": cut, "output": output, "versions": installed_versions()}

    def __str__(self) -> str:
        lines = [f"{self.kept:,} of {counted(self.rows, 'row')} kept ({_share(self.kept, self.rows)})"]
        for clause, count in self.passing.items():
            null = f", {self.unknown[clause]:,} unknown (null)" if self.unknown[clause] else ""
            lines.append(f"  {clause}: {count:,} pass ({_share(count, self.rows)}){null}")
        if self.cut is not None:
            lines.append(f"  the best by {self.cut.column}: down to {self.cut.last_value}")
        if (cap := self.capped) is not None:
            which = f"the best by {cap['by']}" if cap["by"] else "any"
            no_value = f"; {counted(cap['without'], 'row')} without a value" if cap["without"] else ""
            lines.append(
                f"  at most {counted(cap['most'], 'row')} of each {cap['column']}, {which}:"
                f" {cap['more']:,} of {counted(cap['values'], 'value')} have more{no_value}"
            )
        return "\n".join(lines)


def _as_float(value: float) -> float:
    """As earlier versions have it in their files' fingerprints, where that is the same number."""
    return float(value) if float(value) == value else value


def _share(count: int, rows: int) -> str:
    return f"{count / rows:.1%}" if rows else "-"


def filter_output(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    where: str | None = None,
    top: tuple[str, float] | None = None,
    at_most: tuple[str, int] | None = None,
    by: str | None = None,
    subset: str | os.PathLike[str] | None = None,
    id_column: str | None = None,
    overwrite: bool = False,
    storage_options: Options = None,
    output_storage_options: Options = None,
    workers: OpenWorkers = nullcontext,
) -> FilterSummary:
    """Keep the rows of an output that pass; no tar is opened, no vector changed.

    Parameters
    ----------
    path
        What `save_metadata` or ``curator-dask embed`` wrote, or other Parquet files.
    output
        Where the rows that pass go, in files of the same names; None: they are counted alone.
    where
        A condition as behind SQL's WHERE (`ImageTextPairDataset.filter`).
    top
        A column, and a share of at most 1 or a whole number of rows of at least 2 (1 is a share: all): of the rows that
        pass `where` and have a value there, so many with the largest. It is exact over all files; a share goes to the
        nearest row, a half to the even number, and rows of one value go by their key. (8 bytes a row are held
        meanwhile.)
    at_most
        A column of text, whole numbers or booleans (a label, a cluster, a domain), and how many rows of each of its
        values are kept, at most, of those that pass `where`. It is exact over all files, and does not go with `top`.
        (12 bytes a row are held meanwhile.)
    by
        Of `at_most`: the column of numbers whose largest are kept, rows of one value by their key. None: any, by a
        digest of key and shard, the same each time.
    subset, id_column
        A file for the uids of the rows that pass, as DataComp's subsets are: a sorted ``.npy`` of pairs of uint64; and
        the column of the uids, without it that of the keys. (16 bytes a row are held meanwhile.)
    overwrite
        Replace files in `output` that something else has made, and remove those of another filter or retrieval; and
        another `subset`.
    storage_options, output_storage_options
        For fsspec, where `path` and `output` are URLs; without the second those of `path`, too.
    workers
        Opens the cluster that files are written on, once there are some to write; else it is the one that is there.

    Raises
    ------
    ConfigError
        Neither or no such condition is given.
    OutputError
        There are no such files or columns, or something would be replaced.
    """
    if where is None and top is None and at_most is None:
        raise ConfigError(
            "give a condition (where=, --where), how many of the best rows (top=, --top), or how many of each value"
            " (at_most=, --at-most)"
        )
    if top is not None:
        top = check_best(top)
    cap = check_cap(at_most, by, top)
    started = time.monotonic()
    source = Output(locate(os.fspath(path), storage_options), storage_options, False, overwrite, False)
    target = None
    if output is not None:
        options = storage_options if output_storage_options is None else output_storage_options
        target = Output(locate(os.fspath(output), options), options, False, overwrite, False)
        check_apart(source.folder, target.folder)
    names = given_files(source.folder, storage_options)
    chosen = Chosen(None if where is None else Where(where), top, cap=cap)
    looks = in_threads(lambda name: chosen.look(join(source.folder, name), storage_options), names)
    summary = FilterSummary(sum(look.rows for look in looks))
    for clause in (each for each in looks[0].passing if each != ALL):
        summary.passing[clause] = sum(look.passing[clause] for look in looks)
        summary.unknown[clause] = sum(look.unknown[clause] for look in looks)
    if top is not None:
        summary.cut = chosen.cut_of(looks, source.folder, names, storage_options)
        chosen = replace(chosen, cut=summary.cut)
    summary.kept = sum(look.kept for look in looks) if top is None else chosen.count(looks)
    if cap is not None:
        ends = chosen.ends_of(looks, source.folder, names, storage_options)
        chosen = replace(chosen, ends=ends)
        with_value = sum(len(look.members.groups) for look in looks if look.members is not None)
        summary.capped = {
            **vars(cap),
            "values": ends.values,
            "more": len(ends.ends),
            "without": summary.kept - with_value,
        }
        summary.kept = ends.kept
    if changed := [look.changed for look in looks if look.changed]:
        logger.warning(
            "%s: %s changed since these rows were made, %s for example. Run embed again first, or"
            " rows and vectors are those of before",
            *(source.folder, counted(len(changed), "shard"), changed[0]),
        )
    logger.info("%s", summary)
    if subset is not None:
        summary.subset = _write_subset(
            os.fspath(subset), id_column, names, chosen, source, output_storage_options
        )
    if target is not None:
        summary.output = _write(names, FilterFile(chosen, source, target), started, workers)
    summary.seconds = time.monotonic() - started
    return summary


@dataclass(frozen=True)
class FilterFile:
    """Writes the rows of one file that pass.

    Attributes
    ----------
    chosen
        Which rows.
    source, target
        Where the file is, and where it goes.
    given_up
        The file kills workers: it is not written, for this reason.
    """

    chosen: Chosen
    source: Output
    target: Output
    given_up: str | None = None

    @cached_property
    def capped(self) -> str | None:
        """A digest of how many rows of each value are kept, and which; None: all are."""
        chosen = self.chosen
        if chosen.cap is None or chosen.ends is None:
            return None
        ends = sorted((text, end.order, end.last) for text, end in chosen.ends.ends.items())
        return fingerprint({"cap": vars(chosen.cap), "ends": ends})

    def __dask_tokenize__(self) -> Any:
        # Of many values Dask would look at each end; their digest is made anyway.
        said = {**vars(self), "chosen": replace(self.chosen, ends=None), "capped": self.capped}
        return (type(self).__name__, sorted(said.items()))

    @property
    def asked(self) -> dict[str, Any]:
        """What is kept, for the record, as `filter_output` takes it."""
        chosen, cap = self.chosen, self.chosen.cap
        return {
            "where": None if chosen.where is None else chosen.where.text,
            "top": None if chosen.top is None else [*chosen.top],
            "at_most": None if cap is None else [cap.column, cap.most],
            "by": None if cap is None else cap.by,
        }

    def give_up(self, reason: str) -> FilterFile:
        """The same without the work that kills workers."""
        return replace(self, given_up=reason)

    def mark(self, name: str) -> str:
        """The fingerprint of what is written."""
        chosen = self.chosen
        made = stamp(join(self.source.folder, name), self.source.options)
        where = None if chosen.where is None else chosen.where.text
        cut = (
            None if chosen.cut is None else [chosen.cut.column, _as_float(chosen.cut.value), *chosen.cut.last]
        )
        said = {"filter": where, "top": chosen.top, "cut": cut, "file": vars(made)}
        return fingerprint(said if self.capped is None else {**said, "capped": self.capped})

    def __call__(self, name: str) -> pd.DataFrame:
        """Do it; returns a report as `WritePartition` does."""
        path = join(self.source.folder, name)
        if self.given_up is not None:
            raise ShardError(f"{path}: {self.given_up}")
        table = read_rows(path, self.source.options)
        record = FileRecord.parse(table.schema.metadata) or FileRecord("")
        # Of images in rows, datasets knows by this alone that they are such.
        said = {key: text for key, text in (table.schema.metadata or {}).items() if key == METADATA_KEY}
        kept = table.filter(pa.array(self.chosen.rows(table, name))).replace_schema_metadata(said)
        shown, id_col = name.removesuffix(".parquet"), record.id_col or "key"
        kept = without_taken_down(self.target.folder, self.target.options, kept, id_col)
        record = replace(
            record,
            fingerprint=self.mark(name),
            complete_as="",
            removed=0,
            report=report_of(shown, kept, id_col),
            earlier={},
            # A retry would bring rows back that do not pass.
            derived=tuple(dict.fromkeys([*record.derived, FILTERED])),
            filters=(*record.filters, {**self.asked, "rows": len(table), "kept": len(kept)}),
        )
        write_table(join(self.target.folder, name), kept, record, self.target.options)
        return report_frame(report_since(shown, kept, id_col, errors_of(kept)))


def _write_subset(
    path: str,
    id_column: str | None,
    names: Sequence[str],
    chosen: Chosen,
    source: Output,
    output_options: Options,
) -> int:
    folder, options = source.folder, source.options
    if id_column is None:
        record = read_footer(join(folder, names[0]), options).record
        id_column = (record and record.id_col) or "key"
    column = id_column

    def uids(name: str) -> np.ndarray:
        return uids_of(chosen.values(folder, name, column, options), column, join(folder, name))

    written = options if output_options is None else output_options
    target = locate(path, written)
    count = write_subset(target, in_threads(uids, names), written, source.overwrite)
    logger.info("%s: %s", target, counted(count, "uid"))
    return count


def _write(
    names: Sequence[str],
    function: FilterFile,
    started: float,
    workers: OpenWorkers,
) -> SaveSummary:
    target = function.target
    summary = SaveSummary(target.folder, opened=False)
    with opened(target.folder, target.options) as lock:
        there = in_threads(lambda name: read_footer(join(target.folder, name), target.options), names)
        others = check_others(target.folder, names, target.options, target.overwrite)
        todo = []
        for name, footer in zip(names, there, strict=True):
            if footer.is_finished(function.mark(name)):
                summary.skipped += 1
                summary.rows_before += footer.rows
                continue
            if (footer.columns or footer.fault) and not target.overwrite:
                why = footer.fault or "was made of other rows or by another condition"
                if not footer.fault and taken_down(target.folder, target.options) is not None:
                    why += ", or samples were removed since: curate goes on with append=True (--append), and whatever"
                    why += " is written anew has none of these"
                raise OutputError(
                    f"{join(target.folder, name)}: is there, and {why}. Write to another path, or use overwrite=True"
                    " (--overwrite)"
                )
            todo.append(name)
        if todo:
            with at_work(workers) as client:
                summary.startup_seconds = time.monotonic() - started
                targets = [Target.of_file(target.folder, name) for name in todo]
                tasks = file_tasks(function, todo, "filter-file", client)
                run_targets(tasks, client, targets, summary, held=lock.check_held)
        lock.check_held()
        for name in others if summary.complete else ():
            remove(join(target.folder, name), target.options)
    summary.seconds = time.monotonic() - started
    logger.info("%s", summary)
    return summary
