"""What is asked of a deduplication."""

from __future__ import annotations

from dataclasses import dataclass

from curator_dask.dedup.hashes import Hashes
from curator_dask.dedup.keeping import Keep

#: How groups are made: around rows that stay, or of all that hang together.
STARS, COMPONENTS = "stars", "components"


@dataclass(frozen=True)
class Settings:
    """What is asked for; see `SemanticDeduplication`."""

    eps: float
    keep: Keep
    recall: float
    clusters: int | None
    column: str
    normalize: bool
    exact: Hashes
    groups: str = STARS
    memory_limit: int | float | None = None
