"""Putting pages and figures into a scheduler that runs."""

from __future__ import annotations

import logging
from typing import Any

from curator_dask.dashboard.following import Runs

logger = logging.getLogger("curator_dask")


def install(scheduler: Any) -> None:
    """See `curator_dask.dashboard.install`."""
    if Runs.name in scheduler.plugins:
        return
    runs = Runs()
    scheduler.add_plugin(runs, name=Runs.name, idempotent=True)
    try:
        from curator_dask.dashboard.figures import offer
    except ImportError:
        logger.debug("no figures for Prometheus: prometheus_client is not installed")
    else:
        offer(runs)
    try:
        from curator_dask.dashboard.serving import serve
    except ImportError:
        logger.debug("no page in the dashboard: bokeh is not installed")
    else:
        serve(scheduler, runs)
