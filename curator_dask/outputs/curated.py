"""What `curator_dask.curation` writes: the names of its folders, by which others know its output, and its summary."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from curator_dask.storage import join
from curator_dask.words import counted

#: Rows with vectors and measures; those that pass; of these those that balance concepts; the table of duplicates; the
#: new tars.
EMBEDDINGS, PASSING, BALANCED = "embeddings", "passing", "balanced"
DUPLICATES, SHARDS = "duplicates", "shards"


@dataclass
class CurationSummary:
    """What became of a dataset's rows; all counts but ``rows`` add up to it.

    Attributes
    ----------
    path
        Of the output.
    rows
        Of the dataset.
    failed
        Whose image cannot be used.
    filtered
        That do not pass the condition, or are not among the best (``top``), and have not failed.
    unbalanced
        That pass, and were not drawn: there are more of their concepts than are wanted.
    duplicates
        That are left then, and have a better twin.
    missing
        That would be kept, but whose sample is in no tar.
    kept
        In the new shards.
    steps
        The summaries of the steps, by folder.
    joined
        Of each table that was joined, how many rows it has, as `curator_dask.tables.TableColumns.found_in` counts them.
    complete
        Every shard was read and written.
    seconds
        Of this call.
    """

    path: str
    rows: int = 0
    failed: int = 0
    filtered: int = 0
    unbalanced: int = 0
    duplicates: int = 0
    missing: int = 0
    kept: int = 0
    steps: dict[str, Any] = field(default_factory=dict)
    joined: list[Any] = field(default_factory=list)
    complete: bool = True
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: the attributes, the steps as their own `to_dict` gives them."""
        steps = {name: each.to_dict() for name, each in self.steps.items()}
        return {**vars(self), "steps": steps, "joined": [vars(each) for each in self.joined]}

    def __str__(self) -> str:
        lines = [
            f"{join(self.path, SHARDS)}: {self.kept:,} of {counted(self.rows, 'row')}; {self.seconds:.0f} s"
        ]
        for name in ("failed", "filtered", "unbalanced", "duplicates", "missing"):
            if name == "unbalanced" and BALANCED not in self.steps:
                continue
            count = getattr(self, name)
            lines += [f"  {name:10} {count:>9,} ({count / max(1, self.rows):.1%})"]
        lines += [f"  joined {each.table} on {each.on}: {each}" for each in self.joined]
        return "\n".join(lines)
