"""`ParquetSink`: one Parquet file a partition, each there whole or not at all, and known by its fingerprint."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from curator_dask.errors import OutputError
from curator_dask.frames.parquet import list_parquet
from curator_dask.outputs.conflicts import (
    FORMERLY,
    check_beside_images,
    check_own_files,
    find_strays,
    identity,
    made_otherwise,
)
from curator_dask.outputs.failed import remove_leftovers_of, say_lost
from curator_dask.outputs.file_parts import check_parts_at_work
from curator_dask.outputs.keeping import find_kept
from curator_dask.outputs.lock import RunLock
from curator_dask.outputs.planning import (
    find_unfinished,
    path_of,
    plan_schema,
    read_footers,
    target_maker,
)
from curator_dask.outputs.writing import Output, WritePartition
from curator_dask.runs.lineage import Lineage
from curator_dask.runs.sharing import Share
from curator_dask.runs.sink import Job, Plan
from curator_dask.runs.summary import SaveSummary
from curator_dask.runs.targets import LateTargets
from curator_dask.storage import join, remove
from curator_dask.words import counted

logger = logging.getLogger("curator_dask")

_LOOKED_AT = 8  # files of other parts: one that was made otherwise is rarely alone


@dataclass(frozen=True)
class ParquetSink:
    """Writes each partition as a Parquet file that is named after its shard.

    Attributes
    ----------
    output
        Where the files are.
    share
        The part of the shards whose partitions these are; None: all.
    """

    output: Output
    share: Share | None = None
    _opened: list[RunLock] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def place(self) -> str:
        """The folder."""
        return self.output.folder

    @property
    def part(self) -> dict[str, int] | None:
        """What the summary says of the part."""
        return None if self.share is None else self.share.told()

    def open(self) -> AbstractContextManager[Any]:
        """Keep other runs out of the folder, but other parts of this one."""
        part = None if self.share is None else self.share.part
        lock = RunLock(self.output.folder, self.output.options, part)
        self._opened[:] = [lock]
        return lock

    def unwritten(self, lineage: Lineage) -> int:
        """Those that have no file yet; all, where files of the same names are read from the same folder."""
        ranges = lineage.ranges or ()
        if self.output.in_place or self.output.overwrite:
            return len(ranges)
        there = list_parquet(self.output.folder, self.output.options)
        if not there:
            return len(ranges)
        return sum(join(self.output.folder, f"{part.name}.parquet") not in there for part in ranges)

    def plan(self, job: Job) -> Plan:
        """The file of each partition, and which of them are finished.

        Raises
        ------
        OutputError
            Something would be replaced that `overwrite` does not allow to replace.
        """
        output = self.output
        check_beside_images(job.lineage, output.folder)
        schema = plan_schema(job)
        self._check_parts_at_work(job)
        there = list_parquet(output.folder, output.options)
        count = job.frame.npartitions
        paths = [path_of(job, output, number) for number in range(count)] if there or output.in_place else []
        footers = read_footers(paths, there, output)
        kept = find_kept(job, schema, footers, output.in_place, output.options)
        make = target_maker(job, output, schema, kept)
        # Of files that are not there nothing has to be known before they are written.
        numbers = [number for number, path in enumerate(paths) if path in footers] if footers else []
        existing = {
            number: (target, footers[target.path])
            for number, target in zip(numbers, make(numbers), strict=True)
        }
        remove_leftovers_of(output.folder)
        known, todo, remarks, reports = find_unfinished(count, existing, schema, kept, job, output)
        self._check_other_parts(job, there)
        say_lost(output.folder, reports, output.options)
        targets = LateTargets(count, make, known)
        if output.in_place and not output.overwrite:
            check_own_files(job.lineage, paths, schema)
        strays = self._strays(job.lineage, paths, there)
        writer = WritePartition(
            schema,
            output,
            job.id_col,
            {name: {k: v for k, v in info.items() if k != FORMERLY} for name, info in job.made.items()},
            job.arguments,
            job.input_options,
            derived=job.derived,
            read_by=job.read_by,
            keeps_vectors=job.keeps_vectors,
            kept=kept,
            scores=job.scores,
        )
        return Plan(targets, todo, writer, remarks, strays, reports)

    def _check_parts_at_work(self, job: Job) -> None:
        """Raise OutputError where another part is at work that makes the same columns otherwise."""
        if self.share is None or not self._opened:
            return
        made = json.loads(json.dumps({name: identity(info) for name, info in job.models.items()}))
        check_parts_at_work(self._opened[0], self.output.folder, self.share.part, made)

    def _check_other_parts(self, job: Job, there: frozenset[str]) -> None:
        """Raise OutputError where another part has made the same columns otherwise: some of its files are looked at."""
        if self.share is None or self.output.overwrite or not there:
            return
        of_whole, mine = self.share.whole.ranges or (), {each.name for each in job.lineage.ranges or ()}
        others = [
            path
            for path in (
                join(self.output.folder, f"{each.name}.parquet") for each in of_whole if each.name not in mine
            )
            if path in there
        ]
        looked = [others[place * len(others) // _LOOKED_AT] for place in range(_LOOKED_AT)] if others else []
        for path, footer in read_footers(sorted({*looked}), there, self.output).items():
            if difference := made_otherwise(footer.record, job):
                raise OutputError(
                    f"{path}, of another part: {difference}. Give all parts the same settings, and machines of one"
                    " kind, use overwrite=True (--overwrite) in all of them, or write to another path"
                )

    def _strays(self, lineage: Lineage, paths: Sequence[str], there: frozenset[str]) -> list[str]:
        """What a run of the whole removes when all is written.

        A part has not written all: it leaves them, and says so.
        """
        if self.share is None:
            return find_strays(lineage, paths, there, self.output)
        whole = self.share.whole
        every = [join(self.output.folder, f"{each.name}.parquet") for each in whole.ranges or ()]
        if found := find_strays(whole, every, there, self.output):
            logger.warning(
                "%s: %s of the same rows in other partitions, %s for example: who reads the folder finds these rows"
                " twice until a run without --part, with --overwrite, has found all parts finished and removes them",
                *(self.output.folder, counted(len(found), "file"), found[0]),
            )
        return []

    def close(self, plan: Plan, summary: SaveSummary) -> None:
        """Remove what dead workers have left, and, when all is written, files of the same rows in other partitions."""
        if plan.todo:
            remove_leftovers_of(self.output.folder)
        if not summary.failed_shards:
            for stray in plan.strays:
                remove(stray, self.output.options)
