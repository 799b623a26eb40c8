"""The tars of an export that stay as they are while others are added: which are finished, and what is in them.

What is in a tar is known by the manifest: its samples by the shard and the key that they have in the source. So
neither the tar nor what it was made of is read again.
"""

from __future__ import annotations

import contextlib
import logging
import posixpath
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.errors import ImageError, OutputError, ShardError
from curator_dask.frames.parquet import read_footer
from curator_dask.outputs.choosing import read_rows
from curator_dask.outputs.editing import Edits, is_of_row
from curator_dask.outputs.export_place import ExportPlace
from curator_dask.outputs.left_out import UNBLURRED, is_without_file
from curator_dask.outputs.selecting import Folder
from curator_dask.outputs.shard_names import is_shard
from curator_dask.outputs.source_keys import SourceKeys
from curator_dask.storage import exists, walk
from curator_dask.threads import in_threads
from curator_dask.webdataset.stamps import stamp

logger = logging.getLogger("curator_dask")

#: What comes before the suffix in a member's name; see `curator_dask.webdataset.samples.split_name`.
_BEFORE_SUFFIX = r"^(?:\./)?(?:.*/)?[^/.]*\."


@dataclass(frozen=True)
class KnownTars:
    """Which tars of an export are finished.

    Attributes
    ----------
    finished
        Their names, in order.
    before
        Those of them that were there before the last call.
    interrupted
        The last call has not finished all of its own.
    """

    finished: tuple[str, ...]
    before: tuple[str, ...]
    interrupted: bool

    @classmethod
    def of(cls, place: ExportPlace) -> KnownTars:
        """See what is there.

        Raises
        ------
        OutputError
            Tars are there of which it is not known what is in them, or that are not as they were written.
        """
        target, manifest = place.target, place.folder("manifest")
        there = {name[:-4] for name in walk(*target) if name.endswith(".tar")}
        listed = {name.removesuffix(".parquet") for name in walk(*manifest)}
        if there and place.told.get("export") is None and not listed:
            raise OutputError(
                f"{target.file(min(there))}.tar: is there, and {place.beside}, which says what its samples are, is not."
                " Put that back, or write to another path"
            )
        names = sorted(listed | place.tars)
        if table := next((name for name in names if is_shard(f"{name}.parquet")), None):
            raise OutputError(
                f"{target.file(table)}.parquet: is of an export to Parquet files, whose names say how many there are:"
                " to those none are added. Write to another path"
            )
        last = place.last_call
        reports = in_threads(lambda name: _report(place, name, name in there, name in last), names)
        finished = tuple(name for name, report in zip(names, reports, strict=True) if report is not None)
        before = tuple(name for name in finished if name not in last)
        return cls(finished, before, not last <= {*finished})


def _report(place: ExportPlace, name: str, is_there: bool, may_lack: bool) -> Mapping[str, Any] | None:
    """What the manifest of a tar says; None: it is not finished."""
    target, manifest = place.target, place.folder("manifest")
    path = manifest.file(f"{name}.parquet")
    footer = read_footer(path, manifest.options)
    if footer.record is None or footer.record.report is None:
        if footer.fault or footer.columns or (is_there and not may_lack):
            why = footer.fault or "is not there"
            raise OutputError(
                f"{path}: {why}, so it is not known which samples are in {target.file(name)}.tar. Put it back as it"
                " was, or write to another path"
            )
        return None
    report = footer.record.report
    gone = is_without_file(report)
    sizes = {".tar": report["bytes"], ".idx": report.get("index_bytes") if report["indexed"] else None}
    for part, size in sizes.items():
        if size is None or gone:
            continue
        try:
            found = stamp(target.file(f"{name}{part}"), target.options).size
        except ShardError as error:
            _changed(target.file(f"{name}{part}"), path, str(error))
        if found != size:
            _changed(target.file(f"{name}{part}"), path, f"has {found:,} bytes, and {size:,} were written")
    beside = f"{name}.parquet"
    has_rows = not gone and (place.told.get("settings") or {}).get("metadata") == "parquet"
    if has_rows and not exists(target.file(beside), target.options):
        _changed(target.file(beside), path, "is not there")
    lost = place.folder(UNBLURRED).file(beside)
    if _has_lost(report) and not exists(lost, target.options):
        _changed(lost, path, "is not there")
    return report


def _has_lost(report: Mapping[str, Any]) -> bool:
    """Whether samples that were to be in a tar are not."""
    return bool((report.get(UNBLURRED) or {}).get("samples"))


def _changed(path: str, manifest: str, why: str) -> None:
    raise OutputError(
        f"{path}: {why}. Tars that are there stay as they are, so put it back as it was; or remove the tar, what lies"
        f" beside it, and {manifest}: then its samples are looked for anew"
    )


@dataclass(frozen=True)
class EarlierTars:
    """The samples of some tars; some 40 bytes each.

    Attributes
    ----------
    place
        Where they are.
    names, reports
        Of the tars, and what was said when each was written.
    source
        Of all samples, what they are in the source.
    tars
        int32 (samples,): of each, in the order of `source`, the place of its tar in `names`.
    own
        uint64 (samples,): hashes of the keys that they have in the tars, in the order of these.
    fields
        By suffix, how many samples have it.
    left_out, reasons
        Samples that were to be in these tars and are not, as they could not be blurred or cropped; and why each, in the
        order of `left_out`.
    """

    place: ExportPlace
    names: tuple[str, ...]
    reports: tuple[Mapping[str, Any], ...]
    source: SourceKeys
    tars: np.ndarray
    own: np.ndarray
    fields: Counter[str]
    left_out: SourceKeys
    reasons: pa.Array

    def __len__(self) -> int:
        return len(self.tars)

    @classmethod
    def read(cls, place: ExportPlace, names: Sequence[str]) -> EarlierTars:
        """By the manifests of tars."""
        manifest = place.folder("manifest")

        def read(name: str) -> tuple[pa.Table, Mapping[str, Any], np.ndarray, dict[str, int]]:
            path = manifest.file(f"{name}.parquet")
            table = read_rows(path, manifest.options, ["source_shard", "source_key", "key", "members"])
            record = read_footer(path, manifest.options).record
            suffixes = pc.value_counts(
                pc.replace_substring_regex(pc.list_flatten(table.column("members")), _BEFORE_SUFFIX, "")
            )
            fields = dict(zip(suffixes.field(0).to_pylist(), suffixes.field(1).to_pylist(), strict=True))
            own = hashes_of(table.column("key").to_pylist())
            kept = table.select(["source_shard", "source_key"])
            return kept, (record.report if record else None) or {}, own, fields

        found = in_threads(read, names)
        source, order = SourceKeys.of([each[0] for each in found])
        tars = np.repeat(np.arange(len(found), dtype=np.int32), [len(each[0]) for each in found])
        fields: Counter[str] = Counter()
        for each in found:
            fields.update(each[3])
        lost = place.folder(UNBLURRED)
        some = [name for name, each in zip(names, found, strict=True) if _has_lost(each[1])]
        tables = in_threads(lambda name: read_rows(lost.file(f"{name}.parquet"), lost.options), some)
        last = _last_of(tables)  # one that was tried again is in several
        left_out, order_of_these = SourceKeys.of([last])
        return cls(
            place,
            tuple(names),
            tuple(each[1] for each in found),
            source,
            tars[order],
            np.concatenate([np.empty(0, np.uint64), *(each[2] for each in found)]),
            fields,
            left_out,
            last.column("reason").combine_chunks().take(pa.array(order_of_these)),
        )

    @cached_property
    def folders(self) -> list[str]:
        """Of each tar its folder: of its split, of its value, or of both; empty where there are none."""
        return [posixpath.dirname(name) for name in self.names]

    @cached_property
    def splits(self) -> list[str]:
        """Of each tar the name of its split, where there are such."""
        return [folder.partition("/")[0] for folder in self.folders]

    @cached_property
    def there(self) -> list[str]:
        """Names of the tars that have samples: of one without there is no file."""
        return [n for n, report in zip(self.names, self.reports, strict=True) if not is_without_file(report)]

    def rows_in(self, rows: Folder, name: str, id_col: str) -> tuple[np.ndarray, np.ndarray]:
        """Which rows of a file have a sample here, int64 (n,) in order; and the places of these, int64 (n,).

        Parameters
        ----------
        rows, name
            The file.
        id_col
            Column of the keys, where it does not say it.
        """
        return self.source.rows_in(rows, name, id_col)

    def look_up(
        self, rows: Folder, names: Sequence[str], id_col: str, edits: Edits | None
    ) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], dict[str, dict[int, str]]]:
        """By file, what `rows_in` and `left_out_of` say of it."""
        found = in_threads(lambda name: self.rows_in(rows, name, id_col), names)
        taken = dict(zip(names, found, strict=True))
        lost = in_threads(lambda name: self.left_out_of(rows, name, id_col, taken[name][0], edits), names)
        return taken, dict(zip(names, lost, strict=True))

    def left_out_of(
        self, rows: Folder, name: str, id_col: str, taken: np.ndarray, edits: Edits | None
    ) -> dict[int, str]:
        """Of a file the rows whose samples were to be here and cannot be blurred, or cropped, with the reason.

        Parameters
        ----------
        rows, name, id_col
            See `rows_in`.
        taken
            Rows whose samples are here: some could not be blurred at first.
        edits
            By what it is known whether boxes or a size that were none are such now: these rows are not among them.
        """
        found, places = self.left_out.rows_in(rows, name, id_col)
        why = dict(zip(found.tolist(), self.reasons.take(pa.array(places)).to_pylist(), strict=True))
        for row in {*taken.tolist()} & {*why}:
            del why[row]
        of_rows = [row for row, reason in why.items() if is_of_row(reason)]
        if edits is not None and of_rows:
            there = read_footer(rows.file(name), rows.options).columns
            columns = [each for each in edits.columns if each in there]
            table = read_rows(rows.file(name), rows.options, columns).take(pa.array(of_rows))
            for row, values in zip(of_rows, table.to_pylist(), strict=True):
                with contextlib.suppress(ImageError):
                    edits.of(values, Counter())
                    del why[row]
        return why

    def warn_of_moved(self, urls: Collection[str]) -> None:
        """Say where shards, of which none has a sample here, are called like some that have."""
        named = {posixpath.basename(url): url for url in sorted(self.source.urls)}
        if (
            url := next((each for each in sorted(urls) if posixpath.basename(each) in named), None)
        ) is not None:
            logger.warning(
                "%s: no row has a sample in its tars, which have some of %s; now there is %s. If these are the same,"
                " its samples are there twice then: put the shards where they were",
                *(self.place.target.path, named[posixpath.basename(url)], url),
            )

    def with_hashes(self, hashes: np.ndarray) -> Iterator[tuple[str, str]]:
        """The keys in the tars that have some of these hashes, each with the path of its tar."""
        ends = np.cumsum([report["rows"] for report in self.reports])
        tars = np.searchsorted(ends, np.flatnonzero(np.isin(self.own, hashes)), side="right")
        manifest = self.place.folder("manifest")
        for name in (self.names[tar] for tar in np.unique(tars)):
            keys = read_rows(manifest.file(f"{name}.parquet"), manifest.options, ["key"])["key"].to_pylist()
            for key in np.array(keys, object)[np.isin(hashes_of(keys), hashes)]:
                yield key, f"{self.place.target.file(name)}.tar"

    def free_numbers(self, folder: str, count: int) -> list[int]:
        """The first so many numbers that no tar of a folder has."""
        used = {
            int(posixpath.basename(name))
            for name, of in zip(self.names, self.folders, strict=True)
            if of == folder
        }
        free: list[int] = []
        number = 0
        while len(free) < count:
            if number not in used:
                free.append(number)
            number += 1
        return free


def _last_of(tables: Sequence[pa.Table]) -> pa.Table:
    """What was said last of each sample, of tables in the order of their tars."""
    names = ("source_shard", "source_key", "reason")
    nothing = pa.table({name: pa.array([], pa.string()) for name in names})
    table = pa.concat_tables([nothing, *(each.select(names).replace_schema_metadata() for each in tables)])
    keys = table.select(names[:2]).to_pandas()
    return table.filter(pa.array(~keys.duplicated(keep="last").to_numpy()))


def hashes_of(keys: Sequence[Any]) -> np.ndarray:
    """uint64 (n,): of keys, text or UTF-8."""
    found: np.ndarray = pd.util.hash_array(np.array(keys, object), categorize=False)
    return found
