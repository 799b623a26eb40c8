"""Runs in the scheduler's dashboard: a page, panes for JupyterLab, and figures for Prometheus.

It is there for the clusters that `curator_dask.get_client` starts, and where a client connects to a scheduler that has
this package. ``dask scheduler --preload curator_dask.dashboard`` has it from the start.
"""

from __future__ import annotations

from typing import Any

__all__ = ["dask_setup", "install"]


def install(scheduler: Any) -> None:
    """Have a scheduler follow the runs on its cluster, and show them; what cannot be shown there is left out.

    Called in the scheduler's process and event loop. A second call does nothing.
    """
    from curator_dask.dashboard.installing import install as work

    work(scheduler)


async def dask_setup(scheduler: Any) -> None:
    """Called by ``dask scheduler --preload curator_dask.dashboard``."""
    install(scheduler)
