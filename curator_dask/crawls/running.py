"""`extract_links`: from the files of a crawl to a table of addresses and captions."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from typing import Any

from curator_dask.cluster.setup import OpenWorkers, when_needed
from curator_dask.crawls.files import find_files
from curator_dask.crawls.reading import CrawlFile, ReadCrawlFile
from curator_dask.crawls.rules import LinkRules
from curator_dask.crawls.summary import LinksSummary
from curator_dask.crawls.writing import LINKS, Range, WriteRange
from curator_dask.decode.spec import check_counts
from curator_dask.dedup.work import Work
from curator_dask.errors import ConfigError, OutputError, ShardError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.parquet import Footer, read_footer
from curator_dask.outputs.failed import output_files
from curator_dask.outputs.placing import locate
from curator_dask.outputs.saving import opened
from curator_dask.outputs.writing import Output
from curator_dask.runs.settle import file_tasks, run_targets
from curator_dask.runs.summary import SaveSummary
from curator_dask.runs.targets import Target
from curator_dask.storage import Options, join, remove
from curator_dask.threads import in_threads
from curator_dask.webdataset.stamps import stamp

logger = logging.getLogger("curator_dask")

#: Links of a file of the table, about.
ROWS_PER_FILE = 500_000
#: Of what was found in each file.
FOUND = "found"
_NEEDED = ("fastwarc", "msgspec", "selectolax", "webencodings")


def extract_links(
    crawl: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    prefix: str | None = None,
    first: int | None = None,
    min_characters: int = 5,
    min_words: int = 1,
    languages: Sequence[str] | None = None,
    unique: str = "pair",
    rows_per_file: int = ROWS_PER_FILE,
    overwrite: bool = False,
    keep_work: bool = False,
    work: str | os.PathLike[str] | None = None,
    storage_options: Options = None,
    output_storage_options: Options = None,
    workers: OpenWorkers = nullcontext,
) -> LinksSummary:
    """Make a table of the images of a crawl that have a caption, which `fetch_images` takes as it stands.

    Its columns are ``uid`` (a digest of address and caption), ``url``, ``caption`` (the ``alt`` of the image),
    ``page_url``, ``page_language`` (as CLD2 detected it for Common Crawl, else as the page says) and ``crawl_date``.
    Each link is there once, whatever files it is in: the first stays. Rows are in the order of the uids, so neighbours
    are of many hosts.

    Parameters
    ----------
    crawl
        WAT files (Common Crawl's ``.warc.wat.gz``) or WARC files (``.warc.gz``): one, a folder, glob or URL of them, or
        a list with a path a line (``wat.paths.gz``).
    output
        Folder or URL for the table.
    prefix
        What stands before each path of a list: ``"https://data.commoncrawl.org/"``. None: the folder of the list.
    first
        Read no more than so many files; None: all.
    min_characters, min_words, languages, unique
        See `LinkRules`.
    rows_per_file
        Links of each file of the table, about.
    overwrite
        Replace files in `output` that something else has made.
    keep_work
        Keep what was found in each file, so that a longer list is read from there on; else it goes once all is done.
    work
        Where that lies, for all workers to see: a folder or URL. None: `output` and ``.work``.
    storage_options, output_storage_options
        For fsspec, where `crawl` and `output` (or `work`) are URLs; without the second those of `crawl`, too.
    workers
        Opens the cluster to work on, once there is something to do; else it is the one that is there.

    Raises
    ------
    ConfigError
        An argument does not fit, or what reads such files is not installed.
    DatasetError
        There are no such files.
    OutputError
        Something would be replaced.
    """
    started = time.monotonic()
    check_counts(rows_per_file=rows_per_file, **({} if first is None else {"first": first}))
    rules = LinkRules(min_characters, min_words, None if languages is None else tuple(languages), unique)
    _check_installed()
    paths = find_files(crawl, prefix, storage_options, first)
    target_options = storage_options if output_storage_options is None else output_storage_options
    target = Output(locate(os.fspath(output), target_options), target_options, False, overwrite, False)
    between = Work.of(target.folder, work, target_options, [target.folder])
    settings = fingerprint({"links": asdict(rules), "rows_per_file": rows_per_file})
    summary = LinksSummary(target.folder, len(paths))
    with opened(target.folder, target.options) as lock, when_needed(workers) as client, between.opened():
        table = _Table(target, settings)
        table.look(paths)
        files = _looked_at(paths, storage_options, summary)
        read = ReadCrawlFile(rules, storage_options, between.named(FOUND))
        if not table.is_of(read, files, summary):
            reports = _read(read, files, summary, client, lock.check_held)
            summary.count({file.path: report for file, report in reports.items()})
            if reports:
                table.write(read, reports, paths, rows_per_file, summary, client, lock.check_held)
        if summary.complete and not keep_work:
            between.remove(FOUND)
    summary.seconds = time.monotonic() - started
    logger.info("%s", summary)
    return summary


def _check_installed() -> None:
    """Raise ConfigError where what reads such files is not installed."""
    lacking = [name for name in _NEEDED if find_spec(name) is None]
    if lacking:
        raise ConfigError(
            f"crawls are read with {', '.join(lacking)}, which is not installed: pip install 'curator-dask[crawl]'"
        )


def _looked_at(paths: Sequence[str], options: Options, summary: LinksSummary) -> list[CrawlFile]:
    """The files that are there; of the others the summary says why."""

    def look(path: str) -> CrawlFile | str:
        try:
            return CrawlFile(path, stamp(path, options))
        except ShardError as error:
            return str(error)

    found = in_threads(look, list(paths))
    summary.failed = {
        path: each for path, each in zip(paths, found, strict=True) if not isinstance(each, CrawlFile)
    }
    return [each for each in found if isinstance(each, CrawlFile)]


def _read(
    read: ReadCrawlFile,
    files: Sequence[CrawlFile],
    summary: LinksSummary,
    client: Callable[[], Any],
    held: Callable[[], None],
) -> dict[CrawlFile, Mapping[str, Any]]:
    """Read the files that were not read yet; what is known of each that could be, in their order."""
    there = in_threads(read.finished, list(files))
    todo = [file for file, footer in zip(files, there, strict=True) if footer is None]
    if todo:
        done = SaveSummary(summary.path, opened=False)
        targets = [Target(file.path, file.path, "", None, None, None) for file in todo]
        tasks = file_tasks(read, todo, "links", client())
        run_targets(tasks, client(), targets, done, of="files of the crawl", held=held)
        summary.failed |= done.failed_shards
        summary.read = done.written
        again = dict(zip(todo, in_threads(read.finished, todo), strict=True))
        there = [footer or again.get(file) for file, footer in zip(files, there, strict=True)]
    known = {file: footer.record for file, footer in zip(files, there, strict=True) if footer is not None}
    return {file: record.report for file, record in known.items() if record is not None and record.report}


@dataclass
class _Table:
    """The files of a table of links.

    Attributes
    ----------
    target
        Where they are.
    settings
        Fingerprint of what decides which links are taken.
    footers
        Of those that are there, of this or another crawl, by name.
    """

    target: Output
    settings: str
    footers: dict[str, Footer] = field(default_factory=dict)

    def look(self, paths: Sequence[str]) -> None:
        """Read what is there; `paths` are the files of the crawl, which may be more than before.

        Raises
        ------
        OutputError
            Something else is, and must not be replaced.
        """
        folder, options = self.target.folder, self.target.options
        names = output_files(folder, options)
        footers = in_threads(lambda name: read_footer(join(folder, name), options), names)
        self.footers = dict(zip(names, footers, strict=True))
        mine = f"{LINKS} {self.settings}"
        for name, footer in self.footers.items():
            made = {} if footer.record is None else footer.record.read_by
            if self.target.overwrite:
                continue
            why = footer.fault or "has no links, or was made of them by other settings"
            if made.get("url") == mine:
                report = (footer.record and footer.record.report) or {}
                before = report.get("crawl", {}).get("files", 0)
                if before <= len(paths) and report["crawl"]["paths"] == _told(paths[:before]):
                    continue
                why = (
                    f"has the links of {before:,} other files, or of these in another order: a list may grow at its end"
                    " alone"
                )
            raise OutputError(
                f"{join(folder, name)}: is there, and {why}. Write to another path, or use overwrite=True"
                " (--overwrite)"
            )

    def is_of(self, read: ReadCrawlFile, files: Sequence[CrawlFile], summary: LinksSummary) -> bool:
        """Whether all is there of just these files; the summary has its counts then."""
        reports = [footer.record.report for footer in self.footers.values() if footer.record is not None]
        told = [report for report in reports if report is not None and "crawl" in report]
        if summary.failed or not told or len(told) != len(self.footers):
            return False
        crawl = told[0]["crawl"]
        ranges = self._ranges(crawl["digest"], len(told))
        is_whole = all(
            part.file in self.footers and self.footers[part.file].is_finished(part.mark) for part in ranges
        )
        if not is_whole or crawl["of"] != len(told) or crawl["digest"] != _digest(read, files):
            return False
        counts = {"counts": crawl["counts"], "damage": None}
        summary.count({"": counts})
        summary.damaged = dict(crawl["damaged"])
        output = SaveSummary(self.target.folder, skipped=len(told), opened=False)
        output.rows_before = sum(footer.rows for footer in self.footers.values())
        self._count(told, output, summary)
        return True

    def write(
        self,
        read: ReadCrawlFile,
        reports: Mapping[CrawlFile, Mapping[str, Any]],
        paths: Sequence[str],
        rows_per_file: int,
        summary: LinksSummary,
        client: Callable[[], Any],
        held: Callable[[], None],
    ) -> None:
        """Write the ranges that are missing, and remove files of an earlier table that has more."""
        folder, options = self.target.folder, self.target.options
        files = [*reports]
        digest = _digest(read, files)
        count = max(1, -(-sum(report["rows"] for report in reports.values()) // rows_per_file))
        counts: Counter[str] = Counter()
        for report in reports.values():
            counts.update(report["counts"])
        crawl = {"digest": digest, "of": count, "counts": dict(counts), "damaged": summary.damaged}
        crawl |= {"files": len(paths), "paths": _told(paths)}
        names = tuple(read.name(file) for file in files)
        write = WriteRange(read.phase, names, self.settings, self.target, crawl)
        ranges = self._ranges(digest, count)
        output = SaveSummary(folder, opened=False)
        todo = []
        for part in ranges:
            footer = self.footers.get(part.file)
            if footer is not None and footer.is_finished(part.mark):
                output.skipped += 1
                output.rows_before += footer.rows
            else:
                todo.append(part)
        if todo:
            targets = [Target.of_file(folder, part.file) for part in todo]
            tasks = file_tasks(write, todo, "write-links", client())
            run_targets(tasks, client(), targets, output, of="files of the table", held=held)
        if output.complete:
            for name in {*self.footers} - {part.file for part in ranges}:
                remove(join(folder, name), options)
        done = in_threads(lambda part: read_footer(join(folder, part.file), options), ranges)
        told = [footer.record.report for footer in done if footer.record is not None]
        self._count([report for report in told if report is not None], output, summary)

    def _count(
        self, reports: Sequence[Mapping[str, Any]], output: SaveSummary, summary: LinksSummary
    ) -> None:
        summary.again += sum(report.get("again", 0) for report in reports)
        summary.removed = sum(report.get("taken_down", 0) for report in reports)
        summary.output, summary.rows = output, output.rows + output.rows_before

    def _ranges(self, digest: str, count: int) -> list[Range]:
        said = {"settings": self.settings, "crawl": digest, "of": count}
        return [Range(number, count, fingerprint({**said, "number": number})) for number in range(count)]


def _digest(read: ReadCrawlFile, files: Sequence[CrawlFile]) -> str:
    """Of all files of a crawl, in their order, as they are now."""
    return fingerprint({"files": [read.name(file) for file in files]})


def _told(paths: Sequence[str]) -> str:
    """Of the names of the files of a crawl, whatever is in them."""
    return fingerprint({"paths": [*paths]})
