"""`ImageParquetWriterStage`: where the images' rows are written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from curator_dask.errors import ConfigError
from curator_dask.stages.base import Names, Stage


class ImageParquetWriterStage(Stage):
    """Writes a row an image, one Parquet file a shard; last stage of a pipeline.

    The files are those that `ImageTextPairDataset.save_metadata` writes, by the same code: each is there whole or
    not at all, and a second run writes only what is missing or differs.

    Parameters
    ----------
    path
        Directory or fsspec URL.
    fields
        What to write, by name; None is everything: the dataset's columns, what stages have added,
        ``image_embedding`` and ``image_error``. Where a stage adds a field without saying its type, a mapping gives
        it here: ``{"brightness": "float32", ...}`` (None for those whose type is known).
    image_embedding_column
        Name of the vectors' column.
    overwrite, drop_failed, storage_options
        As for `ImageTextPairDataset.save_metadata`.

    Raises
    ------
    ConfigError
        An argument has a value that it cannot have.
    """

    name = "image_parquet_writer"

    def __init__(
        self,
        path: str | os.PathLike[str],
        fields: Sequence[str] | Mapping[str, str | pa.DataType | None] | None = None,
        *,
        image_embedding_column: str = "image_embedding",
        overwrite: bool = False,
        drop_failed: bool = False,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(path, str | os.PathLike) or not os.fspath(path):
            raise ConfigError(f"path={path!r}: expected a directory or URL")
        if isinstance(fields, str) or (fields is not None and not fields):
            raise ConfigError(f"fields={fields!r}: expected a list of names")
        if not isinstance(image_embedding_column, str) or not image_embedding_column:
            raise ConfigError(f"image_embedding_column={image_embedding_column!r}: expected a name")
        if storage_options is not None and not isinstance(storage_options, Mapping):
            raise ConfigError(f"storage_options={storage_options!r}: expected a mapping")
        self.path = os.fspath(path)
        self.fields = None if fields is None else list(fields)
        self.types = dict(fields) if isinstance(fields, Mapping) else {}
        self.image_embedding_column = image_embedding_column
        self.overwrite = overwrite
        self.drop_failed = drop_failed
        self.storage_options = storage_options
        for name, kind in self.types.items():
            if isinstance(kind, str):
                try:
                    self.types[name] = pa.type_for_alias(kind)
                except ValueError:
                    raise ConfigError(
                        f"fields: {name!r} has type {kind!r}; expected a name that pyarrow knows, such as 'float32' or"
                        " 'string'"
                    ) from None
            elif kind is not None and not isinstance(kind, pa.DataType):
                raise ConfigError(
                    f"fields: {name!r} has type {kind!r}; expected a name such as 'float32', or None"
                )

    def inputs(self) -> Names:
        """Images, with or without vectors."""
        return ["data"], ["image_id", "metadata"]
