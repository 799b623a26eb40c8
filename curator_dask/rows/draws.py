"""Draws that are a row's own: by a digest of its key and its shard, whatever the files, their order and the workers."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from curator_dask.frames.names import URL_COLUMN


def row_digests(table: pa.Table | pa.RecordBatch, id_col: str, seed: int) -> np.ndarray:
    """uint64 (rows,): of each row's key, the name of its shard (where the rows have that), and a seed.

    Of a shard it is the name alone that counts: an output that has moved with its shards draws the same.
    """
    ids = table.column(id_col).to_pylist()
    shards = table.column(URL_COLUMN).to_pylist() if URL_COLUMN in table.schema.names else [None] * len(ids)
    names = {url: posixpath.basename(str(url or "").rstrip("/")) for url in {*shards}}
    said = (f"{seed}\0{key}\0{names[url]}" for key, url in zip(ids, shards, strict=True))
    return text_digests(said)


def text_digests(texts: Iterable[str]) -> np.ndarray:
    """uint64 (n,): BLAKE2b's digests of 8 bytes, little-endian."""
    digests = (hashlib.blake2b(each.encode("utf-8", "surrogatepass"), digest_size=8) for each in texts)
    return np.frombuffer(b"".join(each.digest() for each in digests), "<u8").astype(np.uint64)


def mixed(digests: np.ndarray, number: int) -> np.ndarray:
    """uint64 (n,): another draw of the same rows for each number, by SplitMix64 with its own steps."""
    with np.errstate(over="ignore"):
        return scattered(digests + np.uint64((number + 1) * 0x9E3779B97F4A7C15 % 2**64))


def scattered(numbers: np.ndarray) -> np.ndarray:
    """uint64 (n,): SplitMix64's finalizer, which takes no two numbers to one (Steele, Lea and Flood 2014)."""
    value = numbers.astype(np.uint64)
    with np.errstate(over="ignore"):
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))
