"""Work on many files: on the workers, where there are any."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from curator_dask.cluster.setup import forget_listings
from curator_dask.cluster.workers import current_client

S = TypeVar("S")
T = TypeVar("T")


def on_cluster(function: Callable[[S], T], tasks: Sequence[S]) -> Iterator[T]:
    """The results in order: of the workers where there is a cluster, else of this process, one after the other."""
    client = current_client()
    if client is None:
        yield from map(function, tasks)
        return
    forget_listings(client)
    futures = client.map(function, tasks, pure=False)
    try:
        while futures:
            # A future that is let go frees what the worker holds for it.
            yield futures.pop(0).result()
    finally:
        client.cancel(futures)
