"""`ExportSummary`: what an export did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from curator_dask.outputs.content_told import card_lines, content_lines, trouble_lines
from curator_dask.outputs.cropping import CropCount
from curator_dask.outputs.earlier_told import earlier_lines
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.first_told import first_lines
from curator_dask.outputs.groups import GroupCount, Grouped, counts_of, group_lines
from curator_dask.outputs.image_lines import add_images
from curator_dask.outputs.left_out import UNBLURRED, is_without_file, take_out
from curator_dask.outputs.reader_habits import reader_habits
from curator_dask.outputs.splits import SplitCount
from curator_dask.runs.summary import SaveSummary, installed_versions
from curator_dask.webdataset.layouts import EMPTY

if TYPE_CHECKING:
    from curator_dask.outputs.earlier import EarlierTars

_FEW = 20  # shards that are named


@dataclass
class ExportSummary:
    """What an export did; ``rows == kept + earlier + filtered + missing``.

    Attributes
    ----------
    path
        Where the tars are.
    rows, kept, filtered, missing
        Rows that were looked at; those whose samples are in the new tars; those that did not pass, with those that
        `filter`, `top` and `without` of the dataset, or a pipeline's stages, have left out; and those that pass, but
        whose sample is not in a tar, or not whole, or has something to be blurred and cannot be.
    unit
        What is counted: rows, or (whole) samples whose images are rows.
    earlier
        Rows whose samples are in tars that stay as they are, where new ones are added.
    earlier_samples, earlier_shards, earlier_bytes
        All samples of these tars, how many tars there are, and their bytes.
    earlier_fields
        By suffix, how many of these samples have it.
    earlier_errors
        As `errors`, of the rows of `earlier`.
    outdated
        Rows of `earlier` that would not pass today.
    without_row
        Samples of `earlier_samples` of which there is no row.
    left_columns
        Columns of the rows that the new tars do not have, as those that stay lack them.
    passing, unknown
        By clause of the condition, rows that pass it alone, and rows of which it says nothing.
    reasons, examples
        Why samples are missing: how many by kind of reason, and a few of each.
    errors
        Of the samples that are kept, those whose row has an ``image_error``, by kind of reason.
    shards, written, skipped
        The new tars, those of them that were written in this call, and those that were finished before.
    emptied
        Names of new tars that are not there, as none of their samples could be blurred.
    part
        Of a part, its ``number`` (counted from 0) and how many there are (``of``), how many new tars it has
        (``shards``) and how many there are in all (``all_shards``). What is counted of tars is of this part alone, rows
        and samples are of all. None: there are no parts.
    failed_shards
        New tars that could not be written, with the reason; a rerun tries them again.
    splits
        By name, how many samples and tars each has, and what was asked for; empty where there are none.
    groups
        By folder (``en``, ``train/en``), the same of rows of one value, and the value.
    folders
        Of each value, of tars that stay too: itself, and the name of its folder.
    split_notes
        What is to be known of them.
    notes
        What is to be known of how many tars there are.
    bytes
        Of all new tars that there are; those of splits with the tars that stay.
    needed, free
        Bytes that the others were estimated to take before they were written, with what lies beside them; and those
        that were free then, None in a store.
    by_old_sizes
        Whether that is by the sizes that images had before they were made smaller.
    format
        What the samples are in: ``"webdataset"`` (tars) or ``"parquet"``; `shards` are files of it.
    planned
        Nothing was written: this is what an export would do.
    fields
        By suffix, how many samples have it.
    habits
        Which readers will see the new tars differently from what they hold.
    no_index
        By tar, why it has no index.
    json_left_alone
        Samples whose JSON could not be extended, as it is no object: it is as it was.
    images_smaller, images_converted
        Images that were made smaller; and those that were small enough, and were written in another format.
    image_bytes_before, image_bytes_after
        Of these together, what they were and what they are.
    images_grown
        Of these, whose file is larger than it was.
    images_left, images_left_examples
        Images that are as they were though they are too large, or of another format than was asked for: how many by
        kind of reason, and a few of each. The manifest has all of them.
    images_blurred, regions_blurred
        Images of which regions were blurred, and these.
    images_beside_blurred
        Of these samples, those with further images, which are as they were.
    crops
        Images that were cropped to a size.
    blur
        Column of the boxes, where regions were to be blurred.
    strip_metadata
        What metadata was to be taken out of images; empty: none.
    images_stripped, stripped_bytes
        Image files from which some was taken, and how many bytes that was.
    texts_stripped
        ``.json`` members whose text of EXIF was cut down to the orientation.
    twins_lost
        Rows that were left out as duplicates of a sample that could not be blurred, or cropped.
    twins_filtered, next_best
        Rows that pass, and went for a better twin that does not; and those that stay in the place of such a twin.
    labels
        Where boxes of some labels alone are blurred: how many have each of these, and each of the others that are
        most frequent in a tar.
    no_caption
        Samples whose column of captions is null: their ``.txt`` is as it was, or as all have one, empty.
    kept_caption
        Of these, the samples that have a ``.txt`` of their own, which is as it was.
    empty_caption
        Samples whose column of captions has no text, or white space alone: so has their ``.txt``.
    no_vector
        By suffix of the members that vectors became, how many samples have none, as the vector is null, or has null
        among its numbers.
    broken_vector
        Of these, those with null among the numbers.
    no_image
        Of an export to Parquet, samples without an image: theirs is null.
    members_left
        Of such an export, members that are in no file of it, by suffix.
    card
        Path or URL of the card; empty where this export has none.
    own_card
        There is a ``README.md`` that was not written by this export, so no card was written.
    looked_up
        What was noticed of the tars that were copied from.
    seconds
        Of this call.
    """

    path: str
    rows: int = 0
    kept: int = 0
    filtered: int = 0
    missing: int = 0
    earlier: int = 0
    earlier_samples: int = 0
    earlier_shards: int = 0
    earlier_bytes: int = 0
    earlier_fields: dict[str, int] = field(default_factory=dict)
    earlier_errors: Counter[str] = field(default_factory=Counter)
    outdated: int = 0
    without_row: int = 0
    left_columns: list[str] = field(default_factory=list)
    passing: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    shards: int = 0
    written: int = 0
    skipped: int = 0
    emptied: list[str] = field(default_factory=list)
    part: dict[str, int] | None = None
    failed_shards: dict[str, str] = field(default_factory=dict)
    splits: dict[str, SplitCount] = field(default_factory=dict)
    groups: dict[str, GroupCount] = field(default_factory=dict)
    folders: list[list[str | None]] = field(default_factory=list)
    split_notes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    bytes: int = 0
    needed: int = 0
    free: int | None = None
    by_old_sizes: bool = False
    format: str = "webdataset"
    planned: bool = False
    unit: str = "row"
    fields: Counter[str] = field(default_factory=Counter)
    habits: list[str] = field(default_factory=list)
    no_index: dict[str, str] = field(default_factory=dict)
    json_left_alone: list[str] = field(default_factory=list)
    no_caption: int = 0
    kept_caption: int = 0
    empty_caption: int = 0
    images_smaller: int = 0
    images_converted: int = 0
    image_bytes_before: int = 0
    image_bytes_after: int = 0
    images_grown: int = 0
    images_blurred: int = 0
    regions_blurred: int = 0
    images_beside_blurred: int = 0
    crops: CropCount = field(default_factory=CropCount)
    blur: str = ""
    strip_metadata: str = ""
    images_stripped: int = 0
    stripped_bytes: int = 0
    texts_stripped: int = 0
    twins_lost: int = 0
    twins_filtered: int = 0
    next_best: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    images_left: Counter[str] = field(default_factory=Counter)
    images_left_examples: dict[str, list[str]] = field(default_factory=dict)
    no_vector: Counter[str] = field(default_factory=Counter)
    broken_vector: Counter[str] = field(default_factory=Counter)
    no_image: int = 0
    members_left: Counter[str] = field(default_factory=Counter)
    card: str = ""
    own_card: bool = False
    looked_up: SaveSummary = field(default_factory=lambda: SaveSummary("", opened=False))
    seconds: float = 0.0

    @property
    def damaged_shards(self) -> dict[str, str]:
        """Urls of tars that are cut or damaged, with what is wrong: the samples before the fault are exported."""
        return self.looked_up.damaged_shards

    @property
    def complete(self) -> bool:
        """Every new tar is there, and every tar was read to its end."""
        return not (self.failed_shards or self.damaged_shards)

    @property
    def empty(self) -> bool:
        """There is no sample, neither new nor in tars that stay."""
        return not (self.kept or self.earlier_samples)

    def add_file(self, report: Mapping[str, Any]) -> None:
        """Count what was looked up of a file (`curator_dask.outputs.selecting`)."""
        self.rows += report["rows"]
        self.unit = report.get("unit", self.unit)
        self.kept += report["kept"]
        self.filtered += report["filtered"]
        self.missing += report["failed"]
        self.earlier += report.get("in_tars", 0)
        self.outdated += report.get("outdated", 0)
        self.earlier_errors.update(report.get("errors_in_tars", {}))
        self.fields.update(report["fields"])
        self.errors.update(report.get("errors", {}))
        for suffix, counts in report.get("vectors", {}).items():
            self.fields[suffix] += counts["members"]
            self.no_vector[suffix] += counts["null"] + counts["broken"]
            self.broken_vector[suffix] += counts["broken"]
        if pictures := report.get("pictures"):
            self.no_image += pictures["none"]
            self.members_left.update(pictures["left"])
        for mine, theirs in ((self.passing, report["passing"]), (self.unknown, report["unknown"])):
            for clause, count in theirs.items():
                mine[clause] = mine.get(clause, 0) + count

    def add_left_out(self, facts: Mapping[str, Mapping[str, Any]]) -> None:
        """Count rows that steps have left out before, by shard, as `SaveSummary.filtered` has them."""
        total = sum(fact["count"] for fact in facts.values())
        self.rows += total
        self.filtered += total

    def add_shard(self, report: Mapping[str, Any]) -> None:
        """Count a new tar that is there (`curator_dask.outputs.packing`)."""
        self.bytes += report["bytes"]
        folder = report.get("split", report["name"].rpartition("/")[0])
        for count in self.parts_of(folder):
            count.bytes += report["bytes"]
        self.json_left_alone += report["json_left_alone"]
        self.no_caption += report.get("no_caption", 0)
        self.empty_caption += report.get("empty_caption", 0)
        self.kept_caption += report.get("kept_caption", 0)
        self.fields.update(report.get("added", {}))  # exports before did not say it
        if images := report.get("images"):
            add_images(self, images)
        if lost := report.get(UNBLURRED):
            take_out(self, lost, self.parts_of(folder))
        if report["no_index"]:
            self.no_index[report["name"]] = report["no_index"]
        if is_without_file(report):
            self.emptied.append(report["name"])

    def leave_out_emptied(self) -> None:
        """Count no longer those new tars that are not there: once, when all are written."""
        self.shards -= len(self.emptied)
        for name in self.emptied:
            for count in self.parts_of(name.rpartition("/")[0]):
                count.shards -= 1

    def note_earlier(self, earlier: EarlierTars, places: Sequence[np.ndarray]) -> None:
        """Count what is in tars that stay, with the places of those samples that there are rows of, by file."""
        self.earlier_samples, self.earlier_shards = len(earlier), len(earlier.there)
        self.earlier_bytes = sum(report["bytes"] for report in earlier.reports)
        self.earlier_fields = dict(earlier.fields)
        self.without_row = len(earlier) - len(np.unique(np.concatenate([np.zeros(0, np.int64), *places])))

    def in_all(self) -> tuple[Counter[str], int]:
        """By suffix, how many samples have it; and how many samples there are: in tars that stay, too."""
        return self.fields + Counter(self.earlier_fields), self.kept + self.earlier_samples

    def with_earlier(self, earlier: EarlierTars | None) -> ExportSummary:
        """The same of all tars together, with those that stay."""
        if earlier is None or not earlier.names:
            return self
        found = replace(
            self,
            fields=Counter(self.fields),
            errors=self.errors + self.earlier_errors,
            labels=Counter(self.labels),
            images_left=Counter(self.images_left),
            crops=replace(self.crops),
            json_left_alone=[*self.json_left_alone],
            images_left_examples={kind: [*some] for kind, some in self.images_left_examples.items()},
            no_index=dict(self.no_index),
            emptied=[],
        )
        found.splits, found.groups = {}, {}  # these have all tars already
        for report in earlier.reports:  # samples that these lack are counted where their rows are looked at
            found.add_shard({**report, UNBLURRED: None})
        found.fields, found.kept = self.in_all()
        found.shards += self.earlier_shards
        found.splits, found.groups = self.splits, self.groups
        return found

    def note_splits(
        self, counts: Mapping[str, SplitCount], notes: Sequence[str], earlier: EarlierTars | None = None
    ) -> None:
        """Say how samples are shared out, with the tars that stay."""
        self.splits, self.split_notes = dict(counts), list(notes)
        for name, report in () if earlier is None else zip(earlier.splits, earlier.reports, strict=True):
            if name in self.splits:
                self.splits[name].bytes += report["bytes"]

    def note_groups(self, parts: Mapping[str, int], grouped: Grouped, earlier: EarlierTars | None) -> None:
        """Say how samples go to folders of one value, with the tars that stay."""
        there = () if earlier is None else zip(earlier.folders, earlier.reports, strict=True)
        self.groups = counts_of(parts, grouped, there)
        self.folders = [[value, name] for value, name in grouped.names.items()]

    def note_shards(self, folders: Iterable[str]) -> None:
        """Count the tars of each split, and of each value: of each tar its folder."""
        for folder in folders:
            for count in self.parts_of(folder):
                count.shards += 1

    def parts_of(self, folder: str) -> list[SplitCount]:
        """The counts that tars of a folder belong to."""
        found = (self.splits.get(folder.partition("/")[0]), self.groups.get(folder))
        return [count for count in found if count is not None]

    def note_habits(self, options: ExportOptions, odd_keys: int) -> None:
        """Say which readers will see the tars differently, of which so many keys are odd."""
        fields, samples = self.in_all()
        filled = [name for name in EMPTY if self.earlier_fields.get(name, 0) == self.earlier_samples]
        self.habits = reader_habits(options, fields, samples, filled, odd_keys)

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-able, with what was noticed of the tars, and the versions of what ran."""
        own = {name: value for name, value in vars(self).items() if name != "looked_up"}
        own |= {name: dict(value) for name, value in own.items() if isinstance(value, Counter)}
        noticed = ("damaged_shards", "orphans", "duplicates", "unread")
        return {
            **own,
            "splits": {name: vars(count) for name, count in self.splits.items()},
            "crops": vars(self.crops),
            "groups": {name: vars(count) for name, count in self.groups.items()},
            "complete": self.complete,
            **{name: getattr(self.looked_up, name) for name in noticed},
            "versions": installed_versions(),
        }

    def __str__(self) -> str:
        noun = "Parquet file" if self.format == "parquet" else "tar"
        size, total = self.bytes + (self.needed if self.planned else 0), self.kept + self.earlier_samples
        lines = first_lines(self, noun, size) + earlier_lines(self, size)
        lines += [f"  {name}: {count.told(total, noun)}" for name, count in self.splits.items()]
        lines += group_lines(self.groups, total, noun)
        lines += [f"  {note}" for note in (*self.split_notes, *self.notes)]
        for clause, count in self.passing.items():
            null = f", {self.unknown[clause]:,} unknown (null)" if self.unknown.get(clause) else ""
            lines.append(f"  {clause}: {count:,} of the rows pass{null}")
        lines += trouble_lines(self.errors, self.reasons, self.examples)
        lines += [f"  {noun} failed: {name}: {why}" for name, why in list(self.failed_shards.items())[:_FEW]]
        lines += self.looked_up.remark_lines() + content_lines(self)
        lines += [f"  other readers: {each}" for each in self.habits] + card_lines(self.card, self.own_card)
        return "\n".join(lines)
