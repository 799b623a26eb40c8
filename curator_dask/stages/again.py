"""Which embedder of the dataset API makes the same vectors as a pipeline: for retries, which know no pipeline."""

from __future__ import annotations

from typing import Any

from curator_dask.image.embedders import ClipImageEmbedder
from curator_dask.stages.fused import RunStages
from curator_dask.stages.image.embedding import ImageEmbeddingStage


def embedder_arguments(step: RunStages) -> dict[str, Any]:
    """By column, arguments of the embedder that makes the same; none where a stage of the user's own touches it."""
    reader, columns, untouched = step.reader, {each: column for column, each in step.vectors}, step.read_by
    return {
        columns[stage.embedding_field]: ClipImageEmbedder(
            stage.model_name,
            stage.model_dir,
            batch_size=stage.model_inference_batch_size,
            num_threads_per_worker=reader.num_threads,
            image_embedding_column=columns[stage.embedding_field],
            autocast=stage.autocast,
            compile=stage.compile,
            use_index_files=reader.use_index_files,
            decoder=reader.decoder,
            max_pixels=reader.max_pixels,
            image_member=reader.image_member,
            gray16=reader.gray16,
            orientation=reader.orientation,
        ).settings()
        for stage in step.chain.stages
        if type(stage) is ImageEmbeddingStage and columns[stage.embedding_field] in untouched
    }
