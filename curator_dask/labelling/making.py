"""Makes a page to label images."""

from __future__ import annotations

import logging
import numbers
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from curator_dask.decode.spec import check_counts
from curator_dask.dedup.arguments import check_eps
from curator_dask.errors import ConfigError, OutputError
from curator_dask.frames.names import EMBEDDING_COLUMN, URL_COLUMN
from curator_dask.image.fitting.sources import LabelTables
from curator_dask.labelling.asking import CLASSES, check_replaced, decision_of, labels_for
from curator_dask.labelling.choosing import near_copies
from curator_dask.labelling.page import Page, render
from curator_dask.labelling.picking import Picked, pick_rows
from curator_dask.labelling.pictures import make_pictures
from curator_dask.labelling.scanning import Scan, ScanFile, scan_rows
from curator_dask.labelling.showing import Shown, choose, kinds_of
from curator_dask.outputs.placing import locate, put
from curator_dask.report.folder import Folder, open_folder
from curator_dask.report.making import check_page, embeddings_in
from curator_dask.rows.best import is_number
from curator_dask.rows.where import Where
from curator_dask.storage import Options, absolute
from curator_dask.words import counted, some_of_these

logger = logging.getLogger("curator_dask")

#: Pictures of a page, unless another number is given, and at most.
NUMBER, MOST = 200, 2000
#: How far a near copy is, at most, unless another eps is given.
EPS = 0.03
_LIMIT = 19_000_000  # bytes of a page without its script and style
_TEXT = 2_000  # bytes of a row's caption, key and shard, where each letter is escaped
_LARGEST = 90_000  # bytes of one
_SAMPLE = 20_000  # rows whose vectors are looked at
_KNOWN = 5_000  # rows with a label, of which none that is shown is a near copy
_MANY = 1_000_000  # rows, before which it is said that they are looked at
_SAMPLE_BYTES = 1 << 28


@dataclass(frozen=True)
class LabelSummary:
    """What a page to label has come to: `rows` is the sum of those that were left out, and `left`.

    Attributes
    ----------
    path, size
        The page, and its bytes.
    rows
        Of the output.
    filtered, failed, labelled, unscored
        Left out: that do not pass the condition, whose image failed, that have a label already, without a score.
    left, looked_at
        Rows that could be shown, and of how many of these the vectors were looked at.
    shown
        Pictures on the page, by why they are there.
    near_copies, without_vector, without_picture
        Of the rows that were looked at those that are not shown for this reason.
    unused, overruled
        Labels of tables that are no row's; rows of which tables say different things.
    seconds
        All of it.
    """

    path: str
    size: int
    rows: int
    filtered: int
    failed: int
    labelled: int
    unscored: int
    left: int
    looked_at: int
    shown: dict[str, int]
    near_copies: int
    without_vector: int
    without_picture: int
    unused: int
    overruled: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: the attributes."""
        return dict(vars(self))

    @property
    def told(self) -> list[str]:
        """Counts in words, line by line."""
        lines = [f"{counted(self.rows, 'row')}, {self.left:,} of them to choose from"]
        out = [
            (self.filtered, "that the condition leaves out"),
            (self.failed, "whose image failed"),
            (self.labelled, "that are labelled"),
            (self.unscored, "without a score"),
        ]
        if some := [f"{number:,} {why}" for number, why in out if number]:
            lines[0] += f"; not among these: {', '.join(some)}"
        shown = sum(self.shown.values())
        parts = ", ".join(f"{number:,} {kind}" for kind, number in self.shown.items())
        lines.append(
            f"{counted(shown, 'picture')}: {parts if len(self.shown) > 1 else next(iter(self.shown))}"
        )
        looked = "" if self.looked_at == self.left else f" (of {self.looked_at:,} rows that were looked at)"
        out = [
            (self.near_copies, f"near copies of pictures that are shown or labelled{looked}"),
            (self.without_vector, "rows without a vector"),
            (self.without_picture, "rows whose picture cannot be made"),
        ]
        lines += [f"{number:,} {why} are left out" for number, why in out if number]
        if self.overruled:
            lines.append(
                f"{counted(self.overruled, 'row')} with labels that differ: that of the last table counts"
            )
        if self.unused:
            lines.append(f"{counted(self.unused, 'label')} of no row")
        return lines

    def __str__(self) -> str:
        return "\n".join([f"{self.path}: {self.size / 1e6:.1f} MB, {self.seconds:.1f} s", *self.told])


def label_page(
    path: str | os.PathLike[str],
    page: str | os.PathLike[str],
    name: str,
    *,
    classes: Sequence[str] = CLASSES,
    number: int = NUMBER,
    by: str | Sequence[str] | None = None,
    at: float | None = None,
    where: str | None = None,
    labels: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    eps: float = EPS,
    column: str = EMBEDDING_COLUMN,
    seed: int = 0,
    storage_options: Options = None,
) -> LabelSummary:
    """Write one HTML file to label images by looking, which needs no network and no other file.

    What it saves is what `curator_dask.image.fitting.fit_head` takes as ``labels``, by key and shard.

    Without `by` the rows are spread over the vectors of a sample, so that rare things are seen. With it four fifths are
    those nearest to where heads decide, the others drawn by chance where they are surest, so that errors there are
    seen, too. Near copies are shown once.

    Parameters
    ----------
    path
        What `save_metadata` or ``curator-dask embed`` wrote, or other Parquet files with lists of numbers.
    page
        The file to write.
    name
        Column of the labels, and name of the head: letters, digits and _.
    classes
        Two to nine. Of yes and no the table has true and false.
    number
        Pictures, at most.
    by
        Columns of scores that heads gave: one, or of several classes one each.
    at
        Of one column the score at which it decides. None: 0.5, for a probability.
    where
        A condition that rows must pass (`ImageTextPairDataset.filter`).
    labels
        Tables of labels that were saved before: their rows are not shown again.
    eps
        How far a near copy is, at most: it has a cosine of at least 1 - eps.
    column
        Of the vectors.
    seed
        Of what is drawn by chance.
    storage_options
        For fsspec, where `path` or its shards are URLs.

    Raises
    ------
    ConfigError
        An argument is wrong, a column would be replaced, or no row is left to be shown.
    DatasetError
        A table of labels cannot be used.
    OutputError
        There is no such output or column, a file cannot be read, or rows do not say where their images are.
    """
    check_counts(number=number)
    if number > MOST:
        raise ConfigError(
            f"number={number:,}: expected {MOST:,} at most. Label the next on another page, with the labels of this one"
            " (labels=, --labels)"
        )
    if not is_number(seed, numbers.Integral) or seed < 0:
        raise ConfigError(f"seed={seed!r}: expected a whole number of at least 0")
    target, condition = check_page(page), None if where is None else Where(where)
    check_eps("eps", eps)
    started = time.monotonic()
    folder = _open(path, column, storage_options)
    tables = (labels,) if isinstance(labels, str | os.PathLike) else tuple(labels)
    asked = labels_for(name, classes, folder.files[0].id_col)
    columns = () if by is None else (by,) if isinstance(by, str) else tuple(by)
    decision = decision_of(folder, columns, at)
    replaces = check_replaced(folder, asked, columns)
    known = LabelTables.read(tables, name, folder.files[0].id_col, storage_options) if tables else None

    scan_file = ScanFile(
        condition,
        known,
        decision,
        _sample(folder, column),
        4 * number + 64,
        _KNOWN,
        folder.types,
        seed,
        storage_options,
    )
    if folder.rows > _MANY:
        logger.info("%s: looks at %s in %s", folder.path, *_size(folder))
    scan = scan_rows(folder, scan_file)
    if known is not None:
        known.check()
    _check_scan(folder, scan, scan_file, at)
    kinds = kinds_of(scan, decision, number)
    candidates = np.unique(np.concatenate([each.rows for each in kinds]))
    picked = pick_rows(folder, column, np.concatenate([candidates, scan.known.rows]))
    shown = choose(
        kinds,
        picked,
        eps,
        seed if decision is None else None,
        scan.known.rows,
        lambda places: make_pictures(
            [picked.ids[place] for place in places],
            [picked.urls[place] for place in places],
            min(_LARGEST, _LIMIT // number - _TEXT),
            storage_options,
        ),
    )
    if not shown.places:
        raise OutputError(_why_none(folder, picked, candidates, shown, column))
    looked_at = picked.places(candidates)
    alike = [*shown.places, *picked.places(scan.known.rows).tolist()]
    near = near_copies(picked.vectors[looked_at], picked.vectors[alike], eps)
    summary = LabelSummary(
        str(target),
        0,
        scan.rows,
        scan.filtered,
        scan.failed,
        scan.labelled,
        scan.unscored,
        scan.left,
        len(candidates),
        dict(Counter(shown.kinds)),
        int(near.sum()) - len(shown.places),
        len(candidates) - len(looked_at),
        len(shown.unmade),
        0 if known is None else known.unused,
        0 if known is None else known.overruled,
        0.0,
    )
    names = list(dict.fromkeys(shown.kinds))
    text = render(
        Page(
            folder.path,
            asked,
            tuple(absolute(os.fspath(table)) for table in tables),
            None if column == EMBEDDING_COLUMN else column,
            replaces,
            folder.files[0].id_col,
            [str(picked.keys[place]) for place in shown.places],
            [picked.urls[place] for place in shown.places],
            [picked.captions[place] for place in shown.places],
            shown.pictures,
            names,
            [names.index(kind) for kind in shown.kinds],
            summary.told,
        )
    ).encode("utf-8", "replace")
    put(str(target.absolute()), text, None)
    summary = replace(summary, size=len(text), seconds=time.monotonic() - started)
    logger.info("%s", summary)
    return summary


def _open(path: str | os.PathLike[str], column: str, options: Options) -> Folder:
    folder = open_folder(embeddings_in(locate(os.fspath(path), options), None)[0], None, options)
    for name, what in ((folder.files[0].id_col, "keys"), (column, "vectors (--column)")):
        if name not in folder.types:
            raise OutputError(
                f"{folder.path}: has no column {name!r} of {what}; "
                f"it has {some_of_these([*folder.types], name)}. Give the folder that embed"
                " wrote to"
            )
    return folder


def _size(folder: Folder) -> tuple[str, str]:
    return counted(folder.rows, "row"), counted(len(folder.files), "file")


def _sample(folder: Folder, column: str) -> int:
    """Of how many rows vectors are looked at."""
    dim = getattr(folder.types[column], "list_size", 1)
    return min(_SAMPLE, max(MOST, _SAMPLE_BYTES // (4 * dim)))


def _check_scan(folder: Folder, scan: Scan, asked: ScanFile, at: float | None) -> None:
    """Raise ConfigError where scores are no probabilities, or no row is left."""
    decision = asked.decision
    if decision is not None and len(decision.columns) == 1 and at is None and (scan.low < 0 or scan.high > 1):
        raise ConfigError(
            f"by={decision.columns[0]!r}: has values from {scan.low:g} to {scan.high:g}, so it is no probability: say"
            " at which score it decides (at=, --at)"
        )
    if not scan.left:
        raise ConfigError(
            f"{folder.path}: no row is left to be shown: of {counted(scan.rows, 'row')} {scan.filtered:,} do not pass"
            f" the condition, {scan.failed:,} failed, {scan.labelled:,} are labelled, {scan.unscored:,} have no score"
        )


def _why_none(folder: Folder, picked: Picked, candidates: np.ndarray, shown: Shown, column: str) -> str:
    rows, places = counted(len(candidates), "row"), picked.places(candidates)
    if not len(places):
        return (
            f"{folder.path}: none of {rows} looked at has a key, and a vector in {column!r}: embed them first"
        )
    if not any(picked.urls[place] for place in places):
        return (
            f"{folder.path}: its rows do not say in which shards their images are (they have no column {URL_COLUMN!r}),"
            " and there are neither images in its Parquet files nor tars beside them. Give the folder that embed wrote"
            " to, or that of an export"
        )
    if not shown.unmade:
        return (
            f"{folder.path}: no row is left to be shown: all {rows} that were looked at are near copies of labelled"
            " ones. A smaller eps (--eps) shows more"
        )
    return f"{folder.path}: no picture can be made of any of {rows}: {shown.unmade[0]}"
