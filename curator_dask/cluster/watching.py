"""Having the scheduler show runs in its dashboard."""

from __future__ import annotations

import logging
from typing import Any

from distributed import Client, SchedulerPlugin

logger = logging.getLogger("curator_dask")


def offer_dashboard(client: Client) -> None:
    """Have the scheduler show the runs on its cluster, if it has this package; that it cannot is no error."""
    try:
        client.register_plugin(_setup())
    except (
        Exception
    ) as error:  # a scheduler that takes no plugins, or is gone, which the run itself will hear
        logger.debug("the dashboard shows no runs: %r", error)


def _setup() -> SchedulerPlugin:
    """What has it installed. Its class is made here, to be pickled by value: a scheduler may lack the package."""

    class DashboardSetup(SchedulerPlugin):
        name = "curator_dask-dashboard"
        #: Once a scheduler.
        idempotent = True

        async def start(self, scheduler: Any) -> None:
            """Called by distributed when the plugin is registered."""
            import logging

            try:
                from curator_dask.dashboard import install

                install(scheduler)
            except Exception as error:
                logging.getLogger("distributed.scheduler").info(
                    "curator_dask is not in the dashboard: %r", error
                )

    return DashboardSetup()
