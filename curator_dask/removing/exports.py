"""Exports: new tars with their indexes and rows, or Parquet files with images; and all that speaks of them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import posixpath
import re
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curator_dask.errors import OutputError
from curator_dask.frames.columns import to_array
from curator_dask.frames.committing import Commits
from curator_dask.frames.faults import faults_told
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.frames.parquet import open_parquet, read_footer, read_whole, write_table
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.export_place import CARD, ExportPlace
from curator_dask.outputs.export_sizes import put_sizes, sizes_there
from curator_dask.outputs.left_out import UNBLURRED, is_without_file
from curator_dask.outputs.packing_parquet import how_written
from curator_dask.outputs.placing import being_written, put
from curator_dask.outputs.selecting import Folder, kinds_of
from curator_dask.outputs.shard_names import PARTS, is_shard
from curator_dask.outputs.taken_down import REMOVED, SAMPLE, Marks, taken_down
from curator_dask.outputs.taking_out import both
from curator_dask.outputs.twins_told import NOTE
from curator_dask.removing.asking import KEY, Asked
from curator_dask.removing.places import Look, read_some, report_of
from curator_dask.removing.rows import read_all
from curator_dask.removing.tars import cut_tar, local_tar
from curator_dask.rows.lookup import TEXT, Lookup, key_texts, with_shards
from curator_dask.runs.reports import errors_of
from curator_dask.storage import exists, join, read_bytes, remove, walk
from curator_dask.threads import in_threads
from curator_dask.webdataset.samples import key_text
from curator_dask.webdataset.stamps import stamp
from curator_dask.words import counted

#: The column by which an export's rows are asked for as they were called in its source.
SOURCE_KEY = "source_key"
_HEADING = "## Removed since"


@dataclass(frozen=True)
class ExportedPlace:
    """The folder of an export, with what lies beside it.

    Attributes
    ----------
    folder
        Of the tars, or Parquet files.
    alone
        No rows that it may have been made of are looked at in the same call: its own keys are asked for.
    """

    folder: Folder
    alone: bool = True
    kind: str = "export"
    unit: str = "shard"

    @property
    def _place(self) -> ExportPlace:
        return ExportPlace(self.folder)

    @property
    def _manifest(self) -> Folder:
        return self._place.folder("manifest")

    def names(self) -> list[str]:
        """Of its tars, or Parquet files, without suffix, by the manifest."""
        found = (name for name in walk(*self._manifest) if name.endswith(".parquet"))
        return sorted(name.removesuffix(".parquet") for name in found)

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Keep others from writing there."""
        with self._place.open():
            yield

    def _suffix(self, name: str) -> str:
        return ".parquet" if is_shard(f"{name}.parquet") else ".tar"

    def _beside(
        self, name: str, kinds: Collection[str], asked: Asked, keys: pa.Array
    ) -> tuple[pa.Table, str]:
        """The rows of the samples of a manifest, null where there are none; and the column of their keys."""
        path, options = self.folder.file(f"{name}.parquet"), self.folder.options
        footer = read_whole(path, options)
        id_col = (footer.record and footer.record.id_col) or KEY
        if id_col not in footer.columns:
            return pa.table({"": pa.nulls(len(keys))}), id_col
        table = read_some(path, options, id_col, [ERROR_COLUMN], kinds, asked).replace_schema_metadata()
        places = Lookup(*key_texts(table.column(id_col))).find(keys)
        return table.take(pa.array(places, mask=places < 0)), id_col

    def look(self, name: str, kinds: Collection[str], asked: Asked) -> Look:
        """Its samples: by what they are called there, and in the source."""
        where = read_all(self._manifest.file(f"{name}.parquet"), self._manifest.options)
        keys, before = (to_array(where.column(each)).cast(TEXT) for each in (KEY, SOURCE_KEY))
        urls = to_array(where.column("source_shard")).cast(TEXT)
        table, id_col = self._beside(name, kinds, asked, keys)
        own = pa.array([self.folder.file(f"{name}{self._suffix(name)}")] * len(keys), TEXT)
        marks = Marks.of(table, None, kinds).also(SAMPLE, with_shards(before, urls))
        marks = marks.also(SAMPLE, with_shards(keys, own))
        if (self._place.told.get("settings") or {}).get("samples"):  # whole ones, of several images
            if self._suffix(name) == ".parquet":
                raise OutputError(
                    f"{self.folder.path}: has whole rows of others' Parquet files (--samples), out of which no row is"
                    " taken: remove from the rows that it was made of, without naming it, and export anew"
                    " (--overwrite): a sample of which an image is taken down is left out then"
                )
            members = pc.list_value_length(where.column("members")).fill_null(0)
            marks = marks.also_images(before, urls, np.asarray(to_array(members), np.int64))
        columns = {each: table.column(each) for each in table.column_names if each}
        columns |= {KEY: keys, SOURCE_KEY: before, URL_COLUMN: urls}
        same = bool(pc.all(pc.equal(keys, before)).as_py() in (True, None))
        there = np.ones(len(keys), bool)
        return Look(marks, pa.table(columns), id_col, there, self.alone or same)

    def rewrite(self, name: str, again: Mapping[str, Any]) -> dict[str, Any]:
        """Take samples out of a tar, its index, its rows and its manifest, in this order.

        The last says which they are: so whatever was done when it was interrupted, the rest is done the next time.
        """
        record, manifest, options = taken_down(*self.folder), self._manifest, self.folder.options
        path = manifest.file(f"{name}.parquet")
        where = read_all(path, manifest.options)
        made = FileRecord.parse(where.schema.metadata) or FileRecord("")
        nothing = Asked(None, KEY)
        look = self.look(name, () if record is None else record.kinds, nothing)
        gone = np.zeros(len(where), bool) if record is None else record.mask(look.marks)
        if not gone.any():
            return report_of(name, 0)
        report = dict(made.report or {})
        keys = where.column(KEY).to_pylist()
        away = {keys[row] for row in np.flatnonzero(gone).tolist()}
        went, left = where.filter(pa.array(gone)), where.filter(pa.array(~gone))
        report |= _less(report, went)
        report[UNBLURRED] = both(report.get(UNBLURRED) or {}, _lost(went, look.table.filter(pa.array(gone))))
        moved = None
        if self._suffix(name) == ".tar":
            before = vars(stamp(self.folder.file(f"{name}.tar"), options)) if report["rows"] else None
            left, more = self._tar(name, left, away, bool(report["indexed"]))
            report |= more
            if before is not None and left.num_rows:
                url = self.folder.file(f"{name}.tar")
                moved = {"url": url, "before": before, "after": vars(stamp(url, options))}
        else:
            report |= self._parquet(name, away)
        report["rows"] = len(left)
        self._put_lost(name, went)
        said = FileRecord(made.fingerprint, report=report)
        write_table(path, left.replace_schema_metadata(), said, manifest.options)
        return report_of(name, int(gone.sum()), int(report["bytes"]), moved)

    def _tar(
        self, name: str, left: pa.Table, away: Collection[str], indexed: bool
    ) -> tuple[pa.Table, dict[str, Any]]:
        """Write the tar anew, its index and its rows; the manifest of what is left, and what its report says."""
        folder, options = self.folder, self.folder.options
        tar = folder.file(f"{name}.tar")
        if not len(left):
            for part in PARTS:
                remove(folder.file(f"{name}{part}"), options)
            return left, {"bytes": 0, "indexed": False, "index_bytes": 0, "no_index": None}
        with local_tar(folder, f"{name}.tar") as path, Commits() as commits:
            cut = cut_tar(path, away, tar)
            if cut.gone:
                with being_written(tar, options, commits) as (file, _):
                    cut.write(file)
            index = cut.index(f"{name}.idx") if indexed else None
            if index is not None:
                put(folder.file(f"{name}.idx"), index, options, commits)
            beside = folder.file(f"{name}.parquet")
            if exists(beside, options):
                table = read_all(beside, options)
                record = FileRecord.parse(table.schema.metadata) or FileRecord("")
                stays = ~_with_keys(table, record.id_col or KEY, away)
                write_table(beside, table.filter(pa.array(stays)), record, options, commits)
        offsets = {key_text(sample.key): [each.offset for each in sample.members] for sample in cut.samples}
        lists = left.column("offsets").combine_chunks()
        new = [offsets[key] for key in left.column(KEY).to_pylist()]
        place = left.column_names.index("offsets")
        left = left.set_column(place, left.schema.field(place), pa.array(new, lists.type))
        size = 0 if index is None else len(index)
        return left, {"bytes": stamp(tar, options).size, "indexed": index is not None, "index_bytes": size}

    def _parquet(self, name: str, away: Collection[str]) -> dict[str, Any]:
        """Write a Parquet file with images anew, a row group at a time."""
        path, options = self.folder.file(f"{name}.parquet"), self.folder.options
        with contextlib.ExitStack() as stack:
            stack.enter_context(faults_told(path))
            source = stack.enter_context(open_parquet(path, options))
            record = FileRecord.parse(source.schema_arrow.metadata) or FileRecord("")
            id_col = record.id_col or KEY
            is_gone = _with_keys(source.read(columns=[id_col]), id_col, away)
            said = replace(record, rows=int((~is_gone).sum())).to_metadata()
            schema = source.schema_arrow
            schema = schema.with_metadata({**(schema.metadata or {}), **said})
            commits = stack.enter_context(Commits())
            handle, _ = stack.enter_context(being_written(path, options, commits))
            with (
                open(handle, "wb", closefd=False) as file,
                pq.ParquetWriter(file, schema, **how_written(schema)) as writer,
            ):
                start = 0
                for number in range(source.num_row_groups):
                    table = source.read_row_group(number)
                    stays = ~is_gone[start : start + len(table)]
                    start += len(table)
                    if stays.any():
                        writer.write_table(
                            table.filter(pa.array(stays)).replace_schema_metadata(schema.metadata)
                        )
        return {"bytes": stamp(path, options).size}

    def _put_lost(self, name: str, went: pa.Table) -> None:
        """Note the samples beside the manifest: where tars are added they are not looked for."""
        folder = self._place.folder(UNBLURRED)
        path = folder.file(f"{name}.parquet")
        table = pa.table(
            {
                "shard": went.column("shard"),
                "source_shard": went.column("source_shard"),
                "source_key": went.column(SOURCE_KEY),
                "reason": pa.array([REMOVED] * len(went), pa.string()),
            }
        )
        if exists(path, folder.options):
            known = read_all(path, folder.options).replace_schema_metadata()
            rows = dict.fromkeys(
                tuple(row.values())
                for row in [*known.select(table.column_names).to_pylist(), *table.to_pylist()]
            )
            columns = [*zip(*rows, strict=True)]
            table = pa.table(dict(zip(table.column_names, columns, strict=True)), schema=table.schema)
        write_table(path, table, FileRecord(""), folder.options)

    def finish(self, removed: int) -> None:
        """Have the sizes of the tars say what is in them now, and the card that some are gone."""
        names = self.names()
        if sizes_there(self.folder, names):
            manifest = self._manifest
            footers = in_threads(
                lambda name: read_footer(manifest.file(f"{name}.parquet"), manifest.options), names
            )
            reports = [(each.record and each.record.report) or {} for each in footers]
            there = {
                name: report["rows"]
                for name, report in zip(names, reports, strict=True)
                if report and not is_without_file(report)
            }
            for path in sizes_there(self.folder, names):  # of folders of which no tar is left
                below = posixpath.relpath(posixpath.dirname(path), self.folder.path)
                if all((posixpath.dirname(name) or ".") != below for name in there):
                    remove(path, self.folder.options)
            put_sizes(self.folder, there)
        self._tell_card(taken_down(*self.folder))

    def _tell_card(self, record: Any) -> None:
        """Say in a card that was not changed since it was written that its numbers are those of before."""
        path, options = self.folder.file(CARD), self.folder.options
        note_path = join(self._place.beside, NOTE)
        note = self._place.told
        known = (note.get("card") or {}).get("digest")
        if record is None or known is None or not exists(path, options):
            return
        text = read_bytes(path, options)
        if hashlib.sha256(text).hexdigest() != known:
            return
        said = (
            f"{_HEADING}\n\n{counted(record.samples, 'sample')} of those above"
            f" {'was' if record.samples == 1 else 'were'} removed on request after this was written, the last on"
            f" {time.strftime('%Y-%m-%d', time.gmtime())}. The numbers above are those of before.\n"
        )
        before = re.split(rf"\n*^{_HEADING}$", text.decode(), maxsplit=1, flags=re.MULTILINE)[0].rstrip("\n")
        new = f"{before}\n\n{said}".encode()
        if new != text:
            card = {**note["card"], "digest": hashlib.sha256(new).hexdigest()}
            put(note_path, json.dumps({**note, "card": card}).encode(), options)
            put(path, new, options)


def _with_keys(table: pa.Table, id_col: str, keys: Collection[str]) -> np.ndarray:
    """Which rows have some keys, bool (rows,); none where there is no such column."""
    if id_col not in table.column_names:
        return np.zeros(len(table), bool)
    texts, is_number = key_texts(table.column(id_col))
    lookup = Lookup(texts, is_number)
    found = lookup.find_texts(pa.array(sorted(keys), TEXT), is_number=False)
    return np.isin(lookup.firsts, found[found >= 0])


def _fields(went: pa.Table, made: bool) -> Counter[str]:
    """Suffixes of the members of some samples: of those that were made for them, or that came from the source."""
    found: Counter[str] = Counter()
    for key, names, sources in zip(
        *(went.column(each).to_pylist() for each in (KEY, "members", "source_offsets")), strict=True
    ):
        for name, source in zip(names, sources, strict=True):
            suffix = name[len(key) + 1 :]
            is_vector = source < 0 and suffix.endswith(".npy")
            if made == is_vector:
                found[suffix] += 1
    return found


def _lost(went: pa.Table, rows: pa.Table) -> dict[str, Any]:
    """What a report says of samples that went, as `curator_dask.outputs.left_out.take_out` has it."""
    errors = kinds_of(errors_of(rows)) if ERROR_COLUMN in rows.column_names else {}
    vectors = {
        suffix: {"members": count, "null": 0, "broken": 0} for suffix, count in _fields(went, True).items()
    }
    return {
        "samples": len(went),
        "fields": dict(_fields(went, False)),
        "reasons": {REMOVED: len(went)},
        "examples": {},
        "errors": errors,
        "vectors": vectors,
    }


def _less(report: Mapping[str, Any], went: pa.Table) -> dict[str, Any]:
    """The counts of members that were added, without those of samples that went."""
    added = Counter(report.get("added", {}))
    if not added:
        return {}
    for names, sources in zip(
        went.column("members").to_pylist(), went.column("source_offsets").to_pylist(), strict=True
    ):
        for name, source in zip(names, sources, strict=True):
            suffix = name.rpartition(".")[2]
            if source < 0 and added.get(suffix):
                added[suffix] -= 1
    return {"added": dict(+added)}
