"""`ImageReaderEmbeddingStage`: from shards to vectors, in one stage."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from curator_dask.stages.base import CompositeStage, Stage
from curator_dask.stages.image.embedding import ImageEmbeddingStage
from curator_dask.stages.image.reader import ImageReaderStage
from curator_dask.tasks import FileGroupTask, ImageBatch


class ImageReaderEmbeddingStage(CompositeStage[FileGroupTask, ImageBatch]):
    """An `ImageReaderStage` and an `ImageEmbeddingStage` behind it, as one stage; second stage of a pipeline.

    A pipeline makes the same of the two where they are added one by one: pixels stay on the worker, and on the GPU.

    Parameters
    ----------
    model_dir, model_inference_batch_size, remove_image_data
        As for `ImageEmbeddingStage`.
    dali_batch_size, reader_num_threads
        As ``dali_batch_size`` and ``num_threads`` for `ImageReaderStage`.
    num_gpus_per_worker
        See `curator_dask.stages.base.Stage`.
    verbose
        Log batches and rates.
    batch_size, name
        Taken for the sake of scripts of NeMo Curator 1.x: a task is one group of shards.
    **options
        Further arguments of `ImageEmbeddingStage`, such as ``model_name``.

    Raises
    ------
    ConfigError
        An argument has a value that it cannot have.
    """

    def __init__(
        self,
        model_dir: str | os.PathLike[str] | None = None,
        dali_batch_size: int = 100,
        reader_num_threads: int = 4,
        num_gpus_per_worker: float = 0.25,
        model_inference_batch_size: int = 500,
        remove_image_data: bool = True,
        verbose: bool = False,
        batch_size: int = 1,
        name: str = "image_reader_embedding",
        **options: Any,
    ) -> None:
        self.name = name
        self._parts = (
            ImageReaderStage(
                dali_batch_size=dali_batch_size,
                num_threads=reader_num_threads,
                num_gpus_per_worker=num_gpus_per_worker,
                verbose=verbose,
            ),
            ImageEmbeddingStage(
                model_dir,
                num_gpus_per_worker=num_gpus_per_worker,
                model_inference_batch_size=model_inference_batch_size,
                remove_image_data=remove_image_data,
                verbose=verbose,
                **options,
            ),
        )

    def decompose(self) -> Sequence[Stage]:
        """The two."""
        return self._parts
