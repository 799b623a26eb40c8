"""What is found out of an output."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

#: Reasons and values that are kept of each kind.
REASONS, VALUES = 10, 5


@dataclass
class ColumnInfo:
    """A column.

    Attributes
    ----------
    name, type
        Its name, and its Arrow type.
    kind
        ``vector``, ``number``, ``text`` (also true and false) or ``other``.
    made_by
        Who made it, in words; several where files differ.
    filled
        Rows that have a value, of those of all files, by what footers say; None where these do not say it.
    share
        The same as a share of the rows.
    lacking_files
        Files that have no such column; their rows have no value.
    looked
        Values that the following is of.
    nan
        Of these (not null) that are NaN: in nothing of the following.
    low, high
        Smallest and largest number, of all rows where footers say it.
    p5, median, p95
        Of the finite values that were looked at, between two of them linear, as NumPy's.
    values
        Commonest texts, and the share of the values looked at that each is; where there are more than five,
        of those that come twice.
    different
        How many different texts there are among the values looked at.
    at_least
        There were more different texts than are counted: the shares are of the commonest, and may be a little higher.
    dim
        Length of a vector.
    norm_low, norm_high
        L2 norms of a few vectors; None where none was looked at.
    unit
        All of these are 1, to 0.001.
    """

    name: str
    type: str
    kind: str = "other"
    made_by: list[str] = field(default_factory=list)
    filled: int | None = None
    share: float | None = None
    lacking_files: int = 0
    looked: int = 0
    nan: int = 0
    low: float | int | None = None
    high: float | int | None = None
    p5: float | None = None
    median: float | None = None
    p95: float | None = None
    values: list[tuple[str, float]] = field(default_factory=list)
    different: int | None = None
    at_least: bool = False
    dim: int | None = None
    norm_low: float | None = None
    norm_high: float | None = None
    unit: bool | None = None


@dataclass
class ReasonInfo:
    """Rows that failed for one reason: how many, and one of them with its shard and key."""

    reason: str
    rows: int
    example: str = ""


@dataclass
class SplitInfo:
    """A split of an export; its name is empty where there are none. Of what `fetch` wrote rows have an image."""

    name: str
    tars: int = 0
    bytes: int = 0
    rows: int = 0


@dataclass
class Chain:
    """What became of the rows of `curate`; all but ``rows`` and ``stay`` add up to it.

    Attributes
    ----------
    rows
        Of the dataset.
    failed, filtered, unbalanced, duplicates, missing, kept, stay
        As `curator_dask.outputs.curated.CurationSummary` has them.
    adds_up
        None is below zero: else the folders are of different runs.
    exported
        There are new tars.
    """

    rows: int
    failed: int = 0
    filtered: int = 0
    unbalanced: int = 0
    duplicates: int = 0
    missing: int = 0
    kept: int = 0
    stay: int = 0
    adds_up: bool = True
    exported: bool = True


@dataclass
class Found:
    """What is in an output, as `curator_dask.info.describe_output` finds it.

    Attributes
    ----------
    path
        Of the folder.
    kind
        ``curate``, ``export``, ``fetch``, ``dedup``, ``filter``, ``embed`` (also of ``classify``, ``score`` and
        ``join``) or ``other``: no file says what made it.
    files, rows, bytes
        Parquet files that can be read, their rows, and bytes of all.
    with_vector
        Rows that have a vector, by column; None where footers do not say it.
    failed, reasons, other_reasons
        Rows with an ``image_error``, or whose image `fetch` could not have; the commonest reasons, and rows of
        further ones.
    aside_files, aside_rows
        Files beside the output with rows that failed, and these rows; they are in `reasons`, and not in `rows`.
    columns
        Of the output, or those that were asked for.
    differences
        What does not fit together, in words, with what to run.
    remarks
        What was noticed of the shards when they were read.
    damaged
        Files that cannot be read, with what is wrong.
    leftovers, lock
        What processes were writing, and the note of a run that is there or was.
    looked_rows, looked_groups, groups
        Rows that values were read of, the row groups they are in, and all row groups.
    exact
        These are all rows.
    splits
        Of an export, or of shards.
    removed
        Of a table of duplicates: rows that have a better twin; else None.
    taken_down
        Rows or samples that `curator_dask.removing.remove_samples` has taken out; they are in none of the counts.
    folders, chain
        Of an output of ``curate``: what is in each folder, and what became of the rows.
    seconds
        That it took.
    """

    path: str
    kind: str = "other"
    files: int = 0
    rows: int = 0
    bytes: int = 0
    with_vector: dict[str, int | None] = field(default_factory=dict)
    failed: int = 0
    reasons: list[ReasonInfo] = field(default_factory=list)
    other_reasons: int = 0
    aside_files: int = 0
    aside_rows: int = 0
    columns: list[ColumnInfo] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    leftovers: list[str] = field(default_factory=list)
    lock: str = ""
    looked_rows: int = 0
    looked_groups: int = 0
    groups: int = 0
    exact: bool = True
    splits: list[SplitInfo] = field(default_factory=list)
    removed: int | None = None
    taken_down: int = 0
    folders: dict[str, Found] = field(default_factory=dict)
    chain: Chain | None = None
    seconds: float = 0.0

    @property
    def whole(self) -> bool:
        """Every file that is there can be read."""
        return not self.damaged and all(each.whole for each in self.folders.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: the attributes; infinite numbers as text."""
        found: dict[str, Any] = plain(asdict(self))
        return found


def plain(value: Any) -> Any:
    """JSON-able: numbers that are not finite as text."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
