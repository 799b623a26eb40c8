"""Tables of users, whose columns are given to rows: Parquet, CSV, TSV and JSON Lines, or lists of values alone."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.errors import CuratorError, DatasetError
from curator_dask.frames.columns import to_array
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import list_parquet, open_parquet
from curator_dask.patience import patiently
from curator_dask.rows.caption_files import TABLES, read_table, tidy
from curator_dask.rows.key_column import KeyColumn
from curator_dask.rows.lookup import key_texts, looks_whole, pairs_to_hex, with_shards
from curator_dask.storage import Options, absolute, filesystem, is_remote, local_path, looked_for, read_bytes
from curator_dask.webdataset.stamps import stamp

#: Suffixes of files that are lists of values.
LISTS = (".npy", ".txt")
#: Of text that says of no value whether it is a number.
_UNTYPED = (".csv", ".tsv", ".txt")
_GLOB = frozenset("*?[")
_BLOCK_BYTES = 1 << 22
#: As what a dataset's columns hold text and bytes, whatever a file has.
_PLAIN = {
    **dict.fromkeys((pa.large_string(), pa.string_view()), pa.string()),
    **dict.fromkeys((pa.large_binary(), pa.binary_view()), pa.binary()),
}


@dataclass(frozen=True)
class UserTable:
    """A table, in one file or in several of one kind.

    Attributes
    ----------
    path
        A file, a folder of Parquet files or a glob: absolute, on a disk that all workers see; or a URL.
    key
        The column by whose values its rows are found; of a list its only one.
    options
        For fsspec.
    hint
        What to do where there is no such column, for errors.
    by_shard
        A row is found by its key and its shard, the column ``__url__``, together.
    """

    path: str
    key: str
    options: Options = None
    hint: str = "Give the name of that column (--on COLUMN=TABLE_COLUMN)"
    by_shard: bool = False

    @classmethod
    def find(
        cls, path: str | os.PathLike[str], key: str, options: Options = None, *, hint: str = hint
    ) -> UserTable:
        """The table at a path or URL; the options are those of the rows, which may be in a store when it is not.

        Raises
        ------
        DatasetError
            There is no such table.
        """
        text = os.fsdecode(path)
        options = options if is_remote(text) else None
        table = cls(text if is_remote(text) else absolute(text), key, options, hint)
        if table.files:
            _check_one_kind(table.path, table.files)
            return table
        kinds = f"{', '.join((*TABLES, *LISTS))}, or a folder of Parquet files"
        there = (
            "no Parquet file is there" if Path(local_path(table.path)).is_dir() else "there is no such file"
        )
        raise DatasetError(f"{text}: {there}{looked_for(text)}. Give a table ({kinds})")

    @cached_property
    def files(self) -> tuple[str, ...]:
        """Paths of its files, in their order."""
        remote = is_remote(self.path)
        try:
            if _GLOB & {*self.path} and (remote or not Path(local_path(self.path)).exists()):
                return tuple(sorted(_matching(self.path, self.options)))
            if Path(self.path).suffix.lower() in (*TABLES, *LISTS) and (
                remote or not Path(local_path(self.path)).is_dir()
            ):
                return (self.path,) if remote or Path(local_path(self.path)).exists() else ()
            if not remote and Path(local_path(self.path)).is_file():
                raise DatasetError(
                    f"{self.path}: expected a table of the type {', '.join((*TABLES, *LISTS))}, or a folder of Parquet"
                    " files"
                )
            return tuple(sorted(list_parquet(self.path, self.options)))
        except CuratorError:
            raise
        except Exception as error:  # a store's own, of many types
            raise DatasetError(f"{self.path}: cannot be looked at: {error!r}") from error

    @property
    def is_list(self) -> bool:
        """Whether it has no columns, but values alone."""
        return self._suffix in LISTS

    @property
    def _suffix(self) -> str:
        return Path(self.files[0]).suffix.lower()

    def digest(self) -> str:
        """What tells another content: of files of this machine theirs, of those in a store what it says of them."""
        digest = hashlib.sha256()
        for file in self.files:
            if is_remote(file):
                digest.update(f"{stamp(file, self.options)}\0".encode())
                continue
            own = hashlib.sha256()
            with faults(file), open(local_path(file), "rb") as opened:  # noqa: PTH123
                while block := opened.read(_BLOCK_BYTES):
                    own.update(block)
            digest.update(own.digest())
        return digest.hexdigest()

    @contextlib.contextmanager
    def steady(self) -> Iterator[None]:
        """Within the block the files stay as they are: digest and rows are of one content.

        Raises
        ------
        DatasetError
            They do not.
        """
        before = [stamp(file, self.options) for file in self.files]
        try:
            yield
        finally:  # what is half written cannot be read, for this reason
            for file, state in zip(self.files, before, strict=True):
                with faults(file):
                    changed = stamp(file, self.options) != state
                if changed:
                    raise DatasetError(
                        f"{file}: has changed while it was read. Run again when nobody writes to it"
                    )

    @cached_property
    def schema(self) -> pa.Schema:
        """Names and types of its columns, as they are given to rows."""
        if self._suffix == ".parquet":
            found = []
            for file in self.files:
                with faults(file), open_parquet(file, self.options) as opened:
                    schema = opened.schema_arrow
                with faults(file):
                    found.append(tidy(schema.empty_table()).schema.remove_metadata())
                    self._key.check(found[-1].names)
        else:
            found = [each.schema.remove_metadata() for _, each in self._parsed]
        with faults(self.path):
            plain = [pa.schema([(each.name, _plain(each.type)) for each in schema]) for schema in found]
            whole = pa.unify_schemas(plain, promote_options="permissive")
        return pa.schema(
            [(each.name, pa.string() if pa.types.is_null(each.type) else each.type) for each in whole]
        )

    def shards(self) -> set[str]:
        """Those that its rows name in ``__url__``; none where it has no such column."""
        if self.is_list or URL_COLUMN not in self.schema.names:
            return set()
        found = pc.unique(self._columns([URL_COLUMN]).column(URL_COLUMN)).to_pylist()
        return {each for each in found if isinstance(each, str)}

    def size(self, columns: Sequence[str]) -> int:
        """About how many bytes its keys and these columns are when they are read."""
        size = 0
        for file in self.files:
            if self._suffix != ".parquet":
                size += 2 * stamp(file, self.options).size
                continue
            with faults(file), open_parquet(file, self.options) as opened:
                wanted, schema = {self.key, *columns}, opened.schema_arrow
                widths = sum(_width(schema.field(name).type) for name in wanted if name in schema.names)
                stored = 0
                for number in range(opened.num_row_groups):
                    group = opened.metadata.row_group(number)
                    leaves = (group.column(leaf) for leaf in range(group.num_columns))
                    stored += sum(
                        each.total_uncompressed_size
                        for each in leaves
                        if each.path_in_schema.partition(".")[0] in wanted
                    )
                size += max(stored, opened.metadata.num_rows * widths)
        return size

    def keys(self) -> tuple[pa.Array, bool]:
        """The texts of its keys, a row each, and whether they are numbers (`curator_dask.rows.lookup`).

        Raises
        ------
        DatasetError
            They are of no type that has such texts.
        """
        return self._texts(self._columns([]))

    def values(self) -> pa.ChunkedArray:
        """What is in the column of its keys, as it is."""
        return self._columns([]).column(self.key)

    def read(self, columns: Sequence[str]) -> tuple[pa.Array, bool, pa.Table]:
        """The same, and these columns."""
        table = self._columns(columns)
        kinds = pa.schema([(name, self.schema.field(name).type) for name in columns])
        with faults(self.path):
            payload = pa.table(
                {name: _decoded(table.column(name)).cast(kinds.field(name).type) for name in columns},
                schema=kinds,
            )
        return *self._texts(table), payload

    def row_told(self, row: int) -> str:
        """Where a row is, in words: rows are counted from 0, in their own file."""
        for file, count in self._counts:
            if row < count:
                return f"row {row}" if len(self.files) == 1 else f"row {row} of {Path(file).name}"
            row -= count
        raise IndexError(row)

    @cached_property
    def _counts(self) -> list[tuple[str, int]]:
        if self._suffix != ".parquet":
            return [(file, len(table)) for file, table in self._parsed]
        counts = []
        for file in self.files:
            with faults(file), open_parquet(file, self.options) as opened:
                counts.append((file, opened.metadata.num_rows))
        return counts

    def forget(self) -> None:
        """Let go what was read of files of text."""
        vars(self).pop("_parsed", None)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_parsed"}

    @property
    def _key(self) -> KeyColumn:
        return KeyColumn(self.key, "to find rows by", self.hint)

    def _texts(self, table: pa.Table) -> tuple[pa.Array, bool]:
        try:
            texts, is_number = key_texts(table.column(self.key))
        except ValueError as error:
            raise DatasetError(f"{self.path}: column {self.key!r}: {error}. {self.hint}") from None
        if self._suffix in _UNTYPED:
            texts = pc.if_else(pc.equal(texts, ""), pa.scalar(None, texts.type), texts)
            is_number = looks_whole(texts)
        if self.by_shard:
            texts = with_shards(texts, to_array(table.column(URL_COLUMN)))
        return texts, is_number

    def _columns(self, columns: Sequence[str]) -> pa.Table:
        wanted = list(dict.fromkeys([self.key, *columns, *([URL_COLUMN] if self.by_shard else [])]))
        if self._suffix != ".parquet":
            tables = [table.select(wanted) for _, table in self._parsed]
        else:
            tables = []
            for file in self.files:
                with faults(file), open_parquet(file, self.options) as opened:
                    there = [name for name in wanted if name in opened.schema_arrow.names]
                    tables.append(tidy(opened.read(columns=there)).select(there))
        with faults(self.path):
            plain = [
                pa.table({name: _decoded(each.column(name)) for name in each.column_names}) for each in tables
            ]
            return pa.concat_tables(plain, promote_options="permissive").select(wanted)

    @cached_property
    def _parsed(self) -> list[tuple[str, pa.Table]]:
        """Each file that is no Parquet, whose parts cannot be read alone, with what is in it."""
        return [(file, self._parse(file)) for file in self.files]

    def _parse(self, file: str) -> pa.Table:
        with faults(file):
            suffix, data = Path(file).suffix.lower(), read_bytes(file, self.options)
            if suffix == ".npy":
                return pa.table({self.key: _array_in(data)})
            if suffix == ".txt":
                lines = data.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
                return pa.table({self.key: pa.array([line for line in lines if line], pa.string())})
            return read_table(file, data, self._key)


@contextlib.contextmanager
def faults(path: str) -> Iterator[None]:
    """Within the block what is wrong with a table becomes an error that names it."""
    try:
        yield
    except CuratorError:
        raise
    except Exception as error:  # pyarrow's, NumPy's or a store's own, of many types
        raise DatasetError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error


def _matching(pattern: str, options: Options) -> list[str]:
    if not is_remote(pattern):
        return [each for each in glob.glob(local_path(pattern), recursive=True) if Path(each).is_file()]  # noqa: PTH207
    fs, inside = filesystem(pattern, options)
    return [fs.unstrip_protocol(each) for each in patiently(lambda: fs.glob(inside), pattern)]


def _check_one_kind(path: str, files: Sequence[str]) -> None:
    """Raise DatasetError where files of a glob are of several kinds, which say differently what a value is."""
    first: dict[str, str] = {}
    for file in files:
        first.setdefault(Path(file).suffix.lower(), Path(file).name)
    if len(first) > 1:
        raise DatasetError(
            f"{path}: matches files of several kinds, {' and '.join(first.values())} among them: give a pattern for"
            " those of one kind, such as *.parquet"
        )


def _array_in(data: bytes) -> pa.Array:
    found = np.load(io.BytesIO(data), allow_pickle=False)
    if found.ndim != 1:
        raise ValueError(f"expected an array of one dimension, a value each, found {list(found.shape)}")
    if found.dtype.names:
        kinds = [found.dtype[name].kind for name in found.dtype.names]
        if kinds != ["u", "u"]:
            raise ValueError(
                f"expected values, or pairs of uint64 (as DataComp writes uids), found {found.dtype}"
            )
        return pairs_to_hex(found)
    # Arrow refuses bytes in another order than the machine's.
    return pa.array(found.astype(found.dtype.newbyteorder("="), copy=False))


def _decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = pa.chunked_array([chunk.dictionary_decode() for chunk in column.chunks], kind.value_type)
    return column


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type that rows get."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    return _PLAIN.get(kind, kind)


def _width(kind: pa.DataType) -> int:
    """Bytes of a value, or of where it begins."""
    try:
        return max(1, int(kind.bit_width) // 8)
    except ValueError:
        return 4
