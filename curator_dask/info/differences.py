"""What does not fit together in an output, in words, with what to run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from curator_dask.info.footers import FileFacts
from curator_dask.info.makers import AGAIN, Maker
from curator_dask.words import counted

T = TypeVar("T")

_NAMED = 3  # files that a line names
#: By kind of maker, what is to be done where several have made a column.
_ONE = {
    "embed": "vectors of different models cannot be compared: run embed with the one model and --overwrite",
    "classify": "their classes and probabilities differ: run classify with the one model and --overwrite",
    "score": "one threshold does not fit both: run score with the one head and --overwrite",
    "texts": "run score --text-statistics with --overwrite",
    "balance": "run balance again, with --overwrite",
    "join": "run join with the one table and --overwrite",
    "statistics": "run embed with the one set of options and --overwrite",
}


def differences_in(files: Sequence[FileFacts], columns: Sequence[str]) -> list[str]:
    """Lines on what does not fit together, worst first."""
    lines: list[str] = []
    for name in columns:
        lines += _of_column(files, name)
    lines += _files_that(
        files,
        lambda file: "given up" in file.marks,
        "rows of {} were given up, as workers died of them: run the same command again, which tries them again",
    )
    lines += _files_that(
        files,
        lambda file: "changed" in file.marks,
        "{} do not have the rows they were written with: something else has changed them, and a rerun makes them"
        " anew",
    )
    known = [file for file in files if "record" in file.marks]
    if known:
        lines += _files_that(
            files,
            lambda file: "record" not in file.marks,
            "{} do not say what made them: they are not of here",
        )
    return lines


def _of_column(files: Sequence[FileFacts], name: str) -> list[str]:
    lines = []
    makers: dict[Maker, list[FileFacts]] = {}
    types: dict[str, list[FileFacts]] = {}
    without: list[FileFacts] = []
    for file in files:
        if name not in file.types:
            without.append(file)
            continue
        makers.setdefault(file.makers[name], []).append(file)
        types.setdefault(str(file.types[name]), []).append(file)
    if len(makers) > 1:
        said = "; ".join(f"{maker.told} in {_some(some)}" for maker, some in _ranked(makers))
        kind = _ranked(makers)[0][0].kind
        same = " (they differ in what the text does not say, as the transform)" * (
            len({maker.told for maker in makers}) < len(makers)
        )
        lines.append(f"{name}: made in {len(makers)} ways: {said}{same}. {_advice(_ONE, makers, kind)}")
    if len(types) > 1:
        said = "; ".join(f"{kind} in {_some(some)}" for kind, some in _ranked(types))
        lines.append(
            f"{name}: has several types: {said}. Readers that take all files together may refuse them"
        )
    if without and makers:
        kind = _ranked(makers)[0][0].kind
        lines.append(f"{name}: {_some(without)} of {len(files):,} lack it. {_advice(AGAIN, makers, kind)}")
    lines += _files_that(
        files,
        lambda file: name in file.lacking,
        f"{name}: rows of {{}} have no value yet, as what it is made of is new: run the same score again",
    )
    return lines


def _advice(words: dict[str, str], makers: Iterable[Maker], kind: str) -> str:
    found = words.get(kind) or next((words[each.kind] for each in makers if each.kind in words), "")
    return f"{found[:1].upper()}{found[1:]}" if found else "The datasets that they are of differ there"


def _ranked(found: dict[T, list[FileFacts]]) -> list[tuple[T, list[FileFacts]]]:
    return sorted(found.items(), key=lambda each: (-len(each[1]), each[1][0].name))


def _files_that(files: Sequence[FileFacts], holds: Callable[[FileFacts], bool], words: str) -> list[str]:
    some = [file for file in files if holds(file)]
    return [words.format(_some(some))] if some else []


def _some(files: Sequence[FileFacts]) -> str:
    names = ", ".join(file.name for file in files[:_NAMED])
    return f"{counted(len(files), 'file')} ({names}{', …' if len(files) > _NAMED else ''})"
