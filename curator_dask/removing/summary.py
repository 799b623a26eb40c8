"""`RemoveSummary`: what came of removing samples."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from curator_dask.words import counted, sized

_SHOWN = 3  # values of the list that no row has, and shards that failed


@dataclass
class PlaceSummary:
    """What came of a place.

    Attributes
    ----------
    path, kind, unit
        Where it is, what it is, and what of it is rewritten as one (``file``, ``shard``).
    samples
        Rows or samples that are to go, or went.
    along
        Of these, those that nobody has asked for, and that are the same image as one that was: by URL or digest.
    shards, all_shards
        Files or shards that hold them, and how many there are.
    rewritten, bytes
        Of these, those that were rewritten, and the bytes that were written.
    failed_shards
        Those that could not be, with the reason.
    left
        Of the samples, those in shards that failed: they are still there.
    lacks_column
        A file there has not the column that was asked: what goes is known by shard and key, URL and digest alone.
    left_twins
        Of a table of duplicates: groups whose best went, and of which nothing else stays.
    """

    path: str
    kind: str
    unit: str
    samples: int = 0
    along: int = 0
    shards: int = 0
    all_shards: int = 0
    rewritten: int = 0
    bytes: int = 0
    failed_shards: dict[str, str] = field(default_factory=dict)
    left: int = 0
    left_twins: int = 0
    lacks_column: bool = False

    def __str__(self) -> str:
        what = "row" if self.unit == "file" else "sample"
        rows = counted(self.samples, what)
        along = f", {self.along:,} of them the same image as another" if self.along else ""
        done = f"; {self.rewritten:,} rewritten, {sized(self.bytes)}" if self.rewritten else ""
        lost = ""
        if self.left_twins:
            lost = (
                f"; {counted(self.left_twins, 'group')} of twins whose best went: none of them is exported until dedup"
                " runs again"
            )
        if self.lacks_column:
            lost += "; it lacks the column, and was asked by what the others say alone"
        return (
            f"  {self.kind}: {rows} in {self.shards:,} of {counted(self.all_shards, self.unit)}{along}{done}{lost}"
            f"  {self.path}"
        )


@dataclass
class RemoveSummary:
    """What came of `remove_samples`.

    Attributes
    ----------
    asked, found, before, not_found
        Different values of the list; those that a row has; others that are not there, as they were removed before, or
        were noted then; and those of which no row is known. The first is the sum of the others; without a list all are
        0.
    asked_rows
        Rows that the list names, or the condition says, in all places together.
    places
        What came of each place.
    examples
        Some values that were not found.
    not_found_file
        Where all of these are; empty: nowhere.
    still_holding
        What lies beside the folders, may hold something of removed samples, and was not rewritten.
    dry_run
        Nothing was written.
    seconds
        That it took.
    """

    asked: int = 0
    found: int = 0
    before: int = 0
    not_found: int = 0
    asked_rows: int = 0
    places: list[PlaceSummary] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)
    not_found_file: str = ""
    still_holding: list[str] = field(default_factory=list)
    dry_run: bool = False
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """All that holds such samples was rewritten, or would be."""
        return not any(each.failed_shards for each in self.places)

    @property
    def samples(self) -> int:
        """Rows and samples that went, or are to go, in all places."""
        return sum(each.samples for each in self.places)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: the attributes, `samples` and `complete`."""
        return {**asdict(self), "samples": self.samples, "complete": self.complete}

    def __str__(self) -> str:
        verb = "would go" if self.dry_run else "removed"
        left = sum(each.left for each in self.places)
        head = f"{self.samples - left:,} rows and samples {verb}"
        if left:
            head += f", {left:,} STILL THERE"
        lines = [f"{head}, in {counted(len(self.places), 'place')}; {self.seconds:.1f} s"]
        if self.asked:
            lines.append(
                f"  list: {counted(self.asked, 'value')}; {self.found:,} found, {self.before:,} removed or noted"
                f" before, {self.not_found:,} not found"
            )
        if self.not_found:
            some = ", ".join(map(repr, self.examples))
            where = (
                f"all are in {self.not_found_file}" if self.not_found_file else "--not-found FILE writes them"
            )
            lines.append(
                f"    not found: {some}{', …' if self.not_found > len(self.examples) else ''} ({where})"
            )
        for each in self.places:
            lines.append(str(each))
            for name, why in list(each.failed_shards.items())[:_SHOWN]:
                lines.append(f"    FAILED {name}: {why}")
            if len(each.failed_shards) > _SHOWN:
                lines.append(f"    FAILED {len(each.failed_shards) - _SHOWN:,} more")
        if not self.complete:
            lines.append("  NOT FINISHED: mend what failed, and run the same command again")
        if self.still_holding:
            lines.append("  not rewritten, and may hold something of them; remove or make anew:")
            lines += [f"    {path}" for path in self.still_holding]
        if self.samples:
            lines.append(
                "  made elsewhere of these (report and label pages, sheets, a search index, heads, centroids, copies)"
                " nothing is known here: make them anew"
            )
        return "\n".join(lines)
