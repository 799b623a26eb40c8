"""Stages at work on a worker: set up once, fed with a shard after the other, torn down when the run has ended."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import os
import stat
import tempfile
import threading
import traceback
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
from filelock import FileLock

from curator_dask.cache import POSSESSIONS, SpecCache
from curator_dask.cluster.progress import report
from curator_dask.errors import ClusterError, ConfigError, CuratorError, ImageError, ShardError
from curator_dask.stages.base import ProcessingStage, as_several, makes_pixels_or, names_of
from curator_dask.stages.image.embedding import ImageEmbeddingStage
from curator_dask.stages.touching import untouched
from curator_dask.tasks import ImageBatch, Task

logger = logging.getLogger("curator_dask")


@dataclass(frozen=True, eq=False)
class ChainSpec:
    """Stages that are fused into one task, of one run; two are equal if they are of the same run.

    Attributes
    ----------
    stages
        In order; the first reads.
    run
        Name of the run.
    """

    stages: tuple[ProcessingStage[Any, Any], ...]
    run: str

    @classmethod
    def of(cls, stages: Sequence[ProcessingStage[Any, Any]]) -> ChainSpec:
        """The stages for a new run.

        Raises
        ------
        ConfigError
            One of them cannot be sent to a worker.
        """
        for stage in stages:
            try:
                cloudpickle.dumps(stage)
            except Exception as error:
                raise ConfigError(
                    f"stage {names_of(stage)} cannot be sent to the workers: {type(error).__name__}: {error}. A stage"
                    " holds settings; what else it needs is made in setup()"
                ) from error
        return cls(tuple(stages), uuid.uuid4().hex)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChainSpec) and self.run == other.run

    def __hash__(self) -> int:
        return hash(self.run)

    def __dask_tokenize__(self) -> tuple[str, str]:
        return (type(self).__name__, self.run)

    def build(self) -> Chain:
        """Set the stages up in this process.

        Raises
        ------
        ClusterError
            The run has ended meanwhile: this is a task of it that was not cancelled in time.
        """
        if self.run in _ended:
            raise ClusterError(f"run {self.run} has ended; its stages are not set up again")
        return Chain(self)


class Chain:
    """The stages of a run, set up in this process.

    Parameters
    ----------
    spec
        Which stages.

    Raises
    ------
    CuratorError
        A stage cannot be set up.
    """

    def __init__(self, spec: ChainSpec) -> None:
        # Copies: without a cluster these would be the user's own objects, and what setup leaves in them would be
        # pickled with the next run.
        self.stages: list[Any] = copy.deepcopy(list(spec.stages))
        self._locks = [
            contextlib.nullcontext() if each.thread_safe else threading.Lock() for each in self.stages
        ]
        for stage in self.stages[1:]:
            if isinstance(stage, ImageEmbeddingStage):
                stage.decoder = self.stages[0].decoder  # the Pillow reference is resized by Pillow, too
        self._set_up: list[ProcessingStage[Any, Any]] = []
        try:
            once_a_node(spec.run, self._setup_on_node)
            for stage in self.stages:
                self._set_up.append(stage)
                _guarded(stage, "setup", stage.setup)
        except BaseException:
            self.close()
            raise

    def _setup_on_node(self) -> None:
        for stage in self.stages:
            _guarded(stage, "setup_on_node", stage.setup_on_node)

    def feed(
        self, tasks: Generator[Task[Any], None, None], left_by: dict[Any, str]
    ) -> Generator[Task[Any], None, None]:
        """What the stages after the first make of its tasks, one after the other.

        Parameters
        ----------
        tasks
            Of the first stage.
        left_by
            Gets, by the origin of an image that a stage has left out, the stage's name.
        """
        for stage, lock in list(zip(self.stages, self._locks, strict=True))[1:]:
            tasks = _through(stage, lock, tasks, left_by)
        return tasks

    def close(self) -> None:
        """Tear the stages down, the last first."""
        for stage in reversed(self._set_up):
            try:
                stage.teardown()
            except Exception:
                logger.warning("stage %s: teardown failed", names_of(stage), exc_info=True)
        self._set_up = []


#: Stages that are set up in this process. A run leaves none behind, so it is not for the capacity to close them.
CHAINS: SpecCache[Chain] = POSSESSIONS.add("stages", SpecCache(capacity=64))
#: The last runs that have ended.
_ended: deque[str] = deque(maxlen=256)


def once_a_node(run: str, function: Callable[[], None]) -> None:
    """Call a function once on this machine, whichever of its processes comes first; the others wait for it.

    Parameters
    ----------
    run
        What it is done for.
    function
        If it raises it has not been done, and the next process tries.
    """
    marker = _marker(run)
    _own_folder(marker.parent)
    with FileLock(f"{marker}.lock"):
        if not marker.exists():
            function()
            marker.touch()


def end_run(run: str) -> None:
    """Tear down the stages of a run in this process, and remove the note that this machine was set up."""
    _ended.append(run)
    CHAINS.forget(ChainSpec((), run))
    for path in (_marker(run), Path(f"{_marker(run)}.lock")):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


async def end_run_on_worker(run: str) -> None:
    """The same on a Dask worker, where teardown may take its time without holding up the worker's heartbeat."""
    await asyncio.to_thread(end_run, run)


def _marker(run: str) -> Path:
    return Path(tempfile.gettempdir(), f"curator_dask-{os.getuid()}", run)


def _own_folder(folder: Path) -> None:
    """Make a folder of this user's alone: in a folder that all may write to, another might have made it before."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise ClusterError(
            f"{folder}: expected a folder that is this user's and that no other can write to. Remove it, or set TMPDIR"
        )


def _through(
    stage: ProcessingStage[Any, Any],
    lock: Any,
    tasks: Generator[Task[Any], None, None],
    left_by: dict[Any, str],
) -> Generator[Task[Any], None, None]:
    # Closed by name: a traceback would keep what feeds it alive, and its loader busy.
    with contextlib.closing(tasks):
        for task in tasks:
            try:
                if stage.thread_safe and makes_pixels_or(stage, "image_data"):
                    yield from _checked(stage, task, _made(stage, task))
                    continue
                came, origins = _count([task]), _origins([task])
                with lock, untouched(stage, task):
                    made = list(_made(stage, task))
                if (left := _count(made)) < came:
                    report(left_out={names_of(stage): came - left})
                    left_by |= dict.fromkeys(origins - _origins(made), names_of(stage))
            except ImageError as error:  # it would stop the run
                raise ShardError(f"{task.task_id}: stage {names_of(stage)}: {error}") from error
            except (CuratorError, GeneratorExit):
                raise
            except (Exception, SystemExit) as error:
                raise ShardError(f"{task.task_id}: {_failed(stage, 'process', error)}") from error
            yield from _checked(stage, task, made)


def _count(tasks: Iterable[Any]) -> int:
    """Images of some tasks; what is no list is told later, by what takes it."""
    return sum(
        len(task.data) for task in tasks if isinstance(task, ImageBatch) and isinstance(task.data, Sized)
    )


def _origins(tasks: Iterable[Any]) -> set[Any]:
    """By what rows know the images of some tasks."""
    batches = (task.data for task in tasks if isinstance(task, ImageBatch) and isinstance(task.data, Sized))
    return {getattr(image, "origin", None) for data in batches for image in data}


def _made(stage: ProcessingStage[Any, Any], task: Task[Any]) -> Iterable[Any]:
    if type(stage).process_batch is ProcessingStage.process_batch:
        return as_several(stage.process(task))
    return as_several(stage.process_batch([task]))


def _checked(stage: ProcessingStage[Any, Any], source: Task[Any], made: Iterable[Any]) -> Iterator[Task[Any]]:
    for task in made:
        if not isinstance(task, Task):
            raise ConfigError(
                f"stage {names_of(stage)}: process must give a Task, several, or None; it gave {type(task).__name__}"
            )
        task.task_id, task.dataset_name = (
            task.task_id or source.task_id,
            task.dataset_name or source.dataset_name,
        )
        problem = task.problem()
        if problem:
            raise ShardError(f"{task.task_id}: stage {names_of(stage)}: {problem}")
        yield task


def _guarded(stage: ProcessingStage[Any, Any], what: str, function: Callable[[], None]) -> None:
    try:
        function()
    except CuratorError:
        raise
    except Exception as error:
        raise ConfigError(_failed(stage, what, error)) from error


def _failed(stage: ProcessingStage[Any, Any], what: str, error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f", at line {frames[-1].lineno} of {frames[-1].filename}" if frames else ""
    return f"stage {names_of(stage)}: {what} raised {type(error).__name__}: {error}{where}"
