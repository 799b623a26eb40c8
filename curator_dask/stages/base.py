"""What a stage is: the base class of the package's own and of a user's."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, Self, TypeVar

import pyarrow as pa

from curator_dask.errors import ConfigError
from curator_dask.stages.resources import Resources, check_share
from curator_dask.tasks import Task

X = TypeVar("X", bound=Task[Any])
Y = TypeVar("Y", bound=Task[Any])

#: Two lists of names: attributes of a task, and what each of its images has (attributes or fields of the metadata).
Names = tuple[Sequence[str], Sequence[str]]
#: The same, where fields of the metadata may be given with their type, as Arrow has it.
TypedNames = tuple[Sequence[str], Sequence[str] | Mapping[str, pa.DataType]]


class Stage:
    """A step of a pipeline.

    A stage is pickled to the workers, so it holds settings (strings, numbers), never a model.
    """

    #: In messages and in `Pipeline.describe`. The class's name, unless given.
    name: str = ""
    #: What a task with this stage in it takes of a GPU. 0.25: four tasks share one. Ignored on CPUs.
    num_gpus_per_worker: float = 0.0
    #: The same in another form, in the place of `num_gpus_per_worker` where it is given.
    resources: Resources | None = None

    def inputs(self) -> Names:
        """What the stage needs: attributes of its tasks, and of their images."""
        return [], []

    def outputs(self) -> TypedNames:
        """What the stage makes, in the same form. A field of the metadata that is to be written needs its type.

        For example ``["data"], {"brightness": pa.float32()}``. A stage that does not say here that it makes
        ``image_data`` or ``embedding`` does not touch them, and vectors do not depend on it; one that has no
        `outputs` at all may touch everything.
        """
        return [], []

    def removes(self) -> Sequence[str]:
        """What images have no more after this stage."""
        return []

    def with_(
        self,
        name: str | None = None,
        resources: Resources | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> Self:
        """The stage with other settings; this one stays as it is.

        Parameters
        ----------
        name, resources
            In the place of its own; None leaves them.
        batch_size
            For `ImageReaderStage` images in a batch; others work on the batches that they get.
        **options
            Taken for the sake of scripts of NeMo Curator 1.x, and not used.

        Raises
        ------
        ConfigError
            An argument has a value that it cannot have.
        """
        changed = copy.copy(self)
        given = {"name": name, "resources": resources, "batch_size": batch_size}
        for each, value in given.items():
            if value is not None and hasattr(self, each):
                setattr(changed, each, value)
        changed.gpu_share()
        return changed

    def gpu_share(self) -> float:
        """What a task with this stage in it takes of a GPU.

        Raises
        ------
        ConfigError
            It is no number of at least 0, or `resources` are none.
        """
        if self.resources is None:
            check_share("num_gpus_per_worker", self.num_gpus_per_worker)
            return self.num_gpus_per_worker
        if not isinstance(self.resources, Resources):
            raise ConfigError(
                f"resources={self.resources!r}: expected curator_dask.stages.Resources(gpus=...)"
            )
        return self.resources.share

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if name[:1] != "_")
        return f"{type(self).__name__}({settings})"


class ProcessingStage(Stage, ABC, Generic[X, Y]):
    """Turns each task into another, on the workers; subclass it to bring your own stage.

    `process` is given every batch of a shard in turn. Images with an ``error`` are in the batches too: let them
    pass. Images that are left out of the result are left out of the output, and counted as filtered.
    """

    #: Part of the fingerprint. The code of the class is too, but not what it calls: change this when that changes,
    #: so that what is finished is made anew.
    version: str = ""
    #: Whether several threads may be in `process` at once; if not they take turns.
    thread_safe: bool = False

    def setup_on_node(self, node_info: Any = None, worker_metadata: Any = None) -> None:
        """Called once a machine and run, before `setup`: for downloads. The arguments are always None."""

    def setup(self, worker_metadata: Any = None) -> None:
        """Called once a worker and run, before the first task: for models. The argument is always None."""

    @abstractmethod
    def process(self, task: X) -> Y | Iterable[Y] | None:
        """Work on one task, on a worker.

        Returns
        -------
        A task, several (a list or a generator), or None to leave all of it out.
        """

    def process_batch(self, tasks: Sequence[X]) -> Iterable[Y]:
        """Work on several tasks.

        A stage that overrides it gets its tasks here, one at a time, and `process` is not called.
        """
        for task in tasks:
            yield from as_several(self.process(task))

    def teardown(self) -> None:
        """Called once a worker, when the run has ended."""


class CompositeStage(ProcessingStage[X, Y], ABC):
    """Stands for several stages that follow one another: a pipeline takes these in its place."""

    #: By the name of a stage, what `Stage.with_` is given for it.
    _changes: tuple[Mapping[str, Mapping[str, Any]], ...] = ()

    @abstractmethod
    def decompose(self) -> Sequence[Stage]:
        """The stages."""

    def with_(self, stage_with_dict: Mapping[str, Mapping[str, Any]]) -> Self:  # type: ignore[override]
        """The stage with other settings of those that it stands for.

        Parameters
        ----------
        stage_with_dict
            By the name of such a stage, arguments of its `Stage.with_`.
        """
        changed = copy.copy(self)
        changed._changes = (*self._changes, stage_with_dict)
        return changed

    def parts(self) -> list[Stage]:
        """The stages, with the settings of `with_`.

        Raises
        ------
        ConfigError
            There is none of such a name.
        """
        stages = list(self.decompose())
        for changes in self._changes:
            names = [names_of(stage) for stage in stages]
            if unknown := sorted(set(changes) - set(names)):
                raise ConfigError(f"stage {names_of(self)}: with_: expected of {names}, found {unknown}")
            stages = [stage.with_(**changes.get(names_of(stage), {})) for stage in stages]
        return stages

    def process(self, task: X) -> Y | Iterable[Y] | None:
        """Not called: a pipeline takes what `decompose` gives.

        Raises
        ------
        ConfigError
            Always.
        """
        raise ConfigError(
            f"stage {names_of(self)}: add it to a pipeline, or call process() of what decompose() gives"
        )


def as_several(made: Any) -> Iterable[Any]:
    """What `ProcessingStage.process` has given, as a series of tasks."""
    if made is None:
        return ()
    return made if isinstance(made, Iterable) and not isinstance(made, Task) else (made,)


def makes_pixels_or(stage: Stage, field: str) -> bool:
    """Whether a stage may change an image's pixels, or a field: it says so in `outputs`, or says nothing there."""
    says = type(stage).outputs is not Stage.outputs
    return not says or bool({"image_data", field} & image_outputs(stage).keys())


def names_of(stage: Stage) -> str:
    """The name by which messages speak of a stage."""
    return stage.name or type(stage).__name__


def image_inputs(stage: Stage) -> list[str]:
    """What a stage needs of each image.

    Raises
    ------
    ConfigError
        What its `Stage.inputs` gives is not of the form.
    """
    return list(_second(stage, "inputs", stage.inputs()))


def image_outputs(stage: Stage) -> dict[str, pa.DataType | None]:
    """What a stage makes of each image, with the types that it gives.

    Raises
    ------
    ConfigError
        What its `Stage.outputs` gives is not of the form.
    """
    names = _second(stage, "outputs", stage.outputs())
    made = dict(names) if isinstance(names, Mapping) else dict.fromkeys(names)
    for name, kind in made.items():
        if kind is not None and not isinstance(kind, pa.DataType):
            raise ConfigError(
                f"stage {names_of(stage)}: outputs() gives {name!r} the type {kind!r}; expected one of pyarrow's, such"
                " as pa.float32()"
            )
    return made


def _second(stage: Stage, what: str, given: Any) -> Any:
    """The names that images have, of what `Stage.inputs` or `Stage.outputs` gives."""
    is_pair = isinstance(given, tuple | list) and len(given) == 2
    if is_pair and all(isinstance(names, Iterable) and not isinstance(names, str) for names in given):
        return given[1]
    raise ConfigError(
        f"stage {names_of(stage)}: {what}() gives {given!r}; expected two lists of names: of tasks, and of their"
        " images, as in ['data'], ['image_data']"
    )
