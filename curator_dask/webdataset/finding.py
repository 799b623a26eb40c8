"""The shards of a dataset, whatever they are: tars, or the images of a folder that has none."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from curator_dask.errors import ConfigError, DatasetError, ShardError
from curator_dask.settings import check_variables
from curator_dask.storage import Options, absolute, is_remote
from curator_dask.webdataset.folders import SAMPLES_PER_SHARD, STORED, FolderShard, ends_shard, walk
from curator_dask.webdataset.shards import NoTarsError, Shard, ShardSet, discover


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


def find_shards(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    storage_options: Mapping[str, Any] | None = None,
    *,
    images: bool = False,
) -> ShardSet:
    """The tars of a dataset, or the images of a folder without tars.

    Parameters
    ----------
    path, storage_options
        As for `discover`.
    images
        Take images of the folder even where it has tars.

    Raises
    ------
    DatasetError
        There is neither.
    """
    if images:
        if not isinstance(path, str | os.PathLike):
            raise DatasetError(f"{path}: expected one folder of images, found a list")
        return discover_images(path, storage_options=storage_options)
    try:
        return discover(path, storage_options)
    except NoTarsError as error:
        if not error.has_images or not isinstance(path, str | os.PathLike):
            raise
        return discover_images(path, storage_options=storage_options)
