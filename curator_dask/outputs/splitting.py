"""Reading what decides to which split each sample of an export goes: keys, a column, groups of near copies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from curator_dask.errors import ConfigError, OutputError
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import read_footer, read_whole
from curator_dask.outputs.choosing import read_rows
from curator_dask.outputs.removed import DUPLICATES, check_removed, read_duplicates
from curator_dask.outputs.selecting import Folder
from curator_dask.outputs.splits import KEY, SplitCount, Splits, least_of, linked
from curator_dask.storage import Options, absolute, join
from curator_dask.threads import in_threads
from curator_dask.words import counted


@dataclass(frozen=True)
class Assigned:
    """Where samples go.

    Attributes
    ----------
    of
        int16 (samples,): the place of each sample's split in `Splits.names`.
    counts
        By split.
    notes
        What is to be known of it.
    """

    of: np.ndarray
    counts: dict[str, SplitCount]
    notes: list[str]


def split_samples(
    splits: Splits, selected: Folder, rows: Folder, names: Sequence[str], id_col: str
) -> Assigned:
    """Share samples out; some 40 bytes a sample are held meanwhile.

    Parameters
    ----------
    splits
        How.
    selected, names
        The tables of samples.
    rows
        The rows that they are of.
    id_col
        Column of the keys, where a file does not say it.

    Raises
    ------
    ConfigError
        The column does not fit, or there are not so many samples.
    """
    groups = None if splits.groups is None else Groups(splits.groups, splits, rows.options)
    found = in_threads(lambda name: units_of_selected(splits, groups, selected, rows, name, id_col), names)
    nothing = (np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, bool), 0)
    first, second, has_both = (
        np.concatenate([np.asarray(each[at]) for each in (nothing, *found)]) for at in range(3)
    )
    of, counts = splits.assign(linked(first, second, has_both.astype(bool)))
    return Assigned(of, counts, notes_of(splits, sum(each[3] for each in found), counts, rows.options))


def notes_of(
    splits: Splits, alone: int, counts: Mapping[str, SplitCount], options: Options = None
) -> list[str]:
    """What is to be known of splits with so many samples, of which so many are by themselves."""
    return [*_notes(splits, alone, counts, options)]


def _notes(splits: Splits, alone: int, counts: Mapping[str, SplitCount], options: Options) -> Iterator[str]:
    if alone and splits.by is not None:
        yield f"{counted(alone, 'sample')} without {splits.by.text}: each is by itself"
    for name, count in counts.items():
        if not count.samples:
            yield f"{name} has no sample, and no tar"
        elif isinstance(count.wanted, int) and count.samples < count.wanted:
            why = "rows that stay together do not fit" + " (a key is there more than once)" * splits.by_key
            yield f"{name} has {count.wanted - count.samples:,} fewer than were asked for: {why}"
    total, largest = (
        sum(count.samples for count in counts.values()),
        max(count.largest for count in counts.values()),
    )
    if not splits.by_key and largest > 1 and not all(count.samples for count in counts.values()):
        if largest < total:
            yield f"rows that stay together are {largest:,} of {total:,} at the most, and go to one split"
        elif splits.by is not None and splits.groups is None:
            yield f"all {total:,} samples have one value of {splits.by.text}, and go to one split"
        else:
            yield f"all {total:,} samples hang together, and go to one split"
    if splits.groups is not None:
        record = read_whole(join(absolute(splits.groups, options), DUPLICATES), options).record
        report = (record.report if record else None) or {}
        if "diameter" in report and report["diameter"] is None:
            yield (
                f"{splits.groups}: its groups are made around rows that stay, so rows of two groups may be near each"
                " other: with --groups components (groups='components') all that hang together are of one"
            )


def units_of_selected(
    splits: Splits, groups: Groups | None, selected: Folder, rows: Folder, name: str, id_col: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """The same as `units_of_samples` of those that were looked up of a file."""
    samples = read_rows(selected.file(name), selected.options, ["row", "source_key"])
    return units_of_samples(splits, groups, samples, rows, name, id_col)


def units_of_samples(
    splits: Splits, groups: Groups | None, samples: pa.Table, rows: Folder, name: str, id_col: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Of a file's samples: their units, second ones, which have such, and how many have no value of the column."""
    keys = splits.hashed(samples.column("source_key").to_pylist(), KEY)
    none = np.zeros(len(samples), bool)
    if splits.by is None and groups is None:
        return keys, keys, none, 0
    path = rows.file(name)
    footer = read_footer(path, rows.options)
    id_col = (footer.record.id_col if footer.record else None) or id_col
    wanted = [] if groups is None else [id_col, URL_COLUMN]
    wanted += [] if splits.by is None else splits.by.columns(footer.columns)
    table = read_rows(path, rows.options, list(dict.fromkeys(wanted))).take(samples.column("row"))
    values, has_value = keys, none
    if splits.by is not None:
        try:
            values, has_value = splits.of_values(splits.by.values(table, footer.columns))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
    group, has_group = keys, none
    if groups is not None:
        group, has_group = groups.of(table.column(id_col), table.column(URL_COLUMN))
    first = np.where(has_value, values, np.where(has_group, group, keys))
    return first, group, has_value & has_group, int((~has_value).sum()) * (splits.by is not None)


class Groups:
    """The groups of a table of duplicates, each with the smallest number of its rows' keys.

    It is made of all of them, also of those that are not exported: so it is the same whatever else is filtered.
    """

    def __init__(self, path: str, splits: Splits, options: Options = None) -> None:
        self._folder, self._options = absolute(path, options), options
        self._path, self._state = join(self._folder, DUPLICATES), check_removed(path, options)
        if "group" not in read_whole(self._path, options).columns:
            raise OutputError(f"{self._path}: has no groups: find the duplicates anew (curator-dask dedup)")
        table = read_duplicates(path, ["id", "group"], options)
        numbers = table.column("group").to_numpy()
        ids = table.column("id").cast(pa.large_string()).cast(pa.large_binary()).to_pylist()
        made = least_of(splits.hashed((each or b"" for each in ids), KEY), numbers)
        self._groups, firsts = np.unique(numbers, return_index=True)
        self._numbers = made[firsts]

    def of(self, keys: pa.ChunkedArray, urls: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
        """uint64 (rows,) numbers of rows' groups; and bool (rows,), which rows are of one."""
        if check_removed(self._folder, self._options) != self._state:
            raise OutputError(f"{self._path}: was written anew meanwhile: run again")
        shards = urls.cast(pa.string()).to_pylist()
        wanted = sorted({url for url in shards if url is not None})
        numbers, has = np.zeros(len(keys), np.uint64), np.zeros(len(keys), bool)
        if not wanted:
            return numbers, has
        table = read_duplicates(self._folder, ["id", URL_COLUMN, "group"], self._options, wanted)
        known = self._numbers[np.searchsorted(self._groups, table.column("group").to_numpy())]
        pairs = zip(table.column(URL_COLUMN).to_pylist(), table.column("id").to_pylist(), strict=True)
        found = dict(zip(pairs, known.tolist(), strict=True))
        for row, pair in enumerate(zip(shards, keys.cast(pa.string()).to_pylist(), strict=True)):
            number = found.get(pair)
            if number is not None:
                numbers[row], has[row] = number, True
        return numbers, has
