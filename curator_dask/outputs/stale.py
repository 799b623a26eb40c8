"""Columns whose values some rows lack, though the file has them: what they were made of is new, or has changed.

They are null there, and the file's record says so, for their own command to make them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.frames.columns import to_array
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.frames.record import LACKING, FileRecord, inputs_of
from curator_dask.rows.remarks import fact_of, summed
from curator_dask.runs.step import Step


def lacking_columns(
    record: FileRecord, names: Sequence[str], rows: pa.Table
) -> tuple[FileRecord, dict[str, Any]]:
    """The record that says that rows lack these columns; the same alone, as remarks on the rows' shards."""
    if not names:
        return record, {}
    remarks = {}
    urls = (
        pc.unique(rows.column(URL_COLUMN)).drop_null().to_pylist() if URL_COLUMN in rows.column_names else []
    )
    for url in urls:
        known = record.remarks.get(url, {}).get("not-made", {}).get("examples", ())
        every = list(dict.fromkeys([*known, *names]))
        remarks[url] = {"not-made": fact_of(every, len(every))}
    scores = {name: {**record.scores[name], LACKING: True} for name in names}
    record = replace(record, remarks=summed(record.remarks, remarks), scores={**record.scores, **scores})
    return record, remarks


def without_stale(
    before: pa.Table, table: pa.Table, record: FileRecord, steps: Sequence[Step]
) -> tuple[pa.Table, FileRecord, dict[str, Any]]:
    """The rows without values that were made of columns which steps have changed; their record, and remarks.

    Parameters
    ----------
    before, table
        The rows before and after.
    record
        Of the file; it says what each column was made of.
    steps
        That have made columns anew.
    """
    made = {name for step in steps for name in step.columns} - {ERROR_COLUMN}
    of = {
        name: inputs_of(said)
        for name, said in record.scores.items()
        if name not in made and name in table.column_names
    }
    changed = {
        name: _changed(before.column(name), table.column(name))
        for name in made & {*before.column_names} & {each for inputs in of.values() for each in inputs}
    }
    stale: dict[str, np.ndarray] = {}
    more = True
    while more:  # what was made of what was made of them, too
        more = False
        for name, inputs in of.items():
            masks = [each[name] for name in inputs for each in (changed, stale) if name in each]
            now = np.any(masks, axis=0) if masks else np.zeros(len(table), bool)
            if (now & ~stale.get(name, np.zeros(len(table), bool))).any():
                stale[name], more = now, True
    for name, rows in stale.items():
        column = table.column(name)
        null = pc.if_else(pa.array(rows), pa.scalar(None, column.type), column)
        table = table.set_column(table.column_names.index(name), table.schema.field(name), null)
    return table, *lacking_columns(record, list(stale), table)


def _changed(before: pa.ChunkedArray, now: pa.ChunkedArray) -> np.ndarray:
    """Bool (rows,): whether a row has another value than it had."""
    pairs = zip(to_array(before).to_pylist(), to_array(now).to_pylist(), strict=True)
    return np.array([one != other for one, other in pairs], bool)
