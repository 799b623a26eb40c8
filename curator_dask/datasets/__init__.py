"""Datasets of image-text pairs."""

from curator_dask.datasets.image_text_pair import ImageTextPairDataset

__all__ = ["ImageTextPairDataset"]
