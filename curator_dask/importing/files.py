"""The files of an import: which are there, which are left to write, and which would have rows twice."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from curator_dask.cluster.mapping import on_cluster
from curator_dask.cluster.setup import OpenWorkers, at_work
from curator_dask.errors import OutputError
from curator_dask.frames.parquet import Footer, read_footer, read_record
from curator_dask.importing.layouts import Pair
from curator_dask.importing.repeats import Keys, repeated
from curator_dask.importing.writing import ImportFile, Piece
from curator_dask.outputs.failed import output_files, tell_others
from curator_dask.outputs.file_parts import check_parts_at_work
from curator_dask.outputs.saving import opened
from curator_dask.runs.parts import Part, told_part
from curator_dask.runs.settle import file_tasks, run_targets
from curator_dask.runs.summary import SaveSummary
from curator_dask.runs.targets import Target
from curator_dask.storage import join, remove
from curator_dask.threads import in_threads
from curator_dask.webdataset.parquet import file_of
from curator_dask.words import counted

logger = logging.getLogger("curator_dask")

_LOOKED_AT = 8  # files of other parts, to see that they are made in the same way


def write_pieces(
    cut: Mapping[Pair, Sequence[Piece]],
    function: ImportFile,
    part: Part | None,
    started: float,
    workers: OpenWorkers,
) -> SaveSummary:
    """Write the files that are missing; log what came of it.

    Parameters
    ----------
    cut
        The pieces of each table.
    function
        Writes one.
    part
        Whose tables are done, by their names, beside other parts; None: all.
    started
        When the call began, by `time.monotonic`.
    workers
        Opens the cluster, once there is something to write.

    Raises
    ------
    OutputError
        Something would be replaced, or another part imports otherwise.
    """
    target = function.target
    summary = SaveSummary(target.folder, opened=False)
    mine = [pair for pair in cut if part is None or part.takes(pair.name)]
    if part is not None:
        summary.part = told_part(part, len(mine), len(cut))
    pieces = [piece for pair in mine for piece in cut[pair]]
    names = [piece.file for piece in pieces]
    with opened(target.folder, target.options, part=part) as lock:
        every = [piece for each in cut.values() for piece in each]
        check_parts_at_work(lock, target.folder, part, function.made)
        if part is not None and not target.overwrite:
            _check_other_parts([piece for piece in every if piece.file not in {*names}], function)
        there = in_threads(lambda name: read_footer(join(target.folder, name), target.options), names)
        marks = in_threads(function.mark, pieces)
        stale = _stale(every, {pair.table for pair in mine}, function)
        todo: list[Piece] = []
        for piece, footer, mark in zip(pieces, there, marks, strict=True):
            if footer.is_finished(mark):
                _, report = footer.told(piece.name, "")
                summary.skipped += 1
                summary.rows_before += footer.rows
                summary.failed_before += report["failed"]
                continue
            _check_free(piece, footer, function)
            todo.append(piece)
        if todo:
            with at_work(workers) as client:
                todo = _without_repeated_keys(todo, function)
                summary.startup_seconds = time.monotonic() - started
                targets = [Target.of_file(target.folder, piece.file) for piece in todo]
                tasks = file_tasks(function, todo, "import-file", client)
                run_targets(tasks, client, targets, summary, held=lock.check_held)
        lock.check_held()
        for name in stale if summary.complete else ():
            remove(join(target.folder, name), target.options)
    summary.seconds = time.monotonic() - started
    logger.info("%s", summary)
    return summary


def _without_repeated_keys(pieces: Sequence[Piece], function: ImportFile) -> list[Piece]:
    """The pieces, those with their fault whose table has a key in several rows: a piece sees its own rows alone."""
    if function.numbered:
        return [*pieces]
    tables = {piece.pair.table: piece.rows or 0 for piece in pieces if piece.part is not None}
    keys = [Keys(table, function.id_col, rows, function.options) for table, rows in tables.items()]
    if keys:
        rows = f"{sum(tables.values()):,} keys of {counted(len(keys), 'table')}"
        logger.info("%s: looking whether some stand in several rows", rows)
    faults = dict(zip(tables, on_cluster(repeated, keys), strict=True))
    return [replace(piece, fault=faults.get(piece.pair.table)) for piece in pieces]


def _check_other_parts(pieces: Sequence[Piece], function: ImportFile) -> None:
    """Raise OutputError where files of other parts were made otherwise: some of them are looked at."""
    target = function.target
    there = {*output_files(target.folder, target.options)}
    looked_at = [piece for piece in pieces if piece.file in there][:_LOOKED_AT]
    footers = in_threads(
        lambda piece: read_footer(join(target.folder, piece.file), target.options), looked_at
    )
    for piece, footer in zip(looked_at, footers, strict=True):
        _check_free(piece, footer, function)


def _check_free(piece: Piece, footer: Footer, function: ImportFile) -> None:
    if not (footer.columns or footer.fault) or function.target.overwrite or function.replaces(piece, footer):
        return
    why = footer.fault or "was made of other vectors, or by another command"
    raise OutputError(
        f"{join(function.target.folder, piece.file)}: is there, and {why}. Write to another path, or use overwrite=True"
        " (--overwrite)"
    )


def _stale(pieces: Sequence[Piece], tables: set[str], function: ImportFile) -> list[str]:
    """Files of tables that are cut into others now: their rows would be there twice."""
    target, names = function.target, {piece.file for piece in pieces}
    found = []
    for name in output_files(target.folder, target.options):
        record = None if name in names else read_record(join(target.folder, name), target.options)
        if record is not None and record.url is not None and file_of(record.url) in tables:
            found.append(name)
    if found and not target.overwrite:
        raise OutputError(
            f"{join(target.folder, found[0])}: is there, and has rows of a table that is cut into other files now"
            " (rows_per_file, or more rows): they would be there twice. Write to another path, or use overwrite=True"
            " (--overwrite), which removes such files when all is written"
        )
    tell_others(target.folder, [*names, *found], target.options)
    return found
