"""The rows of a pool that are nearest to each row of a curated set, as DINOv2's dataset was made."""

from curator_dask.retrieval.retrieving import retrieve
from curator_dask.retrieval.summary import RetrievalSummary

__all__ = ["RetrievalSummary", "retrieve"]
