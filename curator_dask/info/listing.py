"""The files of an output with their sizes, by one look at its folder."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass, field
from typing import Any

from curator_dask.errors import OutputError
from curator_dask.frames.parquet import TEMPORARY
from curator_dask.outputs.lock import LOCK_NAME, PARTS_FOLDER, RunLock, part_named, parts_there
from curator_dask.patience import patiently
from curator_dask.storage import Options, filesystem, is_remote, join, read_bytes

#: Below an output, where rows that failed were written once.
_FORMERLY = "_errors/"


@dataclass
class Listing:
    """The files below a folder: names relative to it, and bytes.

    Attributes
    ----------
    parquet, aside, tars
        Files of rows, those of failed rows alone, and tars.
    unread
        Folders that cannot be listed, and why.
    temporary
        What a process was writing.
    lock
        What the note of a run says; empty where there is none.
    """

    parquet: dict[str, int] = field(default_factory=dict)
    aside: dict[str, int] = field(default_factory=dict)
    tars: dict[str, int] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    temporary: list[str] = field(default_factory=list)
    lock: str = ""


def list_output(folder: str, options: Options) -> Listing:
    """Look at a folder; nothing is there where it is not.

    Raises
    ------
    OutputError
        The store does not answer, or the folder cannot be listed.
    """
    found, locks, of_parts = Listing(), list[str](), False
    for name, size in sorted(_sizes(folder, options, found.unread).items()):
        base = name.rpartition("/")[2]
        if name == LOCK_NAME:
            locks.append(_lock(folder, options))
        elif name.startswith(f"{PARTS_FOLDER}/"):
            of_parts = True
        elif base.startswith(LOCK_NAME):
            continue  # of the note, which is written anew all the while
        elif base.startswith(".") and base.endswith(".tmp"):
            found.temporary.append(_left(name))
        elif name.endswith(".parquet"):
            (found.aside if name.startswith(_FORMERLY) else found.parquet)[name] = size
        elif name.endswith(".tar"):
            found.tars[name] = size
    found.lock = ". ".join([*locks, *(_parts(folder, options) if of_parts else [])])
    return found


def _sizes(folder: str, options: Options, unread: dict[str, str]) -> dict[str, int]:
    if not is_remote(folder):
        return dict(_walk(folder, unread))
    try:
        fs, path = filesystem(folder, options)
        found: dict[str, Any] = patiently(lambda: fs.find(path, detail=True), folder)
    except FileNotFoundError:
        return {}
    except Exception as error:  # a store's own, of many types
        raise OutputError(
            f"{folder}: cannot be listed: {error!r}. Check the address and storage_options"
        ) from error
    start = path.rstrip("/")
    return {name.removeprefix(start).lstrip("/"): int(said.get("size") or 0) for name, said in found.items()}


def _walk(folder: str, unread: dict[str, str]) -> list[tuple[str, int]]:
    def note(error: OSError) -> None:
        name = os.path.relpath(error.filename, folder)
        if name == "." and not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise OutputError(f"{folder}: cannot be listed: {error.strerror}") from error
        if name != ".":
            unread[f"{name}/"] = f"cannot be listed: {error.strerror}"

    found: list[tuple[str, int]] = []
    for root, _, names in os.walk(folder, onerror=note):
        inside = os.path.relpath(root, folder)
        for name in names:
            size = 0
            with contextlib.suppress(OSError):  # a link to nothing: its reader says it
                size = os.stat(os.path.join(root, name)).st_size  # noqa: PTH116, PTH118
            found.append((name if inside == "." else f"{inside}/{name}", size))
    return found


def _lock(folder: str, options: Options) -> str:
    try:
        RunLock(folder, options).check()
    except OutputError as error:
        return f"{error}. What is said here may change meanwhile"
    said: Any = None
    with contextlib.suppress(Exception):  # cut, or gone by now
        said = json.loads(read_bytes(join(folder, LOCK_NAME), options))
    who = ""
    if isinstance(said, dict):
        who = f", process {said.get('pid')} on {said.get('host')}"
        with contextlib.suppress(ValueError, TypeError, OverflowError, OSError):  # no time at all
            since = time.localtime(float(said["since"]))
            who += f", since {time.strftime('%Y-%m-%d %H:%M:%S', since)}"
    return (
        f"{LOCK_NAME} was left by a run that is dead{who}: it did not end by itself, so files may be missing. The same"
        " command again does the rest"
    )


def _parts(folder: str, options: Options) -> list[str]:
    """Which parts of a run are written, and which were killed."""
    there, said = parts_there(folder, options), []
    if there.living:
        names = ", ".join(map(str, there.living))
        said.append(f"part {names} is being written there: what is said here may change meanwhile")
    dead = [str(part) for name in there.dead if (part := part_named(name)) is not None]
    if dead:
        said.append(
            f"part {', '.join(dead)} was left by a run that is dead: files may be missing. The same command again does"
            " the rest, with --part or without"
        )
    return said


def _left(name: str) -> str:
    match = TEMPORARY.match(name.rpartition("/")[2])
    return f"{name} (process {match['pid']} on {match['host']})" if match else name
