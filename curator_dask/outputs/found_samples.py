"""The samples that rows find in tars, as a table: where the members of each lie."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.decode.sniff import suffix_for
from curator_dask.errors import ImageError, ShardError
from curator_dask.frames.names import URL_COLUMN
from curator_dask.rows.images import why_missing
from curator_dask.rows.orphans import remark_orphans
from curator_dask.rows.reasons import MISSING
from curator_dask.rows.remarks import EXAMPLES, fact_of, remark
from curator_dask.storage import Options
from curator_dask.webdataset.folder_reader import FolderReader
from curator_dask.webdataset.folders import kind_of
from curator_dask.webdataset.headers import Member, encoded
from curator_dask.webdataset.index import ShardIndex, last_sample
from curator_dask.webdataset.layouts import portable_key, portable_suffix
from curator_dask.webdataset.opening import open_shard
from curator_dask.webdataset.parquet import file_of, is_parquet_shard
from curator_dask.webdataset.parquet_reader import ParquetReader
from curator_dask.webdataset.samples import Sample, key_text
from curator_dask.webdataset.several import ImageSample
from curator_dask.webdataset.several_rows import ListIndex
from curator_dask.webdataset.stamps import FileStamp, stamp
from curator_dask.webdataset.writer import tar_bytes

#: Of the tables of samples. Text that may be no UTF-8 is binary.
SAMPLES = pa.schema(
    [
        ("row", pa.int64()),  # in the file
        ("url", pa.string()),
        ("source_key", pa.binary()),
        ("key", pa.binary()),  # in the export, unless keys are made anew
        ("suffixes", pa.list_(pa.binary())),
        ("offsets", pa.list_(pa.int64())),
        ("sizes", pa.list_(pa.int64())),
        ("bytes", pa.int64()),  # in a tar, headers and padding too
    ]
)
#: Columns besides, where members are files of their own: their paths, null of members of tars, and their times.
FILES, TIMES = "files", "times"


class FoundSamples:
    """What the rows of a file find in the tars."""

    def __init__(self, portable: bool, options: Options, id_col: str, whole: bool = False) -> None:
        self._rows: list[int] = []
        self._urls: list[str] = []
        self._source_keys: list[str] = []
        self._keys: list[str] = []
        self._suffixes: list[str] = []  # of all members
        self._members: list[Member] = []
        self._files: list[tuple[str | None, int | str]] = []  # that members are; of tars none
        self._ends = [0]  # behind the last member of each sample
        self.reasons: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        self.fields: Counter[str] = Counter()
        self.odd_keys = 0
        self.stamps: dict[str, FileStamp] = {}
        self._portable, self._options, self._id_col = portable, options, id_col
        self._whole = whole  # samples with all of their images, though their shards' urls are of these

    def look_up(self, rows: Sequence[int], ids: Sequence[Any], urls: Sequence[str | None]) -> None:
        """Find the samples of rows with these ids, in these tars."""
        places: dict[str | None, list[int]] = {}
        for place, url in enumerate(urls):
            places.setdefault(url, []).append(place)
        for url, mine in places.items():
            if url is None:
                for place in mine:
                    self._miss(f"{MISSING}: the row has no shard ({URL_COLUMN} is null)", "", ids[place])
                continue
            self.stamps[url] = stamp(url, self._options)  # of a tar that is gone it raises
            if self._whole and is_parquet_shard(url):
                self._take_whole_rows(url, [rows[place] for place in mine], [ids[place] for place in mine])
                continue
            if is_parquet_shard(url):
                with ParquetReader(url, self._options) as rows_of:
                    self._take_rows(rows_of, [rows[place] for place in mine], [ids[place] for place in mine])
                continue
            try:
                # An index file is compared with the tar in a few places only, and its names would be those in the
                # new tars.
                with open_shard(
                    file_of(url) if self._whole else url, use_index_files=False, storage_options=self._options
                ) as reader:
                    index = reader.index
            except ShardError as error:
                if error.__cause__ is not None and not isinstance(error.__cause__, ShardError):
                    raise  # it could not be read, or fetched: that may be mended
                remark(url, "damaged", str(error).removeprefix(f"{url}: "))
                for place in mine:
                    self._miss(f"{MISSING}: {error}", url, ids[place])
                continue
            before = len(self._members)
            self._take(url, index, [rows[place] for place in mine], [ids[place] for place in mine])
            taken = self._members[before:]
            files = reader.files_of(taken) if isinstance(reader, FolderReader) else [(None, 0)] * len(taken)
            self._files += files

    def _take(self, url: str, index: ShardIndex, rows: Sequence[int], ids: Sequence[Any]) -> None:
        found = index.find(ids)
        remark(url, "damaged", index.problem)
        remark(url, "duplicates", fact_of(index.duplicates))
        remark(url, "unread", fact_of(map(str, index.unread)))
        remark_orphans(url, index, found, self._id_col, self._options)
        cut = last_sample(index) if index.problem else -1
        for row, item, position in zip(rows, ids, found.tolist(), strict=True):
            if position < 0:
                self._miss(
                    f"{MISSING}: no sample {item!r} in the {kind_of(url)}{why_missing(index, item)}",
                    url,
                    item,
                )
            elif position == cut:
                self._miss(f"damaged: the tar ends in this sample, or behind it: {index.problem}", url, item)
            elif not index.samples[position].members:  # of a folder, and its image is a link to nothing
                self._miss(f"{MISSING}: the sample has no file{why_missing(index, item)}", url, item)
            else:
                self._add(url, row, index.samples[position])

    def _take_rows(self, reader: ParquetReader, rows: Sequence[int], ids: Sequence[Any]) -> None:
        """The same of a Parquet file: how large its images are, and what they are, is seen by reading them."""
        index, url = reader.index, reader.url
        before = len(self._members)
        found = index.find(ids).tolist()
        reader.expect(index.samples[place].members[0] for place in found if place >= 0)
        for place, row, item in sorted(zip(found, rows, ids, strict=True), key=lambda each: each[:2]):
            if place < 0:
                self._miss(f"{MISSING}: no sample {item!r} in the {kind_of(url)}", url, item)
                continue
            key, (member,) = index.samples[place]
            try:
                image = reader.read(member)
            except ImageError as error:
                self._miss(str(error), url, item)
                continue
            self._add(url, row, Sample(key, (Member(f"{key}.{suffix_for(image)}", place, len(image)),)))
        reader.check_unchanged()
        self._files += [(None, 0)] * (len(self._members) - before)

    def _take_whole_rows(self, url: str, rows: Sequence[int], ids: Sequence[Any]) -> None:
        """Rows of a Parquet file, each with all that it has; what it weighs is about that of any."""
        with ParquetReader(url, self._options) as reader:
            assert isinstance(reader.index, ListIndex)
            index = reader.index.rows
        found = index.find(ids).tolist()
        weight = self.stamps[url].size // max(1, len(index.samples))
        for place, row, item in zip(found, rows, ids, strict=True):
            if place < 0:
                self._miss(f"{MISSING}: no sample {item!r} in the {kind_of(url)}", url, item)
                continue
            key = index.samples[place].key
            self._add(url, row, Sample(key, (Member(f"{key}.row", place, weight),)))
            self._files.append((None, 0))

    def _add(self, url: str, row: int, sample: Sample) -> None:
        key = sample.key
        portable = portable_key(key)
        self.odd_keys += portable != key
        start = len(sample.stem) + 1
        names = [member.name.removeprefix("./") for member in sample.members]
        suffixes = [name[start:] for name in names]
        if isinstance(sample, ImageSample):  # the image of a sample of its own
            suffixes[0] = suffixes[0].rpartition(".")[2]
        if self._portable:
            suffixes = [portable_suffix(each) for each in suffixes]
            if len({*suffixes}) < len(suffixes):
                raise ShardError(
                    f"{url} {key_text(key)}: has members that differ in upper and lower case alone, {names}: use"
                    " layout='original' (--layout original)"
                )
        self._rows.append(row)
        self._urls.append(url)
        self._source_keys.append(key)
        self._keys.append(portable if self._portable else key)
        self._suffixes += suffixes
        self._members += sample.members
        self._ends.append(len(self._suffixes))

    def table(self) -> pa.Table:
        """The samples, in the order of their rows."""
        self.fields = Counter(self._suffixes)
        counts = np.diff(self._ends)
        owners = np.repeat(np.arange(len(self._rows)), counts).tolist()
        names = [
            f"{self._keys[owner]}.{suffix}" for owner, suffix in zip(owners, self._suffixes, strict=True)
        ]
        offsets = np.array([member.offset for member in self._members], np.int64)
        sizes = np.array([member.size for member in self._members], np.int64)
        totals = np.concatenate([[0], np.cumsum(tar_bytes(names, sizes))])[self._ends]
        ends = pa.array(self._ends, pa.int32())
        suffixes = pa.array([encoded(each) for each in self._suffixes], pa.binary())
        columns = [
            pa.array(self._rows, pa.int64()),
            pa.array(self._urls, pa.string()),
            pa.array([encoded(each) for each in self._source_keys], pa.binary()),
            pa.array([encoded(each) for each in self._keys], pa.binary()),
            *(
                pa.ListArray.from_arrays(ends, each)
                for each in (suffixes, pa.array(offsets), pa.array(sizes))
            ),
            pa.array(np.diff(totals), pa.int64()),
        ]
        table = pa.table(columns, schema=SAMPLES)
        if any(path is not None for path, _ in self._files):
            paths = pa.array(
                [None if path is None else encoded(path) for path, _ in self._files], pa.binary()
            )
            times = pa.array([time for _, time in self._files])  # a store's are text
            for name, each in ((FILES, paths), (TIMES, times)):
                table = table.append_column(name, pa.ListArray.from_arrays(ends, each))
        in_order = all(one < other for one, other in itertools.pairwise(self._rows))
        return table if in_order else table.take(pa.array(np.argsort(self._rows, kind="stable")))

    def _miss(self, reason: str, url: str, item: Any) -> None:
        kind = reason.partition(":")[0]
        self.reasons[kind] += 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < EXAMPLES:
            examples.append(f"{url} {item}: {reason}")
