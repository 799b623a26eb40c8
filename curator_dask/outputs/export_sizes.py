"""``sizes.json`` in a folder of tars: how many samples each has, as open_clip's training looks for it there."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Collection, Mapping

from curator_dask.outputs.placing import put
from curator_dask.outputs.selecting import Folder
from curator_dask.storage import exists, read_bytes, remove

#: By name of a tar, its samples: ``get_dataset_size`` of open_clip's ``open_clip_train/data.py`` reads it.
SIZES = "sizes.json"


def put_sizes(target: Folder, samples: Mapping[str, int]) -> None:
    """Write the file of each folder, unless it is there.

    Parameters
    ----------
    target
        The folder of the tars, or of those with tars.
    samples
        By name of a tar below it, without ``.tar``.
    """
    folders: dict[str, dict[str, int]] = {}
    for name in sorted(samples):
        folder, _, tar = name.rpartition("/")
        folders.setdefault(folder, {})[f"{tar}.tar"] = samples[name]
    for folder, sizes in folders.items():
        path = target.file(posixpath.join(folder, SIZES))
        content = f"{json.dumps(sizes, indent=0)}\n".encode()
        if not exists(path, target.options) or read_bytes(path, target.options) != content:
            put(path, content, target.options)


def sizes_there(target: Folder, names: Collection[str]) -> list[str]:
    """Those of the files that are there, in the folders of these tars."""
    paths = [target.file(posixpath.join(folder, SIZES)) for folder in {posixpath.dirname(n) for n in names}]
    return sorted(path for path in paths if exists(path, target.options))


def remove_sizes(target: Folder, names: Collection[str]) -> None:
    """Remove the files in the folders of these tars."""
    for path in sizes_there(target, names):
        remove(path, target.options)
