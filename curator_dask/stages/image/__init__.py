"""Stages for images: find shards, read them, embed, filter, write."""

from curator_dask.stages.image.embedding import ImageEmbeddingStage
from curator_dask.stages.image.filters import ImageAestheticFilterStage, ImageNSFWFilterStage
from curator_dask.stages.image.partitioning import FilePartitioningStage
from curator_dask.stages.image.reader import ImageReaderStage
from curator_dask.stages.image.writer import ImageParquetWriterStage

__all__ = [
    "FilePartitioningStage",
    "ImageAestheticFilterStage",
    "ImageEmbeddingStage",
    "ImageNSFWFilterStage",
    "ImageParquetWriterStage",
    "ImageReaderStage",
]
