"""Local files that are there whole, or not at all: written beside their name, synced, renamed."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_THREADS = 8
"""That wait for the disk at a time: a file system commits files together that are synced at once."""


class Commits:
    """Syncs and renames files in threads while others are written; when the block ends all are there.

    Raises
    ------
    Exception
        At the end of the block: what the first of them failed with. The others are there.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="curator-commit")
        self._pending: list[Future[None]] = []

    def add(self, file: Any, temporary: Path, target: Path) -> None:
        """Take an open file; it is closed here."""
        self._pending.append(self._pool.submit(_commit, file, temporary, target))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True)
        if error is None:
            for each in self._pending:
                each.result()


def write_local(target: Path, write: Callable[[Any], None], commits: Commits | None = None) -> None:
    """Write a file; under its name it is there whole, or as it was before.

    Parameters
    ----------
    target
        Its folder is made if need be.
    write
        Called with the open file.
    commits
        Has it there later.
    """
    temporary = target.with_name(temporary_name(target.name))
    file = _created(temporary)
    try:
        write(file)
    except BaseException:
        with contextlib.suppress(OSError):  # which must not hide the first error
            file.close()
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if commits is None:
        _commit(file, temporary, target)
    else:
        commits.add(file, temporary, target)


def _created(path: Path) -> Any:
    try:
        return path.open("wb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("wb")


def _commit(file: Any, temporary: Path, target: Path) -> None:
    try:
        with file:
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def temporary_name(name: str) -> str:
    """A hidden name that says which process is writing `name`."""
    return f".{name}.{machine_name()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"


_OF_THE_MACHINE = (
    "pid:[4026531836]"  # Linux's PROC_PID_INIT_INO: where numbers of processes are those of the machine
)


@functools.cache
def machine_name() -> str:
    """By which processes whose numbers mean the same tell each other from all others.

    `host_name`, and a piece of what Linux calls each boot of each machine: containers and machines made of one image
    may have one name, or ``localhost``, and share a folder. A container has that of its machine.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")[:8]
    except (OSError, ValueError):  # no Linux, or a sandbox without it
        boot = ""
    return f"{host_name()}.{boot}" if boot else host_name()


@functools.cache
def host_name() -> str:
    """The host's name, for people; in a container whose processes have numbers of its own with that of these numbers.

    A container may have the name of its host (AWS Batch's jobs have it): one would take what another's processes write
    for a dead one's.
    """
    try:
        numbers = str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # no Linux
        numbers = _OF_THE_MACHINE
    own = "" if numbers == _OF_THE_MACHINE else f".{numbers.strip('pid:[]')}"
    return f"{socket.gethostname()}{own}"


def is_here(note: Mapping[str, Any]) -> bool | None:
    """Whether the number of a process that a note names is one of this machine's.

    Parameters
    ----------
    note
        With ``host``, a `host_name`, and ``machine``, a `machine_name`; earlier versions have not written the latter.

    Returns
    -------
    bool or None
        None: it may be, as the names are the same.
    """
    if "machine" in note:
        return bool(note["machine"] == machine_name())
    return None if note.get("host") == host_name() else False
