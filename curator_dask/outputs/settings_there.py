"""Which arguments of which models made the columns of an output, as its files say."""

from __future__ import annotations

from typing import Any

from curator_dask.errors import OutputError
from curator_dask.frames.parquet import list_parquet, whole_footers
from curator_dask.outputs.placing import locate
from curator_dask.storage import Options


def find_settings(path: str, options: Options = None) -> dict[str, dict[str, Any]]:
    """By column, the arguments of the embedder that made an output, for those that JSON can hold.

    Raises
    ------
    OutputError
        No file there was written by curator_dask, or one cannot be read.
    """
    footers = whole_footers(sorted(list_parquet(locate(path, options), options)), options)
    records = [footer.record for footer in footers.values() if footer.record is not None]
    if not records:
        raise OutputError(f"{path}: no file of curator_dask's is there. Give the folder that embed wrote to")
    # A model may have been run on some of the shards alone.
    every = {name: made_by for record in reversed(records) for name, made_by in record.settings.items()}
    return {name: made_by for name, made_by in every.items() if made_by}


def settings_of(path: str, column: str, options: Options = None) -> dict[str, Any]:
    """The same of one column; empty where no file of an output says it."""
    files = sorted(list_parquet(locate(path, options), options))
    records = (footer.record for footer in whole_footers(files, options).values())
    said = (record.settings.get(column) for record in records if record is not None)
    return next((dict(each) for each in said if each), {})
