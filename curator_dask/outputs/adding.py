"""Adding columns to the files of an output, of vectors, a table or images: all else in them stays as it is.

Each file is read as it is and written anew with more columns; shards are needed for what is seen in images alone. A
file's record says what made its columns, so a further one costs only itself.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask import backend
from curator_dask.cluster.setup import OpenWorkers, at_work
from curator_dask.errors import ConfigError, OutputError, ShardError
from curator_dask.frames.columns import list_to_matrix, vectors_in, vectors_to_list
from curator_dask.frames.faults import faults_told
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.frames.parquet import (
    Footer,
    conform,
    open_parquet,
    read_footer,
    whole_footers,
    write_table,
)
from curator_dask.frames.record import LACKING, TEXTS, FileRecord, inputs_of
from curator_dask.outputs.added import AddedStep as AddedStep  # from here, too
from curator_dask.outputs.added import SeeingStep, scores_of
from curator_dask.outputs.choosing import read_rows
from curator_dask.outputs.failed import tell_others
from curator_dask.outputs.file_parts import check_parts_at_work, is_of
from curator_dask.outputs.given import check_no_input, given_files
from curator_dask.outputs.placing import locate
from curator_dask.outputs.replacing import check_column
from curator_dask.outputs.saving import check_not_inside, opened
from curator_dask.outputs.seen import (
    check_seen,
    check_shards,
    lacking_seen,
    narrowed,
    noticed_again,
    said_of,
    urls_of,
    used_by,
    with_names,
)
from curator_dask.outputs.stale import without_stale
from curator_dask.outputs.taken_down import rows_staying
from curator_dask.outputs.writing import Output
from curator_dask.rows.remarks import noticing, summed, without_not_made
from curator_dask.runs.describing import load_models
from curator_dask.runs.fit import Fit
from curator_dask.runs.parts import Part, told_part
from curator_dask.runs.passes import run_steps
from curator_dask.runs.reports import errors_of, report_frame, report_of, report_since
from curator_dask.runs.settle import file_tasks, run_targets
from curator_dask.runs.summary import SaveSummary
from curator_dask.runs.targets import Target
from curator_dask.storage import Options, join
from curator_dask.threads import in_threads
from curator_dask.webdataset.stamps import stamp
from curator_dask.words import some_of_these

logger = logging.getLogger("curator_dask")

#: In what a record says of a column: the state of the file that it was made of, where it stands in another.
MADE_OF = "made_of"

#: Given a file's name, what it is done within.
Around = Callable[[str], AbstractContextManager[Any]]


@dataclass(frozen=True)
class AddToFile:
    """Adds columns to one file, and writes it in its place or elsewhere.

    Attributes
    ----------
    steps
        That make the columns.
    source, target
        Where the file is, and where it goes.
    given_up
        The file kills workers: it is left as it is, for this reason.
    around
        Given the file's name, what it is done within.
    """

    steps: tuple[AddedStep, ...]
    source: Output
    target: Output
    given_up: str | None = None
    around: Around = nullcontext

    def give_up(self, reason: str) -> AddToFile:
        """The same without the work that kills workers."""
        return replace(self, given_up=reason)

    def lacking(self, name: str) -> tuple[str, Output, Footer, tuple[AddedStep, ...]]:
        """The file to read, where it is, what it says of itself, and the steps whose columns it lacks."""
        path = join(self.source.folder, name)
        footer = read_footer(path, self.source.options)
        done = join(self.target.folder, name)
        if done == path:
            return path, self.source, footer, self._lacking(footer, None)
        there = read_footer(done, self.target.options)
        origin = vars(stamp(path, self.source.options))
        gone = 0 if there.record is None else there.record.removed
        if there.rows + gone == footer.rows and _made_of(there.record) == origin:
            return done, self.target, there, self._lacking(there, origin)
        return path, self.source, footer, self.steps

    def _lacking(self, footer: Footer, origin: Mapping[str, Any] | None) -> tuple[AddedStep, ...]:
        record = footer.record
        if record is None or record.rows != footer.rows:
            return self.steps
        return tuple(
            step
            for step in self.steps
            if (isinstance(step, SeeingStep) and lacking_seen(step, footer, record))
            or any(
                name not in footer.columns
                or not record.has_score(name, said["recipe"])
                or record.scores[name].get(MADE_OF) != origin
                for name, said in scores_of(step).items()
            )
        )

    def __call__(self, name: str) -> pd.DataFrame:
        """Do it; returns a report as `WritePartition` does.

        Raises
        ------
        ShardError
            The file cannot be read, or its columns are not what the steps take.
        """
        with self.around(name):
            return self._add(name)

    def _add(self, name: str) -> pd.DataFrame:
        path, output, footer, steps = self.lacking(name)
        if self.given_up is not None:
            raise ShardError(f"{path}: {self.given_up}. It is as it was; run again, or look at the file")
        with faults_told(path, ShardError), open_parquet(path, output.options) as file:
            table, record = rows_staying(
                file.read(), output == self.target, self.target.folder, self.target.options
            )
        found: dict[str, Any] = {}
        errors = errors_of(table)
        if steps:  # else a worker died after it had written the file
            check_shards(path, urls_of(table), record, steps)
            steps = narrowed(steps, footer, record)
            with noticing() as noticed, _naming(path):
                before, table = table, _with_columns(table, record, steps, name)
            table, record, not_made = without_stale(before, table, record, steps)
            found = summed(noticed_again(noticed.on(urls_of(table))), not_made)
        shown, id_col = name.removesuffix(".parquet"), record.id_col or "key"
        if steps:
            made = {column: dict(said) for step in steps for column, said in scores_of(step).items()}
            record = said_of(record, steps)
            if self.source.folder != self.target.folder:
                origin = vars(stamp(join(self.source.folder, name), self.source.options))
                made = {column: {**said, MADE_OF: origin} for column, said in made.items()}
                record = replace(record, origin=origin)
            urls = {**record.remarks, **found}
            remarks = {url: {**record.remarks.get(url, {}), **found.get(url, {})} for url in urls}
            for column in made:
                remarks = without_not_made(remarks, column)
            kept = replace(
                record,
                remarks=remarks,
                scores={**record.scores, **made},
                derived=tuple(dict.fromkeys([*record.derived, *made])),
                report=None
                if record.report is None
                else {**record.report, **_counts(report_of(shown, table, id_col)), "remarks": remarks},
            )
            write_table(join(self.target.folder, name), table, kept, self.target.options)
        return report_frame({**report_since(shown, table, id_col, errors, record.scores), "remarks": found})


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Say which file has columns of types that do not fit: those of others may."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def add_columns(
    path: str,
    make_steps: Callable[[Mapping[str, FileRecord | None]], Sequence[AddedStep]],
    output: str | None = None,
    *,
    overwrite: bool = False,
    options: Options = None,
    output_options: Options = None,
    workers: OpenWorkers = nullcontext,
    summary: SaveSummary | None = None,
    around: Around = nullcontext,
    look: Callable[[Sequence[str]], object] = lambda _: None,
    part: Part | None = None,
) -> SaveSummary:
    """Add columns that steps make of those that are there to the files of an output.

    Parameters
    ----------
    path
        Of the output: Parquet files, from here or elsewhere.
    make_steps
        Given the record of each file by its path, makes the steps.
    output
        Where the files go with their new columns; None: in the place of those that are there.
    overwrite
        Replace scores of other heads, columns of other tables, and columns and files that others made.
    options, output_options
        For fsspec, of `path` and of `output`.
    workers
        Opens the cluster to work on, once there are files that lack a column; else it is the one that is there.
    summary
        In which counts and times are put; None: one is made.
    around
        Given a file's name, what it is done within, on a worker.
    look
        Given the paths of the files that have all columns in the end, before the summary is told.
    part
        Whose files are done, beside other parts; what would be replaced is looked for in all.

    Returns
    -------
    SaveSummary
        Counts and times; it is also logged.

    Raises
    ------
    OutputError
        There are no such files, or something would be replaced.
    """
    started = time.monotonic()
    source = target = Output(locate(path, options), options, output is None, overwrite, False)
    if output is not None and locate(output, output_options) != source.folder:
        target = Output(locate(output, output_options), output_options, False, overwrite, False)
        check_not_inside(source.folder, target.folder)
    summary = SaveSummary("", opened=False) if summary is None else summary
    summary.path = target.folder
    with opened(target.folder, target.options, part=part) as lock:
        names = given_files(source.folder, options)
        if target is not source:
            tell_others(target.folder, names, target.options)
        paths = [join(source.folder, name) for name in names]
        footers = whole_footers(paths, options)
        steps = tuple(make_steps({each: footer.record for each, footer in footers.items()}))
        add = AddToFile(steps, source, target, around=around)
        looked = in_threads(add.lacking, names)
        for number, (where, place, footer, lacking) in enumerate(looked):
            if lacking:
                _check_vectors(where, footer, lacking)
                check_seen(where, footer, lacking, overwrite, place.options)
            if lacking and not overwrite:
                if target is source:
                    check_no_input(where, footer, options)
                written = join(target.folder, names[number])
                _check_free(where, place, footer, lacking, paths[number], written, target)
        made = {name: said for step in steps for name, said in scores_of(step).items()}
        recipes = {name: {"head": said.get("head"), "recipe": said["recipe"]} for name, said in made.items()}
        check_parts_at_work(lock, target.folder, part, recipes)
        mine = [is_of(part, name) for name in names]
        summary.part = None if part is None else told_part(part, sum(mine), len(names))
        names, looked = [*compress(names, mine)], [*compress(looked, mine)]
        todo = [name for name, (_, _, _, lacking) in zip(names, looked, strict=True) if lacking]
        needed = [*{id(step): step for look in looked for step in look[3]}.values()]
        finished = [(where, place, footer) for where, place, footer, lacking in looked if not lacking]
        summary.skipped = len(finished)
        summary.rows_before = sum(footer.rows for _, _, footer in finished)
        summary.failed_before = sum(_failed_in(*each) for each in finished)
        if todo:
            with at_work(workers) as client:
                fit = Fit(needed, load_models(needed, [], client, len(todo)))
                summary.startup_seconds = time.monotonic() - started
                targets = [Target.of_file(target.folder, name) for name in todo]
                tasks = file_tasks(add, todo, "add-columns", client, fit)
                run_targets(tasks, client, targets, summary, held=lock.check_held)
        lock.check_held()
        done = [name for name in names if name.removesuffix(".parquet") not in summary.failed_shards]
        look([join(target.folder, name) for name in done])
    summary.seconds = time.monotonic() - started
    logger.info("%s", summary)
    return summary


def _failed_in(path: str, place: Output, footer: Footer) -> int:
    """How many rows of a file have failed, by its report; files of other programs have none, and are asked."""
    report = (footer.record and footer.record.report) or None
    if report is not None or ERROR_COLUMN not in footer.columns:
        return int((report or {}).get("failed", 0))
    errors = read_rows(path, place.options, [ERROR_COLUMN]).column(0)
    return len(errors) - int(errors.null_count)


def _check_vectors(read: str, footer: Footer, lacking: Sequence[AddedStep]) -> None:
    every = [said for step in lacking for said in scores_of(step).values()]
    missing = {said["vectors"] for said in every if "vectors" in said} - {*footer.columns}
    if missing:
        raise OutputError(
            f"{read}: has no column {', '.join(map(repr, sorted(missing)))} of vectors; "
            f"it has {some_of_these(footer.columns, min(missing))}. Give"
            " the name of theirs (embedding_column, --column), or make them first: `curator-dask embed` into it"
        )
    missing = {said[TEXTS] for said in every if TEXTS in said} - {*footer.columns}
    if missing:
        raise OutputError(
            f"{read}: has no column {sorted(missing)} of texts; "
            f"it has {some_of_these(footer.columns, min(missing))}. Give the name of theirs"
            " (text_column, --text)"
        )


def _check_free(
    read: str,
    place: Output,
    footer: Footer,
    lacking: Sequence[AddedStep],
    source: str,
    written: str,
    target: Output,
) -> None:
    """Raise OutputError where columns, or a file, would be replaced."""
    for name, said in (pair for step in lacking for pair in scores_of(step).items()):
        check_column(read, footer, name, said, place.options)
    if read == source != written:
        there = read_footer(written, target.options)
        if there.fault or (there.columns and _made_of(there.record) is None):
            raise OutputError(
                f"{written}: would be replaced, and {there.fault or 'was not made by adding columns'}. Write to another"
                " path, or use overwrite=True (--overwrite)"
            )


def _made_of(record: FileRecord | None) -> Any:
    """The state of the file of which another was made; None: of none."""
    if record is not None and record.origin is not None:
        return record.origin
    scores = record.scores.values() if record is not None else ()
    return next((said[MADE_OF] for said in scores if MADE_OF in said), None)


def _counts(report: Mapping[str, Any]) -> dict[str, Any]:
    return {name: report[name] for name in ("failed", "reasons", "examples")}


def _with_columns(table: pa.Table, record: FileRecord, steps: Sequence[AddedStep], name: str) -> pa.Table:
    """The table with the columns that steps make, ``image_error`` last where there was none."""
    # The vectors, what says why some are null, and the other columns of which it may say so; by tables nothing fails.
    every = [said for step in steps for said in scores_of(step).values()]
    used = {each for said in every for each in inputs_of(said) if each != said.get("vectors")}
    used |= (seen_by := used_by(steps))
    if seen_by or any("vectors" in said for said in every):
        used |= {*vectors_in(table.schema), *record.scores, ERROR_COLUMN}
    used |= {record.id_col or "key", URL_COLUMN} if any(TEXTS in said for said in every) else set()
    seen = table.select([each for each in table.column_names if each in used])
    for column in sorted({said["vectors"] for said in every if "vectors" in said} - used):
        seen = seen.append_column(column, _as_vectors(table, column, name))
    made = backend.frame_to_arrow(run_steps(steps, backend.rows_of(with_names(seen, record, steps))))
    kinds = {column: kind for step in steps for column, kind in step.columns.items()}
    new = conform(made, pa.schema(list(kinds.items())), name)
    recipes = {column: said["recipe"] for step in steps for column, said in scores_of(step).items()}
    for column in kinds:
        if column in table.column_names:
            values, before = new.column(column), record.scores.get(column, {})
            if LACKING in before and before["recipe"] == recipes.get(
                column
            ):  # what is there stays, bit for bit
                values = pc.coalesce(table.column(column), values)
            table = table.set_column(table.column_names.index(column), column, values)
        elif column != ERROR_COLUMN and ERROR_COLUMN in table.column_names:
            table = table.add_column(table.column_names.index(ERROR_COLUMN), column, new.column(column))
        else:
            table = table.append_column(column, new.column(column))
    return table


def _as_vectors(table: pa.Table, column: str, name: str) -> pa.Array:
    """Vectors that are no lists of float32, such as those of other programs, as such lists."""
    try:
        return vectors_to_list(*list_to_matrix(table.column(column)))
    except ValueError as error:
        raise ShardError(
            f"{name}: {column!r}: {error}. Give the column of the vectors (embedding_column, --column)"
        ) from error
