"""`ImageDuplicatesRemovalStage`: leaves out images that files of ids name."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import pyarrow.compute as pc

from curator_dask.errors import ConfigError, OutputError
from curator_dask.frames.faults import faults_told
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import open_parquet
from curator_dask.outputs.failed import output_files
from curator_dask.outputs.placing import locate
from curator_dask.rows.ids import exact_ids
from curator_dask.stages.base import Names, ProcessingStage
from curator_dask.storage import join
from curator_dask.tasks import ImageBatch

#: Column of a deduplication's own table, which names the rows that stay, too.
KEPT = "kept"


class ImageDuplicatesRemovalStage(ProcessingStage[ImageBatch, ImageBatch]):
    """Leaves out the images whose ids stand in Parquet files, and counts them.

    Where the files have a column ``__url__`` too, an image is left out if its key and its shard are named together;
    else every image with such a key, in whatever shard.

    Parameters
    ----------
    removal_parquets_dir
        Folder with the files: all rows of all of them, but for those whose column ``kept`` is true, as dedup writes it.
    duplicate_id_field
        Their column with the ids, which are the keys of the samples.
    verbose
        Taken for the sake of scripts of NeMo Curator 1.x: what is left out is counted in the summary.

    Raises
    ------
    ConfigError
        An argument has a value that it cannot have, or the files have no such column.
    OutputError
        There is no Parquet file.
    """

    name = "image_dedup_filter"
    thread_safe = True
    #: What is left out is in `ids`.
    uncounted = frozenset({"removal_parquets_dir", "duplicate_id_field", "verbose"})

    def __init__(
        self,
        removal_parquets_dir: str | os.PathLike[str],
        duplicate_id_field: str = "id",
        verbose: bool = False,
    ) -> None:
        if not isinstance(removal_parquets_dir, str | os.PathLike) or not os.fspath(removal_parquets_dir):
            raise ConfigError(f"removal_parquets_dir={removal_parquets_dir!r}: expected a directory")
        if not isinstance(duplicate_id_field, str) or not duplicate_id_field:
            raise ConfigError(f"duplicate_id_field={duplicate_id_field!r}: expected the name of a column")
        self.removal_parquets_dir = locate(os.fspath(removal_parquets_dir), None)
        self.duplicate_id_field = duplicate_id_field
        self.verbose = verbose
        #: Of what is removed, so that another list is another pipeline.
        self.ids = _digest(*_removed(self.removal_parquets_dir, self.duplicate_id_field))
        self._removed: tuple[frozenset[Any], bool] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_removed": None}

    def inputs(self) -> Names:
        """Images with their keys."""
        return ["data"], ["image_id"]

    def outputs(self) -> Names:
        """Nothing is made."""
        return ["data"], []

    def setup(self, worker_metadata: Any = None) -> None:
        """Read the ids, once a worker."""
        self._removed = _removed(self.removal_parquets_dir, self.duplicate_id_field)

    def process(self, task: ImageBatch) -> ImageBatch:
        """Leave out what is named."""
        if self._removed is None:
            self.setup()
        assert self._removed is not None
        removed, with_shard = self._removed
        task.data = [
            image
            for image in task.data
            if ((image.metadata.get(URL_COLUMN), image.image_id) if with_shard else image.image_id)
            not in removed
        ]
        return task

    def teardown(self) -> None:
        """Let the ids go."""
        self._removed = None


def _removed(folder: str, id_field: str) -> tuple[frozenset[Any], bool]:
    """What is to be left out: keys, or pairs of shard and key; and which of the two."""
    names = output_files(folder, None)
    if not names:
        raise OutputError(
            f"{folder}: no Parquet file is there. Give the folder with the ids of the images to remove"
        )
    found: list[set[Any]] = []
    shards = []
    for name in names:
        with faults_told(join(folder, name)), open_parquet(join(folder, name)) as file:
            columns = file.schema_arrow.names
            if id_field not in columns:
                raise ConfigError(
                    f"duplicate_id_field={id_field!r}: {name} in {folder} has no such column; it has {columns}"
                )
            shards.append(URL_COLUMN in columns)
            kept = [KEPT] if KEPT in columns else []
            table = file.read(columns=[id_field, *([URL_COLUMN] if shards[-1] else []), *kept])
        if kept:
            table = table.filter(pc.invert(table.column(KEPT)))
        ids = [str(each) for each in exact_ids(table.column(id_field).combine_chunks())]
        found.append({*zip(table.column(URL_COLUMN).to_pylist(), ids, strict=True)} if shards[-1] else {*ids})
    if len(set(shards)) > 1:
        raise ConfigError(f"{folder}: some of its files have a column {URL_COLUMN!r} and others have not")
    return frozenset().union(*found), shards[0]


def _digest(removed: frozenset[Any], with_shard: bool) -> str:
    listed = "\n".join(sorted(map(repr, removed)))
    return hashlib.sha256(f"{with_shard}\n{listed}".encode()).hexdigest()[:12]
