"""What a file of a crawl has, on a worker: its links by uid, so that a range of uids is read alone."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, BinaryIO

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curator_dask.crawls.rules import Found, LinkRules, take
from curator_dask.dedup.phases import Phase
from curator_dask.errors import ShardError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.parquet import Footer, read_footer
from curator_dask.frames.record import FileRecord
from curator_dask.patience import BLOCK_BYTES
from curator_dask.runs.reports import report_frame
from curator_dask.storage import Options, RemoteFile, check_regular, is_remote, local_path
from curator_dask.webdataset.stamps import FileStamp, stamp

#: Of how links are taken: part of the fingerprint.
_VERSION = 1
#: Of the columns that come out.
SCHEMA = pa.schema(
    {
        "uid": pa.string(),
        "url": pa.string(),
        "caption": pa.string(),
        "page_url": pa.string(),
        "page_language": pa.string(),
        "crawl_date": pa.timestamp("ms", "UTC"),
    }
)
_GROUP = 1 << 14  # rows that are read together, of which a range may want a few


@dataclass(frozen=True)
class CrawlFile:
    """A file of a crawl.

    Attributes
    ----------
    path
        Or URL.
    state
        When it was looked at.
    """

    path: str
    state: FileStamp

    def __dask_tokenize__(self) -> Any:
        return (type(self).__name__, self.path, vars(self.state))


@dataclass(frozen=True)
class ReadCrawlFile:
    """Writes the links of one file, sorted, each once.

    Attributes
    ----------
    rules
        Which are taken.
    options
        For fsspec, of the crawl.
    phase
        Where they go.
    given_up
        The file kills workers: it is not read, for this reason.
    """

    rules: LinkRules
    options: Options
    phase: Phase
    given_up: str | None = None

    def give_up(self, reason: str) -> ReadCrawlFile:
        """The same without the work that kills workers."""
        return replace(self, given_up=reason)

    def mark(self, file: CrawlFile) -> str:
        """The fingerprint of what is written."""
        said = {"links": _VERSION, "path": file.path, "state": vars(file.state), "rules": asdict(self.rules)}
        return fingerprint(said)

    def name(self, file: CrawlFile) -> str:
        """Of what is written: another where the file has changed, or is read by other rules."""
        return f"{self.mark(file)[:24]}.parquet"

    def finished(self, file: CrawlFile) -> Footer | None:
        """What is said by what was written; None: nothing was."""
        footer = read_footer(self.phase.path(self.name(file)), self.phase.options)
        return footer if footer.is_finished(self.mark(file)) else None

    def __call__(self, file: CrawlFile) -> pd.DataFrame:
        """Do it; returns a report as `WritePartition` does."""
        if self.given_up is not None:
            raise ShardError(f"{file.path}: {self.given_up}")
        found = Found()
        with self._opened(file) as opened:
            from curator_dask.crawls.pages import (
                Pages,  # a worker needs the extra, and who looks at results does not
            )

            pages = Pages(opened)
            take(pages, self.rules, found)
        if (now := stamp(file.path, self.options)) != file.state:
            raise ShardError(
                f"{file.path}: was changed while it was read ({now}): run again when it is whole"
            )
        counts = {**found.counts, "records": pages.records, "passed_over": pages.passed_over}
        report = {
            "name": file.path,
            "rows": len(found.uids),
            "failed": 0,
            "dropped": 0,
            "reasons": {},
            "examples": {},
            "remarks": {},
            "counts": counts,
            "damage": pages.damage,
        }
        self._write(file, _table(found), report)
        return report_frame(report)

    @contextmanager
    def _opened(self, file: CrawlFile) -> Iterator[BinaryIO]:
        try:
            if is_remote(file.path):
                with io.BufferedReader(RemoteFile(file.path, self.options), BLOCK_BYTES) as opened:
                    yield opened
            else:
                check_regular(path := local_path(file.path))
                with open(path, "rb") as opened:  # noqa: PTH123
                    yield opened
        except ShardError:
            raise
        except Exception as error:  # of a store, many types
            raise ShardError(f"{file.path}: cannot be read: {error!r}") from error

    def _write(self, file: CrawlFile, table: pa.Table, report: Mapping[str, Any]) -> None:
        record = FileRecord(self.mark(file), rows=len(table), id_col="uid", report=report)
        table = table.sort_by("uid").replace_schema_metadata(record.to_metadata())
        with self.phase.writing(self.name(file)) as opened:
            pq.write_table(table, opened, compression="zstd", row_group_size=_GROUP)


def _table(found: Found) -> pa.Table:
    dates = pa.array([(each or "")[:19] or None for each in found.dates], pa.string())
    is_date = pc.match_substring_regex(dates, r"^\d{4}-[01]\d-[0-3]\dT[0-2]\d:[0-5]\d:[0-5]\d$")
    dates = pc.if_else(pc.fill_null(is_date, False), dates, pa.scalar(None, pa.string()))
    columns = (found.uids, found.urls, found.captions, found.pages, found.languages)
    arrays = [pa.array(each, pa.string()) for each in columns]
    return pa.table([*arrays, _times(dates)], schema=SCHEMA)


def _times(dates: pa.Array) -> pa.Array:
    """Of texts that look like dates; those that are none (a 31st of June) are null."""
    read = pd.to_datetime(dates.to_pandas(), format="%Y-%m-%dT%H:%M:%S", errors="coerce", utc=True)
    return pa.array(read).cast(SCHEMA.field("crawl_date").type)
