"""Folders with a file an image, as shards: each is a run of images in the order of the folder, read where they lie.

A folder may be one of a store, which is listed whole, once a run on each worker.

Which images a shard has can be told from the folder alone: from the one behind which it begins, on to the first whose
name marks an end. So an image that comes or goes changes its own shard, and no other; were they counted off from the
start, it would change all behind it.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import os
import posixpath
import stat
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

from curator_dask.cache import LISTINGS, POSSESSIONS, Remembered
from curator_dask.errors import ShardError
from curator_dask.patience import BLOCK_BYTES, patiently
from curator_dask.storage import Options, filesystem, is_remote, local_path, version_in
from curator_dask.webdataset.headers import Member
from curator_dask.webdataset.index import ShardIndex
from curator_dask.webdataset.links import Unread
from curator_dask.webdataset.listings import is_hidden
from curator_dask.webdataset.parquet import file_of, is_parquet_shard
from curator_dask.webdataset.samples import IMAGE_EXTENSIONS, Sample

#: Images of a shard, about: from half as many to twice as many.
SAMPLES_PER_SHARD = 1000
#: Name of the first shard's outputs, and how those of the others begin.
FIRST, AFTER = "first", "after-"
_SUFFIX = ".images"  # ends the url of such a shard
_NAME_BYTES = 80  # of an image's name that a shard is named by
_LISTING_BYTES = 20 * BLOCK_BYTES  # that the patience with a store's listing is measured by
_SETTLED = 2.0  # seconds after which a change of a folder surely shows in its time


class FolderShard(NamedTuple):
    """A run of images in a folder and all below it.

    Attributes
    ----------
    folder
        Local path or URL.
    after
        Path below it, without suffix, of the image behind which the run begins; empty: it begins with the first.
    samples
        About how many images it has.
    """

    folder: str
    after: str
    samples: int

    @property
    def url(self) -> str:
        """Stands for it as the path of a tar does for that: a path in the folder, at which there is no file."""
        return posixpath.join(self.folder, f"{quote(os.fsencode(self.after), '')}~{self.samples}{_SUFFIX}")

    @property
    def name(self) -> str:
        """Of its outputs; says where it begins."""
        if not self.after:
            return FIRST
        below, stem = posixpath.split(self.after)
        raw = os.fsencode(self.after)
        try:
            raw.decode()
        except UnicodeDecodeError:
            below, stem = "", hashlib.blake2b(raw, digest_size=8).hexdigest()
        if len(os.fsencode(stem)) > _NAME_BYTES:
            stem = hashlib.blake2b(raw, digest_size=8).hexdigest()
        return posixpath.join(below, f"{AFTER}{stem}")

    @classmethod
    def of(cls, url: str) -> FolderShard:
        """The shard with this url."""
        folder, name = posixpath.split(local_path(url))
        after, _, samples = name.removesuffix(_SUFFIX).rpartition("~")
        return cls(folder, os.fsdecode(unquote_to_bytes(after)), int(samples))


def is_folder_shard(url: str) -> bool:
    """Whether this is the url of a `FolderShard`."""
    return url.endswith(_SUFFIX)


def place_of(url: str) -> str:
    """Where a user finds what is in a shard: the tar, the folder of its images, or the Parquet file with them."""
    return FolderShard.of(url).folder if is_folder_shard(url) else file_of(url)


def kind_of(url: str) -> str:
    """What a shard is, for a reason why something is not in it."""
    return "folder" if is_folder_shard(url) else "Parquet file" if is_parquet_shard(url) else "tar"


#: Size in bytes; time of the last change in nanoseconds, or what a store says that tells it.
State = tuple[int, int | str]


class Group(NamedTuple):
    """The files of a folder whose names differ in their last suffix alone, some of them images.

    Attributes
    ----------
    below
        The folder below that of the dataset, ``/`` at its end; empty: that one.
    stem
        Of their names.
    names
        Sorted.
    states
        In a store, the size and the version of each; on a disk each is looked at by itself.
    """

    below: str
    stem: str
    names: tuple[str, ...]
    states: Mapping[str, State] | None = None

    @property
    def path(self) -> str:
        """Below the dataset's folder, without suffix."""
        return self.below + self.stem

    def samples(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """By key, the names of an image and what belongs to it; of several images each has its suffix in its key.

        A dot in a name becomes ``_``: in a tar the key would end there.
        """
        key = self.below + self.stem.replace(".", "_")
        images = [name for name in self.names if _is_image(name)]
        others = tuple(name for name in self.names if not _is_image(name))
        for image in images:
            suffix = f"_{_suffix(image)}" if len(images) > 1 else ""
            yield f"{key}{suffix}", (image, *others)


def walk(folder: str, after: str = "", options: Options = None) -> Iterator[Group]:
    """The images in a folder and all below it, those of a folder before those of the folders in it.

    Hidden files and folders are passed over. A link to a folder is followed if that lies elsewhere; links to folders
    in there are not, so that links to and fro show no image twice.

    Parameters
    ----------
    folder
        Local path or URL.
    after
        `Group.path` behind which to begin.
    options
        For fsspec.

    Raises
    ------
    ShardError
        A folder cannot be listed.
    """
    yield from _walk(
        folder, "", after.split("/") if after else [], frozenset(), linked=False, options=options
    )


def _walk(
    root: str, below: str, after: list[str], above: frozenset[str], linked: bool, options: Options
) -> Iterator[Group]:
    folder = os.path.join(root, below)  # noqa: PTH118
    if is_remote(folder):
        real, listed = folder, _listing_of_store(folder, options)
    else:
        real = os.path.realpath(folder)
        if real in above:  # links between folders may go in circles
            return
        if below and os.path.islink(folder.rstrip("/")):  # noqa: PTH114
            if linked or f"{real}/".startswith(f"{os.path.realpath(root)}/"):
                return
            linked = True
        listed = _listing(folder, must_be=not below)
    if len(after) < 2:
        start = bisect.bisect_right(listed.files, after[0], key=_stem) if after else 0
        files = (listed.files[number] for number in range(start, len(listed.files)))
        for stem, names in itertools.groupby(files, _stem):
            group = Group(below, stem, tuple(names), listed.states)
            if any(map(_is_image, group.names)):
                yield group
    deeper = len(after) > 1
    for name in listed.folders:
        if not deeper or name >= after[0]:
            rest = after[1:] if deeper and name == after[0] else []
            yield from _walk(root, f"{below}{name}/", rest, above | {real}, linked, options)


def ends_shard(group: Group, number: int, samples: int) -> bool:
    """Whether the images of a shard end with these, which are its ``number``-th: as names, not places, have it."""
    least = max(1, samples // 2)
    return number >= 2 * samples or (number >= least and zlib.crc32(os.fsencode(group.path)) % least == 0)


class _Listing(NamedTuple):
    """Names in a folder: files by their stems, folders by their names; and the states of a store's files."""

    files: Sequence[str]
    folders: Sequence[str]
    states: Mapping[str, State] | None = None


#: By path, time and size of each folder: many shards ask for the same.
_LISTED: Remembered[_Listing] = POSSESSIONS.add("folders", Remembered(256))


def _listing(folder: str, must_be: bool) -> _Listing:
    try:
        state = os.stat(folder)  # noqa: PTH116
        if time.time() - state.st_mtime < _SETTLED:
            return _list(folder)
        return _LISTED.get((folder, state.st_ino, state.st_mtime_ns), lambda: _list(folder))
    except OSError as error:
        if not must_be and isinstance(error, FileNotFoundError):
            return _Listing((), ())  # it has gone meanwhile, with all that it had
        raise ShardError(
            f"{folder}: the folder cannot be listed: {error.strerror}. All workers must see it"
        ) from error


#: By URL and options: a store's folders have no time that would tell a change.
STORED: Remembered[_Listing] = POSSESSIONS.add(LISTINGS, Remembered(256))


def _listing_of_store(folder: str, options: Options) -> _Listing:
    return STORED.get((folder, repr(options)), lambda: _list_store(folder, options))


def _list_store(folder: str, options: Options) -> _Listing:
    try:
        fs, path = filesystem(folder, options)
        # A page has 1,000 files, and a folder of a million takes minutes.
        entries = patiently(lambda: fs.ls(path, detail=True), folder, size=_LISTING_BYTES)
    except FileNotFoundError:
        return _Listing((), (), {})
    except Exception as error:  # a store's own, of many types
        raise ShardError(
            f"{folder}: the store does not answer as it should: {error!r}. Check the address, and credentials and"
            " endpoint in storage_options"
        ) from error
    folders, states = [], {}
    for entry in entries:
        name = entry["name"].rstrip("/").rpartition("/")[2]
        if is_hidden(name) or entry["name"].rstrip("/") == path.rstrip("/"):
            continue
        if entry["type"] == "directory":
            folders.append(name)
        elif "." in name:
            if entry.get("size") is None:
                raise ShardError(f"{folder}: the store says no sizes of its files: pack them as tars")
            states[name] = int(entry["size"]), version_in(entry)
    return _Listing(sorted(states, key=lambda name: (_stem(name), name)), sorted(folders), states)


def _list(folder: str) -> _Listing:
    files: list[str] = []
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not is_hidden(entry.name):
                (folders if _is_folder(entry) else files).append(entry.name)
    return _Listing(
        sorted((name for name in files if "." in name), key=lambda name: (_stem(name), name)), sorted(folders)
    )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: as a file it is one that cannot be read
        return False


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _suffix(name: str) -> str:
    return name.rpartition(".")[2]


def _is_image(name: str) -> bool:
    return _suffix(name).lower() in IMAGE_EXTENSIONS


@dataclass
class FolderIndex:
    """The files of a `FolderShard` as they are now.

    Attributes
    ----------
    index
        Its samples. A member is a file, whose path below the folder is its `target`.
    size
        Bytes of all files.
    version
        A digest of their names, sizes and times.
    times
        Of each file's last change in nanoseconds, by its path below the folder; of a store's, what tells that.
    """

    index: ShardIndex
    size: int
    version: str
    times: dict[str, int | str] = field(default_factory=dict)


def look(url: str, options: Options = None) -> FolderIndex:
    """Look at the files of a shard.

    Parameters
    ----------
    url
        Of the shard.
    options
        For fsspec.

    Raises
    ------
    ShardError
        There is no image any more, or the folder cannot be listed.
    """
    shard = FolderShard.of(url)
    samples: dict[str, Sample] = {}
    repeated: list[str] = []
    unread: list[Unread] = []
    digest, total, number = hashlib.blake2b(digest_size=16), 0, 0
    times: dict[str, int | str] = {}
    root = f"{shard.folder.rstrip('/')}/"
    for group in walk(shard.folder, shard.after, options):
        states: dict[str, State | str]
        if group.states is None:
            states = {name: _state(root + group.below + name) for name in group.names}
        else:
            states = {name: group.states[name] for name in group.names}
        for key, names in group.samples():
            number += 1
            members = []
            for name in names:
                state, path, member = states[name], group.below + name, f"{key}.{_suffix(name)}"
                digest.update(os.fsencode(f"{path}\0{state}\n"))
                if isinstance(state, str):
                    unread.append(Unread(member, state))
                    continue
                members.append(Member(member, 0, state[0], path))
                times[path] = state[1]
                total += state[0]
            if samples.setdefault(key, sample := Sample(key, tuple(members))) is not sample:
                repeated.append(group.below + names[0])
        if ends_shard(group, number, shard.samples):
            break
    if not samples:
        after = f" behind {shard.after!r}" if shard.after else ""
        raise ShardError(f"{shard.folder}: there is no image{after} any more; are they still there?")
    index = ShardIndex([*samples.values()], duplicates=tuple(repeated), unread=tuple(unread))
    return FolderIndex(index, total, digest.hexdigest(), times)


def _state(path: str) -> State | str:
    """Size and time of a file, or what speaks against its being one."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        return "a link to what is not there"
    except OSError as error:
        return f"a file that cannot be looked at: {error.strerror}"
    return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else "no regular file"
