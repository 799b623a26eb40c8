"""How far two outputs are from one another: their vectors, and the columns that both have."""

from curator_dask.compare.comparing import compare_outputs
from curator_dask.compare.comparison import Comparison

__all__ = ["Comparison", "compare_outputs"]
