"""What a deduplication found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from curator_dask.dedup.hashes import LEAST_QUALITY, quality_of
from curator_dask.dedup.sampling import Share
from curator_dask.words import counted


@dataclass
class DedupSummary:
    """What a deduplication found.

    Attributes
    ----------
    path
        Where it was written.
    eps
        Two rows are duplicates when the cosine of their vectors is at least 1 - eps.
    rows
        That were looked at.
    stay
        Rows that stay whatever they are like, as their samples are in tars of an export.
    set_aside
        By fault, rows whose vectors cannot be compared: they stay.
    exact
        Rows whose vector is that of another row, to the bit, and whose hashes are, where they are asked for.
    digest
        A column of the files' digests that is there and was not asked for; empty where there is none.
    by
        Where hashes are asked for: by column, rows that go for it.
    plain
        Where these are PDQ's: rows whose hash is left out, as ``pdq_quality`` is below 50; None: nothing says so.
    diameter, diameter_exact
        Where groups are components: 1 - cosine of the two rows of one group that are farthest apart; False: at least.
    linked
        Where groups are components: rows that go and are farther than eps from the one that stays, by whatever lies
        between them; None: groups are others.
    groups, removed
        Groups of duplicates, and rows that go.
    pairs
        Of distinct vectors, that were found within eps.
    recall
        The share of the pairs within eps that was compared, measured on a sample.
    clusters, iterations, converged, filled
        Of k-means, and how many clusters were empty and filled again.
    table
        By eps, rows that go.
    about
        Of these eps, those that are estimated from the sample: all beyond `eps`, and smaller ones where many rows are
        near one another, since of a row's betters only the best are written down.
    unknown
        By what decides who stays, rows without a value: they come last.
    made
        By phase, how many of its files were made by this call; 0: all were there.
    seconds
        By phase.
    """

    path: str
    eps: float
    rows: int = 0
    stay: int = 0
    set_aside: dict[str, int] = field(default_factory=dict)
    exact: int = 0
    digest: str = ""
    by: dict[str, int] = field(default_factory=dict)
    plain: int | None = None
    diameter: float | None = None
    diameter_exact: bool = True
    linked: int | None = None
    groups: int = 0
    removed: int = 0
    pairs: int = 0
    recall: Share = field(default_factory=lambda: Share(1.0, 0.0, 1.0, 0))
    clusters: int = 1
    iterations: int = 0
    converged: bool = True
    filled: int = 0
    table: dict[str, int] = field(default_factory=dict)
    about: list[str] = field(default_factory=list)
    unknown: dict[str, int] = field(default_factory=dict)
    made: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: the attributes."""
        return asdict(self)

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> DedupSummary:
        """From `to_dict`."""
        known = {each.name for each in fields(cls)}
        found = {name: value for name, value in said.items() if name in known}
        return cls(**{**found, "recall": Share(**found["recall"])})

    def __str__(self) -> str:
        by_hash_alone = bool(self.by) and sum(self.set_aside.values()) == self.rows
        near = "by a hash" if by_hash_alone else f"within eps={self.eps:g}"
        if self.by and not by_hash_alone:
            near += " or by a hash"
        linked = self.diameter is not None
        twin = "hang together with a better one by steps, each" if linked else "have a better twin"
        exact = counted(self.exact, "row", "has", "have")
        copies = "all hashes of another" if by_hash_alone else "the vector of another, equal to the bit"
        if self.digest:
            copies += f" (files that are equal: exact=[{self.digest!r}], --exact {self.digest})"
        lines = [
            f"{self.removed:,} of {counted(self.rows, 'row')} {twin} {near}, in"
            f" {counted(self.groups, 'group')}; {exact} {copies}"
        ]
        if self.stay:
            lines.append(f"  {self.stay:,} of the rows are in tars, and stay")
        if not by_hash_alone:
            lines.append(f"  pairs that were compared, of those within eps: {self.recall}")
        if self.diameter is not None and not by_hash_alone:
            least = "" if self.diameter_exact else "at least "
            lines.append(f"  1 - cosine of the farthest rows of one group: {least}{self.diameter:.3f}")
        if self.linked:
            lines.append(
                f"  {counted(self.linked, 'row')} of those that go: farther than that from the one that stays, by"
                " others between them"
            )
        aside = ", ".join(f"{count:,} {name}" for name, count in self.set_aside.items() if count)
        if aside:
            what = "no vector that can be compared" if self.by else "not compared, and not removed"
            what = "by hashes alone, no row has a vector that can be compared" if by_hash_alone else what
            lines.append(f"  {what}: {aside}")
        if self.by:
            lines.append(
                "  rows that go by " + ", ".join(f"{name}: {count:,}" for name, count in self.by.items())
            )
        for name in filter(quality_of, self.by):
            if self.plain:
                least = f"{quality_of(name)} below {LEAST_QUALITY}, which match others by chance"
                lines.append(f"  {name} left out: of {counted(self.plain, 'row')} with a {least}")
            elif self.plain is None:
                lines.append(f"  no column {quality_of(name)}: hashes of plain pictures were compared, too")
        for what, count in self.unknown.items():
            if count:
                lines.append(f"  {what}: {counted(count, 'row')} without a value, which come last")
        if self.clusters > 1:
            how = (
                f"in {self.iterations} rounds" if self.converged else f"not converged after {self.iterations}"
            )
            again = f", {self.filled} filled again" if self.filled else ""
            lines.append(f"  {self.clusters:,} clusters, {how}{again}")
        if self.table and not by_hash_alone:
            lines.append("  eps    rows that go")
            for text, count in self.table.items():
                about = "about " if text in self.about or float(text) > self.eps else ""
                lines.append(f"  {text:<6} {about}{count:,} ({count / max(1, self.rows):.1%})")
        return "\n".join(lines)
