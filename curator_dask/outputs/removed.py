"""The table of duplicates as those read it who leave them out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curator_dask.errors import OutputError
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import read_footer
from curator_dask.storage import absolute, is_remote, join

#: The file that a deduplication writes.
DUPLICATES = "duplicates.parquet"


def check_removed(path: str) -> str:
    """What identifies the table of duplicates in a folder.

    Raises
    ------
    OutputError
        There is none.
    """
    file = join(path, DUPLICATES)
    footer = read_footer(file) if is_remote(file) or Path(file).exists() else None
    if footer is None or not {"id", URL_COLUMN, "kept"} <= {*footer.columns}:
        raise OutputError(f"{file}: is no table of duplicates: give the folder that dedup wrote to")
    if footer.record is not None:
        return footer.record.fingerprint
    return str(Path(file).stat().st_mtime_ns)


def stays(path: str, keys: pa.Array, urls: pa.Array) -> np.ndarray:
    """Whether each row has no better twin; bool (rows,)."""
    shards = urls.cast(pa.string()).to_pylist()
    going = read_removed(absolute(path), sorted({url for url in shards if url is not None}))
    pairs = zip(keys.cast(pa.string()).to_pylist(), shards, strict=True)
    return np.array([key not in going.get(url, ()) for key, url in pairs], bool)


def read_removed(path: str, urls: Sequence[str], identity: str | None = None) -> dict[str, set[str]]:
    """By shard, the keys of the rows that go, of rows of these shards.

    Raises
    ------
    OutputError
        There is no result, or another than `identity` says.
    """
    file = join(path, DUPLICATES)
    if check_removed(path) != (identity or check_removed(path)):
        raise OutputError(
            f"{file}: was written anew since it was taken: take the duplicates that are there now"
        )
    wanted = [(URL_COLUMN, "in", list(urls))]
    table = pq.read_table(file, columns=["id", URL_COLUMN, "kept"], filters=wanted, partitioning=None)
    rows = list(zip(*(table[name].to_pylist() for name in (URL_COLUMN, "id", "kept")), strict=True))
    stay = {(url, key) for url, key, kept in rows if kept}  # also of a row that is there twice
    found: dict[str, set[str]] = {}
    for url, key, kept in rows:
        if not kept and (url, key) not in stay:
            found.setdefault(url, set()).add(key)
    return found
