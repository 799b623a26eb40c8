"""What a stage is: the base class of the package's own and of a user's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import pyarrow as pa

from curator_dask.errors import ConfigError
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

    def teardown(self) -> None:
        """Called once a worker, when the run has ended."""


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
