"""What of a place that holds samples is looked at, and how it is rewritten: the contract of its kinds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa

from curator_dask.errors import ShardError
from curator_dask.frames.faults import faults_told
from curator_dask.frames.parquet import open_parquet
from curator_dask.outputs.placing import put
from curator_dask.outputs.selecting import Folder
from curator_dask.outputs.taken_down import Marks, kind_of
from curator_dask.outputs.taken_down_told import beside
from curator_dask.removing.asking import Asked
from curator_dask.runs.reports import report_frame
from curator_dask.storage import join

#: The folder, beside what was removed, with the states of tars that were rewritten, till all is done.
MOVED = "moved"


@dataclass(frozen=True)
class Look:
    """The samples of a file or a shard.

    Attributes
    ----------
    marks
        By what they are known.
    table
        What is asked of them, a row each.
    id_col
        Column of the keys in it.
    is_there
        bool (samples,): of which something is still there.
    asks_keys
        Their keys are those that a list has; False: they have others since they were exported.
    """

    marks: Marks
    table: pa.Table
    id_col: str
    is_there: np.ndarray
    asks_keys: bool = True


class Place(Protocol):
    """A folder with samples."""

    @property
    def folder(self) -> Folder:
        """Where it is."""

    @property
    def kind(self) -> str:
        """What it is, in words."""

    @property
    def unit(self) -> str:
        """What is rewritten as one, in words."""

    def names(self) -> list[str]:
        """Of its files, or shards."""

    def look(self, name: str, kinds: Collection[str], asked: Asked) -> Look:
        """What is in one."""

    def open(self) -> AbstractContextManager[Any]:
        """Keep others from writing there."""

    def rewrite(self, name: str, again: Mapping[str, Any]) -> dict[str, Any]:
        """Take out of one what was taken down, and say what came of it; `again` are the new states of tars, by url."""

    def finish(self, removed: int) -> None:
        """Have all that speaks of its files say what is there now."""


def report_of(
    name: str, samples: int, size: int = 0, tar: Mapping[str, Any] | None = None, lost: int = 0
) -> dict[str, Any]:
    """What came of rewriting one: samples that went, bytes that were written, and the states of its tar.

    `lost` are groups of duplicates whose best went.
    """
    counts = {"rows": samples, "failed": 0, "dropped": 0, "reasons": {}, "examples": {}, "remarks": {}}
    return {"name": name, **counts, "bytes": size, "tar": tar, "lost": lost}


def read_some(
    path: str, options: Any, id_col: str, wanted: Sequence[str], kinds: Collection[str], asked: Asked
) -> pa.Table:
    """The rows of a file, with the columns by which they are known and asked, and some more where they are there."""
    with faults_told(path), open_parquet(path, options) as file:
        names = file.schema_arrow.names
        every = {id_col, *wanted, *asked.columns(names), *(name for name in names if kind_of(name) in kinds)}
        return file.read(columns=[name for name in names if name in every])


@dataclass(frozen=True)
class RewriteShard:
    """Takes what was taken down out of a file or shard; a task.

    Attributes
    ----------
    place
        Where it is.
    again
        New states of tars, by url.
    given_up
        It kills workers: it is left as it is, for this reason.
    """

    place: Place
    again: Mapping[str, Any]
    given_up: str | None = None

    def give_up(self, reason: str) -> RewriteShard:
        """The same without the work that kills workers."""
        return replace(self, given_up=reason)

    def __call__(self, name: str) -> pd.DataFrame:
        """Do it; returns the report.

        Raises
        ------
        ShardError
            It cannot be read, or is not what it should be.
        """
        if self.given_up is not None:
            raise ShardError(f"{self.place.folder.file(name)}: {self.given_up}. It is as it was")
        report = self.place.rewrite(name, self.again)
        if (tar := report["tar"]) is not None:  # rows say of which state of their tar they are
            folder = self.place.folder
            digest = hashlib.sha256(tar["url"].encode()).hexdigest()[:32]
            path = join(str(beside(folder.path)), f"{MOVED}/{digest}.json")
            put(path, json.dumps(tar).encode(), folder.options)
        return report_frame(report)
