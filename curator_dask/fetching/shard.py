"""One shard, on a worker: its URLs are fetched, and its tar and the rows beside it are written."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import pyarrow as pa

from curator_dask.cluster.progress import reporter
from curator_dask.errors import ShardError
from curator_dask.fetching.downloading import Downloads
from curator_dask.fetching.failures import NOT_DOWNLOADED, SUCCESS, Failure
from curator_dask.fetching.files import ShardFiles, Stored, known_images
from curator_dask.fetching.layout import LEFT, MADE, URL, Layout, texts
from curator_dask.fetching.looking import Look, look_at
from curator_dask.fetching.options import FetchOptions
from curator_dask.fetching.reporting import report_of_shard
from curator_dask.fetching.retrying import may_retry
from curator_dask.fetching.source import Piece, read_pieces
from curator_dask.fetching.spool import Spool
from curator_dask.fetching.taking_away import TakenAway, without_content
from curator_dask.fetching.values import json_rows
from curator_dask.frames.names import STATUS_COLUMN
from curator_dask.frames.record import FileRecord
from curator_dask.runs.reports import report_frame
from curator_dask.storage import Options

_ONE_SHARD = threading.Lock()  # downloads at a time: the limits are of a worker, however many tasks it runs
_HOSTS = 20  # whose URLs failed most, that it has


@dataclass(frozen=True)
class ShardRows:
    """The rows of a shard that is to be fetched.

    Attributes
    ----------
    name
        Of the shard.
    pieces
        Where they are.
    mark
        The fingerprint of what is made of them.
    """

    name: str
    pieces: tuple[Piece, ...]
    mark: str


@dataclass(frozen=True)
class FetchShard:
    """Fetches one shard.

    Attributes
    ----------
    files
        Where its files go.
    layout
        Of its rows.
    options
        Of the fetch.
    digits
        Of a row's number in its key.
    table_options
        For fsspec, of the table's files.
    given_up
        The shard kills workers: it is not fetched, for this reason.
    """

    files: ShardFiles
    layout: Layout
    options: FetchOptions
    digits: int
    table_options: Options = None
    given_up: str | None = None

    def __dask_tokenize__(self) -> Any:
        return (type(self).__name__, str({**vars(self), "layout": str(self.layout.schema())}))

    def give_up(self, reason: str) -> FetchShard:
        """The same without the work that kills workers."""
        return replace(self, given_up=reason)

    def __call__(self, rows: ShardRows) -> pd.DataFrame:
        """Do it; returns the report.

        Raises
        ------
        NetworkError
            No server answers.
        CuratorError
            The table cannot be read, or the shard not be written.
        """
        if self.given_up is not None:
            raise ShardError(f"{self.files.tar(rows.name)}: {self.given_up}")
        done = self.files.finished(rows.name, rows.mark)
        if done is not None and not self.options.retry_failed:  # a worker died after it had written it
            return report_frame(done)
        return report_frame(self._fetch(rows, done is not None))

    def _fetch(self, rows: ShardRows, again: bool) -> dict[str, Any]:
        started = time.monotonic()
        table = read_pieces(rows.pieces, self.layout.read, self.table_options)
        keys = self.layout.keys(table, rows.name, self.digits)
        urls = texts(table, self.layout.url).to_pylist()
        json_rows(
            table.select([name for name, _ in self.layout.others])
        )  # what cannot be told is said before
        found: list[Stored | Failure | None] = [None] * len(keys)
        with ExitStack() as stack:
            spool = stack.enter_context(Spool(self.files.beside.path, f"{rows.name}.tar"))
            before = 0
            if again:
                self._take_over(stack, rows.name, keys, found)
                before = sum(isinstance(each, Stored) for each in found)
            others = table.select([name for name, _ in self.layout.others])
            others = others.rename_columns([new for _, new in self.layout.others])
            down = TakenAway(self.files, rows.name, keys, urls, others)
            down.before(found)
            wanted = [number for number, each in enumerate(found) if each is None]
            downloads = self._download(table, urls, wanted, found, spool)
            down.after(found)
            images = [each if isinstance(each, Stored) else None for each in found]
            reasons = [each.reason if isinstance(each, Failure) else None for each in found]
            written = without_content(self._rows(table, keys, found))
            report = {
                **report_of_shard(rows.name, keys, written.column(URL).to_pylist(), images, reasons),
                "received": downloads.received,
                "hosts": dict(downloads.hosts.most_common(_HOSTS)),
                "no_caption": 0
                if self.layout.caption is None
                else texts(table, self.layout.caption).null_count,
                "max_bytes": self.options.max_bytes,
                "fetch_seconds": time.monotonic() - started,
                "tried": len(wanted),
                "new": sum(each is not None for each in images) - before,
            }
            record = FileRecord(rows.mark, id_col="key", report=report)
            self.files.write(
                rows.name,
                self._members(keys, written, images),
                written,
                record,
                keep_tar=again and not report["new"],
            )
        return self.files.finished(rows.name, rows.mark) or report

    def _take_over(
        self, stack: ExitStack, name: str, keys: Sequence[str], found: list[Stored | Failure | None]
    ) -> None:
        """Put what a finished shard has in its place; what is to be tried again stays None."""
        rows, report = self.files.rows(name)
        images = known_images(stack, self.files, name)
        columns = {
            each: rows.column(each).to_pylist() for each in (*MADE.names, *({LEFT} & {*rows.column_names}))
        }
        for number, key in enumerate(keys):
            said = {column: values[number] for column, values in columns.items()}
            if said[STATUS_COLUMN] == SUCCESS and key in images:
                found[number] = replace(
                    images[key],
                    **{each: said[each] for each in MADE.names[2:]},
                    left=said.get(LEFT),
                )
            elif said[STATUS_COLUMN] != SUCCESS and not may_retry(
                str(said["error_message"]), self.options, report
            ):
                found[number] = Failure(str(said["error_message"]), str(said[STATUS_COLUMN]))

    def _download(
        self,
        table: pa.Table,
        urls: Sequence[str | None],
        wanted: Sequence[int],
        found: list[Stored | Failure | None],
        spool: Spool,
    ) -> Downloads:
        """Fetch the URLs of rows, each once however many rows have it, and put what became of them in their place."""
        by_url: dict[str | None, list[int]] = {}
        for number in wanted:
            by_url.setdefault(urls[number], []).append(number)
        members = [*by_url.values()]
        stored: dict[int, tuple[Stored, Look]] = {}
        options, report = self.options, reporter()

        def take(number: int, data: bytes | bytearray) -> Look:
            look = look_at(data, options.max_pixels, options.smaller, [*options.digests])
            start = spool.add(look.data)
            stored[number] = Stored.of(str(spool.path), start, look), replace(look, data=b"")
            return look

        def tell(number: int, failed: bool) -> None:
            count = len(members[number])
            report(images=count, failed=count * failed)

        downloads = Downloads([*by_url], options, take, tell, lambda: not self.files.any_there())
        with _ONE_SHARD:
            downloads.run()
        expected = {name: texts(table, column).to_pylist() for name, column in options.digests.items()}
        for number, mine in enumerate(members):
            for row in mine:
                if number not in stored:
                    found[row] = downloads.failures[number]
                    continue
                image, look = stored[number]
                wrong = _wrong_digest(look, {name: values[row] for name, values in expected.items()})
                found[row] = image if wrong is None else Failure(wrong, NOT_DOWNLOADED, answered=True)
        return downloads

    def _rows(self, table: pa.Table, keys: Sequence[str], found: Sequence[Any]) -> pa.Table:
        made: dict[str, list[Any]] = {
            name: [] for name in (*MADE.names, *([LEFT] if self.layout.is_smaller else []))
        }
        for each in found:
            failed = isinstance(each, Failure)
            said = {
                STATUS_COLUMN: each.status if failed else SUCCESS,
                "error_message": each.reason if failed else None,
            }
            for name, values in made.items():
                values.append(
                    said.get(name) if failed or name in said else getattr(each, name.replace(LEFT, "left"))
                )
        return self.layout.rows(table, keys, made)

    def _members(
        self, keys: Sequence[str], rows: pa.Table, images: Sequence[Stored | None]
    ) -> list[tuple[str, Stored | bytes]]:
        """The members of the tar, in the order of the rows."""
        names = [name for name in rows.column_names if name not in (STATUS_COLUMN, "error_message", LEFT)]
        members: list[tuple[str, Stored | bytes]] = []
        for key, image, row in zip(keys, images, json_rows(rows.select(names)), strict=True):
            if image is None:
                continue
            members.append((f"{key}.{image.suffix}", image))
            if self.layout.caption is not None:
                members.append((f"{key}.txt", (row["caption"] or "").encode()))
            members.append((f"{key}.json", json.dumps(row, ensure_ascii=False).encode()))
        return members


def _wrong_digest(look: Look, expected: dict[str, str | None]) -> str | None:
    """Why the bytes that came are not those that the list means; None: they are, or it does not say."""
    for name, text in expected.items():
        said = (text or "").strip().lower()
        made = look.digests[name]
        if said and said != made:
            if len(said) != len(made):
                return f"no {name}: the list has {said[:80]!r}, expected {len(made)} hexadecimal digits"
            return f"other content: {name} is {made}, the list says {said}"
    return None
