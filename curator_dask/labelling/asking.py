"""What a page asks, and near what scores it looks for rows; what cannot be is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.errors import ConfigError, NoColumnError
from curator_dask.frames.names import URL_COLUMN
from curator_dask.image.fitting.sources import kind_of_labels
from curator_dask.labelling.page import Labels
from curator_dask.labelling.scanning import Decision
from curator_dask.report.folder import Folder, is_number
from curator_dask.rows.caption_files import read_table
from curator_dask.rows.key_column import KeyColumn
from curator_dask.words import counted, meant

#: Classes, unless others are given. In a table they are true and false, as the labels of a report are.
CLASSES = ("yes", "no")
_BOOLEAN = {"yes": "true", "no": "false"}
_MOST, _LONGEST = 9, 60  # classes, which have a key each; characters of a name


def labels_for(name: str, classes: Sequence[str], id_col: str) -> Labels:
    """Labels of this name and these classes.

    Parameters
    ----------
    name, classes
        See `curator_dask.labelling.label_page`.
    id_col
        Column of the keys.

    Raises
    ------
    ConfigError
        There can be no such table of labels, or no heads of them.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[^\W\d]\w*", name):
        raise ConfigError(f"name={name!r}: expected letters, digits and _, such as good (--name)")
    if name in (id_col, URL_COLUMN):
        raise ConfigError(
            f"name={name!r}: is the column by which labels find their rows: give another (--name)"
        )
    classes = tuple(classes)
    odd = [each for each in classes if not _is_name(each)]
    if isinstance(classes, str) or odd or len({*classes}) < len(classes) or not 2 <= len(classes) <= _MOST:
        raise ConfigError(
            f"classes={list(classes)!r}: expected two to {_MOST} different names, such as cat,dog,other (--classes)"
        )
    if {*classes} == {*CLASSES}:
        return Labels(name, classes, tuple(_BOOLEAN[each] for each in classes), ((name, None),))
    _check_read(name, classes)
    if len(classes) == 2:
        return Labels(name, classes, classes, ((name, classes[0]),))
    heads = tuple((name + "_" + re.sub(r"\W+", "_", each), each) for each in classes)
    if len({head.lower() for head, _ in heads}) < len(heads):
        raise ConfigError(
            f"classes={list(classes)!r}: their heads would have the names {[head for head, _ in heads]}: give names"
            " that differ in letters or digits (--classes)"
        )
    return Labels(name, classes, classes, heads)


def _is_name(text: object) -> bool:
    return isinstance(text, str) and text.isprintable() and text.strip() == text and 0 < len(text) <= _LONGEST


def _check_read(name: str, classes: Sequence[str]) -> None:
    """Raise ConfigError where a class in a table of labels is read as nothing, as another one, or not always alike."""
    read = _read(classes)
    if read.null_count or pc.count_distinct(read).as_py() < len(classes):
        raise ConfigError(
            f"classes={list(classes)!r}: in a CSV these are read as {read.to_pylist()}: give other names (--classes)"
        )
    # A page may have labels of some classes alone: what was read as numbers there does not go with another page's text.
    alone = {each: kind_of_labels(_read([each]).type) for each in classes}
    if len({*alone.values()}) > 1:
        said = ", ".join(f"{each} as {kind}" for each, kind in alone.items())
        raise ConfigError(
            f"classes={list(classes)!r}: in a CSV with one of them alone they are read as values of several types"
            f" ({said}): give other names, such as {name}1 (--classes)"
        )


def _read(classes: Sequence[str]) -> pa.ChunkedArray:
    """What a table is read as that has a label of each class."""
    lines = [f'{number},"{each.replace(chr(34), 2 * chr(34))}"' for number, each in enumerate(classes)]
    data = "\n".join(["key,label", *lines]).encode()
    return read_table("labels.csv", data, KeyColumn("key", "", "")).column("label")


def decision_of(folder: Folder, columns: Sequence[str], at: float | None) -> Decision | None:
    """Where the heads of some columns decide; None: there are no columns.

    Raises
    ------
    ConfigError
        There are no such columns of numbers, or `at` does not go with them.
    """
    for column in columns:
        if column not in folder.types:
            raise NoColumnError(
                f"by={column!r}: there is no such column{meant(column, folder.numbers)}. Columns of numbers are"
                f" {folder.numbers}. Scores of a head of yours come by `fit`, then `score --head {column}=FILE`"
            )
        if not is_number(folder.types[column]):
            raise ConfigError(
                f"by={column!r}: expected scores, found {folder.types[column]}. Columns of numbers are {folder.numbers}"
            )
    if at is not None and len(columns) != 1:
        raise ConfigError(
            f"at={at!r}: is where one column of scores decides, and {counted(len(columns), 'column')} are given (by=,"
            " --by)"
        )
    if at is not None and not (isinstance(at, int | float) and math.isfinite(at)):
        raise ConfigError(f"at={at!r}: expected the score at which it decides, a number")
    if len({*columns}) < len(columns):
        raise ConfigError(f"by={list(columns)!r}: expected each column once")
    return Decision(tuple(columns), 0.5 if at is None else at) if columns else None


def check_replaced(folder: Folder, labels: Labels, by: Sequence[str]) -> bool:
    """Whether the output has scores of such heads, which newer ones are to replace.

    Raises
    ------
    ConfigError
        It has a column of such a name that no head has made.
    """
    lower = {name.lower(): name for name in folder.types}
    there = [lower[head.lower()] for head, _ in labels.heads if head.lower() in lower]
    for column in there:
        of_head = bool(folder.records) and all(
            "vectors" in each.scores.get(column, {}) for each in folder.records
        )
        if column not in by and not of_head:
            raise ConfigError(
                f"name={labels.name!r}: there is a column {column!r}, which the scores of its head would replace: give"
                " another name (--name)"
            )
    return bool(there)
