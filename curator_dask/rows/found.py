"""In how many images something was found, and how questions about them went, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from curator_dask.rows.remarks import EXAMPLES, LITTLE, NOT_ASKED, found_by, labelled, seen_by
from curator_dask.words import counted, ranked

_LABELS = 10  # that are named


def found_lines(facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line a model: of the images that it has looked at those with at least one thing, and these by label.

    Parameters
    ----------
    facts
        By the shard's url, of the kind ``"detections"`` (`curator_dask.rows.remarks.KINDS`).
    """
    by: Counter[str] = Counter()
    for fact in facts.values():
        by.update(fact.get("by", {}))
    lines = []
    for prefix in [name.removeprefix(seen_by("")) for name in by if name.startswith(seen_by(""))]:
        start = labelled(prefix, "")
        labels = ranked({name.removeprefix(start): n for name, n in by.items() if name.startswith(start)})
        named = ", ".join(f"{label} {count:,}" for label, count in labels[:_LABELS])
        more = f", and {len(labels) - _LABELS:,} other labels" if len(labels) > _LABELS else ""
        line = (
            f"  {prefix}: at least one in {by[found_by(prefix)]:,} of {counted(by[seen_by(prefix)], 'image')}"
        )
        lines.append(f"{line}: {named}{more}" if labels else line)
    return lines


def answer_lines(facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line a question of which there is something to say: images that a model would rather say something else of.

    And one for rows that were not asked.

    Parameters
    ----------
    facts
        By the shard's url, of the kind ``"answers"``.
    """
    by: Counter[str] = Counter()
    for fact in facts.values():
        by.update(fact.get("by", {}))
    lines = []
    for name, count in ranked(by):
        little, not_asked = (name.partition(kind)[2] for kind in (LITTLE, NOT_ASKED))
        if little:
            of = counted(by[little], "image")
            lines.append(
                f"  {little}: for {count:,} of {of} its answers are unlikely: {little}_mass is below 0.5. Ask so that"
                f" the model would write one of them, or leave these out (--where '{little}_mass > 0.5')"
            )
        if not_asked:
            rows, some = counted(count, "row"), "; ".join(_examples(facts))
            lines.append(
                f"  {not_asked}: {rows} not asked, as the question's columns are null or empty there: {some}"
            )
    return lines


def before_lines(rows: int, failed: int, files: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line about files that were finished before; none where these have no rows.

    Parameters
    ----------
    rows, failed
        Of these files together.
    files
        What a summary says of all files: their ``reasons``, and whether they were finished ``before``.
    """
    if not rows:
        return []
    reasons: Counter[str] = Counter()
    for each in files:
        reasons.update(each["reasons"] if each["before"] else {})
    why = ", ".join(f"{count:,} {reason}" for reason, count in ranked(reasons))
    lost = f", {failed:,} failed" if failed else ""
    return [f"  in these {counted(rows, 'row')}{lost}{f': {why}' if failed and why else ''}"]


def some_of(examples: Iterable[str]) -> str:
    """Examples of a reason, ``shard key: reason``; of those that say the same of their key the first in full.

    Examples
    --------
    >>> some_of(["00000 7: no sample '7'", "00000 8: no sample '8'", "00001 9: cut short"])
    "00000 7: no sample '7'; 00000 8; 00001 9: cut short"
    """
    said, told = set[str](), []
    for each in examples:
        name, _, why = each.partition(": ")
        like = why.replace(f"'{name.rpartition(' ')[2]}'", "")
        told.append(name if like in said else each)
        said.add(like)
    return "; ".join(told)


def _examples(facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    some = [f"{url} {', '.join(fact['examples'])}" for url, fact in sorted(facts.items()) if fact["examples"]]
    return some[:EXAMPLES]
