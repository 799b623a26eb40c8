"""What does not fit together in an output, in words, with what to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    groups = _alike(files)
    lacking = {name for file in files for name in file.lacking}
    for name in columns:
        lines += _of_column(groups, name)
        if name in lacking:
            lines += _files_that(
                files,
                lambda file, name=name: name in file.lacking,  # type: ignore[misc]
                f"{name}: rows of {{}} have no value yet, as what it is made of is new: run the same score again",
            )
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


def _alike(files: Sequence[FileFacts]) -> list[list[FileFacts]]:
    """Files that have the same columns, made by the same, together: most often all."""
    found: dict[tuple[int, int], list[FileFacts]] = {}
    for file in files:
        found.setdefault((id(file.types), id(file.makers)), []).append(file)
    return list(found.values())


def _of_column(groups: Sequence[Sequence[FileFacts]], name: str) -> list[str]:
    lines = []
    makers: dict[Maker, list[FileFacts]] = {}
    types: dict[str, list[FileFacts]] = {}
    without: list[FileFacts] = []
    for files in groups:
        if name not in files[0].types:
            without += files
            continue
        # Those that came after a column was added have it as nulls, for an output has one schema.
        if files[0].makers[name].kind == "dataset" and any(
            one.makers[name].kind in AGAIN for some in groups for one in some[:1] if name in one.makers
        ):
            without += [file for file in files if file.filled.get(name) == 0 < file.rows]
            files = [file for file in files if file.filled.get(name) != 0 or not file.rows]
            if not files:
                continue
        makers.setdefault(files[0].makers[name], []).extend(files)
        types.setdefault(str(files[0].types[name]), []).extend(files)
    if len(makers) > 1:
        said = "; ".join(f"{maker.told} in {_some(some)}" for maker, some in _ranked(makers))
        same = " (they differ in what the text does not say, as the transform)" * (
            len({maker.told for maker in makers}) < len(makers)
        )
        lines.append(f"{name}: made in {len(makers)} ways: {said}{same}. {_advice(_ONE, makers)}")
    if len(types) > 1:
        said = "; ".join(f"{kind} in {_some(some)}" for kind, some in _ranked(types))
        lines.append(
            f"{name}: has several types: {said}. Readers that take all files together may refuse them"
        )
    if without and makers:
        total = sum(map(len, groups))
        lines.append(f"{name}: {_some(without)} of {total:,} lack it. {_advice(AGAIN, makers)}")
    return lines


def _advice(words: Mapping[str, str], makers: Mapping[Maker, list[FileFacts]]) -> str:
    """What to run, by the kind of the maker of most files for which something is known."""
    found = next((words[maker.kind] for maker, _ in _ranked(makers) if maker.kind in words), "")
    return f"{found[:1].upper()}{found[1:]}" if found else "The datasets that they are of differ there"


def _ranked(found: Mapping[T, list[FileFacts]]) -> list[tuple[T, list[FileFacts]]]:
    return sorted(found.items(), key=lambda each: (-len(each[1]), each[1][0].name))


def _files_that(files: Sequence[FileFacts], holds: Callable[[FileFacts], bool], words: str) -> list[str]:
    some = [file for file in files if holds(file)]
    return [words.format(_some(some))] if some else []


def _some(files: Sequence[FileFacts]) -> str:
    names = ", ".join(file.name for file in files[:_NAMED])
    return f"{counted(len(files), 'file')} ({names}{', …' if len(files) > _NAMED else ''})"
