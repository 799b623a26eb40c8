"""How the rows of shards are laid out in partitions."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from curator_dask.errors import ConfigError, ShardError
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.rows.caption_files import TABLES
from curator_dask.rows.reading import ReadShard
from curator_dask.threads import in_threads
from curator_dask.webdataset.shards import Shard, ShardRange

logger = logging.getLogger("curator_dask")


def ranges_of(reader: ReadShard, shards: Sequence[Shard], rows_per_partition: int | None) -> list[ShardRange]:
    """A range a partition: a shard, or at most so many of its rows."""
    if rows_per_partition is None:
        return [ShardRange(shard) for shard in shards]
    whole = [ShardRange(shard) for shard in shards]
    ranges = []
    for shard, rows in zip(shards, row_counts(reader, whole), strict=True):
        starts = range(0, max(rows, 1), rows_per_partition)
        # The last part is open: rows are never lost to a count that was taken too early.
        stops = [*starts[1:], None]
        ranges += [
            ShardRange(shard, start, stop, part)
            for part, (start, stop) in enumerate(zip(starts, stops, strict=True))
        ]
    return ranges


def row_counts(reader: ReadShard, ranges: Sequence[ShardRange]) -> list[int]:
    """How many rows each range has, by footers and indexes alone; none where a shard cannot be read."""
    shards = list(dict.fromkeys(part.shard for part in ranges))
    rows = dict(zip(shards, in_threads(lambda shard: _count(reader, shard), shards), strict=True))
    return [
        max(0, min(rows[part.shard], rows[part.shard] if part.stop is None else part.stop) - part.start)
        for part in ranges
    ]


def _count(reader: ReadShard, shard: Shard) -> int:
    try:
        return reader.count(shard)
    except ShardError as error:
        logger.warning("%s", error)  # its partition will say so too, without stopping the others
        return 0


def check_options(id_col: str, metadata: str, rows_per_partition: int | None = None) -> None:
    """Raise ConfigError where they are not what `ImageTextPairDataset.from_webdataset` takes."""
    if metadata not in ("auto", "parquet", "tar"):
        raise ConfigError(f"metadata={metadata!r}: expected 'auto', 'parquet' or 'tar'")
    if not isinstance(id_col, str) or not id_col:
        raise ConfigError(f"id_col={id_col!r}: expected the name of a column, such as 'key'")
    if id_col.lower().endswith(TABLES):
        raise ConfigError(f"id_col={id_col!r}: this is a file: from_images(folder, captions={id_col!r})")
    if id_col in (URL_COLUMN, ERROR_COLUMN):
        raise ConfigError(f"id_col={id_col!r}: this name is taken; give the column of the keys")
    if rows_per_partition is not None and (not isinstance(rows_per_partition, int) or rows_per_partition < 1):
        raise ConfigError(f"rows_per_partition={rows_per_partition!r}: expected a whole number of at least 1")
