"""`RetrievalSummary`: what a retrieval has found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from curator_dask.runs.summary import SaveSummary, installed_versions
from curator_dask.words import counted


@dataclass
class RetrievalSummary:
    """What `curator_dask.retrieval.retrieve` has found.

    Attributes
    ----------
    pool, pool_aside
        Rows of the pool, and of these those whose vector has no direction, by what is wrong with it.
    queries, queries_aside
        The same of the queries; those that are set aside find nothing.
    unanswered
        Queries with a vector that no row of the pool is near enough to.
    pairs
        Of a query and a row of the pool.
    kept
        Rows of the pool that were found, each once.
    shared
        Of these, found by several queries.
    nearest, farthest
        Median over queries of the cosine of the first row found, and of the last; None: nothing was found.
    output
        What was written, and what an earlier call had.
    seconds
        Of this call.
    """

    pool: int = 0
    pool_aside: dict[str, int] = field(default_factory=dict)
    queries: int = 0
    queries_aside: dict[str, int] = field(default_factory=dict)
    unanswered: int = 0
    pairs: int = 0
    kept: int = 0
    shared: int = 0
    nearest: float | None = None
    farthest: float | None = None
    output: SaveSummary | None = None
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Every file could be written."""
        return self.output is None or self.output.complete

    @property
    def counts(self) -> dict[str, Any]:
        """What does not depend on the call: all but ``output`` and ``seconds``."""
        return {name: value for name, value in vars(self).items() if name not in ("output", "seconds")}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: the attributes, ``output`` as `SaveSummary.to_dict` gives it, and the versions of what ran."""
        output = None if self.output is None else self.output.to_dict()
        return {**vars(self), "output": output, "versions": installed_versions()}

    def __str__(self) -> str:
        lines = [f"{self.kept:,} of {counted(self.pool, 'row')} retrieved, by {_queries(self.queries)}"]
        lines.append(
            f"  {counted(self.pairs, 'pair')}; {counted(self.shared, 'row', 'is', 'are')} of several queries;"
            f" {_queries(self.unanswered)} found none"
        )
        if self.nearest is not None and self.farthest is not None:
            lines.append(
                f"  median cosine of the first found {self.nearest:.4f}, of the last {self.farthest:.4f}"
            )
        for name, aside in (("pool", self.pool_aside), ("queries", self.queries_aside)):
            if aside:
                said = ", ".join(f"{count:,} {fault}" for fault, count in aside.items())
                lines.append(f"  {name}: without a vector that can be compared: {said}")
        return "\n".join(lines)


def _queries(number: int) -> str:
    return f"{number:,} {'query' if number == 1 else 'queries'}"
