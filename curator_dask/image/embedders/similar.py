"""Search by an image: those whose vectors are nearest to its own, be it one of the output or a file."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from curator_dask.decode.spec import check_counts
from curator_dask.errors import ConfigError, OutputError
from curator_dask.frames.columns import list_to_matrix, unit
from curator_dask.frames.names import EMBEDDING_COLUMN, ERROR_COLUMN
from curator_dask.indexing.searching import RECALL, VectorIndex
from curator_dask.indexing.vectors import Vectors
from curator_dask.outputs.nearest import Hit, VectorFiles

if TYPE_CHECKING:
    from curator_dask.image.embedders import ImageEmbedder

#: What must be equal for two images' vectors to be comparable; arithmetic and how the file is read need not be.
_SAME = ("model", "weights", "output")


def similar_to_key(
    path: str | os.PathLike[str],
    key: str,
    *,
    shard: str | None = None,
    top: int = 24,
    column: str = EMBEDDING_COLUMN,
    where: str | None = None,
    index: VectorIndex | None = None,
    recall: float = RECALL,
    storage_options: Mapping[str, Any] | None = None,
) -> list[Hit]:
    """The images of an output that are nearest to one of them, the nearest first, without itself.

    No model is loaded: its vector is there.

    Parameters
    ----------
    path
        What `save_metadata` or ``curator-dask embed`` wrote, or other Parquet files with lists of float32.
    key
        Of the row; numbers as text.
    shard
        Part of the URL of its shard, where several have the key.
    top
        How many, at most.
    column
        Of the vectors.
    where, index, recall
        See `curator_dask.text.search.search`.
    storage_options
        For fsspec, where `path` is a URL.

    Raises
    ------
    ConfigError
        No row has the key, several have it, or the one that has it has no vector.
    OutputError
        There are no such vectors.
    """
    check_counts(top=top)
    return Vectors.of(path, column, storage_options, index, recall).others(str(key), shard, top, where)


def similar_to_image(
    path: str | os.PathLike[str],
    image: str | os.PathLike[str],
    embedder: ImageEmbedder | None = None,
    *,
    top: int = 24,
    column: str = EMBEDDING_COLUMN,
    where: str | None = None,
    index: VectorIndex | None = None,
    recall: float = RECALL,
    storage_options: Mapping[str, Any] | None = None,
) -> list[Hit]:
    """The images of an output that are nearest to one in a file, the nearest first.

    The file is embedded in this process, as the output's images were.

    Parameters
    ----------
    path, top, column, where, index, recall, storage_options
        See `similar_to_key`.
    image
        A local file.
    embedder
        That made the vectors. None: as the files say.

    Raises
    ------
    ConfigError
        The image cannot be read, or another model than this one made the vectors.
    OutputError
        There are no such vectors, or the files do not say what made them.
    """
    check_counts(top=top)
    file = Path(image)
    try:
        is_there = file.is_file()
    except OSError as error:  # a name that no file can have
        raise ConfigError(f"{image}: {error.strerror}. Give the path of an image") from error
    if not is_there:
        raise ConfigError(
            f"{image}: there is no such file. An image of the output is named by its key (--like)"
        )
    vectors = Vectors.of(path, column, storage_options, index, recall)
    passing, files = vectors.passing(where), vectors.files
    vector = vector_of(file, embedder or maker_of(files), files)
    return vectors.hits(vectors.ranked(vector, str(image), top, passing))


def maker_of(files: VectorFiles) -> ImageEmbedder:
    """The embedder that the files say made their vectors."""
    from curator_dask.image.embedders.making import from_settings

    for record in files.records.values():
        settings = record and record.settings.get(files.column)
        if settings:
            # How an image is found in a tar, turned by its row, and what of it is covered.
            of_rows = ("image_member", "orientation", "cover")
            arguments = {name: value for name, value in settings.items() if name not in of_rows}
            return from_settings(
                {**arguments, "image_embedding_column": EMBEDDING_COLUMN, "on_error": "null"}
            )
    raise OutputError(
        f"{next(iter(files.records))}: does not say which model made {files.column!r}. Search by a key (--like), or"
        " give the embedder in Python"
    )


@contextmanager
def _copied(file: Path) -> Iterator[str]:
    """A folder with this image alone."""
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="curator_dask-"))
            shutil.copyfile(file, Path(folder, "image.jpg"))  # what it is is told by its bytes
        except OSError as error:
            raise ConfigError(
                f"{file}: cannot be copied into a temporary folder: {error}. TMPDIR names one with room"
            ) from error
        yield folder


def vector_of(file: Path, embedder: ImageEmbedder, files: VectorFiles) -> np.ndarray:
    """Float32 (dim,), of length 1."""
    from curator_dask.datasets import ImageTextPairDataset

    with _copied(file) as folder:
        dataset = embedder(ImageTextPairDataset.from_images(folder, captions=None))
        step = dataset.steps[-1]
        name = next(iter(step.columns))
        made = step.describe()[name]
        for path, record in files.records.items():
            before = {} if record is None else record.embeddings.get(files.column, {})
            differing = [key for key in _SAME if before and before.get(key) != made[key]]
            if differing:
                raise ConfigError(
                    f"{path}: {files.column!r} was made with"
                    f" {', '.join(f'{key} {before.get(key)}' for key in differing)}; the model that is to embed"
                    f" {file} has {', '.join(f'{key} {made[key]}' for key in differing)}. Expected one model for both"
                )
        rows = dataset.metadata.compute(scheduler="sync")
    matrix, valid = list_to_matrix(rows[name])
    if not valid[0]:
        raise ConfigError(f"{file}: {rows[ERROR_COLUMN].iloc[0]}")
    vector: np.ndarray = unit(matrix)[0]
    return vector
