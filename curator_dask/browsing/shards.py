"""Shards that stay open, so that the next pictures out of them need no look at their headers."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from curator_dask.storage import is_remote
from curator_dask.webdataset.opening import Reader, open_shard
from curator_dask.webdataset.stamps import FileStamp, stamp

#: That stay open; of a tar in a store each is a local copy.
MOST, MOST_REMOTE = 64, 8


class OpenShards:
    """Opens shards, and closes those that were used longest ago. Safe to use from several threads."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, tuple[FileStamp | None, Reader, threading.Lock]] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def __call__(
        self, url: str, *, use_index_files: bool = True, storage_options: Mapping[str, Any] | None = None
    ) -> Iterator[Reader]:
        """A shard, for one thread at a time; see `open_shard`. One that has changed is opened anew."""
        state = None if is_remote(url) else stamp(url)
        with self._lock:
            found = self._open.pop(url, None)
            if found is not None and found[0] != state:
                found = None  # who is reading it goes on, and it is closed with the last picture of it
            if found is None:
                found = state, open_shard(url, use_index_files, storage_options), threading.Lock()
            self._open[url] = found
            remote = [each for each in self._open if is_remote(each)]
            for each in [*remote[: len(remote) - MOST_REMOTE], *list(self._open)[:-MOST]]:
                old = self._open.get(each)
                if old is not None and each != url and old[2].acquire(blocking=False):
                    self._open.pop(each)[1].close()
                    old[2].release()
        with found[2]:
            yield found[1]

    def close(self) -> None:
        """Close all."""
        with self._lock:
            for _, reader, _ in self._open.values():
                reader.close()
            self._open.clear()
