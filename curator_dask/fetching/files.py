"""The files of a shard: its tar, the rows beside it, and what tells that both are finished, and belong together."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from curator_dask.errors import OutputError, ShardError
from curator_dask.fetching.looking import Look
from curator_dask.frames.committing import Commits
from curator_dask.frames.faults import faults_told
from curator_dask.frames.parquet import open_parquet, read_footer, write_table
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.placing import being_written, unwritten
from curator_dask.outputs.selecting import Folder
from curator_dask.storage import exists, is_remote, local_path, remove, walk
from curator_dask.webdataset.index import ShardIndex
from curator_dask.webdataset.ranges import Ranges
from curator_dask.webdataset.samples import suffix_of
from curator_dask.webdataset.staging import STAGE
from curator_dask.webdataset.stamps import stamp
from curator_dask.webdataset.writer import Contents, write_tar


@dataclass(frozen=True)
class Stored:
    """An image that is in a file on this machine, and goes into a tar.

    Attributes
    ----------
    path
        Of the file.
    offset, size
        Bytes in it.
    suffix
        By its content.
    width, height, original_width, original_height, sha256, left
        See `curator_dask.fetching.looking.Look`.
    """

    path: str
    offset: int
    size: int
    suffix: str
    width: int = 0
    height: int = 0
    original_width: int = 0
    original_height: int = 0
    sha256: str = ""
    left: str | None = None

    @classmethod
    def of(cls, path: str, offset: int, look: Look) -> Self:
        """That was looked at and put there."""
        return cls(
            path,
            offset,
            len(look.data),
            look.suffix,
            look.width,
            look.height,
            look.original_width,
            look.original_height,
            look.digests["sha256"],
            look.left,
        )


@dataclass(frozen=True)
class ShardFiles:
    """Where shards are.

    First the rows are written beside (`pending`), then the tar in its place, then the rows in theirs. So whenever this
    is interrupted, what is there is that of before or can be put right, and no image is fetched twice.

    Attributes
    ----------
    target
        The folder of tars and rows.
    beside
        That of what else belongs to them.
    """

    target: Folder
    beside: Folder

    def tar(self, name: str) -> str:
        """Path of a shard's tar."""
        return self.target.file(f"{name}.tar")

    def parquet(self, name: str) -> str:
        """Path of the rows beside it."""
        return self.target.file(f"{name}.parquet")

    def pending(self, name: str) -> str:
        """Path of its rows while it is written."""
        return self.beside.file(f"pending/{name}.parquet")

    def finished(self, name: str, mark: str | None) -> dict[str, Any] | None:
        """What the shard came to, where it is finished, of this fingerprint or (None) of any; else None."""
        self._mend(name, mark)
        report = _report_in(self.parquet(name), self.target, mark)
        return report if report is not None and self._tar_bytes(name) == report["bytes"] else None

    def _mend(self, name: str, mark: str | None) -> None:
        """Put the rows of a tar in their place that was interrupted before."""
        pending = self.pending(name)
        if not exists(pending, self.beside.options):
            return
        report = _report_in(pending, self.beside, mark)
        if report is not None and self._tar_bytes(name) == report["bytes"]:
            # The tar before may be as long: it has fewer samples.
            with ExitStack() as stack:
                index = (
                    ShardIndex.scan(_local(stack, self.tar(name), self.target)) if report["images"] else None
                )
            if index is None or len(index.samples) == report["images"]:
                rows, record = _read(pending, self.beside)
                write_table(self.parquet(name), rows, record, self.target.options)
        remove(pending, self.beside.options)

    def _tar_bytes(self, name: str) -> int:
        try:
            return stamp(self.tar(name), self.target.options).size
        except ShardError:  # it is not there
            return -1

    def rows(self, name: str) -> tuple[pa.Table, Mapping[str, Any]]:
        """The rows beside a finished tar, and what the shard came to."""
        rows, record = _read(self.parquet(name), self.target)
        return rows, record.report or {}

    def write(
        self,
        name: str,
        members: Sequence[tuple[str, Stored | bytes]],
        rows: pa.Table,
        record: FileRecord,
        keep_tar: bool = False,
    ) -> None:
        """Write a shard.

        Parameters
        ----------
        name
            Of the shard.
        members
            Of the tar: names, and where their bytes are.
        rows
            Beside it.
        record
            What made it; its report gets the tar's ``bytes``.
        keep_tar
            The tar that is there has these members.

        Raises
        ------
        OutputError
            It cannot be written.
        """
        report = dict(record.report or {})
        if keep_tar:
            report["bytes"] = self._tar_bytes(name)
        else:
            contents, stamps = _contents(members)
            path = self.tar(name)
            try:
                with Commits() as commits, being_written(path, self.target.options, commits) as (file, _):
                    write_tar(file, contents, Ranges(stamps), early=not is_remote(path))
                    report["bytes"] = os.fstat(file).st_size
                    made = _with_report(record, report)
                    write_table(self.pending(name), rows, made, self.beside.options)
            except OSError as error:  # of a sync, or a rename
                raise unwritten(path, error) from error
        write_table(self.parquet(name), rows, _with_report(record, report), self.target.options)
        remove(self.pending(name), self.beside.options)

    def any_there(self) -> bool:
        """Whether a shard is finished."""
        return any(name.endswith(".parquet") for name in walk(*self.target))

    def remove(self, name: str) -> None:
        """Remove a shard: first what says that it is finished."""
        for path in (self.parquet(name), self.tar(name)):
            remove(path, self.target.options)


def known_images(stack: ExitStack, files: ShardFiles, name: str) -> dict[str, Stored]:
    """The images in the tar of a finished shard, by their keys; remote ones in a copy that the stack holds."""
    path = _local(stack, files.tar(name), files.target)
    found = {}
    for sample in ShardIndex.scan(path).samples:
        member = sample.image()
        if member is not None:
            found[sample.key] = Stored(str(path), member.offset, member.size, suffix_of(member))
    return found


def _local(stack: ExitStack, path: str, folder: Folder) -> Path:
    if not is_remote(path):
        return Path(local_path(path))
    return stack.enter_context(STAGE.lease(path, folder.options))


def _contents(members: Sequence[tuple[str, Stored | bytes]]) -> tuple[Contents, dict[str, Any]]:
    """The members as the writer of tars takes them, and the states of the files that they are in."""
    paths = list(dict.fromkeys(each.path for _, each in members if isinstance(each, Stored)))
    numbers = {path: number for number, path in enumerate(paths)}
    sources, offsets, sizes = (np.full(len(members), -1, np.int64) for _ in range(3))
    given = {}
    for place, (_, each) in enumerate(members):
        if isinstance(each, bytes):
            given[place] = each
        else:
            sources[place], offsets[place], sizes[place] = numbers[each.path], each.offset, each.size
    contents = Contents([member for member, _ in members], paths, sources, offsets, sizes, given)
    return contents, {path: stamp(path) for path in paths}


def _with_report(record: FileRecord, report: Mapping[str, Any]) -> FileRecord:
    return FileRecord(record.fingerprint, id_col=record.id_col, report=report)


def _report_in(path: str, folder: Folder, mark: str | None) -> dict[str, Any] | None:
    footer = read_footer(path, folder.options)
    record = footer.record
    if record is None or record.report is None or "bytes" not in record.report:
        return None
    return dict(record.report) if footer.is_finished(record.fingerprint if mark is None else mark) else None


def _read(path: str, folder: Folder) -> tuple[pa.Table, FileRecord]:
    with faults_told(path, OutputError), open_parquet(path, folder.options) as file:
        table = file.read()
    record = FileRecord.parse(table.schema.metadata) or FileRecord("")
    return table.replace_schema_metadata(), record
