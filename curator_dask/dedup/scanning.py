"""Reading the vectors of a file once: those that can be compared, and what is said of its rows."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.dedup.hashes import Hashes
from curator_dask.dedup.keeping import Keep
from curator_dask.dedup.memory import NO_LIMIT, Memory
from curator_dask.dedup.phases import Phase
from curator_dask.errors import OutputError, ShardError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.columns import list_to_matrix
from curator_dask.frames.faults import faults_told
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import open_parquet, whole_footers, write_table
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.given import given_files, shard_of_file
from curator_dask.outputs.unchanged import changed_shard
from curator_dask.storage import Options, is_remote, join
from curator_dask.threads import in_threads
from curator_dask.webdataset.stamps import stamp

logger = logging.getLogger("curator_dask")

#: What may be wrong with a vector, by the number that stands for it; 0: nothing. The last: its file has no vectors.
FAULTS = ("good", "null", "zero", "not finite", "not of unit length", "in files without a column of vectors")
NO_COLUMN = len(FAULTS) - 1
#: Lengths of unit vectors, as float16 and bf16 round them, are off by less.
_UNIT = 0.01
_CHUNK = 128  # rows that fit into a core's cache in float64


@dataclass(frozen=True)
class Source:
    """A file of vectors.

    Attributes
    ----------
    path, options
        Where it is.
    name
        That of its files in a phase.
    fixed
        Its rows stay, whatever they are like: others are compared with them.
    """

    path: str
    options: Options
    name: str
    fixed: bool = False


def find_sources(folder: str, options: Options, fixed: bool = False) -> list[Source]:
    """The Parquet files of a folder or URL, each with a name that changes when it does.

    Raises
    ------
    OutputError
        There is none.
    """
    names = given_files(folder, options)
    paths = [join(folder, name) for name in names]
    stamps = in_threads(lambda path: stamp(path, options), paths)
    return [
        Source(path, options, fingerprint({"path": path, "state": vars(state), "fixed": fixed})[:16], fixed)
        for path, state in zip(paths, stamps, strict=True)
    ]


def look_over(sources: Sequence[Source], finished: Callable[[str], bool]) -> None:
    """See that files can be read before there is a cluster, and warn of those whose shards have changed since.

    Parameters
    ----------
    sources
        Files of vectors. In a store those alone are looked at that are not scanned yet.
    finished
        Whether that has been done, by name.

    Raises
    ------
    OutputError
        One cannot be read.
    """
    paths = [each.path for each in sources if not (is_remote(each.path) and finished(each.name))]
    footers = whole_footers(paths, sources[0].options)
    changed = [shard for footer in footers.values() if (shard := changed_shard(footer.record))]
    if changed:
        logger.warning(
            "%s: %d shards have changed since these rows were made of them, %s for example. Run embed again first, and"
            " what was made of its vectors, or rows and vectors are those of before",
            *(os.path.dirname(sources[-1].path), len(changed), changed[0]),  # noqa: PTH120
        )


@dataclass(frozen=True)
class Scan:
    """Writes the unit vectors of files, and beside them what is said of each row.

    Attributes
    ----------
    phase
        Where to.
    sources
        The files.
    column
        Of the vectors.
    keep
        What decides who stays.
    normalize
        Vectors of other lengths are made unit length, instead of being set aside.
    exact
        Hashes that are wanted too.
    memory
        What is held at a time.
    """

    phase: Phase
    sources: tuple[Source, ...]
    column: str
    keep: Keep
    normalize: bool
    exact: Hashes
    memory: Memory = NO_LIMIT

    def finished(self, name: str) -> bool:
        """Whether a file was scanned."""
        return self.phase.has(f"{name}.parquet") and self.phase.has(f"{name}.vectors")

    def make(self, name: str) -> int:
        """Scan one file."""
        source = next(each for each in self.sources if each.name == name)
        with faults_told(source.path, ShardError), open_parquet(source.path, source.options) as file:
            return self._scan(source, file)

    def _scan(self, source: Source, file: Any) -> int:
        columns = file.schema_arrow.names
        has_vectors = self.column in columns
        # Where there are vectors of another name, the one that was asked for is misspelt.
        if not has_vectors and (not self.exact.radii or _vectors_in(file.schema_arrow)):
            raise OutputError(_no_column(source.path, self.column, file.schema_arrow))
        record = FileRecord.parse(file.schema_arrow.metadata)
        key = id_column(record, columns)
        faults, digests, dim = [], [], 0
        with self.phase.writing(f"{source.name}.vectors") as out:
            some = self.memory.scanned(_width(file, self.column)) if has_vectors else 0
            for batch in file.iter_batches(some, columns=[self.column]) if has_vectors else ():
                try:
                    matrix, valid = list_to_matrix(batch.column(0), dim or None)
                except ValueError as error:
                    raise ShardError(f"{source.path}: {self.column!r}: {error}") from None
                dim = dim or matrix.shape[1]
                fault, unit = self._judge(matrix, valid)
                good = fault == 0 if fault.any() else slice(None)
                out.write(np.ascontiguousarray(unit[good]))
                faults.append(fault)
                digests += [hashlib.sha256(row).digest()[:16] for row in np.ascontiguousarray(matrix[good])]
        rows = 0 if has_vectors else file.metadata.num_rows
        fault = np.concatenate([np.full(rows, NO_COLUMN, np.uint8), *faults])
        wanted = [] if source.fixed else self.keep.columns(columns, source.path)
        wanted += self.exact.columns(columns, source.path)
        named = [name for name in (key, URL_COLUMN) if name in columns]
        read = file.read(columns=list(dict.fromkeys([*named, *wanted])))
        shard = shard_of_file(file.schema_arrow, source.path, source.options) if key in columns else None
        table = self._table(read, key, fault, digests, source, shard or source.path)
        record = FileRecord(str(dim), id_col=key)
        write_table(self.phase.path(f"{source.name}.parquet"), table, record, self.phase.options)
        return len(table)

    def _judge(self, matrix: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Number of the fault of each row, and the rows at unit length."""
        lengths, unit = np.empty(len(matrix)), np.empty_like(matrix)
        with np.errstate(all="ignore"):
            for start in range(0, len(matrix), _CHUNK):
                some, part = matrix[start : start + _CHUNK], slice(start, start + _CHUNK)
                lengths[part] = np.sqrt(np.square(some, dtype=np.float64).sum(axis=1))
                unit[part] = some / lengths[part, None]
        fault = np.zeros(len(matrix), np.uint8)
        if not self.normalize:
            fault[np.abs(lengths - 1) > _UNIT] = 4
        fault[lengths == 0] = 2
        fault[~np.isfinite(lengths)] = 3
        fault[~valid] = 1
        return fault, unit

    def _table(
        self, rows: pa.Table, key: str, fault: np.ndarray, digests: list[bytes], source: Source, shard: str
    ) -> pa.Table:
        whole = np.zeros((len(fault), 2), np.uint64)
        if digests:
            whole[fault == 0] = np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)
        names = [str(number) for number in range(len(fault))]
        keys = rows.column(key).cast(pa.string()) if key in rows.column_names else pa.array(names)
        urls = (
            rows.column(URL_COLUMN).cast(pa.string())
            if URL_COLUMN in rows.column_names
            else pa.array([shard] * len(fault), pa.string())
        )
        table = {
            "id": keys,
            URL_COLUMN: urls,
            "fault": pa.array(fault),
            "digest0": pa.array(whole[:, 0]),
            "digest1": pa.array(whole[:, 1]),
        }
        terms = self.keep.blank(len(fault)) if source.fixed else self.keep.terms(rows, source.path)
        return pa.table({**table, **terms, **self.exact.values(rows, source.path)})


def _width(file: Any, column: str) -> int:
    """About how many values a row has in a column of lists."""
    meta = file.metadata
    if not meta.num_row_groups:
        return 1
    group = meta.row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    values: int = sum(each.num_values for each in columns if each.path_in_schema.split(".")[0] == column)
    return max(1, values // max(1, int(group.num_rows)))


def id_column(record: FileRecord | None, columns: list[str]) -> str:
    """Column of the keys."""
    named = record.id_col if record is not None else None
    return named or next((name for name in ("key", "id") if name in columns), "key")


def _no_column(path: str, column: str, schema: pa.Schema) -> str:
    return (
        f"{path}: has no column {column!r} of vectors; of its columns {_vectors_in(schema)} hold vectors. Give the"
        " name of theirs (embedding_column, --column), or of columns of hashes (exact, --exact) where there are none"
    )


def _vectors_in(schema: pa.Schema) -> list[str]:
    """Columns of lists of floats: other programs do not write float32 alone."""
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    lists = [field for field in schema if any(is_kind(field.type) for is_kind in kinds)]
    return [field.name for field in lists if pa.types.is_floating(field.type.value_type)]


def dim_of(table: pa.Table) -> int:
    """Length of the vectors of a file that was scanned, by the table of its rows; 0 where it has none."""
    record = FileRecord.parse(table.schema.metadata)
    return int(record.fingerprint or 0) if record is not None else 0
