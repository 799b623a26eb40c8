"""curator_dask: embed the images of WebDataset shards with any timm model, on a Dask cluster.

Importing the package is quick: torch, timm, DALI and RAPIDS load where they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curator_dask.cluster.client import get_client

__all__ = ["__version__", "get_client"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "get_client":
        return importlib.import_module("curator_dask.cluster.client").get_client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
