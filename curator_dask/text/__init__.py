"""Text: vectors of captions, how well an image and its caption fit, and labels by prompts."""

from curator_dask.text.embedders import ClipTextEmbedder, TextEmbedder

__all__ = ["ClipTextEmbedder", "TextEmbedder"]
