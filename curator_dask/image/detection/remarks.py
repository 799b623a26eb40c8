"""What is noticed of images in which a model finds things: in how many of them there are any, and of which label."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa

from curator_dask.frames.names import URL_COLUMN
from curator_dask.rows.ids import exact_ids
from curator_dask.rows.remarks import EXAMPLES, found_by, labelled, remark_more, seen_by
from curator_dask.runs.step import Rows
from curator_dask.webdataset.samples import key_text


def remark_detections(rows: Rows, id_col: str, prefix: str, labels: pa.Array) -> None:
    """Count the images of some rows by their shards; what another model has found in these adds to it.

    Parameters
    ----------
    rows, id_col
        The rows, and the column of their keys.
    prefix
        Of the names of the model's columns.
    labels
        Of what it has found in each image: null where the image failed.
    """
    if URL_COLUMN not in rows.names or not len(rows):
        return
    by: dict[str, Counter[str]] = {}
    examples: dict[str, list[str]] = {}
    urls, found = rows.column(URL_COLUMN).to_pylist(), labels.to_pylist()
    for key, url, names in zip(exact_ids(rows.column(id_col)), urls, found, strict=True):
        if url is None or names is None:
            continue
        count = by.setdefault(url, Counter())
        count[seen_by(prefix)] += 1
        if names:
            count[found_by(prefix)] += 1
            count.update(labelled(prefix, name) for name in {*names})
            examples.setdefault(url, []).append(key_text(str(key)))
    for url, count in by.items():
        some = examples.get(url, [])[:EXAMPLES]
        fact = {"count": count[seen_by(prefix)], "examples": some, "by": dict(count)}
        remark_more(url, "detections", fact)
