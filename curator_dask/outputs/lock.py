"""One run at a time writes to an output.

Two runs would not damage a file, since each is renamed into place, but they would do all work twice, and the
one would remove what the other has just written of the same rows in other partitions. So a run leaves a note in
the folder while it lasts, renews it every few seconds, and refuses to start beside a living one.

Parts of a run have other shards each: those of one number of parts stand beside one another, each with a note of its
own, and keep all else out, as all else keeps them out. Whoever comes writes its note first and looks at the others'
then: of two that come at once one at least sees the other.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from curator_dask.errors import ConfigError, OutputError
from curator_dask.frames.committing import host_name, is_here, machine_name
from curator_dask.runs.parts import Part
from curator_dask.storage import Options, is_remote, join, read_bytes, remove, walk, write_bytes

logger = logging.getLogger("curator_dask")

#: Hidden, so that readers of a folder of Parquet files pass over it.
LOCK_NAME = ".curator_dask-run.json"

#: The folder with the notes of parts: so a store is asked for these alone, and not for all files of the output.
PARTS_FOLDER = ".curator_dask-parts"
_PART_NOTE = re.compile(r"(\d+)-of-(\d+)\.json")

_TEMPORARY = re.compile(rf"{re.escape(LOCK_NAME)}\.[0-9a-f]{{8}}\.tmp")

#: Seconds between two renewals of the note, and after which the note of a run on another machine counts as left
#: behind. Between them lies what clocks may differ by, and a store may be slow.
RENEW_SECONDS = 20.0
STALE_SECONDS = 120.0
_LOOK_SECONDS = 2.0  # between two looks at the note of a part that may be dead
_TRIES = 10  # to write a note into a folder that another part, which ends, removes
#: Seconds that a run waits in its end for a store to take its note away: one that does not answer is tried for minutes.
LEAVE_SECONDS = 30.0

#: Runs of this process that have ended: a note of theirs that could not be removed keeps nobody out.
_ENDED: set[str] = set()


class RunLock:
    """Keeps other runs out of an output folder for as long as its ``with`` block lasts.

    Parameters
    ----------
    folder
        Local directory, which must exist, or fsspec URL.
    options
        For fsspec.
    part
        That the run does; others of as many parts may write there.

    Raises
    ------
    OutputError
        On entering: another run is writing there, or the folder cannot be written to.
    """

    def __init__(self, folder: str, options: Options = None, part: Part | None = None) -> None:
        self._folder, self._options, self._part = folder, options, part
        self._name = LOCK_NAME if part is None else _name_of(part)
        self._url = join(folder, self._name)
        self._note = {
            "run": uuid.uuid4().hex,
            "host": host_name(),
            "machine": machine_name(),
            "pid": os.getpid(),
            "process_started": psutil.Process().create_time(),
            "since": time.time(),
        }
        self._seen = time.time()  # when the note was last written
        self._lost = ""  # why it is no more this run that may write
        self._writing = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="curator_dask-lock", daemon=True)

    def check(self) -> None:
        """Raise OutputError where another run is writing there.

        A part that was killed on one machine, and begins again on another, waits until the note that it has left is
        out of date.
        """
        other = self._read()
        if other is not None and _is_alive(other):
            if self._part is None or is_here(other):
                raise OutputError(self._taken(other))
            self._wait_for_its_end(other)
        self._check_others()

    def _wait_for_its_end(self, other: Mapping[str, Any]) -> None:
        """Wait until the note of a part is out of date; an error where it is renewed, for then its job is alive."""
        logger.info(
            "%s: part %s has a note of process %s on %s, %.0f s old: waiting until it is renewed, or %g s old",
            *(self._folder, self._part, other.get("pid"), other.get("host")),
            *(time.time() - float(other["seen"]), STALE_SECONDS),
        )
        end = time.monotonic() + 2 * STALE_SECONDS  # clocks may differ
        while (now := self._read()) is not None and _is_alive(now):
            if now.get("seen") != other.get("seen") or time.monotonic() > end:
                raise OutputError(self._taken(now))
            time.sleep(_LOOK_SECONDS)

    def _check_others(self) -> None:
        """Raise OutputError where a run is writing there that this one cannot stand beside."""
        if self._part is not None:
            other = self._read(LOCK_NAME)
            if other is not None and _is_alive(other):
                raise OutputError(self._taken(other, LOCK_NAME))
        living = parts_there(self._folder, self._options).living
        others = {
            part: note for part, note in living.items() if self._part is None or part.of != self._part.of
        }
        if others:
            part, note = next(iter(others.items()))
            more = f" ({len(others) - 1:,} more)" if len(others) > 1 else ""
            hint = f"Beside it run only other parts of {part.of}"
            raise OutputError(f"{self._taken(note, _name_of(part), f'part {part} of a run{more}')}. {hint}")

    def __enter__(self) -> RunLock:
        self.check()
        try:
            self._write(new=True)
        except OutputError:
            raise
        except Exception as error:  # a store's own, of many types
            said = (error.strerror if isinstance(error, OSError) else None) or repr(error)
            hint = ", or see whether storage_options are right" if is_remote(self._url) else ""
            raise OutputError(
                f"{self._folder}: could not be written: {said}. Give another path{hint}"
            ) from error
        # Of two runs that found no note at the same moment, the later one's is there now.
        other = self._read()
        if other is not None and other.get("run") != self._note["run"]:
            raise OutputError(self._taken(other))
        try:
            self._check_others()
        except OutputError:
            self._remove()
            raise
        self._sweep()
        self._thread.start()
        return self

    def _sweep(self) -> None:
        """Remove what runs that were killed have left of their notes: such a file else lasts for a moment."""
        if self._part is not None:
            return  # others' may be among them
        for name in parts_there(self._folder, self._options).dead:
            with contextlib.suppress(Exception):  # what is left counts as dead the next time, too
                remove(join(self._folder, name), self._options)
        if is_remote(self._folder):
            return
        for path in Path(self._folder).glob(f"{LOCK_NAME}.*.tmp"):
            with contextlib.suppress(OSError):
                if _TEMPORARY.fullmatch(path.name) and time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()
        self._remove_empty()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        _ENDED.add(str(self._note["run"]))
        if not is_remote(self._url):
            self._leave()
            return
        leaving = threading.Thread(target=self._leave, name="curator_dask-lock-leaving", daemon=True)
        leaving.start()
        leaving.join(LEAVE_SECONDS)
        if leaving.is_alive():
            logger.debug("%s: was left behind: the store does not answer", self._url)

    def _leave(self) -> None:
        self._thread.join()
        note = self._read()
        # Of a store that has not answered nothing is known: another run's may be there by now.
        is_own = not is_remote(self._url) if note is None else note.get("run") == self._note["run"]
        if is_own:
            self._remove()

    def _remove(self) -> None:
        with contextlib.suppress(Exception):  # left behind it counts as stale soon
            remove(self._url, self._options)
        self._remove_empty()

    def _remove_empty(self) -> None:
        """Remove the folder of parts' notes once there is none; a store has no folders."""
        if not is_remote(self._folder):
            with contextlib.suppress(OSError):  # not there, or others are in it
                Path(self._folder, PARTS_FOLDER).rmdir()

    def check_held(self) -> None:
        """Raise OutputError where another run has come to write there meanwhile: what is not written yet is its."""
        if self._lost:
            raise OutputError(self._lost)

    def declare(self, made: Mapping[str, Any]) -> dict[Part, Mapping[str, Any]]:
        """Note what a part makes, as JSON has it; what others say that are at work.

        Of two parts that come at once one at least learns of the other.
        """
        self._lost = self._lost or self._why_lost()
        self.check_held()
        self._note["made"] = made
        self._write()
        living = parts_there(self._folder, self._options).living
        return {part: note.get("made") or {} for part, note in living.items() if part != self._part}

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            try:
                self._lost = self._why_lost()
                if self._lost:
                    logger.warning("%s", self._lost)
                    return
                self._write()
            except Exception as error:  # the run itself will say it if the folder is gone
                logger.debug("%s could not be renewed: %r", self._url, error)

    def _why_lost(self) -> str:
        """Why another run may have taken this one for dead, as one that was suspended; else empty."""
        try:
            data = read_bytes(self._url, self._options)
        except FileNotFoundError:
            data = None
        note = None if data is None else _parsed(data)
        away = time.time() - self._seen
        hint = f"This run gave no sign of life for {away:.0f} s, was taken for dead, and ends"
        if note is not None and note.get("run") != self._note["run"]:
            return f"{self._taken(note)}. {hint}"
        if away <= STALE_SECONDS:
            return ""
        if data is None:
            return f"{self._folder}: another run has been writing there, and has removed {self._name}. {hint}"
        try:
            self._check_others()
        except OutputError as error:
            return f"{error}. {hint}"
        return ""

    def _read(self, name: str | None = None) -> dict[str, Any] | None:
        return _read(self._folder, name or self._name, self._options)

    def _write(self, new: bool = False) -> None:
        with self._writing:
            seen = time.time()
            self._write_note(json.dumps({**self._note, "seen": seen}).encode(), new)
            self._seen = seen

    def _write_note(self, data: bytes, new: bool) -> None:
        if is_remote(self._url):
            write_bytes(self._url, data, self._options)
            return
        for left in reversed(range(_TRIES)):
            try:
                if self._part is not None:
                    Path(self._url).parent.mkdir(parents=True, exist_ok=True)
                self._write_local(data, new)
                return
            except FileNotFoundError:
                if not left or self._part is None:
                    raise

    def _write_local(self, data: bytes, new: bool) -> None:
        temporary = Path(f"{self._url}.{self._note['run'][:8]}.tmp")
        try:
            temporary.write_bytes(data)
            if not (new and self._link(temporary)):
                temporary.replace(self._url)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _link(self, temporary: Path) -> bool:
        """Put the note there if none is; of two runs that begin at the same moment one alone does."""
        try:
            os.link(temporary, self._url)
        except FileExistsError:
            other = self._read()
            if other is not None and _is_alive(other):
                raise OutputError(self._taken(other)) from None
            return False
        except FileNotFoundError:
            raise
        except OSError:  # not every file system has links
            return False
        return True

    def _taken(self, note: Mapping[str, Any], name: str = "", who: str = "") -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(note.get("since", 0))))
        name = name or self._name
        if not who:
            who = "another run" if name == LOCK_NAME else f"another run of part {self._part}"
        return (
            f"{self._folder}: {who} is writing there, process {note.get('pid')} on {note.get('host')}, since"
            f" {since}. Wait until it has ended, or write to another path. If it is dead, {name} in that folder"
            f" is out of date {STALE_SECONDS:g} s after its last sign of life, or can be removed"
        )


@dataclass(frozen=True)
class PartsThere:
    """Notes of parts in an output.

    Attributes
    ----------
    living
        What they say, by the part.
    dead
        Names below the output of those that killed runs have left, and of what is no note.
    """

    living: Mapping[Part, Mapping[str, Any]]
    dead: tuple[str, ...]


def parts_there(folder: str, options: Options = None) -> PartsThere:
    """Which parts are written in an output, and which runs of parts were killed there."""
    living: dict[Part, Mapping[str, Any]] = {}
    dead: list[str] = []
    try:
        names = sorted(walk(join(folder, PARTS_FOLDER), options))
    except Exception:  # no answer, which the writing will say
        names = []
    for name in names:
        part = part_named(name)
        note = None if part is None else _read(folder, f"{PARTS_FOLDER}/{name}", options)
        if part is not None and note is not None and _is_alive(note):
            living[part] = note
        elif part is not None or (not is_remote(folder) and _is_old(Path(folder, PARTS_FOLDER, name))):
            dead.append(f"{PARTS_FOLDER}/{name}")
    return PartsThere(living, tuple(dead))


def part_named(name: str) -> Part | None:
    """The part of which a note with this name is; None: it is no note of a part."""
    match = _PART_NOTE.fullmatch(name.rpartition("/")[2])
    try:
        return Part(int(match[1]), int(match[2])) if match else None
    except (ConfigError, ValueError):  # there is no such part
        return None


def _name_of(part: Part) -> str:
    return f"{PARTS_FOLDER}/{part.number}-of-{part.of}.json"


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > STALE_SECONDS
    except OSError:
        return False


def _read(folder: str, name: str, options: Options) -> dict[str, Any] | None:
    try:
        return _parsed(read_bytes(join(folder, name), options))
    except Exception:  # not there, or no answer, which the writing will say
        return None


def _parsed(data: bytes) -> dict[str, Any] | None:
    try:
        note = json.loads(data)
    except ValueError:  # cut
        return None
    return note if isinstance(note, dict) else None


def _is_alive(note: Mapping[str, Any]) -> bool:
    if note.get("run") in _ENDED:
        return False
    try:
        here = is_here(note)
        if here is not False and _is_running(int(note["pid"]), float(note["process_started"])):
            return True
        return not here and time.time() - float(note["seen"]) < STALE_SECONDS
    except (KeyError, TypeError, ValueError):
        return False


def _is_running(pid: int, started: float) -> bool:
    with contextlib.suppress(psutil.Error):  # numbers of processes are used again
        return bool(abs(started - psutil.Process(pid).create_time()) < 2)
    return False
