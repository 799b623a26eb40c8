"""What a preflight found, as text and as JSON: every trouble with its remedy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from curator_dask.checks.kinds import KINDS
from curator_dask.webdataset.samples import key_text
from curator_dask.words import counted, printable, sized

_WIDTH = 300  # characters of a name or reason that a line shows


@dataclass(frozen=True)
class Finding:
    """One kind of trouble, wherever it was found.

    Attributes
    ----------
    kind
        One of `KINDS`.
    count
        How many times, in what was looked at.
    shards
        In how many shards; 0 where it is not of a shard.
    examples
        ``shard: key, key`` or ``shard: reason`` of the first few.
    estimate
        How many there may be in all, where not every shard was looked at; None where `count` is all.
    fix
        What to do about it, where that is not what `KINDS` says.
    """

    kind: str
    count: int
    shards: int
    examples: tuple[str, ...]
    estimate: int | None = None
    fix: str = ""

    @property
    def fails(self) -> bool:
        """Whether a run would fail on it."""
        return KINDS[self.kind].fails

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        kind = KINDS[self.kind]
        return {
            "kind": self.kind,
            "what": kind.what,
            "count": self.count,
            "shards": self.shards,
            "estimate": self.estimate,
            "examples": list(self.examples),
            "fix": self.fix or kind.fix,
        }

    def __str__(self) -> str:
        kind = KINDS[self.kind]
        about = f" (about {self.estimate:,} in all)" if self.estimate is not None else ""
        more = "; …" if len(self.examples) < self.shards else ""
        return (
            f"{'PROBLEM' if kind.fails else 'note'}: {self.count:,} x {kind.what}{about}: "
            f"{'; '.join(self.examples)}{more}\n    fix: {self.fix or kind.fix}"
        )


#: Of a tar, at a glance.
_SEEN = "size, first header, end, companion and index"


@dataclass
class Report:
    """What `preflight` found.

    Attributes
    ----------
    path
        The dataset's root.
    source
        ``"parquet"`` or ``"tar"``: where rows come from.
    captions
        Of image files: ``"txt"``, what lies beside them; ``"none"``, or the path of a table.
    columns
        That rows get from that table.
    taken
        Names of statistics that the dataset's own columns have.
    in_rows
        Whether the images lie in the rows of the Parquet files: these are the shards.
    shards, size
        Tars and their bytes.
    looked
        Shards of which all headers and ids were read.
    rows, samples
        Of the dataset; None where nothing could be counted.
    rows_exact, samples_exact
        Whether all were counted. If not, they are extrapolated from the shards looked at.
    components
        Members by the suffix of their names, in the shards looked at.
    left_out
        Kinds of components and fields of the JSON that rows from the tars do not take, in the shards looked at.
    statuses
        Rows without a sample by img2dataset's status, in the shards looked at.
    images
        ``looked`` (how many headers were read), ``formats``, ``width``, ``height`` (pixels, upright) and ``bytes``
        (each smallest, median, largest), ``unusable`` (by reason).
    disk
        Bytes of the output as estimated: ``dim``, ``vectors``, ``other`` columns, ``total``; ``free`` where the
        output's disk is known, and ``there``, what earlier runs have left that is replaced or kept.
    findings
        Problems first.
    seconds
        That it took.
    """

    path: str
    source: str
    shards: int = 0
    size: int = 0
    looked: int = 0
    rows: int | None = None
    samples: int | None = None
    rows_exact: bool = True
    samples_exact: bool = True
    components: dict[str, int] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)
    images: dict[str, Any] = field(default_factory=dict)
    disk: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0
    captions: str = "txt"
    columns: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    in_rows: bool = False

    @property
    def problems(self) -> list[Finding]:
        """On which a run would fail, as a whole or some of its shards."""
        return [finding for finding in self.findings if finding.fails]

    @property
    def notes(self) -> list[Finding]:
        """What costs rows, or time."""
        return [finding for finding in self.findings if not finding.fails]

    @property
    def ok(self) -> bool:
        """Whether nothing was found on which a run would fail."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with problems and notes apart."""
        plain = {name: value for name, value in vars(self).items() if name != "findings"}
        return {
            "ok": self.ok,
            **plain,
            "problems": [finding.to_dict() for finding in self.problems],
            "notes": [finding.to_dict() for finding in self.notes],
        }

    def __str__(self) -> str:
        seen = ("size and footer", "keys") if self.in_rows else (_SEEN, "headers and keys")
        lines = [
            f"{shown(self.path)}: {counted(self.shards, 'shard')}, {sized(self.size)}; rows come from"
            f" {self._rows_from()}",
            f"  looked at: {seen[0]} of every shard; all {seen[1]} of"
            f" {self._looked()}; the headers of {counted(self.images.get('looked', 0), 'image')}",
            f"  rows: {_count(self.rows, self.rows_exact)}; samples: {_count(self.samples, self.samples_exact)}",
        ]
        if self.components:
            shown_parts = ", ".join(f"{name} {count:,}" for name, count in [*self.components.items()][:12])
            lines.append(f"  components{self._in_those()}: {shown_parts}")
        if self.left_out:
            lines.append(
                f"  in the tars, but not in the rows: {', '.join(self.left_out)} (lists and objects of the JSON become"
                " columns of text with nested_json=True, --nested-json)"
            )
        if self.statuses:
            lines.append(
                f"  downloads{self._in_those()}: "
                + ", ".join(f"{status} {count:,}" for status, count in self.statuses.items())
            )
        if self.taken:
            names = f"its columns {', '.join(self.taken)} have names of statistics"
            lines.append(f"  {names}, which need others (prefix='image_', --prefix image_)")
        lines += [*self._image_lines(), *self._disk_lines(), *map(str, self.findings)]
        problems, notes = len(self.problems), len(self.notes)
        would = f"{counted(problems, 'problem')} on which a run would fail"
        verdict = would if problems else "nothing that would fail"
        lines.append(f"{verdict}, {counted(notes, 'note')}; {self.seconds:.1f} s")
        return "\n".join(lines)

    def _rows_from(self) -> str:
        if self.in_rows:
            return "these Parquet files, as do the images"
        if self.source == "parquet":
            return "the Parquet files beside them"
        if self.captions == "txt":
            return "their captions and JSON"
        if self.captions == "none":
            return "the names of the images alone"
        named = f" (columns {', '.join(map(shown, self.columns))})" if self.columns else ""
        return f"the images, and {shown(self.captions)}{named}"

    def _looked(self) -> str:
        if self.looked == self.shards:
            return "every shard"
        return f"{self.looked:,} of {self.shards:,}, evenly spread ('about' is extrapolated from these)"

    def _in_those(self) -> str:
        return "" if self.looked == self.shards else f" in these {self.looked:,} shards"

    def _image_lines(self) -> list[str]:
        found = self.images
        if not found.get("formats"):
            return []
        formats = ", ".join(f"{kind} {count:,}" for kind, count in found["formats"].items())
        (w0, w1, w2), (h0, h1, h2), (b0, b1, b2) = found["width"], found["height"], found["bytes"]
        return [
            f"  images: {formats}; width {w0} to {w2} (median {w1}), height {h0} to {h2} (median {h1}) pixels,"
            f" {sized(b0)} to {sized(b2)} (median {sized(b1)})"
        ]

    def _disk_lines(self) -> list[str]:
        found = self.disk
        if not found:
            return []
        free = f"; free in {shown(found['output'])}: {sized(found['free'])}" if found.get("free") else ""
        there = f" ({sized(found['there'])} of it are there)" if found.get("there") else ""
        return [
            f"  output: about {sized(found['total'])}{there}: {sized(found['vectors'])} of vectors (float32,"
            f" {found['dim']} values each, which hardly compress) and {sized(found['other'])} of other columns{free}"
        ]


def shown(text: str) -> str:
    """Text from a file on one line of a terminal: no control characters, no lone surrogates, not too long."""
    plain = printable(key_text(text))
    return plain if len(plain) <= _WIDTH else f"{plain[: _WIDTH - 1]}…"


def _count(number: int | None, exact: bool) -> str:
    if number is None:
        return "unknown"
    return f"{number:,}" if exact else f"about {number:,}"
