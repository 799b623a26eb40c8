"""What is done to rows that are tried again: their vectors, and what the output has besides of the same images."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from curator_dask.errors import CuratorError
from curator_dask.frames.record import SETTINGS, FileRecord, inputs_of
from curator_dask.image.classifiers.files import Scorer
from curator_dask.image.classifiers.whole import models_again
from curator_dask.image.embedders.partition import EmbedPartition
from curator_dask.image.embedders.whole import WHOLE_MODELS
from curator_dask.image.statistics.again import statistics_again
from curator_dask.outputs.redoing import NOT_MADE
from curator_dask.runs.step import ScoringStep, SharingStep
from curator_dask.storage import Options
from curator_dask.text.again import scorer_from

logger = logging.getLogger("curator_dask")


def steps_again(
    step: EmbedPartition, given: Sequence[Scorer], records: Mapping[str, FileRecord], options: Options
) -> list[SharingStep]:
    """The step that embeds, and those of what else was made of the images, as far as records say what made it.

    Parameters
    ----------
    step
        Embeds.
    given
        Classifiers that make the columns of their names.
    records
        Of the files, by path.
    options
        For fsspec, of the files.
    """
    seen = models_again(step, records, [*WHOLE_MODELS.values()])
    made: list[SharingStep] = [step, *statistics_again(step, records), *seen]
    made += [each.of_files(records, options) for each in given]
    for column, said in _scores(step.column, records):
        if any(column in each.columns for each in made):
            continue
        try:
            scorer = scorer_from(said[SETTINGS])
            if scorer is None:
                continue
            again = scorer.of_files(records, options)
        except CuratorError as error:
            logger.warning(NOT_MADE, column, error)
            continue
        # A file that is another now may be no head at all: it is not loaded, as no file has scores of it.
        scores = again.scores if isinstance(again, ScoringStep) else {}
        if scores.get(column, {}).get("recipe") == said["recipe"]:
            made.append(again)
        else:
            logger.warning(
                NOT_MADE, column, f"{said.get('head')} is not what it was when it made the scores there"
            )
    return made


def _scores(vectors: str, records: Mapping[str, FileRecord]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The columns of scores of these vectors, and what is said of them, once each, where that makes them again."""
    told = set()
    for record in records.values():
        for column, said in record.scores.items():
            if vectors in inputs_of(said) and said.get(SETTINGS) and (column, said["recipe"]) not in told:
                told.add((column, said["recipe"]))
                yield column, said
