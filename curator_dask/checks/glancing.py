"""What one shard is like at a glance: a few reads, whatever its size."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from curator_dask.errors import CuratorError, ShardError
from curator_dask.frames.parquet import open_parquet
from curator_dask.frames.record import FileRecord
from curator_dask.storage import Options, RemoteFile, check_regular, is_remote, local_path
from curator_dask.webdataset.folders import is_folder_shard
from curator_dask.webdataset.headers import BLOCK, Member, header_problem, header_size, not_a_tar
from curator_dask.webdataset.parquet import (
    ParquetShard,
    columns_of_rows,
    file_of,
    image_column,
    is_parquet_shard,
)
from curator_dask.webdataset.several_names import is_each
from curator_dask.webdataset.several_rows import images_in
from curator_dask.webdataset.shards import Shard
from curator_dask.webdataset.stamps import stamp

_TAIL = 1 << 16  # bytes of an index file's end in which its last line is looked for


@dataclass
class Glance:
    """What is seen of a shard without reading its members' headers.

    Attributes
    ----------
    shard
        The shard.
    size
        Bytes of the tar; 0 where it cannot be looked at.
    troubles
        What would fail, by kind (`curator_dask.checks.kinds`): ``"unreadable"``, ``"not-a-tar"``,
        ``"name"``, ``"companion"``.
    ends
        Whether the tar ends as tars do. If not, a look at its headers tells why.
    rows
        Of the companion Parquet; None where it was not looked at, or cannot be read.
    columns
        Of the companion Parquet, and whether this is output of an earlier run.
    parquet_size
        Its bytes.
    stale
        What is wrong with the index file beside the tar, as far as its first and last line tell.
    """

    shard: Shard
    size: int = 0
    troubles: dict[str, str] = field(default_factory=dict)
    ends: bool = False
    rows: int | None = None
    columns: tuple[pa.Schema, bool] | None = None
    parquet_size: int = 0
    stale: str | None = None

    @property
    def has_tar(self) -> bool:
        """Whether there is a tar to look into."""
        return not self.troubles.keys() & {"unreadable", "not-a-tar"}


def glance(shard: Shard, with_parquet: bool, options: Options = None) -> Glance:
    """Look at a shard's size, first header, end, companion and index file: a few reads, whatever its size.

    Parameters
    ----------
    shard
        The shard.
    with_parquet
        Whether its rows come from the companion Parquet.
    options
        For fsspec.
    """
    seen = Glance(shard)
    if is_folder_shard(shard.url):
        try:
            seen.size, seen.ends = stamp(shard.url, options).size, True
        except ShardError as error:
            seen.troubles["unreadable"] = said(error)
        return seen
    if is_parquet_shard(shard.url):
        seen.ends = True
        _look_at_rows(seen, options)
        return seen
    try:
        shard.url.encode()
    except UnicodeEncodeError:
        seen.troubles["name"] = "the file's name is not UTF-8"
    try:
        seen.size, head, tail = _edges(file_of(shard.url), options)
    except Exception as error:  # a store's own errors may be of any kind
        seen.troubles["unreadable"] = said(error)
    else:
        if header_size(head) is None and (not head or head.count(0) < len(head) or len(head) < BLOCK):
            seen.troubles["not-a-tar"] = str(not_a_tar(shard.url, head)).removeprefix(f"{shard.url}: ")
        # A tar that begins with its end mark has no samples, or is no tar but zeros: its walk will tell.
        seen.ends = seen.size % BLOCK == 0 and tail.count(0) == BLOCK and head.count(0) < BLOCK
    if with_parquet and shard.parquet is not None:
        _look_at_parquet(seen, options)
    if seen.has_tar and not is_remote(shard.url):
        seen.stale = _idx_trouble(Path(local_path(file_of(shard.url))))
    return seen


def said(error: Exception) -> str:
    """What an error says, on one line."""
    if isinstance(error, CuratorError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _edges(url: str, options: Options) -> tuple[int, bytes, bytes]:
    """Size, first and last 512 bytes of a file."""
    if is_remote(url):
        remote = RemoteFile(url, options)
        size = remote.size
        return size, remote.block(0, min(size, BLOCK)), remote.block(max(0, size - BLOCK), size)
    path = local_path(url)
    check_regular(path)
    with Path(path).open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        return size, os.pread(file.fileno(), BLOCK, 0), os.pread(file.fileno(), BLOCK, max(0, size - BLOCK))


def _look_at_parquet(seen: Glance, options: Options) -> None:
    parquet = seen.shard.parquet
    assert parquet is not None
    try:
        seen.parquet_size = stamp(parquet, options).size
        with open_parquet(parquet, options) as file:
            schema = file.schema_arrow
            seen.rows = file.metadata.num_rows
        seen.columns = (schema.remove_metadata(), FileRecord.parse(schema.metadata) is not None)
    except Exception as error:  # of the file system, of Arrow, of a store
        seen.troubles["companion"] = said(error)


def _look_at_rows(seen: Glance, options: Options) -> None:
    """The footer of a Parquet file that the images lie in."""
    path = ParquetShard.of(seen.shard.url).path
    try:
        seen.size = stamp(path, options).size
        with open_parquet(path, options) as file:
            schema = columns_of_rows(file.schema_arrow, seen.shard.url)
            seen.rows, seen.columns = file.metadata.num_rows, (schema.remove_metadata(), False)
            if is_each(seen.shard.url):
                column = image_column(file.schema_arrow, ParquetShard.of(seen.shard.url).image, several=True)
                seen.rows = images_in(file, path, column, stamp(path, options))
    except ShardError as error:
        seen.troubles["unreadable"] = str(error).removeprefix(f"{path}: ")
    except Exception as error:  # of the file system, of Arrow, of a store
        seen.troubles["unreadable"] = said(error)


def _idx_trouble(tar: Path) -> str | None:
    """What the first and the last line of the index file beside a tar show to be wrong with it."""
    path = tar.with_suffix(".idx")
    try:
        check_regular(path)
        with path.open("rb", buffering=0) as file:
            head = os.pread(file.fileno(), 64, 0)
            end = os.fstat(file.fileno()).st_size
            tail = os.pread(file.fileno(), _TAIL, max(0, end - _TAIL))
        with tar.open("rb", buffering=0) as file:
            width = {b"v1.1 ": 3, b"v1.2 ": 4}.get(head[:5])
            if width is None:
                return f"no index of DALI's (starts with {head[:16]!r})"
            words = tail.splitlines()[-1].split()
            if not tail.endswith(b"\n") or len(words) < width or (len(words) % width and end <= _TAIL):
                return "its last line is not whole"
            offset, size = map(int, words[1 - width : 3 - width] if width == 4 else words[-2:])
            header = os.pread(file.fileno(), BLOCK, offset - BLOCK) if offset >= BLOCK else b""
    except FileNotFoundError:
        return None
    except (OSError, ValueError, OverflowError) as error:
        return said(error)
    if width == 3:
        return None  # it has no names that a header could be compared with
    member = Member(words[-1].decode("utf-8", "surrogateescape"), offset, size)
    # What an extended header says cannot be seen here: a member without a plain header is for the full look.
    wrong = header_problem(header, member)
    return f"member {member.name!r} at byte {offset}: {wrong}" if wrong else None
