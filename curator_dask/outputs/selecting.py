"""Looking up the samples of an output's rows: which rows pass, and where in the tars the members of each lie.

It is done a file at a time, before anything is exported, and kept as a table a file; so the counts are known, and
what is exported of a file does not depend on the others.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.collector import held_back
from curator_dask.errors import ConfigError, OutputError, ShardError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.columns import to_array
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.frames.parquet import read_footer, read_whole, write_table
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.choosing import read_rows
from curator_dask.outputs.editing import kind_of_lost
from curator_dask.outputs.export_options import check_boolean
from curator_dask.outputs.found_samples import FoundSamples
from curator_dask.outputs.removed import stays
from curator_dask.outputs.taken_down import taken_down
from curator_dask.outputs.unchanged import check_unchanged
from curator_dask.outputs.weighing import Weighing
from curator_dask.outputs.whole_samples import NEEDED, WholeSamples
from curator_dask.rows.ids import exact_ids
from curator_dask.rows.reasons import reasons_in
from curator_dask.rows.remarks import EXAMPLES, noticing
from curator_dask.rows.where import Where
from curator_dask.runs.reports import errors_of, report_frame
from curator_dask.storage import Options, join
from curator_dask.webdataset.several_names import SAMPLE
from curator_dask.webdataset.stamps import stamp
from curator_dask.words import some_of_these


class Folder(NamedTuple):
    """A folder, and how it is reached.

    Attributes
    ----------
    path
        Local, or fsspec URL.
    options
        For fsspec.
    """

    path: str
    options: Options = None

    def file(self, name: str) -> str:
        """The path of a file in it."""
        return join(self.path, name)


#: What rows are asked besides the clauses of a condition, as the summary calls it.
_ALONE = "has no better twin"
_ALONE_PASSING = f"{_ALONE} that passes"


@dataclass(frozen=True)
class FileRows:
    """A file of rows, of which some are in earlier tars.

    Attributes
    ----------
    name
        Of the file.
    taken
        int64 (n,): in order, the rows whose samples are in tars that stay as they are; none are looked up.
    left_out
        Those whose samples such a tar was to have, and has not, with the reason; none are looked up, either.
    next_best
        int64 (n,): in order, the rows that stay in the place of a better twin that does not pass; None: none are
        to.
    """

    name: str
    taken: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    left_out: Mapping[int, str] = field(default_factory=dict)
    next_best: np.ndarray | None = None

    @property
    def known(self) -> np.ndarray:
        """int64 (n,): in order, all rows that are not looked up."""
        return np.union1d(self.taken, np.array([*self.left_out], np.int64))

    @property
    def state(self) -> list[Any]:
        """What identifies the rows that are not looked up; JSON-able."""
        said = sorted(self.left_out.items())
        return [_digest(self.taken), *([[[*pair] for pair in said]] if said else [])]

    def __dask_tokenize__(self) -> Any:
        best = None if self.next_best is None else _digest(self.next_best)
        return (type(self).__name__, self.name, self.state, best)


@dataclass(frozen=True)
class SelectSamples:
    """Looks up the samples of the rows of one file that pass.

    Attributes
    ----------
    source, target
        Where the file is, and where its table of samples goes.
    shard_options
        For fsspec, of the tars.
    id_col
        Column of the keys, where a file does not say it.
    where, filter_column
        Which rows pass: a condition, and a column of booleans.
    portable
        Names are made such that all readers take them alike.
    without, without_state
        Folder of a table of duplicates, whose rows do not pass, and what identifies it.
    weighing
        What samples will weigh, where that is not what their members weigh.
    given_up
        The file kills workers: its samples are not looked up, for this reason.
    samples
        Rows are images of samples, which are looked up whole, where ``"all"``, ``"any"`` or ``"first"`` of them pass;
        and whether they go to Parquet files.
    """

    source: Folder
    target: Folder
    shard_options: Options
    id_col: str
    where: str | None = None
    filter_column: str | None = None
    portable: bool = False
    without: str | None = None
    without_state: str = ""
    weighing: Weighing | None = None
    given_up: str | None = None
    samples: tuple[str, bool] | None = None

    def give_up(self, reason: str) -> SelectSamples:
        """The same without the work that kills workers."""
        return replace(self, given_up=reason)

    def __call__(self, asked: FileRows) -> pd.DataFrame:
        """Do it; returns the report: counts, and what `Selected` takes of it.

        Raises
        ------
        ShardError
            The file, or a tar, cannot be read.
        """
        name = asked.name
        path = self.source.file(name)
        if self.given_up is not None:
            raise ShardError(f"{path}: {self.given_up}")
        base = self._mark(asked)
        mark = _with_taken(base, asked)
        if (
            known := self._known(asked, base)
        ) is not None:  # by a worker that died after it had written the file
            return report_frame(known)
        with noticing() as remarks, held_back():
            table, report = self._select(asked, path)
            report["remarks"] = remarks.on(report["stamps"])
        every = np.union1d(asked.known, table.column("row").to_numpy())
        report |= {"base": base, "after": _digest(every)}
        report["mark"] = fingerprint({"rows": mark, "tars": report["stamps"]})
        record = FileRecord(mark, id_col=self.id_col, report=report)
        write_table(self.target.file(name), table, record, self.target.options)
        return report_frame(report)

    def known(self, asked: FileRows) -> Mapping[str, Any] | None:
        """The report on a file whose samples are looked up already; None where they are not, or that cannot be seen."""
        try:
            return self._known(asked, self._mark(asked))
        except ShardError:
            return None

    def _mark(self, asked: FileRows) -> str:
        settings: list[Any] = [self.id_col, self.where, self.filter_column, self.portable]
        settings += [] if self.without is None else [self.without_state]
        settings += [] if self.weighing is None else [asdict(self.weighing)]
        settings += [] if self.samples is None else [{"samples": self.samples[0]}]
        settings += [] if asked.next_best is None else [{"next_best": _digest(asked.next_best)}]
        path = self.source.file(asked.name)
        return fingerprint({"select": settings, "file": vars(stamp(path, self.source.options))})

    def _known(self, asked: FileRows, base: str) -> Mapping[str, Any] | None:
        there = read_footer(self.target.file(asked.name), self.target.options)
        if there.record is None:
            return None
        if there.is_finished(_with_taken(base, asked)) and self._as_it_was(there.record):
            return there.record.report or {}
        report = there.record.report or {}
        # All that was looked up is in tars since: so there is nothing left to look for.
        if asked.left_out or not len(asked.taken):
            return None
        if (report.get("base"), report.get("after")) != (base, _digest(asked.taken)):
            return None
        if report["failed"] and not self._as_it_was(there.record, may_be_gone=True):
            return None
        now = {"kept": 0, "in_tars": len(asked.taken), "bytes": 0, "odd_keys": 0, "vectors": {}}
        errors = dict(Counter(report["errors"]) + Counter(report["errors_in_tars"]))
        return {**report, **now, "fields": {}, "errors": {}, "errors_in_tars": errors, "stamps": {}}

    def _as_it_was(self, record: FileRecord, may_be_gone: bool = False) -> bool:
        """Whether the tars are as they were when the samples were looked up."""
        for url, state in stamps_in(record).items():
            with contextlib.suppress(*[ShardError] * may_be_gone):
                if vars(stamp(url, self.shard_options)) != state:
                    return False
        return True

    def _select(self, asked: FileRows, path: str) -> tuple[pa.Table, dict[str, Any]]:
        taken, known = asked.taken, asked.known
        footer = read_whole(path, self.source.options)
        id_col = (footer.record.id_col if footer.record else None) or self.id_col
        if missing := [each for each in (id_col, URL_COLUMN) if each not in footer.columns]:
            raise OutputError(
                f"{path}: has no column {missing}, by which a row finds its sample; "
                f"it has {some_of_these(footer.columns, missing[0])}. Give the"
                " name of the keys' column (id_col, --id-col), or the folder that embed wrote to"
            )
        where = None if self.where is None else Where(self.where)
        named = [*(where.columns(footer.columns) if where else ()), id_col, URL_COLUMN]
        named += [] if self.filter_column is None else [self.filter_column]
        named += [] if self.samples is None else NEEDED
        named += [ERROR_COLUMN] if ERROR_COLUMN in footer.columns else []
        if self.filter_column is not None and self.filter_column not in footer.columns:
            raise ConfigError(f"{path}: has no column {self.filter_column!r} to filter by: {footer.columns}")
        table = read_rows(path, self.source.options, list(dict.fromkeys(named)))
        if footer.record is not None and not len(known):
            urls = pc.unique(table.column(URL_COLUMN)).to_pylist()
            check_unchanged(path, urls, footer.record, self.shard_options)
        passes, said = passing_rows(table, where, self.filter_column, footer.columns, path)
        if self.without is not None:
            alone = stays(
                self.without,
                to_array(table.column(id_col)),
                to_array(table.column(URL_COLUMN)),
                self.source.options,
            )
            if asked.next_best is not None:
                alone[asked.next_best] = True
            passes &= alone
            clause = _ALONE if asked.next_best is None else _ALONE_PASSING
            said["passing"][clause], said["unknown"][clause] = int(alone.sum()), 0
        outdated = int((~passes[taken]).sum())
        left_out = {row: why for row, why in asked.left_out.items() if passes[row]}
        passes[known] = False
        whole = (
            None
            if self.samples is None
            else WholeSamples(table, passes, *self.samples, taken_down(*self.source))
        )
        rows = np.flatnonzero(passes) if whole is None else whole.rows
        chosen = table.take(pa.array(rows))
        if footer.record is not None and len(known) and len(rows):  # of what is in tars already none is read
            urls = pc.unique(chosen.column(URL_COLUMN)).to_pylist()
            check_unchanged(path, urls, footer.record, self.shard_options)
        ids = exact_ids(to_array(chosen.column(id_col if whole is None else SAMPLE).combine_chunks()))
        found = FoundSamples(self.portable, self.shard_options, id_col, whole is not None)
        found.look_up(rows.tolist(), ids, chosen.column(URL_COLUMN).to_pylist())
        samples = found.table()
        more: Mapping[str, Any] = {}
        if self.weighing is not None and (len(samples) or not len(known)):
            samples, more = self.weighing(samples, path, self.source.options)
        for row, why in left_out.items():
            kind = kind_of_lost(why)
            found.reasons[kind] += 1
            if found.reasons[kind] <= EXAMPLES:
                url, key = (table.column(each)[row].as_py() for each in (URL_COLUMN, id_col))
                found.examples.setdefault(kind, []).append(f"{url} {key}: {why}")
        missing_rows = sum(found.reasons.values())
        every = errors_of(table)
        errors, in_tars = (kinds_of(every.take(each)) for each in (samples.column("row"), pa.array(taken)))
        report = {
            "name": asked.name.removesuffix(".parquet"),
            "rows": len(table),
            "failed": missing_rows,
            "dropped": 0,
            "kept": len(samples),
            "filtered": len(table) - len(taken) - len(rows) - len(left_out),
            "in_tars": len(taken),
            "outdated": outdated,
            "errors": errors,
            "errors_in_tars": in_tars,
            "reasons": dict(found.reasons),
            "examples": found.examples,
            "fields": dict(found.fields),
            "odd_keys": found.odd_keys,
            "bytes": int(pc.sum(samples["bytes"]).as_py() or 0),
            "stamps": {url: vars(state) for url, state in found.stamps.items()},
            **said,
            **more,
            **({} if whole is None else whole.told()),
        }
        assert report["rows"] == report["kept"] + len(taken) + report["filtered"] + missing_rows
        return samples, report


def passing_rows(
    table: pa.Table, where: Where | None, filter_column: str | None, columns: Sequence[str], path: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """Which rows pass a condition and a column of booleans.

    Parameters
    ----------
    table
        The rows, with the columns that are named.
    where, filter_column
        The condition, and the column.
    columns, path
        All columns of the file, and where it is, to be told.

    Returns
    -------
    bool (rows,); and by clause, how many rows pass it (``passing``), and of how many it says nothing (``unknown``).

    Raises
    ------
    ConfigError
        They do not fit the columns.
    """
    passes = np.ones(len(table), bool)
    counts: dict[str, Any] = {"passing": {}, "unknown": {}}
    clauses: dict[str, np.ndarray] = {}
    if where is not None:
        try:
            found = where.passes(table, columns)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
        passes &= found == 1
        alone = len(where.clauses) == 1
        clauses = {each: found if alone else Where(each).passes(table) for each in where.clauses}
    if filter_column is not None:
        column = table.column(filter_column)
        try:
            check_boolean(filter_column, column.type)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
        known = np.asarray(pc.fill_null(pc.cast(column, pa.int8()), -1))
        passes &= known == 1
        clauses[filter_column] = known
    for clause, known in clauses.items():
        counts["passing"][clause] = int((known == 1).sum())
        counts["unknown"][clause] = int((known == -1).sum())
    return passes, counts


def kinds_of(errors: pa.Array | pa.ChunkedArray) -> dict[str, int]:
    """Counts of rows by why their images could not be used."""
    return dict(Counter(reasons_in(each)[0].label for each in errors.drop_null().to_pylist()))


def _digest(rows: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows, "<i8").tobytes()).hexdigest()


def _with_taken(base: str, asked: FileRows) -> str:
    """The fingerprint of what is looked up of a file, which some rows of are in tars."""
    return base if not len(asked.known) else fingerprint({"select": base, "taken": asked.state})


def stamps_in(record: FileRecord) -> dict[str, Any]:
    """The states of the tars, by url, that the record of a table of samples says."""
    found: dict[str, Any] = (record.report or {}).get("stamps", {})
    return found


def stop_at(failed: Mapping[str, str], what: str) -> None:
    """Raise ShardError where files failed: which samples there are must be known before it is decided where they go."""
    if failed:
        name, why = next(iter(failed.items()))
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise ShardError(
            f"{name}{more}: {what}, and no tar was written: {why}. Mend it, or leave it out, and run again"
        )
