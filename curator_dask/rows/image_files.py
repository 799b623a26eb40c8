"""Rows of images that are files of their own, where their columns come from a table of captions, or from nowhere."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.cache import POSSESSIONS, Remembered
from curator_dask.errors import ConfigError, DatasetError, ShardError
from curator_dask.frames.names import ERROR_COLUMN, FILE_COLUMN, URL_COLUMN
from curator_dask.rows.caption_files import TABLES, nameless_of, read_captions
from curator_dask.rows.reading import ReadShard
from curator_dask.rows.remarks import fact_of, remark
from curator_dask.storage import RELATIVE, Options, absolute, is_remote, read_bytes
from curator_dask.webdataset.folders import is_folder_shard, walk
from curator_dask.webdataset.opening import open_shard
from curator_dask.webdataset.parquet import is_parquet_shard
from curator_dask.webdataset.samples import key_text
from curator_dask.webdataset.shards import ShardRange, ShardSet
from curator_dask.webdataset.stamps import stamp
from curator_dask.words import counted

_FEW = 3  # names that an error gives
#: Tables by path and state: every shard of a dataset asks for the same.
_TABLES: Remembered[pa.Table] = POSSESSIONS.add("captions", Remembered(2))


@dataclass(frozen=True)
class CaptionTable:
    """A file with a row an image: the column ``file_name``, and any others.

    Attributes
    ----------
    path
        Of a Parquet, CSV or JSON Lines file: on a disk that all workers see, or a URL.
    options
        For fsspec.
    """

    path: str
    options: Options = None

    def read(self) -> pa.Table:
        """All of it.

        Raises
        ------
        DatasetError
            It cannot be read, has no column ``file_name``, or a name stands in several rows.
        """
        try:
            state = stamp(self.path, self.options)
        except ShardError as error:
            if not is_remote(self.path) and not os.path.exists(self.path):  # noqa: PTH110
                raise DatasetError(
                    f"captions: {self.path}: there is no such file ({RELATIVE}). Give a table ({', '.join(TABLES)}),"
                    " txt or none"
                ) from None
            raise DatasetError(f"captions: {error}") from None
        return _TABLES.get((self.path, state), self._read)

    def _read(self) -> pa.Table:
        try:
            table = read_captions(self.path, read_bytes(self.path, self.options))
        except Exception as error:  # pyarrow's, or a store's own, of many types
            raise DatasetError(f"{self.path}: cannot be read: {' '.join(str(error).split())}") from error
        names = table.column(FILE_COLUMN).combine_chunks()
        names = pc.replace_substring_regex(names, r"^(\./)+", "")
        counts = pc.value_counts(names.drop_null())
        several = counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist()
        if several:
            raise DatasetError(
                f"{self.path}: {counted(len(several), 'image')} in several rows each,"
                f" {', '.join(map(repr, several[:_FEW]))} for"
                " example: leave one row of each"
            )
        table = table.set_column(table.column_names.index(FILE_COLUMN), FILE_COLUMN, names)
        return table.filter(pc.is_valid(names))

    def schema(self, id_col: str) -> pa.Schema:
        """The columns of rows.

        Raises
        ------
        DatasetError
            It cannot be used, or a column has the name of one that is made.
        """
        found = self.read().schema.remove_metadata()
        if taken := [name for name in (id_col, URL_COLUMN, ERROR_COLUMN) if name in found.names]:
            raise DatasetError(
                f"{self.path}: has columns {taken}, whose names are those of the keys (id_col), of the shard and of"
                " reasons: give them others"
            )
        others = [
            each.with_type(pa.string()) if pa.types.is_null(each.type) else each
            for each in found
            if each.name != FILE_COLUMN
        ]
        return _schema(id_col, others)

    def match(self, folder: str, options: Options = None) -> tuple[pa.Array, pa.Array]:
        """The images of a folder, and of each the number of its row: null where it has none.

        Parameters
        ----------
        folder
            Local path or URL.
        options
            For fsspec.

        Raises
        ------
        DatasetError
            No image has a row.
        """
        found = [
            key_text(group.below + names[0])
            for group in walk(folder, options=options)
            for _, names in group.samples()
        ]
        files = pa.array(found, pa.string())
        names = self.read().column(FILE_COLUMN)
        rows = pc.index_in(files, value_set=names)
        if rows.null_count == len(rows):
            has = ", ".join(map(repr, names[:_FEW].to_pylist())) or "none"
            raise DatasetError(
                f"{self.path}: none of the {counted(len(files), 'image')} of {folder} has a row: expected names such as"
                f" {found[0]!r} in the column {FILE_COLUMN!r}, found {has}"
            )
        return files, rows

    def told(self, folder: str, options: Options = None) -> str:
        """How many images of a folder have a row, and what is left out, in words. As `match` otherwise."""
        files, rows = self.match(folder, options)
        found = len(rows) - rows.null_count
        alone = counted(self.read().num_rows - found, "row")
        left = (
            counted(len(self.nameless), "column")
            + " without a name left out, as an index that pandas has written"
        )
        return f"{counted(len(files), 'image')}, {found} with a row; {alone} without an image" + (
            f"; {left}" if self.nameless else ""
        )

    @property
    def nameless(self) -> list[str]:
        """Columns that are left out, for they have no name of their own, by their number in the file: ``column 1``."""
        return nameless_of(self.read())


@dataclass(frozen=True)
class ReadImages(ReadShard):
    """Reads rows of image files without what lies beside them.

    Attributes
    ----------
    captions
        Where their columns come from; None: they have none.
    """

    captions: CaptionTable | None = None

    @property
    def recipe(self) -> tuple[str, ...]:
        """What is done to a shard: the table's state is part of it."""
        if self.captions is None:
            return (*super().recipe, "captions")
        state = stamp(self.captions.path, self.captions.options)
        return (*super().recipe, "captions", *map(str, vars(state).values()))

    def __dask_tokenize__(self) -> Any:
        return (*super().__dask_tokenize__(), self.captions)

    def rows(self, part: ShardRange) -> pa.Table:
        """The rows of the range, in the order of the folder."""
        url = part.shard.url
        with open_shard(url, storage_options=self.storage_options) as reader:
            remark(url, "duplicates", fact_of(reader.index.duplicates))
            remark(url, "unread", fact_of(map(str, reader.index.unread)))
            samples = reader.index.samples[part.start : part.stop]
        images = [sample.image() for sample in samples]
        files = pa.array([None if each is None else key_text(each.target) for each in images], pa.string())
        made = {
            self.id_col: pa.array([key_text(sample.key) for sample in samples], pa.string()),
            FILE_COLUMN: files,
            URL_COLUMN: pa.array([url] * len(samples), pa.string()),
        }
        if self.captions is not None:
            table = self.captions.read()
            found = table.take(pc.index_in(files, value_set=table.column(FILE_COLUMN)))
            made |= {name: found.column(name) for name in table.column_names if name not in made}
        try:
            return pa.table([made[each.name].cast(each.type) for each in self.schema], schema=self.schema)
        except (KeyError, pa.ArrowInvalid) as error:
            raise ShardError(
                f"{url}: the table of captions has changed since the dataset was made ({error}): make it again"
            ) from error


def images_schema(id_col: str, captions: CaptionTable | None) -> pa.Schema:
    """The columns of `ReadImages`."""
    return _schema(id_col, []) if captions is None else captions.schema(id_col)


def _schema(id_col: str, others: list[pa.Field]) -> pa.Schema:
    own = [pa.field(name, pa.string()) for name in (id_col, FILE_COLUMN)]
    return pa.schema([*own, *others, pa.field(URL_COLUMN, pa.string())])


def check_captions(given: str, found: ShardSet) -> None:
    """Refuse captions that are none of tars."""
    if given != "txt" and not is_folder_shard(found.shards[0].url):
        has = "Parquet files" if is_parquet_shard(found.shards[0].url) else "tars"
        raise ConfigError(f"captions={given!r} (--captions): is for image files, and {found.root} has {has}")


def captions_of(given: str, found: ShardSet, id_col: str, options: Options = None) -> dict[str, Any]:
    """Arguments of `ImageTextPairDataset.from_shards` by those of a command; none where the captions lie beside.

    Raises
    ------
    ConfigError
        The shards are no folder's.
    DatasetError
        The file of captions cannot be used.
    """
    check_captions(given, found)
    if given == "txt":
        return {}
    if given == "none":
        return {"captions": None}
    caption_table(given, options).schema(id_col)
    return {"captions": given}


def caption_table(path: str | os.PathLike[str], options: Options = None) -> CaptionTable:
    """The table at a path or URL; the options are those of the images, which may be in a store when it is not."""
    text = os.fsdecode(path)
    options = options if is_remote(text) else None
    return CaptionTable(absolute(text, options), options)
