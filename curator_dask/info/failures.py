"""Why rows failed, and one of each reason, with its shard and key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.frames.faults import fault_of
from curator_dask.frames.names import ERROR_COLUMN
from curator_dask.frames.parquet import open_parquet
from curator_dask.info.footers import FileFacts
from curator_dask.info.found import REASONS, Found, ReasonInfo
from curator_dask.rows.images import values_of
from curator_dask.rows.reasons import reasons_in
from curator_dask.storage import Options
from curator_dask.threads import in_threads
from curator_dask.words import ranked

_BLOCK = 16_384  # rows that are read at once


@dataclass
class Failures:
    """Rows that failed: how many by reason, and one of each."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    fault: str = ""

    def add(self, other: Failures) -> None:
        """Count another file's."""
        self.counts.update(other.counts)
        self.examples = {**other.examples, **self.examples}


def failures_in(files: Sequence[FileFacts], options: Options, damaged: dict[str, str]) -> Failures:
    """Those of files: as their records say it, or else as the column does; `damaged` gets what cannot be read."""

    def look(file: FileFacts) -> Failures:
        if file.reasons is not None:
            return Failures(Counter(file.reasons), dict(file.examples))
        if ERROR_COLUMN not in file.types or file.filled.get(ERROR_COLUMN) == 0:
            return Failures()
        try:
            return _read(file, options)
        except Exception as error:  # pyarrow's or a store's own, of many types
            return Failures(fault=fault_of(file.path, error))

    total = Failures()
    for file, found in zip(files, in_threads(look, files), strict=True):
        if found.fault:
            damaged[file.name] = found.fault
        total.add(found)
    return total


def failures_fetched(files: Sequence[FileFacts]) -> Failures:
    """Those of images that `fetch` could not have, as its reports say it: its rows have no ``image_error``."""
    total = Failures()
    for file in files:
        examples = file.report.get("examples") or {}
        total.add(
            Failures(
                Counter(file.report.get("reasons") or {}),
                {reason: some[0] for reason, some in examples.items() if some},
            )
        )
    return total


def _read(file: FileFacts, options: Options) -> Failures:
    found = Failures()
    names = [name for name in (file.id_col, ERROR_COLUMN) if name in file.types]
    with open_parquet(file.path, options) as opened:
        for batch in opened.iter_batches(batch_size=_BLOCK, columns=names):
            _count(found, batch, file)
    return found


def _count(found: Failures, batch: pa.RecordBatch, file: FileFacts) -> None:
    errors = batch.column(ERROR_COLUMN)
    for row in pc.indices_nonzero(pc.is_valid(errors)).to_pylist():
        text = str(errors[row].as_py())
        label = reasons_in(text)[0].label  # a row counts once
        found.counts[label] += 1
        if label not in found.examples:
            keys = batch.column(file.id_col) if file.id_col in batch.schema.names else None
            key = "" if keys is None else f" {values_of(keys.slice(row, 1))[0]}"
            found.examples[label] = f"{file.name.removesuffix('.parquet')}{key}: {text}"


def fill_failures(info: Found, found: Failures) -> None:
    """Put the commonest reasons into what is told."""
    most = ranked(found.counts)
    info.reasons = [
        ReasonInfo(reason, count, found.examples.get(reason, "")) for reason, count in most[:REASONS]
    ]
    info.other_reasons = sum(count for _, count in most[REASONS:])
