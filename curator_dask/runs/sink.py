"""Where finished rows go: the contract of a sink, and what a run tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import dask.dataframe as dd
import pandas as pd

from curator_dask.fingerprint import fingerprint
from curator_dask.frames.columns import embedding_columns
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.frames.record import MADE_BY
from curator_dask.rows.known import KnownVectors
from curator_dask.runs.lineage import Lineage
from curator_dask.runs.step import ScoringStep, Step
from curator_dask.runs.summary import SaveSummary
from curator_dask.runs.targets import LateTargets, Target
from curator_dask.storage import Options


@dataclass(frozen=True)
class Job:
    """What is to be done, as a sink needs to know it.

    Attributes
    ----------
    frame
        Not computed.
    lineage
        Its own.
    steps
        That make columns of it.
    described
        What makes each column that a model makes of images (`Step.describe`); of vectors with their length, ``dim``.
    kept
        The columns that are wanted, in their order.
    id_col
        Column of the keys.
    input_options
        For fsspec, where the dataset is in a store.
    """

    frame: dd.DataFrame
    lineage: Lineage
    steps: tuple[Step, ...]
    described: Mapping[str, Mapping[str, Any]]
    kept: tuple[str, ...]
    id_col: str
    input_options: Options = None

    @property
    def models(self) -> dict[str, Mapping[str, Any]]:
        """What makes the columns that are kept and that models make of images."""
        return {name: info for name, info in self.described.items() if name in self.kept}

    @property
    def made(self) -> dict[str, Mapping[str, Any]]:
        """What makes those of them that are vectors."""
        return {name: info for name, info in self.models.items() if "dim" in info}

    @property
    def derived(self) -> tuple[str, ...]:
        """What was made of vectors or pixels besides: functions of the frame, and columns of steps, by name."""
        columns: list[str] = []
        vectors, any_vectors = False, bool(self.described)
        for step in self.steps:
            vectors = vectors or any(name in self.described for name in step.columns)
            # What is seen in the pixels of a failed image is lacking too, whether it is looked at before or after.
            if (vectors and step.needs != {"bytes"}) or (any_vectors and "pixels" in step.needs):
                columns += [name for name in step.columns if name in self.kept and name not in self.described]
        return (*self.lineage.derived, *(name for name in columns if name != ERROR_COLUMN))

    @property
    def scores(self) -> dict[str, Any]:
        """By column of these, what made scores of vectors, or classifies images."""
        models = {name: info for name, info in self.models.items() if name not in self.made}
        return {
            name: {**said, MADE_BY: models[name]} if name in models else said
            for step in self.steps
            if isinstance(step, ScoringStep)
            for name, said in step.scores.items()
            if name in self.kept and self._is_as_made(name)
        }

    @property
    def read_by(self) -> dict[str, str]:
        """By column of these that can be taken over, what decides it besides model and shard.

        Empty where something else than steps and filters came after the model: it may have changed vectors or keys.
        """
        return {
            name: how
            for step in self.steps
            for name, how in step.read_by.items()
            if name in self.kept and self._is_as_made(name)
        }

    def _is_as_made(self, name: str) -> bool:
        """Whether a column has the values that a step gave it, beside the same keys and vectors."""
        return self.lineage.leaves_alone(self._identities | {name}, since="step")

    @property
    def keeps_vectors(self) -> bool:
        """Whether columns of vectors that come with the rows are written as they were read, beside the same keys."""
        return self.lineage.leaves_alone(self._identities)

    @property
    def _identities(self) -> set[str]:
        """Columns of models, and those that say whose they are."""
        return {self.id_col, URL_COLUMN, ERROR_COLUMN, *self.described, *embedding_columns(self.frame._meta)}

    @property
    def followers(self) -> tuple[str, ...]:
        """The columns of models that have their values, and lack them, together with another that is kept."""
        found = []
        for step in self.steps:
            names = [name for name in step.columns if name in self.models]
            if any(name in step.arguments for name in names):
                found += [name for name in names if name not in step.arguments]
        return tuple(found)

    @property
    def arguments(self) -> dict[str, Any]:
        """By column of these, the arguments that make it again."""
        return {
            name: given
            for step in self.steps
            for name, given in step.arguments.items()
            if name in self.described and name in self.kept
        }


@dataclass
class Plan:
    """What a sink has to do of a job.

    Attributes
    ----------
    targets
        One a partition, in the order of the partitions.
    todo
        Numbers of those that are not finished.
    remarks
        What was noticed of the shards of the others, by url and kind.
    writer
        Writes them, on the workers.
    strays
        What holds the same rows in another way, to be removed when all is written.
    finished
        Of the targets that are not done: ``rows``, and ``failed`` of them.
    """

    targets: Sequence[Target]
    todo: Sequence[int]
    writer: Writer
    remarks: Mapping[str, Any] = field(default_factory=dict)
    strays: Sequence[str] = ()
    finished: Sequence[Mapping[str, Any]] = ()

    @property
    def fingerprint(self) -> str:
        """Of all targets together, as they were handed out; empty where some were not, or they are too many."""
        if isinstance(self.targets, LateTargets):
            return self.targets.fingerprint
        return fingerprint({each.name: each.fingerprint for each in self.targets})


@runtime_checkable
class Writer(Protocol):
    """What is done last to the rows of a partition, on the worker that has them: they are written, or collected."""

    def write(self, frame: Any, target: Target) -> dict[str, Any]:
        """Put the rows where the target says, whole or not at all.

        Returns
        -------
        A row: under ``"target"`` the report (`curator_dask.runs.reports.report_of`) as JSON.
        """

    def known(self, target: Target) -> dict[str, Any] | None:
        """What `write` gave when it did a target that is finished; None if it is not, or nothing tells."""

    def reusable(self, target: Target) -> KnownVectors | None:
        """Vectors of the target's rows that are there already; None if there are none."""

    def give_up(self, reason: str) -> Writer:
        """The same for rows that were given up: a rerun is to do them again."""

    def __call__(self, frame: Any, target_frame: pd.DataFrame) -> pd.DataFrame:
        """`write` as a function that Dask maps: the target and the row are frames (`target_frame`)."""


@runtime_checkable
class Sink(Protocol):
    """Puts finished rows somewhere, and knows what is there. `curator_dask.testing.SinkTests` holds the contract."""

    @property
    def place(self) -> str:
        """Where the rows go, for the summary; empty where nothing is written."""

    def open(self) -> AbstractContextManager[Any]:
        """Keep other runs out for as long as the block lasts.

        What it gives may have a method ``check_held``: called with each partition that is done, it raises OutputError
        where another run has come in meanwhile.
        """

    def unwritten(self, lineage: Lineage) -> int:
        """How many partitions probably are to be written, told before the models are loaded: on so many workers."""

    def plan(self, job: Job) -> Plan:
        """What is to be written, what of it is finished, and by what it is written.

        Raises
        ------
        OutputError
            Something would be replaced that must not be.
        """

    def close(self, plan: Plan, summary: SaveSummary) -> None:
        """Called when all of a plan has been tried, and counted in the summary."""
