"""Links to images with captions, out of crawls of the web: what `fetch` begins with."""

from curator_dask.crawls.rules import LinkRules
from curator_dask.crawls.running import extract_links
from curator_dask.crawls.summary import LinksSummary

__all__ = ["LinkRules", "LinksSummary", "extract_links"]
