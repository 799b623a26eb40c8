"""Duplicates among vectors."""

from curator_dask.dedup.result import Duplicates
from curator_dask.dedup.semantic import SemanticDeduplication
from curator_dask.dedup.summary import DedupSummary

__all__ = ["DedupSummary", "Duplicates", "SemanticDeduplication"]
