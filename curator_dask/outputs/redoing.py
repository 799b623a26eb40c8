"""What is done again to failed rows of an output: the model that made a column, and what else the files have of it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from curator_dask.errors import CuratorError, OutputError
from curator_dask.frames.record import FIELDS, TEXTS, FileRecord
from curator_dask.outputs.conflicts import describe_other_model
from curator_dask.runs.describing import Loaded, load_models
from curator_dask.runs.step import ScoringStep, SharingStep

logger = logging.getLogger("curator_dask")

#: What is said of scores that a retry goes on without: their columns, and why.
NOT_MADE = (
    "no %s of the rows that are tried again: %s. The other rows keep theirs; `score` makes what is missing, once its"
    " files are there as they were"
)


def load_again(
    steps: Sequence[SharingStep], client: Any, most: int, records: Mapping[str, FileRecord]
) -> tuple[tuple[SharingStep, ...], Loaded]:
    """The steps whose models workers could load, and these; of what makes scores any may be lacking, and is named.

    The first is the one that is retried.
    """
    usable = [step for step in steps if step is steps[0] or not isinstance(step, ScoringStep)]
    loaded = load_models(usable, [], client, most)
    for step in steps:
        if step in usable:
            continue
        assert isinstance(step, ScoringStep)
        try:
            more = load_models([step], [], client, most)
            _check_same(more.described, records)
        except CuratorError as error:
            logger.warning(NOT_MADE, ", ".join(step.scores), error)
            continue
        usable.append(step)
        loaded = Loaded({**loaded.described, **more.described}, loaded.workers & more.workers)
    return tuple(usable), loaded


def _check_same(described: Mapping[str, Mapping[str, Any]], records: Mapping[str, FileRecord]) -> None:
    """Raise OutputError where a model is not the one that made its columns of a file."""
    for path, record in records.items():
        for name, info in described.items():
            # Files with other classes under its name are none of the step's (`steps_of`).
            difference = name in record.models and describe_other_model(record.models[name], info)
            if difference:
                raise OutputError(f"{path}: column {name!r} {difference}")


def steps_of(
    steps: Sequence[SharingStep], columns: Collection[str], record: FileRecord
) -> tuple[SharingStep, ...]:
    """The first of some steps, which embeds, and those that made columns of a file."""
    return (steps[0], *(step for step in steps[1:] if _has_made(step, columns, record)))


def _has_made(step: SharingStep, columns: Collection[str], record: FileRecord) -> bool:
    if not {*step.columns} <= {*columns}:
        return False
    if not isinstance(step, ScoringStep):
        return True
    return all(
        record.scores.get(name, {}).get("recipe") == said["recipe"]
        and {said.get(TEXTS, name), *said.get(FIELDS, ())} <= {*columns}
        for name, said in step.scores.items()
    )
