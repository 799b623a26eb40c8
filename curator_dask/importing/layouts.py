"""How vectors that were made elsewhere lie beside their tables, and which array belongs to which table.

Of DataComp: ``NAME.parquet`` and ``NAME.npz``, with arrays such as ``l14_img`` and ``l14_txt``. Of clip-retrieval:
``metadata/metadata_0000.parquet``, ``img_emb/img_emb_0000.npy`` and ``text_emb/text_emb_0000.npy``. Of Parquet files:
columns of lists of floats. Within a pair of files the row of an array is that of the table: these formats have no other
way to say it.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa

from curator_dask.errors import ConfigError, DatasetError, ShardError
from curator_dask.frames.columns import values_of
from curator_dask.frames.names import EMBEDDING_COLUMN
from curator_dask.frames.parquet import open_parquet
from curator_dask.importing.arrays import array_names
from curator_dask.storage import Options
from curator_dask.webdataset.listings import files_of
from curator_dask.webdataset.shards import Shard, ShardSet, discover
from curator_dask.words import counted

#: Names of layouts.
DATACOMP, CLIP_RETRIEVAL, PARQUET = "datacomp", "clip-retrieval", "parquet"
LAYOUTS = (DATACOMP, CLIP_RETRIEVAL, PARQUET)
TEXT_EMBEDDING = "text_embedding"
_METADATA, _IMAGES, _TEXTS = (
    "metadata",
    "img_emb",
    "text_emb",
)  # folders of clip-retrieval, which begin its names too
_TRIED = 16  # files that are looked at until one can be read


class Source(NamedTuple):
    """Where the vectors of a table's rows are.

    Attributes
    ----------
    path
        Of the file; that of the table where it is a column.
    name
        Of an array of an ``.npz``, or of the column; None: the file is an ``.npy``.
    """

    path: str
    name: str | None


@dataclass(frozen=True)
class Pair:
    """A table with the vectors of its rows.

    Attributes
    ----------
    name
        Path below the folder that was given, without suffix: the output's file is called so.
    table
        Of the Parquet file.
    vectors
        By column of the output, where they are.
    """

    name: str
    table: str
    vectors: tuple[tuple[str, Source], ...]

    @property
    def arrays(self) -> list[str]:
        """The files beside the table."""
        return [path for path in dict.fromkeys(each.path for _, each in self.vectors) if path != self.table]


class Found(NamedTuple):
    """What lies at a path.

    Attributes
    ----------
    layout
        Of `LAYOUTS`.
    root
        The folder that all tables lie in or below.
    pairs
        In the order of their names.
    taken
        By column of the output, what it is taken from: an array, a folder, a column.
    alone
        Arrays for which there is no table.
    """

    layout: str
    root: str
    pairs: tuple[Pair, ...]
    taken: dict[str, str]
    alone: list[str]


def find_pairs(
    path: str | os.PathLike[str],
    layout: str = "auto",
    images: str | None = None,
    texts: str | None = None,
    options: Options = None,
) -> Found:
    """The tables at a path, and the vectors of their rows.

    Parameters
    ----------
    path
        A folder or URL, a glob of Parquet files, or one.
    layout
        Of `LAYOUTS`, or ``"auto"``: as it looks.
    images, texts
        Names of the arrays, folders or columns with the vectors; None for both: those that there are.
    options
        For fsspec.

    Raises
    ------
    ConfigError
        There is no such layout, or several arrays may be meant.
    DatasetError
        There are no tables, or no vectors.
    """
    if layout not in ("auto", *LAYOUTS):
        raise ConfigError(f"layout={layout!r} (--layout): expected one of {', '.join(('auto', *LAYOUTS))}")
    text = os.fsdecode(path)
    files = files_of(text, options)
    folder = files.full(text)
    inside = {posixpath.basename(each) for each in files.listing(folder).folders}
    if layout == CLIP_RETRIEVAL or (layout == "auto" and _METADATA in inside and inside & {_IMAGES, _TEXTS}):
        return _of_clip_retrieval(folder, images, texts, options)
    tables = discover(text, options, ".parquet")
    beside = {each for table in tables for each in files.listing(posixpath.dirname(table.url)).files}
    packed = [each for each in sorted(beside) if each.endswith(".npz")]
    if layout == DATACOMP or (layout == "auto" and packed):
        return _of_datacomp(tables, packed, images, texts, options)
    return _of_parquet(tables, images, texts, options)


def _of_datacomp(
    tables: ShardSet, packed: Sequence[str], images: str | None, texts: str | None, options: Options
) -> Found:
    if not packed:
        raise DatasetError(f"{tables.root}: expected an .npz beside each Parquet file, found none")
    there = {f"{_stem(table)}.npz" for table in tables}
    names = _first(
        [each for each in packed if each in there] or packed, lambda each: array_names(each, options)
    )
    taken = _taken(
        images, texts, names, lambda name: name.endswith("_img"), lambda name: name.endswith("_txt")
    )
    pairs = [
        Pair(
            table.name,
            table.url,
            tuple((column, Source(f"{_stem(table)}.npz", name)) for column, name in taken.items()),
        )
        for table in tables
    ]
    return Found(DATACOMP, tables.root, tuple(pairs), taken, [each for each in packed if each not in there])


def _of_clip_retrieval(folder: str, images: str | None, texts: str | None, options: Options) -> Found:
    tables = discover(f"{folder}/{_METADATA}", options, ".parquet")
    listing = files_of(folder, options).listing
    inside = [posixpath.basename(each) for each in listing(folder).folders]
    taken = _taken(images, texts, inside, lambda name: name == _IMAGES, lambda name: name == _TEXTS)
    pairs, used = [], set()
    for table in tables:
        number = table.name.removeprefix(f"{_METADATA}_")
        sources = []
        for column, name in taken.items():
            path = f"{folder}/{name}/{name}_{number}.npy"
            sources.append((column, Source(path, None)))
            used.add(path)
        pairs.append(Pair(table.name, table.url, tuple(sources)))
    arrays = [
        each
        for name in taken.values()
        for each in sorted(listing(f"{folder}/{name}").files)
        if each.endswith(".npy")
    ]
    return Found(CLIP_RETRIEVAL, folder, tuple(pairs), taken, [each for each in arrays if each not in used])


def _of_parquet(tables: ShardSet, images: str | None, texts: str | None, options: Options) -> Found:
    def lists(path: str) -> list[str]:
        try:
            with open_parquet(path, options) as file:
                schema = file.schema_arrow
        except Exception as error:  # pyarrow's or a store's own, of many types
            raise ShardError(f"{path}: {' '.join(str(error).split())}") from error
        return [each.name for each in schema if is_vector(each.type)]

    names = _first([table.url for table in tables], lists)
    own = {EMBEDDING_COLUMN, TEXT_EMBEDDING} & {*names}
    taken = _taken(
        images,
        texts,
        names,
        lambda name: name == EMBEDDING_COLUMN if own else name != TEXT_EMBEDDING,
        lambda name: name == TEXT_EMBEDDING,
    )
    pairs = [
        Pair(
            table.name, table.url, tuple((column, Source(table.url, name)) for column, name in taken.items())
        )
        for table in tables
    ]
    return Found(PARQUET, tables.root, tuple(pairs), taken, [])


def is_vector(kind: pa.DataType) -> bool:
    """Whether a column of Parquet may hold vectors: lists of floats."""
    inner = values_of(kind)
    return inner is not None and bool(pa.types.is_floating(inner))


def is_image(kind: pa.DataType) -> bool:
    """Whether a column has images as Hugging Face's datasets writes them: structs with ``bytes``."""
    if not pa.types.is_struct(kind) or (at := kind.get_field_index("bytes")) < 0:
        return False
    inner = kind.field(at).type
    return bool(pa.types.is_binary(inner) or pa.types.is_large_binary(inner))


def _taken(
    images: str | None,
    texts: str | None,
    names: Sequence[str],
    is_images: Callable[[str], bool],
    is_texts: Callable[[str], bool],
) -> dict[str, str]:
    """By column of the output, the name of what it is taken from."""
    if images is None and texts is None:
        found: dict[str, str] = {}
        for column, fits, option in (
            (EMBEDDING_COLUMN, is_images, "--image-vectors"),
            (TEXT_EMBEDDING, is_texts, "--text-vectors"),
        ):
            fitting = [name for name in names if fits(name)]
            if len(fitting) > 1:
                raise ConfigError(
                    f"there are several vectors, {', '.join(names)}: say which by {option} (image_vectors,"
                    " text_vectors)"
                )
            found |= dict.fromkeys([column], fitting[0]) if fitting else {}
        if not found:
            raise DatasetError(f"expected vectors, found none among {', '.join(names) or 'nothing'}")
        return found
    named = {EMBEDDING_COLUMN: images, TEXT_EMBEDDING: texts}
    for option, name in zip(("image_vectors", "text_vectors"), named.values(), strict=True):
        if name is not None and name not in names:
            raise ConfigError(
                f"{option}={name!r} (--{option.replace('_', '-')}): there are no such vectors; there are"
                f" {', '.join(names) or 'none'}"
            )
    if images == texts:
        raise ConfigError(f"image_vectors and text_vectors are both {images!r}: give one of them")
    return {column: name for column, name in named.items() if name is not None}


def _first(paths: Sequence[str], look: Callable[[str], list[str]]) -> list[str]:
    problem: ShardError | None = None
    for path in paths[:_TRIED]:
        try:
            return look(path)
        except ShardError as error:
            problem = problem or error
    raise DatasetError(f"none of {counted(min(_TRIED, len(paths)), 'file')} can be read; {problem}")


def _stem(table: Shard) -> str:
    return table.url[: -len(".parquet")]
