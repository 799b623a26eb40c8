"""Stages at work on a worker: set up once, fed with a shard after the other, torn down when the run has ended."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import tempfile
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from curator_dask.errors import ConfigError, CuratorError, ShardError
from curator_dask.models.cache import SpecCache
from curator_dask.stages.base import ProcessingStage, names_of
from curator_dask.tasks import Task

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

    stages: tuple[ProcessingStage, ...]
    run: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChainSpec) and self.run == other.run

    def __hash__(self) -> int:
        return hash(self.run)

    def __dask_tokenize__(self) -> tuple[str, str]:
        return (type(self).__name__, self.run)

    def build(self) -> Chain:
        """Set the stages up in this process."""
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
        self.stages = [copy.deepcopy(stage) for stage in spec.stages]
        self._locks = [
            contextlib.nullcontext() if each.thread_safe else threading.Lock() for each in self.stages
        ]
        self._set_up: list[ProcessingStage] = []
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

    def feed(self, tasks: Generator[Task, None, None]) -> Generator[Task, None, None]:
        """What the stages after the first make of its tasks, one after the other."""
        for stage, lock in list(zip(self.stages, self._locks, strict=True))[1:]:
            tasks = _through(stage, lock, tasks)
        return tasks

    def close(self) -> None:
        """Tear the stages down, the last first."""
        for stage in reversed(self._set_up):
            try:
                stage.teardown()
            except Exception:
                logger.warning("stage %s: teardown failed", names_of(stage), exc_info=True)
        self._set_up = []


#: Stages that are set up in this process. A run leaves none behind.
CHAINS: SpecCache[Chain] = SpecCache(capacity=2)


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
    marker.parent.mkdir(mode=0o700, exist_ok=True)
    with FileLock(f"{marker}.lock"):
        if not marker.exists():
            function()
            marker.touch()


def forget_run(run: str) -> None:
    """Tear down what is set up in this process, and remove the note that this machine was."""
    CHAINS.clear()
    for path in (_marker(run), Path(f"{_marker(run)}.lock")):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # other runs have theirs there
        _marker(run).parent.rmdir()


def _marker(run: str) -> Path:
    return Path(tempfile.gettempdir(), f"curator_dask-{os.getuid()}", run)


def _through(
    stage: ProcessingStage, lock: Any, tasks: Generator[Task, None, None]
) -> Generator[Task, None, None]:
    # Closed by name: a traceback would keep what feeds it alive, and its loader busy.
    with contextlib.closing(tasks):
        for task in tasks:
            try:
                if stage.thread_safe:
                    yield from _checked(stage, _each(stage.process(task)))
                    continue
                with lock:
                    made = list(_each(stage.process(task)))
            except (CuratorError, GeneratorExit):
                raise
            except Exception as error:
                raise ShardError(f"{task.task_id}: {_failed(stage, 'process', error)}") from error
            yield from _checked(stage, made)


def _each(made: Any) -> Iterable[Any]:
    if made is None:
        return ()
    return made if isinstance(made, Iterable) and not isinstance(made, Task) else (made,)


def _checked(stage: ProcessingStage, made: Iterable[Any]) -> Iterator[Task]:
    for task in made:
        if not isinstance(task, Task):
            raise ConfigError(
                f"stage {names_of(stage)}: process must give a Task, several, or None; it gave {type(task).__name__}"
            )
        problem = task.problem()
        if problem:
            raise ConfigError(f"stage {names_of(stage)}: {task.task_id}: {problem}")
        yield task


def _guarded(stage: ProcessingStage, what: str, function: Callable[[], None]) -> None:
    try:
        function()
    except CuratorError:
        raise
    except Exception as error:
        raise ConfigError(_failed(stage, what, error)) from error


def _failed(stage: ProcessingStage, what: str, error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f", at line {frames[-1].lineno} of {frames[-1].filename}" if frames else ""
    return f"stage {names_of(stage)}: {what} raised {type(error).__name__}: {error}{where}"
