"""Numbers of things and of bytes in words, and names that may have been meant."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence


def counted(number: int, noun: str, one: str = "", more: str = "") -> str:
    """The number with its noun in the form that goes with it: ``1 file``, ``12,000 files``; and a verb of that form."""
    said = f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
    verb = one if number == 1 else more
    return f"{said} {verb}" if verb else said


def ranked(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """What was counted, and how often: the commonest first, by name where as many, whatever was counted first."""
    return sorted(counts.items(), key=lambda each: (-each[1], each[0]))


def meant(name: str, names: Sequence[str]) -> str:
    """What may have been meant by a name that is not there: `` (did you mean width?)``; empty where none is alike.

    A name may be several, with commas between them, as of ImageNet's classes: each of them is compared. Capitals do
    not count. Where one is the same but for them, no others are offered.

    Parameters
    ----------
    name
        That is not there.
    names
        That are.
    """
    asked = name.casefold()
    by_form: dict[str, list[str]] = {}
    for each in dict.fromkeys(names):
        for form in dict.fromkeys(part.strip().casefold() for part in (each, *each.split(","))):
            by_form.setdefault(form, []).append(each)
    same = [form for form in by_form if form == asked]
    near = same or difflib.get_close_matches(asked, by_form, n=2)
    found = list(dict.fromkeys(each for form in near for each in by_form[form]))[:2]
    said = [repr(each) if "," in each or " " in each else each for each in found]
    return f" (did you mean {' or '.join(said)}?)" if found else ""


def some_of_these(names: Sequence[str], asked: str = "", most: int = 12) -> str:
    """Names as a list for a message; of many those that are most like the one that was asked for, and how many others.

    Parameters
    ----------
    names
        That there are.
    asked
        That is not among them.
    most
        That are named.
    """
    names = [*names]
    if len(names) <= most:
        return str(names)
    match = difflib.SequenceMatcher(b=asked.casefold())

    def unlike(name: str) -> float:
        match.set_seq1(str(name).casefold())
        return -match.ratio()

    near = sorted(names, key=unlike)[:most] if asked else names[:most]
    return f"{near} and {counted(len(names) - most, 'other')}"


def none_of_these(name: str, names: Sequence[str]) -> str:
    """That there is no such column, in words."""
    return f"there is no column {name!r}{meant(name, names)}. There are {some_of_these(names, name)}"


def printable(text: str) -> str:
    """Text for one line of a terminal, on which it changes nothing else: control characters as Python escapes them."""
    if text.isprintable():  # most is
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def sized(number: float) -> str:
    """Bytes in the unit that suits them: ``20.5 kB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return counted(round(number), "byte") if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"
