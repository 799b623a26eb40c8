"""Stages by which pipelines of NeMo Curator 1.x write attributes of images as columns."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from curator_dask.errors import ConfigError
from curator_dask.stages.base import Names, ProcessingStage, TypedNames
from curator_dask.stages.image.writer import ImageParquetWriterStage
from curator_dask.tasks import EMBEDDING, ImageBatch

#: Attributes that become columns here, and those that writers write by themselves.
TEXTS = ("image_id", "image_path")
_WRITTEN = (EMBEDDING, "aesthetic_score", "nsfw_score")


class ConvertImageBatchToDocumentBatchStage(ProcessingStage[ImageBatch, ImageBatch]):
    """Makes columns of attributes of images. The batch stays one of images, and its rows keep what they have.

    Parameters
    ----------
    fields
        ``"image_id"`` and ``"image_path"`` become columns of these names; ``"embedding"``, ``"aesthetic_score"`` and
        ``"nsfw_score"`` are columns anyway where a stage makes them. None: ``["image_id"]``.

    Raises
    ------
    ConfigError
        An image has no such attribute, or none that is a column.
    """

    name = "convert_image_batch_to_document_batch"
    thread_safe = True

    def __init__(self, fields: Sequence[str] | None = None) -> None:
        self.fields = list(fields or ["image_id"])
        if unknown := [name for name in self.fields if name not in (*TEXTS, *_WRITTEN)]:
            raise ConfigError(f"fields: expected of {[*TEXTS, *_WRITTEN]}, found {unknown}")

    def inputs(self) -> Names:
        """The attributes."""
        return ["data"], self.fields

    def outputs(self) -> TypedNames:
        """Columns of text."""
        return ["data"], {name: pa.string() for name in self._texts}

    @property
    def _texts(self) -> list[str]:
        return [name for name in self.fields if name in TEXTS]

    def process(self, task: ImageBatch) -> ImageBatch:
        """Add the columns."""
        for image in task.data:
            for name in self._texts:
                image.metadata[name] = getattr(image, name)
        return task


class ParquetWriter(ImageParquetWriterStage):
    """Writes a row an image, as `ImageParquetWriterStage`, with the vectors in a column ``embedding``.

    Parameters
    ----------
    path, fields, overwrite, storage_options
        As for `ImageParquetWriterStage`.
    """

    name = "parquet_writer"

    def __init__(
        self,
        path: str | os.PathLike[str],
        fields: Sequence[str] | None = None,
        *,
        overwrite: bool = False,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            path,
            fields,
            image_embedding_column=EMBEDDING,
            overwrite=overwrite,
            storage_options=storage_options,
        )
