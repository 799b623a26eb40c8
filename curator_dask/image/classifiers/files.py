"""Scoring the vectors of an output that is there: its files get columns, and keep all that they have."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Protocol, runtime_checkable

from curator_dask.cluster.setup import OpenWorkers
from curator_dask.errors import ConfigError
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.adding import AddedStep, add_columns
from curator_dask.runs.summary import SaveSummary
from curator_dask.storage import Options


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


def score_output(
    path: str | os.PathLike[str],
    classifiers: Sequence[Scorer | Scorers],
    output: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    output_storage_options: Mapping[str, Any] | None = None,
    workers: OpenWorkers = nullcontext,
) -> SaveSummary:
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
    twice = [name for name, count in Counter(each.pred_column for each in every).items() if count > 1]
    if twice or not every:
        raise ConfigError(
            f"classifiers: two make the column {twice[0]!r}: give one another pred_column"
            if twice
            else "no head is given"
        )

    def steps(records: Mapping[str, FileRecord | None]) -> list[AddedStep]:
        return [each.of_files(records, storage_options) for each in every]

    return add_columns(
        os.fspath(path),
        steps,
        None if output is None else os.fspath(output),
        overwrite=overwrite,
        options=storage_options,
        output_options=storage_options if output_storage_options is None else output_storage_options,
        workers=workers,
    )
