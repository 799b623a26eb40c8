"""What `search` and `browse` do for an index of the vectors."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator_dask.cli.options import ClusterType, workers_of

if TYPE_CHECKING:
    from curator_dask.indexing import VectorIndex
    from curator_dask.storage import Options

_FEW = 200_000  # rows that are indexed before workers have started


def opened_index(
    embeddings: str,
    folder: Path,
    column: str,
    options: Options,
    cluster: ClusterType,
    address: str | None,
    file: str | None,
    number: int | None,
) -> VectorIndex:
    """The index in a folder, made or made to fit where need be: by workers, where there are many rows."""
    from curator_dask.frames.parquet import whole_footers
    from curator_dask.indexing.searching import open_index
    from curator_dask.outputs.given import given_files
    from curator_dask.outputs.placing import locate
    from curator_dask.storage import join

    def started() -> AbstractContextManager[Any]:
        place = locate(embeddings, options)
        paths = [join(place, name) for name in given_files(place, options)]
        rows = sum(footer.rows for footer in whole_footers(paths, options).values())
        if rows <= _FEW and not (address or file or number):
            return nullcontext()
        return workers_of(cluster, address, file, number)

    return open_index(embeddings, folder, column=column, storage_options=options, workers=started)
