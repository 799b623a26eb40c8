"""What is noticed about a shard on the way, and travels with the task until its result is told.

Reading, embedding and writing a partition are one task, and what is noticed in the first is to be told with the
last. A remark is no error: the shard's rows go on. Remarks belong to the task: another task of the same process does
not see them.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from curator_dask.webdataset.samples import key_text
from curator_dask.words import counted

KINDS = (
    *("damaged", "orphans", "duplicates", "unread", "corrupt"),
    *("left-out", "filtered", "not-made", "text-truncated", "captions", "detections"),
    "answers",
    "imageless",
)
"""``"damaged"``: what is wrong with the tar, as text; the samples before the fault are used. ``"orphans"``: samples
that no row of the shard's Parquet names. ``"duplicates"``: member names that occur again; the first is taken.
``"unread"``: members that cannot be read, links to what is not in the tar and sparse files. ``"corrupt"``: images that
were decoded as far as their data go, each with what its decoder's library says of them. ``"left-out"``: kinds of
components and fields of the JSON that rows of tars do not take. ``"filtered"``: rows that a stage left out.
``"not-made"``: columns of other runs' vectors that have none for the shard as it is now. ``"text-truncated"``: rows
with a caption that is longer than its model takes. ``"captions"``: texts that a model has written. All but the first
are ``{"count": int, "examples": [text, …]}``; ``"filtered"`` may have ``"by"`` besides, how many of them each stage has
left out, and so has ``"captions"``: how many were cut, by `cut_at`, and, not among these and the examples alone, images
about which nothing was written. ``"detections"``: images that a model has looked at, and ``"by"`` `seen_by` these, by
`found_by` those in which it has found something, by `labelled` those with a label; the examples are of the second.
``"answers"``: images that a model was asked about, and ``"by"`` these by the name of the question's columns, behind
`LITTLE` those for which it would rather answer otherwise, and behind `NOT_ASKED`, of which the examples are, rows that
say nothing in a column which the question names.
``"imageless"``: samples without an image, where each image has a row."""

OF_TARS = ("damaged", "orphans", "duplicates", "unread", "corrupt")
"""Those that are noticed when a tar is read."""

OF_ROWS = ("corrupt", "filtered", "text-truncated", "captions", "detections", "answers")
"""Those that count rows: the parts of a shard add up. The others are the same of each part."""

NOTHING_WRITTEN = "nothing written"
CUT_AT = "cut at "
"""By what ``"captions"`` counts."""

NOT_ASKED, LITTLE = "not asked: ", "little: "
"""By what ``"answers"`` counts, with the name behind it."""

EXAMPLES = 3
"""Names that a fact gives."""


class Remarks:
    """What was noticed in a task, by the shard's url and kind; several threads may add to it."""

    def __init__(self) -> None:
        self._facts: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def add(self, url: str, kind: str, fact: Any) -> None:
        """Keep a fact; see `remark`."""
        with self._lock:
            known = self._facts.setdefault(url, {})
            if fact is None:
                known.pop(kind, None)
            else:
                known[kind] = fact

    def on(self, urls: Iterable[str]) -> dict[str, dict[str, Any]]:
        """What was noticed about these shards; only those with any."""
        with self._lock:
            return {url: dict(self._facts[url]) for url in urls if self._facts.get(url)}


_current: ContextVar[Remarks] = ContextVar("curator_dask remarks")


@contextmanager
def noticing() -> Iterator[Remarks]:
    """Collect the remarks of the block, also of threads that it starts with a copy of its context."""
    remarks = Remarks()
    token = _current.set(remarks)
    try:
        yield remarks
    finally:
        _current.reset(token)


def current_remarks() -> Remarks:
    """Those of the task that this is part of.

    A task that Dask made of a frame's graph, where no block collects them, has its own until it ends.
    """
    remarks = _current.get(None)
    if remarks is None:
        remarks = Remarks()
        _current.set(remarks)
    return remarks


def remark(url: str, kind: str, fact: Any) -> None:
    """Say what was noticed about a shard.

    Parameters
    ----------
    url
        Of the shard.
    kind
        One of `KINDS`.
    fact
        JSON-able; replaces an earlier remark of the same kind. None takes that back.
    """
    current_remarks().add(url, kind, fact)


def remark_more(url: str, kind: str, fact: Mapping[str, Any]) -> None:
    """The same of a kind of `OF_ROWS`, whose fact is added to what was said of other rows."""
    before = current_remarks().on([url]).get(url, {})
    known = {url: {kind: before[kind]}} if kind in before else {}
    remark(url, kind, summed(known, {url: {kind: fact}})[url][kind])


def cut_at(tokens: int) -> str:
    """By what it counts texts that had not come to their end after so many tokens."""
    return f"{CUT_AT}{counted(tokens, 'token')}"


def seen_by(prefix: str) -> str:
    """By what it counts images that a model has looked at, by the prefix of its columns."""
    return f"seen: {prefix}"


def found_by(prefix: str) -> str:
    """The same of those in which it has found something."""
    return f"found: {prefix}"


def labelled(prefix: str, label: str) -> str:
    """The same of those in which it has found something of this label."""
    return f"label: {prefix}: {label}"


def fact_of(names: Iterable[str], examples: int = EXAMPLES) -> dict[str, Any] | None:
    """The fact that these names are: how many, and the first few; None if there are none."""
    listed = list(names)
    return (
        {"count": len(listed), "examples": [key_text(name) for name in listed[:examples]]} if listed else None
    )


def add_up(known: dict[str, dict[str, Any]], more: Mapping[str, Mapping[str, Any]]) -> None:
    """Put remarks on shards, by url and kind, to those on other rows of them."""
    for url, facts in more.items():
        own = known.setdefault(url, {})
        for kind, fact in facts.items():
            own[kind] = _sum(own[kind], fact) if kind in own and kind in OF_ROWS else fact


def summed(remarks: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Remarks and those on other rows, as `add_up` puts them together."""
    both = {url: dict(facts) for url, facts in remarks.items()}
    add_up(both, more)
    return both


def of_kept(
    before: Mapping[str, Any], columns: Collection[str], now: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The remarks of an earlier run on columns that a file keeps.

    Parameters
    ----------
    before
        Remarks on shards, by url and kind.
    columns
        Those that are kept.
    now
        Those of this run. Remarks on captions do not say of which column they are: it tells its own alone.
    """
    kept: dict[str, Any] = {}
    for url, facts in before.items():
        own = {
            kind: _of_columns(kind, facts[kind], columns)
            for kind in ("detections", "answers")
            if kind in facts
        }
        are_there = any(f"{name}_cut" in columns for name in columns)
        if are_there and "captions" in facts and "captions" not in (now or {}).get(url, {}):
            own["captions"] = facts["captions"]
        if own := {kind: fact for kind, fact in own.items() if fact}:
            kept[url] = own
    return kept


def _of_columns(kind: str, fact: Mapping[str, Any], columns: Collection[str]) -> dict[str, Any]:
    by = fact.get("by", {})
    if kind == "answers":
        parts = {what: (what.removeprefix(LITTLE).removeprefix(NOT_ASKED), "_answer") for what in by}
    else:
        seen = [what.removeprefix(seen_by("")) for what in by if what.startswith(seen_by(""))]
        parts = {
            what: (name, "_boxes")
            for name in seen
            for what in by
            if what in (seen_by(name), found_by(name)) or what.startswith(labelled(name, ""))
        }
    some = {what: by[what] for what, (name, end) in parts.items() if name + end in columns}
    if not some:
        return {}
    count = sum(n for what, n in some.items() if what == parts[what][0] or what.startswith(seen_by("")))
    return {"count": count, "examples": fact["examples"] if len(some) == len(by) else [], "by": some}


def _sum(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    # In whatever order parts come: the first by name.
    examples = sorted([*one["examples"], *other["examples"]])[:EXAMPLES]
    by = Counter(one.get("by", {})) + Counter(other.get("by", {}))
    return {
        "count": one["count"] + other["count"],
        "examples": examples,
        **({"by": dict(by)} if by else {}),
    }


def without_not_made(remarks: Mapping[str, Any], column: str) -> dict[str, Any]:
    """The remarks on shards without that the column is not made."""
    left = {url: dict(facts) for url, facts in remarks.items()}
    for facts in left.values():
        names = [name for name in facts.pop("not-made", {}).get("examples", ()) if name != column]
        facts |= {"not-made": fact_of(names, len(names))} if names else {}
    return left
