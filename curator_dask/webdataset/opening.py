"""What reads a shard, whatever it is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from curator_dask.webdataset.folder_reader import FolderReader
from curator_dask.webdataset.folders import is_folder_shard
from curator_dask.webdataset.parquet import is_parquet_shard
from curator_dask.webdataset.parquet_reader import ParquetReader
from curator_dask.webdataset.reader import ShardReader
from curator_dask.webdataset.several import ImagesReader
from curator_dask.webdataset.several_names import is_each, without_each

#: Reads the members of a shard.
Reader = ShardReader | FolderReader | ParquetReader


def open_shard(
    url: str | os.PathLike[str],
    use_index_files: bool = True,
    storage_options: Mapping[str, Any] | None = None,
    first: int | None = None,
) -> Reader:
    """What reads a shard: a tar, with the arguments of `ShardReader`, images of a folder, or a Parquet file.

    Raises
    ------
    ShardError
        The shard cannot be opened or fetched.
    """
    text = os.fsdecode(url)
    if is_folder_shard(text):
        return FolderReader(text, storage_options)
    if is_parquet_shard(text):
        return ParquetReader(text, storage_options)
    if is_each(text):
        return ImagesReader(without_each(text), use_index_files, storage_options, first)
    return ShardReader(text, use_index_files, storage_options, first)
