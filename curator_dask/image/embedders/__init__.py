"""Embedders: any timm model, or your own."""

from curator_dask.image.embedders.base import ImageEmbedder
from curator_dask.image.embedders.timm import TimmImageEmbedder

__all__ = ["ImageEmbedder", "TimmImageEmbedder"]
