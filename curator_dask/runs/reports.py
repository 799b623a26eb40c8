"""What a partition came to: the report that a task gives back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.frames.names import ERROR_COLUMN
from curator_dask.rows.reasons import DAMAGED, reasons_in
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


def errors_of(table: pa.Table) -> pa.ChunkedArray | pa.Array:
    """The reasons of a table's rows; nulls where it has no such column."""
    has_errors = ERROR_COLUMN in table.column_names
    return table.column(ERROR_COLUMN) if has_errors else pa.nulls(len(table), pa.string())
