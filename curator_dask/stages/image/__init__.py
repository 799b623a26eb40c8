"""Stages for images: find shards, read them, embed, filter, leave out duplicates, write."""

from curator_dask.stages.image.convert import ConvertImageBatchToDocumentBatchStage, ParquetWriter
from curator_dask.stages.image.duplicates import ImageDuplicatesRemovalStage
from curator_dask.stages.image.embedding import ImageEmbeddingStage
from curator_dask.stages.image.filters import ImageAestheticFilterStage, ImageNSFWFilterStage
from curator_dask.stages.image.partitioning import FilePartitioningStage
from curator_dask.stages.image.reader import ImageReaderStage
from curator_dask.stages.image.reader_embedding import ImageReaderEmbeddingStage
from curator_dask.stages.image.statistics import ImageStatisticsStage
from curator_dask.stages.image.writer import ImageParquetWriterStage, ImageWriterStage

__all__ = [
    "ConvertImageBatchToDocumentBatchStage",
    "FilePartitioningStage",
    "ImageAestheticFilterStage",
    "ImageDuplicatesRemovalStage",
    "ImageEmbeddingStage",
    "ImageNSFWFilterStage",
    "ImageParquetWriterStage",
    "ImageReaderEmbeddingStage",
    "ImageReaderStage",
    "ImageStatisticsStage",
    "ImageWriterStage",
    "ParquetWriter",
]
