"""What a fetched shard came to: counts of its rows and images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from curator_dask.fetching.failures import kind_of, without_credentials
from curator_dask.fetching.files import Stored

_EXAMPLES = 3  # of each reason, that a report has
_URL_SHOWN = 200  # characters of a URL that an example has


def report_of_shard(
    name: str,
    keys: Sequence[str],
    urls: Sequence[str | None],
    images: Sequence[Stored | None],
    reasons: Sequence[str | None],
) -> dict[str, Any]:
    """The counts.

    Parameters
    ----------
    name
        Of the shard.
    keys, urls
        Of its rows.
    images
        Those that are in the tar; None where a row has none.
    reasons
        Why it has none.
    """
    counts: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    left: Counter[str] = Counter()
    for key, url, image, reason in zip(keys, urls, images, reasons, strict=True):
        if image is not None and image.left is not None:
            left[kind_of(image.left)] += 1
        if reason is None:
            continue
        kind = kind_of(reason)
        counts[kind] += 1
        if counts[kind] <= _EXAMPLES:
            place = " ".join(filter(None, (key, _shortened(url))))
            examples.setdefault(kind, []).append(without_credentials(f"{place}: {reason}"))
    return {
        "name": name,
        "rows": len(keys),
        "failed": counts.total(),
        "dropped": 0,
        "reasons": dict(counts),
        "examples": examples,
        "remarks": {},
        "images": sum(each is not None for each in images),
        "image_bytes": sum(each.size for each in images if each is not None),
        "left": dict(left),
    }


def _shortened(url: str | None) -> str:
    """A URL for a message: those that are images themselves (``data:``) are megabytes."""
    url = url or ""
    return url if len(url) <= _URL_SHOWN else f"{url[:_URL_SHOWN]}…"
