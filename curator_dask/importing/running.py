"""`import_vectors`: an output of tables and vectors that were made elsewhere, without any image."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import pyarrow as pa

from curator_dask.cluster.setup import OpenWorkers
from curator_dask.decode.spec import check_counts
from curator_dask.errors import ConfigError, DatasetError, ShardError
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.frames.parquet import open_parquet
from curator_dask.importing.checking import STORED, dim_of
from curator_dask.importing.claims import claim
from curator_dask.importing.files import write_pieces
from curator_dask.importing.layouts import DATACOMP, TEXT_EMBEDDING, Found, Pair, find_pairs, is_image
from curator_dask.importing.writing import ImportFile, Piece
from curator_dask.outputs.placing import locate
from curator_dask.outputs.saving import check_apart
from curator_dask.outputs.writing import Output
from curator_dask.rows.ids import check_id_type
from curator_dask.runs.parts import Part
from curator_dask.runs.summary import SaveSummary
from curator_dask.storage import Options
from curator_dask.threads import in_threads
from curator_dask.webdataset.parquet import KEY
from curator_dask.words import counted

logger = logging.getLogger("curator_dask")

#: Rows of a file, at most: of 768 values each these are 150 MB.
ROWS_PER_FILE = 50_000
_TRIED = 16  # files that are looked at to learn how long vectors are


class _Table(NamedTuple):
    """What the footer of a table says; no rows where it cannot be read."""

    schema: pa.Schema
    rows: int | None


def import_vectors(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    layout: str = "auto",
    image_vectors: str | None = None,
    text_vectors: str | None = None,
    model: str | None = None,
    text_model: str | None = None,
    id_column: str | None = None,
    columns: Sequence[str] | None = None,
    normalize: bool = True,
    stored: str = "float32",
    rows_per_file: int = ROWS_PER_FILE,
    overwrite: bool = False,
    part: tuple[int, int] | str | None = None,
    storage_options: Options = None,
    output_storage_options: Options = None,
    workers: OpenWorkers = nullcontext,
) -> SaveSummary:
    """Make an output of tables and their vectors: rows to score, filter and deduplicate before an image is there.

    Vectors are found by their rows' places, as these formats have it: a table whose counts differ, or that has a key in
    several rows, is not taken, and the others go on. A vector that has NaN, or is all zeros, is null, and
    ``image_error`` says why.

    Parameters
    ----------
    path
        Folder, glob or URL of the tables.
    output
        Where the Parquet files go, one for each table, in parts where that is large.
    layout
        ``"datacomp"``: an ``.npz`` beside each Parquet. ``"clip-retrieval"``: folders ``metadata``, ``img_emb`` and
        ``text_emb``. ``"parquet"``: columns of lists of floats. ``"auto"``: as it looks.
    image_vectors, text_vectors
        Names of the arrays, folders or columns that become ``image_embedding`` and ``text_embedding``. Where one is
        given it alone is taken; None for both: those that there are, if these are not several.
    model, text_model
        What made them, as you say: it is recorded as a claim. Without the second, texts are of `model`, too.
    id_column
        Column of the keys. None: ``"key"`` if there is such a column; else keys are made of the table's path below
        `path` and the row's number from 0.
    columns
        Others that are kept; None: all but images.
    normalize
        Divide each vector by its L2 norm, as embedders do.
    stored
        ``"float32"``, or ``"float16"``, which takes half the disk: numbers are rounded by up to 0.05%, cosines of
        vectors of length 1 by less than 0.0005. All that reads them computes in float32.
    rows_per_file
        Tables of more rows go into several files.
    overwrite
        Replace files in `output` that something else has made, and remove those of tables that were cut otherwise.
    part
        Import one part of the tables, ``(0, 8)`` or ``"0/8"`` to ``(7, 8)``, for jobs that know nothing of one another.
        A call without it does what is left.
    storage_options, output_storage_options
        For fsspec, where `path` and `output` are URLs; without the second those of `path`, too.
    workers
        Opens the cluster that files are written on, once there are some to write; else it is the one that is there.

    Raises
    ------
    ConfigError
        It is not clear which vectors are meant, or the model that is named makes none of their length.
    DatasetError
        There are no tables or vectors, or no such columns.
    OutputError
        Something would be replaced.
    """
    started = time.monotonic()
    check_counts(rows_per_file=rows_per_file)
    if stored not in STORED:
        raise ConfigError(f"stored={stored!r} (--stored): expected one of {', '.join(STORED)}")
    only = Part.of_given(part)
    found = find_pairs(path, layout, image_vectors, text_vectors, storage_options)
    target_options = storage_options if output_storage_options is None else output_storage_options
    target = Output(locate(os.fspath(output), target_options), target_options, False, overwrite, False)
    check_apart(found.root, target.folder)
    tables = in_threads(lambda pair: _look(pair, storage_options), found.pairs)
    schema, id_col, numbered = _columns(found, tables, id_column, columns)
    models = {TEXT_EMBEDDING: model if text_model is None else text_model}
    claims = {
        name: claim(models.get(name, model), dim, normalize, text=name == TEXT_EMBEDDING)
        for name, dim in _dims(found, tables, storage_options).items()
    }
    _tell(found, claims, model)
    cut = {pair: _cut(pair, table, rows_per_file) for pair, table in zip(found.pairs, tables, strict=True)}
    function = ImportFile(schema, id_col, numbered, claims, normalize, storage_options, target, stored)
    return write_pieces(cut, function, only, started, workers)


def _look(pair: Pair, options: Options) -> _Table:
    try:
        with open_parquet(pair.table, options) as file:
            return _Table(file.schema_arrow.remove_metadata(), int(file.metadata.num_rows))
    except Exception:  # pyarrow's or a store's own: it is told when the file is read
        return _Table(pa.schema([]), None)


def _columns(
    found: Found, tables: Sequence[_Table], id_column: str | None, columns: Sequence[str] | None
) -> tuple[pa.Schema, str, bool]:
    """Columns of the tables that are kept; the one of the keys, and whether these are made of rows' numbers."""
    schemas = list(dict.fromkeys(table.schema for table in tables if table.rows is not None))
    if not schemas:
        raise DatasetError(f"{found.root}: none of {counted(len(tables), 'Parquet file')} can be read")
    try:
        schema = pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException as error:
        raise DatasetError(
            f"{found.root}: the files' columns do not fit together: {error}. Write them with the same types, or leave"
            " columns out (columns=, --columns)"
        ) from error
    names = schema.names
    if id_column is not None and id_column not in names:
        raise DatasetError(
            f"id_column={id_column!r} (--id-column): there is no such column; there are {', '.join(names)}"
        )
    key = id_column or (KEY if KEY in names else None)
    lacking = [name for name in columns or () if name not in names]
    if lacking:
        raise ConfigError(f"columns: there are no such columns {lacking}; there are {', '.join(names)}")
    left = {source.name for pair in found.pairs for _, source in pair.vectors if source.path == pair.table}
    left |= {each.name for each in schema if is_image(each.type)} if columns is None else set()
    wanted = [
        each.with_type(pa.string()) if pa.types.is_null(each.type) else each
        for each in schema
        if each.name not in left and (columns is None or each.name in columns or each.name == key)
    ]
    for each in wanted:
        text = each.name in (URL_COLUMN, ERROR_COLUMN) and pa.types.is_string(each.type)
        if each.name in (*found.taken, URL_COLUMN, ERROR_COLUMN) and not text:
            raise ConfigError(
                f"{found.root}: has a column {each.name!r}, whose name is that of one that is made: leave it out by"
                " columns= (--columns)"
            )
    if key is not None:
        check_id_type(schema.field(key).type, key)
    wanted.sort(key=lambda each: each.name != key)  # the key first
    return pa.schema(wanted), key or KEY, key is None


def _dims(found: Found, tables: Sequence[_Table], options: Options) -> dict[str, int]:
    """How long the vectors of each column are, by the first file that says it."""
    dims: dict[str, int] = {}
    problem: ShardError | None = None
    for pair, table in list(zip(found.pairs, tables, strict=True))[:_TRIED]:
        for column, source in pair.vectors:
            if column in dims or table.rows is None:
                continue
            try:
                dim = dim_of(source, pair.table, options)
            except ShardError as error:
                problem = problem or error
                continue
            dims |= {column: dim} if dim else {}
    lacking = [name for name in found.taken if name not in dims]
    if lacking:
        raise DatasetError(
            f"{found.root}: no vectors of {found.taken[lacking[0]]!r} in the first {counted(_TRIED, 'file')};"
            f" {problem or 'they are null'}"
        )
    return {name: dims[name] for name in found.taken}


def _tell(found: Found, claims: dict[str, dict[str, Any]], model: str | None) -> None:
    said = [f"{name} of {found.taken[name]} ({info['dim']} values)" for name, info in claims.items()]
    logger.info(
        "%s: %s, as %s: %s", found.root, counted(len(found.pairs), "table"), found.layout, ", ".join(said)
    )
    if model is None:
        hint = " (DataComp's b32 are of openai/clip-vit-base-patch32, l14 of openai/clip-vit-large-patch14)"
        logger.warning(
            "nothing says which model made these vectors%s: by model= (--model) you can, and heads that are for it take"
            " them",
            hint if found.layout == DATACOMP else "",
        )
    if found.alone:
        logger.warning(
            "%s: %s without a table, %s for example: left out",
            *(found.root, counted(len(found.alone), "file of vectors", "files of vectors"), found.alone[0]),
        )


def _cut(pair: Pair, table: _Table, most: int) -> list[Piece]:
    rows = table.rows
    if rows is None or rows <= most:
        return [Piece(pair, rows, 0, rows or 0)]
    count = -(-rows // most)
    bounds = [rows * part // count for part in range(count + 1)]
    return [Piece(pair, rows, bounds[part], bounds[part + 1], part) for part in range(count)]
