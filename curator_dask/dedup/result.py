"""`Duplicates`: what a deduplication gives, computed and written when it is saved."""

from __future__ import annotations

import hashlib
import logging
import os
import posixpath
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.cluster.setup import OpenWorkers, when_needed
from curator_dask.datasets.gallery import Gallery
from curator_dask.dedup.hashes import SHA256
from curator_dask.dedup.memory import share_out
from curator_dask.dedup.running import Deduplication
from curator_dask.dedup.scanning import FAULTS, NO_COLUMN, Source, find_sources
from curator_dask.dedup.settings import COMPONENTS, STARS, Settings
from curator_dask.dedup.showing import show_groups
from curator_dask.dedup.summary import DedupSummary
from curator_dask.dedup.work import Work
from curator_dask.errors import OutputError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import read_whole, write_table
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.earlier import EarlierTars, KnownTars
from curator_dask.outputs.export_place import ExportPlace
from curator_dask.outputs.placing import locate
from curator_dask.outputs.removed import DUPLICATES as FILE
from curator_dask.outputs.saving import check_apart, opened
from curator_dask.outputs.selecting import Folder
from curator_dask.storage import Options, is_remote, join
from curator_dask.threads import in_threads

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger("curator_dask")

#: The one file of a result.
_MADE_BY = "dedup"
_BLOCK = 16_384  # rows of it that are Python objects at a time
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        (URL_COLUMN, pa.string()),
        ("group", pa.int64()),
        ("duplicate_of", pa.string()),
        ("similarity", pa.float32()),
        ("kept", pa.bool_()),
        ("rank", pa.int64()),
    ]
)


class Duplicates:
    """The duplicates among vectors. Nothing is computed before `save`.

    Parameters
    ----------
    settings
        What is asked for.
    path
        Folder of the vectors.
    against
        Folder of those that stay as they are.
    options
        For fsspec, of both.
    exported
        Folder of tars whose samples stay.
    """

    def __init__(
        self,
        settings: Settings,
        path: str,
        against: str | None,
        options: Options,
        exported: str | None = None,
    ) -> None:
        self._exported = exported
        self._settings, self._source, self._against, self._options = settings, path, against, options
        #: Folder where it was saved; None: not yet.
        self.path: str | None = None
        #: For fsspec, where that is a URL.
        self.path_options: Options = None
        #: What was found; None before it was saved.
        self.summary: DedupSummary | None = None

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        workers: OpenWorkers = nullcontext,
        work: str | os.PathLike[str] | None = None,
        output_storage_options: Options = None,
    ) -> DedupSummary:
        """Find the duplicates, and write a row for each row of a group as Parquet.

        Its columns are ``id``, ``__url__``, ``group``, ``duplicate_of``, ``similarity``, ``kept`` and ``rank``, and
        with `exact` ``found_by``, the column that makes the two duplicates. What lies between
        is kept in a folder beside it, `path` and ``.work``: a call that was interrupted goes on there, and one with a
        smaller eps compares nothing again. It may be removed.

        Parameters
        ----------
        path
            A folder of this machine, or a URL.
        workers
            Opens the cluster to work on, once there is something to do; else it is the one that is there.
        work
            The folder of what lies between, which all workers see, or a URL: then each worker copies what it reads to
            its own disk (`CURATOR_DASK_STAGE_BYTES` at most). None: beside `path`.
        output_storage_options
            For fsspec, where `path` or `work` is a URL. None: those of the vectors.

        Returns
        -------
        DedupSummary
            Counts; it is also logged.

        Raises
        ------
        OutputError
            There are no such files, columns or rows with vectors, or something else's file would be replaced.
        ShardError
            A file could not be read.
        """
        options = self._options if output_storage_options is None else output_storage_options
        folder = locate(os.fspath(path), options)
        sources = self._sources()
        read = {posixpath.dirname(each.path) for each in sources}
        for source in read:
            check_apart(source, folder)
        between = Work.of(folder, work, options, [folder, *read])
        options = options if is_remote(folder) else None
        file = join(folder, FILE)
        with opened(folder, options, between.folder), when_needed(workers) as client, between.opened():
            before = read_whole(file, options)
            if before.columns and (before.record is None or _MADE_BY not in before.record.derived):
                raise OutputError(
                    f"{file}: is there, and was not made by a deduplication. Write to another path"
                )
            started = time.monotonic()
            limit = self._settings.memory_limit  # of which workers are asked
            memory = share_out(limit, None if limit is None else client())
            for stay, state in self._staying(sources):
                run = Deduplication(self._settings, sources, folder, between, client, memory, stay)
                run.run()
                table = _table(run)
                record = self._record(run, table, sources)
                if record.fingerprint == state:
                    break
            run.summary.seconds["all"] = time.monotonic() - started
            record = replace(record, report=run.summary.to_dict())
            write_table(file, table, record, options)
        self.path, self.path_options, self.summary = folder, options, run.summary
        logger.info("%s", run.summary)
        return run.summary

    def show(self, n: int = 8) -> Gallery:
        """Groups as small pictures, where a notebook shows a cell's last value: who stays is framed.

        They are the largest groups, and those with the least similar rows.

        Images are read here, out of their tars.

        Parameters
        ----------
        n
            Groups.

        Raises
        ------
        ConfigError
            `n` is no whole number of at least 1.
        OutputError
            The duplicates are not saved.
        """
        if self.path is None:
            raise OutputError("the duplicates are not saved yet: call save(path) first")
        return show_groups(self.path, n, self._options, self.path_options)

    def sheet(self, n: int = 12) -> Image.Image:
        """The same groups as one picture, to keep.

        Parameters
        ----------
        n
            Groups, at most. Of each up to six rows, those that are least like the one that stays.

        Returns
        -------
        PIL.Image.Image
            RGB; it has ``save``.

        Raises
        ------
        OutputError
            The result is not saved.
        """
        from curator_dask.dedup.sheet import draw_groups, find_groups

        if self.path is None:
            raise OutputError("the duplicates are not saved yet: call save(path) first")
        return draw_groups(find_groups(self.path, n, self.path_options), self._options)

    def _record(self, run: Deduplication, table: pa.Table, sources: Sequence[Source]) -> FileRecord:
        """What is said of a table, but for what the summary says."""
        settings = self._settings
        if run.summary.exact and not settings.exact.names:
            columns = read_whole(sources[-1].path, sources[-1].options).columns
            run.summary.digest = SHA256 if SHA256 in columns else ""
        # By hashes alone nothing is clustered: what was found is all that tells one table from another.
        made_by: dict[str, Any] = {"identity": run.identity or _digest(table), "eps": settings.eps}
        made_by |= {"exact": settings.exact.radii} if settings.exact.radii else {}
        made_by |= {"groups": settings.groups} if settings.groups != STARS else {}
        return FileRecord(fingerprint(made_by), id_col="id", derived=(_MADE_BY,))

    def _staying(self, sources: Sequence[Source]) -> Iterator[tuple[dict[str, np.ndarray], str | None]]:
        """By source, rows that stay as they are in tars; and what the table must be, or the next of these holds.

        Where an export was interrupted, the samples that were there before it come first: so the table is the same
        again, and the export goes on. Else all that it has written stay, too.
        """
        if self._exported is None:
            yield {}, None
            return
        place = ExportPlace(Folder(locate(self._exported, self._options), self._options))
        known = KnownTars.of(place)
        tried = [(known.before, place.without)] if known.interrupted else []
        for names, state in (*tried, (known.finished, None)):
            earlier = EarlierTars.read(place, names)

            def rows_in(source: Source, earlier: EarlierTars = earlier) -> np.ndarray:
                folder, name = posixpath.split(source.path)
                return earlier.rows_in(Folder(folder, source.options), name, "key")[0]

            mine = [source for source in sources if not source.fixed]
            found = in_threads(rows_in, mine)
            yield {source.name: rows for source, rows in zip(mine, found, strict=True)}, state

    def _sources(self) -> list[Source]:
        found = []
        for path, fixed in ((self._against, True), (self._source, False)):
            if path is None:
                continue
            found += find_sources(locate(path, self._options), self._options, fixed)
        return found


def _digest(table: pa.Table) -> str:
    """SHA-256 of which rows go and which stay."""
    digest = hashlib.sha256()
    for batch in table.select(["id", URL_COLUMN, "kept"]).to_batches(max_chunksize=_BLOCK):
        digest.update("".join(f"{[*row.values()]}\n" for row in batch.to_pylist()).encode())
    return digest.hexdigest()


def _table(run: Deduplication) -> pa.Table:
    """The rows of groups of more than one, in the order of shards and keys."""
    rows, groups, ranks = run.rows, run.groups, run.ranks
    best = np.empty(len(rows.first), np.int64)  # the best of the rows that are the same
    order = np.argsort(-ranks)
    best[rows.distinct[order]] = order
    of = rows.distinct
    is_best = best[of] == np.arange(len(of))
    kept = (groups.kept[of] & is_best) | rows.fixed
    target = np.where(groups.kept[of], best[of], best[np.maximum(groups.star[of], 0)])
    same = np.where(of < len(rows.carriers), 1.0, np.nan)
    cosine = np.where(groups.kept[of], same, groups.cosine[of])
    removed = np.flatnonzero(~kept)
    heads = np.unique(target[removed])
    heads = heads[np.argsort(ranks[heads], kind="stable")]
    number = np.full(len(of), -1, np.int64)
    number[heads] = np.arange(len(heads))
    target[heads] = heads
    listed = np.flatnonzero(~kept | ((number >= 0) & ~rows.apart))
    ids = rows.table.column("id").combine_chunks()
    goes = pa.array(kept[listed])
    table = pa.table(
        {
            "id": ids.take(pa.array(listed)),
            URL_COLUMN: rows.table.column(URL_COLUMN).take(pa.array(listed)),
            "group": pa.array(number[target[listed]]),
            "duplicate_of": pc.if_else(
                goes, pa.scalar(None, pa.string()), ids.take(pa.array(target[listed]))
            ),
            "similarity": pc.if_else(
                goes, pa.scalar(None, pa.float32()), pa.array(cosine[listed], pa.float32(), from_pandas=True)
            ),
            "kept": goes,
            "rank": pa.array(ranks[listed], pa.int64()),
        },
        schema=SCHEMA,
    )
    exact = run.settings.exact.names
    if exact:
        named = pa.array([run.settings.column, *exact, None])  # the last: by others between them
        by = named.take(pa.array(run.found_by[of[listed]]))
        table = table.append_column("found_by", pc.if_else(goes, pa.scalar(None, pa.string()), by))
        run.summary.plain = rows.plain
        nowhere = rows.counts.get(FAULTS[NO_COLUMN], 0) == sum(rows.counts.values())
        run.summary.by = {
            name: int((run.found_by[of[removed]] == number).sum())
            for number, name in enumerate([run.settings.column, *exact])
            if number or not nowhere  # of vectors nothing is said where there is no such column
        }
    if run.settings.groups == COMPONENTS:
        linked = (
            run.found_by[of[removed]] == len(exact) + 1 if exact else cosine[removed] < 1 - run.settings.eps
        )
        run.summary.linked = int(linked.sum())
    run.summary.groups, run.summary.removed = len(heads), len(removed)
    run.summary.exact = int((~rows.fixed & ~is_best).sum())
    return table.sort_by([(URL_COLUMN, "ascending"), ("id", "ascending")])
