"""Stages of pipelines: batches of images flow through them."""

from curator_dask.stages.base import CompositeStage, ProcessingStage
from curator_dask.stages.resources import Resources

__all__ = ["CompositeStage", "ProcessingStage", "Resources"]
