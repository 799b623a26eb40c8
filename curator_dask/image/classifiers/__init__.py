"""Classifiers: whole models of images, and heads on vectors, LAION's or your own, each with its columns."""

from curator_dask.image.classifiers.aesthetic import AestheticClassifier
from curator_dask.image.classifiers.base import ImageClassifier
from curator_dask.image.classifiers.clusters import ClusterDistance, ClusterNumber
from curator_dask.image.classifiers.file import HeadClassifier
from curator_dask.image.classifiers.files import score_output
from curator_dask.image.classifiers.model import ClassificationModel
from curator_dask.image.classifiers.nsfw import NsfwClassifier
from curator_dask.image.classifiers.reference import ReferenceSimilarity

__all__ = [
    "AestheticClassifier",
    "ClassificationModel",
    "ClusterDistance",
    "ClusterNumber",
    "HeadClassifier",
    "ImageClassifier",
    "NsfwClassifier",
    "ReferenceSimilarity",
    "score_output",
]
