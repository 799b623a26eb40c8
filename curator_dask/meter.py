"""How far a run is: shards, images, and how long the rest will take."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from curator_dask.words import counted

#: The kind of reason of shards that could not be done.
SHARD_FAILED = "shard failed"
_EXAMPLES = 3  # of each reason
_REASONS = 20
_LONGEST = 200  # characters of an example


@dataclass
class Meter:
    """What a run has done so far.

    Attributes
    ----------
    shards
        Partitions to do in this run.
    done, broken
        Partitions finished, and given up.
    rows
        Of the partitions finished.
    images, failed
        Images finished on all workers, and those of them without a vector.
    started
        `time.monotonic` at the start, seconds.
    run
        Its name, told apart from all other runs on the cluster.
    what
        What a person calls it: where it writes.
    of
        What the partitions are called; of others than shards no image is opened, and none is spoken of.
    reasons
        Failures of finished shards, by kind of reason, and shards that failed.
    last
        By kind of reason, the last few: shard, key and the reason in full.
    """

    shards: int
    done: int = 0
    broken: int = 0
    rows: int = 0
    images: int = 0
    failed: int = 0
    started: float = field(default_factory=time.monotonic)
    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    what: str = ""
    of: str = "shards"
    reasons: Counter[str] = field(default_factory=Counter)
    last: dict[str, list[str]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, event: dict[str, Any]) -> None:
        """Add what was reported."""
        with self.lock:
            self.images += event["images"]
            self.failed += event["failed"]

    def finish(
        self,
        rows: int,
        reasons: Mapping[str, int] | None = None,
        examples: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Count a partition as finished, with its failures by kind of reason and examples of each."""
        self.done += 1
        self.rows += rows
        for reason, count in (reasons or {}).items():
            self._fail(reason, count, (examples or {}).get(reason, ()))

    def give_up(self, name: str, reason: str) -> None:
        """Count a partition as given up."""
        self.broken += 1
        self._fail(SHARD_FAILED, 1, [f"{name}: {reason}"])

    def _fail(self, reason: str, count: int, examples: Sequence[str]) -> None:
        self.reasons[reason] += count
        self.last[reason] = [*self.last.get(reason, ()), *(text[:_LONGEST] for text in examples)][-_EXAMPLES:]

    @property
    def told(self) -> dict[str, Any]:
        """What the dashboard is told, for `of`: plain values."""
        some = [reason for reason, _ in self.reasons.most_common(_REASONS)]
        return {
            **{
                name: getattr(self, name)
                for name in ("run", "what", "shards", "done", "broken", "rows", "seconds")
            },
            "reasons": {reason: self.reasons[reason] for reason in some},
            "last": {reason: list(self.last.get(reason, ())) for reason in some},
        }

    def hear(self, told: Mapping[str, Any]) -> None:
        """Take what a client has told of its run."""
        self.what, self.shards, self.rows = told["what"], told["shards"], told["rows"]
        self.done, self.broken = told["done"], told["broken"]
        self.started = time.monotonic() - told["seconds"]
        self.reasons, self.last = Counter(told["reasons"]), dict(told["last"])

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started

    @property
    def rate(self) -> float:
        """Images a second since the start."""
        return self.images / max(self.seconds, 1e-9)

    @property
    def remaining(self) -> float | None:
        """Seconds until the end, if shards to come are like those finished; None before the first is."""
        if not self.done:
            return None
        total = self.rows / self.done * (self.shards - self.broken)
        # Of shards under way the images done count, too; without images (no embedding) only shards do.
        if self.images:
            return max(0.0, total - self.images) / self.rate
        finished = self.done + self.broken
        return self.seconds / finished * (self.shards - finished)

    def __str__(self) -> str:
        left = "?" if self.remaining is None else clock(self.remaining)
        images = f" | {counted(self.images, 'image')}, {self.rate:.1f}/s | {self.failed} failed"
        seen = images if self.of == "shards" else ""
        return f"{self._shards}{seen} | {clock(self.seconds)} elapsed, {left} left"

    @property
    def outcome(self) -> str:
        """What is said at the end: of images the last are told only half a second later."""
        return f"{self._shards} | {counted(self.rows, 'row')} | {clock(self.seconds)} elapsed"

    @property
    def _shards(self) -> str:
        broken = f", {self.broken} failed" if self.broken else ""
        return f"{self.of} {self.done}/{self.shards}{broken}"


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds, or hours, minutes and seconds."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
