"""Search by a text: the images whose vectors are nearest to its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from curator_dask.cluster.workers import current_client, run_everywhere
from curator_dask.decode.spec import check_counts
from curator_dask.errors import ConfigError
from curator_dask.frames.columns import unit
from curator_dask.frames.names import EMBEDDING_COLUMN
from curator_dask.image.classifiers.origins import Origin, one_origin
from curator_dask.indexing.searching import RECALL, VectorIndex
from curator_dask.indexing.vectors import Vectors
from curator_dask.models.texts import TextSpec
from curator_dask.outputs.nearest import Hit
from curator_dask.text.embedders import TextEmbedder
from curator_dask.text.pairs import check_together


def search(
    path: str | os.PathLike[str],
    text: str,
    embedder: TextEmbedder,
    *,
    top: int = 24,
    column: str = EMBEDDING_COLUMN,
    check: bool = True,
    where: str | None = None,
    index: VectorIndex | None = None,
    recall: float = RECALL,
    storage_options: Mapping[str, Any] | None = None,
) -> list[Hit]:
    """The images of an output that are nearest to a text, the nearest first; of equal ones the first in the files.

    Every vector is compared, unless there is an index. Files are read in blocks of rows: memory does not grow with
    them.

    Parameters
    ----------
    path
        What `save_metadata` or ``curator-dask embed`` wrote, or other Parquet files with lists of float32.
    text
        What is looked for.
    embedder
        Embeds the text; on the workers where there is a cluster.
    top
        How many, at most.
    column
        Of the images' vectors.
    check
        See `curator_dask.text.ClipScore`.
    where
        Condition that rows pass, as of `filter`.
    index
        Of these vectors, by which they are searched.
    recall
        Share of the nearest that it is to find.
    storage_options
        For fsspec, where `path` is a URL.

    Raises
    ------
    ConfigError
        The text is empty, the condition does not fit, or the vectors do not belong together.
    OutputError
        There are no such vectors.
    """
    check_counts(top=top)
    if not text.strip():
        raise ConfigError(f"text={text!r}: expected some words")
    vectors = Vectors.of(path, column, storage_options, index, recall)
    passing = vectors.passing(where)
    ask = _Ask(embedder.encoder_spec(), text, one_origin(column, vectors.files.records), check)
    vector = next(iter(run_everywhere(ask, current_client()).values()))
    return vectors.hits(vectors.ranked(vector, "the text", top, passing))


@dataclass(frozen=True)
class _Ask:
    """Embeds the text, and sees whether it belongs to the images' vectors."""

    spec: TextSpec
    text: str
    images: Origin
    check: bool

    def __call__(self) -> np.ndarray:
        encoder = self.spec.build()
        try:
            if self.check:
                check_together(self.images, encoder.info.to_dict(), None, f"search ({self.spec})")
            vector: np.ndarray = unit(encoder([self.text], 1).vectors)[0]
            return vector
        finally:
            encoder.close()
