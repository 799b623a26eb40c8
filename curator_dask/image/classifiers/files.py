"""Scoring the vectors of an output that is there: its files get columns, and keep all that they have."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from curator_dask.cluster.setup import OpenWorkers
from curator_dask.errors import ConfigError
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.adding import AddedStep, add_columns
from curator_dask.outputs.placing import locate
from curator_dask.runs.parts import Part
from curator_dask.runs.summary import SaveSummary
from curator_dask.storage import Options
from curator_dask.words import counted

_LANGUAGES = 3  # that a summary names


class Scorer(Protocol):
    """What makes scores of the vectors in files, or sees something in the images of their rows."""

    @property
    def pred_column(self) -> str:
        """Of the scores."""

    def of_files(self, records: Mapping[str, FileRecord | None], options: Options = None) -> AddedStep:
        """The step for files, by what made them; `options` are for fsspec."""


@runtime_checkable
class Scorers(Protocol):
    """What makes several columns, each of which is made by itself where it alone is missing."""

    def scorers(self) -> Sequence[Scorer]:
        """What makes each."""


@runtime_checkable
class PlacedScorer(Protocol):
    """A scorer that puts something beside the folder to which the files go."""

    def of_files_to(
        self, records: Mapping[str, FileRecord | None], options: Options, folder: str, folder_options: Options
    ) -> AddedStep:
        """The step for files, by what made them, that go to a folder."""


@runtime_checkable
class CountsCaptions(Protocol):
    """What measures captions, and can say of what."""

    @property
    def text(self) -> str:
        """The captions' column."""

    def count_captions(self, paths: Sequence[str], options: Options = None) -> dict[str, Any]:
        """Of files that have its columns: ``rows``, ``with_caption``, and ``languages`` if asked for."""


@dataclass
class ScoreSummary(SaveSummary):
    """What came of `score_output`.

    Attributes
    ----------
    measured_captions
        By column of captions that were measured, over all files, those that were finished before among them: ``rows``;
        how many are ``with_caption``, one that is not blank; and, where it was asked for, how many are in each of the
        ``languages``, the commonest first.
    captions_alone
        Nothing but captions was measured: whether images have a vector is not of interest.
    """

    measured_captions: dict[str, dict[str, Any]] = field(default_factory=dict)
    captions_alone: bool = False

    __str__ = SaveSummary.__str__

    def _own_lines(self) -> list[str]:
        said = [_captions_line(column, said) for column, said in self.measured_captions.items()]
        return [*super()._own_lines(), *said]

    def _none_line(self) -> list[str]:
        return [] if self.captions_alone else super()._none_line()


def _captions_line(column: str, said: Mapping[str, Any]) -> str:
    rows, found = said["rows"], said["with_caption"]
    languages = list(said.get("languages", {}).items())
    shares = ", ".join(f"{name} {count / found:.1%}" for name, count in languages[:_LANGUAGES])
    more = f", {counted(len(languages) - _LANGUAGES, 'other')}" if len(languages) > _LANGUAGES else ""
    of_them = f"; of these {shares}{more}" if shares else ""
    return f"  {column}: {counted(found, 'row')} with a caption, {rows - found:,} without or blank{of_them}"


def score_output(
    path: str | os.PathLike[str],
    classifiers: Sequence[Scorer | Scorers],
    output: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    output_storage_options: Mapping[str, Any] | None = None,
    workers: OpenWorkers = nullcontext,
    part: tuple[int, int] | str | None = None,
) -> ScoreSummary:
    """Score the vectors of an output: no vector is changed, and no tar is opened but for statistics of images.

    Each file is written whole or not at all. A second call does only what is missing: files, and heads.

    Parameters
    ----------
    path
        What `save_metadata` or ``curator-dask embed`` wrote, or other Parquet files with lists of float32.
    classifiers
        The heads, each with a column of its own; `curator_dask.text.ClipScore` is one, too, and `TextStatistics`
        stand for several, which need no vectors. So does `curator_dask.image.statistics.ImageStatistics`: the rows find
        their images by shard and key, and each is read and decoded once.
    output
        Where the files go with their scores; None: in the place of those that are there.
    overwrite
        Replace scores of other heads under these names, and columns and files that others made.
    storage_options, output_storage_options
        For fsspec, where `path` (or its shards) and `output` are URLs; without the second those of `path`, too.
    workers
        Opens the cluster to work on, once there are files that lack scores; else it is the one that is there.
    part
        Score the files of one part of the shards, as ``(3, 8)`` or ``"3/8"``, counted from 0, beside others that do
        theirs (`ImageTextPairDataset.save_metadata`).

    Raises
    ------
    ConfigError
        A head is for other vectors than these; two make one column.
    OutputError
        There are no such vectors, or something would be replaced.
    WeightsError
        A head cannot be read.
    """
    every: list[Scorer] = []
    for given in classifiers:
        every += given.scorers() if isinstance(given, Scorers) else [given]
    only = Part.of_given(part)
    whole = [each for each in classifiers if only is not None and getattr(each, "of_all_rows", False)]
    if whole:
        raise ConfigError(
            f"part {only}: {type(whole[0]).__name__} counts the rows of all parts together: call it without part, once"
            " all are done"
        )
    twice = [name for name, count in Counter(each.pred_column for each in every).items() if count > 1]
    if twice or not every:
        raise ConfigError(
            f"classifiers: two make the column {twice[0]!r}: give one another pred_column"
            if twice
            else "no head is given"
        )

    target_options = storage_options if output_storage_options is None else output_storage_options
    target = None if output is None else locate(os.fspath(output), target_options)

    def steps(records: Mapping[str, FileRecord | None]) -> list[AddedStep]:
        return [
            each.of_files_to(records, storage_options, target, target_options)
            if target is not None and isinstance(each, PlacedScorer)
            else each.of_files(records, storage_options)
            for each in every
        ]

    measures = [each for each in classifiers if isinstance(each, CountsCaptions)]
    summary = ScoreSummary("", opened=False, captions_alone=len(measures) == len(classifiers))

    def look(paths: Sequence[str]) -> None:
        for each in measures:
            found = each.count_captions(paths, storage_options if target is None else target_options)
            known = summary.measured_captions.get(each.text, {})
            summary.measured_captions[each.text] = {**known, **found}

    add_columns(
        os.fspath(path),
        steps,
        target,
        overwrite=overwrite,
        options=storage_options,
        output_options=target_options,
        workers=workers,
        summary=summary,
        look=look,
        part=only,
    )
    return summary
