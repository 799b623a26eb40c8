"""`get_client`, where NeMo Curator 0.9 has it."""

from curator_dask.cluster.client import get_client

__all__ = ["get_client"]
