"""Which failed rows of finished shards are tried again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curator_dask.fetching.failures import kind_of, may_pass
from curator_dask.fetching.options import FetchOptions


def may_retry(reason: str, options: FetchOptions, report: Mapping[str, Any]) -> bool:
    """Whether what failed may be had now: its reason may have passed, or is one that these options do not have.

    Parameters
    ----------
    reason
        In words, or its kind alone.
    options
        Of this fetch.
    report
        Of the one before, on the shard.
    """
    kind = kind_of(reason)
    return (
        may_pass(kind)
        or (kind == "robots" and options.ignore_robots_tags)
        or (kind == "address refused" and options.allow_private)
        or (kind == "too large" and options.max_bytes > int(report.get("max_bytes", 0)))
    )
