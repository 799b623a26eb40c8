"""Where it is noted what was taken down of a folder, and how much it was."""

from __future__ import annotations

from curator_dask.frames.parquet import read_record
from curator_dask.storage import Options, exists, is_remote, join, walk
from curator_dask.threads import in_threads

#: Ends the name of the folder beside another with what was taken down there.
SUFFIX = ".removed"
#: In it, while files are rewritten.
PENDING = "pending.json"


def beside(folder: str) -> str | None:
    """The folder beside one; None: it is all of a bucket, and has none."""
    if is_remote(folder) and "/" not in folder.partition("://")[2]:
        return None
    return f"{folder.rstrip('/')}{SUFFIX}"


def count_taken_down(folder: str, options: Options = None) -> tuple[int, bool]:
    """How many samples were taken down of a folder; and whether that was interrupted."""
    place = beside(folder)
    if place is None:
        return 0, False
    paths = [join(place, name) for name in walk(place, options) if name.endswith(".parquet")]
    records = in_threads(lambda path: read_record(path, options), paths)
    samples = sum(int(((each and each.report) or {}).get("samples", 0)) for each in records)
    return samples, bool(paths) and exists(join(place, PENDING), options)
