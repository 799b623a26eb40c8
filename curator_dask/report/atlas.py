"""The rows of an output as a file that embedding-atlas opens: an explorer of maps in the browser."""

from __future__ import annotations

import base64
import logging
import os
import shlex
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curator_dask.cluster.mapping import on_cluster
from curator_dask.decode.spec import check_counts
from curator_dask.errors import ConfigError, OutputError
from curator_dask.frames.columns import list_to_matrix
from curator_dask.frames.committing import temporary_name
from curator_dask.frames.names import CAPTION_COLUMN, URL_COLUMN
from curator_dask.outputs.placing import locate
from curator_dask.report.folder import File, Folder, blocks, open_folder
from curator_dask.report.looking import pick_rows
from curator_dask.report.making import MOST, SAMPLE, SEED, embeddings_in
from curator_dask.report.mapping import map_of
from curator_dask.report.pictures import Pictures
from curator_dask.report.rows import Rows, column_values, short
from curator_dask.report.similar import most_similar
from curator_dask.settings import check_local
from curator_dask.storage import Options
from curator_dask.words import counted

logger = logging.getLogger("curator_dask")

#: The program, as ``--open-in`` names it.
NAME = "embedding-atlas"
_PICTURES = 200_000_000  # bytes of all, at most
_NEIGHBOURS = 15  # of each row, as many as the program takes where it lays them out itself
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # as Hugging Face's datasets have it


@dataclass(frozen=True)
class AtlasSummary:
    """What was written for embedding-atlas.

    Attributes
    ----------
    path, size
        The file, and its bytes.
    rows, sampled
        Rows of the output, and those that were looked at.
    written, left_out
        Of those, rows of the file, and rows without a vector that can be compared: the program fails on null and NaN.
    pictures
        Rows that have one.
    command
        What opens the file.
    seconds
        It took.
    """

    path: str
    size: int
    rows: int
    sampled: int
    written: int
    left_out: int
    pictures: int
    command: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: the attributes."""
        return dict(vars(self))

    def __str__(self) -> str:
        sample = "" if self.sampled == self.rows else f" of a sample of {self.sampled:,} of {self.rows:,}"
        out = f"; {self.left_out:,} without a vector are left out" if self.left_out else ""
        return (
            f"{self.path}: {self.size / 1e6:.1f} MB, {counted(self.written, 'row')}{sample}{out},"
            f" {counted(self.pictures, 'picture')};"
            f" {self.seconds:.1f} s\npip install {NAME}, then:\n{shlex.join(self.command)}"
        )


def make_atlas(
    path: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    column: str | None = None,
    sample: int = SAMPLE,
    storage_options: Options = None,
) -> AtlasSummary:
    """Write a Parquet file that embedding-atlas opens: the rows, their places on a map, their neighbours, and pictures.

    Without a map (too few rows, or the extra ``report`` is not there) it has the vectors, and the program computes one.

    Parameters
    ----------
    path
        What `save_metadata` or ``curator-dask embed`` wrote, or other Parquet files.
    target
        The file to write.
    column
        Of the vectors; None: ``image_embedding``, or the first there is.
    sample
        Rows, at most; of more a random sample is written, the same for each call.
    storage_options
        For fsspec, where `path` or its shards are URLs.

    Raises
    ------
    ConfigError
        The file cannot be written there.
    OutputError
        There is no such output or column, a file cannot be read, or no row has a vector.
    """
    check_counts(sample=sample)
    check_local(target)
    file = Path(target)
    if file.suffix != ".parquet" or file.is_dir() or not file.absolute().parent.is_dir():
        raise ConfigError(
            f"{file}: expected the name of a file that ends with .parquet, in a folder that is there"
        )
    started = time.monotonic()
    place, _ = embeddings_in(locate(os.fspath(path), storage_options), None)
    folder = open_folder(place, column, storage_options)
    if folder.vectors is None:
        raise OutputError(f"{folder.path}: has no column of vectors")
    table, rows = _read(folder, sample)
    sampled = len(rows)
    lengths = np.linalg.norm(rows.vectors, axis=1)
    usable = np.flatnonzero(rows.valid & np.isfinite(lengths) & (lengths > 0))
    if not len(usable):
        raise OutputError(
            f"{folder.path}: none of {sampled} rows has a vector in {folder.vectors!r} that is not zero"
        )
    found = map_of(rows, SEED)
    made, command = table.take(pa.array(usable)), [NAME, str(file)]
    if found.lacking is None:
        names = [found.names[cluster] for cluster in found.clusters.tolist()]
        cluster, made = _with(made, "cluster", pa.array(names))
        x, made = _with(made, "projection_x", pa.array(found.places[:, 0]))
        y, made = _with(made, "projection_y", pa.array(found.places[:, 1]))
        near, made = _with(made, "neighbors", _neighbours(rows.vectors[usable]))
        # They have served: the browser would load them all, and show their figures on each card.
        made = made.drop_columns([folder.vectors])
        first, command = [cluster], [*command, "--x", x, "--y", y, "--neighbors", near]
    else:
        first, command = [], [*command, "--vector", folder.vectors]
    images = _pictures(rows, usable, storage_options)
    count = len(images) - images.null_count
    if CAPTION_COLUMN in made.column_names:
        first, command = [CAPTION_COLUMN, *first], [*command, "--text", CAPTION_COLUMN]
    first = [
        name for name in dict.fromkeys(each.id_col for each in folder.files) if name in made.column_names
    ] + first
    if count:
        image, made = _with(made, "image", images)
        first, command = [image, *first], [*command, "--image", image]
    # The program shows columns in this order, on the card of a point too.
    _write(made.select([*first, *(name for name in made.column_names if name not in first)]), file)
    counts = (folder.rows, sampled, len(usable), sampled - len(usable), count)
    summary = AtlasSummary(str(file), file.stat().st_size, *counts, command, time.monotonic() - started)
    logger.info("%s", summary)
    return summary


@dataclass(frozen=True)
class TakeRows:
    """Takes rows of a file, with these columns."""

    columns: tuple[str, ...]
    options: Options

    def __call__(self, task: tuple[File, np.ndarray]) -> pa.Table | None:
        """The rows of these numbers, from the file's first; None where there is none."""
        file, wanted = task
        parts = []
        for start, table in blocks(file, self.columns, self.options) if len(wanted) else ():
            inside = wanted[(wanted >= start) & (wanted < start + table.num_rows)] - start
            if len(inside):
                parts.append(table.take(pa.array(inside)))
        return pa.concat_tables(parts) if parts else None


def _read(folder: Folder, most: int) -> tuple[pa.Table, Rows]:
    """Rows of the output with all columns but nested ones, and what the map and the pictures take of them."""
    flat = [name for name, kind in folder.types.items() if not pa.types.is_nested(kind)]
    take = TakeRows((*flat, str(folder.vectors)), folder.options)
    picked, tasks = pick_rows(folder.rows, most, SEED), []
    for file in folder.files:
        start, end = np.searchsorted(picked, [file.first, file.first + file.rows])
        tasks.append((file, picked[start:end] - file.first))
    tables, rows = [], Rows()
    for (file, _), table in zip(tasks, on_cluster(take, tasks), strict=True):
        if table is not None:
            tables.append(table)
            rows.keys += column_values(table, file.id_col)
            rows.urls += [None if each is None else str(each) for each in column_values(table, URL_COLUMN)]
            rows.texts.setdefault(CAPTION_COLUMN, []).extend(map(short, column_values(table, CAPTION_COLUMN)))
    if not tables:
        raise OutputError(f"{folder.path}: has no rows")
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
        rows.vectors, rows.valid = list_to_matrix(table.column(folder.vectors))
    except (pa.ArrowException, ValueError) as error:
        raise OutputError(f"{folder.path}: its files do not fit together: {error}") from error
    return table, rows


def _write(table: pa.Table, file: Path) -> None:
    temporary = file.with_name(temporary_name(file.name))
    try:
        # What made the output is said in its files: this one is none of them.
        pq.write_table(table.replace_schema_metadata(None), temporary, compression="zstd")
        temporary.replace(file)
    except OSError as error:
        raise OutputError(f"{file}: could not be written: {error}. Give another name") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _with(table: pa.Table, name: str, values: pa.Array) -> tuple[str, pa.Table]:
    """A column more; its name, which none of the others has."""
    while name in table.column_names:
        name += "_"
    return name, table.append_column(name, values)


def _neighbours(vectors: np.ndarray) -> pa.Array:
    """Those of each row, as the program has them: their numbers in the file, and how far away they are."""
    numbers, apart = most_similar(vectors, _NEIGHBOURS)
    ends = pa.array(np.arange(len(numbers) + 1, dtype=np.int32) * numbers.shape[1])
    lists = [pa.ListArray.from_arrays(ends, pa.array(each.ravel())) for each in (numbers, apart)]
    return pa.StructArray.from_arrays(lists, ["ids", "distances"])


def _pictures(rows: Rows, usable: np.ndarray, options: Options) -> pa.Array:
    """Pictures of a random part of the rows, null for others."""
    pictures = Pictures()
    for row in np.sort(np.random.default_rng(SEED).permutation(usable)[:MOST]).tolist():
        pictures.want(rows.keys[row], rows.urls[row])
    pictures.make(_PICTURES, options)
    found: list[dict[str, Any] | None] = []
    for row in usable.tolist():
        number = pictures.places.get((rows.urls[row], str(rows.keys[row])), -1)
        made = pictures.made[number] if number >= 0 else ""
        head, _, text = made.partition(",")
        found.append({"bytes": base64.b64decode(text), "path": None} if head.startswith("data:") else None)
    return pa.array(found, _IMAGE)
