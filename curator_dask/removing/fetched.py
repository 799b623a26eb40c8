"""Shards that `fetch` wrote: images go, and their rows stay with their key alone, as the rows are those of a table."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.errors import ShardError
from curator_dask.fetching.failures import SUCCESS
from curator_dask.fetching.files import ShardFiles, Stored
from curator_dask.fetching.layout import KEY, LEFT
from curator_dask.fetching.place import FetchPlace
from curator_dask.fetching.reporting import report_of_shard
from curator_dask.fetching.taking_away import without_content
from curator_dask.frames.names import MESSAGE_COLUMN, STATUS_COLUMN
from curator_dask.frames.parquet import read_footer
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.placing import put
from curator_dask.outputs.selecting import Folder
from curator_dask.outputs.taken_down import REMOVED, URL, Marks, taken_down
from curator_dask.removing.asking import Asked
from curator_dask.removing.places import Look, read_some, report_of
from curator_dask.removing.tars import cut_tar, local_tar
from curator_dask.storage import exists, read_bytes, remove, walk
from curator_dask.webdataset.samples import key_text, suffix_of
from curator_dask.webdataset.stamps import stamp


@dataclass(frozen=True)
class FetchedPlace:
    """The folder of fetched shards."""

    folder: Folder
    kind: str = "fetched shards"
    unit: str = "shard"

    @property
    def _files(self) -> ShardFiles:
        return FetchPlace(self.folder).files

    def names(self) -> list[str]:
        """Of its shards."""
        found = (name.removesuffix(".parquet") for name in walk(*self.folder) if name.endswith(".parquet"))
        return sorted(name for name in found if name.isdecimal())

    def open(self) -> AbstractContextManager[Any]:
        """Keep others from writing there."""
        return FetchPlace(self.folder).open()

    def look(self, name: str, kinds: Collection[str], asked: Asked) -> Look:
        """The rows of a shard, also of those without an image: of these the URL and the rest go."""
        path = self._files.parquet(name)
        table = read_some(path, self.folder.options, KEY, [STATUS_COLUMN], kinds, asked)
        there = np.asarray(pc.not_equal(table.column(STATUS_COLUMN), REMOVED).fill_null(True))
        return Look(Marks.of(table, KEY, kinds, self._files.tar(name)), table, KEY, there)

    def rewrite(self, name: str, again: Mapping[str, Any]) -> dict[str, Any]:
        """Take the images out of a tar, and all but the keys out of their rows."""
        files, options = self._files, self.folder.options
        record = taken_down(*self.folder)
        if files.finished(name, None) is None:
            raise ShardError(
                f"{files.tar(name)}: its tar and its rows do not belong together, as a fetch was interrupted: run the"
                " same fetch again, and then this"
            )
        rows, report = files.rows(name)
        made = read_footer(files.parquet(name), options).record or FileRecord("")
        known = np.asarray(pc.equal(rows.column(STATUS_COLUMN), REMOVED).fill_null(False))
        gone = np.zeros(len(rows), bool)
        if record is not None:
            gone = record.mask(Marks.of(rows, KEY, record.kinds, files.tar(name)))
        new = gone & ~known
        keys = rows.column(KEY).to_pylist()
        away = {keys[row] for row in np.flatnonzero(gone).tolist()}
        size, moved = 0, None
        if new.any():
            with local_tar(self.folder, f"{name}.tar") as path:
                before = stamp(files.tar(name), options)
                had = np.asarray(pc.equal(rows.column(STATUS_COLUMN), SUCCESS).fill_null(False))
                every = cut_tar(path, (), files.tar(name)).samples if had.any() else ()
                stay = [each for each in every if key_text(each.key) not in away]
                images = {key_text(each.key): each.image() for each in stay}
                rows = _told(rows, gone)
                members = [
                    (each.name, Stored(str(path), each.offset, each.size, suffix_of(each)))
                    for sample in stay
                    for each in sample.members
                ]
                left = rows.column(LEFT).to_pylist() if LEFT in rows.column_names else [None] * len(rows)
                stored = [
                    Stored("", 0, image.size, "", left=why)
                    if (image := images.get(key)) is not None
                    else None
                    for key, why in zip(keys, left, strict=True)
                ]
                reasons = [
                    None if image is not None else (reason or REMOVED)
                    for image, reason in zip(stored, rows.column(MESSAGE_COLUMN).to_pylist(), strict=True)
                ]
                urls = rows.column(URL).to_pylist()
                said = {**report, **report_of_shard(name, keys, urls, stored, reasons)}
                if (had & new).any():
                    files.write(name, members, rows, _with(made, said))
                    moved = {"url": files.tar(name), "before": vars(before)}
                    moved["after"] = vars(stamp(files.tar(name), options))
                    size += stamp(files.tar(name), options).size
                else:
                    files.write(name, [], rows, _with(made, said), keep_tar=True)
                size += stamp(files.parquet(name), options).size
        self._index(name)
        return report_of(name, int(new.sum()), size, moved)

    def _index(self, name: str) -> None:
        """Have an index beside the tar fit it, where there is one."""
        path, options = self.folder.file(f"{name}.idx"), self.folder.options
        if not exists(path, options):
            return
        with local_tar(self.folder, f"{name}.tar") as tar:
            content = cut_tar(tar, (), self.folder.file(f"{name}.tar")).index(path)
        if content is None:
            remove(path, options)
        elif read_bytes(path, options) != content:
            put(path, content, options)

    def finish(self, removed: int) -> None:
        """Nothing speaks of its shards."""


def _with(record: FileRecord, report: Mapping[str, Any]) -> FileRecord:
    return FileRecord(record.fingerprint, id_col=record.id_col, report=report)


def _told(rows: pa.Table, gone: np.ndarray) -> pa.Table:
    """The rows, those that are gone saying so, and nothing else."""
    for name in (STATUS_COLUMN, MESSAGE_COLUMN):
        column = pc.if_else(pa.array(gone), REMOVED, rows.column(name))
        rows = rows.set_column(rows.column_names.index(name), rows.schema.field(name), column)
    return without_content(rows)
