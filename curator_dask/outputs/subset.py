"""DataComp's form of a subset: the uids of the rows that stay, by which its resharder makes shards of them."""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.errors import ConfigError, OutputError
from curator_dask.outputs.placing import is_there, put
from curator_dask.rows.ids import id_texts
from curator_dask.storage import Options, read_bytes

#: Of an item: the first and the second half of a uid's 32 hexadecimal digits.
UID = np.dtype("u8,u8")
_SHOWN = 60


def uids_of(ids: pa.Array, column: str, path: str) -> np.ndarray:
    """The halves of uids.

    Parameters
    ----------
    ids
        Texts of 32 hexadecimal digits.
    column, path
        Of which they are, for errors.

    Returns
    -------
    numpy.ndarray
        `UID` (n,), in the same order.

    Raises
    ------
    ConfigError
        One is something else.
    """
    texts = pa.array(id_texts(ids), pa.string())
    fits = pc.fill_null(pc.match_substring_regex(texts, "^[0-9a-fA-F]{32}$"), False)
    if not pc.all(fits, min_count=0).as_py():
        bad = texts.filter(pc.invert(fits))[0].as_py()
        found = "null" if bad is None else repr(bad[:_SHOWN])
        raise ConfigError(
            f"{path}: expected uids of 32 hexadecimal digits in {column!r}, as DataComp has them, found {found}: give"
            " the column that has them (--id-column)"
        )
    halves = np.frombuffer(bytes.fromhex("".join(texts.to_pylist())), ">u8").astype("u8").reshape(-1, 2)
    return halves.view(UID).reshape(-1)


def write_subset(path: str, uids: Iterable[np.ndarray], options: Options, overwrite: bool) -> int:
    """Write a ``.npy`` of uids in their order, whole or not at all; how many.

    Parameters
    ----------
    path
        Absolute path or URL.
    uids
        Of files, as `uids_of` gives them. One that is there several times stays so.
    options
        For fsspec.
    overwrite
        Replace another file.

    Raises
    ------
    OutputError
        Another file is there, or it cannot be written.
    """
    whole = np.concatenate([np.zeros(0, UID), *uids])
    whole = whole[np.lexsort((whole["f1"], whole["f0"]))]
    file = io.BytesIO()
    np.save(file, whole, allow_pickle=False)
    if is_there(path, options) and not overwrite:
        if read_bytes(path, options) == file.getvalue():
            return len(whole)
        raise OutputError(
            f"{path}: is there, and has other uids. Write to another path, or use overwrite=True (--overwrite)"
        )
    put(path, file.getvalue(), options)
    return len(whole)
