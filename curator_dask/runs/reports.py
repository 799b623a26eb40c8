"""What a partition came to: the report that a task gives back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.frames.names import ERROR_COLUMN
from curator_dask.rows.reasons import DAMAGED, new_reasons, reasons_in
from curator_dask.runs.targets import target_frame

_EXAMPLES = 3  # of each reason, that a report carries

#: In the place of a report of a partition that failed: the reason.
BROKEN = "broken"


def report_row(report: Mapping[str, Any]) -> dict[str, Any]:
    """A report as the row of a table: ``target`` is JSON."""
    return {"target": json.dumps(report)}


def failure_row(reason: str) -> dict[str, Any]:
    """The row in the place of the report of a partition that failed."""
    return report_row({BROKEN: reason})


def report_frame(report: Mapping[str, Any]) -> pd.DataFrame:
    """A report as a partition that Dask can carry: one row, whose column ``target`` is JSON."""
    return target_frame(json.dumps(report))


def report_of(
    name: str, table: pa.Table, id_col: str, errors: pa.ChunkedArray | pa.Array | None = None
) -> dict[str, Any]:
    """Counts of rows by what became of their images, as `SaveSummary.add` takes them.

    Parameters
    ----------
    name
        Of the partition.
    table
        Its rows.
    id_col
        Column of the keys.
    errors
        Their ``image_error``; None: as the table has it.
    """
    errors = errors_of(table) if errors is None else errors
    reasons: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    keys = table.column(id_col) if id_col in table.column_names else None
    for row in pc.indices_nonzero(pc.is_valid(errors)).to_pylist():
        reason = errors[row].as_py()
        kind = reasons_in(reason)[0].label  # a row counts once
        reasons[kind] += 1
        if len(examples.setdefault(kind, [])) < _EXAMPLES:
            # How it is damaged is said of the shard, once.
            said, damaged, _ = reason.partition(f"{DAMAGED}: ")
            key = "" if keys is None else keys[row].as_py()
            examples[kind].append(f"{name} {key}: {said}{DAMAGED if damaged else ''}")
    return {
        "name": name,
        "rows": table.num_rows,
        "failed": sum(reasons.values()),
        "dropped": 0,
        "reasons": dict(reasons),
        "examples": examples,
        "remarks": {},
    }


def report_since(
    name: str,
    table: pa.Table,
    id_col: str,
    before: pa.ChunkedArray | pa.Array,
    scores: Collection[str] = (),
) -> dict[str, Any]:
    """The same of rows of which some had failed before: ``earlier`` counts these by reason, and no example is of them.

    Parameters
    ----------
    name, table, id_col
        See `report_of`.
    before
        ``image_error`` of the rows as it was.
    scores
        Columns of scores that they had (`curator_dask.rows.reasons.new_reasons`).
    """
    after = errors_of(table)
    new: list[str | None] = [None] * len(after)
    old = list(new)
    for row in pc.indices_nonzero(pc.is_valid(after)).to_pylist():
        text, known = after[row].as_py(), before[row].as_py()
        found = new_reasons(text, known, scores)
        new[row], old[row] = found, text if found is None else None
    report = report_of(name, table, id_col, pa.array(new, pa.string()))
    earlier = report_of(name, table, id_col, pa.array(old, pa.string()))
    reasons = Counter(report["reasons"]) + Counter(earlier["reasons"])
    return {
        **report,
        "failed": report["failed"] + earlier["failed"],
        "reasons": dict(reasons),
        "earlier": earlier["reasons"],
    }


def errors_of(table: pa.Table) -> pa.ChunkedArray | pa.Array:
    """The reasons of a table's rows; nulls where it has no such column."""
    has_errors = ERROR_COLUMN in table.column_names
    return table.column(ERROR_COLUMN) if has_errors else pa.nulls(len(table), pa.string())
