"""How far a run is: shards, images, and how long the rest will take."""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Any


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
    """

    shards: int
    done: int = 0
    broken: int = 0
    rows: int = 0
    images: int = 0
    failed: int = 0
    started: float = field(default_factory=time.monotonic)
    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, event: dict[str, Any]) -> None:
        """Add what was reported."""
        with self.lock:
            self.images += event["images"]
            self.failed += event["failed"]

    def finish(self, rows: int) -> None:
        """Count a partition as finished."""
        self.done += 1
        self.rows += rows

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
        return (
            f"{self._shards} | {self.images} images, {self.rate:.1f}/s |"
            f" {self.failed} failed | {clock(self.seconds)} elapsed, {left} left"
        )

    @property
    def outcome(self) -> str:
        """What is said at the end: of images the last are told only half a second later."""
        return f"{self._shards} | {self.rows} rows | {clock(self.seconds)} elapsed"

    @property
    def _shards(self) -> str:
        broken = f", {self.broken} failed" if self.broken else ""
        return f"shards {self.done}/{self.shards}{broken}"


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds, or hours, minutes and seconds."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
