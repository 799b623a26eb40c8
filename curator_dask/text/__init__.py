"""Text: vectors of captions, how well an image and its caption fit, and labels by prompts."""

from curator_dask.text.embedders import ClipTextEmbedder, SentenceEmbedder, TextEmbedder
from curator_dask.text.score import ClipScore
from curator_dask.text.zero_shot import ZeroShotClassifier

__all__ = ["ClipScore", "ClipTextEmbedder", "SentenceEmbedder", "TextEmbedder", "ZeroShotClassifier"]
