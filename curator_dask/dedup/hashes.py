"""Which hashes also make two rows duplicates, and their values as files have them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.errors import ConfigError, OutputError
from curator_dask.rows.near_lookup import hash_words
from curator_dask.words import meant

#: Bits in which two hashes of 64 may differ, at most: beyond it most images of a large set are near some other.
FARTHEST = 8
#: And two of 256: what PDQ's authors recommend.
FARTHEST_OF_256 = 31
#: Columns of hashes of 64 bits that `ImageStatistics` makes.
_OF_64 = ("phash", "dhash")
#: Below this quality (of 0 to 100), PDQ's authors say, hashes are not to be compared: those of plain pictures match by
#: chance.
LEAST_QUALITY = 50
#: Of rows as they were scanned: whether a hash of theirs is left out for that.
PLAIN = "plain"
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
        most = dict.fromkeys(_OF_64, FARTHEST)
        if not good or not all(0 <= bits <= most.get(name, FARTHEST_OF_256) for name, bits in exact.items()):
            raise ConfigError(
                f"exact={exact!r}: expected columns of hashes, such as ['sha256'], or in how many bits the hashes of"
                f" duplicates may differ, of 64 bits 0 to {FARTHEST} and of 256 0 to {FARTHEST_OF_256}, such as"
                " {'phash': 4} or {'pdq': 31}"
            )
        return cls(tuple(exact.items()))

    @property
    def names(self) -> list[str]:
        """Of the columns."""
        return [name for name, _ in self.radii]

    @property
    def identity(self) -> list[Any]:
        """What decides how the values of files are taken."""
        return [
            [name, bool(bits), LEAST_QUALITY if quality_of(name) else None]
            if bits or quality_of(name)
            else name
            for name, bits in self.radii
        ]

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
                    " ImageStatistics makes phash, dhash and pdq"
                )
        return [*self.names, *(each for name in self.names if (each := quality_of(name)) and each in names)]

    def values(self, rows: pa.Table, path: str) -> dict[str, pa.Array]:
        """The hashes of rows: of whole numbers their 64 bits, of text and bytes a digest, or their bits.

        Where rows say how much there is to see for a PDQ, ``plain`` has the rows whose hash is left out for that.

        Raises
        ------
        OutputError
            A column has values of another type, or of another length.
        """
        found: dict[str, pa.Array] = {}
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
            elif text or raw or pa.types.is_fixed_size_binary(kind):
                if not text:
                    column = pa.array(
                        [None if value is None else value.hex() for value in column.to_pylist()]
                    )
                values = _of_digits(column, f"{path}: {name!r} (exact)")
            else:
                wanted = "whole numbers, text or bytes"
                if bits:
                    wanted = "whole numbers of 64 bits, text of 16 or 64 hexadecimal digits, or bytes"
                lost = ": a float cannot hold 64 bits" if pa.types.is_floating(kind) else ""
                raise OutputError(
                    f"{path}: {name!r} is of type {kind}{lost}; hashes within {bits} bits (exact) are {wanted}"
                )
            of_64 = pa.types.is_integer(values.type) or values.type == DIGEST
            if of_64 and bits > FARTHEST:
                raise OutputError(
                    f"{path}: {name!r} has hashes of 64 bits: within more than {FARTHEST} of them (exact: {bits}) most"
                    f" images of a large set are near some other. Give 0 to {FARTHEST}"
                )
            quality = quality_of(name)
            if quality and quality in rows.column_names:
                plain = pc.and_(_plain(rows.column(quality), f"{path}: {quality!r}"), values.is_valid())
                found[PLAIN] = pc.or_(plain, found[PLAIN]) if PLAIN in found else plain
                values = pc.if_else(plain, pa.scalar(None, values.type), values)
            found[f"hash{number}"] = values
        return found


def _of_digits(column: pa.Array, what: str) -> pa.Array:
    """Hashes that are hexadecimal digits: uint64 of 16, and of 64 the bytes of four of these; null of none at all."""
    try:
        words, there = hash_words(column, what)
    except ValueError as error:
        raise OutputError(str(error)) from None
    if not there.any():
        return pa.nulls(len(column))
    if words.shape[1] == 1:
        return pa.array(words[:, 0], mask=~there)
    raw = pa.py_buffer(np.ascontiguousarray(words))
    size = 8 * words.shape[1]
    values = pa.Array.from_buffers(pa.binary(size), len(words), [None, raw])
    return pc.if_else(pa.array(there), values, pa.scalar(None, pa.binary(size)))


def quality_of(name: str) -> str:
    """The column that says how much there is to see for a column's PDQ; empty: it is another hash."""
    return f"{name}_quality" if name.endswith("pdq") else ""


def _plain(quality: pa.ChunkedArray, what: str) -> pa.Array:
    """Bool (rows,): where a PDQ is chance. Where nothing says so it is not."""
    quality = quality.combine_chunks()
    kind = quality.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
        raise OutputError(
            f"{what} is of type {kind}: by it, numbers of 0 to 100, PDQ's hashes of plain pictures are left out (exact)"
        )
    return pc.fill_null(pc.less(quality.cast(pa.float64()), float(LEAST_QUALITY)), False)


def _digest(value: str | bytes | None) -> bytes | None:
    if value is None:
        return None
    return hashlib.sha256(value.encode() if isinstance(value, str) else value).digest()[:16]


def words(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """uint64 (n, 1, 2 or 4): the values of a column of hashes; and bool (n,): whether there is one."""
    there = np.asarray(column.is_valid())
    if pa.types.is_fixed_size_binary(column.type):
        size = column.type.byte_width
        whole = b"".join(value if value is not None else bytes(size) for value in column.to_pylist())
        return np.frombuffer(whole, np.uint64).reshape(-1, size // 8), there
    if not pa.types.is_integer(column.type):  # no row has a value
        return np.zeros((len(column), 1), np.uint64), there
    return column.fill_null(0).to_numpy().astype(np.uint64).reshape(-1, 1), there
