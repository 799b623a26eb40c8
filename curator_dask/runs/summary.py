"""`SaveSummary`: what a call of `save_metadata` did."""

from __future__ import annotations

import contextlib
import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from importlib import metadata
from typing import Any

import curator_dask
from curator_dask.frames.names import ERRORS_SUFFIX
from curator_dask.notebook import bars, table
from curator_dask.rows.found import answer_lines, before_lines, found_lines, some_of
from curator_dask.rows.remarks import CUT_AT, NOTHING_WRITTEN, add_up
from curator_dask.runs.parts import part_line
from curator_dask.words import counted, ranked

_EXAMPLES = 3  # of each reason, that the summary names
_KINDS = 10  # of what rows leave out, that it prints
_SHARDS = 20  # failed or damaged ones, that it prints
_PACKAGES = ("dask", "pandas", "pyarrow", "torch", "timm", "transformers", "pillow", "nvidia-dali-cuda130")


@dataclass
class SaveSummary:
    """What a call of `save_metadata` did.

    Attributes
    ----------
    path
        Where the files are; empty where nothing was written.
    rows, failed
        Rows that went through this call, and those of them whose image failed.
    dropped
        Of the failed ones, those written to a folder beside the output, `path` and ``.errors``, and not among the good
        ones.
    written, skipped
        Files written in this call, and files that were finished before.
    rows_before, failed_before
        Rows of files that were finished before, and those of them without a vector.
    failed_shards
        Names of shards that could not be read, or on which something else went wrong, with the reason; their
        rows are not in the output, and a rerun tries them again.
    damaged_shards
        Urls of shards that are cut or damaged, with what is wrong: the samples before the fault are in the output.
        Also those of whose samples no row names any: tar and Parquet do not belong together.
    orphans
        By the shard's url, samples of the tar that no row of its Parquet names: ``{"count": int, "examples":
        [key, ...]}``.
    imageless
        The same of samples without an image, where each image of a sample has a row: they have none.
    duplicates
        By the shard's url, member names that occur again in the tar, in the same form; the first is taken.
    unread
        By the shard's url, members of the tar that cannot be read, in the same form: links to what is not in the tar,
        sparse files.
    corrupt
        By the shard's url, images that were decoded as far as their data go, in the same form, each with what its
        decoder's library says of them.
    left_out
        By the shard's url, kinds of components (``.npy``) and fields of the JSON that rows from the tar do not take, in
        the same form.
    filtered
        By the shard's url, rows that a pipeline's stages left out, in the same form; ``by``: how many each did.
    not_made
        By the shard's url, columns of other runs' vectors and scores that lack some of its rows', as these are new or
        have changed, in the same form: their embedders, a retry, or ``score`` make them.
    text_truncated
        By the shard's url, rows with a caption that is longer than its model takes, in the same form.
    captions
        By the shard's url, texts that a model has written about images, in the same form; ``by``: how many were cut,
        and images about which it wrote nothing, of which the examples are.
    detections
        By the shard's url, images that a model which finds things has looked at, in the same form; ``by``: these by the
        prefix of its columns, those in which it has found something, and those with each label.
    answers
        By the shard's url, images that a model was asked about, in the same form; ``by``: these by the name of the
        question's columns, those for which it would rather answer otherwise, and rows that were not asked.
    reasons
        How many images failed for which kind of reason.
    earlier
        Of these, by kind of reason, those that had failed before this call, which has opened no image.
    examples
        For each kind of reason, a few ``shard key: reason``; none of those.
    seconds
        Of this call.
    startup_seconds
        Of these, until the first partition was handed out: most of it every worker loading the model.
    again
        Whether rows that had failed were tried again: then `rows` are these, and `failed` those that failed again.
    column
        Of the vectors, classes, captions or boxes that were tried again; empty else.
    made
        What an image has that has not failed, in words: ``"a vector"``; where there are no vectors ``"a class"``,
        ``"a caption"`` or ``"boxes"``.
    opened
        Whether images are opened for it.
    without_sample
        Failed rows that were not tried again, and are not among `rows`: their tars have no sample of theirs, and are as
        they were.
    shards
        By the name of each file, its ``rows``, how many ``failed``, for which ``reasons``, and whether it was finished
        ``before``.
    part
        Of a part of a run, its ``number`` (counted from 0) and how many there are (``of``), its ``shards`` and
        ``all_shards``; all else counts this part alone. None of a run of the whole.
    fingerprint
        Of all files together: the same where shards, model, package and arguments are. Empty of a retry, of more
        than 100,000 files, and where columns were added to files that are there.
    """

    path: str
    rows: int = 0
    failed: int = 0
    dropped: int = 0
    written: int = 0
    skipped: int = 0
    rows_before: int = 0
    failed_before: int = 0
    failed_shards: dict[str, str] = field(default_factory=dict)
    damaged_shards: dict[str, str] = field(default_factory=dict)
    orphans: dict[str, dict[str, Any]] = field(default_factory=dict)
    imageless: dict[str, dict[str, Any]] = field(default_factory=dict)
    duplicates: dict[str, dict[str, Any]] = field(default_factory=dict)
    unread: dict[str, dict[str, Any]] = field(default_factory=dict)
    corrupt: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, dict[str, Any]] = field(default_factory=dict)
    filtered: dict[str, dict[str, Any]] = field(default_factory=dict)
    not_made: dict[str, dict[str, Any]] = field(default_factory=dict)
    text_truncated: dict[str, dict[str, Any]] = field(default_factory=dict)
    captions: dict[str, dict[str, Any]] = field(default_factory=dict)
    detections: dict[str, dict[str, Any]] = field(default_factory=dict)
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    earlier: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    seconds: float = 0.0
    startup_seconds: float = 0.0
    again: bool = False
    column: str = ""
    made: str = "a vector"
    opened: bool = True
    without_sample: int = 0
    shards: dict[str, dict[str, Any]] = field(default_factory=dict)
    fingerprint: str = ""
    part: dict[str, int] | None = None

    @property
    def images_per_second(self) -> float:
        """Rows divided by the seconds after the start-up."""
        running = self.seconds - self.startup_seconds
        return self.rows / running if self.rows and running > 0 else 0.0

    @property
    def good(self) -> float:
        """Share of the images that have a vector, those of finished files too; 1.0 where there are none."""
        rows = self.rows + self.rows_before
        return 1.0 - (self.failed + self.failed_before) / rows if rows else 1.0

    @property
    def complete(self) -> bool:
        """Every shard was read to its end, and none was given up; images that failed do not count."""
        gave_up = self.reasons["gave up"] - self.earlier["gave up"]
        return not (self.failed_shards or self.damaged_shards or gave_up)

    def add(self, report: Mapping[str, Any]) -> None:
        """Count what `WritePartition` reports of a file."""
        self.rows += report["rows"]
        self.failed += report["failed"]
        self.dropped += report["dropped"]
        self.written += 1
        self.reasons.update(report["reasons"])
        self.earlier.update(report.get("earlier", {}))
        for reason, examples in report["examples"].items():
            # In whatever order files come: the first by name.
            self.examples[reason] = sorted([*self.examples.get(reason, []), *examples])[:_EXAMPLES]
        self._add_shard(report, before=False)
        self.add_remarks(report.get("remarks", {}))

    def add_finished(self, report: Mapping[str, Any]) -> None:
        """Count what is known of a file that was finished before."""
        self.rows_before += report["rows"]
        self.failed_before += report["failed"]
        self._add_shard(report, before=True)

    def _add_shard(self, report: Mapping[str, Any], before: bool) -> None:
        counts = {name: report[name] for name in ("rows", "failed")}
        reasons = dict(report.get("reasons", {}))
        self.shards[report["name"]] = {**counts, "reasons": reasons, "before": before}

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-able, with `good`, `complete`, `images_per_second` and the versions of what ran.

        ``column`` is there only where rows were tried again, and ``part`` of a part.
        """
        more = {name: getattr(self, name) for name in ("good", "complete", "images_per_second")}
        without = ["made", *([] if self.column else ["column"]), *([] if self.part else ["part"])]
        told = {name: value for name, value in vars(self).items() if name not in without}
        counts = {"reasons": dict(self.reasons), "earlier": dict(self.earlier)}
        return {**told, **counts, **more, "versions": installed_versions()}

    def add_remarks(self, remarks: Mapping[str, Mapping[str, Any]]) -> None:
        """Take what was noticed of the rows of a file, by url and kind (`curator_dask.rows.remarks`).

        What counts rows adds up over the files with a shard's rows.
        """
        kept: dict[str, dict[str, Any]] = {
            "damaged": self.damaged_shards,
            "orphans": self.orphans,
            "imageless": self.imageless,
            "duplicates": self.duplicates,
            "unread": self.unread,
            "corrupt": self.corrupt,
            "left-out": self.left_out,
            "filtered": self.filtered,
            "not-made": self.not_made,
            "text-truncated": self.text_truncated,
            "captions": self.captions,
            "detections": self.detections,
            "answers": self.answers,
        }
        for url, facts in remarks.items():
            known = {url: {kind: said[url] for kind, said in kept.items() if url in said}}
            add_up(known, {url: facts})
            for kind, fact in known[url].items():
                if kind in kept:  # a file of a later version may tell more
                    kept[kind][url] = fact

    def __str__(self) -> str:
        before = f"{counted(self.skipped, 'file')} finished before"
        held = before_lines(self.rows_before, self.failed_before, self.shards.values())
        held = [] if self.again else held
        if self.path and not self.written and not self.failed_shards:
            before = "no row had failed" if self.again else before
            if self.without_sample:
                has = counted(self.without_sample, "failed row", "has", "have")
                before = f"{has} no sample in the tar, and no tar has changed since"
            lines = [f"{self._what}: nothing to do, {before}; {self.seconds:.1f} s"]
            return "\n".join([*lines, *held, *self._own_lines(), *self._none_line(), *self.remark_lines()])
        dropped = f", {self.dropped:,} more in {self.path}{ERRORS_SUFFIX}" if self.dropped else ""
        own = self.failed - self.earlier.total()
        failed = counted(own, "failed image" if self.opened else "failed row")
        failed = f"; {failed}" if own or self.opened else ""
        rows = (
            f"{counted(self.rows - self.dropped, 'row')} in {counted(self.written, 'file')}{dropped}{failed}"
        )
        if self.again:
            now = self.rows - self.failed
            rows = f"{counted(self.rows, 'failed row')} tried again, {now:,}"
            rows += f" {'has' if now == 1 else 'have'} {self.made} now"
        if not self.path:
            rows = f"{counted(self.rows, 'row')} of {counted(self.written, 'shard')} computed{failed}"
        start = f"{self.startup_seconds:.1f} s of it start-up"
        rate = f"{self.images_per_second:.1f} {self._unit}/s"
        lines = [
            f"{self._what}: {rows}" if self.path else rows,
            *self._own_lines(),
            f"  {before}" if self.skipped else "",
            *held,
            f"  {self.seconds:.1f} s, {start}, then {rate}",
            *self._none_line(),
        ]
        for reason, count in ranked(self.reasons - self.earlier):
            lines.append(f"  {count:,} x {reason}, for example {some_of(self.examples.get(reason, []))}")
        if self.earlier:
            kinds = ", ".join(f"{count:,} {reason}" for reason, count in ranked(self.earlier))
            # A row counts once: one that fails anew is among those above.
            what = "other row" if own else "row"
            lines.append(f"  {counted(self.earlier.total(), what)} had failed in an earlier run: {kinds}")
        lines += self.shard_lines()
        return "\n".join(line for line in lines if line)

    @property
    def _unit(self) -> str:
        return "images" if self.opened else "rows"

    @property
    def _what(self) -> str:
        return f"{self.path}, {self.column}" if self.column else self.path

    def _own_lines(self) -> list[str]:
        """What is told before all else."""
        return [f"  {part_line(self.part)}"] if self.part else []

    def _none_line(self) -> list[str]:
        none = not self.good and not self.again
        return [f"  NONE of {counted(self.rows + self.rows_before, 'image')} has {self.made}"] if none else []

    def _repr_html_(self) -> str:
        counts = {
            "rows tried again" if self.again else "rows": self.rows,
            "failed images": self.failed,
            "of them in an earlier run": self.earlier.total(),
            "of them in a folder beside": self.dropped,
            "shards written": self.written,
            "shards failed": len(self.failed_shards),
            "files finished before": self.skipped,
            "rows of these": self.rows_before,
        }
        always = ("rows", "failed images", "shards written")
        rows = [(name, f"{count:,}") for name, count in counts.items() if count or name in always]
        rows.append(("seconds", f"{self.seconds:.1f}, {self.startup_seconds:.1f} of it start-up"))
        rows.append((f"{self._unit}/s then", f"{self.images_per_second:,.1f}"))
        examples = {reason: "; ".join(some) for reason, some in self.examples.items()}
        noticed = "".join(f"<li>{escape(line.strip())}</li>" for line in self.shard_lines())
        return (
            f"<div><b>{escape(self.path or 'computed')}</b>{table(rows)}"
            f"{bars(dict(self.reasons), examples)}{f'<ul>{noticed}</ul>' if noticed else ''}</div>"
        )

    def shard_lines(self) -> list[str]:
        """Which shards failed, and what was noticed of the others."""
        return [*_shard_lines("failed", self.failed_shards), *self.remark_lines()]

    def remark_lines(self) -> list[str]:
        """What was noticed of the tars."""
        return [
            *_shard_lines("damaged", self.damaged_shards),
            *_total_line("sample", "without a row in their shard's Parquet, not embedded", self.orphans),
            *_total_line("sample", "without an image, and so without a row", self.imageless),
            *_total_line("name", "used again in a tar, the first was taken", self.duplicates),
            *_total_line("member", "that cannot be read, left out", self.unread),
            *_total_line("image", "decoded as far as the data go", self.corrupt),
            *_left_out_line(self.left_out),
            *_total_line("row", f"filtered out{_by_stage(self.filtered)}", self.filtered),
            *_total_line(
                "column",
                "of other runs without values of rows that are new or have changed: run them again, or retry",
                self.not_made,
            ),
            *_total_line("caption", "longer than their model takes", self.text_truncated),
            *_caption_lines(self.captions),
            *found_lines(self.detections),
            *answer_lines(self.answers),
        ]


def installed_versions() -> dict[str, str]:
    """Of this package, of Python, and of what decides vectors and files, as far as it is installed."""
    found = {"curator-dask": curator_dask.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _shard_lines(what: str, shards: Mapping[str, str]) -> list[str]:
    lines = [f"  shard {what}: {name}: {reason}" for name, reason in list(shards.items())[:_SHARDS]]
    if len(shards) > _SHARDS:
        lines.append(f"  … and {len(shards) - _SHARDS} more shards {what}")
    return lines


def _left_out_line(facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The same kinds are in most shards: each is named once."""
    kinds = list(dict.fromkeys(kind for fact in facts.values() for kind in fact["examples"]))
    more = ", …" if len(kinds) > _KINDS else ""
    return [f"  in the tars, but not in the rows: {', '.join(kinds[:_KINDS])}{more}"] if kinds else []


def _by_stage(facts: Mapping[str, Mapping[str, Any]]) -> str:
    """How many rows each stage has left out, in words; empty where no stage has."""
    by: Counter[str] = Counter()
    for fact in facts.values():
        by.update(fact.get("by", {}))
    return f" ({', '.join(f'{count:,} by {stage}' for stage, count in by.items())})" if by else ""


def _caption_lines(facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """How many captions were cut, by the limit, and images about which nothing was written."""
    total, by = sum(fact["count"] for fact in facts.values()), Counter[str]()
    for fact in facts.values():
        by.update(fact.get("by", {}))
    cuts = {what: count for what, count in by.items() if what.startswith(CUT_AT)}
    silent = {
        url: {**fact, "count": count}
        for url, fact in facts.items()
        if (count := fact.get("by", {}).get(NOTHING_WRITTEN, 0))
    }
    return [
        *(
            f"  {count:,} of {counted(total, 'caption')} {'was' if count == 1 else 'were'} {what}: raise"
            " --max-new-tokens"
            for what, count in ranked(cuts)
        ),
        *_total_line("image", "about which the model wrote nothing", silent),
    ]


def _total_line(noun: str, rest: str, facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if not facts:
        return []
    some = [f"{url} {', '.join(fact['examples'])}" for url, fact in sorted(facts.items())[:_EXAMPLES]]
    total, shards = sum(fact["count"] for fact in facts.values()), len(facts)
    return [f"  {counted(total, noun)} {rest}, in {counted(shards, 'shard')}, for example {'; '.join(some)}"]
