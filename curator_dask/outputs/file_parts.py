"""Parts of what is done to the files of an output: which files are of a part, and that all parts do the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curator_dask.errors import OutputError
from curator_dask.outputs.conflicts import describe_difference
from curator_dask.outputs.lock import RunLock
from curator_dask.runs.parts import Part
from curator_dask.webdataset.shards import PARTITION


def is_of(part: Part | None, name: str) -> bool:
    """Whether a file is of a part, by the name of its shard, as in the run that wrote it; of None all are.

    Parameters
    ----------
    part
        Of a run.
    name
        Of the file below the output, with ``.parquet`` or without.
    """
    return part is None or part.takes(PARTITION.sub("", name.removesuffix(".parquet")))


def check_parts_at_work(
    lock: RunLock, folder: str, part: Part | None, made: Mapping[str, Mapping[str, Any]]
) -> None:
    """Note what a part makes, and raise OutputError where another is at work that makes the same otherwise.

    Parameters
    ----------
    lock
        Of the part, which is held.
    folder
        That is written to.
    part
        Of the run; None: there are no others.
    made
        By column, what identifies how it is made; JSON-able.
    """
    if part is None:
        return
    for other, said in lock.declare(made).items():
        for name in sorted({*made} & {*said}):
            if difference := describe_difference(said[name], made[name]):
                raise OutputError(
                    f"{folder}: column {name!r} of part {other}, which is at work, {difference}. Give all parts the"
                    " same settings, and machines of one kind, or another path"
                )
