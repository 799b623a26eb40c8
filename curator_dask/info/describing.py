"""`describe_output`: what is in an output, read from footers, and of values from as much as is needed."""

from __future__ import annotations

import os
import posixpath
import time
from collections.abc import Mapping, Sequence

import pyarrow as pa

from curator_dask.errors import NoColumnError, OutputError
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.info.differences import differences_in
from curator_dask.info.failures import failures_in, fill_failures
from curator_dask.info.footers import FileFacts, Footers, is_fetched, is_filtered
from curator_dask.info.found import Chain, ColumnInfo, Found, SplitInfo
from curator_dask.info.listing import Listing, list_output
from curator_dask.info.makers import DEDUP, EXPORT
from curator_dask.info.output import OutputInfo
from curator_dask.info.values import fill_norms, fill_values, kind_of, pick_parts
from curator_dask.outputs.curated_names import (
    BALANCED,
    DUPLICATES,
    EMBEDDINGS,
    PASSING,
    SHARDS,
    of_curate,
    stay_in,
)
from curator_dask.outputs.failed import list_errors, none_there
from curator_dask.outputs.placing import locate
from curator_dask.outputs.taken_down_told import count_taken_down
from curator_dask.outputs.twins_told import twins_noted
from curator_dask.rows.remarks import OF_ROWS
from curator_dask.runs.summary import SaveSummary
from curator_dask.storage import Options, join
from curator_dask.threads import in_threads
from curator_dask.words import counted, none_of_these

_STEPS = (EMBEDDINGS, PASSING, BALANCED, DUPLICATES, SHARDS)


def describe_output(
    path: str | os.PathLike[str],
    *,
    columns: Sequence[str] | None = None,
    exact: bool = False,
    storage_options: Options = None,
) -> OutputInfo:
    """What is in an output of `save_metadata`, of a command, or in other Parquet files: seconds, without a cluster.

    Every footer is read: counts, filled shares, who made a column, smallest and largest numbers are of all rows. How
    values spread is of all rows where these are few (250,000 rows in 400 row groups), and else of row groups that are
    spread evenly over the files. Vectors are not read, but for the norms of a few.

    Parameters
    ----------
    path
        Folder, or URL of one in a store.
    columns
        To look at these alone.
    exact
        Read all rows. Numbers are held meanwhile, 8 bytes each, of one column at a time where they are many.
    storage_options
        For fsspec, where `path` is a URL.

    Returns
    -------
    What was found; ``print`` shows it as tables. Files that cannot be read are named in it, and raise nothing.

    Raises
    ------
    OutputError
        There is no such output, or its store does not answer.
    NoColumnError
        It has no such column.
    """
    started = time.monotonic()
    folder = locate(os.fspath(path), storage_options)
    listing = list_output(folder, storage_options)
    steps = [name for name in _STEPS if any(each.startswith(f"{name}/") for each in listing.parquet)]
    if of_curate(listing.parquet):
        info = _of_curate(folder, steps, columns, exact, storage_options)
    else:
        info, found = _of_folder(folder, listing, columns, exact, storage_options)
        _check_columns(folder, columns, found)
    info.seconds = time.monotonic() - started
    return info


def _of_curate(
    folder: str, steps: Sequence[str], columns: Sequence[str] | None, exact: bool, options: Options
) -> OutputInfo:
    info, known = OutputInfo(folder, "curate"), dict[str, None]()
    for name in steps:
        place = join(folder, name)
        each, names = _of_folder(place, list_output(place, options), columns, exact, options)
        info.folders[name] = each
        known.update(dict.fromkeys(names))
        info.files, info.bytes = info.files + each.files, info.bytes + each.bytes
    _check_columns(folder, columns, list(known))
    info.chain = _chain(info.folders, stay_in(folder, options) if SHARDS in info.folders else 0)
    info.rows, info.exact = info.chain.rows, all(each.exact for each in info.folders.values())
    return info


def _chain(folders: Mapping[str, Found], stay: int) -> Chain:
    first = folders[EMBEDDINGS]
    chain = Chain(first.rows, kept=folders[SHARDS].rows - stay if SHARDS in folders else 0, stay=stay)
    chain.failed = first.failed  # no condition passes them
    left = first.rows - chain.failed
    if PASSING in folders:
        passing = folders[PASSING]
        chain.failed = first.failed - passing.failed
        left, chain.filtered = passing.rows, first.rows - chain.failed - passing.rows
    if BALANCED in folders:
        chain.unbalanced, left = left - folders[BALANCED].rows, folders[BALANCED].rows
    chain.duplicates = (folders[DUPLICATES].removed or 0) if DUPLICATES in folders else 0
    chain.exported = SHARDS in folders
    chain.missing = left - chain.duplicates - chain.kept if chain.exported else 0
    counts = (chain.failed, chain.filtered, chain.unbalanced, chain.missing)
    chain.adds_up = min(counts) >= 0
    return chain


def _check_columns(folder: str, columns: Sequence[str] | None, names: Sequence[str]) -> None:
    for name in columns or ():
        if name not in names:
            raise NoColumnError(f"{folder}: {none_of_these(name, names)}")


def _of_folder(
    folder: str, listing: Listing, columns: Sequence[str] | None, exact: bool, options: Options
) -> tuple[OutputInfo, list[str]]:
    """What is in one folder; and the names of all of its columns.

    Raises
    ------
    OutputError
        It has no Parquet files.
    """
    if not listing.parquet:
        raise OutputError(_none(folder, listing))
    info = OutputInfo(folder, lock=listing.lock, leftovers=listing.temporary)
    footers = Footers(options)
    looked = in_threads(lambda name: footers.read(join(folder, name), name), list(listing.parquet))
    info.damaged = {**listing.unread, **{file.name: file.fault for file in looked if file.fault}}
    files = [file for file in looked if not file.fault]
    aside = _aside(folder, listing, footers, options)
    names = list(dict.fromkeys(name for file in files for name in file.types))
    shown = names if columns is None else [name for name in names if name in {*columns}]
    info.files, info.rows = len(files), sum(file.rows for file in files)
    info.bytes = sum(listing.parquet.values()) + sum(listing.tars.values())
    info.kind = _kind(files, listing)
    info.aside_files, info.aside_rows = len(aside), sum(file.rows for file in aside)
    failures = failures_in([*files, *aside], options, info.damaged)
    info.failed = failures.counts.total()
    fill_failures(info, failures)
    every = [_column(name, files, info.rows) for name in names]
    info.columns = [column for column in every if column.name in shown]
    info.with_vector = {each.name: each.filled for each in every if each.kind == "vector"}
    info.differences = [*differences_in(files, shown), *_of_tars(listing)]
    summary = SaveSummary(folder)
    for file in files:
        gone = OF_ROWS if is_filtered(file) else ()  # they count rows that were there before, too
        summary.add_remarks(
            {
                url: {kind: fact for kind, fact in facts.items() if kind not in gone}
                for url, facts in file.remarks.items()
            }
        )
    info.remarks = [line.strip() for line in summary.remark_lines()]
    if info.kind == "export":
        info.remarks += twins_noted(folder, options)
    if listing.tars:
        info.splits = _splits(listing, files)
    _fill(info, files, columns is not None, exact, options)
    _tell_taken_down(info, folder, options)
    if info.kind == "dedup":
        info.removed = sum(file.report.get("removed", 0) for file in files)
    return info, names


def _tell_taken_down(info: OutputInfo, folder: str, options: Options) -> None:
    """Say what was removed on request, and whether that was interrupted."""
    info.taken_down, is_pending = count_taken_down(folder, options)
    if is_pending:
        info.differences.append(
            f"samples were being removed, and that was interrupted: curator-dask remove {folder} finishes it"
        )


def _none(folder: str, listing: Listing) -> str:
    if listing.tars:
        return (
            f"{folder}: no Parquet file is there, but {counted(len(listing.tars), 'tar')}: these are shards, which"
            " curator-dask check looks at. Give the folder that embed wrote to"
        )
    more = f". {listing.lock}" if listing.lock else ""
    return f"{none_there(folder)}{more}"


def _aside(folder: str, listing: Listing, footers: Footers, options: Options) -> list[FileFacts]:
    """Files of failed rows alone, beside the output."""
    paths = sorted(list_errors(folder, options))
    found = in_threads(lambda path: footers.read(path, posixpath.basename(path)), paths)
    return [file for file in found if not file.fault]


def _kind(files: Sequence[FileFacts], listing: Listing) -> str:
    marks = {mark for file in files for mark in file.marks}
    if DEDUP in marks:
        return "dedup"
    if files and all(is_fetched(file) for file in files):
        return "fetch"
    if EXPORT in marks or (listing.tars and "record" in marks):
        return "export"
    if any(is_filtered(file) for file in files):
        return "filter"
    return "embed" if "record" in marks else "other"


def _column(name: str, files: Sequence[FileFacts], rows: int) -> ColumnInfo:
    having = [file for file in files if name in file.types]
    kinds = [file.types[name] for file in having]
    kind = next((each for each in kinds if not pa.types.is_null(each)), kinds[0])
    column = ColumnInfo(name, str(kind), kind_of(kind), lacking_files=len(files) - len(having))
    if column.kind == "vector" and any(file.makers[name].kind == "detect" for file in having):
        column.kind = "other"  # scores, of each image so many as there are boxes
    column.made_by = list(dict.fromkeys(file.makers[name].told for file in having))
    counts = [file.filled.get(name) for file in having]
    known = [count for count in counts if count is not None]
    if len(known) == len(counts):
        column.filled = sum(known)
        column.share = column.filled / rows if rows else None
    if column.kind == "vector":
        column.dim = getattr(kind, "list_size", None)
    filled = [file for file in having if file.filled.get(name) != 0]
    if column.kind == "number" and filled and all(name in file.low for file in filled):
        column.low = min(file.low[name] for file in filled)
        column.high = max(file.high[name] for file in filled)
    return column


def _fill(info: OutputInfo, files: Sequence[FileFacts], asked: bool, exact: bool, options: Options) -> None:
    """Read values of the columns that are told of."""
    parts = pick_parts([file for file in files if file.name not in info.damaged], exact)
    info.groups = sum(len(file.groups) for file in files)
    info.looked_groups, info.looked_rows = len(parts), sum(part.rows for part in parts)
    info.exact = info.looked_rows == info.rows
    # What each row has a value of its own in is read where it is asked for; why rows failed has been counted.
    own = {URL_COLUMN, ERROR_COLUMN, *(file.id_col for file in files)} if not asked else set()
    info.damaged.update(fill_values([each for each in info.columns if each.name not in own], parts, options))
    fill_norms([each for each in info.columns if each.kind == "vector"], parts, options)


def _splits(listing: Listing, files: Sequence[FileFacts]) -> list[SplitInfo]:
    found: dict[str, SplitInfo] = {}
    for name, size in listing.tars.items():
        split = posixpath.dirname(name)
        each = found.setdefault(split, SplitInfo(split))
        each.tars, each.bytes = each.tars + 1, each.bytes + size
    for file in files:
        split = posixpath.dirname(file.name)
        if split in found:
            # Of a fetch rows without an image have no sample.
            found[split].rows += file.report["images"] if is_fetched(file) else file.rows
    return [found[split] for split in sorted(found)]


def _of_tars(listing: Listing) -> list[str]:
    """Tars of an export without the Parquet beside them, and the other way round."""
    if not listing.tars:
        return []
    tars = {name.removesuffix(".tar") for name in listing.tars}
    rows = {name.removesuffix(".parquet") for name in listing.parquet}
    lines = []
    for what, lacks, names in (("tar", "Parquet", tars - rows), ("Parquet file", "tar", rows - tars)):
        if names:
            verb = "has" if len(names) == 1 else "have"
            lines.append(
                f"{counted(len(names), what, verb, verb)} no {lacks} beside it ({min(names)} for example): the export"
                " was interrupted, or files were removed. The same export again writes what is missing"
            )
    return lines
