"""`Sources`: of what a dataset is made: tars, images that are files, images in Parquet files."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import dask.dataframe as dd

from curator_dask.arguments import called_as
from curator_dask.cluster.setup import forget_listings
from curator_dask.cluster.workers import current_client
from curator_dask.collector import held_back
from curator_dask.console import show_in_notebook
from curator_dask.datasets.meta import worker_backend
from curator_dask.datasets.ranges import check_options, ranges_of
from curator_dask.errors import ConfigError
from curator_dask.rows.image_files import ReadImages, caption_table, images_schema
from curator_dask.rows.reading import ReadShard, choose_source, learn_schema
from curator_dask.runs.graph import map_items
from curator_dask.storage import is_remote
from curator_dask.webdataset.finding import AUTO, discover_images, discover_parquet, images_apart
from curator_dask.webdataset.folders import SAMPLES_PER_SHARD
from curator_dask.webdataset.parquet import KEY, ParquetShard, is_parquet_shard
from curator_dask.webdataset.shards import ShardSet, discover
from curator_dask.webdataset.staging import STAGE
from curator_dask.words import counted

logger = logging.getLogger("curator_dask")


class Sources(ABC):
    """A base of datasets that are made of shards."""

    @abstractmethod
    def __init__(
        self,
        path: str,
        metadata: dd.DataFrame,
        tar_files: Sequence[str],
        id_col: str,
        *,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        """See `curator_dask.datasets.ImageTextPairDataset`."""

    @classmethod
    @called_as("from_webdataset('/path/to/dataset', id_col='key', metadata='tar')")
    def from_webdataset(
        cls,
        path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        id_col: str = "key",
        *,
        metadata: str = "auto",
        rows_per_partition: int | None = None,
        nested_json: bool = False,
        each_image: bool = False,
        storage_options: Mapping[str, Any] | None = None,
    ) -> Self:
        """Find the shards and learn the columns; rows are read when something is computed.

        Parameters
        ----------
        path
            Directory, glob, brace pattern, tar, or a list of these.
        id_col
            Column of the companion Parquet whose values are the keys in the tar, as text; a whole number also
            matches the key that is this number with leading zeros. Without Parquet, the name the keys get.
        metadata
            ``"parquet"``: rows and columns of the ``.parquet`` beside each tar. ``"tar"``: a row a sample, with
            its key, ``caption`` from ``.txt``, ``cls`` from ``.cls`` and the scalar top-level fields of ``.json``.
            ``"auto"``: Parquet where it is there.
        rows_per_partition
            Cut shards into partitions of so many rows, to keep every worker busy on few large shards.
        nested_json
            Of rows from tars: lists and objects of the ``.json`` become columns, too, of JSON text.
        each_image
            Of samples with several images each is a row: its key is that of the sample, ``_`` and its number from 0, in
            the order of the images' names. ``sample_key``, ``image_number``, ``image_count`` and ``image_name`` say
            which it is, and the sample's caption and other columns stand in each of its rows. A sample without an image
            has no row; how many these are is in the summary.
        storage_options
            For fsspec, where `path` is a URL.

        Raises
        ------
        DatasetError
            No shards; some with and some without Parquet; no key column; columns that differ in kind.
        """
        check_options(id_col, metadata, rows_per_partition)
        found = discover(path, storage_options)
        return cls.from_shards(
            images_apart(found) if each_image else found,
            id_col,
            metadata=metadata,
            rows_per_partition=rows_per_partition,
            nested_json=nested_json,
            storage_options=storage_options,
        )

    @classmethod
    @called_as("from_images('/path/to/images', captions='captions.csv')")
    def from_images(
        cls,
        folder: str | os.PathLike[str],
        id_col: str = "key",
        *,
        captions: str | os.PathLike[str] | None = "txt",
        samples_per_shard: int = SAMPLES_PER_SHARD,
        storage_options: Mapping[str, Any] | None = None,
    ) -> Self:
        """Find images that are files of their own, in a folder and all below it.

        What lies beside an image, under its name but for the suffix, belongs to it: ``cat.jpg``, ``cat.txt`` (the
        caption), ``cat.json``. Its key is its path below the folder without suffix, with ``_`` for dots in the file's
        name. Of several images of one name each has its suffix in its key: ``cat_jpg``, ``cat_png``. ``file_name`` is
        the path with its suffix.

        Parameters
        ----------
        folder
            A path that all workers see, or a URL.
        id_col
            Name the keys get.
        captions
            Where the other columns come from. ``"txt"``: from what lies beside, ``caption`` and the scalar top-level
            fields of the JSON. A Parquet, CSV or JSON Lines file with a column ``file_name``: its columns. None: there
            are none.
        samples_per_shard
            About how many images are a shard: from half as many to twice as many. Where one ends is told by the names
            of the files: images that come or go change the shard that they are in, and no other.
        storage_options
            For fsspec, where `folder` or `captions` is a URL.

        Raises
        ------
        DatasetError
            There is no image; two would have one key; the file of captions has none for any of them.
        """
        check_options(id_col, "auto")
        found = discover_images(folder, samples_per_shard, storage_options)
        if is_remote(found.root) and (client := current_client()) is not None:
            forget_listings(client)  # `compute` is no run, which would do it
        return cls.from_shards(found, id_col, captions=captions, storage_options=storage_options)

    @classmethod
    @called_as("from_parquet('/path/to/dataset', image_column='image', id_col='id')")
    def from_parquet(
        cls,
        path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        image_column: str = AUTO,
        id_col: str | None = None,
        *,
        rows_per_partition: int | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> Self:
        """Find Parquet files whose rows have the images, as of the Hugging Face hub; a shard is a file.

        Rows have all columns but those of images, which are read a part of a row group at a time.

        Parameters
        ----------
        path
            Directory, glob, brace pattern, Parquet file, or a list of these.
        image_column
            Column of bytes, or of structs with ``bytes``; or of lists of these, where each image of a list is a row, as
            with ``each_image`` of `from_webdataset`. ``"auto"``: the one that there is.
        id_col
            Column whose values are the keys, each once in a file. None: ``"key"`` if there is such a column; else keys
            are made of the file's path below `path` and the row's number from 0: ``train-00000-of-00042_0000017``.
        rows_per_partition
            Cut files into partitions of so many rows.
        storage_options
            For fsspec, where `path` is a URL.

        Raises
        ------
        DatasetError
            There are no files, or none can be read; none or several columns may have the images; there is no such
            column; columns that differ in kind.
        """
        check_options(KEY if id_col is None else id_col, "auto", rows_per_partition)
        found = discover_parquet(path, image_column, KEY if id_col is None else id_col, storage_options)
        return cls.from_shards(
            found,
            KEY if id_col is None else id_col,
            rows_per_partition=rows_per_partition,
            storage_options=storage_options,
        )

    @classmethod
    def from_shards(
        cls,
        found: ShardSet,
        id_col: str = "key",
        *,
        metadata: str = "auto",
        rows_per_partition: int | None = None,
        nested_json: bool = False,
        captions: str | os.PathLike[str] | None = "txt",
        storage_options: Mapping[str, Any] | None = None,
        quiet: bool = False,
    ) -> Self:
        """The same of shards that were found before (`curator_dask.webdataset.finding.find_shards`).

        With `quiet` it is not said how many these are.
        """
        check_options(id_col, metadata, rows_per_partition)
        first = found.shards[0].url
        if is_parquet_shard(first) and (key := ParquetShard.of(first).key or KEY) != id_col:
            raise ConfigError(
                f"id_col={id_col!r}: {found.root} was looked through for keys in {key!r}: give one name"
            )
        show_in_notebook()
        if captions != "txt":
            captioned = cls._captioned(found, id_col, captions, storage_options)
            return cls._of(found, captioned, rows_per_partition)
        source = choose_source(metadata, found, storage_options)
        rows = "their Parquet files" if source == "parquet" else "their captions and JSON"
        said = (counted(len(found), "shard"), found.root, rows)
        if not quiet:
            logger.info("found %s below %s; rows come from %s", *said)
        try:
            schema = learn_schema(found.shards, source, id_col, storage_options, nested_json)
            reader = ReadShard(id_col, source, schema, storage_options, nested_json)
            return cls._of(found, reader, rows_per_partition)
        finally:
            STAGE.clear()  # what was fetched to learn the columns

    @classmethod
    def _captioned(
        cls,
        found: ShardSet,
        id_col: str,
        captions: str | os.PathLike[str] | None,
        storage_options: Mapping[str, Any] | None,
    ) -> ReadImages:
        table = None if captions is None else caption_table(captions, storage_options)
        if table is not None:
            logger.info("%s: %s", table.path, table.told(found.root, storage_options))
        return ReadImages(id_col, "tar", images_schema(id_col, table), storage_options, captions=table)

    @classmethod
    def _of(cls, found: ShardSet, reader: ReadShard, rows_per_partition: int | None) -> Self:
        with held_back():
            ranges = ranges_of(reader, found.shards, rows_per_partition)
            empty = worker_backend().from_arrow(reader.schema.empty_table())
            frame = map_items(reader, ranges, empty, "read-shard")
        tars = [shard.url for shard in found.shards]
        return cls(found.root, frame, tars, reader.id_col, storage_options=reader.storage_options)
