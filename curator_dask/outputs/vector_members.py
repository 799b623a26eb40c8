"""Vectors of an export that become members of their samples: NumPy files, which webdataset's own decoder reads."""

from __future__ import annotations

import functools
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.errors import ConfigError, ShardError
from curator_dask.frames.faults import faults_told
from curator_dask.frames.parquet import open_parquet
from curator_dask.storage import Options
from curator_dask.webdataset.layouts import portable_suffix

#: In place of a length: the vector is null, or there is null among its numbers, for which NumPy's format has no place.
NULL, BROKEN = -1, -2
_ROWS = 8192  # that are looked at together


@dataclass(frozen=True)
class VectorMember:
    """A column whose vectors become members.

    Attributes
    ----------
    column
        Its name.
    suffix
        Of the members.
    dtype
        NumPy's, of their numbers: ``<f4``.
    """

    column: str
    suffix: str
    dtype: str

    def size(self, length: int) -> int:
        """Bytes of a vector's file."""
        return len(_header(self.dtype, length)) + length * np.dtype(self.dtype).itemsize

    def lengths_in(self, table: pa.Table) -> np.ndarray:
        """Lengths of the vectors of rows: int64 (rows,), `NULL` or `BROKEN` of those without."""
        if self.column not in table.column_names:
            return np.full(len(table), NULL, np.int64)
        return np.concatenate([np.empty(0, np.int64), *map(lengths_in, table.column(self.column).chunks)])

    def files_in(self, table: pa.Table) -> list[bytes | None]:
        """What is in each row's member, in NumPy's format 1.0; None where there is none, or no such column."""
        if self.column not in table.column_names:
            return [None] * len(table)
        found: list[bytes | None] = []
        for chunk in table.column(self.column).chunks:
            if pa.types.is_null(chunk.type):
                found += [None] * len(chunk)
                continue
            lengths = lengths_in(chunk)
            numbers = _numbers(chunk.drop_null().flatten()).astype(self.dtype, copy=False)
            data = numbers.tobytes()
            counts = np.maximum(
                _counts(chunk), 0
            )  # lists with null among their numbers have their place, too
            ends = np.cumsum(counts) * numbers.itemsize
            starts = ends - counts * numbers.itemsize
            for length, start, end in zip(lengths.tolist(), starts.tolist(), ends.tolist(), strict=True):
                found.append(None if length < 0 else _header(self.dtype, length) + data[start:end])
        return found


def check_vectors(column: str, kind: pa.DataType) -> None:
    """Raise ConfigError where the values of a column cannot be NumPy files that are members of a sample."""
    if not pa.types.is_null(kind) and _dtype_of(kind) is None:
        raise ConfigError(
            f"npy: expected vectors, or lists of numbers, in the column {column!r}, found {kind}: name another"
        )
    if not column.isprintable() or any(sign in "/\\" or sign.isspace() for sign in column):
        raise ConfigError(
            f"npy: the column {column!r} gives its members their name, in which a slash or white space cannot be: give"
            " the column another name"
        )


def vector_members(columns: Iterable[str], schema: pa.Schema, portable: bool) -> tuple[VectorMember, ...]:
    """The members that columns become.

    Parameters
    ----------
    columns
        Their names.
    schema
        Of all rows.
    portable
        Suffixes are in lower case.

    Raises
    ------
    ConfigError
        A column holds something else, or two members of a sample would have one name.
    """
    found: dict[str, VectorMember] = {}
    for column in dict.fromkeys(columns):
        kind = schema.field(column).type
        check_vectors(column, kind)
        suffix = f"{column}.npy"
        member = VectorMember(
            column, portable_suffix(suffix) if portable else suffix, _dtype_of(kind) or "<f4"
        )
        if (other := found.setdefault(suffix.lower(), member)) is not member:
            raise ConfigError(
                f"npy: {other.column!r} and {column!r} differ in upper and lower case alone, which readers of tars do"
                " not tell apart: name one of them"
            )
    return tuple(found.values())


def check_new(members: Sequence[VectorMember], fields: Iterable[Mapping[str, int]]) -> None:
    """Raise ConfigError where samples have members of these names already.

    Parameters
    ----------
    members
        Those that they are to get.
    fields
        By suffix, how many samples have it: of each file of rows.
    """
    there: Counter[str] = Counter()
    for some in fields:
        for suffix, count in some.items():
            there[suffix.lower()] += count
    for member in members:
        if count := there[member.suffix.lower()]:
            raise ConfigError(
                f"npy: {count:,} of the samples have a member .{member.suffix} already, which is copied as it is: leave"
                f" {member.column!r} out, or give the column another name"
            )


def lengths_of(path: str, options: Options, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """Lengths of the vectors of a file's rows, by column: int64 (rows,), `NULL` or `BROKEN` of those without.

    Some rows are held at a time.

    Raises
    ------
    ShardError
        The file cannot be read.
    """
    with faults_told(path, ShardError), open_parquet(path, options) as file:
        there = [each for each in columns if each in file.schema_arrow.names]
        rows = file.metadata.num_rows
        parts: dict[str, list[np.ndarray]] = {each: [] for each in there}
        for batch in file.iter_batches(_ROWS, columns=there) if there else ():
            for each in there:
                parts[each].append(lengths_in(batch.column(each)))
    return {
        each: np.concatenate([np.empty(0, np.int64), *parts[each]])
        if each in parts
        else np.full(rows, NULL, np.int64)
        for each in columns
    }


def maybe_null(path: str, options: Options, columns: Sequence[str]) -> list[str]:
    """The columns of lists of a file of which its footer does not say that no list, and no value in one, is null.

    Raises
    ------
    ShardError
        The file cannot be read.
    """
    with faults_told(path, ShardError), open_parquet(path, options) as file:
        whole = {*file.schema_arrow.names}
        for group in map(file.metadata.row_group, range(file.metadata.num_row_groups)):
            for column in map(group.column, range(group.num_columns)):
                said = column.statistics
                if said is None or not said.has_null_count or said.null_count:
                    path_of = column.path_in_schema
                    whole -= {each for each in columns if f"{path_of}.".startswith(f"{each}.")}
    return [each for each in columns if each not in whole]


def vector_counts(lengths: np.ndarray) -> dict[str, int]:
    """How many samples get such a member, and how many do not, by why."""
    null, broken = int((lengths == NULL).sum()), int((lengths == BROKEN).sum())
    return {"members": len(lengths) - null - broken, "null": null, "broken": broken}


def lengths_in(lists: pa.Array) -> np.ndarray:
    """Lengths of lists of numbers: int64 (rows,), `NULL` or `BROKEN` of those without."""
    if pa.types.is_null(lists.type):
        return np.full(len(lists), NULL, np.int64)
    lengths = _counts(lists)
    there = np.flatnonzero(lengths != NULL)
    numbers = lists.drop_null().flatten()
    if numbers.null_count:
        owners = np.repeat(there, lengths[there])
        lengths[owners[np.asarray(numbers.is_null().to_numpy(zero_copy_only=False), bool)]] = BROKEN
    return lengths


def _counts(lists: pa.Array) -> np.ndarray:
    """Lengths of lists, `NULL` of those that are null."""
    found: np.ndarray = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    valid = np.asarray(lists.is_valid().to_numpy(zero_copy_only=False), bool)
    return np.where(valid, np.nan_to_num(found), NULL).astype(np.int64)


def _numbers(array: pa.Array) -> np.ndarray:
    """The numbers of an array as they lie in memory, whatever is where there are none."""
    dtype = np.dtype(array.type.to_pandas_dtype())
    _, data = array.buffers()
    if data is None:
        return np.empty(0, dtype)
    found: np.ndarray = np.frombuffer(data, dtype, len(array), array.offset * dtype.itemsize)
    return found


def _dtype_of(kind: pa.DataType) -> str | None:
    """NumPy's type of the numbers in lists, in the order of bytes that all read; None of other types."""
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        return None
    dtype: str = np.dtype(kind.value_type.to_pandas_dtype()).newbyteorder("<").str
    return dtype


@functools.lru_cache(maxsize=1024)
def _header(dtype: str, length: int) -> bytes:
    """What stands before the numbers."""
    file = io.BytesIO()
    said = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": (length,),
    }
    np.lib.format.write_array_header_1_0(file, said)
    return file.getvalue()
