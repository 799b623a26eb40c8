"""`OutputInfo`: what is in an output, which shows itself."""

from __future__ import annotations

from curator_dask.info.found import Found
from curator_dask.info.telling import html, told


class OutputInfo(Found):
    """What is in an output: the attributes of `curator_dask.info.found.Found`; as text, and in a notebook, tables."""

    def __str__(self) -> str:
        return "\n".join(told(self))

    def _repr_html_(self) -> str:
        return html(self)
