"""Text: vectors and statistics of captions, how well an image and its caption fit, and labels by prompts."""

from curator_dask.text.embedders import ClipTextEmbedder, SentenceEmbedder, TextEmbedder
from curator_dask.text.measures import TEXT_STATISTICS
from curator_dask.text.neg_clip_loss import NegClipLoss
from curator_dask.text.same import SameCaptions
from curator_dask.text.score import ClipScore
from curator_dask.text.statistics import TextStatistics
from curator_dask.text.zero_shot import ZeroShotClassifier

__all__ = [
    "TEXT_STATISTICS",
    "ClipScore",
    "ClipTextEmbedder",
    "NegClipLoss",
    "SameCaptions",
    "SentenceEmbedder",
    "TextEmbedder",
    "TextStatistics",
    "ZeroShotClassifier",
]
