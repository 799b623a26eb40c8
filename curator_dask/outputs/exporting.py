"""Export: the samples of chosen rows go into new tars, every member byte for byte, but for images made smaller.

First the rows are there as Parquet: those of an output, or what a frame comes to. Then each of these files is asked for
its samples (`selecting`). Then it is decided which go where (`sharding`), and each new tar is written by a task of its
own (`packing`). What is known on the way, and of which tar each sample is, lies beside the tars, not among them: in a
folder of their name and ``.export``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import posixpath
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dask.dataframe as dd
import numpy as np

from curator_dask.cluster.setup import OpenWorkers, when_needed
from curator_dask.errors import ConfigError, OutputError, ShardError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.columns import vectors_in
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import read_record
from curator_dask.outputs.choosing import read_rows
from curator_dask.outputs.encoded import Encoded
from curator_dask.outputs.export_columns import schema_beside, schema_of
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.export_place import ExportPlace
from curator_dask.outputs.export_summary import ExportSummary
from curator_dask.outputs.failed import none_there, output_files
from curator_dask.outputs.packing import NewKeys, PackShard
from curator_dask.outputs.parquet import ParquetSink
from curator_dask.outputs.placing import locate
from curator_dask.outputs.planning import name_of
from curator_dask.outputs.removed import DUPLICATES, check_removed, check_shards
from curator_dask.outputs.saving import check_apart, check_writable
from curator_dask.outputs.selecting import Folder, SelectSamples
from curator_dask.outputs.sharding import NewShards, ends_by_bytes, ends_by_count, shuffled
from curator_dask.outputs.shrinking import EXPORTED
from curator_dask.outputs.unique_keys import check_keys
from curator_dask.outputs.writing import Output
from curator_dask.runs.filtering import some_columns
from curator_dask.runs.groups import Layout
from curator_dask.runs.run import run
from curator_dask.runs.settle import file_tasks, run_targets
from curator_dask.runs.sink import Job, Plan
from curator_dask.runs.step import Step
from curator_dask.runs.targets import Target
from curator_dask.storage import Options, absolute, is_remote, join, local_path
from curator_dask.threads import in_threads
from curator_dask.webdataset.stamps import stamp

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger("curator_dask")

_LINE_BYTES = 64  # of a member, about: in an index, and in the manifest


def export_output(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    options: ExportOptions | None = None,
    *,
    id_col: str = "key",
    storage_options: Options = None,
    output_storage_options: Options = None,
    workers: OpenWorkers = contextlib.nullcontext,
) -> ExportSummary:
    """Write the samples of an output's rows into new tars.

    Parameters
    ----------
    path
        What `save_metadata`, ``curator-dask embed`` or ``filter`` wrote, or other Parquet files with the columns of
        keys and ``__url__``.
    output
        Where the tars go.
    options
        Which samples, and how.
    id_col
        Column of the keys, where files do not say it.
    storage_options, output_storage_options
        For fsspec, where `path` and the tars, and `output`, are URLs; without the second those of `path`, too.
    workers
        Opens the cluster to work on, once there is something to do; else it is the one that is there.

    Raises
    ------
    CuratorError
        As of `ImageTextPairDataset.to_webdataset`.
    """
    started = time.monotonic()
    rows = Folder(locate(os.fspath(path), storage_options), storage_options)
    names = output_files(rows.path, rows.options)
    if not names:
        raise OutputError(none_there(rows.path))
    if names == [DUPLICATES]:
        raise OutputError(
            f"{rows.path}: is what dedup wrote, with the rows that go and those that stay for them. Give the folder of"
            " vectors, and this one as without= (--without)"
        )
    given = storage_options if output_storage_options is None else output_storage_options
    target = Folder(locate(os.fspath(output), given), given)
    check_apart(rows.path, target.path)
    options = options or ExportOptions()
    found = schema_of(rows, names)
    options.check_columns(found.empty_table(), found.names)
    if options.without is not None:
        check_removed(absolute(options.without))
    place = ExportPlace(target)
    with place.open(options.dry_run), when_needed(workers) as client:
        export = _Export(place, options, id_col, storage_options, client)
        export.write(rows, names)
        return export.done(started)


def export_frame(
    frame: dd.DataFrame,
    earlier_steps: Sequence[Step],
    tars: Sequence[str],
    output: str | os.PathLike[str],
    options: ExportOptions,
    *,
    id_col: str,
    input_options: Options = None,
    output_options: Options = None,
    layout: Layout | None = None,
    encoded: Encoded | None = None,
    workers: OpenWorkers = contextlib.nullcontext,
) -> ExportSummary:
    """Compute a frame, and write the samples of its rows into new tars; see `ImageTextPairDataset.to_webdataset`.

    `workers` is as for `export_output`.
    """
    started = time.monotonic()
    names = list(frame.columns)
    wanted = [id_col, URL_COLUMN, *options.names(names), *([] if encoded is None else [encoded.column])]
    if missing := [name for name in wanted if name not in names]:
        raise ConfigError(f"no such columns {missing}; the metadata has {names}")
    options.check_columns(some_columns(frame._meta, options.names(names)), names)
    path = os.fspath(output)
    if output_options is None and any(
        path.partition("://")[0] == tar.partition("://")[0] for tar in tars[:1]
    ):
        output_options = input_options
    target = Folder(locate(path, output_options), output_options)
    for folder in {posixpath.dirname(tar) for tar in tars}:
        check_apart(folder, target.path)
    place = ExportPlace(target)
    with place.open(options.dry_run, keep_rows=bool(earlier_steps)), when_needed(workers) as client:
        export = _Export(place, options, id_col, input_options, client, encoded)
        sink = _RowsSink(Output(join(place.beside, "rows"), target.options, False, True, False))
        if not is_remote(sink.place):
            check_writable(sink.place)
        kept = [name for name in names if options.metadata is not None or name in wanted]
        summary, _ = run(
            frame,
            earlier_steps,
            sink,
            kept=kept,
            id_col=id_col,
            input_options=input_options,
            layout=layout,
            client=client,
        )
        _stop_at(summary.failed_shards, "its rows could not be read")
        export.write(Folder(sink.place, target.options), sink.names)
        return export.done(started, summary.filtered)


@dataclass(frozen=True)
class _RowsSink(ParquetSink):
    """Keeps the names of its files, in the order of the partitions."""

    names: list[str] = field(default_factory=list)

    def plan(self, job: Job) -> Plan:
        plan = super().plan(job)
        self.names[:] = [f"{name_of(job, number)}.parquet" for number in range(len(plan.targets))]
        return plan


class _Export:
    """One export; `client` gives that of the cluster to work on, whose workers are set up."""

    def __init__(
        self,
        place: ExportPlace,
        options: ExportOptions,
        id_col: str,
        shard_options: Options,
        client: Callable[[], Client | None],
        encoded: Encoded | None = None,
    ) -> None:
        self.place = place
        self._options, self._id_col, self._shard_options = options, id_col, shard_options
        self._client, self._encoded = client, encoded
        self._summary = ExportSummary(place.target.path)

    def done(self, started: float, left_out: Mapping[str, Any] | None = None) -> ExportSummary:
        """The summary, which is logged, with the rows that a frame's own steps have left out."""
        self._summary.add_left_out(left_out or {})
        self._summary.seconds = time.monotonic() - started
        logger.info("%s", self._summary)
        return self._summary

    def write(self, rows: Folder, names: Sequence[str]) -> None:
        """Look up the samples of files with rows, and write the tars."""
        selected = self.place.folder("samples")
        reports = self._select(rows, selected, names)
        urls = {url for report in reports.values() for url in report["stamps"]}
        if self._options.without is not None:
            check_shards(absolute(self._options.without), urls)
        # Else a tar might be written over while it is copied; a link may lead to one from elsewhere.
        for folder in {posixpath.dirname(url) for url in (*urls, *map(_behind_links, urls))}:
            check_apart(folder, self.place.target.path)
        odd = sum(report["odd_keys"] for report in reports.values())
        self._summary.note_habits(self._options, odd)
        if not self._options.sequential:
            check_keys(selected, names)
        shards = self._shards(selected, reports)
        pack = self._packing(rows, selected, shards, names)
        self._pack(pack, shards, self._bytes_of(rows, reports))
        self._summary.note_habits(self._options, odd)  # images may have other suffixes now

    def _bytes_of(self, rows: Folder, reports: Mapping[str, Mapping[str, Any]]) -> int:
        """About what all tars take, with what lies beside them."""
        options, summary = self._options, self._summary
        total: int = sum(report["bytes"] for report in reports.values())
        if options.metadata == "parquet":
            sizes = in_threads(lambda name: stamp(rows.file(name), rows.options).size, list(reports))
            total += sum(sizes) * summary.kept // max(1, summary.rows)
        total += 0 if options.caption is None else 2 * tarfile.BLOCKSIZE * summary.kept
        return total + _LINE_BYTES * sum(summary.fields.values()) * (1 + options.index)

    def _select(self, rows: Folder, selected: Folder, names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        options, summary = self._options, self._summary
        select = SelectSamples(
            rows,
            selected,
            self._shard_options,
            self._id_col,
            options.where,
            options.filter_column,
            options.portable,
            options.without,
            "" if options.without is None else check_removed(absolute(options.without)),
        )
        known = in_threads(select.known, names)
        reports = {name: report for name, report in zip(names, known, strict=True) if report is not None}
        for report in reports.values():
            summary.looked_up.add(report)
        todo = [name for name in names if name not in reports]

        def take(number: int, row: Mapping[str, Any]) -> None:
            reports[todo[number]] = json.loads(row["target"])

        if todo:
            client = self._client()
            targets = [Target.of_file(selected.path, name) for name in todo]
            tasks = file_tasks(select, todo, "select-samples", client)
            run_targets(tasks, client, targets, summary.looked_up, take)
        _stop_at(summary.looked_up.failed_shards, "its samples could not be looked up")
        for name in names:
            summary.add_file(reports[name])
        summary.reasons, summary.examples = summary.looked_up.reasons, summary.looked_up.examples
        logger.info("%d of %d rows have a sample for %s", summary.kept, summary.rows, self.place.target.path)
        return {name: reports[name] for name in names}  # not as they were done

    def _shards(self, selected: Folder, reports: Mapping[str, Mapping[str, Any]]) -> NewShards:
        options, names = self._options, list(reports)
        marks, counts = ([report[name] for report in reports.values()] for name in ("mark", "kept"))
        total = sum(counts)
        order = None if options.shuffle is None else shuffled(total, options.shuffle)
        if options.shard_bytes is None:
            ends = ends_by_count(total, options.samples_per_shard)
        else:
            found = in_threads(
                lambda name: read_rows(selected.file(name), selected.options, ["bytes"]).column(0).to_numpy(),
                names,
            )
            sizes = np.concatenate([np.empty(0, np.int64), *found])
            room = max(1, options.shard_bytes - tarfile.RECORDSIZE)  # that its end mark may take
            ends = ends_by_bytes(sizes if order is None else sizes[order], room)
        if len(ends) > 10**options.max_shards:
            raise ConfigError(
                f"{len(ends)} tars do not have numbers of {options.max_shards} digits: give max_shards (--max-shards),"
                " which is the number of digits, or more samples_per_shard (--samples-per-shard)"
            )
        return NewShards(names, marks, counts, ends, order)

    def _packing(
        self,
        rows: Folder,
        selected: Folder,
        shards: NewShards,
        names: Sequence[str],
    ) -> PackShard:
        options, summary, shrinking = self._options, self._summary, self._options.shrinking
        made = () if shrinking is None else tuple(EXPORTED)
        record = read_record(rows.file(names[0]), rows.options) if names else None
        id_col = (record.id_col if record else None) or self._id_col
        new_keys = None
        if options.sequential:
            largest = shards.largest() if options.shard_bytes is not None else options.samples_per_shard
            digits = len(str(largest - 1)) if largest > 1 else 0  # of the last number in a shard
            new_keys = NewKeys(options.max_shards, digits, options.old_id_col)
        text_keys = options.sequential or options.portable
        found = schema_of(rows, names)
        if self._encoded is not None:
            found = found.remove(found.get_field_index(self._encoded.column))
        columns = tuple(options.columns or ())
        if options.metadata == "json":
            columns = tuple(
                name
                for name in found.names
                if name in columns
                or name not in {URL_COLUMN, id_col, *vectors_in(found), *(each.name for each in made)}
            )
        return PackShard(
            self.place.target,
            self.place.folder("manifest"),
            selected,
            rows,
            self._shard_options,
            options.max_shards,
            schema_beside(found, id_col, text_keys, options.old_id_col, made)
            if options.metadata == "parquet"
            else None,
            id_col,
            new_keys,
            text_keys,
            columns,
            options.metadata == "json",
            options.empty(summary.fields, summary.kept),
            options.index,
            self._encoded,
            options.caption,
            shrinking,
        )

    def _pack(self, pack: PackShard, shards: NewShards, total_bytes: int) -> None:
        summary = self._summary
        summary.shards = len(shards)
        finished = in_threads(lambda number: pack.finished(shards[number]), range(len(shards)))
        todo = [number for number, footer in enumerate(finished) if footer is None]
        for footer in finished:
            if footer is not None and footer.record is not None:
                summary.add_shard(footer.record.report or {})
        summary.skipped = len(shards) - len(todo)
        names = [pack.name(number) for number in range(len(shards))]
        this = fingerprint({"marks": [pack.mark(shards[number]) for number in range(len(shards))]})
        options = self._options
        self.place.clear(names, todo, this, options.overwrite, only_look=True)
        summary.needed = total_bytes * len(todo) // max(1, len(shards)) + tarfile.RECORDSIZE * len(todo)
        summary.by_old_sizes = options.shrinking is not None
        summary.free = self.place.check_space(summary.needed, summary.by_old_sizes)
        summary.planned = options.dry_run
        if options.dry_run:
            return
        self.place.clear(names, todo, this, options.overwrite)
        if not todo:
            return

        def take(number: int, row: Mapping[str, Any]) -> None:
            summary.add_shard(json.loads(row["target"]))
            summary.written += 1

        client = self._client()
        targets = [Target.of_file(self.place.target.path, names[number]) for number in todo]
        tasks = file_tasks(pack, shards.only(todo), "pack-shard", client)
        done = ExportSummary(self.place.target.path).looked_up
        run_targets(tasks, client, targets, done, take)
        summary.failed_shards = done.failed_shards


def _behind_links(url: str) -> str:
    return url if is_remote(url) else os.path.realpath(local_path(url))


def _stop_at(failed: Mapping[str, str], what: str) -> None:
    """Which samples there are must be known before it is decided where they go."""
    if failed:
        name, why = next(iter(failed.items()))
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise ShardError(
            f"{name}{more}: {what}, and no tar was written: {why}. Mend it, or leave it out, and run again"
        )
