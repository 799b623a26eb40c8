"""What adds columns to files that are there: steps that make them of other columns, and steps that see images."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol, Self, runtime_checkable

from curator_dask.runs.step import ScoringStep, SharingStep
from curator_dask.storage import Options


@runtime_checkable
class SeeingStep(SharingStep, Protocol):
    """A step that adds what it sees in images to files that are there."""

    @property
    def inputs(self) -> Collection[str]:
        """Columns by which it finds and reads the images."""

    @property
    def called(self) -> str:
        """What ``image_error`` calls its columns."""

    @property
    def storage_options(self) -> Options:
        """For fsspec, of the shards."""

    def only(self, columns: Collection[str], others: Mapping[str, str]) -> Self:
        """The same for some of its columns, where rows have others: by name, as `Step.read_by` says of them."""


class MakingStep(SharingStep, ScoringStep, Protocol):
    """A step that makes columns of those that a file has: scores of vectors, or what a table has of its rows."""


#: What makes columns of what a file has, or of what its rows' images show.
AddedStep = MakingStep | SeeingStep


def scores_of(step: AddedStep) -> Mapping[str, Mapping[str, Any]]:
    """What a record says of scores; of what is seen in images it says it elsewhere (`curator_dask.outputs.seen`)."""
    return step.scores if isinstance(step, ScoringStep) else {}
