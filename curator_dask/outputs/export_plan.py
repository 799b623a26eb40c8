"""Which samples of an export go into which new tar, and which numbers these get: decided before one is written."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from curator_dask.errors import ConfigError
from curator_dask.outputs.choosing import read_rows
from curator_dask.outputs.earlier import EarlierTars
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.export_summary import ExportSummary
from curator_dask.outputs.grouping import group_samples
from curator_dask.outputs.groups import in_groups
from curator_dask.outputs.selecting import Folder
from curator_dask.outputs.sharding import (
    NewShards,
    ends_by_bytes,
    ends_by_count,
    ends_evenly,
    ends_in_parts,
    ends_of_at_most,
    shuffled,
)
from curator_dask.outputs.splitting import split_samples
from curator_dask.outputs.splitting_more import split_more
from curator_dask.threads import in_threads
from curator_dask.webdataset.stamps import stamp
from curator_dask.words import counted

_LINE_BYTES = 64  # of a member, about: in an index, and in the manifest


@dataclass(frozen=True)
class Stays:
    """What new tars have to go with.

    Attributes
    ----------
    earlier
        The tars that stay; None: none are added to any.
    taken
        By file, rows that have a sample in these, and the places of these samples.
    digits
        Of a sample's number in its key, where keys are numbers.
    folders
        By value, those of the earlier tars, where rows of one value have a folder.
    """

    earlier: EarlierTars | None = None
    taken: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    digits: int | None = None
    folders: Mapping[str | None, str] = field(default_factory=dict)


def plan_shards(
    options: ExportOptions,
    summary: ExportSummary,
    rows: Folder,
    selected: Folder,
    reports: Mapping[str, Mapping[str, Any]],
    id_col: str,
    stays: Stays,
) -> NewShards:
    """Plan the tars.

    Parameters
    ----------
    options
        Of the export.
    summary
        Gets the counts of splits, and of folders of one value.
    rows, selected, reports
        The files of rows, the tables of their samples, and by file what was said when they were looked up.
    id_col
        Column of the keys, where a file does not say it.
    stays
        What they have to go with.

    Raises
    ------
    ConfigError
        There are more than their numbers have digits for, or splits cannot be made.
    """
    names, earlier = list(reports), stays.earlier
    marks, counts = ([report[name] for report in reports.values()] for name in ("mark", "kept"))
    total = sum(counts)
    order = None if options.shuffle is None else shuffled(total, options.shuffle)
    # Samples of each split, of each folder in it; and of each sample the place of its own among these.
    parts, of = {"": total}, np.zeros(total, np.int64)
    if options.sharing is not None:
        shared = (options.sharing, selected, rows, names, id_col)
        if earlier is None or not earlier.names:
            assigned = split_samples(*shared)
        else:
            assigned = split_more(*shared, earlier, stays.taken)
        summary.note_splits(assigned.counts, assigned.notes, earlier)
        of, parts = assigned.of, {name: n.samples - n.earlier for name, n in assigned.counts.items()}
    if options.grouping is not None:
        grouped = group_samples(options.grouping, selected, rows, names, stays.folders)
        of, parts = in_groups(of, list(parts), grouped)
        summary.note_groups(parts, grouped, earlier)
    if options.sharing is not None or options.grouping is not None:
        order = np.arange(total) if order is None else order
        order = order[np.argsort(of[order], kind="stable")]
    if options.shards is not None:
        ends = _ends_of_so_many(parts, options.shards)
        summary.notes = _notes_of(options.shards, total, max(parts.values()))
    elif options.shard_bytes is None:
        ends = ends_in_parts(
            [*parts.values()], lambda start, stop: ends_by_count(stop - start, options.samples_per_shard)
        )
    else:
        found = in_threads(
            lambda name: read_rows(selected.file(name), selected.options, ["bytes"]).column(0).to_numpy(),
            names,
        )
        sizes = np.concatenate([np.empty(0, np.int64), *found])
        sizes = sizes if order is None else sizes[order]
        room = max(1, options.shard_bytes - tarfile.RECORDSIZE)  # that its end mark may take
        most = total if stays.digits is None else 10**stays.digits  # keys of earlier tars have these digits
        ends = ends_in_parts(
            [*parts.values()],
            lambda start, stop: ends_of_at_most(ends_by_bytes(sizes[start:stop], room), max(1, most)),
        )
    at = (
        {}
        if earlier is None
        else {name: earlier.free_numbers(name, len(each)) for name, each in zip(parts, ends, strict=True)}
    )
    numbers = max((max(each) + 1 for each in at.values() if each), default=max(map(len, ends)))
    if numbers > 10**options.max_shards:
        raise ConfigError(
            f"{numbers} tars do not have numbers of {options.max_shards} digits: give max_shards (--max-shards),"
            " which is the number of digits, or fewer and larger ones (--samples-per-shard, --shards)"
        )
    splits = [(name, len(each)) for name, each in zip(parts, ends, strict=True)]
    return NewShards(names, marks, counts, np.concatenate(ends), order, splits=splits, at=at)


def _notes_of(shards: int, total: int, most: int) -> list[str]:
    """What is to be known where so many tars were asked for, of all samples, and of those of the largest split."""
    if not total:
        return [f"NONE of the {shards:,} tars that were asked for is there: no row that passes has a sample"]
    return [
        "its tars are of one size, so none can be added (--append): of a dataset that is to grow give"
        f" --samples-per-shard {-(-most // shards)} instead of --shards"
    ]


def _ends_of_so_many(parts: Mapping[str, int], shards: int) -> list[np.ndarray]:
    """Ends of so many shards of the largest part; of the others, shards that are as large or a little smaller."""
    name, most = max(parts.items(), key=lambda item: item[1])
    if 0 < most < shards:
        where = f" in {name!r}, the largest folder" if name else ""
        raise ConfigError(
            f"shards={shards} (--shards): expected at least as many samples, found {counted(most, 'sample')}{where};"
            " readers stop at a tar without one: give fewer"
        )
    size = max(1, -(-most // shards))

    def ends_of(start: int, stop: int) -> np.ndarray:
        samples = stop - start
        return ends_evenly(samples, shards if samples == most > 0 else -(-samples // size))

    return ends_in_parts([*parts.values()], ends_of)


def bytes_of(
    options: ExportOptions, summary: ExportSummary, rows: Folder, reports: Mapping[str, Mapping[str, Any]]
) -> int:
    """About what all new tars take, with what lies beside them; the parameters are those of `plan_shards`."""
    total: int = sum(report["bytes"] for report in reports.values())
    if options.metadata == "parquet" and not options.is_tables:  # which are weighed with them
        sizes = in_threads(lambda name: stamp(rows.file(name), rows.options).size, list(reports))
        total += sum(sizes) * summary.kept // max(1, summary.rows)
    total += 0 if options.caption is None else 2 * tarfile.BLOCKSIZE * summary.kept
    return total + _LINE_BYTES * sum(summary.fields.values()) * (1 + options.index)
