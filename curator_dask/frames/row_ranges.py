"""Some rows of a Parquet file, of which only the row groups that hold them are read."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq


def row_range(file: pq.ParquetFile, columns: list[str], start: int, stop: int | None) -> pa.Table:
    """Rows ``start:stop``, reading only the row groups that hold them."""
    first, groups, skipped = 0, [], 0
    for number in range(file.num_row_groups):
        last = first + file.metadata.row_group(number).num_rows
        if last <= start:
            skipped = last
        elif stop is None or first < stop:
            groups.append(number)
        first = last
    table = file.read_row_groups(groups, columns=columns)
    return table.slice(start - skipped, None if stop is None else stop - start)
