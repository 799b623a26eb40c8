"""Texts about images: captions that a model makes."""

from curator_dask.image.captioning.model import CAPTION_COLUMN, CaptionModel

__all__ = ["CAPTION_COLUMN", "CaptionModel"]
