"""`LinksSummary`: what was found in a crawl."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from curator_dask.crawls.rules import REASONS
from curator_dask.runs.summary import SaveSummary, installed_versions
from curator_dask.words import counted

_NAMED = 3  # files that the text names


@dataclass
class LinksSummary:
    """What `curator_dask.crawls.extract_links` has found.

    All ``images`` are in ``rows``, ``again``, ``removed`` or `left_out`.

    Attributes
    ----------
    path
        Of the table.
    files, read
        Of the crawl, and of these those that were read now, not by an earlier call.
    pages, images
        In them.
    rows
        Links in the table.
    again
        Images that are in the table already: the first stays, by the order of the files and of the page.
    removed
        Links that were taken down from the table (``curator-dask remove``).
    left_out
        Images that are not taken, by reason.
    passed_over
        Records that are too large, or not what they say they are.
    damaged
        Files that cannot be read to their end, and why: what stands before is taken.
    failed
        Files that could not be read, and why; the next call tries them again.
    output
        What was written, and what an earlier call had.
    seconds
        Of this call.
    """

    path: str
    files: int = 0
    read: int = 0
    pages: int = 0
    images: int = 0
    rows: int = 0
    again: int = 0
    removed: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    passed_over: int = 0
    damaged: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    output: SaveSummary | None = None
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """All files were read to their ends, and all is written."""
        return not self.damaged and not self.failed and (self.output is None or self.output.complete)

    def count(self, reports: Mapping[str, Mapping[str, Any]]) -> None:
        """Take what is known of the files that were read, by path."""
        counts: Counter[str] = Counter()
        for path, report in reports.items():
            counts.update(report["counts"])
            if report["damage"]:
                self.damaged[path] = report["damage"]
        self.pages, self.images = counts["pages"], counts["images"]
        self.again, self.passed_over = counts["again"], counts["passed_over"]
        self.left_out = {reason: counts[reason] for reason in REASONS if counts[reason]}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: the attributes, ``output`` as `SaveSummary.to_dict` gives it, and the versions of what ran."""
        output = None if self.output is None else self.output.to_dict()
        return {**vars(self), "complete": self.complete, "output": output, "versions": installed_versions()}

    def __str__(self) -> str:
        before = self.files - self.read - len(self.failed)
        lines = [
            f"{self.path}: {counted(self.rows, 'link')}, of {counted(self.images, 'image')} of"
            f" {counted(self.pages, 'page')} in {counted(self.files - len(self.failed), 'file')}"
            + (f" ({before:,} read before)" if before else ""),
            f"  {self.again:,} more stand there again" if self.again else "",
            *(f"  {count:,} {reason}" for reason, count in self.left_out.items()),
            f"  {self.removed:,} taken down" if self.removed else "",
            f"  {counted(self.passed_over, 'record')} too large, or not what they say"
            if self.passed_over
            else "",
        ]
        unwritten = {} if self.output is None else self.output.failed_shards
        for what, told in (
            ("damaged, read as far as they go", self.damaged),
            ("not read", self.failed),
            ("of the table not written", unwritten),
        ):
            if told:
                lines.append(f"  {counted(len(told), 'file')} {what}:")
                some = list(told.items())[:_NAMED]
                lines += [f"    {path}: {why.removeprefix(f'{path}: ')}" for path, why in some]
        lines.append(f"  {self.seconds:.1f} s")
        return "\n".join(line for line in lines if line)
