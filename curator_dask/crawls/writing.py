"""The table of links: of each range of uids, the first of those that are the same, of all files of a crawl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.crawls.reading import SCHEMA
from curator_dask.dedup.phases import Phase
from curator_dask.errors import ShardError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.faults import faults_told
from curator_dask.frames.parquet import open_parquet, write_table
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.taken_down import without_taken_down
from curator_dask.outputs.writing import Output
from curator_dask.runs.reports import report_frame, report_of
from curator_dask.storage import join
from curator_dask.threads import in_threads

#: Begins `FileRecord.read_by` of the files, so that they are known as links.
LINKS = "links of a crawl"
_AT_ONCE = 64  # files that are opened side by side


@dataclass(frozen=True)
class Range:
    """A range of uids.

    Attributes
    ----------
    number, of
        Counted from 0, and how many there are.
    mark
        The fingerprint of its links.
    """

    number: int
    of: int
    mark: str

    @property
    def file(self) -> str:
        """What it is written to."""
        return f"links-{self.number:05d}.parquet"

    @property
    def start(self) -> str:
        """The first uid."""
        return f"{(self.number << 128) // self.of:032x}"

    @property
    def stop(self) -> str:
        """The uid at which the next begins; greater than all in the end."""
        return f"{((self.number + 1) << 128) // self.of:032x}" if self.number + 1 < self.of else "g"


@dataclass(frozen=True)
class WriteRange:
    """Writes the links of a range.

    Attributes
    ----------
    phase, names
        Where the links of each file of the crawl are, and their files, in the order in which these count.
    settings
        Fingerprint of what decides which links are taken.
    target
        Where it goes.
    crawl
        What is known of all files, for the record: a call that has nothing left to do tells it again.
    given_up
        It kills workers: it is not written, for this reason.
    """

    phase: Phase
    names: Sequence[str]
    settings: str
    target: Output
    crawl: Mapping[str, Any]
    given_up: str | None = None

    def __dask_tokenize__(self) -> Any:
        said = {
            "names": fingerprint({"names": [*self.names]}),
            "phase": vars(self.phase),
            "given": self.given_up,
        }
        return (type(self).__name__, self.settings, sorted(said.items()), vars(self.target))

    def give_up(self, reason: str) -> WriteRange:
        """The same without the work that kills workers."""
        return replace(self, given_up=reason)

    def __call__(self, part: Range) -> pd.DataFrame:
        """Do it; returns a report as `WritePartition` does."""
        if self.given_up is not None:
            raise ShardError(f"{part.file}: {self.given_up}")
        tables: list[pa.Table] = [SCHEMA.empty_table()]
        for start in range(0, len(self.names), _AT_ONCE):
            names = self.names[start : start + _AT_ONCE]
            tables += in_threads(lambda name: self._read(name, part), list(names))
        table = pa.concat_tables(tables)
        every = len(table)
        table = _first_of_each(table)
        unique = len(table)
        table = without_taken_down(self.target.folder, self.target.options, table, "uid")
        report = report_of(part.file.removesuffix(".parquet"), table, "uid")
        report |= {"again": every - unique, "taken_down": unique - len(table), "crawl": dict(self.crawl)}
        record = FileRecord(
            part.mark, id_col="uid", read_by={"url": f"{LINKS} {self.settings}"}, report=report
        )
        write_table(join(self.target.folder, part.file), table, record, self.target.options)
        return report_frame(report)

    def _read(self, name: str, part: Range) -> pa.Table:
        path = self.phase.path(name)
        with faults_told(path, ShardError), open_parquet(path, self.phase.options) as file:
            groups = []
            for number in range(file.metadata.num_row_groups):
                seen = file.metadata.row_group(number).column(0).statistics
                if seen is None or (seen.max >= part.start and seen.min < part.stop):
                    groups.append(number)
            if not groups:
                return SCHEMA.empty_table()
            table = file.read_row_groups(groups).replace_schema_metadata(None)
        uids = table.column("uid")
        return table.filter(pc.and_(pc.greater_equal(uids, part.start), pc.less(uids, part.stop)))


def _first_of_each(table: pa.Table) -> pa.Table:
    """The first row of each uid, in the order of the uids: so neighbours are of many hosts, as a fetch wants it."""
    if not len(table):
        return table
    numbered = pa.table({"uid": table.column("uid"), "row": pa.array(np.arange(len(table)))})
    firsts = numbered.group_by("uid").aggregate([("row", "min")]).sort_by("uid")
    return table.take(firsts.column("row_min")).combine_chunks()
