"""Failed rows that to try again is of no use: their tar had no sample of theirs, and is as it was."""

from __future__ import annotations

from collections.abc import Sequence

from curator_dask.errors import ShardError
from curator_dask.frames.faults import faults_told
from curator_dask.frames.names import ERROR_COLUMN
from curator_dask.frames.parquet import open_parquet
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.failed import find_errors
from curator_dask.outputs.writing import Output
from curator_dask.rows.reasons import MISSING, reason_for, reasons_in
from curator_dask.storage import Options
from curator_dask.threads import in_threads
from curator_dask.webdataset.folders import is_folder_shard
from curator_dask.webdataset.stamps import stamp

#: How the reason of such a row begins.
_NO_SAMPLE = f"{MISSING}: no sample "


def rows_without_sample(
    files: Sequence[tuple[str, str, FileRecord]], column: str, output: Output, shard_options: Options
) -> int | None:
    """How many failed rows there are, if none of them has a sample in its tar, and no tar has changed since.

    Reads the reasons alone, and looks at each tar without opening it.

    Parameters
    ----------
    files
        Of each file with failed rows its name without suffix, its path and its record.
    column
        Of the vectors that they lack.
    output
        Where the files are.
    shard_options
        For fsspec, of the tars.

    Returns
    -------
    int or None
        None: some of them may be mended, or that is not known.
    """

    def count(file: tuple[str, str, FileRecord]) -> int | None:
        name, path, record = file
        shard = record.shard or {}
        if not shard.get("tar") or is_folder_shard(shard["url"]):
            return None
        reasons = _reasons(path, column, output.options)
        beside = find_errors(output.folder, name, output.options)
        reasons += [] if beside is None else _reasons(beside, column, output.options)
        if not reasons or not all(reason.startswith(_NO_SAMPLE) for reason in reasons):
            return None
        try:
            unchanged = vars(stamp(shard["url"], shard_options)) == shard["tar"]
        except ShardError:  # the run says so
            return None
        return len(reasons) if unchanged else None

    counts = in_threads(count, files)
    found = [count for count in counts if count is not None]
    return sum(found) if len(found) == len(counts) else None


def _reasons(path: str, column: str, options: Options) -> list[str]:
    with faults_told(path), open_parquet(path, options) as file:
        errors = file.read(columns=[ERROR_COLUMN]).column(0).drop_null().to_pylist()
    reasons = [reason_for(column, reasons_in(each)) for each in errors]
    return [reason for reason in reasons if reason is not None]
