"""curator_dask: embed the images of WebDataset shards with any timm model, on a Dask cluster.

Importing the package is quick: torch, timm, DALI and RAPIDS load where they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curator_dask.cluster.client import get_client
    from curator_dask.datasets.sequential import Sequential
    from curator_dask.dedup.nemo import ClusteringModel, SemanticClusterLevelDedup
    from curator_dask.fetching.running import fetch_images
    from curator_dask.importing.running import import_vectors

__all__ = [
    "ClusteringModel",
    "SemanticClusterLevelDedup",
    "Sequential",
    "__version__",
    "fetch_images",
    "get_client",
    "import_vectors",
]
__version__ = "0.1.0"

_MODULES = {
    "ClusteringModel": "dedup.nemo",
    "SemanticClusterLevelDedup": "dedup.nemo",
    "Sequential": "datasets.sequential",
    "fetch_images": "fetching.running",
    "get_client": "cluster.client",
    "import_vectors": "importing.running",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
