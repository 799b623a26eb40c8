"""Shards that stay open, so that the next pictures out of them need no look at their headers."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from curator_dask.storage import is_remote
from curator_dask.webdataset.opening import Reader, open_shard
from curator_dask.webdataset.stamps import FileStamp, stamp

#: That stay open; of a tar in a store each is a local copy.
MOST, MOST_REMOTE = 64, 8


@dataclass
class _Shard:
    """A shard, opened by the first thread that reads it.

    Attributes
    ----------
    state
        Of the file.
    lock
        Of the thread that opens or reads it.
    reader
        None until it is open.
    users
        Threads that read it, or wait to.
    """

    state: FileStamp | None
    lock: threading.Lock = field(default_factory=threading.Lock)
    reader: Reader | None = None
    users: int = 0


class OpenShards:
    """Opens shards, and closes those that were used longest ago. Safe to use from several threads.

    One that takes long to open, as of a slow store, is waited for by those that want it alone.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[str, _Shard] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def __call__(
        self, url: str, *, use_index_files: bool = True, storage_options: Mapping[str, Any] | None = None
    ) -> Iterator[Reader]:
        """A shard, for one thread at a time; see `open_shard`. One that has changed is opened anew."""
        state = None if is_remote(url) else stamp(url)
        with self._lock:
            shard = self._open.pop(url, None)
            if shard is None or shard.state != state:
                self._close(shard)  # else by who is reading it
                shard = _Shard(state)
            self._open[url] = shard
            shard.users += 1
        try:
            with shard.lock:
                if shard.reader is None:
                    shard.reader = open_shard(url, use_index_files, storage_options)
                yield shard.reader
        finally:
            with self._lock:
                shard.users -= 1
                if self._open.get(url) is not shard:
                    self._close(shard)
                remote = [each for each in self._open if is_remote(each)]
                old = [*remote[:-MOST_REMOTE], *list(self._open)[:-MOST]]
                for each in dict.fromkeys(old):
                    if not self._open[each].users:
                        self._close(self._open.pop(each))

    @staticmethod
    def _close(shard: _Shard | None) -> None:
        if shard is not None and shard.reader is not None and not shard.users:
            shard.reader.close()

    def close(self) -> None:
        """Close all; those that are read, when they have been."""
        with self._lock:
            shards = list(self._open.values())
            self._open.clear()
            for shard in shards:
                self._close(shard)
