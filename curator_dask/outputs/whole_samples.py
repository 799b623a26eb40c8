"""Export of whole samples that have several images each: which stay, by which of their images pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.errors import ConfigError, OutputError
from curator_dask.frames.columns import to_array
from curator_dask.frames.names import URL_COLUMN
from curator_dask.outputs.taken_down import Marks, TakenDown
from curator_dask.rows.lookup import TEXT
from curator_dask.webdataset.parquet import file_of, is_parquet_shard
from curator_dask.webdataset.several_names import COUNT, NUMBER, SAMPLE

#: All, any, or the first of a sample's images must pass.
HOW = ("all", "any", "first")
#: Columns of the rows that say which sample they are of.
NEEDED = (SAMPLE, NUMBER, COUNT)
#: What an export can be asked that changes a sample, or is of an image.
_OF_IMAGES = (
    *("blur", "bucket_size", "latents", "max_side", "min_side", "strip_metadata", "image_member"),
    *("text_states", "caption", "columns", "npy", "next_best", "append", "split_groups"),
)
#: And what a Parquet file of whole rows has no place for besides.
_OF_TARS = ("keys", "layout", "old_id_col", "by", "shuffle", "shard_bytes")


def check_samples(options: Any) -> None:
    """Raise ConfigError where `ExportOptions` ask for whole samples, and for what these cannot have."""
    how = options.samples
    if how not in (None, *HOW):
        raise ConfigError(f"samples={how!r} (--samples): expected one of {', '.join(map(repr, HOW))}")
    if how is None:
        return
    names = (*_OF_IMAGES, *(_OF_TARS if options.format == "parquet" else ()))
    given = [name for name in names if getattr(options, name)]
    given += ["metadata='json'"] if options.metadata == "json" else []
    if given:
        option = "--" + given[0].partition("=")[0].replace("_", "-")
        raise ConfigError(
            f"samples={how!r} (--samples) and {given[0]} ({option}): whole samples are written as they are, and have"
            " several images: leave one out. Without samples each image is a sample of its own"
        )


def check_rows(how: str | None, columns: Sequence[str]) -> None:
    """Raise ConfigError where rows do not say which image of which sample they are."""
    if how is not None and (missing := [name for name in NEEDED if name not in columns]):
        raise ConfigError(
            f"samples={how!r} (--samples): the rows have no columns {missing}: it is for rows that are images of"
            " samples, as embed --each-image makes them, or embed of Parquet files with lists of images"
        )


class WholeSamples:
    """The samples of some rows, and which of them stay.

    Parameters
    ----------
    table
        Rows of images, with `NEEDED` and their shards.
    passes
        bool (rows,): which images pass.
    how
        One of `HOW`.
    is_tables
        They go to Parquet files.
    gone
        What was taken down of the rows: a sample with such an image does not stay.

    Attributes
    ----------
    count
        How many samples there are.
    rows
        int64: of each sample that stays the row that stands for it, that of its first image that passes.
    """

    def __init__(
        self, table: pa.Table, passes: np.ndarray, how: str, is_tables: bool, gone: TakenDown | None = None
    ) -> None:
        keys, urls = table.column(SAMPLE).to_pylist(), table.column(URL_COLUMN).to_pylist()
        pairs = [*zip(urls, keys, strict=True)]
        places = {pair: place for place, pair in enumerate(dict.fromkeys(pairs))}
        of = np.array([places[pair] for pair in pairs], np.int64)
        numbers = np.asarray(to_array(table.column(NUMBER).combine_chunks()).fill_null(-1), np.int64)
        counts = np.asarray(to_array(table.column(COUNT).combine_chunks()).fill_null(-1), np.int64)
        self.count = len(places)
        good = np.flatnonzero(passes)
        first = good[np.lexsort((numbers[good], of[good]))]
        _, at = np.unique(of[first], return_index=True)
        standing = first[at]
        if how == "first":
            standing = standing[numbers[standing] == 0]
        elif how == "all":
            # Rows may have been left out before; an image that stands in two counts once.
            passing = np.bincount(
                np.unique(np.stack([of[good], numbers[good]]), axis=1)[0], minlength=self.count
            )
            standing = standing[passing[of[standing]] == counts[standing]]
        if gone is not None:
            some = table.take(pa.array(standing))
            names, of_shards = (to_array(some.column(name)).cast(TEXT) for name in (SAMPLE, URL_COLUMN))
            marks = Marks(len(standing), {}).also_images(names, of_shards, counts[standing])
            standing = standing[~gone.mask(marks)]
        self.rows = np.sort(standing)
        self.shards = sorted({url for url in urls if url is not None})
        check_kind(self.shards, is_tables)

    def told(self) -> dict[str, Any]:
        """What a report says of them."""
        return {
            "unit": "sample",
            "rows": self.count,
            "filtered": self.count - len(self.rows),
            "shards": self.shards,
        }


def check_together(reports: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise OutputError where rows of one shard lie in several files: none knows all images of a sample."""
    seen: Counter[str] = Counter(url for report in reports.values() for url in report.get("shards", ()))
    if several := [url for url, count in seen.items() if count > 1]:
        raise OutputError(
            f"{several[0]}: its rows lie in {seen[several[0]]} files, and images of one sample may be in several of"
            " them: whole samples (--samples) need a file a shard, as embed writes without --rows-per-partition"
        )


def check_kind(urls: Iterable[str], is_tables: bool) -> None:
    """Raise ConfigError where samples of tars are to go to Parquet files, or the other way."""
    for url in urls:
        if is_parquet_shard(url) != is_tables:
            there, wanted = ("tar", "webdataset") if is_tables else ("Parquet file", "parquet")
            raise ConfigError(
                f"{file_of(url)}: whole samples (--samples) of a {there} go to {there}s: give format={wanted!r}"
                f" (--format {wanted})"
            )
