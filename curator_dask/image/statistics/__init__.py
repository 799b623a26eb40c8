"""Statistics of the image itself: size, format, perceptual hashes, sharpness, brightness and the like."""

from curator_dask.image.statistics.step import STATISTICS, ImageStatistics

__all__ = ["STATISTICS", "ImageStatistics"]
