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


@dataclass(frozen=True)
class Layout:
    """Where the columns of a schema are in a file's footer.

    Attributes
    ----------
    schema, types
        Its columns.
    flat
        Names, numbers of columns in the footer, and whether bounds are of use.
    vectors
        Names of columns of lists, numbers, and how long each list is; 1 where this differs.
    """

    schema: pa.Schema
    types: Mapping[str, pa.DataType]
    flat: tuple[tuple[str, int, bool], ...]
    vectors: tuple[tuple[str, int, int], ...]

    @classmethod
    def of(cls, schema: pa.Schema, footer: pq.FileMetaData) -> Layout:
        """That of a file."""
        types = {each.name: each.type for each in schema}
        paths = [footer.schema.column(number).path for number in range(footer.num_columns)]
        places = {path: number for number, path in enumerate(paths)}
        tops = {path.partition(".")[0]: number for number, path in enumerate(paths) if path not in types}
        plain = {
            name: kind for name, kind in types.items() if name in places and not pa.types.is_nested(kind)
        }
        lists = {name: kind for name, kind in types.items() if _is_list(kind) and name in tops}
        return cls(
            schema,
            types,
            tuple((name, places[name], _has_bounds(kind)) for name, kind in plain.items()),
            tuple((name, tops[name], getattr(kind, "list_size", 1)) for name, kind in lists.items()),
        )


class Footers:
    """Reads footers; what files have alike is kept once. Threads may share it.

    Parameters
    ----------
    options
        For fsspec.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        # Most files are like the one before, which is found out sooner than a digest is made.
        self._layout: Layout | None = None
        self._layouts: dict[pa.Schema, Layout] = {}
        self._said: tuple[Any, dict[str, Maker]] = (None, {})
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
        layout = self._laid_out(schema.remove_metadata(), footer)
        facts = FileFacts(path, name, types=layout.types, makers=self._made(record, layout))
        _count(facts, layout, footer)
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
        failed = facts.report.get("failed") if is_fetched(facts) else facts.filled.get(ERROR_COLUMN, 0)
        if sum(reasons.values()) == failed and not facts.report.get("dropped"):
            facts.reasons = reasons
            said = facts.report.get("examples") or {}
            facts.examples = {reason: some[0] for reason, some in said.items() if some}
        return facts

    def _laid_out(self, schema: pa.Schema, footer: pq.FileMetaData) -> Layout:
        last = self._layout
        if last is not None and schema.equals(last.schema):
            return last
        with self._lock:
            found = self._layouts.get(schema)
            if found is None:
                found = self._layouts[schema] = Layout.of(schema, footer)
            self._layout = found
            return found

    def _made(self, record: FileRecord | None, layout: Layout) -> dict[str, Maker]:
        said: Any = None
        if record is not None:
            eps = (record.report or {}).get("eps")
            said = [record.embeddings, record.scores, record.read_by, record.derived, record.id_col, eps]
        said = [said, list(layout.types)]
        last, makers = self._said
        if said == last:
            return makers
        mark = json.dumps(said, sort_keys=True)
        with self._lock:
            if mark not in self._makers:
                self._makers[mark] = makers_of(record, layout.types)
            self._said = (said, self._makers[mark])
            return self._makers[mark]


def is_fetched(facts: FileFacts) -> bool:
    """Whether it stands beside a tar whose images were fetched by their URLs."""
    return {"images", "image_bytes", "tried"} <= facts.report.keys()


def is_filtered(facts: FileFacts) -> bool:
    """Whether a filter of another output left rows out of it."""
    return FILTERED in facts.marks


def _count(facts: FileFacts, layout: Layout, footer: pq.FileMetaData) -> None:
    """Count values by column, as far as the footer says it."""
    every = [footer.row_group(number) for number in range(footer.num_row_groups)]
    facts.groups = tuple(group.num_rows for group in every)
    rows, groups = facts.rows, [group for group in every if group.num_rows]
    sizes = [group.num_rows for group in groups]
    facts.filled = dict.fromkeys(layout.types)
    for name, place, has_bounds in layout.flat:
        said = [group.column(place).statistics for group in groups]
        if not all(each is not None and each.has_null_count for each in said):
            continue
        nulls = [each.null_count for each in said]
        facts.filled[name] = rows - sum(nulls)
        if has_bounds and facts.filled[name]:
            some = [each for each, size, null in zip(said, sizes, nulls, strict=True) if size > null]
            if all(each.has_min_max for each in some):
                facts.low[name] = min(each.min for each in some)
                facts.high[name] = max(each.max for each in some)
    for name, kind in layout.types.items():
        if pa.types.is_null(kind):
            facts.filled[name] = 0
    for name, place, length in layout.vectors:
        if length > 1:
            # A row that is null counts as one value there, any other as so many as a vector is long.
            values = sum(group.column(place).num_values for group in groups)
            facts.filled[name] = (values - rows) // (length - 1)
            continue
        # A row that is null, or an empty list, counts as one null there; and so does a null in a list. Where lists are
        # vectors, all of one length, the number of values tells which; where they need not be, nothing does.
        found = [group.column(place).statistics for group in groups]
        if all(each is not None and each.has_null_count for each in found):
            empty = sum(each.null_count for each in found)
            values = sum(group.column(place).num_values for group in groups)
            # What is found in images has a score each: there may be none, and as many as there are boxes.
            is_found = name in facts.makers and facts.makers[name].kind == "detect"
            is_vectors = pa.types.is_floating(layout.types[name].value_type) and not is_found
            if not empty or (is_vectors and _of_one_length(rows - empty, values - empty)):
                facts.filled[name] = rows - empty


def _of_one_length(lists: int, values: int) -> bool:
    """Whether so many values may be those of so many lists that are equally long, and not empty."""
    return values % lists == 0 < values if lists > 0 else lists == values == 0


def _is_list(kind: pa.DataType) -> bool:
    """Whether it is of lists of plain values, which are one column of the footer."""
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_kind(kind) for is_kind in lists) and not pa.types.is_nested(kind.value_type)


def _has_bounds(kind: pa.DataType) -> bool:
    """Whether footers hold bounds of such numbers that Python can compare; of float16 they hold bytes."""
    return bool(pa.types.is_integer(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind))
