"""One fetch: from a table of URLs to shards of images."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from curator_dask.arguments import check_names, names_of
from curator_dask.cluster.setup import OpenWorkers, when_needed
from curator_dask.fetching.layout import Layout
from curator_dask.fetching.options import FetchOptions
from curator_dask.fetching.place import FetchPlace
from curator_dask.fetching.retrying import may_retry
from curator_dask.fetching.shard import FetchShard, ShardRows
from curator_dask.fetching.source import UrlTable, find_table, read_pieces
from curator_dask.fetching.summary import FetchSummary
from curator_dask.fingerprint import fingerprint
from curator_dask.outputs.placing import locate
from curator_dask.outputs.saving import check_apart
from curator_dask.outputs.selecting import Folder
from curator_dask.runs.parts import Part, told_part
from curator_dask.runs.settle import file_tasks, run_targets
from curator_dask.runs.summary import SaveSummary
from curator_dask.runs.targets import Target
from curator_dask.storage import Options, is_remote, local_path
from curator_dask.threads import in_threads
from curator_dask.words import ranked

if TYPE_CHECKING:
    import pyarrow as pa
    from distributed import Client

logger = logging.getLogger("curator_dask")

_FORM = 1  # of the fingerprints: what is made of the same rows
_SHARD_DIGITS = 5
# A first look at how it goes: rows, and the share of them that should have an image.
_LOOK_ROWS, _LOOK_SHARE = 500, 0.2


def fetch_images(
    table: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    storage_options: Options = None,
    output_storage_options: Options = None,
    workers: OpenWorkers = contextlib.nullcontext,
    part: tuple[int, int] | str | None = None,
    **settings: Any,
) -> FetchSummary:
    """Turn a table of image URLs into shards: a tar with image, caption and JSON a sample, and Parquet beside it.

    Every row of the table is a row of the Parquet, with what became of it. The same call again does only what is
    missing.

    Parameters
    ----------
    table
        Parquet, CSV, TSV or JSON Lines with a URL a row, or a ``.txt`` with one a line: a file, a folder of files of
        one kind, or a glob; local, or an fsspec URL.
    output
        Directory or fsspec URL for the shards. Beside it, in ``OUTPUT.fetch``, is what a rerun needs.
    storage_options, output_storage_options
        For fsspec, of `table` and of `output`.
    workers
        Opens the cluster to work on, once there is something to do; else it is the one that is there, or this process.
    part
        Fetch one part of the shards, ``(0, 8)`` or ``"0/8"`` to ``(7, 8)``, for jobs that know nothing of one another;
        parts of one number may write to one output at once. A call without it does what is left.
    **settings
        Of `curator_dask.fetching.FetchOptions`.

    Returns
    -------
    FetchSummary
        Counts and times; it is also logged.

    Raises
    ------
    ConfigError
        A setting cannot be carried out, or there is none of this name.
    DatasetError
        The table cannot be read, or has no such columns.
    NetworkError
        No server answers.
    OutputError
        The output cannot be written, or has shards that would be replaced.
    """
    started = time.monotonic()
    check_names("fetch_images", settings, names_of(FetchOptions))
    return fetch_table(
        table,
        output,
        FetchOptions(**settings),
        storage_options=storage_options,
        output_storage_options=output_storage_options,
        workers=workers,
        part=Part.of_given(part),
        started=started,
    )


def fetch_table(
    table: str | os.PathLike[str],
    output: str | os.PathLike[str],
    options: FetchOptions,
    *,
    storage_options: Options = None,
    output_storage_options: Options = None,
    workers: OpenWorkers = contextlib.nullcontext,
    part: Part | None = None,
    ahead: Callable[[pa.Schema], object] = lambda _: None,
    started: float | None = None,
) -> FetchSummary:
    """`fetch_images` by `options`; where rows are missing, first `ahead` is called with the columns of the rows."""
    started = time.monotonic() if started is None else started
    target = Folder(locate(os.fspath(output), output_storage_options), output_storage_options)
    source = os.fsdecode(table)
    if is_remote(source) or os.path.isdir(local_path(source)):  # noqa: PTH112
        check_apart(locate(source, storage_options), target.path)
    place = FetchPlace(target, part)
    with place.open(), when_needed(workers) as client:
        asked = [options.caption_column, options.id_column, *options.digests.values()]
        names = [name for name in asked if name is not None]
        found = find_table(
            source, options.url_column, names, place.staged, storage_options, options.column_names
        )
        fetch = _Fetch(place, found, options, part)
        fetch.run(client, ahead)
        fetch.summary.seconds = time.monotonic() - started
        logger.info("%s", fetch.summary)
        return fetch.summary


class _Fetch:
    """The shards of a table."""

    def __init__(
        self, place: FetchPlace, table: UrlTable, options: FetchOptions, part: Part | None = None
    ) -> None:
        self._started = time.monotonic()
        self._place, self._table, self._options = place, table, options
        self._layout = Layout.of(table.schema, options, table.own)
        if options.columns is None and (own := sorted(table.own & {*table.schema.names})):
            logger.info(
                "%s: left out, as of the output alone: %s. --columns names what to keep",
                table.path,
                ", ".join(own),
            )
        self.summary = FetchSummary(place.files.target.path, renamed=self._layout.renamed)
        self._digits = len(str(options.rows_per_shard - 1))
        whole = self._shards(table)
        self._limit = options.limit if options.limit is not None and options.limit < table.rows else None
        shards = whole if self._limit is None else self._shards(table.first(self._limit))
        self._names, self._ranges, self._marks = shards
        self._mine = [number for number, name in enumerate(self._names) if part is None or part.takes(name)]
        if part is not None:
            self.summary.part = told_part(part, len(self._mine), len(self._names))
        self._note: dict[str, Any] = {"settings": options.recipe, "fetch": fingerprint({"marks": whole[2]})}
        if self._limit is not None:
            self._note["limit"] = self._limit

    def _shards(self, table: UrlTable) -> tuple[list[str], list[tuple[int, int]], list[str]]:
        """Of the shards of a table the names, the rows, and the fingerprints."""
        size = self._options.rows_per_shard
        ranges = [(start, min(start + size, table.rows)) for start in range(0, table.rows, size)]
        names = [f"{number:0{_SHARD_DIGITS}d}" for number in range(len(ranges))]
        common = {"form": _FORM, "schema": str(self._layout.schema()), "recipe": self._options.recipe}
        marks = [
            fingerprint({**common, "name": name, "rows": table.mark(*rows)})
            for name, rows in zip(names, ranges, strict=True)
        ]
        return names, ranges, marks

    def run(self, client: Any, ahead: Callable[[pa.Schema], object]) -> None:
        """Fetch what is missing; see `fetch_table`."""
        names, marks = self._names, self._marks
        files, options = self._place.files, self._options
        done = in_threads(lambda number: files.finished(names[number], marks[number]), self._mine)
        if any(report is None for report in done):
            ahead(self._layout.schema())
        self._place.claim(
            json.loads(json.dumps(self._note)),
            dict(zip(names, marks, strict=True)),
            options.overwrite,
            options.append,
        )
        todo = []
        for number, report in zip(self._mine, done, strict=True):
            if report is None or self._is_wanted(report):
                todo.append(number)
            else:
                self.summary.add(report, before=True)
        if not todo:
            return
        if self._options.id_column is not None and not any(done):
            self._check_ids()
        self._run(todo, client())

    def _is_wanted(self, report: Mapping[str, Any]) -> bool:
        """Whether rows of a finished shard are to be tried again."""
        options = self._options
        return options.retry_failed and any(
            may_retry(reason, options, report) for reason in report["reasons"]
        )

    def _check_ids(self) -> None:
        """Raise DatasetError where one can be no key, before hours are spent on others."""
        for number in self._mine:
            name, rows = self._names[number], self._ranges[number]
            pieces = self._table.pieces(*rows)
            keys = self._layout.read.field(str(self._options.id_column))
            ids = read_pieces(
                pieces, self._layout.read.empty_table().select([keys.name]).schema, self._table.options
            )
            self._layout.keys(ids, name, self._digits)

    def _run(self, todo: Sequence[int], client: Client | None) -> None:
        summary = self.summary
        items = [
            ShardRows(self._names[each], self._table.pieces(*self._ranges[each]), self._marks[each])
            for each in todo
        ]
        fetch = FetchShard(self._place.files, self._layout, self._options, self._digits, self._table.options)
        warned = False

        def take(number: int, row: Mapping[str, Any]) -> None:
            nonlocal warned
            self._place.check_held()
            summary.add(json.loads(row["target"]), before=False)
            if not warned and summary.tried >= _LOOK_ROWS:
                warned = True
                self._warn()

        summary.startup_seconds = time.monotonic() - self._started
        targets = [Target.of_file(summary.path, each.name) for each in items]
        done = SaveSummary(summary.path)
        run_targets(file_tasks(fetch, items, "fetch-shard", client), client, targets, done, take)
        summary.failed_shards = done.failed_shards

    def _warn(self) -> None:
        """Say early that hardly an image comes."""
        summary = self.summary
        share = summary.got / summary.tried
        if share < _LOOK_SHARE:
            some = ", ".join(f"{count:,} x {reason}" for reason, count in ranked(summary.reasons)[:3])
            logger.warning(
                "%.1f%% of the first %s rows have an image (%s): is it worth going on? Where it is timeouts or DNS,"
                " fewer connections (--connections) or a resolver of one's own may help",
                100 * share,
                f"{summary.tried:,}",
                some,
            )
