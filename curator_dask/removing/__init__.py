"""Samples that must go are taken out of all that was made of them, where it lies; only what holds them is rewritten."""

from curator_dask.removing.running import remove_samples
from curator_dask.removing.summary import RemoveSummary

__all__ = ["RemoveSummary", "remove_samples"]
