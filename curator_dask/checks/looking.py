"""What one shard is like, by looks that need no model: its file, its Parquet, its headers, some of its images."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.decode.sniff import sniff
from curator_dask.errors import CuratorError, ImageError, ShardError
from curator_dask.frames.columns import to_array
from curator_dask.frames.names import CAPTION_COLUMN, STATUS_COLUMN
from curator_dask.frames.parquet import METADATA_KEY, open_parquet
from curator_dask.rows.ids import check_ids, exact_ids
from curator_dask.rows.remarks import fact_of
from curator_dask.rows.tar_rows import tar_row
from curator_dask.storage import Options, RemoteFile, check_regular, is_remote, local_path
from curator_dask.webdataset.headers import BLOCK, Member, header_problem, header_size, not_a_tar
from curator_dask.webdataset.index import IMAGE_EXTENSIONS, Sample, ShardIndex, StaleIndex, split_name
from curator_dask.webdataset.reader import ShardReader
from curator_dask.webdataset.shards import Shard, stamp

_SUCCESS = "success"
_NO_SAMPLE = "its Parquet names {} images, the tar has none of them"
_SUFFIXES = (
    200  # different ones that are kept of a shard: keys with dots may make as many as there are samples
)
_TAIL = 1 << 16  # bytes of an index file's end in which its last line is looked for


@dataclass
class Glance:
    """What is seen of a shard without reading its members' headers.

    Attributes
    ----------
    shard
        The shard.
    size
        Bytes of the tar; 0 where it cannot be looked at.
    troubles
        What would fail, by kind (`curator_dask.checks.findings`): ``"unreadable"``, ``"not-a-tar"``,
        ``"name"``, ``"companion"``.
    ends
        Whether the tar ends as tars do. If not, a look at its headers tells why.
    rows
        Of the companion Parquet; None where it was not looked at, or cannot be read.
    columns
        Of the companion Parquet, and whether this is output of an earlier run.
    parquet_size
        Its bytes.
    stale
        What is wrong with the index file beside the tar, as far as its first and last line tell.
    """

    shard: Shard
    size: int = 0
    troubles: dict[str, str] = field(default_factory=dict)
    ends: bool = False
    rows: int | None = None
    columns: tuple[pa.Schema, bool] | None = None
    parquet_size: int = 0
    stale: str | None = None

    @property
    def has_tar(self) -> bool:
        """Whether there is a tar to look into."""
        return not self.troubles.keys() & {"unreadable", "not-a-tar"}


@dataclass
class Look:
    """What is seen of a shard when all its headers, and its Parquet's ids, are read.

    Attributes
    ----------
    size
        Bytes of the tar.
    samples, members
        In the tar.
    rows
        Of the Parquet; of the tar where there is none.
    text_size
        Bytes of captions and JSON in the tar.
    troubles
        What would fail, by kind: ``"unreadable"``, ``"damaged"``, ``"companion"``, ``"ids"``, ``"no-match"``.
    facts
        What costs rows or is worth knowing, by kind: ``{"count": int, "examples": [key, ...]}``.
    suffixes
        Members by the suffix of their names, in lower case.
    statuses
        Rows without a sample by the status that img2dataset gave them.
    images
        Kind, width, height (upright, pixels) and bytes of those whose headers were read.
    unusable
        Keys of those that cannot be used, by reason.
    stale
        Why the index file does not fit the tar.
    """

    size: int = 0
    samples: int = 0
    members: int = 0
    rows: int = 0
    text_size: int = 0
    troubles: dict[str, str] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    suffixes: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    images: list[tuple[str, int, int, int]] = field(default_factory=list)
    unusable: dict[str, list[str]] = field(default_factory=dict)
    stale: str | None = None


def glance(shard: Shard, with_parquet: bool, options: Options = None) -> Glance:
    """Look at a shard's size, first header, end, companion and index file: a few reads, whatever its size.

    Parameters
    ----------
    shard
        The shard.
    with_parquet
        Whether its rows come from the companion Parquet.
    options
        For fsspec.
    """
    seen = Glance(shard)
    try:
        shard.url.encode()
    except UnicodeEncodeError:
        seen.troubles["name"] = "the file's name is not UTF-8"
    try:
        seen.size, head, tail = _edges(shard.url, options)
    except Exception as error:  # a store's own errors may be of any kind
        seen.troubles["unreadable"] = _said(error)
    else:
        if header_size(head) is None and (not head or head.count(0) < len(head) or len(head) < BLOCK):
            seen.troubles["not-a-tar"] = str(not_a_tar(shard.url, head)).removeprefix(f"{shard.url}: ")
        # A tar that begins with its end mark has no samples, or is no tar but zeros: its walk will tell.
        seen.ends = seen.size % BLOCK == 0 and tail.count(0) == BLOCK and head.count(0) < BLOCK
    if with_parquet and shard.parquet is not None:
        _look_at_parquet(seen, options)
    if seen.has_tar and not is_remote(shard.url):
        seen.stale = _idx_trouble(Path(local_path(shard.url)))
    return seen


def look(
    seen: Glance, id_col: str, with_parquet: bool, images: int, max_pixels: int, options: Options = None
) -> Look:
    """Read a shard's headers, its Parquet's ids, and the headers of some images. A remote tar is fetched.

    Parameters
    ----------
    seen
        The shard, as `glance` saw it.
    id_col
        Column of the keys.
    with_parquet
        Whether the rows come from the companion Parquet.
    images
        How many images' headers to read at most, evenly spread.
    max_pixels
        Above which an image cannot be used.
    options
        For fsspec.
    """
    found = Look(size=seen.size)
    ids, statuses = _rows_of(seen, found, id_col, options) if with_parquet else (None, None)
    if not seen.has_tar:
        return found
    try:
        with ShardReader(seen.shard.url, use_index_files=False, storage_options=options) as reader:
            index = reader.index
            silent = _look_at_samples(index, found)
            if with_parquet and ids is not None:
                _match(index, ids, statuses, found)
            elif not with_parquet:
                # Then the caption may be a field of the JSON.
                without = [one for one in silent if not tar_row(reader, one, id_col).get(CAPTION_COLUMN)]
                _note(found, "no-caption", [sample.key for sample in without])
            _look_at_images(reader, index, found, images, max_pixels)
    except (ShardError, OSError) as error:
        found.troubles["unreadable"] = str(error).removeprefix(f"{seen.shard.url}: ")
        return found
    if not with_parquet:
        found.rows = found.samples
    if seen.stale is None and not is_remote(seen.shard.url) and not index.problem:
        found.stale = _why_stale(Path(local_path(seen.shard.url)))
    return found


def _edges(url: str, options: Options) -> tuple[int, bytes, bytes]:
    """Size, first and last 512 bytes of a file."""
    if is_remote(url):
        remote = RemoteFile(url, options)
        size = remote.size
        return size, remote.block(0, min(size, BLOCK)), remote.block(max(0, size - BLOCK), size)
    path = local_path(url)
    check_regular(path)
    with Path(path).open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        return size, os.pread(file.fileno(), BLOCK, 0), os.pread(file.fileno(), BLOCK, max(0, size - BLOCK))


def _look_at_parquet(seen: Glance, options: Options) -> None:
    parquet = seen.shard.parquet
    assert parquet is not None
    try:
        seen.parquet_size = stamp(parquet, options).size
        with open_parquet(parquet, options) as file:
            schema = file.schema_arrow
            seen.rows = file.metadata.num_rows
        seen.columns = (schema.remove_metadata(), METADATA_KEY in (schema.metadata or {}))
    except Exception as error:  # of the file system, of Arrow, of a store
        seen.troubles["companion"] = _said(error)


def _idx_trouble(tar: Path) -> str | None:
    """What the first and the last line of the index file beside a tar show to be wrong with it."""
    path = tar.with_suffix(".idx")
    try:
        check_regular(path)
        with path.open("rb", buffering=0) as file:
            head = os.pread(file.fileno(), 64, 0)
            end = os.fstat(file.fileno()).st_size
            tail = os.pread(file.fileno(), _TAIL, max(0, end - _TAIL))
        with tar.open("rb", buffering=0) as file:
            width = {b"v1.1 ": 3, b"v1.2 ": 4}.get(head[:5])
            if width is None:
                return f"no index of DALI's (starts with {head[:16]!r})"
            words = tail.splitlines()[-1].split()
            if not tail.endswith(b"\n") or len(words) < width or (len(words) % width and end <= _TAIL):
                return "its last line is not whole"
            offset, size = map(int, words[1 - width : 3 - width] if width == 4 else words[-2:])
            header = os.pread(file.fileno(), BLOCK, offset - BLOCK) if offset >= BLOCK else b""
    except FileNotFoundError:
        return None
    except (OSError, ValueError, OverflowError) as error:
        return _said(error)
    if width == 3:
        return None  # it has no names that a header could be compared with
    member = Member(words[-1].decode("utf-8", "surrogateescape"), offset, size)
    # What an extended header says cannot be seen here: a member without a plain header is for the full look.
    wrong = header_problem(header, member)
    return f"member {member.name!r} at byte {offset}: {wrong}" if wrong else None


def _why_stale(tar: Path) -> str | None:
    path = tar.with_suffix(".idx")
    if not path.exists():
        return None
    try:
        ShardIndex.read_idx(path, tar)
    except StaleIndex as error:
        return str(error).partition(f"{tar}: ")[2] or str(error).removeprefix(f"{path}: ")
    except ShardError:
        return None  # the tar's own trouble, told as such
    return None


def _rows_of(
    seen: Glance, found: Look, id_col: str, options: Options
) -> tuple[list[Any] | None, list[Any] | None]:
    """Ids of a shard's rows, and what img2dataset says of each; None where there is no such column."""
    if seen.columns is None or id_col not in seen.columns[0].names:
        return None, None
    assert seen.shard.parquet is not None
    wanted = [name for name in (id_col, STATUS_COLUMN, CAPTION_COLUMN) if name in seen.columns[0].names]
    try:
        with open_parquet(seen.shard.parquet, options) as file:
            table = file.read(columns=list(dict.fromkeys(wanted)))
    except Exception as error:  # of the file system, of Arrow, of a store
        found.troubles["companion"] = _said(error)
        return None, None
    found.rows = table.num_rows
    try:
        return _usable_rows(table, id_col, found)
    except (
        pa.ArrowException,
        ValueError,
        KeyError,
    ) as error:  # text that is not UTF-8, two columns of one name
        found.troubles["companion"] = f"its values cannot be read: {_said(error)}"
        return None, None


def _usable_rows(table: pa.Table, id_col: str, found: Look) -> tuple[list[Any], list[Any] | None]:
    try:
        check_ids(table.column(id_col), id_col, "")
    except ShardError as error:
        found.troubles["ids"] = str(error).removeprefix(": ")
    if CAPTION_COLUMN in table.column_names and id_col != CAPTION_COLUMN:
        _count_empty(table, id_col, found)
    statuses = None
    if STATUS_COLUMN in table.column_names and id_col != STATUS_COLUMN:
        statuses = table.column(STATUS_COLUMN).to_pylist()
    return exact_ids(to_array(table.column(id_col))), statuses


def _count_empty(table: pa.Table, id_col: str, found: Look) -> None:
    captions = to_array(table.column(CAPTION_COLUMN))
    if pa.types.is_dictionary(captions.type):
        captions = captions.dictionary_decode()
    empty = pc.is_null(captions)
    if pa.types.is_string(captions.type) or pa.types.is_large_string(captions.type):
        with contextlib.suppress(pa.ArrowInvalid):  # text that is not UTF-8, which is passed on as it is
            empty = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(captions), ""), True)
    keys = table.column(id_col)
    _note(found, "no-caption", [str(keys[row].as_py()) for row in pc.indices_nonzero(empty).to_pylist()])


def _look_at_samples(index: ShardIndex, found: Look) -> list[Sample]:
    """Count what the samples are made of; returns those without a caption's file."""
    without: list[str] = []
    several: list[str] = []
    silent: list[Sample] = []
    for sample in index.samples:
        pictures = captions = 0
        for member in sample.members:
            suffix = (split_name(member.name) or ("", ""))[1].lower()
            found.suffixes[suffix] += 1
            pictures += suffix.rpartition(".")[2] in IMAGE_EXTENSIONS
            captions += suffix == "txt"
            if suffix in ("txt", "json"):
                found.text_size += member.size
        if not captions:
            silent.append(sample)
        if pictures != 1:
            (several if pictures else without).append(sample.key)
    found.samples = len(index.samples)
    found.members = found.suffixes.total()
    if len(found.suffixes) > _SUFFIXES:
        found.suffixes = Counter(dict(found.suffixes.most_common(_SUFFIXES)))
    if index.problem:
        found.troubles["damaged"] = index.problem
    elif not index.samples:
        _note(found, "no-samples", [""])
    _note(found, "no-image", without)
    _note(found, "several-images", several)
    _note(found, "duplicates", index.duplicates)
    return silent


def _match(index: ShardIndex, ids: list[Any], statuses: list[Any] | None, found: Look) -> None:
    """Compare the rows' ids with the tar's keys, either way."""
    places = index.find(ids)
    lacking = np.flatnonzero(places < 0).tolist()
    failed: set[int] = set()
    if statuses is not None:
        succeeded = _SUCCESS in statuses  # without any the column may be somebody else's
        failed = {row for row in lacking if _has_failed(statuses[row], succeeded)}
        found.statuses = Counter(statuses[row][:80] for row in failed)
    missing = [str(ids[row]) for row in lacking if row not in failed]
    _note(found, "not-downloaded", [str(ids[row]) for row in sorted(failed)])
    if missing and len(lacking) == len(ids) and not index.problem:
        found.troubles["no-match"] = _NO_SAMPLE.format(len(missing)) + _two_keys(missing, index)
    else:
        _note(found, "missing", missing)
    named = set(places.tolist())
    _note(found, "orphans", [s.key for number, s in enumerate(index.samples) if number not in named])


def _has_failed(status: Any, succeeded: bool) -> bool:
    """Whether this is img2dataset's status of an image that could not be had."""
    return isinstance(status, str) and status != _SUCCESS and (succeeded or status.startswith("failed_to_"))


def _two_keys(missing: list[str], index: ShardIndex) -> str:
    there = f", the tar {index.samples[0].key!r}" if index.samples else ""
    return f" (the Parquet has {missing[0]!r}{there})"


def _look_at_images(
    reader: ShardReader, index: ShardIndex, found: Look, images: int, max_pixels: int
) -> None:
    count = min(images, len(index.samples))
    places = np.linspace(0, len(index.samples) - 1, count, dtype=int).tolist() if count else []
    for sample in (index.samples[place] for place in places):
        member = sample.image()
        if member is None:
            continue
        try:
            header = sniff(reader.read(member), max_pixels)
        except ImageError as error:
            kind = str(error).partition(":")[0].partition(" (")[0]
            found.unusable.setdefault(kind, []).append(f"{sample.key}: {error}")
        else:
            found.images.append((header.kind, header.width, header.height, member.size))


def _note(found: Look, kind: str, names: Any) -> None:
    fact = fact_of(names)
    if fact is not None:
        found.facts[kind] = fact


def _said(error: Exception) -> str:
    if isinstance(error, CuratorError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
