"""`Comparison`: what is found of two outputs, which shows itself."""

from __future__ import annotations

from curator_dask.compare.figures import Figures
from curator_dask.compare.telling import told


class Comparison(Figures):
    """What was found: the attributes of `curator_dask.compare.figures.Figures`; as text, tables."""

    def __str__(self) -> str:
        return "\n".join(told(self))
