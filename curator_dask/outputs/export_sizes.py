"""``sizes.json`` in a folder of tars: how many samples each has, as open_clip's training looks for it there."""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Collection, Mapping

from curator_dask.errors import OutputError
from curator_dask.outputs.latents import remove_latents
from curator_dask.outputs.placing import is_there, put
from curator_dask.outputs.selecting import Folder
from curator_dask.outputs.text_states import remove_states
from curator_dask.storage import Options, is_remote, read_bytes, remove

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
        if not _holds(path, content, target.options):
            put(path, content, target.options)


def check_sizes(target: Folder, names: Collection[str]) -> None:
    """Raise OutputError where a file would take the place of a folder, in the folders of these tars."""
    for path in sizes_there(target, names):
        if _is_folder(path):
            raise OutputError(
                f"{path}: is a folder, and the file that says how many samples each tar has goes there. Move it away,"
                " or use sizes=False (--no-sizes)"
            )


def sizes_there(target: Folder, names: Collection[str]) -> list[str]:
    """Those of the files that are there, in the folders of these tars."""
    paths = [target.file(posixpath.join(folder, SIZES)) for folder in {posixpath.dirname(n) for n in names}]
    return sorted(path for path in paths if is_there(path, target.options))


def remove_sizes(target: Folder, names: Collection[str]) -> None:
    """Remove the files in the folders of these tars, and what is said of members that models made."""
    for path in sizes_there(target, names):
        if not _is_folder(path):
            remove(path, target.options)
    remove_latents(target.path, target.options)
    remove_states(target.path, target.options)


def _is_folder(path: str) -> bool:
    return not is_remote(path) and os.path.isdir(path) and not os.path.islink(path)  # noqa: PTH112, PTH114


def _holds(path: str, content: bytes, options: Options) -> bool:
    try:
        return read_bytes(path, options) == content
    except OSError:
        return False
