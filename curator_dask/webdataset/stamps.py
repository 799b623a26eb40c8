"""What tells one state of a shard, or of any file, from another without reading it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from curator_dask.errors import ShardError
from curator_dask.storage import filesystem, is_remote, local_path, patiently
from curator_dask.webdataset.folders import is_folder_shard, look


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
        Local path or fsspec URL; or that of a shard of image files.
    storage_options
        Options for fsspec, where ``url`` is a URL.

    Raises
    ------
    ShardError
        The file does not exist or cannot be looked at.
    """
    url = os.fsdecode(url)
    if is_folder_shard(url):
        files = look(url)
        return FileStamp(files.size, files.version)
    try:
        if not is_remote(url):
            status = os.stat(local_path(url))  # noqa: PTH116
            return FileStamp(status.st_size, str(status.st_mtime_ns))
        fs, path = filesystem(url, storage_options)
        info = patiently(lambda: fs.info(path), url)
    except Exception as error:  # a store's own, of many types
        raise ShardError(f"{url}: the file cannot be looked at: {error!r}; is it still there?") from error
    names = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "updated", "mtime", "created")
    version = next((str(info[name]) for name in names if info.get(name) is not None), "")
    return FileStamp(int(info.get("size") or 0), version)
