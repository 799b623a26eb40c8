"""Where the rows go whose image failed, if they are not to be among the good ones.

Beside the output, not in it: there are readers of a folder (Polars, DuckDB's ``**``) that read all files below it,
whatever their names and those of their folders begin and end with.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from curator_dask.errors import OutputError
from curator_dask.frames.names import ERRORS_SUFFIX
from curator_dask.frames.parquet import list_parquet, read_record, remove_leftovers, write_table
from curator_dask.frames.record import FILTERED, FileRecord
from curator_dask.storage import RELATIVE, Options, absolute, exists, is_remote, join, remove
from curator_dask.words import counted

logger = logging.getLogger("curator_dask")

ERRORS_FORMERLY = "_errors"
"""The folder of failed rows of earlier versions, below the output."""
_FEW = 3  # names that an error gives


def errors_folder(folder: str) -> str | None:
    """The folder beside an output; None where nothing can be beside it: it is all of a bucket."""
    if is_remote(folder) and "/" not in folder.partition("://")[2]:
        return None
    return f"{folder}{ERRORS_SUFFIX}"


def remove_leftovers_of(folder: str) -> None:
    """Remove what dead workers have left in an output, and beside it; of a store nothing is known."""
    if not is_remote(folder):
        remove_leftovers(folder)
        remove_leftovers(str(errors_folder(folder)))


def errors_paths(folder: str, name: str) -> list[str]:
    """Where the failed rows of a file may be: beside the output, and where they were written once."""
    folders = [errors_folder(folder), join(folder, ERRORS_FORMERLY)]
    return [join(each, f"{name}.parquet") for each in folders if each is not None]


def list_errors(folder: str, options: Options) -> dict[str, str]:
    """Paths (or URLs) of the files with failed rows of an output, and the names of those that they belong to."""
    found = {}
    for each in (errors_folder(folder), join(folder, ERRORS_FORMERLY)):
        for path in list_parquet(each, options) if each is not None else ():
            found[path] = path.removeprefix(each or "").lstrip("/").removesuffix(".parquet")
    return found


def output_files(folder: str, options: Options) -> list[str]:
    """Names of the Parquet files of an output, in order, without those of failed rows."""
    names = (path.removeprefix(folder).lstrip("/") for path in sorted(list_parquet(folder, options)))
    return [name for name in names if not name.startswith(f"{ERRORS_FORMERLY}/")]


def tell_others(folder: str, names: Collection[str], options: Options) -> None:
    """Warn of files in an output that are not of this run, such as of shards that are gone.

    Parameters
    ----------
    folder
        Of the output.
    names
        Of the files of this run.
    options
        For fsspec.
    """
    if others := [name for name in output_files(folder, options) if name not in {*names}]:
        logger.warning(
            "%s: %s there, %s for example, not of this run: who reads the folder finds their rows, too",
            *(folder, counted(len(others), "file"), others[0]),
        )


def check_others(folder: str, names: Collection[str], options: Options, overwrite: bool) -> list[str]:
    """Files in an output of rows that were kept of another, by an earlier call: to be removed when all is written.

    Of other files, which are somebody's, a warning is given.

    Parameters
    ----------
    folder, options
        Of the output; for fsspec.
    names
        Of the files of this run.
    overwrite
        They may be replaced.

    Raises
    ------
    OutputError
        They may not.
    """
    found = []
    for name in output_files(folder, options):
        record = None if name in {*names} else read_record(join(folder, name), options)
        if record is not None and FILTERED in record.derived:
            found.append(name)
    if found and not overwrite:
        raise OutputError(
            f"{join(folder, found[0])}: is there, and was kept by another filter or retrieval, or of a file that is"
            f" gone ({counted(len(found), 'such file')}): its rows would be mixed with these. Write to another path, or"
            " use overwrite=True (--overwrite), which removes such files when all is written"
        )
    tell_others(folder, [*names, *found], options)
    return found


def none_there(path: str) -> str:
    """Why a path has no Parquet file of an output, and what to give, in words."""
    place, give = Path(absolute(path)), "Give the folder that embed wrote to"
    if is_remote(path):
        return f"{path}: no Parquet file is there. {give}"
    if place.is_file():
        return f"{path}: no Parquet file is there, for this is a file itself. Give its folder, {place.parent}"
    if not place.is_dir():
        return f"{path}: no Parquet file is there, nor such a folder ({RELATIVE}). {give}"
    try:
        names = sorted(each.name for each in place.iterdir() if not each.name.startswith("."))
    except OSError as error:
        return f"{path}: cannot be listed: {error.strerror}"
    some = ", ".join(names[:_FEW])
    if any(name.endswith(".tar") for name in names):
        give = (
            f"Make an output of its tars: curator-dask embed {path} OUTPUT, with --model, or without one with"
            " --statistics or --text-statistics alone; give OUTPUT here"
        )
    return f"{path}: no Parquet file is there{f', but {some}' if some else ''}. {give}"


def say_lost(folder: str, reports: Iterable[Mapping[str, Any]], options: Options) -> None:
    """Warn of failed rows that finished files have given to files that are not there any more.

    Parameters
    ----------
    folder
        Of the output.
    reports
        Of the finished files.
    options
        For fsspec.
    """
    dropped = {str(report["name"]): report["dropped"] for report in reports if report.get("dropped")}
    there = {*list_errors(folder, options).values()} if dropped else ()
    if lost := [name for name in dropped if name not in there]:
        logger.warning(
            "%s: in no file any more: %s whose image failed. Those of %s.parquet, for example, were in %s,"
            " which is gone. A retry cannot try them again. To have them, remove that file of the output as well, and"
            " run again",
            *(
                folder,
                counted(sum(dropped[name] for name in lost), "row"),
                lost[0],
                errors_paths(folder, lost[0])[0],
            ),
        )


def find_errors(folder: str, name: str, options: Options) -> str | None:
    """The file with the failed rows of a file; None where there is none.

    Each place has all of them: the older one is left where a run has died before it removed it.
    """
    return next((path for path in errors_paths(folder, name) if read_record(path, options)), None)


def as_wide(failed: pa.Table, table: pa.Table) -> tuple[pa.Table, list[str]]:
    """Rows that were set aside, null in columns that their file has got since; and which these are."""
    lacking = [each for each in table.schema if each.name not in failed.column_names]
    for each in lacking:
        failed = failed.append_column(each, pa.nulls(len(failed), each.type))
    return failed.select(table.column_names), [each.name for each in lacking]


def write_failed(folder: str, name: str, table: pa.Table, record: FileRecord, options: Options) -> None:
    """Write the failed rows of a file; where there are none, those that an earlier run left are removed."""
    paths = errors_paths(folder, name)
    if len(table):
        write_table(paths.pop(0), table, record, options)
    for path in paths:
        # Another's file of that name stays.
        if exists(path, options) and (found := read_record(path, options)) and found.url == record.url:
            remove(path, options)
