"""What tells one state of a shard, or of any file, from another without reading it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from curator_dask.errors import ShardError
from curator_dask.patience import patiently
from curator_dask.storage import file_state, filesystem, is_remote, local_path, version_in
from curator_dask.webdataset.folders import is_folder_shard, look
from curator_dask.webdataset.parquet import file_of


@dataclass(frozen=True)
class FileStamp:
    """What tells one state of a file from another without reading it.

    Attributes
    ----------
    size
        Bytes; of a shard of image files those of all of them.
    version
        Time of the last change in nanoseconds for a local file; the etag, or else the time of the last
        change, for a remote one; empty if the store knows neither. A digest of names, sizes and times for a shard
        of image files.
    """

    size: int
    version: str


def stamp(url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> FileStamp:
    """Look at a file's size and version without reading it.

    Parameters
    ----------
    url
        Local path or fsspec URL; or that of a shard of image files, or of rows with images.
    storage_options
        Options for fsspec, where ``url`` is a URL.

    Raises
    ------
    ShardError
        The file does not exist or cannot be looked at.
    """
    url = os.fsdecode(url)
    if is_folder_shard(url):
        files = look(url, storage_options)
        return FileStamp(files.size, files.version)
    url = file_of(url)
    try:
        if not is_remote(url):
            status = os.stat(local_path(url))  # noqa: PTH116
            return FileStamp(status.st_size, str(status.st_mtime_ns))
        fs, path = filesystem(url, storage_options)
        info = patiently(lambda: fs.info(path), url)
    except Exception as error:  # a store's own, of many types
        raise ShardError(f"{url}: the file cannot be looked at: {error!r}; is it still there?") from error
    return FileStamp(int(info.get("size") or 0), version_in(info))


def check_planned(shard: Mapping[str, Any]) -> None:
    """Refuse a local shard that is no longer what it was when the run was planned.

    Of a remote one nothing is asked: the local copy that was read has one state.

    Parameters
    ----------
    shard
        ``url``, and under ``tar`` the fields of its `FileStamp`; None where there was no file.

    Raises
    ------
    ShardError
        It was changed, or it came or went.
    """
    url = shard["url"]
    if is_remote(url):
        return
    try:
        now = vars(stamp(url))
    except ShardError:
        now = None
    if now != shard["tar"]:
        raise ShardError(f"{url}: the shard was changed since the run began: run again when it is whole")


class Watched:
    """Local tars that are read where they lie, and whether they stay as they are meanwhile.

    A tar that is written over in place keeps its file, so a map of it shows the new bytes at the old places. Copies
    of remote tars have one state, and the files of a folder are each found by name.
    """

    def __init__(self) -> None:
        self._states: dict[str, tuple[int, ...]] = {}

    def begin(self, url: str) -> None:
        """Remember the state of a shard that is about to be opened."""
        if not is_remote(url) and not is_folder_shard(url):
            self._states.setdefault(url, _local_state(file_of(url)))

    def check(self) -> None:
        """Call it when nothing is read any more, and before what was made of it is used.

        Raises
        ------
        ShardError
            A tar was changed, or is gone.
        """
        for url, before in self._states.items():
            if _local_state(file_of(url)) != before:
                raise ShardError(
                    f"{url}: the shard was changed while it was read: run again when it is whole"
                )


def _local_state(url: str) -> tuple[int, ...]:
    """That of a tar; empty where there is no file."""
    try:
        return file_state(local_path(url))
    except OSError:
        return ()
