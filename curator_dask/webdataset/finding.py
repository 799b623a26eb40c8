"""The shards of a dataset, whatever they are: tars, Parquet files with images, or images of a folder without any."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from curator_dask.errors import ConfigError, DatasetError, ShardError
from curator_dask.settings import check_variables
from curator_dask.storage import Options, absolute, is_remote
from curator_dask.webdataset.folders import (
    SAMPLES_PER_SHARD,
    STORED,
    FolderShard,
    ends_shard,
    is_folder_shard,
    walk,
)
from curator_dask.webdataset.parquet import (
    KEY,
    SUFFIX,
    NoImagesError,
    ParquetShard,
    has_rows_of_shards,
    has_several,
    is_parquet_shard,
    numbered_keys,
    open_file,
)
from curator_dask.webdataset.parquet import image_column as column_of
from curator_dask.webdataset.several_names import is_each, with_each
from curator_dask.webdataset.shards import NoTarsError, Shard, ShardSet, discover
from curator_dask.words import counted, some_of_these

_TRIED = 16  # Parquet files that are opened until one of them can be read
AUTO = "auto"


def discover_images(
    folder: str | os.PathLike[str],
    samples_per_shard: int = SAMPLES_PER_SHARD,
    storage_options: Options = None,
) -> ShardSet:
    """Find the images of a folder and all below it, and make shards of them.

    Parameters
    ----------
    folder
        With a file an image, and beside it what belongs to it: a file of the same name but for its suffix.
    samples_per_shard
        About how many images a shard has: from half as many to twice as many.
    storage_options
        For fsspec, where `folder` is a URL.

    Returns
    -------
    ShardSet
        The shards in the order of the folder. Each has the images that lie behind another one; its url says which.

    Raises
    ------
    DatasetError
        There is no such folder, or no image in it; two images would have one key.
    """
    check_variables()
    if not isinstance(samples_per_shard, int) or isinstance(samples_per_shard, bool) or samples_per_shard < 1:
        raise ConfigError(f"samples_per_shard={samples_per_shard!r}: expected a whole number of at least 1")
    path = os.fsdecode(folder)
    root = absolute(path, storage_options)
    if is_remote(root):
        STORED.clear()  # what another run saw of it
    elif not os.path.isdir(root):  # noqa: PTH112
        raise DatasetError(f"{root}: expected a folder of images, found no folder")
    shards: list[Shard] = []
    keys: dict[str, str] = {}
    here, number, shard = "", 0, FolderShard(root, "", samples_per_shard)
    try:
        for group in walk(root, options=storage_options):
            if group.below != here:  # keys of different folders differ
                keys, here = {}, group.below
            for key, names in group.samples():
                number += 1
                other = keys.setdefault(key, names[0])
                if other != names[0]:
                    raise DatasetError(
                        f"{os.path.join(root, here + names[0])}: would have the key {key!r}, as {other!r} has: a dot in"  # noqa: PTH118
                        " a name becomes '_', since a key ends at a dot. Rename one of them"
                    )
            if ends_shard(group, number, samples_per_shard):
                shards.append(Shard(shard.url, shard.name))
                shard, number = shard._replace(after=group.path), 0
    except ShardError as error:
        raise DatasetError(str(error)) from error
    if number:
        shards.append(Shard(shard.url, shard.name))
    if not shards:
        raise DatasetError(f"{root}: expected at least one image, found none")
    return ShardSet(root, tuple(shards))


def discover_parquet(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    image_column: str = AUTO,
    id_col: str = KEY,
    storage_options: Options = None,
) -> ShardSet:
    """Find the Parquet files of a dataset whose images lie in a column of them.

    Parameters
    ----------
    path, storage_options
        As for `discover`, of Parquet files.
    image_column
        Column of the images; ``"auto"``: the one that there is (`curator_dask.webdataset.parquet.image_column`).
    id_col
        Column of the keys. Where ``"key"`` is none of the columns, keys are made of the rows' numbers.

    Returns
    -------
    ShardSet
        A shard a file, in natural order of their names.

    Raises
    ------
    NoImagesError
        No column may hold images.
    DatasetError
        There is no file, or none that can be read; it is not told which column has the images; there is no such column;
        rows of two files would have one key.
    """
    found = discover(path, storage_options, SUFFIX)
    wanted = None if image_column == AUTO else image_column
    file, schema, column = _first_file(found, wanted, storage_options)
    names, usual = schema.names, None
    with contextlib.suppress(DatasetError):
        usual = column_of(schema, several=True)
    if id_col != KEY and id_col not in names:
        raise DatasetError(
            f"id_col={id_col!r} (--id-col): no such column in {file}; "
            f"it has {some_of_these(names, id_col)}. Without it the rows'"
            " numbers are keys"
        )
    if id_col == column:
        raise DatasetError(
            f"id_col={id_col!r} (--id-col): is the column of the images: give the one of the keys"
        )
    key = id_col if id_col in names else None
    if key is None:
        firsts: dict[str, str] = {}
        for shard in found:
            other = firsts.setdefault(numbered_keys(shard.name, [0])[0], shard.url)
            if other != shard.url:
                raise DatasetError(
                    f"{shard.url}: its rows would have the keys that those of {other} have: a dot in a name becomes"
                    " '_', since a key ends at a dot. Rename one of them"
                )
    said, several = None if column == usual else column, has_several(schema, column)
    shards = (Shard(ParquetShard(each.url, said, key, several).url, each.name, each.url) for each in found)
    return ShardSet(found.root, tuple(shards))


def _first_file(found: ShardSet, wanted: str | None, options: Options) -> tuple[str, pa.Schema, str]:
    """The first file that has images, what columns it has, and which of them has the images."""
    unread, no_images = "", None
    for shard in found.shards[:_TRIED]:
        try:
            with open_file(shard.url, options) as file:
                schema = file.schema_arrow
        except Exception as error:  # of Arrow, of the file system, of a store
            unread = unread or f"{shard.url}: {' '.join(str(error).split()) or repr(error)}"
            continue
        if wanted is None and has_rows_of_shards(schema):
            raise NoImagesError(
                f"{shard.url}: has rows whose images lie in other files, as what embed writes: give the dataset of"
                " which that was made; for rows of import fetch the images before"
            )
        try:
            return shard.url, schema, column_of(schema, wanted, several=True)
        except NoImagesError as error:
            no_images = no_images or NoImagesError(f"{shard.url}: {error}")
        except DatasetError as error:
            raise DatasetError(f"{shard.url}: {error}") from None
    if no_images is not None:
        raise no_images
    tried = counted(min(_TRIED, len(found)), "Parquet file")
    raise DatasetError(f"none of {tried} can be read; {unread}")


def find_shards(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    storage_options: Mapping[str, Any] | None = None,
    *,
    images: bool = False,
    image_column: str = AUTO,
    id_col: str = KEY,
    each_image: bool = False,
) -> ShardSet:
    """The tars of a dataset; without any, its Parquet files with images; else the images of a folder.

    Parameters
    ----------
    path, storage_options
        As for `discover`.
    images
        Take images of the folder even where it has tars.
    image_column, id_col
        As for `discover_parquet`: a name takes the Parquet files even where there are tars.
    each_image
        Each image of a sample of a tar is a sample of its own. Of Parquet files their columns say it.

    Raises
    ------
    DatasetError
        There is none of these.
    """
    if each_image:
        found = find_shards(path, storage_options, images=images, image_column=image_column, id_col=id_col)
        return images_apart(found)
    if images and image_column != AUTO:
        raise ConfigError(
            "images=True (--images) takes images that are files, image_column (--image-column) those in Parquet files:"
            " give one of them"
        )
    if images:
        if not isinstance(path, str | os.PathLike):
            raise DatasetError(f"{path}: expected one folder of images, found a list")
        return discover_images(path, storage_options=storage_options)
    items = [path] if isinstance(path, str | os.PathLike) else path
    if image_column != AUTO or (items and all(os.fsdecode(each).lower().endswith(SUFFIX) for each in items)):
        return discover_parquet(path, image_column, id_col, storage_options)
    try:
        return discover(path, storage_options)
    except NoTarsError as error:
        said = ""
        if error.has_parquet:
            try:
                return discover_parquet(path, id_col=id_col, storage_options=storage_options)
            except NoImagesError as no_images:
                said = f"; of its Parquet files {no_images}"
        if not error.has_images or not isinstance(path, str | os.PathLike):
            raise NoTarsError(f"{error}{said}") from None
        return discover_images(path, storage_options=storage_options)


def images_apart(found: ShardSet) -> ShardSet:
    """The same tars, where each image of a sample is a sample of its own; Parquet files with lists as they are.

    Raises
    ------
    ConfigError
        There is one image a row, or a file.
    """
    first = found.shards[0].url
    if is_each(first):
        return found
    if is_folder_shard(first) or is_parquet_shard(first):
        has = "Parquet files with an image a row" if is_parquet_shard(first) else "image files, each a row"
        raise ConfigError(
            f"each_image=True (--each-image): {found.root} has {has}, whatever is given: leave it out"
        )
    return ShardSet(found.root, tuple(replace(each, url=with_each(each.url)) for each in found.shards))
