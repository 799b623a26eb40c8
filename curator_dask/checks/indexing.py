"""`write_indexes`: DALI's index files beside local tars, many at a time."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distributed import Client, as_completed

from curator_dask.cluster.package import check_package
from curator_dask.cluster.workers import current_client
from curator_dask.errors import ConfigError, CuratorError, ShardError
from curator_dask.storage import Options, check_regular, is_remote, local_path
from curator_dask.webdataset.headers import not_a_tar
from curator_dask.webdataset.idx import StaleIndex
from curator_dask.webdataset.index import ShardIndex
from curator_dask.webdataset.shards import Shard, discover
from curator_dask.words import counted

_BLOCK = 16  # shards a task at most, so that a task ends within seconds
_FAILURES = 20  # that are named
_MARKS = (b"v1.0", b"v1.1", b"v1.2")  # with which DALI's index files begin


@dataclass
class IndexSummary:
    """What a call of `write_indexes` did.

    Attributes
    ----------
    path
        The dataset's root.
    written
        Index files written.
    fitting
        Those that were there already and fit their tars.
    failed
        Names of shards for which there is none, with the reason.
    seconds
        That it took.
    """

    path: str
    written: int = 0
    fitting: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-able."""
        return dict(vars(self))

    def __str__(self) -> str:
        lines = [
            f"{self.path}: {counted(self.written, 'index file')} written, {self.fitting} fitted already,"
            f" {len(self.failed)} failed; {self.seconds:.1f} s"
        ]
        failed = list(self.failed.items())
        lines += [f"  no index for {name}: {reason}" for name, reason in failed[:_FAILURES]]
        if len(failed) > _FAILURES:
            lines.append(f"  … and {len(failed) - _FAILURES} more")
        return "\n".join(lines)


def write_indexes(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    overwrite: bool = False,
    storage_options: Options = None,
) -> IndexSummary:
    """Write a ``.idx`` file beside each tar that has none that fits.

    It saves a later run the scan of the tar's headers, and DALI's own webdataset reader takes it. Work goes to
    the workers of the Dask client if there is one, else it is done in this process. Each file is there whole or
    not at all; a second call goes on where the first was interrupted.

    Parameters
    ----------
    path
        Directory, glob, brace pattern, tar, or a list of these; local.
    overwrite
        Write index files that fit again, and replace files of that name that are none of DALI's.
    storage_options
        For fsspec; as remote tars get no index files, of no use so far.

    Returns
    -------
    IndexSummary
        Shards without an index file, and why: a name with white space, a damaged tar, one without samples, a
        directory that cannot be written.

    Raises
    ------
    ConfigError
        The shards are remote.
    DatasetError
        There are no shards.
    """
    started = time.monotonic()
    check_local(path)
    found = discover(path, storage_options)
    client = current_client()
    summary = IndexSummary(found.root)
    threads = 1 if client is None else max(1, sum(client.nthreads().values()))
    size = max(1, min(_BLOCK, len(found) // (4 * threads)))
    blocks = [found.shards[start : start + size] for start in range(0, len(found), size)]
    run = _here(blocks, overwrite) if client is None else _on_cluster(client, blocks, overwrite)
    for block, outcome in run:
        for number, shard in enumerate(block):
            result = str(outcome) if isinstance(outcome, BaseException) else outcome[number]
            if result == "written":
                summary.written += 1
            elif result == "fits":
                summary.fitting += 1
            else:
                summary.failed[shard.name] = result
    order = {shard.name: number for number, shard in enumerate(found.shards)}
    summary.failed = dict(sorted(summary.failed.items(), key=lambda item: order[item[0]]))
    summary.seconds = time.monotonic() - started
    return summary


def check_local(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> None:
    """Raise ConfigError where shards are remote."""
    given = [path] if isinstance(path, (str, os.PathLike)) else list(path)
    for item in map(os.fsdecode, given):
        if is_remote(item):
            raise ConfigError(
                f"{item}: expected local tars: index files beside remote ones would not be read. Copy the shards to a"
                " local disk first, or do without: a run indexes each shard that it fetches by itself"
            )


def index_shards(shards: Sequence[Shard], overwrite: bool) -> list[str]:
    """Write the index files of some shards; the task of a worker.

    Returns
    -------
    For each shard ``"written"``, ``"fits"``, or why there is none.
    """
    return [_index_shard(shard.url, overwrite) for shard in shards]


def _index_shard(url: str, overwrite: bool) -> str:
    tar = Path(local_path(url))
    idx = tar.with_suffix(".idx")
    try:
        check_regular(tar)
        if not tar.stat().st_size:
            raise not_a_tar(url, b"")
        if not overwrite and os.path.lexists(idx):
            if not _is_dalis(idx):
                return f"{idx.name} is there and is none of DALI's: move it away, or use overwrite=True (--overwrite)"
            with contextlib.suppress(StaleIndex):  # one that does not fit is no use to anybody: it goes
                ShardIndex.read_idx(idx, tar)
                return "fits"
        index = ShardIndex.scan(tar)
        if index.problem:
            return f"{index.problem}: fetch the shard again"
        index.write_idx(idx)
    except (CuratorError, OSError) as error:
        text = str(error) if isinstance(error, CuratorError) else f"{error.strerror or error}"
        return text.removeprefix(f"{url}: ").removeprefix(f"{idx}: ")
    return "written"


def _is_dalis(path: Path) -> bool:
    """Whether a file begins as DALI's index files do; an empty one might have become one."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            return file.read(len(_MARKS[0])) in (*_MARKS, b"")
    except OSError:
        return False


def _here(blocks: Sequence[Sequence[Shard]], overwrite: bool) -> Iterator[tuple[Sequence[Shard], Any]]:
    # In threads it would take longer: they take turns at Python's lock, after each of the many small reads.
    for block in blocks:
        yield block, index_shards(block, overwrite)


def _on_cluster(
    client: Client, blocks: Sequence[Sequence[Shard]], overwrite: bool
) -> Iterator[tuple[Sequence[Shard], Any]]:
    check_package(client)
    futures = client.map(index_shards, blocks, [overwrite] * len(blocks), pure=False)
    of = {future.key: block for future, block in zip(futures, blocks, strict=True)}
    try:
        for future in as_completed(futures, raise_errors=False):
            block = of[future.key]
            if future.status == "finished":
                yield block, future.result()
            else:
                error = future.exception()
                yield block, ShardError(f"the worker could not finish it: {error!r}. See the worker's log")
    finally:
        client.cancel(futures)
