"""Embedders: any timm model, transformers' CLIP and SigLIP, or your own."""

from curator_dask.image.embedders.base import ImageEmbedder
from curator_dask.image.embedders.clip import ClipImageEmbedder
from curator_dask.image.embedders.timm import TimmImageEmbedder

__all__ = ["ClipImageEmbedder", "ImageEmbedder", "TimmImageEmbedder"]
