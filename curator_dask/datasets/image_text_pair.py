"""`ImageTextPairDataset`: WebDataset shards as a Dask DataFrame whose rows know their image."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

import dask.dataframe as dd

from curator_dask.arguments import called_as
from curator_dask.console import show_in_notebook
from curator_dask.datasets.collection import Collection
from curator_dask.datasets.exportable import Exportable
from curator_dask.datasets.gallery import Gallery, first_tiles, without_looking
from curator_dask.datasets.ranges import row_counts
from curator_dask.datasets.selectable import Selectable
from curator_dask.datasets.showing import as_html, as_text, describe_first
from curator_dask.datasets.sources import Sources
from curator_dask.errors import ConfigError, DatasetError
from curator_dask.frames.columns import embedding_columns
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.outputs.saving import save
from curator_dask.rows.where import Where
from curator_dask.runs.graph import map_step, steps_of
from curator_dask.runs.lineage import trace
from curator_dask.runs.parts import Part
from curator_dask.runs.step import Step, check_step
from curator_dask.runs.summary import SaveSummary
from curator_dask.webdataset.folders import is_folder_shard
from curator_dask.words import some_of_these

logger = logging.getLogger("curator_dask")


class ImageTextPairDataset(Sources, Collection, Selectable, Exportable):
    """Image-text pairs: a lazy frame with a row a pair, and the shards that hold the images.

    Make one with `from_webdataset`, `from_images` or `from_parquet`. `metadata` may be replaced by anything made from
    it (columns selected, rows filtered, partitions picked, shuffled, repartitioned): a row finds its image by its key
    and its shard, the columns `id_col` and ``__url__``, which must be kept for as long as images are needed.

    Parameters
    ----------
    path
        Directory of the dataset; `save_metadata` writes there unless told otherwise.
    metadata
        Dask DataFrame with the columns `id_col` and ``__url__``.
    tar_files
        Urls of the shards.
    id_col
        Column of the keys.
    storage_options
        For fsspec, where the shards are remote.
    """

    def __init__(
        self,
        path: str,
        metadata: dd.DataFrame,
        tar_files: Sequence[str],
        id_col: str,
        *,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self.metadata = metadata
        self.tar_files = list(tar_files)
        self.id_col = id_col
        self.storage_options = storage_options
        # What made embeddings that the frame's own graph may no longer show, once it was persisted.
        self._steps: tuple[Step, ...] = ()

    def with_metadata(self, metadata: dd.DataFrame) -> Self:
        """The same dataset with another metadata frame."""
        dataset = type(self)(
            self.path, metadata, self.tar_files, self.id_col, storage_options=self.storage_options
        )
        dataset._steps = self._steps
        return dataset

    @property
    def steps(self) -> tuple[Step, ...]:
        """What has been applied, in this order."""
        return self._steps

    def apply(self, step: Step) -> Self:
        """The dataset with the columns of a step as its last; nothing is computed yet.

        Embedders and classifiers do this when they are called. Steps that follow one another share one reading and one
        decoding of each image.

        Parameters
        ----------
        step
            What is done to the rows of a shard: `curator_dask.runs.step.ColumnStep` is a base for your own.

        Raises
        ------
        ConfigError
            This is no step, or the name of a column that it makes is not free.
        DatasetError
            The metadata lacks what the step needs: the key column and ``__url__``, or vectors.
        """
        check_step(step)
        meta = self.metadata._meta
        if self.id_col in step.columns or URL_COLUMN in step.columns:
            raise ConfigError(
                f"{step.label}: makes {list(step.columns)}, and {self.id_col!r} is the column of the keys: give another"
                " name"
            )
        there = [name for name in step.columns if name in meta.columns and name != ERROR_COLUMN]
        if twice := [name for name in there if any(name in each.columns for each in self._steps)]:
            raise ConfigError(
                f"{step.label}: {twice} is made by a step before this one: give it another name"
            )
        if there:
            logger.info("%s: replaces the rows' own %s", step.label, ", ".join(map(repr, there)))
        missing = [name for name in (self.id_col, URL_COLUMN) if name not in meta.columns]
        if step.needs & {"bytes", "pixels"} and missing:
            raise DatasetError(
                f"the metadata lacks {missing}, by which a row finds its image; "
                f"it has {some_of_these(meta.columns, missing[0])}."
                " Keep these columns when selecting others"
            )
        if "vectors" in step.needs and not embedding_columns(meta):
            raise DatasetError(
                f"{step.label} needs vectors, and the metadata has none ({list(meta.columns)}): call an embedder first"
            )
        dataset = self.with_metadata(map_step(self.metadata, step))
        dataset._steps = (*self._steps, step)
        return dataset

    @called_as("save_metadata('/path/to/embeddings', columns=['key', 'width'], overwrite=True)")
    def save_metadata(
        self,
        path: str | os.PathLike[str] | None = None,
        columns: Sequence[str] | None = None,
        *,
        overwrite: bool = False,
        drop_failed: bool = False,
        part: tuple[int, int] | str | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> SaveSummary:
        """Compute the metadata and write it as Parquet, one file a partition, named after its shard.

        Every file appears whole or not at all. A second call writes only what is missing or no longer fits
        (another shard, another model, another package version), so an interrupted run is simply started again.
        Vectors that other runs have put there in columns of other names stay, with what was made of them.

        Parameters
        ----------
        path
            Directory or fsspec URL; None is the dataset's own.
        columns
            What to write; None is everything.
        overwrite
            Allow replacing what this call did not make: embeddings of another model, files of other programs,
            rows or columns of the dataset's own Parquet files that are no longer in `metadata`.
        drop_failed
            Write the good rows alone, and those whose image failed to a folder beside, `path` and ``.errors``. Not
            into the dataset's own directory: its files would lose these rows.
        part
            Do one part of the shards, ``(0, 8)`` or ``"0/8"`` to ``(7, 8)``, for jobs that know nothing of one another
            (an array of Slurm's): which shards are of a part is told by their names. Parts of one number may write to
            one output at once. A call without it does what is left.
        storage_options
            For fsspec, where `path` is a URL. None: those of the dataset, if it is in the same kind of store.

        Returns
        -------
        SaveSummary
            Counts, times and failures; it is also logged.

        Raises
        ------
        ConfigError
            There is no such part, or rows of several shards were mixed.
        OutputError
            Something would be replaced without `overwrite`, or cannot be written; another run writes there.
        """
        show_in_notebook()
        if path is None and any(map(is_folder_shard, self.tar_files[:1])):
            raise ConfigError(
                f"{self.path}: has images as files, no Parquet files: give save_metadata a path"
            )
        return save(
            self.metadata,
            self._steps,
            self.path,
            None if path is None else os.fspath(path),
            id_col=self.id_col,
            columns=columns,
            overwrite=overwrite,
            drop_failed=drop_failed,
            input_options=self.storage_options,
            output_options=storage_options,
            part=Part.of_given(part),
        )

    def head(self, n: int = 5, npartitions: int = 1, **kwargs: Any) -> Any:
        """The first rows of the first partitions; computes these, and says what that is where images are."""
        show_in_notebook()
        steps = [step for step in steps_of(self.metadata) if step.needs & {"bytes", "pixels"}]
        if steps:
            logger.info(
                "head computes %s with %s, and keeps no file: save_metadata does",
                describe_first(self.metadata, npartitions),
                ", ".join(step.label for step in steps),
            )
        return self.metadata.head(n, npartitions=npartitions, **kwargs)

    def show(self, n: int = 24, where: str | None = None) -> Gallery:
        """The first images as small pictures with key and caption, where a notebook shows a cell's last value.

        Images are read here, out of their tars. One that cannot be read is grey, with the reason. No model runs,
        unless the rows depend on what it makes.

        Parameters
        ----------
        n
            How many.
        where
            Only of rows that pass this condition; see `filter`.

        Raises
        ------
        ConfigError
            `where` is no such condition, or names a column that there is not.
        DatasetError
            The metadata lacks the columns by which a row finds its image.
        """
        named = () if where is None else Where(where).columns(list(self.metadata.columns))
        shown = self.with_metadata(without_looking(self.metadata, named))
        if where is not None:
            shown = shown.filter(where)
        tiles = first_tiles(shown.metadata, self.id_col, n)
        return Gallery([("", tiles)] if tiles else [], self.storage_options)

    def __len__(self) -> int:
        lineage = trace(self.metadata)
        if lineage.ranges is None or not lineage.keeps_rows or lineage.reader is None:
            return len(self.metadata)
        # Counting rows must not run a model: footers and indexes know.
        return sum(row_counts(lineage.reader, lineage.ranges))

    def __repr__(self) -> str:
        return as_text(self.path, self.id_col, self._counts, self.metadata)

    def _repr_html_(self) -> str:
        return as_html(self.path, self.id_col, self._counts, self.metadata)

    @property
    def _counts(self) -> dict[str, Any]:
        return {"shards": len(self.tar_files), "partitions": self.npartitions}
