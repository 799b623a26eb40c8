"""Writing one new Parquet file of whole rows of other Parquet files, with all images of their lists, on a worker."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curator_dask.errors import OutputError, ShardError
from curator_dask.frames.committing import Commits
from curator_dask.frames.faults import faults_told
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.editing import BlurredImages
from curator_dask.outputs.manifest import where_from
from curator_dask.outputs.packing import REPORT, PackShard
from curator_dask.outputs.placing import being_written, unwritten
from curator_dask.outputs.shard_names import table_name
from curator_dask.outputs.sharding import NewShard
from curator_dask.runs.turns import aside
from curator_dask.storage import Options
from curator_dask.webdataset.parquet import file_of, open_file
from curator_dask.webdataset.stamps import FileStamp, stamp

_GROUP_BYTES = 50_000_000  # of a row group, about
_BATCH_ROWS = 16  # that are read together: a row may have many images
_STREAM = 1 << 20


@dataclass(frozen=True)
class PackRows(PackShard):
    """Writes one new Parquet file of rows as they are: with the columns, and the types, of the files they are from.

    Attributes
    ----------
    totals
        By split, how many files it has.
    """

    totals: Mapping[str, int] = field(default_factory=dict)

    suffix: ClassVar[str] = ".parquet"

    def name(self, split: str, number: int) -> str:
        """Of a file of a split, without ``.parquet``: that of the folder comes before it."""
        return table_name(split, number, self.totals[split])

    def mark(self, shard: NewShard) -> str:
        """The fingerprint of what is written of a shard."""
        return f"{super().mark(shard)}-rows"

    def _put(
        self,
        shard: NewShard,
        name: str,
        samples: pa.Table,
        stamps: Mapping[str, FileStamp],
        keys: Sequence[str],
        table: pa.Table,
        record: FileRecord,
        blurred: BlurredImages | None = None,
        lost: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        urls = samples.column("url").to_pylist()
        rows = pc.list_flatten(samples.column("offsets")).to_numpy()
        path = self.target.file(f"{name}{self.suffix}")
        with contextlib.ExitStack() as after:
            try:
                with Commits() as commits:
                    with (
                        being_written(path, self.target.options, commits) as (handle, size_of),
                        os.fdopen(handle, "wb", closefd=False) as file,
                    ):
                        self._write(file, urls, rows, stamps)
                    after.enter_context(aside())
            except OSError as error:  # of a sync, or a rename
                raise unwritten(path, error) from error
            except pa.ArrowException as error:
                raise OutputError(f"{path}: could not be written: {error}") from error
            report = {
                **REPORT,
                "name": name,
                "split": shard.split,
                "rows": len(keys),
                "bytes": size_of(),
                "indexed": False,
                "no_index": None,
                "json_left_alone": [],
            }
            nowhere = np.full(len(keys), -1, np.int64)
            names, ends = [f"{key}.row" for key in keys], [*range(len(keys) + 1)]
            where = where_from(name, keys, samples, names, nowhere, nowhere, rows, ends)
            self.put_manifest(shard, name, where, report)
        return report

    def _write(
        self, file: Any, urls: Sequence[str], rows: np.ndarray, stamps: Mapping[str, FileStamp]
    ) -> None:
        writer: pq.ParquetWriter | None = None
        schema, held, size = pa.schema([]), [], 0
        with contextlib.ExitStack() as stack:
            for url, some in _runs(urls, rows):
                for batch in self._rows_of(url, some, stamps[url]):
                    if writer is None:
                        schema = batch.schema
                        writer = stack.enter_context(pq.ParquetWriter(file, schema, compression="zstd"))
                    if not batch.schema.equals(schema):
                        raise ShardError(
                            f"{file_of(url)}: expected the columns of the files before it, {_told(schema)}, found"
                            f" {_told(batch.schema)}: export them apart"
                        )
                    held.append(batch)
                    size += batch.nbytes
                    if size > _GROUP_BYTES:
                        writer.write_table(pa.Table.from_batches(held, schema))
                        held, size = [], 0
            if writer is not None and held:
                writer.write_table(pa.Table.from_batches(held, schema))

    def _rows_of(self, url: str, rows: np.ndarray, state: FileStamp) -> Iterator[pa.RecordBatch]:
        """Rows of a file by their numbers, which ascend."""
        path, options = file_of(url), self.shard_options
        _check(path, options, state)
        with faults_told(path), open_file(path, options, _STREAM) as file:
            first = 0
            for number in range(file.num_row_groups):
                stop = first + file.metadata.row_group(number).num_rows
                mine = rows[(rows >= first) & (rows < stop)]
                if len(mine):
                    at = first
                    for batch in file.iter_batches(_BATCH_ROWS, row_groups=[number]):
                        wanted = mine[(mine >= at) & (mine < at + batch.num_rows)] - at
                        at += batch.num_rows
                        if len(wanted):
                            yield batch.take(pa.array(wanted)).replace_schema_metadata(
                                file.schema_arrow.metadata
                            )
                first = stop
        _check(path, options, state)


def rows_writer(given: Mapping[str, Any], totals: Mapping[str, int]) -> PackRows:
    """What writes whole rows in the place of a `PackShard` with these attributes."""
    others = {"schema": None, "json_columns": (), "index": False, "empty": (), "text_keys": True}
    return PackRows(**{**given, **others}, totals=totals)


def _runs(urls: Sequence[str], rows: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Rows that follow one another in one file."""
    start = 0
    for place in range(1, len(urls) + 1):
        if place == len(urls) or urls[place] != urls[start] or rows[place] <= rows[place - 1]:
            yield urls[start], rows[start:place]
            start = place


def _check(path: str, options: Options, state: FileStamp) -> None:
    if stamp(path, options) != state:
        raise ShardError(
            f"{path}: the file was changed since its samples were looked up: run again, when nobody writes there"
        )


def _told(schema: pa.Schema) -> list[str]:
    return [f"{each.name}: {each.type}" for each in schema]
