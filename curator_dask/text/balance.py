"""`balance_output`: balancing a dataset by the concepts in its captions."""

from __future__ import annotations

import json
import logging
import numbers
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from curator_dask.cluster.setup import OpenWorkers, when_needed
from curator_dask.decode.spec import check_counts
from curator_dask.errors import ConfigError, OutputError, ShardError
from curator_dask.frames.names import CAPTION_COLUMN, ERROR_COLUMN, URL_COLUMN
from curator_dask.frames.parquet import Footer, whole_footers
from curator_dask.outputs.adding import add_columns
from curator_dask.outputs.choosing import read_rows
from curator_dask.outputs.given import given_files
from curator_dask.outputs.placing import locate
from curator_dask.outputs.saving import check_apart, opened
from curator_dask.outputs.writing import Output
from curator_dask.rows.best import is_number
from curator_dask.runs.settle import file_tasks, run_targets
from curator_dask.runs.summary import SaveSummary, installed_versions
from curator_dask.runs.targets import Target
from curator_dask.storage import Options, is_remote, join
from curator_dask.text.concepts import CONCEPT_COLUMN, ConceptList
from curator_dask.text.counting import BALANCE_SUFFIX, LIST, Counting, Counts
from curator_dask.text.drawing import CHANCE, COLUMNS, DRAWN, BalanceRows, Expect, expected_of, levels_of
from curator_dask.threads import in_threads
from curator_dask.words import counted, meant, some_of_these

logger = logging.getLogger("curator_dask")

_HEAD, _CHOICES = 10, 12  # concepts and thresholds that the summary names


@dataclass
class BalanceSummary:
    """What was counted, and what came of it.

    Attributes
    ----------
    rows, without_caption, unmatched
        All rows, and of these those without a caption, and those whose caption contains no concept.
    concepts, repeated, blank
        How many there are, and how many more were given that are the same as one before, or have no word.
    never
        Concepts that no caption contains.
    head
        The concepts that most rows contain, and how many.
    most
        Rows of a concept above which not all of them are drawn; None: it is still to be chosen.
    tail
        Concepts that fewer rows contain than `most`, those that none contains among them.
    expected, kept
        The sum of the rows' probabilities, and how many rows were drawn.
    choices
        Where there is no `most`: by threshold, how many rows are to be expected.
    counts
        The table of all concepts with the number of rows that contain each.
    output
        What was written, if anything was.
    seconds
        Of this call.
    """

    rows: int = 0
    without_caption: int = 0
    unmatched: int = 0
    concepts: int = 0
    repeated: int = 0
    blank: int = 0
    never: int = 0
    head: list[tuple[str, int]] = field(default_factory=list)
    most: int | None = None
    tail: int = 0
    expected: float = 0.0
    kept: int = 0
    choices: dict[int, float] = field(default_factory=dict)
    counts: str = ""
    output: SaveSummary | None = None
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: the attributes, ``output`` as `SaveSummary.to_dict` gives it, and the versions of what ran."""
        output = None if self.output is None else self.output.to_dict()
        return {**vars(self), "output": output, "versions": installed_versions()}

    def __str__(self) -> str:
        more = [(self.repeated, "given again"), (self.blank, "blank")]
        left = "".join(f", {number:,} {words}" for number, words in more if number)
        lines = [
            f"{counted(self.rows, 'row')}: {self.without_caption:,} without a caption, {self.unmatched:,} with one that"
            f" contains no concept",
            f"  {counted(self.concepts, 'concept')}{left}; {self.never:,} in no caption",
            f"  in most rows: {', '.join(f'{text} {count:,}' for text, count in self.head) or '-'}",
        ]
        if self.most is not None:
            lines += [
                f"  {self.tail:,} in fewer than {self.most:,} rows: all rows with one of these are kept",
                f"  {self.kept:,} rows balanced ({_share(self.kept, self.rows)}), {self.expected:,.1f} expected",
            ]
        # Below those that keep all that can be kept, but for the last of these.
        full = sum(rows > 0.9995 * max(self.choices.values()) for rows in self.choices.values())
        shown = list(self.choices.items())[max(0, full - 1) :][:_CHOICES]
        width = len(f"{shown[0][0]:,}") if shown else 0
        lines += [
            f"  most {f'{most:,}':>{width}}: {rows:,.0f} rows ({_share(rows, self.rows)})"
            for most, rows in shown
        ]
        return "\n".join([*lines, f"  counts: {self.counts}"])


def _share(count: float, rows: int) -> str:
    return f"{count / rows:.1%}" if rows else "-"


def balance_output(
    path: str | os.PathLike[str],
    concepts: str | os.PathLike[str],
    most: int | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    text_column: str = CAPTION_COLUMN,
    id_col: str | None = None,
    concept_column: str = CONCEPT_COLUMN,
    match_case: bool = False,
    keep_unmatched: bool = False,
    seed: int = 0,
    prefix: str = "",
    counts: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    storage_options: Options = None,
    concepts_storage_options: Options = None,
    output_storage_options: Options = None,
    workers: OpenWorkers = nullcontext,
) -> BalanceSummary:
    """Balance a dataset by the concepts in its captions, as MetaCLIP does; no tar is opened, no vector changed.

    A concept that `n` rows contain draws each of them with the probability ``min(1, most / n)``; a row is kept where
    one of its concepts draws it (`curator_dask.text.drawing`). What "contains" means is told in
    `curator_dask.text.contained`. Rows get four columns: ``concepts`` (int32, how many it has), ``rarest_concept``
    (text, the one that fewest rows have, or null), ``balance`` (float32, the probability that it is kept) and
    ``balanced`` (bool, whether it is). With the same captions a larger `most` keeps all rows that a smaller one keeps.

    What was counted is remembered file by file, so that the same call again does nothing, and a file that is new or has
    changed costs only itself; the probabilities of all rows may be others then.

    Parameters
    ----------
    path
        What `save_metadata` or ``curator-dask embed`` wrote, or other Parquet files.
    concepts
        ``.txt`` with one a line, ``.json`` with a list of texts, or a table (Parquet, CSV, TSV, JSON Lines). Those that
        are the same to the rule count once.
    most
        Rows of a concept above which not all of them are drawn. None: it is counted alone, and the summary says of some
        thresholds how many rows they would keep.
    output
        Where the files go with their columns; None: in the place of those that are there.
    text_column
        Of the captions: text, or lists of text. Of several captions of a row it has the concepts of all.
    id_col
        Column of the keys; None: as the files say, or ``key``.
    concept_column
        Of a table of concepts.
    match_case
        ``Apple`` is not ``apple``.
    keep_unmatched
        Rows that contain no concept are kept; else they are not.
    seed
        Of the draw, which goes by a row's key and captions besides.
    prefix
        Before the columns' names.
    counts
        Folder for what is remembered; None: beside `path`, with ``.balance`` behind its name.
    overwrite
        Replace columns and files that something else has made.
    storage_options, concepts_storage_options, output_storage_options
        For fsspec, where `path`, `concepts` and `output` are URLs; without the others the first is theirs, too.
    workers
        Opens the cluster to work on, once there is something to count or to write; else it is the one that is there.

    Raises
    ------
    ConfigError
        An argument has a value that it cannot have.
    DatasetError
        The concepts cannot be read.
    OutputError
        There are no such files or columns, or something would be replaced.
    ShardError
        A file could not be counted: without it the counts would be wrong.
    """
    started = time.monotonic()
    if most is not None:
        check_counts(most=most)
    if not is_number(seed, numbers.Integral):
        raise ConfigError(f"seed={seed!r}: expected a whole number")
    options = storage_options
    source = Output(locate(os.fspath(path), options), options, output is None, overwrite, False)
    target_options = options if output_storage_options is None else output_storage_options
    # Who says where counts go may have to: where the input is may be read-only.
    counts_options = options if counts is None else target_options
    place = _place(source.folder, counts, counts_options)
    if output is not None:
        _check_place(place, locate(os.fspath(output), options))
    names = given_files(source.folder, options)
    footers = whole_footers([join(source.folder, name) for name in names], options)
    key = _check_columns(footers, text_column, id_col, prefix, most is not None)
    given = ConceptList.read(
        concepts,
        concept_column,
        match_case,
        options if concepts_storage_options is None else concepts_storage_options,
    )
    summary = BalanceSummary(
        concepts=len(given.texts), repeated=given.repeated, blank=given.blank, most=most, counts=place
    )
    with opened(place, counts_options), when_needed(workers) as start:
        counting = Counting(
            given.save(join(place, LIST), counts_options), source, place, counts_options, text_column
        )
        _run(counting, counting.todo(names), "count-concepts", source.folder, start)
        total, saved = counting.total(names, given.texts)
        summary.counts = saved.path
        _say(summary, total, given.texts)
        if most is None:
            levels = levels_of(total.concepts)
            reports = _run(Expect(counting, saved, levels), names, "expect-rows", source.folder, start)
            kept = total.unmatched + total.without_caption if keep_unmatched else 0
            summary.choices = {level: rows + kept for level, rows in expected_of(reports, levels).items()}
        else:
            label = Path(os.fspath(concepts)).name
            step = BalanceRows(
                *(counting.concepts, saved, text_column, key, most, seed, prefix, keep_unmatched, label)
            )
            target = source.folder if output is None else locate(os.fspath(output), target_options)
            summary.output = add_columns(
                source.folder,
                lambda records: [step],
                None if output is None else target,
                overwrite=overwrite,
                options=options,
                output_options=target_options,
                workers=lambda: nullcontext(start()),
                around=counting.renewing if target == source.folder else nullcontext,
            )
            failed = summary.output.failed_shards
            done = [name for name in names if name.removesuffix(".parquet") not in failed]
            _add_up(summary, [join(target, name) for name in done], target_options, prefix)
    summary.seconds = time.monotonic() - started
    logger.info("%s", summary)
    return summary


def _place(folder: str, counts: str | os.PathLike[str] | None, options: Options) -> str:
    """The folder for what is remembered."""
    if counts is not None:
        place = locate(os.fspath(counts), options)
        check_apart(folder, place)
        return place
    if is_remote(folder) and "/" not in folder.partition("://")[2]:
        raise ConfigError(
            f"{folder}: nothing can be beside a bucket: say where counts go (counts=, --counts)"
        )
    return f"{folder}{BALANCE_SUFFIX}"


def _check_place(place: str, target: str) -> None:
    try:
        check_apart(target, place)
    except OutputError:
        raise ConfigError(
            f"{place}: is for what is remembered, and {target} for the rows: give a folder beside it for one of them"
            " (counts, --counts)"
        ) from None


def _check_columns(
    footers: Mapping[str, Footer], text: str, id_col: str | None, prefix: str, draws: bool
) -> str:
    """The column of the keys.

    Raises
    ------
    OutputError
        A file has no such column, or none of captions.
    ConfigError
        A name is not free.
    """
    records = [footer.record for footer in footers.values() if footer.record is not None]
    key = id_col or next((record.id_col for record in records if record.id_col), "key")
    for path, footer in footers.items():
        if text not in footer.columns:
            raise OutputError(
                f"{path}: has no column {text!r}{meant(text, footer.columns)}; "
                f"it has {some_of_these(footer.columns, text)}. Give the"
                " name of the captions' (text_column, --text)"
            )
        if draws and key not in footer.columns:
            raise OutputError(
                f"{path}: has no column {key!r}, by which rows are drawn; "
                f"it has {some_of_these(footer.columns, key)}. Give the name of"
                " one whose values are each row's own (id_col, --id-col)"
            )
    made = [f"{prefix}{name}" for name in COLUMNS]
    taken = {
        key,
        "key",
        text,
        URL_COLUMN,
        ERROR_COLUMN,
        *(name for each in records for name in each.embeddings),
    }
    if wrong := [name for name in made if name in taken]:
        raise ConfigError(
            f"{wrong} would take the place of keys, captions or vectors: give another prefix (prefix, --prefix)"
        )
    return key


def _run(function: Any, names: Sequence[str], token: str, folder: str, start: Callable[[], Any]) -> list[Any]:
    """The reports of a task a file, of those that are named.

    Raises
    ------
    ShardError
        One of them failed.
    """
    reports: dict[int, Any] = {}
    if names:
        client, summary = start(), SaveSummary(folder, opened=False)
        targets = [Target.of_file(folder, name) for name in names]

        def take(number: int, row: Mapping[str, Any]) -> None:
            reports[number] = json.loads(row["target"])

        run_targets(file_tasks(function, names, token, client), client, targets, summary, take)
        for name, reason in summary.failed_shards.items():
            more = f" ({len(summary.failed_shards)} files failed)" if len(summary.failed_shards) > 1 else ""
            raise ShardError(
                f"{name}: could not be counted{more}, and nothing was balanced: {reason}. What was counted is kept:"
                " mend the file, or take it away, and run again"
            )
    return [reports[number] for number in sorted(reports)]


def _say(summary: BalanceSummary, total: Counts, texts: Sequence[str]) -> None:
    """Put what was counted into a summary."""
    counts = total.concepts
    summary.rows, summary.without_caption = total.rows, total.without_caption
    summary.unmatched, summary.never = total.unmatched, int((counts == 0).sum())
    order = np.argsort(-counts, kind="stable")[:_HEAD]
    summary.head = [(texts[number], int(counts[number])) for number in order if counts[number]]
    if summary.most is not None:
        summary.tail = int((counts < summary.most).sum())


def _add_up(summary: BalanceSummary, paths: Sequence[str], options: Options, prefix: str) -> None:
    """Count the rows that were drawn, also those of files that were finished before."""

    def look(path: str) -> tuple[float, int]:
        table = read_rows(path, options, [f"{prefix}{CHANCE}", f"{prefix}{DRAWN}"])
        expected, kept = (pc.sum(column).as_py() for column in table.columns)
        return expected or 0.0, kept or 0

    looked = in_threads(look, paths)
    summary.expected = sum(expected for expected, _ in looked)
    summary.kept = sum(kept for _, kept in looked)
