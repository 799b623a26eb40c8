"""Statistics of the image itself: size, format, hashes, sharpness and others; buckets; what its file says of rights."""

from curator_dask.image.statistics.buckets import AspectBuckets
from curator_dask.image.statistics.metadata import METADATA
from curator_dask.image.statistics.names import STATISTICS
from curator_dask.image.statistics.step import ImageStatistics

__all__ = ["METADATA", "STATISTICS", "AspectBuckets", "ImageStatistics"]
