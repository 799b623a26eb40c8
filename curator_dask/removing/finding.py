"""What is in a folder that samples are to be removed from, and what beside it still holds some of them."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from pathlib import Path

from curator_dask.errors import ConfigError, OutputError
from curator_dask.fetching.place import SUFFIX as FETCH
from curator_dask.frames.names import ERRORS_SUFFIX, URL_COLUMN
from curator_dask.frames.parquet import read_footer
from curator_dask.outputs.curated_names import BALANCED, DUPLICATES, EMBEDDINGS, PASSING, SHARDS, of_curate
from curator_dask.outputs.failed import none_there
from curator_dask.outputs.placing import locate
from curator_dask.outputs.removed import DUPLICATES as TABLE
from curator_dask.outputs.selecting import Folder
from curator_dask.outputs.taken_down_told import SUFFIX as REMOVED
from curator_dask.outputs.twins_told import NOTE
from curator_dask.outputs.twins_told import SUFFIX as EXPORT
from curator_dask.patience import patiently
from curator_dask.removing.exports import ExportedPlace
from curator_dask.removing.fetched import FetchedPlace
from curator_dask.removing.places import Place
from curator_dask.removing.rows import DuplicatesPlace, RowsPlace
from curator_dask.removing.shards import ShardsPlace
from curator_dask.storage import Options, exists, filesystem, is_remote, join, walk

#: Of a fetch: its table, where that was no Parquet.
_TABLE = "table"


def find_places(
    path: str | os.PathLike[str], options: Options, rewrite_shards: bool, id_col: str
) -> list[Place]:
    """The places with samples in a folder, those first that others were made of.

    Parameters
    ----------
    path, options
        Folder or URL; for fsspec.
    rewrite_shards
        Tars that others wrote may be rewritten.
    id_col
        Column of the keys in the Parquet beside these.

    Raises
    ------
    ConfigError
        There are such tars, and they may not; or what cannot be rewritten.
    OutputError
        There is nothing.
    """
    url = locate(os.fspath(path), options)
    folder = Folder(url, options if is_remote(url) else None)
    names = list(walk(*folder))
    if exists(join(f"{url}{FETCH}", NOTE), folder.options):
        return [FetchedPlace(folder)]
    if exists(join(f"{url}{EXPORT}", NOTE), folder.options):
        rows = Folder(join(f"{url}{EXPORT}", "rows"), folder.options)
        own = [RowsPlace(rows, "rows of an export")] if any(True for _ in walk(*rows)) else []
        return [*own, ExportedPlace(folder)]
    if of_curate(names):
        found: list[Place] = []
        for name in (EMBEDDINGS, PASSING, BALANCED, DUPLICATES, SHARDS):
            if any(each.startswith(f"{name}/") for each in names):
                found += find_places(join(url, name), options, rewrite_shards, id_col)
        return found
    if TABLE in names and {"id", URL_COLUMN, "kept"} <= {
        *read_footer(folder.file(TABLE), folder.options).columns
    }:
        return [DuplicatesPlace(folder)]
    tars = [name for name in names if name.endswith(".tar")]
    tables = [name for name in names if name.endswith(".parquet")]
    if tars:
        if not rewrite_shards:
            raise ConfigError(
                f"{url}: has {min(tars)}, which neither fetch nor export wrote, and tars of others are not rewritten"
                " unbidden. With rewrite_shards=True (--rewrite-shards) they are, each replaced by one without the"
                " samples, all other members byte for byte: keep a copy if you need one. Or give the folders alone that"
                " embed, filter, export and fetch wrote: a new output of these tars has the samples again"
            )
        return [ShardsPlace(folder, id_col)]
    if not tables:
        raise OutputError(none_there(url))
    footer = read_footer(folder.file(min(tables)), folder.options)
    if footer.record is None and URL_COLUMN not in footer.columns:
        raise ConfigError(
            f"{folder.file(min(tables))}: was written by another program, and its rows do not say of which shard they"
            f" are (no column {URL_COLUMN!r}). Filter such a table by its own means, and import it anew"
        )
    return [RowsPlace(folder)]


def still_holding(places: Sequence[Place], url: str, options: Options) -> list[str]:
    """What lies beside a folder, was made of what is in it, and is not rewritten: paths.

    Parameters
    ----------
    places
        What is rewritten.
    url, options
        The folder; for fsspec.
    """
    known = {each.folder.path for each in places}
    known |= {
        f"{each}{suffix}" for each in {*known, url} for suffix in (REMOVED, EXPORT, FETCH, ERRORS_SUFFIX)
    }
    found = {
        each
        for folder in {*(place.folder.path for place in places), url}
        for each in _beside(folder, options)
        if each not in known
    }
    table = join(f"{url}{FETCH}", _TABLE)
    if any(True for _ in walk(table, options)):
        found.add(table)
    return sorted(found)


def _beside(folder: str, options: Options) -> list[str]:
    """Paths of what is called as a folder is, with a dot and something behind it: what is kept beside it."""
    parent, name = posixpath.split(folder.rstrip("/"))
    if not is_remote(folder):
        return [str(each) for each in Path(parent).glob(f"{_escaped(name)}.*")]
    fs, inside = filesystem(parent, options)
    try:
        entries = patiently(lambda: fs.ls(inside, detail=False), parent)
    except FileNotFoundError:
        return []
    names = (each.rstrip("/").rpartition("/")[2] for each in entries)
    return [join(parent, each) for each in names if each.startswith(f"{name}.")]


def _escaped(name: str) -> str:
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in name)
