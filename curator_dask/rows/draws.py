"""Draws that are a row's own: by a digest of its key and its shard, whatever the files, their order and the workers."""

from __future__ import annotations

import hashlib
import posixpath

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
    digests = b"".join(
        hashlib.blake2b(each.encode("utf-8", "surrogatepass"), digest_size=8).digest() for each in said
    )
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def mixed(digests: np.ndarray, number: int) -> np.ndarray:
    """uint64: another draw of the same rows for each number, by the finalizer of SplitMix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        value = digests + np.uint64((number + 1) * 0x9E3779B97F4A7C15 % 2**64)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        done: np.ndarray = value ^ (value >> np.uint64(31))
    return done
