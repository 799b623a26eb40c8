"""One run at a time writes to an output.

Two runs would not damage a file, since each is renamed into place, but they would do all work twice, and the
one would remove what the other has just written of the same rows in other partitions. So a run leaves a note in
the folder while it lasts, renews it every few seconds, and refuses to start beside a living one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from curator_dask.errors import OutputError
from curator_dask.storage import Options, is_remote, join, read_bytes, remove, write_bytes

logger = logging.getLogger("curator_dask")

#: Hidden, so that readers of a folder of Parquet files pass over it.
LOCK_NAME = ".curator_dask-run.json"

_TEMPORARY = re.compile(rf"{re.escape(LOCK_NAME)}\.[0-9a-f]{{8}}\.tmp")

#: Seconds between two renewals of the note, and after which the note of a run on another machine counts as left
#: behind. Between them lies what clocks may differ by, and a store may be slow.
RENEW_SECONDS = 20.0
STALE_SECONDS = 120.0

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

    Raises
    ------
    OutputError
        On entering: another run is writing there, or the folder cannot be written to.
    """

    def __init__(self, folder: str, options: Options = None) -> None:
        self._folder, self._options = folder, options
        self._url = join(folder, LOCK_NAME)
        self._note = {
            "run": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process_started": psutil.Process().create_time(),
            "since": time.time(),
        }
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="curator_dask-lock", daemon=True)

    def check(self) -> None:
        """Raise OutputError where another run is writing there."""
        other = self._read()
        if other is not None and _is_alive(other):
            raise OutputError(self._taken(other))

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
        self._sweep()
        self._thread.start()
        return self

    def _sweep(self) -> None:
        """Remove what runs that were killed have left of their notes: such a file else lasts for a moment."""
        if is_remote(self._folder):
            return
        for path in Path(self._folder).glob(f"{LOCK_NAME}.*.tmp"):
            with contextlib.suppress(OSError):
                if _TEMPORARY.fullmatch(path.name) and time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()

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
            with contextlib.suppress(Exception):  # left behind it counts as stale soon
                remove(self._url, self._options)

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            try:
                note = self._read()
                if note is not None and note.get("run") != self._note["run"]:
                    logger.warning("%s", self._taken(note))
                    return
                self._write()
            except Exception as error:  # the run itself will say it if the folder is gone
                logger.debug("%s could not be renewed: %r", self._url, error)

    def _read(self) -> dict[str, Any] | None:
        try:
            note = json.loads(read_bytes(self._url, self._options))
        except Exception:  # not there, cut, or no answer, which the writing will say
            return None
        return note if isinstance(note, dict) else None

    def _write(self, new: bool = False) -> None:
        data = json.dumps({**self._note, "seen": time.time()}).encode()
        if is_remote(self._url):
            write_bytes(self._url, data, self._options)
            return
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
        except OSError:  # not every file system has links
            return False
        return True

    def _taken(self, note: Mapping[str, Any]) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(note.get("since", 0))))
        return (
            f"{self._folder}: another run is writing there, process {note.get('pid')} on {note.get('host')}, since"
            f" {since}. Wait until it has ended, or write to another path. If it is dead, {LOCK_NAME} in that folder"
            f" is out of date {STALE_SECONDS:g} s after its last sign of life, or can be removed"
        )


def _is_alive(note: Mapping[str, Any]) -> bool:
    if note.get("run") in _ENDED:
        return False
    try:
        if note["host"] == socket.gethostname() and psutil.pid_exists(int(note["pid"])):
            # Numbers of processes are used again.
            age = float(note["process_started"]) - psutil.Process(int(note["pid"])).create_time()
            return bool(abs(age) < 2)
        if note["host"] == socket.gethostname():
            return False
        return time.time() - float(note["seen"]) < STALE_SECONDS
    except (KeyError, TypeError, ValueError, psutil.Error):
        return False
