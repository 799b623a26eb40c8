"""Statistics of the image itself: size, format, hashes, sharpness and the like; and what its file says of rights."""

from curator_dask.image.statistics.metadata import METADATA
from curator_dask.image.statistics.names import STATISTICS
from curator_dask.image.statistics.step import ImageStatistics

__all__ = ["METADATA", "STATISTICS", "ImageStatistics"]
