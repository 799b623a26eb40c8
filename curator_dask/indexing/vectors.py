"""Vectors that are searched: all of them, or by an index."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from curator_dask.indexing.searching import RECALL, VectorIndex
from curator_dask.outputs.nearest import Hit, VectorFiles
from curator_dask.outputs.passing import Passing
from curator_dask.outputs.placing import locate
from curator_dask.outputs.ranking import Ranked
from curator_dask.rows.where import Where
from curator_dask.storage import Options


@dataclass(frozen=True)
class Vectors:
    """The vectors of an output.

    Attributes
    ----------
    files
        Where they are.
    index
        By which they are searched; None: every one is compared.
    recall
        Share of the nearest that an index is to find.
    """

    files: VectorFiles
    index: VectorIndex | None = None
    recall: float = RECALL

    @classmethod
    def of(
        cls,
        path: str | os.PathLike[str],
        column: str,
        options: Options,
        index: VectorIndex | None = None,
        recall: float = RECALL,
    ) -> Vectors:
        """Those of an output.

        Raises
        ------
        ConfigError
            The index is of something else.
        OutputError
            There are none.
        """
        if index is None:
            return cls(VectorFiles.find(path, column, options))
        if (index.embeddings, index.manifest.column) != (locate(os.fspath(path), options), column):
            index.manifest.check_of(index.folder, locate(os.fspath(path), options), column)
        index.recall(wanted=recall)
        return cls(index.files, index, recall)

    def passing(self, where: str | None) -> Passing | None:
        """The rows that pass a condition; None where there is none."""
        if where is None:
            return None
        return Passing.of(self.files, Where(where)) if self.index is None else self.index.passing(where)

    def ranked(self, vector: np.ndarray, of: str, top: int, passing: Passing | None = None) -> Ranked:
        """The nearest rows; see `VectorFiles.ranked`."""
        if self.index is not None:
            return self.index.ranked(vector, of, top, passing, self.recall)
        return self.files.ranked(vector, of, top, None if passing is None else passing.masks)

    def hits(self, ranked: Ranked) -> list[Hit]:
        """The rows of a ranking."""
        return self.files.hits(ranked) if self.index is None else self.index.hits(ranked)

    def nearest(self, vector: np.ndarray, of: str, top: int, where: str | None = None) -> list[Hit]:
        """The nearest rows that pass a condition, if one is given; see `VectorFiles.nearest`."""
        return self.hits(self.ranked(vector, of, top, self.passing(where)))

    def others(self, key: str, shard: str | None, top: int, where: str | None = None) -> list[Hit]:
        """The rows that are nearest to one of them, without that one; see `VectorFiles.row_of`."""
        own, vector = self.files.row_of(key, shard)
        found = self.nearest(vector, f"the image {key}", top + 1, where)
        return [hit for hit in found if (hit.key, hit.url) != (own.key, own.url)][:top]
