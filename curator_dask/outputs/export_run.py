"""One export, from files of rows to new tars: samples looked up, shared out, written; and what lies beside them."""

from __future__ import annotations

import json
import logging
import os
import posixpath
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from curator_dask.errors import ConfigError, ShardError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.columns import vectors_in
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import read_record
from curator_dask.outputs.card import Making, card_mark, card_of
from curator_dask.outputs.choosing import read_rows
from curator_dask.outputs.encoded import Encoded
from curator_dask.outputs.export_columns import schema_beside, schema_of
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.export_place import ExportPlace
from curator_dask.outputs.export_sizes import check_sizes, put_sizes
from curator_dask.outputs.export_summary import ExportSummary
from curator_dask.outputs.export_tables import in_tables, weighing_of
from curator_dask.outputs.new_keys import NewKeys
from curator_dask.outputs.packing import PackShard
from curator_dask.outputs.removed import check_removed, check_shards
from curator_dask.outputs.saving import check_apart
from curator_dask.outputs.selecting import Folder, SelectSamples
from curator_dask.outputs.sharding import NewShards, ends_by_bytes, ends_by_count, ends_in_parts, shuffled
from curator_dask.outputs.shrinking import EXPORTED
from curator_dask.outputs.splitting import split_samples
from curator_dask.outputs.unique_keys import check_keys
from curator_dask.outputs.vector_members import VectorMember, check_new, vector_members
from curator_dask.outputs.weighing import Weighing
from curator_dask.runs.settle import file_tasks, run_targets
from curator_dask.runs.targets import Target
from curator_dask.storage import Options, absolute, is_remote, local_path
from curator_dask.threads import in_threads
from curator_dask.webdataset.stamps import stamp

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger("curator_dask")

_LINE_BYTES = 64  # of a member, about: in an index, and in the manifest


class ExportRun:
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
        self._summary = ExportSummary(place.target.path, format=options.format, blur=options.blur or "")
        self._vectors: tuple[VectorMember, ...] = ()  # columns that become members
        self._sizes: dict[str, int] = {}  # samples of the tars that are there
        self._columns = pa.schema([])  # that the samples have
        self._rows: tuple[Folder, Sequence[str]] = (Folder(""), ())  # and the files that they are from
        self._this = ""  # what tells this export from others

    def done(
        self, started: float, left_out: Mapping[str, Any] | None = None, making: Making | None = None
    ) -> ExportSummary:
        """The summary, which is logged, with the rows that a frame's own steps have left out; and the card."""
        self._summary.add_left_out(left_out or {})
        if self._options.card and not self._options.dry_run and not self._summary.failed_shards:
            self._put_card(making)
        self._summary.seconds = time.monotonic() - started
        logger.info("%s", self._summary)
        return self._summary

    def write(self, rows: Folder, names: Sequence[str]) -> None:
        """Look up the samples of files with rows, and write the tars."""
        selected = self.place.folder("samples")
        weighing = None
        if self._options.npy:
            found = schema_of(rows, names)
            self._vectors = vector_members(self._options.npy, found, self._options.portable)
            weighing = Weighing(self._vectors)
        elif self._options.is_tables:
            weighing = weighing_of(rows, names, self._options, self._id_col)
        reports = self._select(rows, selected, names, weighing)
        check_new(self._vectors, [report["fields"] for report in reports.values()])
        urls = {url for report in reports.values() for url in report["stamps"]}
        if self._options.without is not None:
            check_shards(absolute(self._options.without), urls)
        if self._options.split_groups is not None:
            check_shards(absolute(self._options.split_groups), urls, "kept together")
        # Else a tar might be written over while it is copied; a link may lead to one from elsewhere.
        for folder in {posixpath.dirname(url) for url in (*urls, *map(_behind_links, urls))}:
            check_apart(folder, self.place.target.path)
        odd = sum(report["odd_keys"] for report in reports.values())
        self._summary.note_habits(self._options, odd)
        if not self._options.sequential:
            check_keys(selected, names)
        shards = self._shards(rows, selected, reports)
        pack = self._packing(rows, selected, shards, reports)
        self._pack(pack, shards, self._bytes_of(rows, reports))
        self._rows = (rows, names)
        self._summary.note_habits(self._options, odd)  # images may have other suffixes now

    def _bytes_of(self, rows: Folder, reports: Mapping[str, Mapping[str, Any]]) -> int:
        """About what all tars take, with what lies beside them."""
        options, summary = self._options, self._summary
        total: int = sum(report["bytes"] for report in reports.values())
        if options.metadata == "parquet" and not options.is_tables:  # which are weighed with them
            sizes = in_threads(lambda name: stamp(rows.file(name), rows.options).size, list(reports))
            total += sum(sizes) * summary.kept // max(1, summary.rows)
        total += 0 if options.caption is None else 2 * tarfile.BLOCKSIZE * summary.kept
        return total + _LINE_BYTES * sum(summary.fields.values()) * (1 + options.index)

    def _select(
        self, rows: Folder, selected: Folder, names: Sequence[str], weighing: Weighing | None
    ) -> dict[str, Mapping[str, Any]]:
        options, summary = self._options, self._summary
        select = SelectSamples(
            rows,
            selected,
            self._shard_options,
            self._id_col,
            options.condition,
            options.filter_column,
            options.portable,
            options.without,
            "" if options.without is None else check_removed(absolute(options.without)),
            weighing,
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
        stop_at(summary.looked_up.failed_shards, "its samples could not be looked up")
        for name in names:
            summary.add_file(reports[name])
        summary.reasons, summary.examples = summary.looked_up.reasons, summary.looked_up.examples
        logger.info("%d of %d rows have a sample for %s", summary.kept, summary.rows, self.place.target.path)
        return {name: reports[name] for name in names}  # not as they were done

    def _shards(self, rows: Folder, selected: Folder, reports: Mapping[str, Mapping[str, Any]]) -> NewShards:
        options, names = self._options, list(reports)
        marks, counts = ([report[name] for report in reports.values()] for name in ("mark", "kept"))
        total = sum(counts)
        order = None if options.shuffle is None else shuffled(total, options.shuffle)
        parts = {"": total}  # samples of each split
        if options.sharing is not None:
            assigned = split_samples(options.sharing, selected, rows, names, self._id_col)
            self._summary.note_splits(assigned.counts, assigned.notes)
            order = np.arange(total) if order is None else order
            order = order[np.argsort(assigned.of[order], kind="stable")]
            parts = {name: count.samples for name, count in assigned.counts.items()}
        if options.shard_bytes is None:
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
            ends = ends_in_parts(
                [*parts.values()], lambda start, stop: ends_by_bytes(sizes[start:stop], room)
            )
        if (most := max(map(len, ends))) > 10**options.max_shards:
            raise ConfigError(
                f"{most} tars do not have numbers of {options.max_shards} digits: give max_shards (--max-shards),"
                " which is the number of digits, or more samples_per_shard (--samples-per-shard)"
            )
        splits = [(name, len(each)) for name, each in zip(parts, ends, strict=True)]
        return NewShards(names, marks, counts, np.concatenate(ends), order, splits=splits)

    def _packing(
        self, rows: Folder, selected: Folder, shards: NewShards, reports: Mapping[str, Mapping[str, Any]]
    ) -> PackShard:
        options, summary, shrinking = self._options, self._summary, self._options.shrinking
        names = list(reports)
        made = () if shrinking is None else tuple(EXPORTED)
        record = read_record(rows.file(names[0]), rows.options) if names else None
        id_col = (record.id_col if record else None) or self._id_col
        options.check_boxes({} if record is None else record.settings)
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
        if options.is_tables and options.metadata is None:
            found = pa.schema([found.field(id_col)])
        beside = schema_beside(found, id_col, text_keys, options.old_id_col, made)
        self._columns = (
            beside if options.metadata == "parquet" else pa.schema([found.field(each) for each in columns])
        )
        pack = PackShard(
            self.place.target,
            self.place.folder("manifest"),
            selected,
            rows,
            self._shard_options,
            options.max_shards,
            beside if options.metadata == "parquet" else None,
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
            self._vectors,
        )
        if not options.is_tables:
            return pack
        return in_tables(pack, beside, shards.totals, options, summary.fields, reports.values())

    def _pack(self, pack: PackShard, shards: NewShards, total_bytes: int) -> None:
        summary = self._summary
        summary.shards = len(shards)
        finished = in_threads(lambda number: pack.finished(shards[number]), range(len(shards)))
        todo = [number for number, footer in enumerate(finished) if footer is None]
        for footer in finished:
            if footer is not None and footer.record is not None:
                self._add_shard(footer.record.report or {})
        summary.skipped = len(shards) - len(todo)
        names = [pack.name(*shards.place(number)) for number in range(len(shards))]
        summary.note_shards([shards.place(number)[0] for number in range(len(shards))])
        self._this = fingerprint({"marks": [pack.mark(shards[number]) for number in range(len(shards))]})
        options = self._options
        if options.tells_sizes:
            check_sizes(self.place.target, names)
        self.place.clear(names, todo, self._this, options.overwrite, only_look=True)
        summary.needed = total_bytes * len(todo) // max(1, len(shards)) + tarfile.RECORDSIZE * len(todo)
        summary.by_old_sizes = options.shrinking is not None
        summary.free = self.place.check_space(summary.needed, summary.by_old_sizes)
        summary.planned = options.dry_run
        if options.dry_run:
            return
        self.place.clear(names, todo, self._this, options.overwrite)
        if todo:
            self._pack_all(pack, shards.only(todo), [names[number] for number in todo])
        if options.tells_sizes:
            put_sizes(self.place.target, self._sizes)

    def _pack_all(self, pack: PackShard, shards: NewShards, names: Sequence[str]) -> None:
        """Write tars, by their names."""
        summary = self._summary

        def take(number: int, row: Mapping[str, Any]) -> None:
            self._add_shard(json.loads(row["target"]))
            summary.written += 1

        client = self._client()
        targets = [Target.of_file(self.place.target.path, name) for name in names]
        tasks = file_tasks(pack, shards, "pack-shard", client)
        done = ExportSummary(self.place.target.path).looked_up
        run_targets(tasks, client, targets, done, take)
        summary.failed_shards = done.failed_shards

    def _add_shard(self, report: Mapping[str, Any]) -> None:
        self._summary.add_shard(report)
        self._sizes[report["name"]] = report["rows"]

    def _put_card(self, making: Making | None) -> None:
        """Write the card, where there is none of a user's."""
        options, (rows, names) = self._options, self._rows

        def text() -> str:
            found = in_threads(lambda name: read_record(rows.file(name), rows.options), names)
            records = [record for record in found if record is not None]
            return card_of(self._summary, options, self._columns, records, making)

        of = fingerprint({"export": self._this, "card": card_mark(options, making)})
        self._summary.card = self.place.put_card(of, text) or ""
        self._summary.own_card = not self._summary.card


def _behind_links(url: str) -> str:
    return url if is_remote(url) else os.path.realpath(local_path(url))


def stop_at(failed: Mapping[str, str], what: str) -> None:
    """Raise ShardError where files failed: which samples there are must be known before it is decided where they go."""
    if failed:
        name, why = next(iter(failed.items()))
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise ShardError(
            f"{name}{more}: {what}, and no tar was written: {why}. Mend it, or leave it out, and run again"
        )
