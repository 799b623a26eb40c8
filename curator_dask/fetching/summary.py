"""`FetchSummary`: what a fetch came to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any

from curator_dask.fetching.addresses import REFUSED
from curator_dask.fetching.failures import may_pass
from curator_dask.notebook import bars, table
from curator_dask.runs.parts import part_line
from curator_dask.runs.summary import installed_versions
from curator_dask.words import counted, ranked, sized

_EXAMPLES = 3  # of each reason
_HOSTS = 5  # that it prints
_SHARDS = 20  # that failed, that it prints


@dataclass
class FetchSummary:
    """What `curator_dask.fetching.fetch_images` came to.

    Attributes
    ----------
    path
        Where the shards are.
    rows, images, failed
        Of all shards that are there: rows, those of them with an image, and those without. The first is the sum of the
        others.
    reasons, examples
        How many rows failed for which kind of reason, and of each a few: key, URL and the reason in full.
    hosts
        Hosts by how many URLs of theirs have failed in this call.
    image_bytes
        Of the images in all shards.
    no_caption
        Rows whose caption is null, where the table has captions.
    left
        Images that are as they came though they are too large, by kind of reason.
    written, skipped
        Shards that this call has written, and that were finished before.
    tried, got
        Rows that this call has tried, and those that got their image.
    received
        Bytes of bodies that this call has received.
    failed_shards
        Shards that are not there, with the reason; a rerun does them.
    renamed
        Columns of the table that the rows call otherwise.
    part
        Of a part of a fetch, its ``number`` (counted from 0) and how many there are (``of``), its ``shards`` and
        ``all_shards``; all else counts this part alone. None of all.
    seconds, startup_seconds
        Of this call, and of these until the first shard was handed out.
    """

    path: str
    rows: int = 0
    images: int = 0
    failed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    hosts: Counter[str] = field(default_factory=Counter)
    image_bytes: int = 0
    no_caption: int = 0
    left: Counter[str] = field(default_factory=Counter)
    written: int = 0
    skipped: int = 0
    tried: int = 0
    got: int = 0
    received: int = 0
    failed_shards: dict[str, str] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    startup_seconds: float = 0.0
    part: dict[str, int] | None = None

    @property
    def good(self) -> float:
        """Share of the rows that have an image; 1.0 where there are none."""
        return self.images / self.rows if self.rows else 1.0

    @property
    def complete(self) -> bool:
        """Every shard is there; rows that failed do not count."""
        return not self.failed_shards

    @property
    def may_pass(self) -> int:
        """Rows that failed for a reason that may have passed another time."""
        return sum(count for reason, count in self.reasons.items() if may_pass(reason))

    @property
    def images_per_second(self) -> float:
        """Images that this call got, by the seconds after the start-up."""
        return self.got / self._running if self._running else 0.0

    @property
    def bytes_per_second(self) -> float:
        """Bytes that it received, by the same."""
        return self.received / self._running if self._running else 0.0

    @property
    def _running(self) -> float:
        return max(0.0, self.seconds - self.startup_seconds) if self.tried else 0.0

    def add(self, report: Mapping[str, Any], before: bool) -> None:
        """Count what a shard came to, in this call or `before` it."""
        self.rows += report["rows"]
        self.images += report["images"]
        self.failed += report["failed"]
        self.reasons.update(report["reasons"])
        for reason, examples in report["examples"].items():
            # In whatever order shards come: the first by key.
            self.examples[reason] = sorted([*self.examples.get(reason, []), *examples])[:_EXAMPLES]
        self.image_bytes += report["image_bytes"]
        self.no_caption += report["no_caption"]
        self.left.update(report["left"])
        if before:
            self.skipped += 1
            return
        self.written += 1
        self.tried += report["tried"]
        self.got += report["new"]
        self.received += report["received"]
        self.hosts.update(report["hosts"])

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-able, with the properties, and the versions of what ran."""
        names = ("good", "complete", "may_pass", "images_per_second", "bytes_per_second")
        counts = {name: dict(getattr(self, name)) for name in ("reasons", "hosts", "left")}
        more = {name: getattr(self, name) for name in names}
        told = {name: value for name, value in vars(self).items() if name != "part" or value is not None}
        return {**told, **counts, **more, "versions": installed_versions()}

    def __str__(self) -> str:
        shards = counted(self.written + self.skipped, "shard")
        lines = [
            f"{self.path}: {counted(self.rows, 'row')} in {shards}: {counted(self.images, 'image')}"
            f" ({sized(self.image_bytes)}), {self.failed:,} failed; {self.good:.1%} are there"
        ]
        if self.part:
            lines.append(f"  {part_line(self.part)}")
        if not self.written and not self.failed_shards:
            lines.append(
                f"  nothing to do, {counted(self.skipped, 'shard')} finished before; {self.seconds:.1f} s"
            )
        else:
            lines.append(f"  {counted(self.skipped, 'shard')} finished before" if self.skipped else "")
            lines.append(
                f"  {self.seconds:.1f} s, {self.startup_seconds:.1f} s of it start-up, then"
                f" {self.images_per_second:.1f} images/s, {sized(self.bytes_per_second)}/s, of"
                f" {counted(self.tried, 'row')} tried"
            )
        if self.rows and not self.images:
            lines.append(f"  NONE of {counted(self.rows, 'row')} has an image")
        for reason, count in ranked(self.reasons):
            lines.append(
                f"  {count:,} x {reason}, for example {'; '.join(self.examples.get(reason, [])[:1])}"
            )
        if self.hosts:
            some = ", ".join(f"{host} {count:,}" for host, count in ranked(self.hosts)[:_HOSTS])
            lines.append(f"  hosts that failed most: {some}")
        if self.may_pass:
            lines.append(
                f"  {self.may_pass:,} of these may be had another time: --retry-failed (in a recipe retry_failed: true)"
            )
        if self.reasons[REFUSED]:
            lines.append(
                "  addresses of your own network are refused: --allow-private, where the list is your own (in a"
                " recipe allow_private: true); rows that were refused before also need --retry-failed"
                " (retry_failed: true)"
            )
        for kind, count in ranked(self.left):
            lines.append(f"  {counted(count, 'image')} not made smaller, as it came: {kind}")
        if self.no_caption:
            lines.append(f"  {counted(self.no_caption, 'row')} without a caption")
        if self.renamed:
            some = ", ".join(f"{name} is {new}" for name, new in self.renamed.items())
            lines.append(f"  columns of the table that are called otherwise: {some}")
        failed = [*self.failed_shards.items()]
        lines += [f"  shard failed: {name}: {reason}" for name, reason in failed[:_SHARDS]]
        if len(failed) > _SHARDS:
            lines.append(f"  … and {len(failed) - _SHARDS} more shards failed")
        return "\n".join(line for line in lines if line)

    def _repr_html_(self) -> str:
        counts = {
            "rows": self.rows,
            "images": self.images,
            "failed": self.failed,
            "shards written": self.written,
        }
        rows = [(name, f"{count:,}") for name, count in counts.items()]
        rows.append(("seconds", f"{self.seconds:.1f}, {self.startup_seconds:.1f} of it start-up"))
        rows.append(("images/s then", f"{self.images_per_second:,.1f}"))
        examples = {reason: "; ".join(some) for reason, some in self.examples.items()}
        return f"<div><b>{escape(self.path)}</b>{table(rows)}{bars(dict(self.reasons), examples)}</div>"
