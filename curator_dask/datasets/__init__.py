"""Datasets of image-text pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curator_dask.datasets.image_text_pair import ImageTextPairDataset

__all__ = ["ImageTextPairDataset"]


def __getattr__(name: str) -> Any:
    # Loaded when it is asked for: dask.dataframe takes longer to import than `curator-dask check` takes to look.
    if name == "ImageTextPairDataset":
        from curator_dask.datasets.image_text_pair import ImageTextPairDataset

        return ImageTextPairDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
