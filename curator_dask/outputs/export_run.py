"""One export, from files of rows to new tars: samples looked up, shared out, written; and what lies beside them."""

from __future__ import annotations

import json
import logging
import posixpath
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from curator_dask.errors import ShardError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.columns import vectors_in
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import read_record
from curator_dask.outputs.appending import (
    DIGITS,
    VECTORS,
    as_before,
    kinds_of,
    settings_before,
    settings_of,
)
from curator_dask.outputs.card import Making, card_mark, card_of
from curator_dask.outputs.dry_run import count_taken_down
from curator_dask.outputs.earlier import EarlierTars, KnownTars
from curator_dask.outputs.encoded import Encoded
from curator_dask.outputs.export_columns import schema_beside, schema_of
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.export_place import WITHOUT, ExportPlace
from curator_dask.outputs.export_plan import Stays, bytes_of, plan_shards
from curator_dask.outputs.export_sizes import check_sizes, put_sizes
from curator_dask.outputs.export_summary import ExportSummary
from curator_dask.outputs.export_tables import in_tables, weighing_of
from curator_dask.outputs.groups import GROUPS
from curator_dask.outputs.left_out import UNBLURRED, is_without_file, twins_lost
from curator_dask.outputs.looking_up import look_up
from curator_dask.outputs.made_members import MadeMembers
from curator_dask.outputs.mixing import rows_laid_down
from curator_dask.outputs.new_keys import NewKeys
from curator_dask.outputs.packing import PackShard
from curator_dask.outputs.removed import check_removed, check_shards
from curator_dask.outputs.saving import check_copied_apart
from curator_dask.outputs.selecting import FileRows, Folder, SelectSamples, stop_at
from curator_dask.outputs.sharding import NewShards
from curator_dask.outputs.twins import find_twins
from curator_dask.outputs.twins_told import TWINS
from curator_dask.outputs.unique_keys import check_keys
from curator_dask.outputs.vector_members import VectorMember, check_new, vector_members
from curator_dask.outputs.weighing import Weighing
from curator_dask.runs.parts import told_part
from curator_dask.runs.settle import file_tasks, run_targets
from curator_dask.runs.targets import Target
from curator_dask.storage import Options
from curator_dask.threads import in_threads

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger("curator_dask")


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
        self._shrinking = None if options.shrinking is None else options.shrinking.ready()
        latents = None if self._shrinking is None else self._shrinking.latents
        self._made = MadeMembers(latents, tuple(each.ready() for each in options.states))
        self._summary = self._begun()
        self._vectors: tuple[VectorMember, ...] = ()  # columns that become members
        self._kinds: dict[str, Any] = {}  # and of which numbers these are, in all tars
        self._sizes: dict[str, int] = {}  # samples of the tars that are there
        self._columns = pa.schema([])  # that the samples have
        self._rows: tuple[Folder, Sequence[str]] = (Folder(""), ())  # and the files that they are from
        self._this = ""  # what tells this export from others
        self._earlier: EarlierTars | None = None  # tars that stay, where others are added
        self._taken: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # by file, rows in them, and which samples
        self._before: Mapping[str, Any] = {}  # by which settings they were written
        self._settings: dict[str, Any] = {}

    def done(
        self, started: float, left_out: Mapping[str, Any] | None = None, making: Making | None = None
    ) -> ExportSummary:
        """The summary, which is logged, with the rows that a frame's own steps have left out; and the card."""
        self._summary.add_left_out(left_out or {})
        self._summary.leave_out_emptied()
        options = self._options
        whole = self.place.part is None
        if options.edits and options.without and whole and not (options.append or options.dry_run):
            unblurred = self.place.folder(UNBLURRED)
            self._summary.twins_lost = twins_lost(unblurred, options.without, self._rows[0].options)
        if whole and not options.dry_run:
            self.place.remove_emptied()
        if options.card and whole and not options.dry_run and not self._summary.failed_shards:
            self._put_card(making)
        self._summary.seconds = time.monotonic() - started
        logger.info("%s", self._summary)
        return self._summary

    def write(self, rows: Folder, names: Sequence[str]) -> None:
        """Look up the samples of files with rows, and write the tars."""
        self._rows = (rows, names)
        if not self._options.append:
            self._write(rows, names)
            return
        known = KnownTars.of(self.place)
        # First as the call that was interrupted, whose tars then are the same; rows may be others since.
        if known.interrupted and self._write(rows, names, known.before, as_before=True):
            return
        self._summary = self._begun()
        self._write(rows, names, known.finished)

    def _begun(self) -> ExportSummary:
        return ExportSummary(
            self.place.target.path, format=self._options.format, blur=self._options.blur or ""
        )

    def _write(
        self,
        rows: Folder,
        names: Sequence[str],
        stay: Sequence[str] | None = None,
        as_before: bool = False,
    ) -> bool:
        """The same, with tars that stay; False: it would be another export than the one before, and was not done."""
        selected = self.place.folder("samples")
        self._earlier = None if stay is None else EarlierTars.read(self.place, stay)
        self._before = settings_before(self.place, self._options, self._encoded) if stay else {}
        every = names
        try:
            reports = self._select(rows, selected, names, self._weighing(rows, names))
        except ShardError:
            if as_before:  # shards may be gone whose samples are all in tars that it has finished
                return False
            raise
        reports = {name: report for name, report in reports.items() if report["kept"] or stay is None}
        names = [*reports]
        check_new(self._vectors, [report["fields"] for report in reports.values()])
        self._made.check_new([report["fields"] for report in reports.values()])
        urls = {url for report in reports.values() for url in report["stamps"]}
        tables = {"left out": self._options.without, "kept together": self._options.split_groups}
        for what, path in tables.items():
            if path is not None:
                check_shards(path, urls, what, rows.options)
        check_copied_apart(urls, self.place.target.path)
        if self._earlier is not None and not self._summary.earlier:
            self._earlier.warn_of_moved(urls)
        odd = sum(report["odd_keys"] for report in reports.values())
        self._summary.note_habits(self._options, odd)
        if not self._options.sequential:
            check_keys(selected, names, self._earlier)
        stays = Stays()
        if self._earlier is not None:
            folders = dict(self._before.get(GROUPS, []))
            stays = Stays(self._earlier, self._taken, self._before.get(DIGITS), folders)
        shards = plan_shards(self._options, self._summary, rows, selected, reports, self._id_col, stays)
        pack = self._packing(rows, selected, shards, every, reports)
        total_bytes = bytes_of(self._options, self._summary, rows, reports)
        if not self._pack(pack, shards, total_bytes, as_before):
            return False
        self._summary.note_habits(self._options, odd)  # images may have other suffixes now
        return True

    def _weighing(self, rows: Folder, names: Sequence[str]) -> Weighing | None:
        """What samples will weigh, where that is not what their members do; what cannot be written is refused."""
        if self._options.is_tables:
            return weighing_of(rows, names, self._options, self._id_col)
        if not self._options.npy:
            return None
        found = schema_of(rows, names)
        self._vectors = vector_members(self._options.npy, found, self._options.portable)
        self._kinds = kinds_of(self.place.target.path, self._before.get(VECTORS, {}), self._vectors, found)
        return Weighing(self._vectors)

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
            "" if options.without is None else check_removed(options.without, rows.options),
            weighing,
            samples=options.whole,
        )
        lost: Mapping[str, Mapping[int, str]] = {}
        if (earlier := self._earlier) is not None:
            self._taken, lost = earlier.look_up(rows, names, self._id_col, options.edits)
            summary.note_earlier(earlier, [places for _, places in self._taken.values()])
        taken = {name: places for name, (places, _) in self._taken.items()} if earlier is not None else {}
        twins = find_twins(rows, names, taken, options, self._id_col)
        summary.twins_filtered, summary.next_best = twins.lost, twins.staying
        none = np.empty(0, np.int64)
        asked = {
            name: FileRows(name, taken.get(name, none), lost.get(name, {}), twins.of(name)) for name in names
        }
        reports = look_up(select, [*asked.values()], self.place, self._client, summary.looked_up)
        stop_at(summary.looked_up.failed_shards, "its samples could not be looked up")
        for name in names:
            summary.add_file(reports[name])
        summary.reasons, summary.examples = summary.looked_up.reasons, summary.looked_up.examples
        logger.info("%d of %d rows have a sample for %s", summary.kept, summary.rows, self.place.target.path)
        return reports

    def _packing(
        self,
        rows: Folder,
        selected: Folder,
        shards: NewShards,
        names: Sequence[str],
        reports: Mapping[str, Mapping[str, Any]],
    ) -> PackShard:
        options, summary, shrinking = self._options, self._summary, self._shrinking
        made = () if shrinking is None else tuple(shrinking.made)
        record = read_record(rows.file(names[0]), rows.options) if names else None
        id_col = (record.id_col if record else None) or self._id_col
        options.check_made(record)
        new_keys = None
        if options.sequential:
            planned = options.shard_bytes is not None or options.shards is not None
            largest = shards.largest() if planned else options.samples_per_shard
            digits = len(str(largest - 1)) if largest > 1 else 0  # of the last number in a shard
            digits = self._before.get(DIGITS, digits)
            new_keys = NewKeys(options.max_shards, digits, options.old_id_col)
        text_keys = bool(options.sequential or options.portable or options.samples)
        found = schema_of(rows, names)
        if self._encoded is not None:
            found = found.remove(found.get_field_index(self._encoded.column))
        columns = options.json_columns
        if options.metadata == "json":
            hidden = {URL_COLUMN, id_col, *vectors_in(found), *(each.name for each in made)}
            every = (name for name in found.names if name in columns or name not in hidden)
            columns = tuple(dict.fromkeys([*every, *columns]))
        if options.is_tables and options.metadata is None:
            found = pa.schema([found.field(id_col)])
        beside = schema_beside(found, id_col, text_keys, options.old_id_col, made)
        if self._earlier is not None and self._earlier.names:
            first = pa.schema([])
            if options.metadata == "parquet":
                tables = [f"{name}.parquet" for name in self._earlier.there]
                first = schema_of(self.place.target, tables[:1]) if tables else beside
                # Later ones may say of what type a column of null is.
                if any(map(pa.types.is_null, first.types)):
                    first = schema_of(self.place.target, tables)
            columns, beside, left = as_before(
                self.place.target.path, options, self._before, first, columns, beside
            )
            summary.left_columns += left
        in_keys = None if new_keys is None else new_keys.sample_digits
        self._settings = settings_of(options, self._encoded, in_keys, columns)
        if options.without is not None:
            self._settings[WITHOUT] = check_removed(options.without, rows.options)
            self._settings[TWINS] = [summary.twins_filtered, summary.next_best]
        self._settings |= self._made.settings(self.place.target.path, self._before)
        if self._kinds:
            self._settings[VECTORS] = self._kinds
        if summary.folders:
            self._settings[GROUPS] = summary.folders
        there, samples = summary.in_all()
        known = {each.name: each for each in (*found, *made)}
        self._columns = (
            beside if options.metadata == "parquet" else pa.schema([known[each] for each in columns])
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
            options.empty(there, samples),
            options.index,
            self._encoded,
            options.caption,
            shrinking,
            self._vectors,
            self._made.states,
        )
        if not options.is_tables:
            return pack
        return in_tables(pack, beside, shards.totals, options, summary.fields, reports.values())

    def _pack(self, pack: PackShard, shards: NewShards, total_bytes: int, as_before: bool = False) -> bool:
        """Write the tars; see `_write`."""
        summary, told = self._summary, self.place.told
        stay = None if self._earlier is None else self._earlier.names
        summary.shards, part = len(shards), self.place.part
        new = [pack.name(*shards.place(number)) for number in range(len(shards))]
        mine = [number for number, name in enumerate(new) if part is None or part.takes(name)]
        finished = in_threads(lambda number: pack.finished(shards[number]), range(len(shards)))
        todo = [number for number, footer in enumerate(finished) if footer is None]
        for footer in (finished[number] for number in mine):
            if footer is not None and footer.record is not None:
                self._add_shard(footer.record.report or {})
        doing = sorted({*todo} & {*mine})
        summary.skipped = len(mine) - len(doing) - len(summary.emptied)
        summary.part = None if part is None else told_part(part, len(mine), len(new))
        names = [*(stay or ()), *new]
        folders = [] if self._earlier is None else [posixpath.dirname(name) for name in self._earlier.there]
        summary.note_shards([*folders, *(shards.place(number)[0] for number in range(len(shards)))])
        self._this = fingerprint({"marks": [pack.mark(shards[number]) for number in range(len(shards))]})
        if as_before and self._this != told.get("export"):
            return False
        if stay and not new:  # nothing is added
            self._this = str(told.get("export"))
        options = self._options
        if options.tells_sizes:
            check_sizes(self.place.target, names)

        def clear(numbers: Sequence[int], only_look: bool = False) -> None:
            at, settings = [len(names) - len(new) + number for number in numbers], self._settings
            how = (names, at, self._this, options.overwrite)
            self.place.clear(*how, only_look=only_look, settings=settings, stay=stay)

        self.place.check_parts_at_work(self._this)
        clear(todo, only_look=True)
        summary.needed = total_bytes * len(doing) // max(1, len(shards)) + tarfile.RECORDSIZE * len(doing)
        summary.by_old_sizes = options.shrinking is not None
        summary.free = self.place.check_space(summary.needed, summary.by_old_sizes)
        summary.planned = options.dry_run
        if options.dry_run:
            count_taken_down(pack, [shards[number] for number in doing], summary)
            return True
        if new or not stay or names != sorted(self.place.tars):
            clear(doing)  # what the tars of other parts have is theirs to remove
        if doing:
            self._pack_all(pack, shards.only(doing), [new[number] for number in doing])
        self.place.check_held()
        if part is None:
            is_wanted = options.index or options.metadata == "parquet"
            self._made.put(self.place.target, is_wanted, not summary.failed_shards)
        if options.tells_sizes and part is None:
            there = () if self._earlier is None else self._earlier.reports
            sizes = {each["name"]: each["rows"] for each in there if not is_without_file(each)}
            put_sizes(self.place.target, sizes | self._sizes)
        return True

    def _pack_all(self, pack: PackShard, shards: NewShards, names: Sequence[str]) -> None:
        """Write tars, by their names."""
        summary = self._summary

        def take(number: int, row: Mapping[str, Any]) -> None:
            report = json.loads(row["target"])
            self._add_shard(report)
            summary.written += not is_without_file(report)

        targets = [Target.of_file(self.place.target.path, name) for name in names]
        done = ExportSummary(self.place.target.path).looked_up
        spare = None if summary.free is None else summary.free - summary.needed
        with rows_laid_down(pack, shards, names, self.place, self._client, spare) as pack:
            tasks = file_tasks(pack, shards, "pack-shard", client := self._client())
            run_targets(tasks, client, targets, done, take, held=self.place.check_held)
        summary.failed_shards = done.failed_shards

    def _add_shard(self, report: Mapping[str, Any]) -> None:
        self._summary.add_shard(report)
        if not is_without_file(report):
            self._sizes[report["name"]] = report["rows"]

    def _put_card(self, making: Making | None) -> None:
        """Write the card, where there is none of a user's."""
        options, (rows, names) = self._options, self._rows

        def text() -> str:
            found = in_threads(lambda name: read_record(rows.file(name), rows.options), names)
            records = [record for record in found if record is not None]
            return card_of(self._summary.with_earlier(self._earlier), options, self._columns, records, making)

        of = fingerprint({"export": self._this, "card": card_mark(options, making)})
        self._summary.card = self.place.put_card(of, text) or ""
        self._summary.own_card = not self._summary.card
