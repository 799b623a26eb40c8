"""`remove_samples`: samples are taken out of all folders that hold them, and noted, so that none comes back."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from curator_dask.cluster.setup import OpenWorkers, when_needed
from curator_dask.errors import ConfigError
from curator_dask.frames.parquet import read_record, without_leftovers
from curator_dask.outputs.placing import locate, put
from curator_dask.outputs.taken_down import put_taken_down, taken_down
from curator_dask.outputs.taken_down_told import PENDING, beside
from curator_dask.removing.asking import KEY, Asked
from curator_dask.removing.exports import ExportedPlace
from curator_dask.removing.finding import find_places, still_holding
from curator_dask.removing.looking import Looking
from curator_dask.removing.places import MOVED, Place, RewriteShard
from curator_dask.removing.rows import DuplicatesPlace, RowsPlace
from curator_dask.removing.summary import PlaceSummary, RemoveSummary
from curator_dask.runs.settle import file_tasks, run_targets
from curator_dask.runs.summary import SaveSummary
from curator_dask.runs.targets import Target
from curator_dask.storage import Options, exists, is_remote, join, read_bytes, remove, walk
from curator_dask.threads import in_threads

logger = logging.getLogger("curator_dask")

_FEW = 16  # shards that are rewritten in this process, before a cluster has started
_EXAMPLES = 3


def remove_samples(
    folders: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    listed: str | os.PathLike[str] | None = None,
    on: str = KEY,
    *,
    within: int | None = None,
    where: str | None = None,
    rewrite_shards: bool = False,
    id_col: str = KEY,
    not_found: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    storage_options: Options = None,
    list_storage_options: Options = None,
    workers: OpenWorkers = contextlib.nullcontext,
) -> RemoveSummary:
    """Take samples out of outputs, exports, fetched shards and tables of duplicates, in their place.

    Give all folders that may hold them: what is found in one is found in what was made of it. A row that has the same
    ``url`` or ``sha256`` as one that is found is the same image, and goes, too. First it is noted beside each folder,
    by digests, what goes; `fetch`, `save_metadata`, exports and the other commands do not bring it back there. Then
    those files and shards are rewritten that hold such samples, each whole or not at all. A call that was interrupted
    is finished by the same call, or by one without list and condition.

    Parameters
    ----------
    folders
        What `curate`, `fetch`, `save_metadata`, `filter_output`, `to_webdataset` or a deduplication wrote; paths or
        URLs.
    listed
        A list of values: Parquet, CSV, TSV, JSON Lines, ``.txt`` with one a line, or ``.npy``.
    on
        Column of the rows that is compared with the list, and after ``=`` that of the list: ``"url"``, ``"key=id"``.
    within
        Of perceptual hashes (``pdq``, ``phash``): in how many bits they may differ.
    where
        A condition on rows, as `filter_output` takes it; with a list both go, what it names and what passes.
    rewrite_shards
        Also tars that others wrote are rewritten.
    id_col
        Column of the keys in the Parquet beside those.
    not_found
        A file that gets the values of the list that no row has, a line each.
    dry_run
        Count, and write nothing.
    storage_options, list_storage_options
        For fsspec, where folders and the list are URLs; without the second the first is the list's, too.
    workers
        Opens the cluster to work on where many shards are to be rewritten; else it is done in this process.

    Returns
    -------
    RemoveSummary
        Counts; it is also logged.

    Raises
    ------
    ConfigError, DatasetError
        The arguments, the list or the condition cannot be used, or a folder must not be rewritten.
    OutputError
        There is nothing to rewrite, or no file has the column.
    """
    started = time.monotonic()
    given = [folders] if isinstance(folders, str | os.PathLike) else list(folders)
    if not given:
        raise ConfigError("folders: there is none: give those that may hold the samples")
    places: list[Place] = []
    for each in given:
        for place in find_places(each, storage_options, rewrite_shards, id_col):
            if place not in places:
                places.append(place)
    has_rows = any(not isinstance(each, ExportedPlace | DuplicatesPlace) for each in places)
    places = [
        replace(each, alone=not has_rows) if isinstance(each, ExportedPlace) else each for each in places
    ]
    noted = any(taken_down(*each.folder) is not None for each in places)
    if listed is None and where is None and not noted:
        raise ConfigError(
            "nothing is asked for: give a list (listed, --list) or a condition (where, --where). Without both a removal"
            " that was interrupted is finished, and none was begun here"
        )
    options = storage_options if list_storage_options is None else list_storage_options
    asked = Asked(listed, on, within, where, options)
    with ExitStack() as stack:
        if not dry_run:  # before it is looked what is there: what another run writes meanwhile would stay
            for place in places:
                stack.enter_context(place.open())
                stack.enter_context(without_leftovers(str(beside(place.folder.path))))
        looking = Looking(places, asked)
        looking.look()
        summary = RemoveSummary(dry_run=dry_run, asked_rows=looking.asked_rows)
        summary.found, summary.before, left = looking.not_found()
        summary.not_found, summary.examples = len(left), left[:_EXAMPLES]
        summary.asked = summary.found + summary.before + summary.not_found
        for number, place in enumerate(places):
            hits = looking.hits[number].values()
            summary.places.append(
                PlaceSummary(
                    place.folder.path,
                    place.kind,
                    place.unit,
                    samples=sum(each.rows for each in hits),
                    along=sum(each.along for each in hits),
                    shards=sum(each.rows > 0 for each in hits),
                    all_shards=looking.all_shards(number),
                    lacks_column=number in looking.lacking,
                )
            )
        holding = {
            path
            for each in given
            for path in still_holding(places, locate(os.fspath(each), storage_options), storage_options)
        }
        summary.still_holding = sorted(holding) if summary.samples else []
        if not_found is not None:
            path = locate(os.fspath(not_found), storage_options)
            put(
                path,
                "".join(f"{each}\n" for each in left).encode(),
                storage_options if is_remote(path) else None,
            )
            summary.not_found_file = path
        if not dry_run:
            _Removal(places, looking, summary, workers).run()
    summary.seconds = time.monotonic() - started
    logger.info("%s", summary)
    return summary


class _Removal:
    """The rewriting of all that holds such samples."""

    def __init__(
        self, places: Sequence[Place], looking: Looking, summary: RemoveSummary, workers: OpenWorkers
    ) -> None:
        self._places, self._looking, self._summary, self._workers = places, looking, summary, workers
        self._pending = [join(str(beside(each.folder.path)), PENDING) for each in places]

    def run(self) -> None:
        """Do it, in folders that are held: nothing is rewritten before all of it is noted everywhere."""
        with ExitStack() as stack:
            begun = [
                exists(path, place.folder.options)
                for path, place in zip(self._pending, self._places, strict=True)
            ]
            texts, urls = self._looking.noted(), self._looking.urls
            for number, place in enumerate(self._places):
                hits = self._looking.hits[number].values()
                if self._summary.places[number].samples or begun[number]:
                    put(
                        self._pending[number],
                        json.dumps({"since": time.time()}).encode(),
                        place.folder.options,
                    )
                if any(texts.values()):
                    new = sum(each.new for each in hits)
                    put_taken_down(place.folder.path, texts, urls, new, place.folder.options)
            again = self._moved()
            client = stack.enter_context(when_needed(self._workers))
            order = sorted(
                range(len(self._places)),
                key=lambda number: isinstance(self._places[number], RowsPlace | DuplicatesPlace),
            )
            for number in order:  # tars first: of these rows say in which state they are
                again |= self._rewrite(number, begun[number], again, client)
            for number, place in enumerate(self._places):
                if self._summary.places[number].samples or begun[number]:
                    told = self._summary.places[number]
                    place.finish(told.samples - told.left)
            if self._summary.complete:
                self._tidy()

    def _moved(self) -> dict[str, Any]:
        """The states of tars that a call that was interrupted has rewritten, by url."""
        found: dict[str, Any] = {}
        for place in self._places:
            folder, options = join(str(beside(place.folder.path)), MOVED), place.folder.options
            for name in walk(folder, options):
                said = json.loads(read_bytes(join(folder, name), options))
                found[said["url"]] = said
        return found

    def _rewrite(self, number: int, begun: bool, again: Mapping[str, Any], client: Any) -> dict[str, Any]:
        """Rewrite what holds samples in a place; the new states of its tars, by url."""
        place, told, hits = self._places[number], self._summary.places[number], self._looking.hits[number]
        todo = {name for name, each in hits.items() if each.rows or (begun and each.known)}
        if again and isinstance(place, RowsPlace):
            names = place.names()
            records = in_threads(
                lambda name: read_record(place.folder.file(name), place.folder.options), names
            )
            todo |= {
                name
                for name, record in zip(names, records, strict=True)
                if record is not None and record.url in again
            }
        if not todo:
            return {}
        items = sorted(todo)
        moved: dict[str, Any] = {}

        def take(_: int, row: Mapping[str, Any]) -> None:
            report = json.loads(row["target"])
            told.rewritten += bool(report["rows"])
            told.bytes += report["bytes"]
            told.left_twins += report["lost"]
            if report["tar"] is not None:
                moved[report["tar"]["url"]] = report["tar"]

        done = SaveSummary(place.folder.path, opened=False)
        used = client() if len(items) > _FEW else None
        task = RewriteShard(place, dict(again))
        targets = [Target.of_file(place.folder.path, name) for name in items]
        run_targets(file_tasks(task, items, "remove-samples", used), used, targets, done, take)
        told.failed_shards = done.failed_shards
        told.left = sum(hits[name].rows for name in done.failed_shards if name in hits)
        return moved

    def _tidy(self) -> None:
        """All is done: nothing is to be finished any more."""
        for path, place in zip(self._pending, self._places, strict=True):
            options = place.folder.options
            folder = join(str(beside(place.folder.path)), MOVED)
            for name in list(walk(folder, options)):
                remove(join(folder, name), options)
            if not is_remote(folder):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)  # noqa: PTH106
            remove(path, options)
