"""`retrieve`: the rows of a pool that are nearest to each row of a curated set."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import posixpath
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from curator_dask.cluster.setup import OpenWorkers, when_needed
from curator_dask.decode.spec import check_counts
from curator_dask.dedup.nearest import NOWHERE, Best
from curator_dask.dedup.phases import Job, run_phases
from curator_dask.dedup.scanning import Source, find_sources
from curator_dask.dedup.work import Work
from curator_dask.errors import ConfigError, OutputError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.columns import unit
from curator_dask.frames.names import EMBEDDING_COLUMN
from curator_dask.frames.parquet import Footer, read_footer, whole_footers, write_table
from curator_dask.frames.record import FileRecord
from curator_dask.image.classifiers.origins import one_origin
from curator_dask.models.families import LikeThose
from curator_dask.outputs.failed import check_others
from curator_dask.outputs.given import Names, names_in
from curator_dask.outputs.nearest import VectorFiles
from curator_dask.outputs.placing import locate
from curator_dask.outputs.saving import check_apart, opened
from curator_dask.outputs.vectors import FAULTS, vectors_of
from curator_dask.outputs.writing import Output
from curator_dask.retrieval.finding import QUERIES, FindNearest
from curator_dask.retrieval.summary import RetrievalSummary
from curator_dask.retrieval.writing import (
    BY,
    FOUND,
    SIMILARITY,
    Chosen,
    WriteRetrieved,
    check_pairs_free,
    pairs_table,
    place_of_pairs,
)
from curator_dask.rows.best import is_number
from curator_dask.runs.settle import file_tasks, run_targets
from curator_dask.runs.summary import SaveSummary
from curator_dask.runs.targets import Target
from curator_dask.settings import check_local
from curator_dask.storage import Options, join, remove
from curator_dask.threads import in_threads

logger = logging.getLogger("curator_dask")

#: Of what is found and written: another number makes it anew.
_VERSION = 1
#: Groups of files, at most, each of which has its own nearest rows of all queries.
_GROUPS = 256
#: Of the cosine of a vector and itself, in float32: where 1 is asked for, copies are found.
_ROUNDING = 1e-6


def retrieve(
    pool: str | os.PathLike[str],
    queries: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    top: int = 4,
    similarity: float = -1.0,
    pairs: str | os.PathLike[str] | None = None,
    column: str = EMBEDDING_COLUMN,
    queries_column: str | None = None,
    check: bool = True,
    overwrite: bool = False,
    work: str | os.PathLike[str] | None = None,
    storage_options: Options = None,
    queries_storage_options: Options = None,
    output_storage_options: Options = None,
    workers: OpenWorkers = nullcontext,
) -> RetrievalSummary:
    """Find the rows of a pool that are nearest to each query, and write them as an output of their own.

    So DINOv2's dataset was made (Oquab et al. 2023): for each image of a curated set its nearest of an uncurated pool,
    and of these the union. Every vector is compared with every query; no pair is missed. A row that several queries
    have found is written once, with all its columns, and ``retrieved_by`` and ``retrieved_similarity``: how many
    queries have found it, and the largest cosine with one of these.

    Parameters
    ----------
    pool, queries
        What `save_metadata` or ``curator-dask embed`` wrote with one model, or other Parquet files with vectors. Each
        worker holds the queries' vectors, 4 bytes a value; a task holds 16 bytes for each row of a query besides.
    output
        A folder that all workers see, or a URL: files of the pool's names with the rows found.
    top
        Rows of each query, at most. Of rows that are equally near the first in the pool are taken.
    similarity
        Cosine that they have at least, -1 to 1, but for rounding (1e-6).
    pairs
        A Parquet file to write, outside of all three folders, with a row for each pair: ``query``, ``query_url``,
        ``key``, ``__url__``, ``rank`` (from 1) and ``similarity``.
    column, queries_column
        Of the vectors; None: those of the queries have the same name.
    check
        Refuse vectors of another model than the queries'.
    overwrite
        Replace files in `output` that something else has made, such a file of `pairs`, and columns of these names.
    work
        The folder, which all workers see, or URL of what lies between, from which an interrupted call goes on, and
        which goes in the end. None: `output` and ``.work``.
    storage_options, queries_storage_options, output_storage_options
        For fsspec, where `pool`, `queries` and `output` (or `work`) are URLs; without the others the first is theirs,
        too.
    workers
        Opens the cluster to work on, once there is something to do; else it is the one that is there.

    Raises
    ------
    ConfigError
        The vectors are not of one model, no query has one, or an argument does not fit.
    OutputError
        There are no such vectors, or something would be replaced.
    ShardError
        A file could not be read.
    """
    started = time.monotonic()
    check_counts(top=top)
    if not is_number(similarity) or not -1 <= similarity <= 1:
        raise ConfigError(f"similarity={similarity!r}: expected a cosine, -1 to 1")
    query_options = storage_options if queries_storage_options is None else queries_storage_options
    asked_files = VectorFiles.find(queries, queries_column or column, query_options)
    source = Output(locate(os.fspath(pool), storage_options), storage_options, False, overwrite, False)
    pool_files = VectorFiles.find(source.folder, column, storage_options)
    if check:
        _check_model(pool_files, asked_files, os.fspath(queries))
    if isinstance(output, Path):  # to which a URL has one slash
        check_local(output)
    output_options = storage_options if output_storage_options is None else output_storage_options
    target = Output(locate(os.fspath(output), output_options), output_options, False, overwrite, False)
    asked_folder = locate(os.fspath(queries), query_options)
    folders = source.folder, target.folder, asked_folder
    for folder in (source.folder, asked_folder):
        check_apart(folder, target.folder)
    between = Work.of(target.folder, work, output_options, folders)
    pairs_path = None if pairs is None else place_of_pairs(pairs, folders)
    sources = find_sources(source.folder, storage_options)
    footers = whole_footers([each.path for each in sources], storage_options)
    _check_free(footers, overwrite)
    vectors, places, summary = _queries(asked_files)
    asked = {
        "version": _VERSION,
        "queries": hashlib.sha256(np.ascontiguousarray(vectors, "<f4").data).hexdigest(),
        "column": column,
        "top": top,
        "similarity": float(similarity),
    }
    mark = fingerprint({**asked, "pool": [each.name for each in sources]})
    said = posixpath.basename(os.fspath(queries).rstrip("/"))
    write = WriteRetrieved(source, target, column, top, float(similarity), len(vectors), said, mark)
    place = target.folder, target.options, between.folder
    with opened(*place), when_needed(workers) as client, between.opened():
        before, found = _written(write, sources, mark), f"found-{mark[:16]}"
        names = [_name(each, source.folder) for each in sources]
        others = check_others(target.folder, names, target.options, overwrite)
        check_pairs_free(pairs_path, mark, overwrite)
        if before is not None and (pairs_path is None or read_footer(pairs_path).is_finished(mark)):
            summary = RetrievalSummary(**before, output=_skipped(target.folder, before["kept"], len(sources)))
        else:
            most = min(top, max(1, sum(each.rows for each in footers.values())))
            find = _find(between, found, sources, vectors, write, most, client)
            best = _joined(find, len(vectors), summary)
            chosen = _chosen(best, sources, footers, source.folder, mark)
            summary.kept = sum(len(each.rows) for each in chosen)
            summary.shared = int(sum((each.queries > 1).sum() for each in chosen))
            summary.output = _write(replace(write, found=summary.counts), chosen, client)
            if pairs_path is not None and summary.complete:
                named = _names(asked_files, places), *_names_found(chosen, target, footers, sources)
                write_table(pairs_path, pairs_table(best, *named), FileRecord(mark, id_col="key"))
        if summary.complete:
            for name in others:
                remove(join(target.folder, name), target.options)
            between.remove(found)
    summary.seconds = time.monotonic() - started
    logger.info("%s", summary)
    return summary


def _find(
    between: Work,
    found: str,
    sources: Sequence[Source],
    vectors: np.ndarray,
    write: WriteRetrieved,
    most: int,
    client: Any,
) -> FindNearest:
    """Compare all groups of files that were not compared yet."""
    groups, phase = _groups(sources), between.named(found)
    find = FindNearest(phase, groups, write.column, vectors.shape[1], most, write.least - _ROUNDING)
    if not phase.has(QUERIES):
        with phase.writing(QUERIES) as file:
            file.write(np.ascontiguousarray(vectors, "<f4").data)
    words = {name: files[0].path for name, files in groups.items()}
    job = Job("retrieve", find, list(groups), find.finished, words.__getitem__, phase)
    run_phases([job], write.target.folder, client, between.folder)
    phase.fetch([f"{name}-{each}.npy" for name in groups for each in ("cosines", "places", "counts")])
    return find


def _check_model(pool: VectorFiles, queries: VectorFiles, where: str) -> None:
    info = one_origin(queries.column, queries.records).info()
    if info is None:
        raise ConfigError(
            f"{where}: nothing says what made {queries.column!r}. If you know that pool and queries are of one model,"
            " say so by check=False (--no-check)"
        )
    kind = LikeThose(where, json.dumps(info, sort_keys=True))
    one_origin(pool.column, pool.records).check(kind, "retrieve")


def _check_free(footers: Mapping[str, Footer], overwrite: bool) -> None:
    for path, footer in footers.items():
        if (taken := [name for name in (BY, SIMILARITY) if name in footer.columns]) and not overwrite:
            raise OutputError(
                f"{path}: has {taken} already, which would be replaced: rename them, or use overwrite=True"
                " (--overwrite)"
            )


def _queries(files: VectorFiles) -> tuple[np.ndarray, list[tuple[str, np.ndarray]], RetrievalSummary]:
    """The unit vectors of the queries, float32 (n, dim); by file the numbers of their rows; and what was counted.

    Raises
    ------
    ConfigError
        There is none.
    """
    parts: list[np.ndarray] = []
    places, aside, total, dim = [], Counter[str](), 0, 0
    for path in files.records:
        rows, first = [np.zeros(0, np.int64)], 0
        for matrix, good in vectors_of(path, files.options, files.column, dim, aside):
            dim = dim or matrix.shape[1]
            parts.append(unit(matrix[good]))
            rows.append(first + np.flatnonzero(good))
            first += len(good)
        places.append((path, np.concatenate(rows)))
        total += first
    counts = {fault: aside[fault] for fault in FAULTS if aside[fault]}
    if total == aside.total():
        raise ConfigError(
            f"{next(iter(files.records))}: no row has a vector in {files.column!r} that can be compared"
            f" ({counts or 'no rows'})"
        )
    whole = np.concatenate([each for each in parts if each.shape[1]])
    return whole, places, RetrievalSummary(queries=total, queries_aside=counts)


def _groups(sources: Sequence[Source]) -> dict[str, tuple[Source, ...]]:
    """Files that are compared in one task, by a name that changes with them."""
    ends = np.linspace(0, len(sources), min(len(sources), _GROUPS) + 1).round().astype(int).tolist()
    groups = [tuple(sources[start:end]) for start, end in pairwise(ends)]
    return {fingerprint({"files": [each.name for each in group]})[:16]: group for group in groups}


def _written(write: WriteRetrieved, sources: Sequence[Source], mark: str) -> dict[str, Any] | None:
    """What was counted by an earlier call that has written all files; None: there is something to do.

    Raises
    ------
    OutputError
        Files of others would be replaced.
    """
    target, names = write.target, [_name(each, write.source.folder) for each in sources]
    there = in_threads(lambda name: read_footer(join(target.folder, name), target.options), names)
    finished = [footer.is_finished(_mark(mark, each)) for each, footer in zip(sources, there, strict=True)]
    if not target.overwrite:
        for name, footer, is_finished in zip(names, there, finished, strict=True):
            if not is_finished and (footer.columns or footer.fault):
                _refuse(
                    join(target.folder, name),
                    footer.fault or "was made of another pool, of other queries or by other settings",
                )
    records = [footer.record for footer, is_finished in zip(there, finished, strict=True) if is_finished]
    last = records[-1] if len(records) == len(names) and records else None
    found = None if last is None else last.scores.get(BY, {}).get(FOUND)
    return None if found is None else dict(found)


def _refuse(path: str, why: str) -> NoReturn:
    raise OutputError(
        f"{path}: is there, and {why}. Write to another path, or use overwrite=True (--overwrite)"
    )


def _skipped(folder: str, kept: int, files: int) -> SaveSummary:
    """Of a call that has nothing to do."""
    return SaveSummary(folder, skipped=files, rows_before=kept, opened=False)


def _mark(mark: str, source: Source) -> str:
    return fingerprint({"retrieved": mark, "file": source.name})


def _name(source: Source, folder: str) -> str:
    return source.path[len(folder.rstrip("/")) + 1 :]


def _joined(find: FindNearest, queries: int, summary: RetrievalSummary) -> Best:
    """The nearest of all groups; places are numbers of the pool's rows. What was counted goes into the summary."""
    best, first, aside = Best.none(queries, find.top), 0, np.zeros(len(FAULTS), np.int64)
    for name in find.groups:
        found, counts = find.load(name, first)
        best.join(found)
        first += int(counts[0])
        aside += counts[1:]
    np.minimum(best.cosines, 1, out=best.cosines)
    there = best.places != NOWHERE
    summary.pool = first
    summary.pool_aside = {fault: int(count) for fault, count in zip(FAULTS, aside, strict=True) if count}
    summary.pairs, answered = int(there.sum()), there.any(1)
    summary.unanswered = queries - int(answered.sum())
    if answered.any():
        summary.nearest = float(np.median(best.cosines[answered, 0]))
        last = there.sum(1)[answered] - 1
        summary.farthest = float(np.median(best.cosines[answered, last]))
    return best


def _chosen(
    best: Best, sources: Sequence[Source], footers: Mapping[str, Footer], folder: str, mark: str
) -> list[Chosen]:
    """Of each file the rows that were found."""
    there = best.places != NOWHERE
    places, number = np.unique(best.places[there], return_inverse=True)
    queries = np.bincount(number, minlength=len(places)).astype(np.int32)
    cosines = np.full(len(places), -np.inf)
    np.maximum.at(cosines, number, best.cosines[there])
    cosines = cosines.clip(-1, 1).astype(np.float32)
    chosen, first = [], 0
    for source in sources:
        last = first + footers[source.path].rows
        part = slice(*np.searchsorted(places, [first, last]))
        rows = places[part] - first
        chosen.append(Chosen(_name(source, folder), _mark(mark, source), rows, queries[part], cosines[part]))
        first = last
    return chosen


def _write(write: WriteRetrieved, chosen: Sequence[Chosen], client: Any) -> SaveSummary:
    started, target = time.monotonic(), write.target
    there = in_threads(lambda each: read_footer(join(target.folder, each.name), target.options), list(chosen))
    done = [footer.is_finished(each.mark) for each, footer in zip(chosen, there, strict=True)]
    todo = [each for each, is_done in zip(chosen, done, strict=True) if not is_done]
    before = sum(footer.rows for footer, is_done in zip(there, done, strict=True) if is_done)
    summary = _skipped(target.folder, before, sum(done))
    if todo:
        targets = [Target.of_file(target.folder, each.name) for each in todo]
        run_targets(file_tasks(write, todo, "write-retrieved", client()), client(), targets, summary)
    summary.seconds = time.monotonic() - started
    logger.info("%s", summary)
    return summary


def _names(files: VectorFiles, places: Sequence[tuple[str, np.ndarray]]) -> Names:
    """Keys and shards of some rows of files, by their numbers in each."""
    some = Names([], [])
    for path, numbers in places:
        found = names_in(path, files.id_col(path), files.options)
        some.keys.extend(found.keys[number] for number in numbers.tolist())
        some.urls.extend(found.urls[number] for number in numbers.tolist())
    return some


def _names_found(
    chosen: Sequence[Chosen], target: Output, footers: Mapping[str, Footer], sources: Sequence[Source]
) -> tuple[Names, np.ndarray]:
    """Keys and shards of the rows that were written, and int64 (n,): their places in the pool."""
    rows, first, places = Names([], []), 0, [np.zeros(0, np.int64)]
    for each, source in zip(chosen, sources, strict=True):
        footer = footers[source.path]
        if len(each.rows):
            id_col = (footer.record and footer.record.id_col) or "key"
            found = names_in(join(target.folder, each.name), id_col, target.options)
            rows.keys.extend(found.keys)
            rows.urls.extend(found.urls)
            places.append(first + each.rows)
        first += footer.rows
    return rows, np.concatenate(places)
