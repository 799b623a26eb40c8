"""What is where in images: things that a model finds, as boxes."""

from curator_dask.image.detection.model import DetectionModel

__all__ = ["DetectionModel"]
