"""Writers: the last stage of a pipeline, which says where the images' rows, or the images themselves, go."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.decode.encoding import FORMATS
from curator_dask.decode.spec import check_counts
from curator_dask.errors import ConfigError
from curator_dask.frames.names import ERROR_COLUMN
from curator_dask.outputs.encoded import Encoded
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.export_summary import ExportSummary
from curator_dask.outputs.exporting import export_frame
from curator_dask.outputs.saving import save
from curator_dask.runs.groups import Layout
from curator_dask.runs.summary import SaveSummary
from curator_dask.stages.base import Names, ProcessingStage, Stage, image_outputs, names_of
from curator_dask.stages.image.embedding import ImageEmbeddingStage
from curator_dask.stages.image.encoding import ENCODED, ImageEncodingStage
from curator_dask.stages.image.reader import ImageReaderStage


class WriterStage(Stage, ABC):
    """Base of the writers, which are the last stage of a pipeline; use one of those below."""

    #: What to write, by name; None is everything.
    fields: Sequence[str] | None = None
    #: Types of fields, where no stage says them.
    types: Mapping[str, Any] = {}
    image_embedding_column: str = "image_embedding"

    def before(self, stages: Sequence[Stage]) -> list[ProcessingStage[Any, Any]]:
        """Stages of its own that a pipeline has to put before the writer; none, unless it says so.

        Parameters
        ----------
        stages
            Those between the reader and the writer.

        Raises
        ------
        ConfigError
            The writer cannot write what these leave.
        """
        return []

    @abstractmethod
    def write(
        self,
        dataset: ImageTextPairDataset,
        made: ImageTextPairDataset,
        layout: Layout,
        reader: ImageReaderStage,
    ) -> SaveSummary | ExportSummary:
        """Run the stages, and write what they make.

        Parameters
        ----------
        dataset, made
            Before the stages, and with what they make.
        layout
            Of the tasks.
        reader
            The stage that reads the images.
        """

    def inputs(self) -> Names:
        """Images, with or without vectors."""
        return ["data"], ["image_id", "metadata"]


class ImageParquetWriterStage(WriterStage):
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

    def write(
        self,
        dataset: ImageTextPairDataset,
        made: ImageTextPairDataset,
        layout: Layout,
        reader: ImageReaderStage,
    ) -> SaveSummary:
        """As `ImageTextPairDataset.save_metadata`."""
        return save(
            made.metadata,
            [],
            dataset.path,
            self.path,
            id_col=dataset.id_col,
            columns=self.fields,
            overwrite=self.overwrite,
            drop_failed=self.drop_failed,
            input_options=dataset.storage_options,
            output_options=self.storage_options,
            layout=layout,
        )


class ImageWriterStage(WriterStage):
    """Writes the images that are left into new tars, with all other members of their samples; last stage of a pipeline.

    Every member is copied byte for byte out of the tar that it comes from, by the code of
    `ImageTextPairDataset.to_webdataset`, which also says what lies beside the tars. Where a stage changes pixels, which
    it says in its `outputs`, all images are encoded anew; other members are copied all the same. Images that cannot be
    used are left out, and counted. A second run writes only what is missing.

    Parameters
    ----------
    output_dir
        Directory or fsspec URL.
    images_per_tar
        Of every tar but the last, whatever the batches are.
    verbose
        Taken for the sake of scripts of NeMo Curator 1.x: what is written is logged anyway.
    deterministic_name
        True: tars are numbered in the order of the input.
    remove_image_data
        As `verbose`: pixels never leave the workers.
    original_bytes
        True: a stage that changes pixels is refused. False: images are encoded anew in any case. None: where a stage
        changes pixels.
    image_format, quality
        Of images that are encoded anew: ``"JPEG"``, ``"PNG"`` or ``"WEBP"``, and for JPEG and WebP 1 to 100.
    overwrite
        Replace the tars of another run.
    storage_options
        For fsspec, where `output_dir` is a URL.

    Raises
    ------
    ConfigError
        An argument has a value that it cannot have.
    """

    name = "image_writer"

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        images_per_tar: int = 1000,
        verbose: bool = False,
        deterministic_name: bool = True,
        remove_image_data: bool = False,
        *,
        original_bytes: bool | None = None,
        image_format: str = "JPEG",
        quality: int = 95,
        overwrite: bool = False,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(output_dir, str | os.PathLike) or not os.fspath(output_dir):
            raise ConfigError(f"output_dir={output_dir!r}: expected a directory or URL")
        check_counts(images_per_tar=images_per_tar)
        if not deterministic_name:
            raise ConfigError(
                "deterministic_name=False: tars are numbered in the order of the input, so that a second run finds what"
                " the first has written; leave it out"
            )
        self.output_dir = os.fspath(output_dir)
        self.images_per_tar = images_per_tar
        self.original_bytes = original_bytes
        self.encoding = ImageEncodingStage(image_format, quality)
        self.verbose = verbose
        self.remove_image_data = remove_image_data
        self.overwrite = overwrite
        self.storage_options = storage_options

    def before(self, stages: Sequence[Stage]) -> list[ProcessingStage[Any, Any]]:
        """What encodes the images, where they are not copied."""
        changing = [
            names_of(stage)
            for stage in stages
            if "image_data" in image_outputs(stage) and not isinstance(stage, ImageEmbeddingStage)
        ]
        if self.original_bytes is True and changing:
            raise ConfigError(
                "original_bytes=True: images are copied as they are in the input, without the pixels that"
                f" {changing[0]} changes: leave that stage out, or the argument, and they are encoded anew"
            )
        if self.original_bytes is not False and not changing:
            return []
        if removing := [names_of(stage) for stage in stages if "image_data" in stage.removes()]:
            raise ConfigError(
                f"stage {names_of(self)}: encodes images anew, and {removing[0]} removes their pixels"
                " (remove_image_data=True): leave them"
            )
        return [self.encoding]

    def write(
        self,
        dataset: ImageTextPairDataset,
        made: ImageTextPairDataset,
        layout: Layout,
        reader: ImageReaderStage,
    ) -> ExportSummary:
        """As `ImageTextPairDataset.to_webdataset`; images that were encoded anew are in a column of the rows."""
        encoded = None
        if ENCODED in made.metadata.columns:
            encoded = Encoded(ENCODED, FORMATS[self.encoding.image_format].suffix, reader.image_member)
        return export_frame(
            made.metadata,
            [],
            dataset.tar_files,
            self.output_dir,
            ExportOptions(
                samples_per_shard=self.images_per_tar,
                where=f'"{ERROR_COLUMN}" IS NULL',
                overwrite=self.overwrite,
            ),
            id_col=dataset.id_col,
            input_options=dataset.storage_options,
            output_options=self.storage_options,
            layout=layout,
            encoded=encoded,
        )
