"""`SaveSummary`: what a call of `save_metadata` did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_EXAMPLES = 3  # of each reason, that the summary names
_SHARDS = 20  # failed ones, that it prints


@dataclass
class SaveSummary:
    """What a call of `save_metadata` did.

    Attributes
    ----------
    path
        Where the files are.
    rows, failed
        Rows that went through this call, and those of them whose image failed.
    dropped
        Of the failed ones, those written to ``_errors/`` and not among the good ones.
    written, skipped
        Files written in this call, and files that were finished before.
    failed_shards
        Names of shards that could not be read, or on which something else went wrong, with the reason; their
        rows are not in the output, and a rerun tries them again.
    reasons
        How many images failed for which kind of reason.
    examples
        For each kind of reason, a few ``shard key: reason``.
    seconds
        Of this call.
    startup_seconds
        Of these, until the first partition was handed out: most of it every worker loading the model.
    """

    path: str
    rows: int = 0
    failed: int = 0
    dropped: int = 0
    written: int = 0
    skipped: int = 0
    failed_shards: dict[str, str] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    seconds: float = 0.0
    startup_seconds: float = 0.0

    @property
    def images_per_second(self) -> float:
        """Rows divided by the seconds after the start-up."""
        running = self.seconds - self.startup_seconds
        return self.rows / running if self.rows and running > 0 else 0.0

    def add(self, report: Mapping[str, Any]) -> None:
        """Count what `WritePartition` reports of a file."""
        self.rows += report["rows"]
        self.failed += report["failed"]
        self.dropped += report["dropped"]
        self.written += 1
        self.reasons.update(report["reasons"])
        for reason, examples in report["examples"].items():
            known = self.examples.setdefault(reason, [])
            known += examples[: max(0, _EXAMPLES - len(known))]

    def __str__(self) -> str:
        before = f"{self.skipped} files were finished before"
        if not self.written and not self.failed_shards:
            return f"{self.path}: nothing to do, {before}; {self.seconds:.1f} s"
        dropped = f", {self.dropped} more in _errors/" if self.dropped else ""
        rows = (
            f"{self.rows - self.dropped} rows in {self.written} files{dropped}; {self.failed} failed images"
        )
        start, rate = f"{self.startup_seconds:.1f} s of it start-up", f"{self.images_per_second:.1f} images/s"
        lines = [
            f"{self.path}: {rows}",
            f"  {before}" if self.skipped else "",
            f"  {self.seconds:.1f} s, {start}, then {rate}",
        ]
        for reason, count in self.reasons.most_common():
            lines.append(f"  {count} x {reason}, for example {'; '.join(self.examples.get(reason, []))}")
        failed = list(self.failed_shards.items())
        lines += [f"  shard failed: {name}: {reason}" for name, reason in failed[:_SHARDS]]
        if len(failed) > _SHARDS:
            lines.append(f"  … and {len(failed) - _SHARDS} more shards that failed")
        return "\n".join(line for line in lines if line)
