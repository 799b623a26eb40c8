"""Tars that others wrote, the sources of a dataset: they are rewritten where that is asked for alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curator_dask.errors import ConfigError
from curator_dask.frames.committing import Commits
from curator_dask.frames.faults import faults_told
from curator_dask.frames.parquet import open_parquet
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.placing import being_written, put
from curator_dask.outputs.saving import opened
from curator_dask.outputs.selecting import Folder
from curator_dask.outputs.taken_down import Marks, taken_down
from curator_dask.removing.asking import Asked
from curator_dask.removing.places import Look, read_some, report_of
from curator_dask.removing.rows import since
from curator_dask.removing.tars import cut_tar, local_tar
from curator_dask.rows.lookup import key_texts
from curator_dask.storage import exists, read_bytes, remove, walk
from curator_dask.webdataset.index import ShardIndex
from curator_dask.webdataset.samples import key_text
from curator_dask.webdataset.stamps import stamp


@dataclass(frozen=True)
class ShardsPlace:
    """A folder of tars, each with its Parquet file where there is one.

    Attributes
    ----------
    folder
        Where they are.
    id_col
        Column of the keys in the Parquet.
    """

    folder: Folder
    id_col: str
    kind: str = "shards of others"
    unit: str = "shard"

    def names(self) -> list[str]:
        """Of the tars, without suffix."""
        return sorted(name.removesuffix(".tar") for name in walk(*self.folder) if name.endswith(".tar"))

    def open(self) -> AbstractContextManager[Any]:
        """Keep others from writing there."""
        return opened(*self.folder)

    def _has_rows(self, name: str) -> bool:
        return exists(self.folder.file(f"{name}.parquet"), self.folder.options)

    def look(self, name: str, kinds: Collection[str], asked: Asked) -> Look:
        """Its rows; without Parquet its keys alone."""
        tar = self.folder.file(f"{name}.tar")
        if self._has_rows(name):
            path = self.folder.file(f"{name}.parquet")
            table = read_some(path, self.folder.options, self.id_col, [], kinds, asked)
            if self.id_col not in table.column_names:
                raise ConfigError(
                    f"{path}: has no column {self.id_col!r} of the keys: give its name (id_col, --id-col)"
                )
        else:
            with local_tar(self.folder, f"{name}.tar") as path_of_tar:
                keys = [key_text(sample.key) for sample in ShardIndex.scan(path_of_tar).samples]
            table = pa.table({self.id_col: pa.array(keys, pa.string())})
        marks = Marks.of(table, self.id_col, kinds, tar)
        return Look(marks, table, self.id_col, np.ones(len(table), bool))

    def rewrite(self, name: str, again: Mapping[str, Any]) -> dict[str, Any]:
        """Take samples out of a tar, its index, and last its rows, which say which they are."""
        record, options = taken_down(*self.folder), self.folder.options
        look = self.look(name, () if record is None else record.kinds, Asked(None, self.id_col))
        gone = np.zeros(len(look.table), bool) if record is None else record.mask(look.marks)
        tar, moved, size = self.folder.file(f"{name}.tar"), None, 0
        if gone.any():
            texts, _ = key_texts(look.table.column(self.id_col))
            away = {texts[row].as_py() for row in np.flatnonzero(gone).tolist()}
            before = vars(stamp(tar, options))
            with local_tar(self.folder, f"{name}.tar") as path, Commits() as commits:
                cut = cut_tar(path, self._as_in_tar(path, away), tar)
                if cut.gone:
                    with being_written(tar, options, commits) as (file, _):
                        cut.write(file)
            if cut.gone:
                after = stamp(tar, options)
                size, moved = after.size, {"url": tar, "before": before, "after": vars(after)}
        self._index(name)
        if gone.any() and self._has_rows(name):
            self._rows(f"{name}.parquet", ~gone, {} if moved is None else {tar: moved})
        return report_of(name, int(gone.sum()), size, moved)

    def _as_in_tar(self, path: Any, keys: Collection[str]) -> set[str]:
        """Keys as the tar has them: a number in the Parquet is there with leading zeros."""
        index = ShardIndex.scan(path)
        places = index.find(sorted(keys))
        return {key_text(index.samples[place].key) for place in places.tolist() if place >= 0}

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

    def _rows(self, name: str, stays: np.ndarray, again: Mapping[str, Any]) -> None:
        """Write a Parquet file of others anew: its columns, types and metadata are what they were.

        Where `embed` has put its columns into it, its record says how many rows there are now, and of which tar.
        """
        path, options = self.folder.file(name), self.folder.options
        with faults_told(path), open_parquet(path, options) as file:
            schema = file.schema_arrow
            if (record := FileRecord.parse(schema.metadata)) is not None:
                left = int(stays.sum())
                gone = record.removed + len(stays) - left
                said = replace(since(record, again), rows=left, removed=gone).to_metadata()
                schema = schema.with_metadata({**(schema.metadata or {}), **said})
            codec = "zstd"
            if file.metadata.num_row_groups and file.metadata.row_group(0).num_columns:
                codec = file.metadata.row_group(0).column(0).compression.lower()
            with (
                Commits() as commits,
                being_written(path, options, commits) as (handle, _),
                open(handle, "wb", closefd=False) as target,
                pq.ParquetWriter(
                    target, schema, compression="none" if codec == "uncompressed" else codec
                ) as writer,
            ):
                start = 0
                for number in range(file.num_row_groups):
                    table = file.read_row_group(number)
                    left_of = table.filter(pa.array(stays[start : start + len(table)]))
                    writer.write_table(left_of.replace_schema_metadata(schema.metadata))
                    start += len(table)

    def finish(self, removed: int) -> None:
        """What others have put beside (``_stats.json``) stays as it is."""
