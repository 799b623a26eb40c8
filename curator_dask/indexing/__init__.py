"""An index of an output's vectors: searches of many millions of rows in milliseconds, not by reading all of them."""

from curator_dask.indexing.building import build
from curator_dask.indexing.searching import VectorIndex

__all__ = ["VectorIndex", "build"]
