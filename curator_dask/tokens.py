"""Dask's tokens, the same whatever else is installed."""

from __future__ import annotations

import hashlib
import pickle
import threading
from typing import Any

from dask import hashing
from dask.base import tokenize as dasks_own

_LOCK = threading.Lock()


def tokenize(*values: Any) -> str:
    """Dask's token of values, as Dask makes it where no faster hash is installed.

    Dask (2026.7.1, `dask.hashing`) takes what it finds of ``cityhash``, ``xxhash`` and ``mmh3`` instead of SHA-1, so
    that its tokens of arrays, frames, functions and classes change when another package brings one of these (Hugging
    Face's ``datasets`` brings ``xxhash``). Files are known by tokens: what is finished has to stay finished.
    """
    with _LOCK:
        found = hashing.hashers[:]
        hashing.hashers[:] = [_sha1]
        try:
            return str(dasks_own(*values))
        finally:
            hashing.hashers[:] = found


def token_of_class(kind: type) -> tuple[str, list[str]]:
    """What Dask normalizes a class of a module to, by SHA-1 as well."""
    return _sha1(pickle.dumps(kind, protocol=5)).hex(), []


def _sha1(buffer: Any) -> bytes:
    return hashlib.sha1(buffer, usedforsecurity=False).digest()
