"""Columns that are seen in images and added to files that are there: which a file lacks, and what they are made of.

A record says of each how it was made (`FileRecord.read_by`), as of those that are made in the pass that embeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.errors import OutputError
from curator_dask.frames.names import ERROR_COLUMN, MESSAGE_COLUMN, STATUS_COLUMN, URL_COLUMN
from curator_dask.frames.parquet import Footer
from curator_dask.frames.record import MADE_BY, FileRecord
from curator_dask.outputs.added import SeeingStep
from curator_dask.outputs.replacing import is_unfilled
from curator_dask.outputs.unchanged import check_unchanged
from curator_dask.rows.reasons import reasons_in
from curator_dask.rows.remarks import OF_TARS
from curator_dask.storage import Options
from curator_dask.words import some_of_these


def lacking_seen(step: SeeingStep, footer: Footer, record: FileRecord) -> list[str]:
    """The columns of a step that a file has not, or not as this one makes them."""
    return [
        name
        for name, way in step.read_by.items()
        if name not in footer.columns or record.read_by.get(name) != way
    ]


def narrowed(steps: Sequence[Any], footer: Footer, record: FileRecord) -> tuple[Any, ...]:
    """The same steps, those that see images for what a file lacks alone."""
    made = []
    for step in steps:
        if isinstance(step, SeeingStep):
            lacking = lacking_seen(step, footer, record)
            others = {name: way for name, way in record.read_by.items() if name not in lacking}
            step = step.only(lacking, others)
        made.append(step)
    return tuple(made)


def check_seen(
    read: str, footer: Footer, steps: Sequence[Any], overwrite: bool, options: Options = None
) -> None:
    """Raise OutputError where rows do not say what their images are, or a column would be replaced.

    Parameters
    ----------
    read, footer
        The file, and what it says of itself.
    steps
        Whose columns it lacks.
    overwrite
        Columns may be replaced.
    options
        For fsspec, of the file.
    """
    record = footer.record or FileRecord("")
    for step in steps:
        if not isinstance(step, SeeingStep):
            continue
        if missing := [name for name in step.inputs if name not in footer.columns]:
            raise OutputError(
                f"{read}: has no columns {missing}, by which its rows find their images; "
                f"it has {some_of_these(footer.columns, missing[0])}. Only"
                " what embed, classify, caption or save_metadata wrote has them: run embed with --statistics"
            )
        for name in lacking_seen(step, footer, record):
            if name not in footer.columns or overwrite:
                continue
            before = record.read_by.get(name)
            if before is not None or not is_unfilled(read, name, options):
                raise _in_the_way(read, name, before, step.read_by[name])


def _in_the_way(read: str, name: str, before: str | None, now: str) -> OutputError:
    hint = "use overwrite=True (--overwrite) to replace it"
    if before is None:
        return OutputError(
            f"{read}: has a column {name!r} that is not made of images by this package. Put something before the"
            f" names (prefix, --prefix), or {hint}"
        )
    return OutputError(
        f"{read}: has a column {name!r} made as {before!r}, this run makes {now!r}. Give the same options, put"
        f" something else before the names (prefix, --prefix), or {hint}"
    )


def check_shards(path: str, urls: Sequence[str], record: FileRecord, steps: Sequence[Any]) -> None:
    """Raise ShardError where a shard is not the one that the rows came from, or is not there."""
    for step in steps:
        if isinstance(step, SeeingStep):
            check_unchanged(path, urls, record, step.storage_options)


def used_by(steps: Sequence[Any]) -> set[str]:
    """The columns of the rows that steps look at to see images, and to say why one cannot be seen."""
    seeing = [step for step in steps if isinstance(step, SeeingStep)]
    return {name for step in seeing for name in (*step.inputs, ERROR_COLUMN, STATUS_COLUMN, MESSAGE_COLUMN)}


def with_names(rows: pa.Table, record: FileRecord, steps: Sequence[Any]) -> pa.Table:
    """Rows whose ``image_error`` names the columns where it named none: vectors, classes, captions, and steps'.

    Else what is said of classes, which are no vectors, would go where a step has a value.
    """
    classes = [name for name, said in record.scores.items() if MADE_BY in said]
    called = [step.called for step in steps if isinstance(step, SeeingStep)]
    if not classes or not called or ERROR_COLUMN not in rows.column_names:
        return rows
    names = list(dict.fromkeys([*record.embeddings, *classes, *called]))
    named = []
    for stored in rows.column(ERROR_COLUMN).to_pylist():
        whole = [reason.text for reason in reasons_in(stored) if reason.column is None]
        named.append("; ".join(f"[{name}] {text}" for text in whole for name in names) or stored)
    return rows.set_column(rows.column_names.index(ERROR_COLUMN), ERROR_COLUMN, pa.array(named, pa.string()))


def said_of(record: FileRecord, steps: Sequence[Any]) -> FileRecord:
    """The record with what steps have seen."""
    ways = {name: way for step in steps if isinstance(step, SeeingStep) for name, way in step.read_by.items()}
    scores = {name: said for name, said in record.scores.items() if name not in ways}
    derived = tuple(dict.fromkeys([*record.derived, *ways]))
    return replace(record, read_by={**record.read_by, **ways}, scores=scores, derived=derived)


def noticed_again(found: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What was noticed of shards, without what was noticed when the rows were made, of all of a shard's rows."""
    return {
        url: {kind: fact for kind, fact in facts.items() if kind == "corrupt" or kind not in OF_TARS}
        for url, facts in found.items()
    }


def urls_of(table: pa.Table) -> list[str]:
    """The shards that a table's rows came from."""
    if URL_COLUMN not in table.column_names:
        return []
    return [url for url in pc.unique(table.column(URL_COLUMN)).to_pylist() if url is not None]
