"""Stages of pipelines: batches of images flow through them."""

from curator_dask.stages.base import ProcessingStage

__all__ = ["ProcessingStage"]
