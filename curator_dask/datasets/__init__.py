"""Datasets of image-text pairs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curator_dask.datasets.documents import DocumentDataset
    from curator_dask.datasets.image_text_pair import ImageTextPairDataset

__all__ = ["DocumentDataset", "ImageTextPairDataset"]

_MODULES = {"DocumentDataset": "documents", "ImageTextPairDataset": "image_text_pair"}


def __getattr__(name: str) -> Any:
    # Loaded when it is asked for: dask.dataframe takes longer to import than `curator-dask check` takes to look.
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
