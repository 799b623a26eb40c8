"""Vectors that were made elsewhere become an output: of DataComp, of clip-retrieval, of lists in Parquet."""

from curator_dask.importing.returning import return_vectors
from curator_dask.importing.running import import_vectors

__all__ = ["import_vectors", "return_vectors"]
