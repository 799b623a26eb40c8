"""`FilePartitioningStage`: finds the shards and makes groups of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from curator_dask.decode.spec import check_counts
from curator_dask.errors import ConfigError
from curator_dask.stages.base import Names, ProcessingStage
from curator_dask.tasks import FileGroupTask, Task
from curator_dask.webdataset.finding import AUTO, find_shards
from curator_dask.webdataset.parquet import KEY
from curator_dask.webdataset.shards import ShardSet

_KINDS = ("tar", "parquet")


class FilePartitioningStage(ProcessingStage[Task[Any], FileGroupTask]):
    """Finds the shards of a dataset; each group of them becomes one Dask task. First stage of a pipeline.

    Runs on the client, where a directory of 100,000 shards costs one listing.

    Parameters
    ----------
    file_paths
        Directory, glob, brace pattern, tar, or a list of these; local or an fsspec URL. Or the same of Parquet files
        with images, or a folder of image files, without tars.
    files_per_partition
        Shards in a group. More than one saves tasks where shards are very small; every shard gets its own output
        file all the same, and one that fails costs only itself.
    file_extensions
        ``[".tar"]`` or ``[".parquet"]``: what is found says itself which it is.
    storage_options
        For fsspec, where `file_paths` is a URL.
    limit
        Take only so many groups, the first ones.
    image_column
        Of Parquet files with images, as for `ImageTextPairDataset.from_parquet`.

    Raises
    ------
    ConfigError
        An argument has a value that it cannot have.
    """

    name = "file_partitioning"

    def __init__(
        self,
        file_paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        files_per_partition: int | None = None,
        *,
        file_extensions: Sequence[str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
        limit: int | None = None,
        image_column: str = AUTO,
    ) -> None:
        given = {"files_per_partition": files_per_partition, "limit": limit}
        check_counts(**{name: value for name, value in given.items() if value is not None})
        if storage_options is not None and not isinstance(storage_options, Mapping):
            raise ConfigError(f"storage_options={storage_options!r}: expected a mapping")
        paths = [file_paths] if isinstance(file_paths, str | os.PathLike) else file_paths
        if not isinstance(paths, Sequence) or not all(isinstance(each, str | os.PathLike) for each in paths):
            raise ConfigError(f"file_paths={file_paths!r}: expected a path, or a list of paths")
        others = [end for end in file_extensions or () if str(end).lower().lstrip(".") not in _KINDS]
        if others:
            raise ConfigError(
                f"file_extensions={list(others)}: expected ['.tar'] or ['.parquet'], shards are plain tars,"
                " or Parquet files with images"
            )
        self.file_paths = file_paths
        self.files_per_partition = files_per_partition or 1
        self.storage_options = dict(storage_options) if storage_options else None
        self.limit = limit
        self.image_column = image_column

    def outputs(self) -> Names:
        """Groups of shards."""
        return ["data"], ["shards"]

    def find(self, id_col: str = KEY) -> ShardSet:
        """The shards, in natural order of their names.

        Parameters
        ----------
        id_col
            Of Parquet files with images the column of the keys.

        Raises
        ------
        DatasetError
            There are none.
        """
        found = find_shards(
            self.file_paths, self.storage_options, image_column=self.image_column, id_col=id_col
        )
        if self.limit is None:
            return found
        return replace(found, shards=found.shards[: self.limit * self.files_per_partition])

    def process(self, task: Task[Any] | None = None) -> list[FileGroupTask]:
        """The groups, whatever the task."""
        found = self.find()
        urls, size = [shard.url for shard in found.shards], self.files_per_partition
        return [
            FileGroupTask(
                urls[start : start + size], found.root, f"shards-{start // size:05d}", self.storage_options
            )
            for start in range(0, len(urls), size)
        ]
