"""Heads of one's own: fitted to the vectors of rows that someone has labelled."""

from curator_dask.image.fitting.heads import FittedHead, fit_head

__all__ = ["FittedHead", "fit_head"]
