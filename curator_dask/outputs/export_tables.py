"""An export to Parquet files with the images in them: what is weighed for it, and who writes it."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import pyarrow as pa

from curator_dask.frames.faults import faults_told
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import open_parquet
from curator_dask.outputs.export_columns import schema_of
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.hub_schema import check_hub, hub_schema, takes_texts
from curator_dask.outputs.packing import PackShard
from curator_dask.outputs.packing_parquet import PackParquet
from curator_dask.outputs.packing_rows import rows_writer
from curator_dask.outputs.selecting import Folder
from curator_dask.outputs.weighing import Weighing
from curator_dask.storage import Options
from curator_dask.threads import in_threads
from curator_dask.webdataset.parquet import class_names, file_of, is_parquet_shard


def weighing_of(rows: Folder, names: Sequence[str], options: ExportOptions, id_col: str) -> Weighing | None:
    """What samples will weigh; None: what their members do.

    Raises
    ------
    ConfigError
        Columns of the rows cannot be in such a file.
    """
    if options.samples is not None:
        return None
    found = schema_of(rows, names)
    columns = [each for each in found if each.name != URL_COLUMN]
    if options.metadata is None:
        columns = [each for each in columns if each.name == id_col]
    check_hub(pa.schema(columns), options.caption)
    texts = takes_texts([each.name for each in columns], options.caption)
    fixed = tuple(each.name for each in columns if pa.types.is_fixed_size_list(each.type))
    return Weighing((), True, options.image_member, texts, options.metadata is not None, fixed)


def in_tables(
    pack: PackShard,
    columns: pa.Schema,
    totals: Mapping[str, int],
    options: ExportOptions,
    suffixes: Iterable[str],
    reports: Iterable[Mapping[str, Any]],
) -> PackShard:
    """What writes the same samples into Parquet files.

    Parameters
    ----------
    pack
        Writes them into tars.
    columns
        That go along.
    totals
        By split, or folder of a value, how many files it has.
    options
        Of the export.
    suffixes
        Of the members that samples have.
    reports
        On the samples of each file of rows.
    """
    if options.samples is not None:
        return rows_writer({each.name: getattr(pack, each.name) for each in fields(pack)}, totals)
    reports = [*reports]
    null = {name for report in reports for name in report["pictures"]["null"]}
    # pyarrow before 26.0.1, which most have, cannot read null among lists of a fixed length.
    columns = pa.schema(
        [each.with_type(pa.list_(each.type.value_type)) if each.name in null else each for each in columns]
    )
    there = any(suffix.lower().rpartition(".")[2] == "txt" for suffix in suffixes)
    texts = takes_texts(columns.names, options.caption) and (there or options.caption is not None)
    given = {each.name: getattr(pack, each.name) for each in fields(pack)}
    urls = {url for report in reports for url in report["stamps"]}
    classes = _classes(urls, pack.shard_options)
    given |= {"schema": hub_schema(columns, texts, classes), "json_columns": (), "index": False, "empty": ()}
    return PackParquet(
        **given,
        totals=totals,
        image_member=options.image_member,
        texts=texts,
        by_value=options.by is not None,
    )


def _classes(urls: Iterable[str], options: Options) -> dict[str, tuple[str, ...]]:
    """The names of classes by column, by what is said in the Parquet files that images come from, one of each folder.

    Where two say different things of a column nothing is said.
    """
    firsts: dict[str, str] = {}
    for url in sorted(filter(is_parquet_shard, urls)):
        firsts.setdefault(posixpath.dirname(file_of(url)), file_of(url))

    def look(path: str) -> dict[str, tuple[str, ...]]:
        with faults_told(path), open_parquet(path, options) as file:
            return class_names(file.schema_arrow)

    found = in_threads(look, list(firsts.values()))
    every = {name: {each[name] for each in found if name in each} for each in found for name in each}
    return {name: next(iter(said)) for name, said in every.items() if len(said) == 1}
