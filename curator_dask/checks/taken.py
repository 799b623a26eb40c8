"""Columns of a dataset that have the names of statistics: a run that makes these is refused."""

from __future__ import annotations

from collections.abc import Sequence

from curator_dask.checks.glancing import Glance
from curator_dask.errors import CuratorError
from curator_dask.frames.names import STATISTIC_COLUMNS
from curator_dask.rows.reading import learn_schema
from curator_dask.storage import Options, is_remote


def taken_names(
    glances: Sequence[Glance], source: str, table: Sequence[str] | None, id_col: str, options: Options
) -> list[str]:
    """Those of `STATISTIC_COLUMNS` that the dataset has by itself.

    Parameters
    ----------
    glances
        At the shards.
    source
        Where the rows come from: ``"parquet"`` or ``"tar"``. Of tars in a store, which would have to be fetched,
        nothing is said.
    table
        Columns of the table that image files have; None: there is none.
    id_col
        Column of the keys.
    options
        For fsspec.
    """
    if table is not None:
        names = set(table)
    elif source == "parquet":
        # Those of an earlier run's files are its statistics, which are made anew.
        seen = [one.columns for one in glances if one.columns is not None]
        names = {name for schema, is_output in seen if not is_output for name in schema.names}
    elif is_remote(glances[0].shard.url):
        return []
    else:
        try:
            names = {
                *learn_schema([one.shard for one in glances if one.has_tar], "tar", id_col, options).names
            }
        except CuratorError:  # which other findings tell
            return []
    return [name for name in STATISTIC_COLUMNS if name in names]
