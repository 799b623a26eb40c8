"""Phases of a deduplication: each makes files for the next, so what was finished is not done again.

The files are in a folder beside the output, `OUTPUT.work`, and those of a phase in one of its own, whose name ends with
the fingerprint of all that decides what is in them. A file is renamed into place, or put into a store, when it is
whole: where it is, it is finished.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, Self, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from curator_dask.cluster.workers import current_client
from curator_dask.dedup.arrays import load, mapped, take
from curator_dask.dedup.copies import COPIES
from curator_dask.errors import OutputError, ShardError
from curator_dask.frames.committing import temporary_name
from curator_dask.runs.reports import report_frame
from curator_dask.runs.settle import file_tasks, run_targets
from curator_dask.runs.summary import SaveSummary
from curator_dask.runs.targets import Target
from curator_dask.storage import Options, exists, is_remote, join, upload, walk
from curator_dask.threads import in_threads

if TYPE_CHECKING:
    from distributed import Client

T = TypeVar("T")

#: Ends the name of the folder of what is between input and output.
WORK_SUFFIX = ".work"
#: Of a thread: by folder, names of the files that were there when it was listed.
_LISTED = threading.local()


@dataclass(frozen=True)
class Phase:
    """The folder of a phase's files.

    Attributes
    ----------
    folder
        The same on every worker, or a URL: what is read of it is copied to each worker's disk.
    options
        For fsspec, where it is a URL.
    """

    folder: str
    options: Options = None

    @property
    def is_stored(self) -> bool:
        """Whether it is in a store."""
        return is_remote(self.folder)

    def path(self, name: str) -> str:
        """Path or URL of a file."""
        return join(self.folder, name)

    def has(self, name: str) -> bool:
        """Whether the file is there, and so whole."""
        path = self.path(name)
        if not self.is_stored:
            return os.path.exists(path)  # noqa: PTH110
        listed = _listed().get(self.folder)
        if listed is not None:
            return name in listed
        return path in COPIES or self._asked(lambda: exists(path, self.options))

    @contextmanager
    def listed(self) -> Iterator[None]:
        """In this block a store is asked once for the names of all files that are there, and not for each."""
        if not self.is_stored:
            yield
            return
        _listed()[self.folder] = self._asked(lambda: {*walk(self.folder, self.options)})
        try:
            yield
        finally:
            del _listed()[self.folder]

    def _asked(self, ask: Callable[[], T]) -> T:
        """What a store answers; that it does not is an error that says what to do."""
        try:
            return ask()
        except Exception as error:  # a store's own, of many types
            raise OutputError(
                f"{self.folder}: the store does not answer as it should: {error!r}. Check that all workers reach it"
                " with these storage_options, and run again: what was finished is kept"
            ) from error

    def fetch(self, names: Sequence[str]) -> None:
        """Fetch files of a store side by side, of which each is about to be read."""
        if self.is_stored:
            in_threads(lambda name: self.open(name).close(), names)

    def open(self, name: str, starts: np.ndarray | None = None, size: int = 1) -> BinaryIO:
        """A file, without a buffer; of one in a store a copy.

        Parameters
        ----------
        name
            Of the file.
        starts, size
            int64 (n,): where what is wanted of it begins, so many bytes each: the copy may lack all else. None: all.
        """
        path = self.path(name)
        return COPIES.open(path, self.options, starts, size) if self.is_stored else open(path, "rb", 0)  # noqa: PTH123

    def save(self, name: str, array: np.ndarray) -> None:
        """Put an array there."""
        with self.writing(name) as file:
            np.save(file, array)

    def load(self, name: str) -> np.ndarray:
        """An array, mapped into memory."""
        if self.is_stored:
            with self.open(name) as file:
                return mapped(file)
        return load(self.path(name))

    def load_some(self, name: str, places: np.ndarray) -> np.ndarray:
        """Some rows of an array by their places, in memory; no more of a store's file is fetched."""
        if not self.is_stored:
            return take(self.load(name), places)
        with self.open(name, np.zeros(1, np.int64)) as file:  # its head
            whole = mapped(file)
        row = whole.itemsize * int(np.prod(whole.shape[1:]))
        with self.open(name, whole.offset + row * places, row) as file:
            return take(mapped(file), places)

    def count(self, name: str, dim: int) -> int:
        """How many vectors a file has that holds nothing else."""
        path = self.path(name)
        size = COPIES.size(path, self.options) if self.is_stored else os.path.getsize(path)  # noqa: PTH202
        return size // (4 * dim) if dim else 0

    def vectors(self, name: str, dim: int) -> np.ndarray:
        """Float32 (rows, dim), mapped into memory, of a file that holds nothing else."""
        return self._vectors(name, dim, None)

    def some_vectors(self, name: str, dim: int, places: np.ndarray) -> np.ndarray:
        """The same of some places, in memory; no more of a store's file is fetched."""
        return take(self._vectors(name, dim, places), places)

    def _vectors(self, name: str, dim: int, places: np.ndarray | None) -> np.ndarray:
        rows = self.count(name, dim)
        if not rows:
            return np.zeros((0, dim), np.float32)
        starts = None if places is None else 4 * dim * places[places < rows]
        with self.open(name, starts, 4 * dim) as file:
            return np.memmap(file, np.float32, "r", shape=(rows, dim))

    def table(self, name: str) -> pa.Table:
        """A table of Parquet."""
        with self.open(name) as file:
            return pq.read_table(file if self.is_stored else self.path(name), partitioning=None)

    @contextmanager
    def writing(self, name: str) -> Any:
        """A file that has its name once all of it is written."""
        if self.is_stored:
            with self._putting(name) as file:
                yield file
            return
        target = Path(self.path(name))
        temporary = target.with_name(temporary_name(f"{name}.parquet"))  # what `remove_leftovers` knows
        try:
            with self.told(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                with temporary.open("w+b") as file:
                    yield file
                temporary.replace(target)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    @contextmanager
    def _putting(self, name: str) -> Iterator[Any]:
        """The same in a store; what was written stays here as a copy."""
        url = self.path(name)
        with self.told(url):
            handle, path = tempfile.mkstemp(dir=COPIES.place())
        try:
            with self.told(path), open(handle, "w+b") as file:  # noqa: PTH123
                yield file
            try:
                upload(url, path, self.options)
            except Exception as error:  # a store's own, of many types
                raise OutputError(
                    f"{url}: could not be written: {error!r}. See whether storage_options are right and the store takes"
                    " files, and run again: what was finished is kept"
                ) from error
        except BaseException:
            with suppress(OSError):
                Path(path).unlink(missing_ok=True)
            raise
        COPIES.take(url, Path(path))

    def save_parts(self, name: str, kind: np.dtype[Any], parts: Iterable[np.ndarray]) -> None:
        """Put an array there whose rows come some at a time."""
        with self.writing(name) as file:
            head = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False}
            count = 0
            np.lib.format.write_array_header_1_0(file, {**head, "shape": (count,)})
            for part in parts:
                file.write(part.tobytes())
                count += len(part)
            file.seek(0)  # NumPy leaves room for a longer number
            np.lib.format.write_array_header_1_0(file, {**head, "shape": (count,)})

    def scratch(self) -> Any:
        """A file without a name, for what is too much for the memory: it goes with who has opened it."""
        with self.told(self.folder):
            place = COPIES.place() if self.is_stored else Path(self.folder)
            place.mkdir(parents=True, exist_ok=True)
            return tempfile.TemporaryFile(dir=place)

    @contextmanager
    def told(self, target: str | Path) -> Iterator[None]:
        """What cannot be written is an error that says what to do."""
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"{target}: could not be written: {error.strerror or error}. Make room (the files between input and"
                " output take twice the size of the vectors), and run again: what was finished is kept"
            ) from error


def _listed() -> dict[str, set[str]]:
    found: dict[str, set[str]] = _LISTED.__dict__.setdefault("folders", {})
    return found


class PhaseTask(Protocol):
    """What makes the files of a phase."""

    given_up: str | None

    def make(self, name: str) -> int:
        """Make one; returns how many rows it has."""


@dataclass(frozen=True)
class Job:
    """What a phase is to make.

    Attributes
    ----------
    label
        What messages call it.
    task
        Has a method ``make``, called on a worker with a name.
    names
        Of what it makes.
    finished
        Whether one of them is there.
    words
        What messages call each of them: the file that is read for it. A name is in none: most are fingerprints.
    phase
        Where they are; a store is asked once for all. None: each is looked at.
    """

    label: str
    task: Any
    names: Sequence[str]
    finished: Callable[[str], bool]
    words: Callable[[str], str]
    phase: Phase | None = None

    @property
    def todo(self) -> list[str]:
        """Names of what is not there."""
        with nullcontext() if self.phase is None else self.phase.listed():
            return [name for name in self.names if not self.finished(name)]


@dataclass(frozen=True)
class Run:
    """Tasks of phases as `run_targets` takes them.

    Attributes
    ----------
    tasks
        By label.
    given_up
        Why the work is not done; None: it is.
    """

    tasks: Mapping[str, Any]
    given_up: str | None = None

    def give_up(self, reason: str) -> Self:
        """The same without the work that kills workers."""
        return replace(self, given_up=reason)

    def __call__(self, item: tuple[str, str]) -> pd.DataFrame:
        """Make one file, by its label and name."""
        label, name = item
        if self.given_up is not None:
            raise ShardError(self.given_up)
        rows = self.tasks[label].make(name)
        counts = {"failed": 0, "dropped": 0, "reasons": {}, "examples": {}}
        return report_frame({"name": name, "rows": rows, **counts})


def run_phase(
    label: str,
    task: Any,
    names: Sequence[str],
    finished: Callable[[str], bool],
    output: str,
    workers: Callable[[], Client | None] = current_client,
    words: Callable[[str], str] = "part {}".format,
) -> int:
    """Make the files of one phase that are not there, and return how many; see `run_phases`."""
    return run_phases([Job(label, task, names, finished, words)], output, workers)[label]


def run_phases(
    jobs: Sequence[Job],
    output: str,
    workers: Callable[[], Client | None] = current_client,
    remove: str | None = None,
) -> dict[str, int]:
    """Make the files of phases that do not wait for one another, and are not there; those of the first are begun first.

    Parameters
    ----------
    jobs
        What is to be made.
    output
        For errors.
    workers
        Gives the client of the cluster to work on.
    remove
        What is to be removed where it fails again and again; None: `output` with `WORK_SUFFIX`.

    Returns
    -------
    dict
        By label, how many were made.

    Raises
    ------
    ShardError
        Some could not be made, and why.
    """
    todo = [(job, name) for job in jobs for name in job.todo]
    if todo:
        client = workers()
        summary = SaveSummary(output, opened=False)
        names = [f"{job.label}: {job.words(name)}" for job, name in todo]
        targets = [Target(name, output, "", None, None, None) for name in names]
        run = Run({job.label: job.task for job in jobs})
        items = [(job.label, name) for job, name in todo]
        token = f"dedup-{jobs[0].label.split()[0]}"
        of = f"{' and '.join(dict.fromkeys(job.label for job, _ in todo))}: files"
        run_targets(file_tasks(run, items, token, client), client, targets, summary, of=of)
        failed = summary.failed_shards
        if failed:
            job, name = todo[next(at for at, each in enumerate(names) if each in failed)]
            words = job.words(name)
            reason = failed[f"{job.label}: {words}"]
            raise ShardError(
                _told(job.label, len(failed), len(todo), words, reason, remove or f"{output}{WORK_SUFFIX}")
            )
    return {job.label: sum(job is each for each, _ in todo) for job in jobs}


def _told(label: str, failed: int, count: int, words: str, reason: str, remove: str) -> str:
    """What has failed, and what to do."""
    many = f"{failed} of {count} parts failed, the first: " if count > 1 else ""
    if reason.startswith(words):  # it is the file that is read: to run again alone is of no use
        return f"{label}: {many}{reason}. What was finished is kept"
    return (
        f"{label}: {many}{words}: {reason}. What was finished is kept: run again. Where it fails again in the same way,"
        f" remove {remove} first, which is made anew"
    )
