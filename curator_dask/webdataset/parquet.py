"""Parquet files with images in a column, as shards: each row is a sample, and its image lies in the row.

So datasets of the Hugging Face hub come (a struct of ``bytes`` and ``path``), what img2dataset writes as Parquet, and
plain tables with a column of bytes. The url of such a shard is the path of its file; what cannot be told from the file
itself, which column has the images and which the keys, stands behind a ``#``.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.parquet as pq

from curator_dask.errors import DatasetError, ShardError
from curator_dask.storage import Options, RemoteFile, check_regular, is_remote, local_path
from curator_dask.webdataset.layouts import portable_key
from curator_dask.webdataset.several_names import EACH, without_each

#: Of such files, in any case.
SUFFIX = ".parquet"
#: Name of the column that keys get which are made of the rows' numbers.
KEY = "key"
_URL = re.compile(
    r"(?P<path>.+\.(?i:parquet))(?:#(?:image=(?P<image>[^&/]*))?&?(?:key=(?P<key>[^&/]*))?&?(?P<each>each)?)?",
    re.DOTALL,
)
_NUMBER = re.compile(r"(?P<stem>.*)_(?P<row>[0-9]{7,15})", re.DOTALL)
_DIGITS = 7  # of a row's number in its key
_BUFFER = 1 << 16  # bytes read of a store where less was asked for: what pyarrow takes for a footer
_NO_IMAGES = ("Audio", "Video")
_ASK = "image_column (--image-column)"
#: What a file says that this package has written (`curator_dask.frames.record`), and the column of the rows' shards.
_OWN, _SHARDS = b"curator_dask", "__url__"


class ParquetShard(NamedTuple):
    """A Parquet file whose rows have images.

    Attributes
    ----------
    path
        Local path or URL.
    image
        Column of the images; None: the one that `image_column` finds.
    key
        Column of the keys; None: keys are made of the rows' numbers.
    each
        A row has a list of images, of which each is a sample of its own.
    """

    path: str
    image: str | None = None
    key: str | None = None
    each: bool = False

    @property
    def url(self) -> str:
        """Stands for it as the path of a tar does for that."""
        named = (("image", self.image), ("key", self.key))
        said = [f"{name}={quote(value, '')}" for name, value in named if value is not None]
        said += [EACH] if self.each else []
        return f"{self.path}#{'&'.join(said)}" if said else self.path

    @classmethod
    def of(cls, url: str) -> ParquetShard:
        """The shard with this url."""
        found = _URL.fullmatch(url)
        assert found is not None, url
        image, key = (None if each is None else unquote(each) for each in found.group("image", "key"))
        return cls(found["path"], image, key, found["each"] is not None)


def is_parquet_shard(url: str) -> bool:
    """Whether this is the url of a `ParquetShard`."""
    return not url.endswith(".tar") and _URL.fullmatch(url) is not None


def file_of(url: str) -> str:
    """The file of a shard that is one file: a tar, or a Parquet file."""
    return ParquetShard.of(url).path if is_parquet_shard(url) else without_each(url)


def is_numbered(url: str) -> bool:
    """Whether this is the url of a `ParquetShard` whose keys are made of the rows' numbers."""
    return is_parquet_shard(url) and ParquetShard.of(url).key is None


def numbered_keys(name: str, rows: Iterable[int]) -> list[str]:
    """The keys of rows that have none of their own: the shard's name and the row's number, from 0.

    Parameters
    ----------
    name
        Of the shard, `curator_dask.webdataset.shards.Shard.name`: no other of the dataset has it. A dot becomes ``_``:
        in a tar the key would end there.
    rows
        Numbers of rows in the file.
    """
    stem = name.replace(".", "_")
    return [f"{stem}_{row:0{_DIGITS}d}" for row in rows]


def tar_key(text: str) -> str:
    """The key in a tar of what is one in a table: it is no path out of the tar, and ends where it ends there."""
    return re.sub(r"[\x00-\x1f]", "_", re.sub("//+", "/", portable_key(text))).strip("/") or "_"


def row_of_key(path: str, key: object) -> int:
    """The number of the row with such a key; -1 where the key is not of this file."""
    found = _NUMBER.fullmatch(key) if isinstance(key, str) else None
    stem = f"/{path[: -len(SUFFIX)].replace('.', '_')}"
    return int(found["row"]) if found and found["stem"] and stem.endswith(f"/{found['stem']}") else -1


def open_file(path: str, options: Options = None, stream: int = 0) -> pq.ParquetFile:
    """A Parquet file on this machine or in a store; see `curator_dask.frames.parquet.open_parquet`."""
    # Where all that a row group has is fetched ahead it is held in memory as a whole.
    how: dict[str, Any] = {"pre_buffer": not stream, "buffer_size": stream}
    if is_remote(path):
        file = RemoteFile(path, options, tail=_BUFFER)
        # The tail of a file and its columns are a few requests; small reads in between are answered from memory.
        return pq.ParquetFile(pa.PythonFile(io.BufferedReader(file, _BUFFER), "r"), **how)
    check_regular(local_path(path))
    return pq.ParquetFile(local_path(path), **how)


class NoImagesError(DatasetError):
    """No column of a table may hold images."""


def has_rows_of_shards(schema: pa.Schema) -> bool:
    """Whether a table has rows whose images lie elsewhere, as what this package writes, but for an export.

    Hugging Face's conversion of tars has their names in it, too, and the images. An export has the images alone.
    """
    own, shards = _OWN in (schema.metadata or {}), _SHARDS in schema.names
    if any(_kind(each.type) == "struct" for each in schema):
        return own and shards
    return own or shards


def image_column(schema: pa.Schema, wanted: str | None = None, several: bool = False) -> str:
    """The column of a table that has its images.

    It is the one that Hugging Face's description of the columns calls an image; else the one struct with ``bytes`` in
    it, or the one column of bytes.

    Parameters
    ----------
    schema
        Of the table.
    wanted
        Its name, where it was given.
    several
        It may have a list of images a row (`has_several` then says whether it has).

    Raises
    ------
    NoImagesError
        There is none, or not that one.
    DatasetError
        There are several; or a row has several images in that column.
    """
    kinds = {each.name: _kind(each.type) for each in schema}
    if wanted is not None:
        if wanted not in kinds:
            raise NoImagesError(f"{_ASK}: there is no column {wanted!r}; the columns are {list(kinds)}")
        return _one_image(wanted, schema, kinds[wanted], several)
    features = _features(schema)
    others = {name for name, said in features.items() if said in _NO_IMAGES}
    for name, said in _described(schema).items():  # of lists
        inner = said.get("feature")
        others |= {name} if isinstance(inner, Mapping) and inner.get("_type") in _NO_IMAGES else set()
    images = [name for name, said in features.items() if said == "Image" and kinds.get(name)]
    for kind in ("struct", "bytes", "several"):
        images = images or [name for name, each in kinds.items() if each == kind and name not in others]
    if not images:
        urls = [each for each in kinds if each.lower() in ("url", "image_url")]
        fetch = (
            f". Where {urls[0]!r} says where they are on the web, curator-dask fetch gets them"
            if urls
            else ""
        )
        raise NoImagesError(f"no column holds bytes that may be images; the columns are {list(kinds)}{fetch}")
    if len(images) > 1:
        raise DatasetError(f"several columns may hold the images, {images}: say which by {_ASK}")
    return _one_image(images[0], schema, kinds[images[0]], several)


def has_several(schema: pa.Schema, column: str) -> bool:
    """Whether a column has a list of images a row."""
    return _kind(schema.field(column).type) == "several"


def _one_image(name: str, schema: pa.Schema, found: str, several: bool) -> str:
    if len(schema.get_all_field_indices(name)) > 1:
        raise DatasetError(f"several columns are called {name!r}: give each a name of its own")
    kind = schema.field(name).type
    if several and found == "several" and _kind(kind.value_type) == "several":
        raise DatasetError(f"the column {name!r} has lists of lists of images ({kind}): flatten them")
    if found == "several" and not several:
        raise DatasetError(
            f"the column {name!r} has several images a row ({kind}), and a row is one image: write a row an image,"
            f" or name another column by {_ASK}"
        )
    if not found:
        raise DatasetError(
            f"{_ASK}: expected bytes, or a struct with bytes, in the column {name!r}, found {kind}"
        )
    return name


def columns_of_rows(schema: pa.Schema, url: str) -> pa.Schema:
    """Of the columns of a shard's Parquet file those that rows get: not the images, nor other files that lie in it.

    Parameters
    ----------
    schema
        Of the file.
    url
        Of the shard; of a tar that has the file beside it they are all.

    Raises
    ------
    ShardError
        There are no images in the file.
    """
    if not is_parquet_shard(url):
        return schema
    shard = ParquetShard.of(url)
    try:
        column = image_column(schema, shard.image, shard.each)
    except DatasetError as error:
        raise ShardError(f"{shard.path}: {error}") from error
    files = {each.name for each in schema if _has_files(each.type)}
    files |= {column, *(name for name, kind in _features(schema).items() if kind == "Image")}
    return pa.schema([each for each in schema if each.name not in files], schema.metadata)


def _has_files(kind: pa.DataType) -> bool:
    if _kind(kind) == "several":
        return _has_files(kind.value_type)
    return _kind(kind) == "struct"


def class_names(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """By column of numbers, or of lists of them, the names of the classes that these stand for, as datasets says it."""
    found = {}
    for name, said in _described(schema).items():
        inner = said.get("feature")
        label = inner if isinstance(inner, Mapping) else said
        names = label.get("names")
        if label.get("_type") != "ClassLabel" or not isinstance(names, list):
            continue
        # datasets reads no file that says the same name twice.
        if names and all(isinstance(each, str) for each in names) and len({*names}) == len(names):
            found[name] = tuple(names)
    return found


def _features(schema: pa.Schema) -> dict[str, str]:
    """What Hugging Face's ``datasets`` says of columns, by name."""
    return {name: str(each["_type"]) for name, each in _described(schema).items() if "_type" in each}


def _described(schema: pa.Schema) -> dict[str, Mapping[str, Any]]:
    """All that it says of them; nothing where it has not written the file."""
    try:
        said = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {name: each for name, each in said.items() if isinstance(each, Mapping)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _kind(kind: pa.DataType) -> str:
    """``"bytes"``, ``"struct"`` of these, ``"several"`` of either in a list; empty: none of it."""
    if isinstance(kind, pa.BaseExtensionType):
        return _kind(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _kind(kind.value_type)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return "bytes"
    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return "struct" if at >= 0 and _kind(kind.field(at).type) == "bytes" else ""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return "several" if _kind(kind.value_type) else ""
    return ""
