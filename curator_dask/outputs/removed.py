"""The table of duplicates as those read it who leave them out."""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curator_dask.errors import DatasetError, OutputError
from curator_dask.frames.faults import faults_told
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import read_whole
from curator_dask.patience import patiently
from curator_dask.runs.leaving import LeaveOut
from curator_dask.storage import Options, RemoteFile, absolute, filesystem, is_remote, join, version_in

logger = logging.getLogger("curator_dask")

#: The file that a deduplication writes.
DUPLICATES = "duplicates.parquet"


def check_removed(path: str, options: Options = None) -> str:
    """What identifies the table of duplicates in a folder, or in a store with options for fsspec.

    Raises
    ------
    OutputError
        There is none.
    """
    file = join(absolute(path, options), DUPLICATES)
    footer = read_whole(file, options) if is_remote(file) or Path(file).exists() else None
    if footer is None or not {"id", URL_COLUMN, "kept"} <= {*footer.columns}:
        raise OutputError(f"{file}: is no table of duplicates: give the folder that dedup wrote to")
    if footer.record is not None:
        return footer.record.fingerprint
    if is_remote(file):
        fs, inside = filesystem(file, options)
        return version_in(patiently(lambda: fs.info(inside), file))
    return str(Path(file).stat().st_mtime_ns)


def read_duplicates(
    path: str, columns: Sequence[str], options: Options = None, urls: Sequence[str] | None = None
) -> pa.Table:
    """Columns of the table of duplicates in a folder or a store.

    Parameters
    ----------
    path, options
        Of the folder, for fsspec.
    columns
        Their names.
    urls
        Rows of these shards alone: the table is in the order of shards, and of its row groups no others are read.

    Raises
    ------
    OutputError
        It cannot be read.
    """
    file = join(absolute(path, options), DUPLICATES)
    filters = None if urls is None else [(URL_COLUMN, "in", list(urls))]
    with faults_told(file):
        source = RemoteFile(file, options) if is_remote(file) else file
        return pq.read_table(source, columns=list(columns), filters=filters, partitioning=None)


def leave_out(
    path: str, id_col: str, columns: Sequence[str], urls: Collection[str] | None, options: Options = None
) -> LeaveOut:
    """The step that leaves out the rows that have a better twin.

    Parameters
    ----------
    path
        Folder of the table.
    id_col, columns
        Column of the keys, and all columns of the rows.
    urls
        Of their shards; None: not known.
    options
        For fsspec, of the table.

    Raises
    ------
    DatasetError
        The rows lack a column by which they are told apart.
    OutputError
        There is no such table, or it is of other shards.
    """
    missing = [name for name in (id_col, URL_COLUMN) if name not in columns]
    if missing:
        raise DatasetError(f"the metadata lacks {missing}, by which rows are told apart: keep these columns")
    identity = check_removed(path, options)
    if urls is not None:
        check_shards(path, urls, options=options)
    return LeaveOut(
        "duplicates", identity, id_col, partial(read_removed, path, identity=identity, options=options)
    )


def check_shards(path: str, urls: Collection[str], done: str = "left out", options: Options = None) -> None:
    """Warn where a table of duplicates names none of some shards.

    Parameters
    ----------
    path
        Folder of the table.
    urls
        Of the shards.
    done
        What is done with its rows.
    options
        For fsspec, where the folder is in a store.

    Raises
    ------
    OutputError
        It names such shards by other paths.
    """
    file = join(absolute(path, options), DUPLICATES)
    table = read_duplicates(path, [URL_COLUMN, "kept"], options)
    named = {*table.filter(pc.invert(table.column("kept"))).column(URL_COLUMN).unique().to_pylist()} - {None}
    if not named or not urls or not named.isdisjoint(urls):
        return
    places: dict[str, str] = {}
    for url in sorted(named):
        places.setdefault(posixpath.basename(url), url)
    theirs = next((url for url in sorted(urls) if posixpath.basename(url) in places), None)
    if theirs is not None:
        raise OutputError(
            f"{file}: none of its rows is of these shards, so nothing would be {done}: a shard there is"
            f" {places[posixpath.basename(theirs)]!r}, and here {theirs!r}. Find the duplicates of these rows, or put"
            " the shards where they were. If it is right that nothing is, do without it"
        )
    logger.warning(
        "%s: none of its rows is of these shards, so nothing is %s: a shard there is %r, and here %r",
        file,
        done,
        min(named),
        min(urls),
    )


def stays(path: str, keys: pa.Array, urls: pa.Array, options: Options = None) -> np.ndarray:
    """Whether each row has no better twin; bool (rows,)."""
    shards = urls.cast(pa.string()).to_pylist()
    wanted = sorted({url for url in shards if url is not None})
    going = read_removed(absolute(path, options), wanted, options=options)
    pairs = zip(keys.cast(pa.string()).to_pylist(), shards, strict=True)
    return np.array([key not in going.get(url, ()) for key, url in pairs], bool)


def read_removed(
    path: str, urls: Sequence[str], identity: str | None = None, options: Options = None
) -> dict[str, set[str]]:
    """By shard, the keys of the rows that go, of rows of these shards.

    Raises
    ------
    OutputError
        There is no result, or another than `identity` says.
    """
    file = join(path, DUPLICATES)
    found_now = check_removed(path, options)
    if found_now != (identity or found_now):
        raise OutputError(
            f"{file}: was written anew since it was taken: take the duplicates that are there now"
        )
    if not urls:  # of a file without rows; Arrow gives an empty list no type to compare
        return {}
    table = read_duplicates(path, ["id", URL_COLUMN, "kept"], options, urls)
    rows = list(zip(*(table[name].to_pylist() for name in (URL_COLUMN, "id", "kept")), strict=True))
    stay = {(url, key) for url, key, kept in rows if kept}  # also of a row that is there twice
    found: dict[str, set[str]] = {}
    for url, key, kept in rows:
        if not kept and (url, key) not in stay:
            found.setdefault(url, set()).add(key)
    return found
