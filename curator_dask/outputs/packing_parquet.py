"""Writing one new Parquet file with the images of its samples in it, on a worker, a row group at a time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curator_dask.errors import OutputError
from curator_dask.frames.committing import Commits
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.contents import contents_of, text_of
from curator_dask.outputs.editing import BlurredImages
from curator_dask.outputs.export_columns import conformed, texts_of
from curator_dask.outputs.hub_schema import IMAGE, IMAGE_TYPE, TEXT
from curator_dask.outputs.left_out import UNBLURRED
from curator_dask.outputs.manifest import where_from
from curator_dask.outputs.packing import REPORT, PackShard
from curator_dask.outputs.placing import being_written, unwritten
from curator_dask.outputs.shard_names import table_name
from curator_dask.outputs.sharding import NewShard
from curator_dask.outputs.shrinking import LEFT, ShrunkImages
from curator_dask.outputs.weighing import chosen_places, pictures_in
from curator_dask.rows.tar_rows import decoded
from curator_dask.runs.turns import aside
from curator_dask.webdataset.ranges import Ranges
from curator_dask.webdataset.samples import key_text
from curator_dask.webdataset.stamps import FileStamp
from curator_dask.webdataset.writer import Contents, read_members

#: Bytes of a row group, about: half of what datasets 5 aims at, and a sixth of what the hub's viewer takes.
_GROUP_BYTES = 50_000_000


@dataclass(frozen=True)
class PackParquet(PackShard):
    """Writes one new Parquet file; `PackShard.schema` is of all of its columns.

    Attributes
    ----------
    totals
        By split, how many files it has.
    image_member
        See `Sample.image`.
    texts
        There is a column of captions.
    by_value
        Rows of one value have a folder.
    """

    totals: Mapping[str, int] = field(default_factory=dict)
    image_member: str | None = None
    texts: bool = False
    by_value: bool = False

    suffix: ClassVar[str] = ".parquet"

    def name(self, split: str, number: int) -> str:
        """Of a file of a split, without ``.parquet``: that of the folder comes before it."""
        return table_name(split, number, self.totals[split], self.by_value)

    def mark(self, shard: NewShard) -> str:
        """The fingerprint of what is written of a shard."""
        return f"{super().mark(shard)}-{'texts' if self.texts else 'parquet'}-{self.image_member or ''}"

    def _looked_up(self, samples: pa.Table, table: pa.Table) -> dict[str, Any]:
        _, pictures = pictures_in(samples, self.image_member, self.texts)
        return super()._looked_up(samples, table) | {"pictures": pictures}

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
        captions = [None] * len(keys) if self.caption is None else texts_of(table, self.caption)
        members, ends, places = self._members(samples, keys, captions)
        images = ShrunkImages.of(self.shrinking, members, keys, ends, blurred)
        path = self.target.file(f"{name}{self.suffix}")
        sizes = np.zeros(len(members.names), np.int64)
        schema = self.schema or pa.schema([])
        said = replace(record, rows=len(keys)).to_metadata()
        schema = schema.with_metadata({**(schema.metadata or {}), **said})
        with contextlib.ExitStack() as after:
            try:
                with Commits() as commits:
                    with being_written(path, self.target.options, commits) as (handle, size_of):
                        read = read_members(members, Ranges(stamps, self.shard_options))
                        with os.fdopen(handle, "wb", closefd=False) as file, contextlib.closing(read):
                            rows = _Rows(members, places, captions, read, sizes)
                            self._write(file, schema, rows, table, images)
                    after.enter_context(aside())
            except OSError as error:  # of a sync, or a rename
                raise unwritten(path, error) from error
            except pa.ArrowException as error:
                raise OutputError(f"{path}: could not be written: {error}") from error
            report = {
                **REPORT,
                **({UNBLURRED: lost} if lost else {}),
                "name": name,
                "split": shard.split,
                "rows": len(keys),
                "bytes": size_of(),
                "indexed": False,
                "no_index": None,
                "json_left_alone": [],
                **rows.report(self.caption is not None),
            }
            before = np.where(members.sources < 0, -1, members.offsets)
            if images is not None:
                before[images.made()] = -1
            nowhere = np.full(len(sizes), -1, np.int64)
            where = where_from(name, keys, samples, members.names, nowhere, sizes, before, ends)
            if images is not None:
                report["images"] = images.report() | {"further": 0}  # no other images of a sample go along
                where = where.append_column(LEFT, images.left())
            self.put_manifest(shard, name, where, report)
        return report

    def _members(
        self, samples: pa.Table, keys: Sequence[str], captions: Sequence[bytes | None]
    ) -> tuple[Contents, list[int], list[tuple[int | None, int | None]]]:
        """The members that are read; behind the last of each sample, after 0; and the two places of each sample."""
        every, ends = contents_of(samples, keys, (), [], False, [])
        chosen: list[int] = []
        places = []
        until = [0]
        for sample, key in enumerate(keys):
            start, stop = ends[sample], ends[sample + 1]
            found = chosen_places(key, every.names[start:stop], self.image_member, self.texts)
            image, text = found[0], found[1] if captions[sample] is None else None
            mine = sorted(start + place for place in {image, text} if place is not None)
            at = {place: len(chosen) + number for number, place in enumerate(mine)}
            places.append(
                (None if image is None else at[start + image], None if text is None else at[start + text])
            )
            chosen += mine
            until.append(len(chosen))
        names = [every.names[place] for place in chosen]
        sources, offsets, sizes = (each[chosen] for each in (every.sources, every.offsets, every.sizes))
        return Contents(names, every.urls, sources, offsets, sizes), until, places

    def _write(
        self, file: Any, schema: pa.Schema, rows: _Rows, table: pa.Table, images: ShrunkImages | None
    ) -> None:
        others = pa.schema(
            [each for each in schema if each.name != IMAGE and not (self.texts and each.name == TEXT)]
        )
        weight = table.nbytes // max(1, len(table))
        with pq.ParquetWriter(file, schema, **how_written(schema)) as writer:
            start = 0
            for group in rows.groups(weight):
                count = len(group)
                some = table.slice(start, count)
                if images is not None:
                    some = images.beside(some, start)
                columns = dict(zip(others.names, conformed(some, others).columns, strict=True))
                columns |= group.columns(self.texts)
                group.images.clear()  # they are copied
                writer.write_table(pa.table([columns[name] for name in schema.names], schema=schema))
                start += count


class _Group:
    """Rows that are written together."""

    def __init__(self) -> None:
        self.images: list[bytes | None] = []
        self.paths: list[str | None] = []
        self.texts: list[str | None] = []

    def __len__(self) -> int:
        return len(self.images)

    def columns(self, texts: bool) -> dict[str, pa.Array]:
        """The image, and the text where there is such a column."""
        there = pa.array([each is None for each in self.images], pa.bool_())
        parts = [pa.array(self.images, pa.binary()), pa.array(self.paths, pa.string())]
        image = pa.StructArray.from_arrays(parts, fields=[*IMAGE_TYPE], mask=there)
        return {IMAGE: image, **({TEXT: pa.array(self.texts, pa.string())} if texts else {})}


class _Rows:
    """The images and texts of a file's samples as they are read.

    Parameters
    ----------
    members, places
        Those that are read, and of each sample its image and its text among them.
    captions
        Of each sample the text that is known already.
    read
        Gives the bytes of `members`.
    sizes
        Gets the bytes of each.
    """

    def __init__(
        self,
        members: Contents,
        places: Sequence[tuple[int | None, int | None]],
        captions: Sequence[bytes | None],
        read: Iterator[bytes],
        sizes: np.ndarray,
    ) -> None:
        self._members, self._places, self._captions = members, places, captions
        self._read, self._sizes = read, sizes
        self._texts = 0

    def groups(self, weight: int) -> Iterator[_Group]:
        """All of them, so many at a time as a row group holds; `weight` is that of a sample's other columns."""
        group, size = _Group(), 0
        for (image, text), caption in zip(self._places, self._captions, strict=True):
            found = {
                place: next(self._read)
                for place in sorted(each for each in {image, text} if each is not None)
            }
            for place, data in found.items():
                self._sizes[place] = len(data)
            mine = weight + sum(map(len, found.values()))
            if len(group) and size + mine > _GROUP_BYTES:
                yield group
                group, size = _Group(), 0
            group.images.append(None if image is None else found[image])
            group.paths.append(None if image is None else key_text(self._members.names[image]))
            said = caption if text is None else found[text]
            group.texts.append(None if said is None else decoded(said))
            self._texts += text is not None
            size += mine
        # Asked for its end, the reading sees whether all was as it had been.
        if next(self._read, None) is not None:
            raise AssertionError("a member was read that no sample has")
        if len(group):
            yield group

    def report(self, asked: bool) -> dict[str, Any]:
        """Counts of captions that were asked for, for `ExportSummary.add_shard`."""
        if not asked:
            return {}
        empty = sum(each is not None and not text_of(each).strip() for each in self._captions)
        return {
            "no_caption": self._captions.count(None),
            "kept_caption": self._texts,
            "empty_caption": empty,
        }


def how_written(schema: pa.Schema) -> dict[str, Any]:
    """How columns are written: images as they are, for they are compressed; what lets the hub's viewer find a page."""
    plain = [each.name for each in schema if not pa.types.is_nested(each.type)]
    buffer = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), buffer)
    columns = pq.ParquetFile(pa.BufferReader(buffer.getvalue())).schema
    paths = [columns.column(number).path for number in range(len(columns))]
    images = f"{IMAGE}.bytes"
    return {
        "compression": {path: "none" if path == images else "zstd" for path in paths},
        "use_dictionary": plain or False,
        "write_statistics": [path for path in paths if path != images],
        "write_page_index": True,
        # Pages end where the content says so: of a dataset that has grown, the hub stores what is new.
        "use_content_defined_chunking": True,
    }
