"""Writing one new shard, on a worker: the tar, its index, the rows beside it, and where each sample is from."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.collector import held_back
from curator_dask.errors import ShardError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.committing import Commits
from curator_dask.frames.parquet import Footer, read_footer, write_table
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.choosing import read_rows
from curator_dask.outputs.contents import contents_of, fields_in, keep_texts, text_of
from curator_dask.outputs.cropping import beside
from curator_dask.outputs.editing import BlurredImages, blurred_images
from curator_dask.outputs.encoded import Encoded
from curator_dask.outputs.export_columns import common_record, conformed, texts_of, type_said
from curator_dask.outputs.found_samples import FILES, TIMES
from curator_dask.outputs.left_out import UNBLURRED, is_without_file, keys_before, put_left_out
from curator_dask.outputs.manifest import where_from
from curator_dask.outputs.mixed import read_mixed
from curator_dask.outputs.new_keys import NewKeys
from curator_dask.outputs.placing import being_written, put, unwritten
from curator_dask.outputs.selecting import Folder, kinds_of, stamps_in
from curator_dask.outputs.shard_names import PARTS
from curator_dask.outputs.sharding import NewShard, in_order
from curator_dask.outputs.shrinking import LEFT, Shrinking, ShrunkImages
from curator_dask.outputs.taken_down import taken_down
from curator_dask.outputs.taking_out import Left, both, columns_of, without_taken_down
from curator_dask.outputs.text_states import TextStates, members_of
from curator_dask.outputs.vector_members import VectorMember, vector_counts
from curator_dask.runs.reports import errors_of, report_frame
from curator_dask.runs.turns import aside
from curator_dask.storage import Options, is_remote, remove
from curator_dask.webdataset.idx import index_or_reason
from curator_dask.webdataset.ranges import Ranges
from curator_dask.webdataset.samples import key_text
from curator_dask.webdataset.stamps import FileStamp, stamp
from curator_dask.webdataset.writer import write_tar

#: Of the fingerprints: what is written of the same samples.
_FORM = 1
#: What a report on a shard that is written says in any case.
REPORT = {"failed": 0, "dropped": 0, "reasons": {}, "examples": {}, "remarks": {}}


@dataclass(frozen=True)
class PackShard:
    """Writes one new shard.

    Attributes
    ----------
    target
        Where the tars go, with their indexes and rows.
    manifest
        Where a file a shard goes that says where its samples are from; once it is there the shard is finished.
    selected, rows
        Where the tables of samples are, and the rows that they are of.
    shard_options
        For fsspec, of the tars that are copied from.
    digits
        Of the shard's number in its name.
    schema
        Of the rows beside the tar; None: there are none.
    id_col
        Column of the keys.
    new_keys
        None: samples keep theirs.
    text_keys
        The column of the keys is text, and has the keys that the samples have in the new tars.
    json_columns
        Columns that become fields of each sample's JSON.
    keep_fields
        Fields that the JSON has already stay.
    empty
        Suffixes of members that samples get which have none.
    index
        Whether there is an index.
    encoded
        Images that are not those of the source.
    caption
        Column of what each sample's ``.txt`` holds; None: that stays as it is.
    shrinking
        Which images are made smaller; None: none.
    vectors, states
        Columns that become members, and encoders of captions whose states do.
    given_up
        The shard kills workers: it is not written, for this reason.
    mixed
        Where rows, and their samples, lie in the order of the tars; None: nowhere.
    """

    target: Folder
    manifest: Folder
    selected: Folder
    rows: Folder
    shard_options: Options
    digits: int
    schema: pa.Schema | None
    id_col: str
    new_keys: NewKeys | None
    text_keys: bool
    json_columns: tuple[str, ...]
    keep_fields: bool
    empty: tuple[str, ...]
    index: bool
    encoded: Encoded | None = None
    caption: str | None = None
    shrinking: Shrinking | None = None
    vectors: tuple[VectorMember, ...] = ()
    states: tuple[TextStates, ...] = ()
    given_up: str | None = None
    mixed: Folder | None = None

    #: Of a shard's file.
    suffix: ClassVar[str] = ".tar"

    def __dask_tokenize__(self) -> Any:
        schema = None if self.schema is None else self.schema.to_string()
        return (type(self).__name__, {**vars(self), "schema": schema})

    def give_up(self, reason: str) -> PackShard:
        """The same without the work that kills workers."""
        return replace(self, given_up=reason)

    def name(self, split: str, number: int) -> str:
        """Of a shard of a split, without ``.tar``: that of the folder comes before it."""
        return f"{split}{'/' if split else ''}{number:0{self.digits}d}"

    def mark(self, shard: NewShard) -> str:
        """The fingerprint of what is written of a shard."""
        return fingerprint(
            {
                "form": _FORM,
                "samples": shard.digest,
                "of": shard.marks,
                "name": self.name(shard.split, shard.number),
                "rows": None
                if self.schema is None
                else [f"{each.name}: {type_said(each.type)}" for each in self.schema],
                "keys": None if self.new_keys is None else vars(self.new_keys),
                "settings": [self.text_keys, self.json_columns, self.keep_fields, self.empty, self.index],
                **({} if self.encoded is None else {"encoded": vars(self.encoded)}),
                **({} if self.caption is None else {"caption": self.caption}),
                **({} if self.shrinking is None else {"shrinking": self.shrinking.recipe}),
                **({"vectors": [vars(each) for each in self.vectors]} if self.vectors else {}),
                **({"text_states": [each.recipe for each in self.states]} if self.states else {}),
            }
        )

    def finished(self, shard: NewShard) -> Footer | None:
        """What the shard's manifest says, if it is finished and all that belongs to it is there, and is not cut."""
        name, options = self.name(shard.split, shard.number), self.target.options
        footer = read_footer(self.manifest.file(f"{name}.parquet"), self.manifest.options)
        report = (footer.record and footer.record.report) or {}
        if not footer.is_finished(self.mark(shard)):
            return None
        if not report["rows"] and self.suffix == ".tar":
            return footer if is_without_file(report) else None  # exports before have left an empty tar
        with contextlib.suppress(ShardError):
            whole = stamp(self.target.file(f"{name}{self.suffix}"), options).size == report["bytes"]
            if self.schema is not None:  # of a file that is not there, or is damaged, no column is known
                whole = whole and bool(read_footer(self.target.file(f"{name}.parquet"), options).columns)
            if report["indexed"]:
                there = stamp(self.target.file(f"{name}.idx"), options).size
                whole = whole and there == report.get("index_bytes", there)  # exports before did not say it
            if whole:
                return footer
        return None

    def __call__(self, shard: NewShard) -> pd.DataFrame:
        """Do it; returns the report.

        Raises
        ------
        ShardError
            What is copied from cannot be read, or was changed.
        OutputError
            It cannot be written.
        """
        name = self.name(shard.split, shard.number)
        if self.given_up is not None:
            raise ShardError(f"{self.target.file(name)}{self.suffix}: {self.given_up}")
        done = self.finished(shard)
        if done is not None and done.record is not None:  # a worker died after it had written it
            return report_frame(done.record.report or {})
        with held_back():
            return report_frame(self._pack(shard, name))

    def _pack(self, shard: NewShard, name: str) -> dict[str, Any]:
        left, every, stamps, record = self.remaining(shard)
        samples, keys, table = left.samples, left.keys, left.table
        if self.shrinking is None or (edits := self.shrinking.edits) is None:
            if left.reasons:
                put_left_out(self.manifest, name, left.reasons, every)
            return self._put(shard, name, samples, stamps, keys, table, record, lost=left.lost)
        contents, ends = contents_of(samples, keys, (), (), False, [])
        if self.encoded is not None:
            self.encoded.put(contents, keys, ends, table)
        ranges = Ranges(stamps, self.shard_options)
        with blurred_images(edits, contents, ends, keys, keys_before(samples), table, ranges) as blurred:
            put_left_out(self.manifest, name, left.and_(blurred.left_out), every)
            gone = pa.array(sorted(blurred.left_out), pa.int64())
            blurred.lost |= self._looked_up(samples.take(gone), table.take(gone))
            kept = pa.array(blurred.kept)
            keys, table = [keys[number] for number in blurred.kept.tolist()], table.take(kept)
            table = table if edits.cropping is None else beside(table, blurred.cropped)
            lost = both(left.lost, blurred.lost)
            return self._put(shard, name, samples.take(kept), stamps, keys, table, record, blurred, lost)

    def remaining(self, shard: NewShard) -> tuple[Left, pa.Table, dict[str, FileStamp], FileRecord]:
        """Its samples but those that were taken down; all of them; and stamps and record of what they are from."""
        samples, stamps = self._samples(shard)
        keys = self._keys(shard, samples)
        table, record = self._rows(shard, samples, keys)
        return without_taken_down(self.target, samples, keys, table, self._looked_up), samples, stamps, record

    def _looked_up(self, samples: pa.Table, table: pa.Table) -> dict[str, Any]:
        """What reports say of samples that are left out, as `SelectSamples` has it."""
        lengths = {each.suffix: each.lengths_in(table) for each in self.vectors}
        vectors = {suffix: vector_counts(some) for suffix, some in lengths.items()}
        return {"errors": kinds_of(errors_of(table)), "vectors": vectors}

    def _put(
        self,
        shard: NewShard,
        name: str,
        samples: pa.Table,
        stamps: Mapping[str, FileStamp],
        keys: Sequence[str],
        table: pa.Table,
        record: FileRecord,
        blurred: BlurredImages | None = None,
        lost: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Write samples, some of whose images are blurred already; returns the report, with what is `lost`."""
        left_alone: list[str] = []
        captions = [] if self.caption is None else texts_of(table, self.caption)
        vectors: dict[str, Any] = {each.suffix: each.files_in(table) for each in self.vectors}
        fields, vectors = self._fields(table), vectors | ({} if blurred is None else blurred.members)
        vectors |= (seen := members_of(self.states, table, keys, self.target.file(name)))
        contents, ends = contents_of(
            samples, keys, self.empty, fields, self.keep_fields, left_alone, captions, vectors
        )
        added = Counter(contents.names[place].rpartition(".")[2] for place in contents.given)
        added.pop("npy", None)  # vectors are counted when they are looked up, latents below
        added.update({suffix: len(files) for suffix, files in seen.items()})
        kept = keep_texts(contents, keys, ends, captions)
        if self.encoded is not None:
            self.encoded.put(contents, keys, ends, table)
        if self.shrinking is not None and self.shrinking.latents is not None:
            where = (contents, ends, keys, self.shrinking.image_member)
            contents, ends = self.shrinking.latents.in_place(*where, added)
        images = ShrunkImages.of(self.shrinking, contents, keys, ends, blurred)
        path = self.target.file(f"{name}.tar")
        with contextlib.ExitStack() as after:
            try:
                with Commits() as commits:  # all are synced at once
                    with being_written(path, self.target.options, commits) as (file, size_of):
                        ranges = Ranges(stamps, self.shard_options)
                        offsets, sizes = write_tar(file, contents, ranges, early=not is_remote(path))
                    if images is not None:
                        table = images.beside(table)
                    index, no_index = None, None
                    if self.index and contents.names:
                        places = (offsets.tolist(), sizes.tolist(), ends)
                        index, no_index = index_or_reason(f"{name}.idx", contents.names, *places)
                    self._put_beside(name, index, table, record, commits)
                    after.enter_context(aside())
            except OSError as error:  # of a sync, or a rename
                raise unwritten(path, error) from error
            for part in () if keys else PARTS:  # webdataset and DALI stop at a tar without samples
                remove(self.target.file(f"{name}{part}"), self.target.options)
            report = {
                **REPORT,
                **({UNBLURRED: lost} if lost else {}),
                "name": name,
                "rows": len(keys),
                "bytes": size_of() if keys else 0,
                "indexed": index is not None,
                "index_bytes": 0 if index is None else len(index),
                "no_index": no_index,
                "json_left_alone": left_alone,
                "no_caption": captions.count(None),
                "kept_caption": kept,
                "added": dict(added),
                "empty_caption": sum(each is not None and not text_of(each).strip() for each in captions),
            }
            before = np.where(contents.sources < 0, -1, contents.offsets)
            if images is not None:
                before[images.made()] = -1
            where = where_from(name, keys, samples, contents.names, offsets, sizes, before, ends)
            if images is not None:
                report["images"] = images.report()
                where = where.append_column(LEFT, images.left())
            self.put_manifest(shard, name, where, report)
        return report

    def put_manifest(self, shard: NewShard, name: str, where: pa.Table, report: Mapping[str, Any]) -> None:
        """Say where samples are from; with that the shard is finished."""
        made_by = FileRecord(self.mark(shard), report=report)
        write_table(self.manifest.file(f"{name}.parquet"), where, made_by, self.manifest.options)

    def _put_beside(
        self, name: str, index: bytes | None, table: pa.Table, record: FileRecord, commits: Commits
    ) -> None:
        """Write the index and the rows, or remove another tar's."""
        if index is None:
            remove(self.target.file(f"{name}.idx"), self.target.options)
        else:
            put(self.target.file(f"{name}.idx"), index, self.target.options, commits)
        if self.schema is None:
            remove(self.target.file(f"{name}.parquet"), self.target.options)
        else:
            beside = conformed(table, self.schema)
            write_table(self.target.file(f"{name}.parquet"), beside, record, self.target.options, commits)

    def _samples(self, shard: NewShard) -> tuple[pa.Table, dict[str, FileStamp]]:
        """The samples of a shard, in its order, and the states of the tars that they are in."""
        stamps: dict[str, FileStamp] = {}
        tables = []
        tar = self.name(shard.split, shard.number)
        for number, name in enumerate(shard.files):
            if (table := read_mixed(self.mixed, f"samples/{name}", tar)) is None:
                table = read_rows(self.selected.file(name), self.selected.options)
                table = table.take(pa.array(shard.rows[shard.which == number]))
            record = FileRecord.parse(table.schema.metadata) or FileRecord("")
            stamps |= {url: FileStamp(**state) for url, state in stamps_in(record).items()}
            tables.append(table.replace_schema_metadata())
        samples = in_order(shard, tables)
        if FILES in samples.column_names:  # of a folder only the files that are copied must be as they were
            columns = (pc.list_flatten(samples.column(name)).to_pylist() for name in (FILES, TIMES, "sizes"))
            stamps |= {
                text_of(path): FileStamp(size, str(time))
                for path, time, size in zip(*columns, strict=True)
                if path is not None
            }
        return samples, stamps

    def read_table(self, name: str) -> pa.Table | None:
        """A file of rows, with all columns that are used of it; None: none are used of any.

        Raises
        ------
        ShardError
            It cannot be read.
        """
        wanted = [*(self.schema.names if self.schema is not None else ()), *self.json_columns]
        wanted += [] if self.encoded is None else [self.encoded.column]
        wanted += [each.column for each in self.vectors] + [each.column for each in self.states]
        wanted += [] if self.caption is None else [self.caption]
        wanted += [] if self.shrinking is None else self.shrinking.columns
        path = self.rows.file(name)
        if not wanted and taken_down(*self.target) is None:
            return None
        there = read_footer(path, self.rows.options).columns
        wanted += [self.id_col, *columns_of(self.target, there)]
        return read_rows(path, self.rows.options, [each for each in dict.fromkeys(wanted) if each in there])

    def _rows(self, shard: NewShard, samples: pa.Table, keys: Sequence[str]) -> tuple[pa.Table, FileRecord]:
        """The rows of the samples, with all columns that are used of them, and what made these."""
        tables, records = [], []
        tar = self.name(shard.split, shard.number)
        numbers = samples.column("row").to_numpy()
        for number, name in enumerate(shard.files):
            if (table := read_mixed(self.mixed, f"rows/{name}", tar)) is None:
                if (table := self.read_table(name)) is None:
                    break
                table = table.take(pa.array(numbers[shard.which == number]))
            records.append(FileRecord.parse(table.schema.metadata) or FileRecord(""))
            tables.append(table.replace_schema_metadata())
        table = in_order(shard, tables) if tables else pa.table({"row": samples.column("row")})
        if self.new_keys is not None and self.new_keys.old_id_col is not None:
            old = [key_text(text_of(key)) for key in samples.column("source_key").to_pylist()]
            table = table.append_column(self.new_keys.old_id_col, pa.array(old, pa.string()))
        if self.text_keys and self.id_col in table.column_names:
            column = pa.array([key_text(key) for key in keys], pa.string())
            table = table.set_column(table.column_names.index(self.id_col), self.id_col, column)
        return table, common_record(records, self.id_col)

    def _keys(self, shard: NewShard, samples: pa.Table) -> list[str]:
        if self.new_keys is not None:
            return self.new_keys.of(shard.number, len(shard))
        return [text_of(key) for key in samples.column("key").to_pylist()]

    def _fields(self, table: pa.Table) -> list[dict[str, Any]]:
        """Of each sample, what its JSON gets; none where no JSON gets anything."""
        old = self.new_keys.old_id_col if self.new_keys is not None else None
        return fields_in(table, [*dict.fromkeys([*self.json_columns, *([old] if old is not None else [])])])
