"""Phases of a deduplication: each makes files for the next, so what was finished is not done again.

The files are in a folder beside the output, `OUTPUT.work`, and those of a phase in one of its own, whose name ends with
the fingerprint of all that decides what is in them. A file is renamed into place when it is whole: where it is, it is
finished.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import pandas as pd

from curator_dask.cluster.workers import current_client
from curator_dask.errors import OutputError, ShardError
from curator_dask.frames.committing import temporary_name
from curator_dask.runs.reports import report_frame
from curator_dask.runs.settle import file_tasks, run_targets
from curator_dask.runs.summary import SaveSummary
from curator_dask.runs.targets import Target

if TYPE_CHECKING:
    from distributed import Client

#: NumPy has Python parse the head of a file, which in several threads at a time CPython 3.11.7 once ended with
#: "AST constructor recursion depth mismatch".
_HEADS = threading.Lock()
#: Ends the name of the folder of what is between input and output.
WORK_SUFFIX = ".work"


@dataclass(frozen=True)
class Phase:
    """The folder of a phase's files.

    Attributes
    ----------
    folder
        Local, and the same on every worker.
    """

    folder: str

    def path(self, name: str) -> str:
        """Of a file."""
        return os.path.join(self.folder, name)  # noqa: PTH118

    def has(self, name: str) -> bool:
        """Whether the file is there, and so whole."""
        return os.path.exists(self.path(name))  # noqa: PTH110

    def save(self, name: str, array: np.ndarray) -> None:
        """Put an array there."""
        with self.writing(name) as file:
            np.save(file, array)

    def load(self, name: str) -> np.ndarray:
        """An array, mapped into memory."""
        with _HEADS:
            array: np.ndarray = np.load(self.path(name), mmap_mode="r")
        return array

    def vectors(self, name: str, dim: int) -> np.ndarray:
        """Float32 (rows, dim), mapped into memory, of a file that holds nothing else."""
        path = self.path(name)
        rows = os.path.getsize(path) // (4 * dim) if dim else 0  # noqa: PTH202
        if not rows:
            return np.zeros((0, dim), np.float32)
        return np.memmap(path, np.float32, "r", shape=(rows, dim))

    @contextmanager
    def writing(self, name: str) -> Any:
        """A file that has its name once all of it is written."""
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
            Path(self.folder).mkdir(parents=True, exist_ok=True)
            return tempfile.TemporaryFile(dir=self.folder)

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
    """

    label: str
    task: Any
    names: Sequence[str]
    finished: Callable[[str], bool]
    words: Callable[[str], str]

    @property
    def todo(self) -> list[str]:
        """Names of what is not there."""
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
