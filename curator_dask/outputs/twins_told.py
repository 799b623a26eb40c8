"""What is told of duplicates whose better twin does not pass: by an export, and later of one."""

from __future__ import annotations

import json

from curator_dask.storage import Options, join, read_bytes

#: Ends the name of the folder beside the tars of an export; and in it, what says of which export they are.
SUFFIX, NOTE = ".export", "run.json"
#: Of its settings: rows that are lost for a twin that does not pass, and those that stay in its place.
TWINS = "twins"


def twins_told(lost: int, staying: int) -> list[str]:
    """The lines on rows that are lost for a better twin that does not pass, and on those that stay in its place."""
    lines = []
    if lost:
        rows = "1 row that passes goes" if lost == 1 else f"{lost:,} rows that pass go"
        lines.append(
            f"{rows} for a better twin that does not pass itself, and nothing of these groups is exported. Find the"
            " duplicates of the rows that pass (filter, then dedup of these), or let the best of a group that pass"
            " stay: next_best=True (--next-best)"
        )
    if staying:
        rows = "1 row stays" if staying == 1 else f"{staying:,} rows stay"
        lines.append(f"{rows} in the place of a better twin that does not pass (next_best)")
    return lines


def twins_noted(path: str, options: Options) -> list[str]:
    """The same lines of the export that is in a folder; none where nothing is noted."""
    try:
        note = json.loads(read_bytes(join(f"{path}{SUFFIX}", NOTE), options))
        lost, staying = map(int, (note["settings"] or {}).get(TWINS, (0, 0)))
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        return []
    return twins_told(lost, staying)
