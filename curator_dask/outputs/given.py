"""The Parquet files of an output that a command is given, and their rows with the shards that these are of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from curator_dask.errors import DatasetError, OutputError
from curator_dask.frames.faults import faults_told
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import Footer, open_parquet
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.curated_names import EMBEDDINGS, PASSING, of_curate
from curator_dask.outputs.failed import none_there, output_files
from curator_dask.rows.images import values_of
from curator_dask.storage import Options, exists, join
from curator_dask.webdataset.parquet import ParquetShard, image_column


def given_files(folder: str, options: Options) -> list[str]:
    """Names of the Parquet files of an output, in order, without those of failed rows.

    Parameters
    ----------
    folder
        Absolute path or URL.
    options
        For fsspec.

    Raises
    ------
    OutputError
        There are none, or they are of the several outputs that curate leaves in one folder.
    """
    names = output_files(folder, options)
    if not names:
        raise OutputError(none_there(folder))
    check_one_output(folder, names)
    return names


def check_one_output(folder: str, names: Sequence[str]) -> None:
    """Raise OutputError where files, by their names below a folder, are of the several outputs of curate."""
    if of_curate(names):
        raise OutputError(
            f"{folder}: is a folder of curate, with an output for each step: give {join(folder, EMBEDDINGS)}, or"
            f" {join(folder, PASSING)} for the rows that pass"
        )


def check_no_input(path: str, footer: Footer, options: Options) -> None:
    """Raise OutputError where a file that is to be written anew is a dataset's own: nobody can make it again.

    Parameters
    ----------
    path, footer
        The file, and what it says of itself.
    options
        For fsspec.
    """
    tar = f"{path.removesuffix('.parquet')}.tar"
    if footer.record is None and not footer.fault and exists(tar, options):
        raise OutputError(
            f"{path}: is the own Parquet of {tar}, the input of a dataset, and would be written anew with more columns."
            " Give a folder for the output, or use overwrite=True (--overwrite)"
        )


def rows_with_shards(
    file: pq.ParquetFile,
    path: str,
    columns: Sequence[str],
    size: int,
    options: Options,
    groups: Sequence[int] | None = None,
) -> Iterator[pa.RecordBatch]:
    """The rows of a file, some at a time, with those of these columns that there are.

    Where rows do not say in which shards their images are, and that column is asked for, it is the one that
    `shard_of_file` finds, if there is one.

    Parameters
    ----------
    file, path
        The file, opened, and where it is.
    columns
        Their names.
    size
        Rows at a time, at most.
    options
        For fsspec.
    groups
        Row groups that are read; None: all.
    """
    names = file.schema_arrow.names
    there = [name for name in dict.fromkeys(columns) if name in names]
    shard = shard_of_file(file.schema_arrow, path, options) if URL_COLUMN in columns else None
    for batch in file.iter_batches(batch_size=size, columns=there, row_groups=groups):
        if shard is not None:
            batch = batch.append_column(URL_COLUMN, pa.repeat(pa.scalar(shard), batch.num_rows))
        yield batch


def shard_of_file(schema: pa.Schema, path: str, options: Options) -> str | None:
    """The shard of all rows of a file that do not say it: the tar beside it, or the file, which has the images in it.

    So it is of what an export writes, in either format, and of img2dataset.

    Parameters
    ----------
    schema, path
        Of the file, and where it is.
    options
        For fsspec.

    Returns
    -------
    str or None
        Its url. None: the rows say it, or there is no such shard.
    """
    if URL_COLUMN in schema.names:
        return None
    tar = f"{path.removesuffix('.parquet')}.tar"
    if exists(tar, options):
        return tar
    record = FileRecord.parse(schema.metadata)
    key = (record and record.id_col) or "key"
    try:
        images = image_column(schema)
    except DatasetError:  # none, or nobody knows which
        return None
    return ParquetShard(path, None, key).url if key in schema.names and key != images else None


class Names(NamedTuple):
    """Keys and shards of rows, in the order of these."""

    keys: list[Any]
    urls: list[str | None]


def names_in(path: str, id_col: str, options: Options) -> Names:
    """Those of all rows of a file; None where it has no such column."""
    found = Names([], [])
    with faults_told(path), open_parquet(path, options) as file:
        for batch in rows_with_shards(file, path, [id_col, URL_COLUMN], 65_536, options):
            for values, name in zip(found, (id_col, URL_COLUMN), strict=True):
                there = name in batch.schema.names
                values += values_of(batch.column(name)) if there else [None] * batch.num_rows
    return found
