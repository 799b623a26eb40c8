"""Duplicates among vectors."""

from curator_dask.dedup.nemo import ClusteringModel, SemanticClusterLevelDedup
from curator_dask.dedup.ranking import RankingStrategy
from curator_dask.dedup.result import Duplicates
from curator_dask.dedup.semantic import SemanticDeduplication
from curator_dask.dedup.summary import DedupSummary

__all__ = [
    "ClusteringModel",
    "DedupSummary",
    "Duplicates",
    "RankingStrategy",
    "SemanticClusterLevelDedup",
    "SemanticDeduplication",
]
