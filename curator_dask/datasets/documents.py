"""`DocumentDataset`: a frame by the name that scripts of NeMo Curator 0.9 give it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.dataframe as dd
import pyarrow as pa

from curator_dask import backend
from curator_dask.datasets.meta import worker_backend
from curator_dask.errors import ConfigError, OutputError
from curator_dask.frames.faults import faults_told
from curator_dask.frames.parquet import open_parquet
from curator_dask.outputs.failed import output_files
from curator_dask.outputs.placing import locate
from curator_dask.runs.graph import map_items
from curator_dask.storage import Options, join


class DocumentDataset:
    """A Dask frame with a row an item: what `curator_dask.dedup.ClusteringModel` takes and gives.

    Parameters
    ----------
    dataset_df
        The frame, such as ``dataset.metadata``. It may be lazy.

    Attributes
    ----------
    df
        The frame.
    """

    def __init__(self, dataset_df: dd.DataFrame) -> None:
        if not isinstance(dataset_df, dd.DataFrame):
            raise ConfigError(
                f"dataset_df: expected a Dask DataFrame, such as dataset.metadata, found {type(dataset_df).__name__}"
            )
        self.df = dataset_df

    @classmethod
    def read_parquet(
        cls,
        input_files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        backend: str | None = None,
        *,
        columns: Sequence[str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> DocumentDataset:
        """Of Parquet files, one partition a file.

        Parameters
        ----------
        input_files
            A file, a folder of files, or a list of these; URLs too.
        backend
            Taken for the sake of scripts of NeMo Curator 0.9: frames are of the kind that the workers make.
        columns
            Which; None is all.
        storage_options
            For fsspec.

        Raises
        ------
        OutputError
            There is no such file, or one that cannot be read.
        """
        given = [input_files] if isinstance(input_files, str | os.PathLike) else list(input_files)
        paths: list[str] = []
        for each in given:
            path = locate(os.fspath(each), storage_options)
            found = [join(path, name) for name in output_files(path, storage_options)]
            paths += found or [path]
        if not paths:
            raise OutputError("input_files=[]: expected the path of a Parquet file, or of a folder of them")
        read = ReadFile(None if columns is None else tuple(columns), storage_options)
        empty = worker_backend().from_arrow(read.table(paths[0]).slice(0, 0))
        return cls(map_items(read, paths, empty, "read-parquet"))

    def persist(self) -> DocumentDataset:
        """The same, computed and kept on the workers."""
        return DocumentDataset(self.df.persist())

    def to_pandas(self) -> Any:
        """All rows as one pandas frame."""
        return self.df.to_backend("pandas").compute()

    def __len__(self) -> int:
        return len(self.df)


@dataclass(frozen=True)
class ReadFile:
    """Reads a Parquet file as a frame.

    Attributes
    ----------
    columns
        Which; None is all.
    options
        For fsspec.
    """

    columns: tuple[str, ...] | None
    options: Options

    def table(self, path: str) -> pa.Table:
        """The file's columns.

        Raises
        ------
        OutputError
            It cannot be read.
        """
        with faults_told(path), open_parquet(path, self.options) as file:
            table = file.read(columns=None if self.columns is None else list(self.columns))
        return table.replace_schema_metadata(None)

    def __call__(self, path: str) -> Any:
        """The same as a frame of this process's kind."""
        return backend.current().from_arrow(self.table(path))
