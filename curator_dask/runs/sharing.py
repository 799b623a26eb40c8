"""Which partitions of a frame are of a part of a run."""

from __future__ import annotations

from dataclasses import dataclass

import dask.dataframe as dd

from curator_dask.errors import ConfigError
from curator_dask.runs.lineage import Lineage, is_root, knows_its_number, trace
from curator_dask.runs.parts import Part, told_part


@dataclass(frozen=True)
class Share:
    """A part of the shards of a frame.

    Attributes
    ----------
    part
        Which one.
    whole
        Lineage of the frame with all shards.
    shards, all_shards
        How many are of the part, and how many there are.
    """

    part: Part
    whole: Lineage
    shards: int
    all_shards: int

    def told(self) -> dict[str, int]:
        """For a summary: see `SaveSummary.part`."""
        return told_part(self.part, self.shards, self.all_shards)


def take_part(frame: dd.DataFrame, part: Part) -> tuple[dd.DataFrame, Share]:
    """The partitions of a frame that are of a part, and what share of it they are; where none is, the frame itself.

    All partitions of a shard are of one part.

    Raises
    ------
    ConfigError
        Its partitions are not each of one shard, or may depend on their number.
    """
    whole = trace(frame)
    steps = [node for node in whole.expr.walk() if not is_root(node) and node.npartitions > 1]
    if whole.ranges is None or any(map(knows_its_number, steps)):
        raise ConfigError(
            f"part {part}: a part is of whole shards, and what was done to this dataset's rows is done to those of"
            " several together (a shuffle, a merge, a repartition) or depends on a partition's number (a sample). Save"
            " without part, or do that to the output afterwards"
        )
    shards = {each.shard.name for each in whole.ranges}
    mine = {name for name in shards if part.takes(name)}
    share = Share(part, whole, len(mine), len(shards))
    numbers = [number for number, each in enumerate(whole.ranges) if each.shard.name in mine]
    return (frame.partitions[numbers] if 0 < len(numbers) < len(whole.ranges) else frame), share
