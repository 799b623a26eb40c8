"""`DaskClient` and `DaskExecutor`: a cluster in the form in which scripts of NeMo Curator 1.x start and name theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from curator_dask.cluster.client import get_client

if TYPE_CHECKING:
    from distributed import Client


class DaskClient:
    """A cluster that is started and stopped; in the place of 1.x's ``RayClient``.

    Parameters
    ----------
    **options
        As for `get_client`.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options
        #: Of the cluster, while it is up.
        self.client: Client | None = None

    def start(self) -> None:
        """Start it, or connect to it; pipelines and workflows use it from now on."""
        if self.client is None:
            self.client = get_client(**self.options)

    def stop(self) -> None:
        """Close the client, and the cluster if `start` has started it."""
        if self.client is not None:
            self.client.close()
            self.client = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


class DaskExecutor:
    """Does the work on the cluster that there is, or without one in this process; in the place of 1.x's executors.

    Parameters
    ----------
    *settings, **options
        Taken for the sake of scripts of NeMo Curator 1.x, and not used: what a task takes is said by its stages, and
        the rest by `get_client`.
    """

    def __init__(self, *settings: Any, **options: Any) -> None:
        pass
