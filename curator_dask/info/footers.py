"""What the footers of an output's files say: rows, columns, who made these, how many values they have."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curator_dask.frames.faults import fault_of
from curator_dask.frames.names import ERROR_COLUMN
from curator_dask.frames.parquet import open_parquet
from curator_dask.frames.record import FILTERED, LACKING, FileRecord
from curator_dask.info.makers import Maker, makers_of
from curator_dask.storage import Options


@dataclass
class FileFacts:
    """A file, by its footer.

    Attributes
    ----------
    path, name
        Path or URL, and the name below the output.
    groups
        Rows of each row group.
    types, makers
        By column; the same objects for files that are alike.
    filled
        By column, rows with a value; None where the footer does not say it.
    low, high
        By column of numbers, of all row groups; not there where the footer does not say it.
    id_col
        Column of the keys.
    marks
        What is known of it besides: its record's ``derived``, and ``record``, ``given up``, ``changed``.
    lacking
        Columns that some rows lack, as what they were made of is new.
    reasons, examples
        Of the rows that failed, where the record says it of the rows as they are; None: it is to be read.
    report
        Of the record.
    remarks
        Of the record.
    fault
        What is wrong with a file that cannot be read.
    """

    path: str
    name: str
    groups: tuple[int, ...] = ()
    types: Mapping[str, pa.DataType] = field(default_factory=dict)
    makers: Mapping[str, Maker] = field(default_factory=dict)
    filled: dict[str, int | None] = field(default_factory=dict)
    low: dict[str, Any] = field(default_factory=dict)
    high: dict[str, Any] = field(default_factory=dict)
    id_col: str = "key"
    marks: frozenset[str] = frozenset()
    lacking: tuple[str, ...] = ()
    reasons: Mapping[str, int] | None = None
    examples: Mapping[str, str] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
    remarks: Mapping[str, Any] = field(default_factory=dict)
    fault: str = ""

    @property
    def rows(self) -> int:
        """Of all row groups."""
        return sum(self.groups)


class Footers:
    """Reads footers; what files have alike is kept once. Threads may share it.

    Parameters
    ----------
    options
        For fsspec.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._types: dict[pa.Schema, dict[str, pa.DataType]] = {}
        self._makers: dict[str, dict[str, Maker]] = {}
        self._lock = threading.Lock()

    def read(self, path: str, name: str) -> FileFacts:
        """The facts of a file; one that cannot be read has a fault."""
        try:
            with open_parquet(path, self._options) as file:
                return self._facts(path, name, file.schema_arrow, file.metadata)
        except Exception as error:  # pyarrow's or a store's own, of many types
            return FileFacts(path, name, fault=fault_of(path, error))

    def _facts(self, path: str, name: str, schema: pa.Schema, footer: pq.FileMetaData) -> FileFacts:
        record = FileRecord.parse(schema.metadata)
        plain = schema.remove_metadata()
        with self._lock:
            types = self._types.setdefault(plain, {each.name: each.type for each in plain})
        facts = FileFacts(path, name, types=types, makers=self._made(record, types))
        _count(facts, footer)
        if record is None:
            return facts
        facts.id_col, facts.remarks = record.id_col or "key", record.remarks
        marks = {*record.derived, "record"}
        if record.complete_as and not record.fingerprint:
            marks.add("given up")
        if record.rows >= 0 and record.rows != facts.rows:
            marks.add("changed")
        facts.marks = frozenset(marks)
        facts.lacking = tuple(sorted(each for each, said in record.scores.items() if LACKING in said))
        facts.report = record.report or {}
        reasons = facts.report.get("reasons") or {}
        # Rows that were set aside are among the report's, and not in the file; some have been tried again since.
        if sum(reasons.values()) == facts.filled.get(ERROR_COLUMN, 0) and not facts.report.get("dropped"):
            facts.reasons = reasons
            said = facts.report.get("examples") or {}
            facts.examples = {reason: some[0] for reason, some in said.items() if some}
        return facts

    def _made(self, record: FileRecord | None, types: Mapping[str, pa.DataType]) -> dict[str, Maker]:
        if record is None:
            return makers_of(None, types)
        report = record.report or {}
        said = [record.embeddings, record.scores, record.read_by, record.derived, record.id_col]
        mark = json.dumps([*said, report.get("eps"), list(types)], sort_keys=True)
        with self._lock:
            if mark not in self._makers:
                self._makers[mark] = makers_of(record, types)
            return self._makers[mark]


def is_filtered(facts: FileFacts) -> bool:
    """Whether a filter of another output left rows out of it."""
    return FILTERED in facts.marks


def _count(facts: FileFacts, footer: pq.FileMetaData) -> None:
    """Count values by column, as far as the footer says it."""
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    facts.groups = tuple(group.num_rows for group in groups)
    paths = [footer.schema.column(number).path for number in range(footer.num_columns)]
    by_path = {path: number for number, path in enumerate(paths)}
    tops = {path.partition(".")[0]: number for number, path in enumerate(paths) if "." in path}
    for name, kind in facts.types.items():
        if name in by_path and not pa.types.is_nested(kind):
            said = [group.column(by_path[name]).statistics for group in groups]
            known = all(each is not None and each.has_null_count for each in said)
            facts.filled[name] = facts.rows - sum(each.null_count for each in said) if known else None
            if known and _has_bounds(kind):
                bounds = [each for each in said if each.has_min_max]
                if bounds and len(bounds) == sum(
                    size > each.null_count for size, each in zip(facts.groups, said, strict=True)
                ):
                    facts.low[name] = min(each.min for each in bounds)
                    facts.high[name] = max(each.max for each in bounds)
        elif pa.types.is_fixed_size_list(kind) and kind.list_size > 1 and name in tops:
            # A row that is null counts as one value there, any other as so many as a vector is long.
            values = sum(group.column(tops[name]).num_values for group in groups)
            facts.filled[name] = (values - facts.rows) // (kind.list_size - 1)
        else:
            facts.filled[name] = None


def _has_bounds(kind: pa.DataType) -> bool:
    """Whether footers hold bounds of such numbers that Python can compare; of float16 they hold bytes."""
    return bool(pa.types.is_integer(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind))
