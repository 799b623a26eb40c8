"""Looking up the samples of an output's rows: which rows pass, and where in the tars the members of each lie.

It is done a file at a time, before anything is exported, and kept as a table a file; so the counts are known, and
what is exported of a file does not depend on the others.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
from curator_dask.outputs.export_options import check_boolean
from curator_dask.outputs.removed import stays
from curator_dask.outputs.unchanged import check_unchanged
from curator_dask.outputs.weighing import Weighing
from curator_dask.rows.ids import exact_ids
from curator_dask.rows.images import why_missing
from curator_dask.rows.orphans import remark_orphans
from curator_dask.rows.reasons import MISSING, reasons_in
from curator_dask.rows.remarks import EXAMPLES, fact_of, noticing, remark
from curator_dask.rows.where import Where
from curator_dask.runs.reports import errors_of, report_frame
from curator_dask.storage import Options, join
from curator_dask.webdataset.folder_reader import FolderReader
from curator_dask.webdataset.folders import is_folder_shard
from curator_dask.webdataset.headers import Member, encoded
from curator_dask.webdataset.index import ShardIndex, last_sample
from curator_dask.webdataset.layouts import portable_key, portable_suffix
from curator_dask.webdataset.opening import open_shard
from curator_dask.webdataset.samples import Sample, key_text
from curator_dask.webdataset.stamps import FileStamp, stamp
from curator_dask.webdataset.writer import tar_bytes

#: Of the tables of samples. Text that may be no UTF-8 is binary.
SAMPLES = pa.schema(
    [
        ("row", pa.int64()),  # in the file
        ("url", pa.string()),
        ("source_key", pa.binary()),
        ("key", pa.binary()),  # in the export, unless keys are made anew
        ("suffixes", pa.list_(pa.binary())),
        ("offsets", pa.list_(pa.int64())),
        ("sizes", pa.list_(pa.int64())),
        ("bytes", pa.int64()),  # in a tar, headers and padding too
    ]
)
#: Columns besides, where members are files of their own: their paths, null of members of tars, and their times.
FILES, TIMES = "files", "times"


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

    def give_up(self, reason: str) -> SelectSamples:
        """The same without the work that kills workers."""
        return replace(self, given_up=reason)

    def __call__(self, name: str) -> pd.DataFrame:
        """Do it; returns the report: counts, and what `Selected` takes of it.

        Raises
        ------
        ShardError
            The file, or a tar, cannot be read.
        """
        path = self.source.file(name)
        if self.given_up is not None:
            raise ShardError(f"{path}: {self.given_up}")
        mark = self._mark(path)
        if (
            known := self._known(name, mark)
        ) is not None:  # by a worker that died after it had written the file
            return report_frame(known)
        with noticing() as remarks, held_back():
            table, report = self._select(name, path)
            report["remarks"] = remarks.on(report["stamps"])
        report["mark"] = fingerprint({"rows": mark, "tars": report["stamps"]})
        record = FileRecord(mark, id_col=self.id_col, report=report)
        write_table(self.target.file(name), table, record, self.target.options)
        return report_frame(report)

    def known(self, name: str) -> Mapping[str, Any] | None:
        """The report on a file whose samples are looked up already; None where they are not, or that cannot be seen."""
        try:
            return self._known(name, self._mark(self.source.file(name)))
        except ShardError:
            return None

    def _mark(self, path: str) -> str:
        settings: list[Any] = [self.id_col, self.where, self.filter_column, self.portable]
        settings += [] if self.without is None else [self.without_state]
        settings += [] if self.weighing is None else [asdict(self.weighing)]
        return fingerprint({"select": settings, "file": vars(stamp(path, self.source.options))})

    def _known(self, name: str, mark: str) -> Mapping[str, Any] | None:
        there = read_footer(self.target.file(name), self.target.options)
        if there.is_finished(mark) and there.record is not None and self._as_it_was(there.record):
            return there.record.report or {}
        return None

    def _as_it_was(self, record: FileRecord) -> bool:
        """Whether the tars are as they were when the samples were looked up."""
        return all(vars(stamp(url, self.shard_options)) == state for url, state in stamps_in(record).items())

    def _select(self, name: str, path: str) -> tuple[pa.Table, dict[str, Any]]:
        footer = read_whole(path, self.source.options)
        id_col = (footer.record.id_col if footer.record else None) or self.id_col
        if missing := [each for each in (id_col, URL_COLUMN) if each not in footer.columns]:
            raise OutputError(
                f"{path}: has no column {missing}, by which a row finds its sample; it has {footer.columns}. Give the"
                " name of the keys' column (id_col, --id-col), or the folder that embed wrote to"
            )
        where = None if self.where is None else Where(self.where)
        named = [*(where.columns(footer.columns) if where else ()), id_col, URL_COLUMN]
        named += [] if self.filter_column is None else [self.filter_column]
        named += [ERROR_COLUMN] if ERROR_COLUMN in footer.columns else []
        if self.filter_column is not None and self.filter_column not in footer.columns:
            raise ConfigError(f"{path}: has no column {self.filter_column!r} to filter by: {footer.columns}")
        table = read_rows(path, self.source.options, list(dict.fromkeys(named)))
        if footer.record is not None:
            urls = pc.unique(table.column(URL_COLUMN)).to_pylist()
            check_unchanged(path, urls, footer.record, self.shard_options)
        passes, said = self._passing(table, where, footer.columns, path)
        if self.without is not None:
            alone = stays(self.without, *(to_array(table.column(each)) for each in (id_col, URL_COLUMN)))
            passes &= alone
            said["passing"][_ALONE], said["unknown"][_ALONE] = int(alone.sum()), 0
        rows = np.flatnonzero(passes)
        chosen = table.take(pa.array(rows))
        ids = exact_ids(to_array(chosen.column(id_col).combine_chunks()))
        found = _Found(self.portable, self.shard_options, id_col)
        found.look_up(rows.tolist(), ids, chosen.column(URL_COLUMN).to_pylist())
        samples = found.table()
        more: Mapping[str, Any] = {}
        if self.weighing is not None:
            samples, more = self.weighing(samples, path, self.source.options)
        missing_rows = sum(found.reasons.values())
        errors = errors_of(table).take(samples.column("row")).drop_null().to_pylist()
        report = {
            "name": name.removesuffix(".parquet"),
            "rows": len(table),
            "failed": missing_rows,
            "dropped": 0,
            "kept": len(samples),
            "filtered": len(table) - len(rows),
            "errors": dict(Counter(reasons_in(each)[0].label for each in errors)),
            "reasons": dict(found.reasons),
            "examples": found.examples,
            "fields": dict(found.fields),
            "odd_keys": found.odd_keys,
            "bytes": int(pc.sum(samples["bytes"]).as_py() or 0),
            "stamps": {url: vars(state) for url, state in found.stamps.items()},
            **said,
            **more,
        }
        assert report["rows"] == report["kept"] + report["filtered"] + missing_rows
        return samples, report

    def _passing(
        self, table: pa.Table, where: Where | None, columns: Sequence[str], path: str
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Bool (rows,); and by clause, how many rows pass it, and of how many it says nothing."""
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
        if self.filter_column is not None:
            column = table.column(self.filter_column)
            try:
                check_boolean(self.filter_column, column.type)
            except ConfigError as error:
                raise ConfigError(f"{path}: {error}") from None
            known = np.asarray(pc.fill_null(pc.cast(column, pa.int8()), -1))
            passes &= known == 1
            clauses[self.filter_column] = known
        for clause, known in clauses.items():
            counts["passing"][clause] = int((known == 1).sum())
            counts["unknown"][clause] = int((known == -1).sum())
        return passes, counts


def stamps_in(record: FileRecord) -> dict[str, Any]:
    """The states of the tars, by url, that the record of a table of samples says."""
    found: dict[str, Any] = (record.report or {}).get("stamps", {})
    return found


class _Found:
    """What the rows of a file find in the tars."""

    def __init__(self, portable: bool, options: Options, id_col: str) -> None:
        self._rows: list[int] = []
        self._urls: list[str] = []
        self._source_keys: list[str] = []
        self._keys: list[str] = []
        self._suffixes: list[str] = []  # of all members
        self._members: list[Member] = []
        self._files: list[tuple[str | None, int | str]] = []  # that members are; of tars none
        self._ends = [0]  # behind the last member of each sample
        self.reasons: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        self.fields: Counter[str] = Counter()
        self.odd_keys = 0
        self.stamps: dict[str, FileStamp] = {}
        self._portable, self._options, self._id_col = portable, options, id_col

    def look_up(self, rows: Sequence[int], ids: Sequence[Any], urls: Sequence[str | None]) -> None:
        """Find the samples of rows with these ids, in these tars."""
        places: dict[str | None, list[int]] = {}
        for place, url in enumerate(urls):
            places.setdefault(url, []).append(place)
        for url, mine in places.items():
            if url is None:
                for place in mine:
                    self._miss(f"{MISSING}: the row has no shard ({URL_COLUMN} is null)", "", ids[place])
                continue
            self.stamps[url] = stamp(url, self._options)  # of a tar that is gone it raises
            try:
                # An index file is compared with the tar in a few places only, and its names would be those in the
                # new tars.
                with open_shard(url, use_index_files=False, storage_options=self._options) as reader:
                    index = reader.index
            except ShardError as error:
                if error.__cause__ is not None and not isinstance(error.__cause__, ShardError):
                    raise  # it could not be read, or fetched: that may be mended
                remark(url, "damaged", str(error).removeprefix(f"{url}: "))
                for place in mine:
                    self._miss(f"{MISSING}: {error}", url, ids[place])
                continue
            before = len(self._members)
            self._take(url, index, [rows[place] for place in mine], [ids[place] for place in mine])
            taken = self._members[before:]
            files = reader.files_of(taken) if isinstance(reader, FolderReader) else [(None, 0)] * len(taken)
            self._files += files

    def _take(self, url: str, index: ShardIndex, rows: Sequence[int], ids: Sequence[Any]) -> None:
        found = index.find(ids)
        remark(url, "damaged", index.problem)
        remark(url, "duplicates", fact_of(index.duplicates))
        remark(url, "unread", fact_of(map(str, index.unread)))
        remark_orphans(url, index, found, self._id_col, self._options)
        cut = last_sample(index) if index.problem else -1
        for row, item, position in zip(rows, ids, found.tolist(), strict=True):
            if position < 0:
                place = "folder" if is_folder_shard(url) else "tar"
                self._miss(
                    f"{MISSING}: no sample {item!r} in the {place}{why_missing(index, item)}", url, item
                )
            elif position == cut:
                self._miss(f"damaged: the tar ends in this sample, or behind it: {index.problem}", url, item)
            elif not index.samples[position].members:  # of a folder, and its image is a link to nothing
                self._miss(f"{MISSING}: the sample has no file{why_missing(index, item)}", url, item)
            else:
                self._add(url, row, index.samples[position])

    def _add(self, url: str, row: int, sample: Sample) -> None:
        key = sample.key
        portable = portable_key(key)
        self.odd_keys += portable != key
        start = len(key) + 1
        names = [member.name.removeprefix("./") for member in sample.members]
        suffixes = [name[start:] for name in names]
        if self._portable:
            suffixes = [portable_suffix(each) for each in suffixes]
            if len({*suffixes}) < len(suffixes):
                raise ShardError(
                    f"{url} {key_text(key)}: has members that differ in upper and lower case alone, {names}: use"
                    " layout='original' (--layout original)"
                )
        self._rows.append(row)
        self._urls.append(url)
        self._source_keys.append(key)
        self._keys.append(portable if self._portable else key)
        self._suffixes += suffixes
        self._members += sample.members
        self._ends.append(len(self._suffixes))

    def table(self) -> pa.Table:
        """The samples, in the order of their rows."""
        self.fields = Counter(self._suffixes)
        counts = np.diff(self._ends)
        owners = np.repeat(np.arange(len(self._rows)), counts).tolist()
        names = [
            f"{self._keys[owner]}.{suffix}" for owner, suffix in zip(owners, self._suffixes, strict=True)
        ]
        offsets = np.array([member.offset for member in self._members], np.int64)
        sizes = np.array([member.size for member in self._members], np.int64)
        totals = np.concatenate([[0], np.cumsum(tar_bytes(names, sizes))])[self._ends]
        ends = pa.array(self._ends, pa.int32())
        suffixes = pa.array([encoded(each) for each in self._suffixes], pa.binary())
        columns = [
            pa.array(self._rows, pa.int64()),
            pa.array(self._urls, pa.string()),
            pa.array([encoded(each) for each in self._source_keys], pa.binary()),
            pa.array([encoded(each) for each in self._keys], pa.binary()),
            *(
                pa.ListArray.from_arrays(ends, each)
                for each in (suffixes, pa.array(offsets), pa.array(sizes))
            ),
            pa.array(np.diff(totals), pa.int64()),
        ]
        table = pa.table(columns, schema=SAMPLES)
        if any(path is not None for path, _ in self._files):
            paths = pa.array(
                [None if path is None else encoded(path) for path, _ in self._files], pa.binary()
            )
            times = pa.array([time for _, time in self._files])  # a store's are text
            for name, each in ((FILES, paths), (TIMES, times)):
                table = table.append_column(name, pa.ListArray.from_arrays(ends, each))
        in_order = all(one < other for one, other in itertools.pairwise(self._rows))
        return table if in_order else table.take(pa.array(np.argsort(self._rows, kind="stable")))

    def _miss(self, reason: str, url: str, item: Any) -> None:
        kind = reason.partition(":")[0]
        self.reasons[kind] += 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < EXAMPLES:
            examples.append(f"{url} {item}: {reason}")
