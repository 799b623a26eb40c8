"""`preflight`: what a run would stumble over, found in seconds, without a model or a cluster.

Every shard gets a glance (size, first header, end, companion, index file). All headers and keys are read of as
many shards as seconds allow, evenly spread over the dataset; what that shows is extrapolated, and said to be.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from curator_dask.checks.captions import CaptionsLook, look_at_captions
from curator_dask.checks.findings import Finding, Report, shown
from curator_dask.checks.glancing import Glance, glance
from curator_dask.checks.kinds import KINDS, fixes_of
from curator_dask.checks.looking import Look, RowsFrom
from curator_dask.checks.looking_in_rows import look_into
from curator_dask.checks.shared_keys import shared_keys
from curator_dask.checks.taken import taken_names
from curator_dask.decode.spec import DEFAULT_MAX_PIXELS
from curator_dask.errors import ConfigError, CuratorError, DatasetError
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.rows.image_files import caption_table, check_captions
from curator_dask.rows.reading import choose_source, learn_schema, read_parquet_rows
from curator_dask.rows.remarks import EXAMPLES
from curator_dask.storage import Options, absolute, is_remote
from curator_dask.threads import in_threads
from curator_dask.webdataset.finding import find_shards
from curator_dask.webdataset.folders import is_folder_shard
from curator_dask.webdataset.parquet import is_parquet_shard
from curator_dask.webdataset.shards import Shard, ShardRange, ShardSet

DEFAULT_DIM = 768
"""Values of a vector, where the model is not known: those of ViT-B."""

_MEMBERS = 400_000  # headers that are read unless told otherwise: about 3 seconds' worth from a local disk
_SECONDS = 15.0  # after which no more shards are looked into unless told otherwise, where the disk is slow
_REMOTE_BYTES = 256_000_000  # of remote tars that are fetched unless told otherwise
_MORE = 64  # shards that are looked into besides, since they do not end as tars do
_FETCHES = 4  # remote shards that are looked into at a time; local ones would take turns at Python's lock
_IMAGES, _IMAGES_A_SHARD = 4096, 32  # whose headers are read
_FEW = 5  # shards that a finding names
_KINDS = 20  # of what rows leave out, that a report names
_VALUES = 2**31 - 1  # of an Arrow list column


def preflight(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    id_col: str = "key",
    *,
    metadata: str = "auto",
    shards: int | Literal["all"] | None = None,
    dim: int = DEFAULT_DIM,
    output: str | os.PathLike[str] | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    images: bool = False,
    image_column: str = "auto",
    each_image: bool = False,
    captions: str | os.PathLike[str] | None = "txt",
    storage_options: Options = None,
) -> Report:
    """Look a dataset over before it is embedded.

    Parameters
    ----------
    path, id_col, metadata, storage_options
        As for `ImageTextPairDataset.from_webdataset`; or Parquet files with images, or a folder of image files.
    shards
        Of how many shards, evenly spread, all headers and keys are read. None: of as many as take seconds; of
        remote ones as many as fit in 256 MB, since they have to be fetched.
    dim
        Values of a vector, for the estimate of the output's size.
    output
        Where the output is to go: its free space is compared with the estimate.
    max_pixels
        Images above it count as unusable.
    images
        Look at the image files of the folder, even where it has tars.
    image_column, each_image
        As for `ImageTextPairDataset.from_parquet` and `from_webdataset`.
    captions
        Of image files, as for `ImageTextPairDataset.from_images`.

    Returns
    -------
    Report
        Print it, or look at its ``problems`` and ``notes``. ``ok`` if nothing would fail.

    Raises
    ------
    ConfigError
        An option that cannot be carried out.
    DatasetError
        There are no shards.
    """
    started = time.monotonic()
    if id_col in (URL_COLUMN, ERROR_COLUMN):
        raise ConfigError(f"id_col={id_col!r}: this name is taken; give the column of the keys")
    if metadata not in ("auto", "parquet", "tar"):
        raise ConfigError(f"metadata={metadata!r}: expected 'auto', 'parquet' or 'tar'")
    if shards not in (None, "all") and (
        not isinstance(shards, int) or isinstance(shards, bool) or shards < 1
    ):
        raise ConfigError(f"shards={shards!r}: expected a whole number of at least 1, 'all' or None")
    if not isinstance(dim, int) or dim < 1:
        raise ConfigError(f"dim={dim!r}: expected a whole number of at least 1")
    which: dict[str, Any] = {"images": images, "image_column": image_column, "each_image": each_image}
    found = find_shards(path, storage_options, id_col=id_col, **which)
    given = "none" if captions is None else os.fsdecode(captions)
    check_captions(given, found)
    kept: dict[Any, Any] = {}

    def seen(shard: Any) -> Glance:
        result = glance(shard, metadata != "tar", storage_options)
        result.columns = kept.setdefault(result.columns, result.columns)  # one schema for all that have it
        return result

    glances, tally = in_threads(seen, found.shards), _Tally()
    source = _source_of(metadata, found, glances, storage_options, tally)
    with_parquet = source == "parquet"
    _tally_glances(glances, with_parquet, dim, tally)
    if with_parquet:
        _check_columns(glances, id_col, storage_options, tally)

    rows_from: RowsFrom = "parquet" if with_parquet else "tar" if given == "txt" else "elsewhere"
    looks = dict(_looks(glances, shards, (id_col, rows_from), max_pixels, storage_options))
    report = Report(found.root, source, len(glances), sum(one.size for one in glances), len(looks))
    report.captions, report.in_rows = given, is_parquet_shard(found.shards[0].url)
    table = None if given in ("txt", "none") else caption_table(given, storage_options)
    seen_table = CaptionsLook()
    if table is not None:
        seen_table = look_at_captions(table, found.root, id_col, storage_options)
    report.columns = seen_table.columns
    _tally_captions(seen_table, report, tally)
    of_table = seen_table.columns if rows_from == "elsewhere" else None
    report.taken = taken_names(glances, source, of_table, id_col, storage_options)
    _count(report, glances, looks, with_parquet)
    _tally_looks(report, glances, looks, tally)
    for each in shared_keys([(glances[number].shard.name, looks[number].keys) for number in sorted(looks)]):
        tally.add("shared-keys", f"{each.shard}: {each.samples:,} of its keys, as {each.other}", each.samples)
    if with_parquet and not report.in_rows:
        other = sum(one.parquet_size for one in glances)
    elif rows_from == "elsewhere":
        other = seen_table.size
    else:
        other = round(sum(one.text_size for one in looks.values()) * _factor(report, looks))
    _estimate_disk(report, other, dim, output, tally)
    captions_beside = given == "txt" and is_folder_shard(found.shards[0].url)
    report.findings = tally.findings(fixes_of(report.images["unusable"], captions_beside))
    report.seconds = time.monotonic() - started
    return report


class _Tally:
    """Findings by kind, while they are collected."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._shards: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}
        self._factors: dict[str, float] = {}

    def add(self, kind: str, example: str, count: int = 1, shards: int = 1, factor: float = 1.0) -> None:
        """Count something of a shard; `factor` is by how much all is more than what was looked at."""
        self._counts[kind] += count
        self._shards[kind] += shards
        self._factors[kind] = factor
        if len(self._examples.setdefault(kind, [])) < _FEW:
            self._examples[kind].append(shown(example))

    def findings(self, fixes: Mapping[str, str]) -> list[Finding]:
        """Those that would fail first; `fixes` by kind, where others than usual help."""
        return [
            Finding(
                kind,
                self._counts[kind],
                self._shards[kind],
                tuple(self._examples[kind]),
                round(self._counts[kind] * self._factors[kind]) if self._factors[kind] > 1 else None,
                fixes.get(kind, ""),
            )
            for kind in KINDS
            if kind in self._counts
        ]


def _source_of(
    metadata: str, found: ShardSet, glances: Sequence[Glance], options: Options, tally: _Tally
) -> str:
    without = [shard.name for shard in found.shards if shard.parquet is None]
    # What is not a file must not be opened, which choosing the source may do.
    broken = any("companion" in one.troubles for one in glances)
    if metadata == "tar" or not broken:
        try:
            return choose_source(metadata, found, options)
        except DatasetError:
            pass
    for name in without:
        tally.add("no-companion", name)
    return "parquet"


def _tally_glances(glances: Sequence[Glance], with_parquet: bool, dim: int, tally: _Tally) -> None:
    for one in glances:
        for kind, text in one.troubles.items():
            if kind != "companion" or with_parquet:
                tally.add(kind, f"{one.shard.name}: {text}")
        if with_parquet and one.rows == 0:
            tally.add("no-rows", one.shard.name)
        if with_parquet and (one.rows or 0) * dim > _VALUES:
            tally.add("partition", f"{one.shard.name}: {one.rows:,} rows of {dim} values")


def _check_columns(glances: Sequence[Glance], id_col: str, options: Options, tally: _Tally) -> None:
    """Let the run's own code say whether the columns fit: once for each set of columns that differs."""
    of: dict[Any, list[Glance]] = {}
    for one in glances:
        if one.columns is not None:
            of.setdefault(one.columns, []).append(one)
    if not of:
        return
    try:
        schema = learn_schema(
            [one.shard for one in glances if one.columns is not None], "parquet", id_col, options
        )
    except CuratorError as error:
        tally.add("columns", str(error), shards=0)
        return
    for alike in of.values():
        first = alike[0].shard
        try:
            # No row is read, and no tar: this shard has none.
            shard = first if is_parquet_shard(first.url) else Shard("", first.name, first.parquet)
            read_parquet_rows(ShardRange(shard, 0, 0), schema, id_col, options)
        except (CuratorError, pa.ArrowException, OSError, KeyError) as error:
            text = str(error).removeprefix(f"{first.parquet}: ")
            for one in alike:
                tally.add("columns", f"{one.shard.name}: {text}")


def _looks(
    glances: Sequence[Glance],
    shards: int | str | None,
    arguments: tuple[str, RowsFrom],
    max_pixels: int,
    options: Options,
) -> Iterator[tuple[int, Look]]:
    """Look into shards, evenly spread, until it is enough; then into those that do not end as tars do."""
    order = _order(glances, shards)
    images, members, started = 0, 0, time.monotonic()
    each = max(_IMAGES_A_SHARD, 512 // max(1, len(order)))
    done: set[int] = set()
    width = _FETCHES if is_remote(glances[0].shard.url) else 1
    with ThreadPoolExecutor(width, thread_name_prefix="curator_dask-preflight") as pool:

        def looked(numbers: Sequence[int]) -> Iterator[tuple[int, Look]]:
            many = each if images < _IMAGES else 0
            tasks = [
                pool.submit(look_into, glances[number], *arguments, many, max_pixels, options)
                for number in numbers
            ]
            for number, task in zip(numbers, tasks, strict=True):
                yield number, task.result()

        for start in range(0, len(order), width):
            block = order[start : start + width]
            done.update(block)
            for number, result in looked(block):
                images += len(result.images)
                members += result.members
                yield number, result
            if shards is None and (members >= _MEMBERS or time.monotonic() - started > _SECONDS):
                break
        odd = [number for number, one in enumerate(glances) if one.has_tar and not one.ends]
        odd = [number for number in odd if number not in done and not is_remote(glances[number].shard.url)]
        for number in odd[:_MORE]:
            yield from looked([number])


def _order(glances: Sequence[Glance], shards: int | str | None) -> list[int]:
    """Numbers of the shards to look into, so that wherever one stops they are evenly spread."""
    total = len(glances)
    count = total if shards is None or shards == "all" else min(int(shards), total)
    chosen = np.linspace(0, total - 1, count, dtype=int).tolist()
    bits = max(1, (count - 1).bit_length())
    order = [chosen[place] for place in sorted(range(count), key=lambda place: f"{place:0{bits}b}"[::-1])]
    if shards is None and is_remote(glances[0].shard.url):
        fetched = np.cumsum([glances[number].size for number in order])
        order = order[: int(np.searchsorted(fetched, _REMOTE_BYTES, side="right"))]
    return order


def _count(report: Report, glances: Sequence[Glance], looks: Mapping[int, Look], with_parquet: bool) -> None:
    whole = len(looks) == len(glances)
    report.samples_exact = whole
    if looks:
        report.samples = round(sum(one.samples for one in looks.values()) * _factor(report, looks))
    if with_parquet:
        report.rows = sum(one.rows or 0 for one in glances)
    else:
        report.rows, report.rows_exact = report.samples, whole
    suffixes: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    for one in looks.values():
        suffixes += one.suffixes
        statuses += one.statuses
    report.components = {shown(name): count for name, count in suffixes.most_common(50)}
    left_out = dict.fromkeys(kind for one in looks.values() for kind in one.left_out)
    report.left_out = [shown(kind) for kind in [*left_out][:_KINDS]]
    report.statuses = {shown(status): count for status, count in statuses.most_common(20)}
    images = [image for one in looks.values() for image in one.images]
    unusable: Counter[str] = Counter()
    for one in looks.values():
        unusable.update({kind: len(keys) for kind, keys in one.unusable.items()})
    report.images = {"looked": len(images) + unusable.total(), "unusable": dict(unusable.most_common(20))}
    if images:
        kinds, *measures = zip(*images, strict=True)
        report.images["formats"] = dict(Counter(kinds).most_common())
        for name, values in zip(("width", "height", "bytes"), measures, strict=True):
            report.images[name] = [min(values), int(np.median(values)), max(values)]


def _factor(report: Report, looks: Mapping[int, Look]) -> float:
    """By how much all shards are more than those looked into: in bytes, since shards differ in size."""
    size = sum(one.size for one in looks.values())
    return report.size / size if size and len(looks) < report.shards else 1.0


def _tally_looks(report: Report, glances: Sequence[Glance], looks: Mapping[int, Look], tally: _Tally) -> None:
    more = _factor(report, looks)
    shards = report.shards / max(1, len(looks))
    images = (report.samples or 0) / max(1, report.images["looked"])
    for number, one in enumerate(glances):
        name, seen = one.shard.name, looks.get(number)
        if seen is None:
            if one.has_tar and not one.ends:
                tally.add("damaged", f"{name}: it does not end as a tar does")
            if one.stale:
                tally.add("stale-idx", f"{name}: {one.stale}")
            continue
        for kind, text in seen.troubles.items():
            # How tars end was looked at everywhere.
            tally.add(kind, f"{name}: {text}", factor=1 if kind == "damaged" else shards)
        for kind, fact in seen.facts.items():
            keys = ", ".join(map(repr, fact["examples"]))
            tally.add(kind, f"{name}: {keys}" if keys != "''" else name, fact["count"], factor=more)
        bad = [text for texts in seen.unusable.values() for text in texts]
        if bad:
            more_bad = ["…"] if len(bad) > EXAMPLES else []
            tally.add("bad-image", f"{name}: {'; '.join(bad[:EXAMPLES] + more_bad)}", len(bad), factor=images)
        if seen.turned:
            tally.add("turned", f"{name}: {seen.turned[0]!r}", len(seen.turned), factor=images)
        if seen.deep_gray:
            tally.add("gray16", f"{name}: {seen.deep_gray[0]!r}", len(seen.deep_gray), factor=images)
        if one.stale or seen.stale:
            tally.add("stale-idx", f"{name}: {one.stale or seen.stale}")
    rows = sum(one.rows for one in looks.values())
    if rows and not any(one.troubles for one in looks.values()):
        unusable = report.images["looked"]
        if not any(one.pictured for one in looks.values()):
            tally.add("no-vector", "no row finds an image", rows, shards=0, factor=more)
        elif unusable and not any(one.images for one in looks.values()):
            text = f"none of the {unusable:,} images looked at can be used"
            tally.add("no-vector", text, rows, shards=0, factor=more)


def _tally_captions(seen: CaptionsLook, report: Report, tally: _Tally) -> None:
    if seen.trouble is not None:
        tally.add("captions", seen.trouble, shards=0)
    for kind, fact in seen.facts.items():
        more = ", …" if fact["count"] > len(fact["examples"]) else ""
        tally.add(kind, f"{', '.join(map(repr, fact['examples']))}{more}", fact["count"], shards=0)


def _estimate_disk(
    report: Report, other: int, dim: int, output: str | os.PathLike[str] | None, tally: _Tally
) -> None:
    if report.rows is None:
        return
    vectors = report.rows * dim * 4
    report.disk = {"dim": dim, "vectors": vectors, "other": other, "total": vectors + other}
    if output is None or is_remote(os.fspath(output)):
        return
    folder = Path(absolute(os.fspath(output)))
    there = sum(path.stat().st_size for path in folder.rglob("*.parquet")) if folder.is_dir() else 0
    existing = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    free = shutil.disk_usage(existing).free
    report.disk |= {"output": str(folder), "free": free, "there": there}
    if vectors + other - there > free:
        text = f"{folder}: about {vectors + other - there:,} bytes are needed, {free:,} are free"
        tally.add("disk", text, shards=0)
