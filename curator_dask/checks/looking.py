"""What one shard is like, by a look that needs no model: all its headers, its rows' ids, some of its images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.checks.captions import empty_of
from curator_dask.checks.glancing import Glance, said
from curator_dask.checks.shared_keys import key_hashes
from curator_dask.decode.orientation import EXIF_COLUMN, has_orientation, orientation_in, upright_size
from curator_dask.decode.sniff import sniff
from curator_dask.errors import ImageError, ShardError
from curator_dask.frames.columns import to_array
from curator_dask.frames.names import CAPTION_COLUMN, STATUS_COLUMN
from curator_dask.frames.parquet import open_parquet
from curator_dask.rows.ids import check_ids, exact_ids
from curator_dask.rows.remarks import fact_of
from curator_dask.rows.tar_rows import SCHEMA_SAMPLES, tar_row, texts_of
from curator_dask.storage import Options, is_remote, local_path
from curator_dask.webdataset.idx import StaleIndex
from curator_dask.webdataset.index import ShardIndex
from curator_dask.webdataset.layouts import portable_key
from curator_dask.webdataset.opening import Reader, open_shard
from curator_dask.webdataset.parquet import file_of
from curator_dask.webdataset.samples import IMAGE_EXTENSIONS, Sample, split_name
from curator_dask.webdataset.several import ImagesIndex

RowsFrom = Literal["parquet", "tar", "elsewhere"]
_SUCCESS = "success"
_NO_SAMPLE = "its Parquet names {} images, the tar has none of them"
_SUFFIXES = (
    200  # different ones that are kept of a shard: keys with dots may make as many as there are samples
)


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
        Bytes of captions and JSON in the tar; of the other columns, where images are in rows of a Parquet file.
    troubles
        What would fail, by kind: ``"unreadable"``, ``"damaged"``, ``"companion"``, ``"ids"``, ``"no-match"``.
    facts
        What costs rows or is worth knowing, by kind: ``{"count": int, "examples": [key, ...]}``.
    suffixes
        Members by the suffix of their names, in lower case.
    left_out
        Kinds of components and fields of the JSON that rows from the tar do not take, of the first samples.
    statuses
        Rows without a sample by the status that img2dataset gave them.
    images
        Kind, width, height (upright, pixels) and bytes of those whose headers were read.
    unusable
        Keys of those that cannot be used, by reason.
    deep_gray
        Keys of the images, of those looked at, that are grey with more than 8 bits a sample.
    turned
        Keys of the images, of those looked at, that lie on their side or are mirrored, as their ``exif`` says.
    keys
        uint64 (samples,): a hash of each sample's key.
    pictured
        Whether any row finds an image.
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
    left_out: dict[str, None] = field(default_factory=dict)
    statuses: Counter[str] = field(default_factory=Counter)
    images: list[tuple[str, int, int, int]] = field(default_factory=list)
    unusable: dict[str, list[str]] = field(default_factory=dict)
    deep_gray: list[str] = field(default_factory=list)
    turned: list[str] = field(default_factory=list)
    keys: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    pictured: bool = False
    stale: str | None = None


def look(
    seen: Glance, id_col: str, rows_from: RowsFrom, images: int, max_pixels: int, options: Options = None
) -> Look:
    """Read a shard's headers, its Parquet's ids, and the headers of some images. A remote tar is fetched.

    Parameters
    ----------
    seen
        The shard, as `glance` saw it.
    id_col
        Column of the keys.
    rows_from
        Where the rows come from: the companion Parquet, the tar or what lies beside the images, or elsewhere.
    images
        How many images' headers to read at most, evenly spread.
    max_pixels
        Above which an image cannot be used.
    options
        For fsspec.
    """
    found = Look(size=seen.size)
    with_parquet = rows_from == "parquet"
    ids, statuses = rows_of(seen, found, id_col, options) if with_parquet else (None, None)
    if not seen.has_tar:
        return found
    try:
        with open_shard(seen.shard.url, use_index_files=False, storage_options=options) as reader:
            index = reader.index
            silent = _look_at_samples(index, found)
            if with_parquet and ids is not None:
                _match(index, ids, statuses, found)
            elif rows_from == "tar":
                # Then the caption may be a field of the JSON.
                reader.expect(texts_of(silent))
                without = [one for one in silent if not tar_row(reader, one, id_col).get(CAPTION_COLUMN)]
                note(found, "no-caption", [sample.key for sample in without])
                reader.expect(texts_of(index.samples[:SCHEMA_SAMPLES]))
                for sample in index.samples[:SCHEMA_SAMPLES]:
                    tar_row(reader, sample, id_col, left_out=found.left_out)
            _look_at_images(reader, index, found, images, max_pixels, rows_from == "elsewhere")
    except (ShardError, OSError) as error:
        found.troubles["unreadable"] = str(error).removeprefix(f"{seen.shard.url}: ")
        return found
    if not with_parquet:
        found.rows = found.samples
        found.pictured = any(sample.image() for sample in index.samples)
    if seen.stale is None and not is_remote(seen.shard.url) and not index.problem:
        found.stale = _why_stale(Path(local_path(file_of(seen.shard.url))))
    return found


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


def rows_of(
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
        found.troubles["companion"] = said(error)
        return None, None
    found.rows = table.num_rows
    try:
        return _usable_rows(table, id_col, found)
    except (
        pa.ArrowException,
        ValueError,
        KeyError,
    ) as error:  # text that is not UTF-8, two columns of one name
        found.troubles["companion"] = f"its values cannot be read: {said(error)}"
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
    empty = empty_of(captions)
    keys = table.column(id_col)
    note(found, "no-caption", [str(keys[row].as_py()) for row in pc.indices_nonzero(empty).to_pylist()])


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
            extension = suffix.rpartition(".")[2]
            pictures += extension in IMAGE_EXTENSIONS
            captions += extension == "txt"
            if extension in ("txt", "json"):
                found.text_size += member.size
        if not captions:
            silent.append(sample)
        if pictures != 1:
            (several if pictures else without).append(sample.key)
    found.samples = len(index.samples)
    found.keys = key_hashes(index.samples)
    found.members = found.suffixes.total()
    if len(found.suffixes) > _SUFFIXES:
        found.suffixes = Counter(dict(found.suffixes.most_common(_SUFFIXES)))
    if index.problem:
        found.troubles["damaged"] = index.problem
    elif not index.samples:
        note(found, "no-samples", [""])
    note(found, "no-image", without)
    note(found, "several-images", several)
    note(found, "duplicates", index.duplicates)
    note(found, "unread", map(str, index.unread))
    if isinstance(index, ImagesIndex):  # of which no reader sees such samples
        note(found, "imageless", index.imageless)
    else:
        note(found, "readers", _seen_otherwise(index.samples))
    return silent


def _seen_otherwise(samples: Sequence[Sample]) -> list[str]:
    """Keys of samples that not all readers of such shards see alike (`curator_dask.webdataset.layouts`)."""
    fields = [
        frozenset((split_name(member.name) or ("", ""))[1] for member in sample.members) for sample in samples
    ]
    usual = max(Counter(fields).items(), key=lambda each: each[1], default=(frozenset(), 0))[0]
    return [
        sample.key
        for sample, own in zip(samples, fields, strict=True)
        if own != usual
        or any(suffix != suffix.lower() for suffix in own)
        or portable_key(sample.key) != sample.key
    ]


def _match(index: ShardIndex, ids: list[Any], statuses: list[Any] | None, found: Look) -> None:
    """Compare the rows' ids with the tar's keys, either way."""
    places = index.find(ids)
    lacking = np.flatnonzero(places < 0).tolist()
    failed: set[int] = set()
    if statuses is not None:
        succeeded = _SUCCESS in statuses  # without any the column may be somebody else's
        failed = {row for row in lacking if has_failed(statuses[row], succeeded)}
        found.statuses = Counter(statuses[row][:80] for row in failed)
    if failed and len(failed) == len(ids):
        found.facts.pop("no-samples", None)  # there is nothing to mend: img2dataset got none of its images
    missing = [str(ids[row]) for row in lacking if row not in failed]
    note(found, "not-downloaded", [str(ids[row]) for row in sorted(failed)])
    if missing and len(lacking) == len(ids) and not index.problem:
        found.troubles["no-match"] = _NO_SAMPLE.format(len(missing)) + _two_keys(missing, index)
    else:
        note(found, "missing", missing)
    named = set(places.tolist())
    found.pictured = any(index.samples[place].image() for place in named if place >= 0)
    note(found, "orphans", [s.key for number, s in enumerate(index.samples) if number not in named])


def has_failed(status: Any, succeeded: bool) -> bool:
    """Whether this is img2dataset's status of an image that could not be had."""
    return isinstance(status, str) and status != _SUCCESS and (succeeded or status.startswith("failed_to_"))


def _two_keys(missing: list[str], index: ShardIndex) -> str:
    there = f", the tar {index.samples[0].key!r}" if index.samples else ""
    return f" (the Parquet has {missing[0]!r}{there})"


def _look_at_images(
    reader: Reader, index: ShardIndex, found: Look, images: int, max_pixels: int, alone: bool
) -> None:
    count = min(images, len(index.samples))
    places = np.linspace(0, len(index.samples) - 1, count, dtype=int).tolist() if count else []
    samples = [index.samples[place] for place in places]
    reader.expect(
        each
        for sample in samples
        if (image := sample.image())
        for each in (image, *(() if alone else texts_of([sample])))
    )
    for sample in samples:
        member = sample.image()
        if member is None:
            continue
        try:
            data = reader.read(member)
            header = sniff(data, max_pixels)
        except ImageError as error:
            kind = str(error).partition(":")[0].partition(" (")[0]
            found.unusable.setdefault(kind, []).append(f"{sample.key}: {error}")
        else:
            found.images.append((header.kind, *upright_size(data, header), member.size))
            if header.deep_gray:
                found.deep_gray.append(sample.key)
            if alone:  # what says how they lie is not beside them
                continue
            if orientation_in(tar_row(reader, sample, "").get(EXIF_COLUMN)) != 1 and not has_orientation(
                data
            ):
                found.turned.append(sample.key)


def note(found: Look, kind: str, names: Any) -> None:
    """Put a fact into a look, where there are such names."""
    fact = fact_of(names)
    if fact is not None:
        found.facts[kind] = fact
