"""Whether samples of an export have keys of their own: readers take two of one key for one sample, or refuse them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from curator_dask.errors import DatasetError
from curator_dask.outputs.choosing import read_rows
from curator_dask.outputs.earlier import EarlierTars, hashes_of
from curator_dask.outputs.selecting import Folder
from curator_dask.threads import in_threads
from curator_dask.webdataset.samples import key_text
from curator_dask.words import counted

_FEW = 3  # keys that an error names


def check_keys(selected: Folder, names: Sequence[str], earlier: EarlierTars | None = None) -> None:
    """See that no key occurs twice in tables of samples, and tars that stay; 8 bytes a sample are held meanwhile.

    Raises
    ------
    DatasetError
        Some do: names them and their tars.
    """
    hashes = in_threads(lambda name: _hashes(selected, name), names)
    own = np.empty(0, np.uint64) if earlier is None else earlier.own
    every = np.sort(np.concatenate([own, *hashes]))
    again = np.unique(every[1:][every[1:] == every[:-1]])
    if not len(again):
        return
    found: dict[bytes, list[str]] = {}
    for name, tar in () if earlier is None else earlier.with_hashes(again):
        found.setdefault(name.encode(), []).append(f"{tar} (of an earlier call)")
    for name, mine in zip(names, hashes, strict=True):
        rows = np.flatnonzero(np.isin(mine, again))
        if len(rows):
            table = read_rows(selected.file(name), selected.options, ["key", "url"]).take(pa.array(rows))
            for key, url in zip(table["key"].to_pylist(), table["url"].to_pylist(), strict=True):
                found.setdefault(key, []).append(url)
    doubled = {key: urls for key, urls in found.items() if len(urls) > 1}
    if not doubled:  # two keys of one hash
        return
    some = "; ".join(
        f"{key_text(key.decode('utf-8', 'surrogateescape'))!r} in {', '.join(urls[:_FEW])}"
        for key, urls in list(doubled.items())[:_FEW]
    )
    more = f" and {len(doubled) - _FEW} more" if len(doubled) > _FEW else ""
    raise DatasetError(
        f"{counted(len(doubled), 'key')} more than once: {some}{more}. Readers take two samples of one key for one, or"
        " refuse them: give each a key of its own (keys='sequential', --keys sequential), or leave one out"
    )


def _hashes(selected: Folder, name: str) -> np.ndarray:
    """uint64 (samples,): of the keys."""
    keys = read_rows(selected.file(name), selected.options, ["key"]).column("key").to_pylist()
    return hashes_of(keys)
