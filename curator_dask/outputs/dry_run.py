"""What an export that is only planned would leave out: it is known to none but those who write a tar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from curator_dask.frames.names import ERROR_COLUMN
from curator_dask.outputs.export_summary import ExportSummary
from curator_dask.outputs.left_out import take_out
from curator_dask.outputs.packing import PackShard
from curator_dask.outputs.sharding import NewShard
from curator_dask.outputs.taken_down import taken_down


def count_taken_down(pack: PackShard, shards: Sequence[NewShard], summary: ExportSummary) -> None:
    """Count in a dry run what would be left out, a tar at a time; nothing is read where nothing was taken down."""
    if taken_down(*pack.target) is None:
        return
    # Of the rows no more is read than tells them, and what is counted of them.
    small = replace(pack, schema=None, json_columns=(ERROR_COLUMN,), caption=None)
    for shard in shards:
        left, *_ = small.remaining(shard)
        if left.lost:
            take_out(summary, left.lost, summary.parts_of(shard.split))
            if not left.keys and pack.suffix == ".tar":
                summary.emptied.append(pack.name(shard.split, shard.number))
