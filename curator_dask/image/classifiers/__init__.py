"""Classifiers: heads on vectors, LAION's or your own, each with a column of scores."""

from curator_dask.image.classifiers.aesthetic import AestheticClassifier
from curator_dask.image.classifiers.base import ImageClassifier
from curator_dask.image.classifiers.clusters import ClusterNumber
from curator_dask.image.classifiers.file import HeadClassifier
from curator_dask.image.classifiers.files import score_output
from curator_dask.image.classifiers.nsfw import NsfwClassifier
from curator_dask.image.classifiers.reference import ReferenceSimilarity

__all__ = [
    "AestheticClassifier",
    "ClusterNumber",
    "HeadClassifier",
    "ImageClassifier",
    "NsfwClassifier",
    "ReferenceSimilarity",
    "score_output",
]
