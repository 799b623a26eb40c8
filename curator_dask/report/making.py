"""Makes a page of an output."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curator_dask.decode.spec import check_counts
from curator_dask.errors import ConfigError, OutputError
from curator_dask.frames.names import URL_COLUMN
from curator_dask.outputs import curated_names as curated
from curator_dask.outputs.failed import output_files
from curator_dask.outputs.placing import locate
from curator_dask.outputs.removed import DUPLICATES
from curator_dask.report.categories import count_categories, find_categories
from curator_dask.report.contents import Report
from curator_dask.report.folder import open_folder
from curator_dask.report.head import head_of
from curator_dask.report.looking import look_aside, look_at, pick_rows
from curator_dask.report.mapping import map_of
from curator_dask.report.measures import count_measures, find_measures
from curator_dask.report.page import render
from curator_dask.report.twins import read_twins
from curator_dask.settings import check_local
from curator_dask.storage import Options, is_remote
from curator_dask.words import counted

logger = logging.getLogger("curator_dask")

#: Rows of the sample, unless another number is given.
SAMPLE = 50_000
SEED = 7
#: Bytes of a page, at most, and pictures, at most.
LIMIT, MOST = 20_000_000, 3000
_EACH = 64  # pictures that show how a measure goes from its lowest value to its highest
_ALIKE = 512  # pictures that show a column's values, an even share of each


@dataclass(frozen=True)
class ReportSummary:
    """What a report has come to.

    Attributes
    ----------
    path
        The page.
    size
        Its bytes.
    rows, sampled, pictures
        Rows of the output, those of the sample, and pictures on the page.
    seconds
        By step.
    """

    path: str
    size: int
    rows: int
    sampled: int
    pictures: int
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: the attributes."""
        return dict(vars(self))

    def __str__(self) -> str:
        sample = "" if self.sampled == self.rows else f", {self.sampled:,} of them as a sample"
        return (
            f"{self.path}: {self.size / 1e6:.1f} MB, {counted(self.rows, 'row')}{sample},"
            f" {counted(self.pictures, 'picture')};"
            f" {self.seconds['all']:.1f} s"
        )


def make_report(
    path: str | os.PathLike[str],
    page: str | os.PathLike[str],
    *,
    duplicates: str | os.PathLike[str] | None = None,
    column: str | None = None,
    sample: int = SAMPLE,
    run: Mapping[str, Any] | None = None,
    storage_options: Options = None,
) -> ReportSummary:
    """Write one HTML file of an output, which needs no network and no other file.

    All rows are counted; what is shown of single rows is of a sample, the same for each call.

    Parameters
    ----------
    path
        What `save_metadata` or ``curator-dask embed`` wrote, or other Parquet files.
    page
        The file to write.
    duplicates
        What ``curator-dask dedup`` has found among its vectors: the folder of the result.
    column
        Of the vectors; None: ``image_embedding``, or the first there is.
    sample
        Rows of the sample, at most.
    run
        `SaveSummary.to_dict` of the run that made the output: for its time and versions.
    storage_options
        For fsspec, where `path` or its shards are URLs.

    Raises
    ------
    ConfigError
        The page cannot be written there.
    OutputError
        There is no such output or column, a file cannot be read, or the duplicates are of other shards.
    """
    check_counts(sample=sample)
    target = check_page(page)
    started = time.monotonic()
    twins = None if duplicates is None else os.fspath(duplicates)
    folder, twins = embeddings_in(locate(os.fspath(path), storage_options), twins)
    report = _look(folder, twins, column, sample, run, storage_options)
    text = render(report)
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{target}: could not be written: {error.strerror}. Give another name") from error
    report.seconds["all"] = time.monotonic() - started
    size, rows = len(text.encode()), report.folder.rows
    pictures = sum(each.startswith("data:") for each in report.pictures.made)
    if rows and not any(report.look.rows.urls):
        logger.warning(
            "%s: no pictures: its rows do not say in which shards their images are (they have no column %r), and there"
            " are neither images in its Parquet files nor tars beside them. Give the folder that embed wrote to, or"
            " that of an export",
            folder,
            URL_COLUMN,
        )
    summary = ReportSummary(str(target), size, rows, len(report.look.rows), pictures, report.seconds)
    logger.info("%s", summary)
    return summary


def check_page(page: str | os.PathLike[str]) -> Path:
    """The file to write; raises ConfigError where there can be none."""
    check_local(page)
    target = Path(page)
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise ConfigError(
            f"{target}: {'is a folder; ' if target.is_dir() else ''}expected the name of a file, such as page.html, in"
            " a folder that is there"
        )
    return target


def embeddings_in(path: str, duplicates: str | None) -> tuple[str, str | None]:
    """Folders of the rows, and of the duplicates; of what ``curate`` wrote those in it.

    Raises
    ------
    OutputError
        It is what ``dedup`` wrote: its rows are pairs of others.
    """
    if is_remote(path):
        return path, duplicates
    if Path(path, DUPLICATES).exists():
        raise OutputError(
            f"{path}: is what dedup wrote: give the folder that embed wrote to, and this one by --duplicates"
            " (duplicates=)"
        )
    if not curated.of_curate(output_files(path, None)):
        return path, duplicates
    found = Path(path, curated.DUPLICATES)
    logger.info("%s: was written by curate; the page is of its folder %s", path, curated.EMBEDDINGS)
    if duplicates is None and (found / DUPLICATES).exists():
        duplicates = str(found)
    return str(Path(path, curated.EMBEDDINGS)), duplicates


def _look(
    path: str,
    duplicates: str | None,
    column: str | None,
    sample: int,
    run: Mapping[str, Any] | None,
    options: Options,
) -> Report:
    clock = time.monotonic()
    seconds: dict[str, float] = {}

    def took(what: str) -> None:
        nonlocal clock
        now = time.monotonic()
        seconds[what], clock = now - clock, now

    folder = open_folder(path, column, options)
    twins = None if duplicates is None else read_twins(duplicates, folder)
    look = look_at(folder, pick_rows(folder.rows, sample, SEED))
    report = Report(folder, look, head_of(folder, look, look_aside(folder), run), twins=twins)
    report.seconds = seconds
    took("rows")
    report.measures, report.others = find_measures(folder, look)
    count_measures(folder, report.measures)
    took("thresholds")
    report.categories = find_categories(folder, look)
    count_categories(folder, report.categories)
    took("values")
    report.map = map_of(look.rows, SEED)
    look.rows.drop_vectors()
    took("map")
    _want(report)
    room = _make_room(report)
    report.pictures.make(min(LIMIT // 2, room), options)
    took("pictures")
    return report


def _make_room(report: Report) -> int:
    """Bytes that are left for pictures, beside all else that the page has; the last measures go if they are few."""
    room = LIMIT - len(render(report).encode())
    one = 4 * 8 * len(report.look.rows) // 3  # a measure's values, in base64
    while room < LIMIT // 10 and len(report.measures) > 1:
        report.others[report.measures.pop().name] = (
            "the page has no room for it; a smaller --sample makes some"
        )
        room += one
    return max(0, room)


def _want(report: Report) -> None:
    """Which rows have a picture: duplicates, outliers, some along each measure and of each value, then any."""
    rows = report.look.rows
    whole = {type(key) for key in rows.keys} == {int}
    for twin in report.twins.shown if report.twins is not None else ():
        report.pictures.want(int(twin.key) if whole else twin.key, twin.url)
    for row, _, _ in report.outliers():
        _want_row(report, row)
    for measure in report.measures:
        values = rows.numbers[measure.name]
        order = np.argsort(values, kind="stable")[: int(np.isfinite(values).sum())]
        # Half of them evenly by rank, half by value: where few are, a threshold shows something, too.
        ranks = np.linspace(0, max(0, len(order) - 1), _EACH // 2).astype(int)
        even = np.searchsorted(values[order], np.linspace(measure.low, measure.high, _EACH // 2))
        for at in np.unique(np.concatenate([ranks, even.clip(max=len(order) - 1)])) if len(order) else ():
            _want_row(report, int(order[at]))
    for category in report.categories:
        share = max(1, _ALIKE // len(category.counts))
        named: dict[str | None, int] = {value: share for value, _ in category.named}
        for row, value in enumerate(rows.texts[category.name]):
            if named.get(value, 0) > 0 and rows.errors[row] is None:
                named[value] -= 1
                _want_row(report, row)
    for row in np.random.default_rng(SEED).permutation(len(rows)).tolist():
        if len(report.pictures.places) >= MOST:
            break
        _want_row(report, row)


def _want_row(report: Report, row: int) -> None:
    rows = report.look.rows
    report.pictures.want(rows.keys[row], rows.urls[row])


def read_run(path: str) -> dict[str, Any]:
    """The summary of a run, as ``embed --json`` writes it, or of the step that embeds, as ``curate --json`` does.

    Raises
    ------
    ConfigError
        The file is no such summary.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: is no summary of a run: {error}. Give what embed --json FILE wrote"
        ) from error
    steps = found.get("steps") if isinstance(found, dict) else None
    run = steps.get("embeddings") if isinstance(steps, dict) else found
    numbers = ("seconds", "images_per_second", "startup_seconds")
    if (
        not isinstance(run, dict)
        or not all(
            isinstance(run.get(name, 0 if name == numbers[2] else None), int | float) for name in numbers
        )
        or not isinstance(run.get("versions", {}), dict)
    ):
        raise ConfigError(f"{path}: is no summary of a run. Give what embed --json FILE wrote")
    return dict(run)
