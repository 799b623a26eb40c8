"""Reading what decides to which folder each sample of an export goes: a column, or an expression of columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from curator_dask.errors import ConfigError
from curator_dask.frames.parquet import read_footer
from curator_dask.outputs.choosing import read_rows
from curator_dask.outputs.groups import GroupBy, Grouped
from curator_dask.outputs.selecting import Folder
from curator_dask.outputs.splits import distinct
from curator_dask.threads import in_threads


def group_samples(
    groups: GroupBy,
    selected: Folder,
    rows: Folder,
    names: Sequence[str],
    earlier: Mapping[str | None, str],
) -> Grouped:
    """See which folder samples go to; 8 bytes a sample are held.

    Parameters
    ----------
    groups
        By what.
    selected, names
        The tables of samples.
    rows
        The rows that they are of.
    earlier
        By value, the folders that there are.

    Raises
    ------
    ConfigError
        The column does not fit, or has too many values.
    """

    def look(name: str) -> tuple[list[bytes], np.ndarray]:
        places = read_rows(selected.file(name), selected.options, ["row"]).column(0)
        path = rows.file(name)
        columns = read_footer(path, rows.options).columns
        table = read_rows(path, rows.options, groups.by.columns(columns)).take(places)
        try:
            return distinct(groups.by.values(table, columns))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    return Grouped.by(groups, in_threads(look, names), earlier)
