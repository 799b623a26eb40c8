"""Images by their URLs: a table of these becomes shards, each row with its image or with the reason why not."""

from curator_dask.fetching.options import FetchOptions
from curator_dask.fetching.running import fetch_images
from curator_dask.fetching.summary import FetchSummary

__all__ = ["FetchOptions", "FetchSummary", "fetch_images"]
