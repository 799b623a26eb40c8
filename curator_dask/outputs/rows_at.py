"""Some rows of a Parquet file, by their numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from curator_dask.errors import OutputError
from curator_dask.frames.faults import faults_told
from curator_dask.frames.parquet import open_parquet
from curator_dask.outputs.given import rows_with_shards
from curator_dask.storage import Options

_BLOCK = 65_536  # rows that are read at once


def rows_at(
    path: str, rows: np.ndarray, columns: Sequence[str], options: Options, beside: bool = True
) -> pa.Table:
    """The rows in the order that is given, with those of these columns that there are.

    Only their row groups are read, some rows at a time: memory does not grow with these.

    Parameters
    ----------
    path, options
        Where the file is.
    rows
        int64 (n,), at least one: numbers of rows.
    columns
        Their names.
    beside
        Which shard rows without one are of is told by the tar beside their file; see `rows_with_shards`.

    Raises
    ------
    OutputError
        The file cannot be read, or has fewer rows.
    """
    wanted = np.unique(rows)
    parts: list[pa.RecordBatch] = []
    with faults_told(path), open_parquet(path, options) as file:
        if wanted[-1] >= file.metadata.num_rows:
            raise OutputError(
                f"{path}: has {file.metadata.num_rows} rows, and row {int(wanted[-1])} is asked for: it was changed"
                " in the meantime. Run again"
            )
        names = file.schema_arrow.names
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        starts = np.cumsum([0, *sizes])
        for group in np.unique(np.searchsorted(starts, wanted, side="right") - 1).tolist():
            first = int(starts[group])
            blocks = (
                rows_with_shards(file, path, columns, _BLOCK, options, [group])
                if beside
                else file.iter_batches(_BLOCK, [group], [name for name in columns if name in names])
            )
            for batch in blocks:
                inside = wanted[(wanted >= first) & (wanted < first + batch.num_rows)] - first
                if len(inside):
                    parts.append(batch.take(pa.array(inside)))
                first += batch.num_rows
    table = pa.Table.from_batches(parts)
    return table.take(pa.array(np.searchsorted(wanted, rows))).combine_chunks()
