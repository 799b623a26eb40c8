"""`Selectable`: which rows of a dataset are left."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from typing import Protocol, Self

import dask.dataframe as dd

from curator_dask.arguments import called_as
from curator_dask.datasets.top import find_best
from curator_dask.errors import OutputError
from curator_dask.outputs.removed import leave_out
from curator_dask.rows.where import Where
from curator_dask.runs.filtering import BestRows, FilterRows
from curator_dask.runs.lineage import trace
from curator_dask.runs.step import Step
from curator_dask.storage import Options, absolute

logger = logging.getLogger("curator_dask")


class Duplicates(Protocol):
    """What was found of duplicates."""

    @property
    def path(self) -> str | None:
        """Folder where it was saved; None: not yet."""

    @property
    def path_options(self) -> Options:
        """For fsspec, where that is a URL."""


class Selectable(ABC):
    """A base of datasets whose rows are told apart by key and shard."""

    metadata: dd.DataFrame
    id_col: str

    @abstractmethod
    def apply(self, step: Step) -> Self:
        """The dataset with what a step does to its rows."""

    @called_as("filter('width >= 256 and height >= 256')")
    def filter(self, where: str) -> Self:
        """The dataset with the rows alone that pass a condition; nothing is computed yet.

        Put after an embedder or a classifier it may name what they make; put before, only rows that pass are embedded.

        Parameters
        ----------
        where
            As behind SQL's WHERE, evaluated by DuckDB on one row at a time: ``"score > 5.5 and width >= 256"``. Null
            and NaN never pass. Rows that are left out are counted in the summary.

        Raises
        ------
        ConfigError
            It is no such condition, or names a column that there is not.
        """
        step = FilterRows(Where(where), self.id_col)
        step(self.metadata._meta)  # on no rows: is every column there, of a type that fits?
        return self.apply(step)

    @called_as("top('width', 1000) or top('width', fraction=0.3)")
    def top(
        self,
        column: str,
        most: float | None = None,
        *,
        fraction: float | None = None,
        n: int | None = None,
    ) -> Self:
        """The dataset with its best rows by a column alone: those with the largest values, over all shards.

        The column is read of all rows now, by 8 bytes a row, to know where the best end; all else stays lazy. Rows of
        one value go by their key; a row without a value (null, NaN) is never among the best.

        Parameters
        ----------
        column
            Of numbers. It was saved before, or is made of vectors that were: where images would be opened for it, top
            says so instead.
        most
            A whole number of at least 2 is `n`, up to 1 it is `fraction`, as in ``filter --top``.
        fraction
            Of the rows with a value, this share of 1: to the nearest row, a half to the even number.
        n
            So many rows, or all with a value where there are fewer.

        Raises
        ------
        ConfigError
            There is no such column of numbers, or its images would have to be opened first.
        """
        return self.apply(find_best(self.metadata, self.id_col, column, most, fraction, n))

    def without(
        self, duplicates: Duplicates | str | os.PathLike[str], *, storage_options: Options = None
    ) -> Self:
        """The dataset without the rows that have a better twin; nothing is computed yet.

        Rows that go for a twin that `filter` or `top` has left out before are not counted: each shard is done by
        itself, and a twin may be in any. `export_output` with ``where`` and ``without`` counts them.

        Parameters
        ----------
        duplicates
            What `curator_dask.dedup.SemanticDeduplication` found of vectors of this dataset's rows, and has saved; or
            the folder or URL where it was saved.
        storage_options
            For fsspec, where it is a URL.

        Raises
        ------
        OutputError
            They are not saved, or are of these shards at another place.
        DatasetError
            The metadata lacks the columns by which rows are told apart.
        """
        if isinstance(duplicates, str | os.PathLike):
            path, options = absolute(os.fspath(duplicates), storage_options), storage_options
        elif duplicates.path is not None:
            path, options = duplicates.path, duplicates.path_options
        else:
            raise OutputError("the duplicates are not saved yet: call save(path) first")
        lineage = trace(self.metadata)
        if any(isinstance(step, FilterRows | BestRows) for step in lineage.steps):
            logger.warning(
                "without: rows are filtered before, and where the best of a group of duplicates did not pass, nothing"
                " of it stays. How many these are is not counted, as each shard is done by itself. Find duplicates"
                " among the rows that pass, or save all rows and export them with where and without, which count it"
            )
        urls = None if lineage.inputs is None else {part.shard.url for part in lineage.inputs}
        return self.apply(leave_out(path, self.id_col, list(self.metadata.columns), urls, options))
