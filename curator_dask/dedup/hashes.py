"""Which hashes also make two rows duplicates, and their values as files have them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curator_dask.errors import ConfigError, OutputError
from curator_dask.words import meant

#: Bits in which two hashes of 64 may differ, at most: beyond it most images of a large set are near some other.
FARTHEST = 8
#: A column of the digests of files, which img2dataset writes.
SHA256 = "sha256"
#: What stands for a text or bytes.
DIGEST = pa.binary(16)


@dataclass(frozen=True)
class Hashes:
    """Columns whose values also make rows duplicates.

    Attributes
    ----------
    radii
        Of each column, in how many bits its values may differ.
    """

    radii: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, exact: Any) -> Hashes:
        """From what a user gives.

        Raises
        ------
        ConfigError
            It is none of the forms.
        """
        if exact is None:
            return cls()
        if isinstance(exact, str):
            exact = [exact]
        if isinstance(exact, Sequence):
            exact = dict.fromkeys(exact, 0)
        good = isinstance(exact, Mapping) and all(
            isinstance(name, str) and name and isinstance(bits, int) and not isinstance(bits, bool)
            for name, bits in exact.items()
        )
        if not good or not all(0 <= bits <= FARTHEST for bits in exact.values()):
            raise ConfigError(
                f"exact={exact!r}: expected columns of hashes, such as ['sha256'], or in how many bits, 0 to {FARTHEST}"
                ", the hashes of duplicates may differ, such as {'phash': 4}"
            )
        return cls(tuple(exact.items()))

    @property
    def names(self) -> list[str]:
        """Of the columns."""
        return [name for name, _ in self.radii]

    def columns(self, names: Sequence[str], path: str) -> list[str]:
        """Which columns of a file are needed.

        Raises
        ------
        OutputError
            One is not there.
        """
        for name in self.names:
            if name not in names:
                raise OutputError(
                    f"{path}: has no column {name!r}{meant(name, names)} of hashes (exact); it has {list(names)}."
                    " ImageStatistics makes phash and dhash"
                )
        return self.names

    def values(self, rows: pa.Table, path: str) -> dict[str, pa.Array]:
        """The hashes of rows: of whole numbers their 64 bits, of text and bytes a digest.

        Raises
        ------
        OutputError
            A column has values of another type.
        """
        found = {}
        for number, (name, bits) in enumerate(self.radii):
            column = rows.column(name).combine_chunks()
            if isinstance(column, pa.ChunkedArray):
                column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
            kind = column.type
            text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
            raw = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
            if pa.types.is_null(kind):
                values = column
            elif pa.types.is_integer(kind):
                signed = pa.types.is_signed_integer(kind)
                values = column.cast(pa.int64()).view(pa.uint64()) if signed else column.cast(pa.uint64())
            elif (text or raw or pa.types.is_fixed_size_binary(kind)) and not bits:
                values = pa.array([_digest(value) for value in column.to_pylist()], DIGEST)
            else:
                wanted = "whole numbers of 64 bits" if bits else "whole numbers, text or bytes"
                lost = ": a float cannot hold 64 bits" if pa.types.is_floating(kind) else ""
                raise OutputError(
                    f"{path}: {name!r} is of type {kind}{lost}; hashes within {bits} bits (exact) are {wanted}"
                )
            found[f"hash{number}"] = values
        return found


def _digest(value: str | bytes | None) -> bytes | None:
    if value is None:
        return None
    return hashlib.sha256(value.encode() if isinstance(value, str) else value).digest()[:16]


def words(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """uint64 (n, 1 or 2): the values of a column of hashes; and bool (n,): whether there is one."""
    there = np.asarray(column.is_valid())
    if pa.types.is_fixed_size_binary(column.type):
        whole = b"".join(value if value is not None else bytes(16) for value in column.to_pylist())
        return np.frombuffer(whole, np.uint64).reshape(-1, 2), there
    if not pa.types.is_integer(column.type):  # no row has a value
        return np.zeros((len(column), 1), np.uint64), there
    return column.fill_null(0).to_numpy().astype(np.uint64).reshape(-1, 1), there
