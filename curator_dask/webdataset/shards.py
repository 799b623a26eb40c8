"""Which shards a dataset has: directories, globs, brace patterns and lists of tars.

Nothing is opened here. Shards and their companion Parquet files are found from directory listings alone, so
that 100,000 shards in one directory cost one listing and no look at a single file.
"""

from __future__ import annotations

import itertools
import operator
import os
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from curator_dask.collector import held_back
from curator_dask.errors import DatasetError
from curator_dask.settings import check_variables
from curator_dask.storage import is_remote
from curator_dask.webdataset.braces import expand_braces
from curator_dask.webdataset.listings import Files, files_of, is_hidden
from curator_dask.webdataset.samples import IMAGE_EXTENSIONS

#: Ends the name of a partition that is not all of its shard.
PARTITION = re.compile(r"\.part-\d{5}$")
_NUMBERS = re.compile(r"(\d+)")
_DIGITS = str.maketrans("123456789", "0" * 9)
_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz", ".tar.lz4")
_UNPACK = (
    "they must be unpacked to .tar first (gunzip, unzstd): a member of a compressed tar cannot be found without"
    " reading all before it, and images hardly get smaller by it"
)
_FEW = 5  # how many names an error message lists


class NoTarsError(DatasetError):
    """No tar is there.

    Parameters
    ----------
    message
        What is said.
    has_images, has_parquet
        Whether there are images instead, or Parquet files, in folders that were searched.
    """

    def __init__(self, message: str, has_images: bool = False, has_parquet: bool = False) -> None:
        super().__init__(message)
        self.has_images, self.has_parquet = has_images, has_parquet


@dataclass(frozen=True, slots=True)  # there may be 100,000
class Shard:
    """One tar of a dataset, or a run of images of a folder (`curator_dask.webdataset.folders`), or a Parquet file.

    Attributes
    ----------
    url
        Absolute local path as text, or an fsspec URL. It is the ``__url__`` of the shard's rows.
    name
        Path below the dataset's root without ``.tar``, with ``/`` between folders: ``"00042"`` or
        ``"a/00042"``. Unique in a dataset; outputs are named by it.
    parquet
        Url of the companion Parquet file (same path, ``.parquet``), None if there is none. Of a Parquet file with
        images the file itself.
    """

    url: str
    name: str
    parquet: str | None = None


@dataclass(frozen=True)
class ShardSet:
    """The shards of a dataset, in natural order of their names (``2.tar`` before ``10.tar``).

    Attributes
    ----------
    root
        The directory that all shards lie in or below: the directory that was given, or the part of a glob
        before its first wildcard, or the longest common directory of what was given.
    shards
        At least one shard.
    """

    root: str
    shards: tuple[Shard, ...]

    def __len__(self) -> int:
        return len(self.shards)

    def __iter__(self) -> Iterator[Shard]:
        return iter(self.shards)

    def those(self, takes: Callable[[str], bool]) -> ShardSet:
        """The shards whose names are taken; there may be none."""
        return ShardSet(self.root, tuple(shard for shard in self.shards if takes(shard.name)))


@dataclass(frozen=True, slots=True)
class ShardRange:
    """A partition: a shard, or a range of its rows.

    Attributes
    ----------
    shard
        The shard.
    start, stop
        Rows ``start <= row < stop`` of the shard; ``stop=None`` is its end.
    part
        Number of the part among the shard's parts; None if the partition is the whole shard.
    """

    shard: Shard
    start: int = 0
    stop: int | None = None
    part: int | None = None

    @property
    def name(self) -> str:
        """Name of the partition's outputs: ``"00042"``, or ``"00042.part-00003"``."""
        return self.shard.name if self.part is None else f"{self.shard.name}.part-{self.part:05d}"

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        # Dask's own way through two dataclasses takes 20 times as long, seconds for 100,000 ranges.
        shard = self.shard
        return ("ShardRange", shard.url, shard.name, shard.parquet, self.start, self.stop, self.part)


def discover(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    storage_options: Mapping[str, Any] | None = None,
    suffix: str = ".tar",
) -> ShardSet:
    """Find the shards of a dataset.

    Parameters
    ----------
    path
        A directory (searched with all directories below it; hidden files, ``._x.tar`` and ``__MACOSX`` are
        passed over), a glob (``"data/*.tar"``, ``"data/**/*.tar"``), a brace pattern
        (``"data/{00000..00099}.tar"``, ``"{a,b}/*.tar"``, nested if need be), one tar, or a list of these.
        A tar that is named more than once is taken once.
    storage_options
        Options for fsspec, where ``path`` is a URL.
    suffix
        Of the files that are shards.

    Returns
    -------
    ShardSet
        The shards in natural order of their names.

    Raises
    ------
    NoTarsError
        No shard was found.
    DatasetError
        A tar that was named is not there, or a directory cannot be listed.
    ConfigError
        An environment variable has a bad value.
    """
    with held_back():
        return _discover(path, storage_options, suffix)


def _discover(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    storage_options: Mapping[str, Any] | None,
    suffix: str,
) -> ShardSet:
    check_variables()
    given = [path] if isinstance(path, (str, os.PathLike)) else list(path)
    items = [os.fsdecode(item) for item in given]
    if not items:
        raise DatasetError("path: expected a directory, glob, brace pattern or tar, found an empty list")
    stores = {item.partition("://")[0] if is_remote(item) else "" for item in items}
    if len(stores) > 1:
        names = ", ".join(sorted(store or "local files" for store in stores))
        raise DatasetError(f"path: all shards must lie in one store, found {names}: make a dataset of each")
    files = files_of(items[0], storage_options)

    tars: dict[str, None] = {}  # in order, each once
    parquets: set[str] = set()
    roots: dict[str, None] = {}
    found: list[str]
    missing: list[str] = []
    compressed: list[str] = []
    searched: list[str] = []  # directories
    has_parquet = False
    walked = True  # only directories are given: then what is beside the tars was seen
    for item in _expanded(items, files):
        walked = walked and files.is_folder(item)
        if _has_wildcard(item) and not files.exists(item):
            root, found = _from_glob(item, files)
        elif _ends(item, suffix) and item not in files.listing(posixpath.dirname(item)).folders:
            root, found = posixpath.dirname(item), []
            if item in files.listing(root).files:
                found = [item]
            else:
                missing.append(item)
        elif files.is_folder(item):
            root, found = item, list(files.walk(item))
            searched.append(item)
        else:
            _refuse_item(item, files, suffix)
        parquets.update([file for file in found if file.endswith(".parquet")])
        roots[root] = None
        # Nearly all end in one of these two, whose spelling is the usual one: the others are few to look at closely.
        others = [file for file in found if not file.endswith((".tar", ".parquet"))]
        has_parquet = has_parquet or any(_ends(file, ".parquet") for file in others)
        compressed += filter(_is_compressed_tar, others) if suffix == ".tar" else ()
        tars.update(dict.fromkeys([file for file in found if file.endswith(suffix)]))
        tars.update(dict.fromkeys(file for file in others if _ends(file, suffix)))

    if missing:
        names = ", ".join(missing[:_FEW]) + (", …" if len(missing) > _FEW else "")
        there = _what_is_in(posixpath.dirname(missing[0]), files)
        kind = "tars" if suffix == ".tar" else "Parquet files"
        raise DatasetError(f"{len(missing)} of the {kind} that were named do not exist: {names}; {there}")
    if compressed:  # left out in silence they would be lost
        names = ", ".join(compressed[:_FEW]) + (", …" if len(compressed) > _FEW else "")
        raise DatasetError(f"{len(compressed)} of the shards found are compressed: {names}; {_UNPACK}")
    root = _common_folder(list(roots))
    if not tars:
        shown = ", ".join(items[:_FEW])
        pictures = any(map(_is_image, itertools.chain.from_iterable(map(files.walk, searched))))
        hint = "; images that are files of their own are read by from_images (--images)" if pictures else ""
        raise NoTarsError(
            f"{shown}: expected at least one {suffix} file, found none; {_what_is_in(root, files)}{hint}",
            pictures,
            has_parquet or bool(parquets),
        )
    prefix = root.rstrip("/") + "/"
    shards = []
    for tar in tars:
        stem = tar[: -len(suffix)]
        parquet: str | None = f"{stem}.parquet"
        if parquet not in parquets and (walked or parquet not in files.listing(posixpath.dirname(tar)).files):
            parquet = None
        shards.append(Shard(tar, stem.removeprefix(prefix), parquet))
    # Names that differ in their digits alone, each as long as the others, have one order: that of text is found sooner.
    one_form = len({shard.name.translate(_DIGITS) for shard in shards}) == 1
    shards.sort(key=operator.attrgetter("name") if one_form else lambda shard: _natural(shard.name))
    for one, other in itertools.pairwise(shards):
        if one.name == other.name:
            raise DatasetError(f"{one.url} and {other.url}: two shards of one name, rename one of them")
    return ShardSet(root, tuple(shards))


def _expanded(items: list[str], files: Files) -> Iterator[str]:
    for item in items:
        literal = "{" not in item or files.exists(files.full(item))
        yield from map(files.full, [item] if literal else expand_braces(item))


def _from_glob(pattern: str, files: Files) -> tuple[str, list[str]]:
    """The directory before the first wildcard, and the files that match or lie in directories that match."""
    parts = pattern.split("/")
    fixed = next(number for number, part in enumerate(parts) if _has_wildcard(part))
    root = "/".join(parts[:fixed]) or "/"
    found: list[str] = []
    for path in files.glob(pattern):
        if any(map(is_hidden, path.removeprefix(root).split("/"))):
            continue
        if path in files.listing(posixpath.dirname(path)).folders:
            found += files.walk(path)
        else:
            found.append(path)
    return root, found


def _refuse_item(item: str, files: Files, suffix: str) -> None:
    if files.exists(item):
        raise DatasetError(
            f"{item}: expected a directory or a {suffix} file"
            + (f", found a compressed tar; {_UNPACK}" if _is_compressed_tar(item) else "")
        )
    there = _what_is_in(posixpath.dirname(item), files)
    raise DatasetError(f"{item}: expected a directory, glob, brace pattern or tar, found nothing; {there}")


def _what_is_in(folder: str, files: Files) -> str:
    listing = files.listing(folder)
    names = [posixpath.basename(path) for path in listing.files if not is_hidden(path)]
    names += [posixpath.basename(path) + "/" for path in listing.folders if not is_hidden(path)]
    names.sort(key=_natural)
    if not names:
        return f"{folder} is empty or does not exist"
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return f"in {folder} there are: {', '.join(names[:_FEW])}{more}"


def _common_folder(folders: list[str]) -> str:
    if len(folders) == 1:
        return folders[0]
    scheme, mark, _ = folders[0].rpartition("://")
    return scheme + mark + posixpath.commonpath([folder.rpartition("://")[2] for folder in folders])


def _natural(name: str) -> tuple[list[str | int], str]:
    # Text and numbers take turns, so that any two compare; a folder comes before its namesakes.
    parts: list[str | int] = [*_NUMBERS.split(name.replace("/", "\0"))]
    parts[1::2] = map(int, parts[1::2])
    return parts, name


def _has_wildcard(path: str) -> bool:
    return any(sign in path for sign in "*?[")


def _is_image(path: str) -> bool:
    return path.rpartition(".")[2].lower() in IMAGE_EXTENSIONS


def _ends(path: str, suffix: str) -> bool:
    return path[-len(suffix) :].lower() == suffix


def _is_compressed_tar(path: str) -> bool:
    return path.lower().endswith(_COMPRESSED)
