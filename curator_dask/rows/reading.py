"""Rows of a shard: from its companion Parquet, or (`tar_rows`) from the tar's own captions and JSON."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curator_dask import backend
from curator_dask.cache import POSSESSIONS, Remembered
from curator_dask.errors import ConfigError, CuratorError, DatasetError, ShardError
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import known_record, open_parquet, read_record, state_of
from curator_dask.frames.record import FileRecord
from curator_dask.frames.row_ranges import row_range
from curator_dask.rows.ids import check_id_type, check_ids
from curator_dask.rows.remarks import fact_of, remark
from curator_dask.rows.several import RowsOfImages, check_source, columns_of_images
from curator_dask.rows.tar_rows import join_tar, later_columns, read_tar_rows, tar_schema
from curator_dask.storage import is_remote
from curator_dask.webdataset.opening import open_shard
from curator_dask.webdataset.parquet import KEY, columns_of_rows, is_numbered, is_parquet_shard, numbered_keys
from curator_dask.webdataset.several_names import COLUMNS, is_each
from curator_dask.webdataset.shards import Shard, ShardRange, ShardSet
from curator_dask.webdataset.stamps import stamp
from curator_dask.words import some_of_these

#: Shards that are looked at on the client to learn the columns, spread evenly over the dataset.
SCHEMA_SHARDS = 16
#: Parquet files whose ids are in order, by their states.
_CHECKED: Remembered[None] = POSSESSIONS.add("ids", Remembered(64))


@dataclass(frozen=True)
class ReadShard:
    """Reads the rows of a `ShardRange` as a frame; the root of every dataset's graph.

    Attributes
    ----------
    id_col
        Column of the keys.
    source
        ``"parquet"`` (the companion file, or the one that the images lie in) or ``"tar"``.
    schema
        Columns of every partition; the last is ``__url__``.
    storage_options
        For fsspec.
    nested_json
        Lists and objects in the JSON of tars are columns, too, as text.
    only
        Columns that alone are given; None: all.
    """

    id_col: str
    source: str
    schema: pa.Schema
    storage_options: Mapping[str, Any] | None = None
    nested_json: bool = False
    only: tuple[str, ...] | None = None

    @property
    def recipe(self) -> tuple[str, ...]:
        """What is done to a shard, for fingerprints: the columns found in it are none of that."""
        return ("read", self.id_col, *(["nested"] if self.nested_json else []))

    @property
    def later_columns(self) -> frozenset[str]:
        """See `curator_dask.rows.tar_rows.later_columns`."""
        return later_columns(self.schema)

    def __dask_tokenize__(self) -> Any:
        schema = str(self.schema.to_string(show_field_metadata=False, show_schema_metadata=False))
        only = () if self.only is None else (self.only,)
        return (type(self).__name__, *self.recipe[1:], self.source, schema, self.storage_options, *only)

    def __call__(self, part: ShardRange) -> Any:
        """The rows of the range, in the order of the Parquet or of the tar.

        Raises
        ------
        ShardError
            The Parquet (or, without one, the tar) cannot be read or does not fit the dataset's columns.
        """
        return backend.current().from_arrow(self._wanted(part))

    def together(self, parts: Sequence[ShardRange]) -> tuple[Any, list[int]]:
        """The rows of several ranges as one frame, and where each range's end."""
        tables = [self._wanted(part) for part in parts]
        # In one piece: what is done to the rows later costs as much for each chunk as for each column.
        frame = backend.current().from_arrow(pa.concat_tables(tables).combine_chunks())
        return frame, list(itertools.accumulate(map(len, tables)))

    def _wanted(self, part: ShardRange) -> pa.Table:
        try:
            table = self.rows(part)
        except UnicodeEncodeError as error:
            raise ShardError(
                f"{part.shard.url!r}: a name that is not UTF-8 cannot be a value: {error}"
            ) from error
        return table if self.only is None else table.select(self.only)

    def rows(self, part: ShardRange) -> pa.Table:
        """The same as Arrow's table, columns besides `only` as they may come."""
        how = (part, self.schema, self.id_col, self.storage_options, self.nested_json)
        return read_parquet_rows(*how, only=self.only) if self.source == "parquet" else read_tar_rows(*how)

    def count(self, shard: Shard) -> int:
        """Rows of a shard, from the Parquet's footer or the tar's index."""
        if self.source == "parquet" and not is_each(shard.url):
            with _open_parquet(shard, self.storage_options) as file:
                return int(file.metadata.num_rows)
        with open_shard(shard.url, storage_options=self.storage_options) as reader:
            return len(reader.index.samples)


def choose_source(metadata: str, found: ShardSet, storage_options: Mapping[str, Any] | None = None) -> str:
    """Where a dataset's rows come from: ``"parquet"`` or ``"tar"``.

    Parameters
    ----------
    metadata
        As for `ImageTextPairDataset.from_webdataset`.
    found
        The shards.
    storage_options
        For fsspec.

    Raises
    ------
    ConfigError
        Rows of Parquet files with images are to come from tars.
    DatasetError
        Some shards have a Parquet file, others not.
    """
    if is_parquet_shard(found.shards[0].url):
        if metadata == "tar":
            raise ConfigError(
                f"metadata='tar' (--metadata tar): {found.root} has Parquet files with images, and rows come from these"
            )
        return "parquet"
    if metadata == "tar":
        return "tar"
    without = [shard for shard in found.shards if shard.parquet is None]
    if not without:
        check_source(is_each(found.shards[0].url), found.root)
        return "parquet"
    if len(without) == len(found.shards) and metadata == "auto":
        return "tar"
    companions = [shard.parquet for shard in found.shards if shard.parquet is not None]
    if metadata == "auto" and all(_is_own_output(parquet, storage_options) for parquet in companions):
        return "tar"  # what an interrupted save_metadata left beside tars that have no Parquet of their own
    names = ", ".join(shard.url for shard in without[:5]) + (", …" if len(without) > 5 else "")
    raise DatasetError(
        f"{len(without)} of {len(found.shards)} shards have no .parquet beside the tar: {names}. Restore these files,"
        " or read the rows of all shards from the tars with metadata='tar' (--metadata tar)"
    )


def _is_own_output(parquet: str, storage_options: Mapping[str, Any] | None) -> bool:
    record = read_record(parquet, storage_options)
    return record is not None and record.source == "tar"


def learn_schema(
    shards: Sequence[Shard],
    source: str,
    id_col: str,
    storage_options: Mapping[str, Any] | None = None,
    nested_json: bool = False,
) -> pa.Schema:
    """The columns of a dataset, from at most `SCHEMA_SHARDS` of its shards, ``__url__`` last.

    A column that some of them lack is null there; numbers widen. `nested_json` is as for `tar_row`.

    Raises
    ------
    DatasetError
        No key column, or two shards whose columns cannot be one.
    """
    step = max(1, -(-len(shards) // SCHEMA_SHARDS))
    looked = list(dict.fromkeys([*shards[::step], shards[-1]]))
    look = _parquet_schema if source == "parquet" else partial(tar_schema, nested_json=nested_json)
    join = _join_parquet if source == "parquet" else join_tar
    schema, problems = pa.schema([]), []
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda shard: _try(look, shard, id_col, storage_options), looked)
        for shard, result in zip(looked, found, strict=True):
            if isinstance(result, CuratorError):
                problems.append(result)  # a shard that cannot be read is that shard's own trouble
                continue
            try:
                schema = join(schema, result)
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise DatasetError(
                    f"{shard.parquet or shard.url}: its columns do not fit those of the shards before it: {error}."
                    " Rewrite it with the same types, or make two datasets"
                ) from error
    if len(problems) == len(looked):
        raise DatasetError(
            f"none of the {len(looked)} shards looked at can be read; the first: {problems[0]}"
        )
    if id_col not in schema.names:
        raise DatasetError(
            f"id_col={id_col!r}: no such column in {shards[0].parquet or shards[0].url}; "
            f"it has {some_of_these(schema.names, id_col)}."
            " Give id_col (--id-col) the column whose values are the keys in the tar"
        )
    check_id_type(schema.field(id_col).type, id_col)
    fields = [
        # Only nulls were seen so far: text is what such columns (error messages, mostly) turn out to hold.
        field.with_type(_plain(field.type))
        for field in schema
        if field.name != URL_COLUMN
    ]
    return pa.schema([*fields, pa.field(URL_COLUMN, pa.string())])


def read_parquet_rows(
    part: ShardRange,
    schema: pa.Schema,
    id_col: str,
    storage_options: Mapping[str, Any] | None = None,
    nested_json: bool = False,
    only: Collection[str] | None = None,
) -> pa.Table:
    """The range's rows of the companion Parquet, with the schema's columns and types, null where not among `only`.

    If that is the output of an earlier run over a shard without Parquet, and the tar has changed since, the rows
    are the tar's, with `nested_json` as for `tar_row`.

    Raises
    ------
    ShardError
        The file cannot be read, its columns do not fit, or its ids are null or repeated, in this part or another.
    """
    state = state_of(str(part.shard.parquet))
    with _open_parquet(part.shard, storage_options) as file:
        found = columns_of_rows(file.schema_arrow, part.shard.url)
        record = known_record(state, lambda: FileRecord.parse(found.metadata))
        if _outdated(record, part.shard, storage_options):
            return read_tar_rows(part, schema, id_col, storage_options, nested_json)
        wanted = [name for name in schema.names if name in found.names and name != URL_COLUMN]
        extra = set(found.names) - set(schema.names)
        if extra and record is None:
            raise ShardError(
                f"{part.shard.parquet}: has columns {sorted(extra)} that the shards looked at first do not have"
                f" ({schema.names}). Give all companion files the same columns"
            )
        wanted = [name for name in wanted if only is None or name in (*only, id_col)]
        if numbered := is_numbered(part.shard.url):
            wanted = [name for name in wanted if name != id_col]
        elif id_col not in wanted:
            raise ShardError(
                f"{part.shard.parquet}: expected the column {id_col!r}, by which rows find their images, found"
                f" {found.names}. Give the file that column"
            )
        try:
            each = RowsOfImages(file, part, storage_options) if is_each(part.shard.url) else None
            start, stop = (part.start, part.stop) if each is None else (each.start, each.stop)
            table = row_range(file, wanted, start, stop)
            if numbered:
                keys = numbered_keys(part.shard.name, range(start, start + table.num_rows))
                table = table.append_column(id_col, pa.array(keys, pa.string()))
                wanted.append(id_col)
            elif part.part is None:
                check_ids(table.column(id_col), id_col, str(part.shard.parquet))
            else:
                _check_all_ids(file, part.shard, id_col, storage_options)
            if each is not None:
                table, wanted = each.of(table, id_col), [*wanted, *COLUMNS]
        except ShardError as error:
            if is_parquet_shard(part.shard.url) and id_col == KEY:
                raise ShardError(
                    f"{error}. Where the column has another name, rows' numbers are the keys"
                ) from error
            raise
        except Exception as error:  # a store's own, of many types
            raise _unreadable(part.shard, error) from error
        if not file.metadata.num_rows:
            _remark_unnamed(part.shard, storage_options)
    arrays = []
    for field in schema:
        if field.name == URL_COLUMN:
            arrays.append(_constant(part.shard.url, table.num_rows))
        elif field.name not in wanted:
            arrays.append(pa.nulls(table.num_rows, field.type))
        else:
            arrays.append(_widen(table.column(field.name), field, part.shard))
    return pa.table(arrays, schema=schema)


def _check_all_ids(
    file: pq.ParquetFile, shard: Shard, id_col: str, storage_options: Mapping[str, Any] | None
) -> None:
    """Check the ids of the whole file, for one of its parts; once in a process, since there may be many parts."""
    state = (shard.parquet, id_col, stamp(str(shard.parquet), storage_options))
    _CHECKED.get(state, lambda: check_ids(file.read(columns=[id_col]).column(0), id_col, str(shard.parquet)))


def _open_parquet(shard: Shard, storage_options: Mapping[str, Any] | None) -> pq.ParquetFile:
    assert shard.parquet is not None
    try:
        return open_parquet(shard.parquet, storage_options)
    except Exception as error:  # a store's own, of many types
        raise _unreadable(shard, error) from error


def _unreadable(shard: Shard, error: Exception) -> ShardError:
    why = " ".join(str(error).split()).rstrip(" .")  # Arrow's reasons have several lines
    other = "read the rows from the tars with metadata='tar' (--metadata tar)"
    if is_remote(str(shard.parquet)) and not isinstance(error, pa.ArrowException):
        said = f"could not be read: {why or repr(error)}"  # by no fault of the file
        return ShardError(f"{shard.parquet}: {said}. See whether storage_options may read it, and run again")
    remedy = "Fetch it again, or leave it out" if is_parquet_shard(shard.url) else f"Restore it, or {other}"
    return ShardError(f"{shard.parquet}: not a Parquet file that can be read: {why}. {remedy}")


def _remark_unnamed(shard: Shard, storage_options: Mapping[str, Any] | None) -> None:
    """Remark on all samples of a shard whose Parquet has no row: no later step sees this shard."""
    with contextlib.suppress(ShardError), open_shard(shard.url, storage_options=storage_options) as reader:
        remark(shard.url, "damaged", reader.index.problem)
        remark(shard.url, "unread", fact_of(map(str, reader.index.unread)))
        remark(shard.url, "orphans", fact_of(sample.key for sample in reader.index.samples))


def _outdated(record: FileRecord | None, shard: Shard, storage_options: Mapping[str, Any] | None) -> bool:
    if record is None or record.source != "tar" or "tar" not in (record.shard or {}):
        return False
    try:
        return bool((record.shard or {})["tar"] != vars(stamp(shard.url, storage_options)))
    except ShardError:
        return False


def _parquet_schema(shard: Shard, id_col: str, storage_options: Mapping[str, Any] | None) -> pa.Schema:
    with _open_parquet(shard, storage_options) as file:
        found = columns_of_rows(file.schema_arrow, shard.url).remove_metadata()
    found = found.insert(0, pa.field(id_col, pa.string())) if is_numbered(shard.url) else found
    return (
        columns_of_images(found, id_col, shard.url) if is_each(shard.url) and id_col in found.names else found
    )


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type that a column of this type is read as."""
    if pa.types.is_null(kind) or pa.types.is_string_view(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind


def _join_parquet(one: pa.Schema, other: pa.Schema) -> pa.Schema:
    return pa.unify_schemas([one, other], promote_options="permissive")


def _widen(column: pa.ChunkedArray, field: pa.Field, shard: Shard) -> pa.ChunkedArray:
    if column.type == field.type:
        return column
    if _plain(column.type) == field.type:
        return column.cast(field.type)
    try:
        both = pa.unify_schemas(
            [pa.schema([(field.name, column.type)]), pa.schema([field])], promote_options="permissive"
        )
        if both.field(0).type == field.type:
            return column.cast(field.type)
        reason = ""
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        reason = f" ({error})"
    raise ShardError(
        f"{shard.parquet}: column {field.name!r}: expected {field.type}, found {column.type}{reason}. Rewrite the file"
        " with the type that the other shards have"
    )


def _constant(text: str, rows: int) -> pa.Array:
    return pa.repeat(pa.scalar(text, pa.string()), rows)


def _try(function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except CuratorError as error:
        return error
