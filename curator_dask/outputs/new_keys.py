"""Keys of new shards' samples that are numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NewKeys:
    """Keys that are numbers: of the shard, and of the sample in it.

    Attributes
    ----------
    shard_digits, sample_digits
        Of the two.
    old_id_col
        Column, and field of the JSON, for the key that it had; None: it is in the manifest alone.
    """

    shard_digits: int
    sample_digits: int
    old_id_col: str | None = None

    def of(self, shard: int, count: int) -> list[str]:
        """The keys of a shard's samples."""
        first, digits = shard * 10**self.sample_digits, self.shard_digits + self.sample_digits
        return [f"{first + number:0{digits}d}" for number in range(count)]
