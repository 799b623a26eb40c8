"""What is noticed of questions: rows that were not asked, and those that would rather be answered otherwise."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa

from curator_dask.frames.names import URL_COLUMN
from curator_dask.rows.ids import exact_ids
from curator_dask.rows.remarks import LITTLE, NOT_ASKED, fact_of, remark_more
from curator_dask.runs.step import Rows

#: Of the answers together, below which a model would rather answer otherwise.
LEAST_MASS = 0.5


def remark_answers(rows: Rows, id_col: str, column: str, mass: pa.Array, filled: pa.Array) -> None:
    """Count the questions of some rows by their shards; what was asked besides adds to it.

    Parameters
    ----------
    rows, id_col
        The rows, and the column of their keys.
    column
        That the question's columns begin with.
    mass, filled
        Of the answers together, and whether the row was asked: null where the image failed.
    """
    if URL_COLUMN not in rows.names or not len(rows):
        return
    by: dict[str, Counter[str]] = {}
    names: dict[str, list[str]] = {}
    columns = [each.to_pylist() for each in (rows.column(URL_COLUMN), mass, filled)]
    for key, url, much, was_asked in zip(exact_ids(rows.column(id_col)), *columns, strict=True):
        if url is None or was_asked is None:
            continue
        count = by.setdefault(url, Counter())
        if not was_asked:
            count[NOT_ASKED + column] += 1
            names.setdefault(url, []).append(str(key))
            continue
        count[column] += 1
        count[LITTLE + column] += much < LEAST_MASS
    for url, count in by.items():
        examples = (fact_of(names.get(url, [])) or {"examples": []})["examples"]
        told = {what: number for what, number in count.items() if number}
        remark_more(url, "answers", {"count": count[column], "examples": examples, "by": told})
