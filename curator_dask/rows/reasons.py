"""Why a row has no vector: a kind, and a text that begins with it; in ``image_error`` as one line of text.

This module alone knows how reasons stand in that column: ``kind: details``, or ``[column] kind: details`` where only
some of a row's columns lack their value, several of these with ``; `` between them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

#: There is no image: no sample of the row's key, no image in the sample, no shard.
MISSING = "missing"
#: Workers died while they worked on the shard.
GAVE_UP = "gave up"
#: The model gave NaN or infinity.
NOT_FINITE = "not finite"
#: The model of the column has not seen the shard, or not as it is now.
NOT_MADE = "not made"
#: Of a text's vector: there is no text.
NO_CAPTION = "no caption"
#: Of a score: its vector is null, and nothing says why.
NO_VECTOR = "no vector"
#: Ends a reason, before a colon and what is wrong, where a sample may be lost with the rest of its tar.
DAMAGED = "; the tar is damaged"

_COLUMN = re.compile(r"(?:^|; )\[(?P<column>[^\[\]]+)\] ")


class Reason(NamedTuple):
    """Why a row lacks a value.

    Attributes
    ----------
    kind
        A few words by which reasons are counted, such as ``"missing"`` or ``"too large"``.
    text
        The whole reason; it begins with the kind.
    column
        That lacks it; None: all that steps make.
    """

    kind: str
    text: str
    column: str | None = None

    @classmethod
    def of(cls, text: str, column: str | None = None) -> Reason:
        """The reason that a text is: its kind is what stands before the first colon, or parenthesis."""
        return cls(text.partition(":")[0].partition(" (")[0], text, column)

    @property
    def label(self) -> str:
        """By which it is counted: the kind, and the column where it is one column's alone."""
        return self.kind if self.column is None else f"{self.kind} ({self.column})"


def reasons_in(stored: str | None) -> list[Reason]:
    """The reasons in a value of ``image_error``; none where it is null."""
    if stored is None:
        return []
    found = list(_COLUMN.finditer(stored))
    if not found or found[0].start():
        return [Reason.of(stored)]
    ends = [each.start() for each in found[1:]] + [len(stored)]
    return [
        Reason.of(stored[each.end() : end], each["column"]) for each, end in zip(found, ends, strict=True)
    ]


def new_reasons(stored: str | None, before: str | None, scores: Collection[str]) -> str | None:
    """Of a value of ``image_error`` the reasons that are not in an earlier one, in the same form; None: none is.

    A score that lacks its vector has the reason of that one, which is no new one. `scores` are the columns that the
    earlier value may name, and whose reasons are no others'.
    """
    known = {(each.column, each.text) for each in reasons_in(before)}
    passed_on = {text for column, text in known if column not in scores}
    found = reasons_in(stored)
    new = [each for each in found if (each.column, each.text) not in known and each.text not in passed_on]
    if len(new) == len(found):
        return stored
    return "; ".join(f"[{each.column}] {each.text}" for each in new) or None


def as_stored(reasons: Mapping[str, str | None]) -> str | None:
    """The value of ``image_error`` of a row.

    Parameters
    ----------
    reasons
        Why each of the columns that can fail has no value; None where it has one.
    """
    texts = {column: text for column, text in reasons.items() if text is not None}
    if len(texts) == len(reasons) and len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"[{column}] {text}" for column, text in texts.items()) or None


def said_once(reasons: Mapping[str, str | None], others: Collection[str]) -> dict[str, str | None]:
    """Reasons by column, without those of `others` that only say again what one of the further columns has.

    `others` have their values, and lack them, together with one of these, as one model makes them.
    """

    def what(text: str | None) -> str | None:  # which names its column, where it is not made
        return NOT_MADE if text is not None and Reason.of(text).kind == NOT_MADE else text

    said = {what(text) for name, text in reasons.items() if name not in others}
    return {
        name: text for name, text in reasons.items() if name not in others or what(text) not in {None, *said}
    }


def reasons_of(
    stored: str | None, lacking: Mapping[str, bool], others: Collection[str] = ()
) -> dict[str, str | None]:
    """What a value of ``image_error`` says of columns, by column, as `as_stored` takes it.

    Parameters
    ----------
    stored
        The value.
    lacking
        For each of the columns, whether it has no value.
    others
        Columns of which it is not asked. What is said of further columns by name is part of the result.
    """
    said = reasons_in(stored)
    found = {column: reason_for(column, said) if lacks else None for column, lacks in lacking.items()}
    named = {each.column: each.text for each in said if each.column is not None}
    return found | {name: text for name, text in named.items() if name not in found and name not in others}


def reason_for(column: str, reasons: Iterable[Reason]) -> str | None:
    """What reasons say of a column: those of all columns are its reasons, too."""
    return next((each.text for each in reasons if each.column in (None, column)), None)
