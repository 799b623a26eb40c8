"""Statistics of the image itself: size, format, perceptual hashes, sharpness, brightness and the like; and buckets."""

from curator_dask.image.statistics.buckets import AspectBuckets
from curator_dask.image.statistics.step import STATISTICS, ImageStatistics

__all__ = ["STATISTICS", "AspectBuckets", "ImageStatistics"]
