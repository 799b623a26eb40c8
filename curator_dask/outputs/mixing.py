"""Laying rows down in the order of their tars, where each tar would draw from nearly every file of rows.

In a random order a tar takes a few rows of each file, and for one of them a whole row group of Parquet is decoded,
vectors and all: of a thousand files and a thousand tars a million times. So each file is read once, and its rows are
written again, as `outputs.mixed` has them. What is written goes when the tars are there. A file of which that fails is
read itself, as are all where the disk has no room for them.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np
import pandas as pd
import pyarrow as pa

from curator_dask.collector import held_back
from curator_dask.errors import CuratorError
from curator_dask.outputs.choosing import read_rows
from curator_dask.outputs.export_place import ExportPlace
from curator_dask.outputs.export_summary import ExportSummary
from curator_dask.outputs.mixed import put_mixed
from curator_dask.outputs.packing import REPORT, PackShard
from curator_dask.outputs.saving import remove_empty
from curator_dask.outputs.selecting import Folder
from curator_dask.outputs.sharding import NewShards
from curator_dask.runs.reports import report_frame
from curator_dask.runs.settle import file_tasks, run_targets
from curator_dask.runs.targets import Target
from curator_dask.storage import is_remote, remove, walk
from curator_dask.threads import in_threads
from curator_dask.webdataset.stamps import stamp

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger("curator_dask")

#: The folder beside the tars, in which each part of an export has one of its own.
MIXED = "mixed"
#: Files are laid down anew where tars would read each more often than this, on average: it is read and written once for
#: it, and each of its rows is read once more.
WORTH_IT = 8
#: Bytes of rows, decoded, for a byte of their Parquet file, about: text takes more, vectors less.
_DECODED = 2


@dataclass(frozen=True)
class FileOrder:
    """Where the samples of a file go.

    Attributes
    ----------
    name
        Of the file of rows.
    samples
        int64 (n,): numbers of its samples, those of a tar side by side.
    tars, ends
        Names of the tars, and behind the last sample of each.
    """

    name: str
    samples: np.ndarray
    tars: tuple[str, ...]
    ends: tuple[int, ...]


@dataclass(frozen=True)
class MixRows:
    """Writes the rows of a file in the order of their tars, and those of the table of its samples.

    Attributes
    ----------
    pack
        What will read them.
    mixed
        Where they go.
    """

    pack: PackShard
    mixed: Folder

    def give_up(self, reason: str) -> Callable[[FileOrder], pd.DataFrame]:
        """None is written of a file that kills workers: ``reason`` is told by the tars."""
        return _nothing

    def __call__(self, asked: FileOrder) -> pd.DataFrame:
        """Do it; returns the report. What cannot be read or written is left to the tars, which say so."""
        pack = self.pack
        with contextlib.suppress(CuratorError, OSError, pa.ArrowException), held_back():
            samples = read_rows(pack.selected.file(asked.name), pack.selected.options)
            samples = samples.take(pa.array(asked.samples))
            put_mixed(self.mixed, f"samples/{asked.name}", samples, asked.tars, asked.ends)
            if (table := pack.read_table(asked.name)) is not None:
                put_mixed(
                    self.mixed,
                    f"rows/{asked.name}",
                    table.take(samples.column("row")),
                    asked.tars,
                    asked.ends,
                )
        return report_frame({**REPORT, "name": asked.name, "rows": len(asked.samples)})


def _nothing(asked: FileOrder) -> pd.DataFrame:
    return report_frame({**REPORT, "name": asked.name, "rows": len(asked.samples)})


@contextlib.contextmanager
def rows_laid_down(
    pack: PackShard,
    shards: NewShards,
    names: Sequence[str],
    place: ExportPlace,
    client: Callable[[], Client | None],
    spare: int | None,
) -> Iterator[PackShard]:
    """Give what writes the tars, with the rows in their order beside them where that is worth it.

    Parameters
    ----------
    pack, shards, names
        What writes the tars, those that are to be written, and their names.
    place
        Of the export.
    client
        Gives that of the cluster.
    spare
        Bytes that the disk has besides what the tars need; None: not known.
    """
    part = "" if place.part is None else f"/{place.part.number}-of-{place.part.of}"
    begun = place.folder(f"{MIXED}{part}")
    clear(begun)  # of a run that died
    by_file = [] if shards.in_order else [*shards.by_table()]
    if sum(len(tars) for *_, tars, _ in by_file) <= WORTH_IT * len(by_file):
        by_file = []
    if by_file and spare is not None:
        sizes = in_threads(lambda each: stamp(pack.rows.file(each[0]), pack.rows.options).size, by_file)
        if spare < _DECODED * sum(sizes):
            logger.warning(
                "%s: no room to lay %d files of rows down in the order of the tars (some %.1f GB): each tar reads them"
                " by itself, which takes longer",
                place.target.path,
                len(by_file),
                _DECODED * sum(sizes) / 1e9,
            )
            by_file = []
    if not by_file:
        yield pack
        return
    try:
        mixed = Folder(
            begun.file(uuid4().hex), begun.options
        )  # what another run has left is not taken for it
        asked = [
            FileOrder(name, samples, tuple(names[tar] for tar in tars), tuple(ends.tolist()))
            for name, samples, tars, ends in by_file
        ]
        at = client()
        tasks = file_tasks(MixRows(pack, mixed), asked, "mix-rows", at)
        done = ExportSummary(place.target.path).looked_up
        run_targets(
            tasks, at, [Target.of_file(mixed.path, each.name) for each in asked], done, of="files of rows"
        )
        if spare is not None and (taken := _bytes_in(mixed)) > spare:
            logger.warning(
                "%s: files of rows laid down in the order of the tars take %.1f GB, more than was foreseen, and the"
                " tars would not have room: each tar reads them by itself, which takes longer",
                place.target.path,
                taken / 1e9,
            )
            clear(begun)
            yield pack
            return
        yield replace(pack, mixed=mixed)
    finally:
        clear(begun)


def _bytes_in(folder: Folder) -> int:
    """Of all its files."""
    names = [*walk(*folder)]
    return sum(in_threads(lambda name: stamp(folder.file(name), folder.options).size, names))


def clear(folder: Folder) -> None:
    """Remove what is in a folder of an export, and the folder; that of all parts, too, if this was the last of it."""
    for name in [*walk(*folder)]:
        remove(folder.file(name), folder.options)
    if not is_remote(folder.path):
        path = Path(folder.path)
        below = [each for each in sorted(path.rglob("*"), reverse=True) if each.is_dir()]
        remove_empty([*below, path, *([path.parent] if path.parent.name == MIXED else [])])
