"""What is noticed of texts that a model has written: those that were cut, and images about which it wrote nothing."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa

from curator_dask.frames.names import URL_COLUMN
from curator_dask.rows.ids import exact_ids
from curator_dask.rows.remarks import NOTHING_WRITTEN, cut_at, fact_of, remark_more
from curator_dask.runs.step import Rows


def remark_captions(rows: Rows, id_col: str, texts: pa.Array, cut: pa.Array, most: int) -> None:
    """Count the texts of some rows by their shards; what another model has written about these adds to it.

    Parameters
    ----------
    rows, id_col
        The rows, and the column of their keys.
    texts, cut
        Their texts, and whether these were cut at `most` tokens: null where the image failed.
    """
    if URL_COLUMN not in rows.names or not len(rows):
        return
    count, cuts, silent = Counter[str](), Counter[str](), dict[str, list[str]]()
    columns = [each.to_pylist() for each in (rows.column(URL_COLUMN), texts, cut)]
    for key, url, text, was_cut in zip(exact_ids(rows.column(id_col)), *columns, strict=True):
        if url is None or was_cut is None:
            continue
        if text is None:
            silent.setdefault(url, []).append(str(key))
            continue
        count[url] += 1
        cuts[url] += was_cut
    for url in dict.fromkeys([*count, *silent]):
        names = silent.get(url, [])
        by = {cut_at(most): cuts[url], NOTHING_WRITTEN: len(names)}
        fact = {
            "count": count[url],
            "examples": (fact_of(names) or {"examples": []})["examples"],
            "by": {what: number for what, number in by.items() if number},
        }
        remark_more(url, "captions", fact)
