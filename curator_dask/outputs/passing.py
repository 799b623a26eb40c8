"""Which rows of an output pass a condition, all files together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from curator_dask.frames.faults import faults_told
from curator_dask.frames.parquet import open_parquet
from curator_dask.outputs.nearest import VectorFiles
from curator_dask.rows.where import Where

_BLOCK = 65_536  # rows that are read at once


@dataclass(frozen=True, eq=False)
class Passing:
    """The rows that pass a condition.

    Attributes
    ----------
    text
        Of the condition.
    masks
        Bool (rows,) of each file, by its path, in order.
    """

    text: str
    masks: Mapping[str, np.ndarray]

    @property
    def count(self) -> int:
        """How many rows pass."""
        return sum(int(each.sum()) for each in self.masks.values())

    @classmethod
    def of(cls, files: VectorFiles, where: Where) -> Passing:
        """Ask all rows; of the files only the columns are read that the condition names.

        A column that some files lack is null there; one that all lack is an error.

        Raises
        ------
        ConfigError
            The condition does not fit the columns.
        OutputError
            A file cannot be read.
        """
        types: dict[str, pa.DataType] = {}
        for path in files.records:
            with faults_told(path), open_parquet(path, files.options) as file:
                for field in file.schema_arrow:
                    types.setdefault(field.name, field.type)
        columns = list(types)
        named = where.columns(columns)
        masks = {}
        for path in files.records:
            parts = [np.zeros(0, bool)]
            with faults_told(path), open_parquet(path, files.options) as file:
                there = [name for name in named if name in file.schema_arrow.names]
                # A condition without a column is asked for each row, too.
                read = there or file.schema_arrow.names[:1]
                for batch in file.iter_batches(_BLOCK, columns=read):
                    table = pa.Table.from_batches([batch])
                    for name in named:
                        if name not in there:
                            table = table.append_column(name, pa.nulls(batch.num_rows, types[name]))
                    parts.append(where.passes(table, columns) == 1)
            masks[path] = np.concatenate(parts)
        return cls(where.text, masks)
