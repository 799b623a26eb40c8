"""Whether shards are still those that an output was made of."""

from __future__ import annotations

from collections.abc import Iterable

from curator_dask.errors import ShardError
from curator_dask.frames.record import FileRecord
from curator_dask.storage import Options, is_remote, local_path
from curator_dask.webdataset.folders import is_folder_shard
from curator_dask.webdataset.stamps import stamp


def changed_shard(record: FileRecord | None) -> str | None:
    """The local shard that a file was made of, where it is another now; of a store's nothing is asked."""
    shard = record.shard if record is not None else None
    if not shard or not shard.get("tar") or is_remote(shard["url"]):
        return None
    try:
        return None if vars(stamp(shard["url"])) == shard["tar"] else str(shard["url"])
    except ShardError:  # gone, or never on this machine: vectors are of use without it
        return None


def check_unchanged(path: str, urls: Iterable[str | None], record: FileRecord, options: Options) -> None:
    """Raise ShardError where a shard is another than the one that was embedded, as far as that can be told.

    Parameters
    ----------
    path
        Of a file with rows.
    urls
        Of the shards of these.
    record
        Of the file.
    options
        For fsspec, of the shards.
    """
    shard = record.shard
    if shard:
        changed = (
            [shard["url"]] if shard.get("tar") and vars(stamp(shard["url"], options)) != shard["tar"] else []
        )
    elif is_remote(path):
        changed = []
    else:  # of mixed partitions it is not written down, but no shard can be younger than the file
        made = int(stamp(path).version)
        # Images that are files of their own have a digest, and no time.
        local = [url for url in urls if url and not is_remote(url) and not is_folder_shard(url)]
        changed = [url for url in local if int(stamp(local_path(url)).version) > made]
    if changed:
        raise ShardError(
            f"{changed[0]}: the shard has changed since it was embedded: run embed again (with --overwrite where score"
            " added columns, and then score again), and then, with --overwrite, filter or score where these rows are in"
            " a folder that they wrote"
        )
