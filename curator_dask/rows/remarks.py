"""What was noticed about a shard on the way, kept in the process until its file is written.

Reading, embedding and writing a partition are one task, and what is noticed in the first is to be told with the
last. A remark is no error: the shard's rows go on.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from curator_dask.webdataset.index import key_text

KINDS = ("damaged", "orphans", "duplicates", "filtered")
"""``"damaged"``: what is wrong with the tar, as text; the samples before the fault are used. ``"orphans"``: samples
that no row of the shard's Parquet names. ``"duplicates"``: member names that occur again; the first is taken.
``"filtered"``: rows that a stage left out. The last three are ``{"count": int, "examples": [text, ...]}``."""

EXAMPLES = 3
"""Names that a fact gives."""

_LIMIT = 16_384  # shards that remarks are kept of; the oldest go first
_remarks: OrderedDict[str, dict[str, Any]] = OrderedDict()
_lock = threading.Lock()


def remark(url: str, kind: str, fact: Any) -> None:
    """Keep what was noticed about a shard.

    Parameters
    ----------
    url
        Of the shard.
    kind
        One of `KINDS`.
    fact
        JSON-able; replaces an earlier remark of the same kind. None takes that back: the shard may have been
        mended since.
    """
    with _lock:
        known = _remarks.pop(url, {})
        if fact is None:
            known.pop(kind, None)
        else:
            known[kind] = fact
        if known:
            _remarks[url] = known
        while len(_remarks) > _LIMIT:
            _remarks.popitem(last=False)


def remarks_on(urls: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What was noticed in this process about these shards, by url and kind; only those with any."""
    with _lock:
        return {url: dict(_remarks[url]) for url in urls if url in _remarks}


def fact_of(names: Iterable[str]) -> dict[str, Any] | None:
    """The fact that these names are: how many, and the first few; None if there are none."""
    listed = list(names)
    return (
        {"count": len(listed), "examples": [key_text(name) for name in listed[:EXAMPLES]]} if listed else None
    )
