"""What was made of a column that has other values now: it is null in those rows, for its own command to make again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.frames.columns import to_array
from curator_dask.frames.record import LACKING, FileRecord, inputs_of
from curator_dask.runs.step import ScoringStep


def without_stale(
    before: pa.Table, table: pa.Table, record: FileRecord, steps: Sequence[ScoringStep]
) -> tuple[pa.Table, FileRecord]:
    """The rows, and what their record says, without values of columns that were made of what steps have changed.

    Parameters
    ----------
    before, table
        The rows before and after.
    record
        Of the file; it says what each column was made of.
    steps
        That have made columns anew.
    """
    made = {name for step in steps for name in step.scores}
    changed = {
        name: _changed(before.column(name), table.column(name)) for name in made & {*before.column_names}
    }
    scores, left = dict(record.scores), [name for name in record.scores if name not in made]
    while name := next((name for name in left if {*inputs_of(scores[name])} & {*changed}), None):
        left.remove(name)
        stale = np.any([changed[each] for each in inputs_of(scores[name]) if each in changed], axis=0)
        if stale.any() and name in table.column_names:
            column = table.column(name)
            null = pc.if_else(pa.array(stale), pa.scalar(None, column.type), column)
            table = table.set_column(table.column_names.index(name), table.schema.field(name), null)
            changed[name], scores[name] = stale, {**scores[name], LACKING: True}
    return table, replace(record, scores=scores)


def _changed(before: pa.ChunkedArray, now: pa.ChunkedArray) -> np.ndarray:
    """Bool (rows,): whether a row has another value than it had; one that it had not is another."""
    one, other = to_array(before).to_pylist(), to_array(now).to_pylist()
    return np.array([left != right for left, right in zip(one, other, strict=True)], bool)
