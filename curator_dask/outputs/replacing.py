"""Whether a column that is there may be replaced by one of its name, and what to say where it may not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curator_dask.errors import OutputError
from curator_dask.frames.parquet import Footer, open_parquet
from curator_dask.frames.record import BALANCE, ON, TABLE, TEXTS, FileRecord
from curator_dask.storage import Options


def is_unfilled(path: str, name: str, options: Options) -> bool:
    """Whether a column of a file has no value, so that nothing is lost with it.

    Files of an output have one schema: those that come later get the columns that others were given, as nulls.
    """
    with open_parquet(path, options) as file:
        batches = file.iter_batches(columns=[name])
        return all(batch.column(0).null_count == batch.num_rows for batch in batches)


def check_column(
    read: str, footer: Footer, name: str, said: Mapping[str, Any], options: Options = None
) -> None:
    """Raise OutputError where a file has a column of this name that something else has made.

    Parameters
    ----------
    read, footer
        The file, and what it says of itself.
    name, said
        Of the new column, and what a record is going to say of it.
    options
        For fsspec, of the file.
    """
    before, table = (footer.record or FileRecord("")).scores.get(name), said.get(TABLE)
    if name not in footer.columns or (before and _may_change(before, said)):
        return
    if before is None and is_unfilled(read, name, options):
        return
    do, kind = "Give the column another name", "is no score of a head"
    if table is not None:
        do, kind = "Choose others (--columns, --mark)", "was not joined from a table"
    elif BALANCE in said and "vectors" not in said and not _is_of_texts(said):
        do = "Put something before the names (prefix, --prefix)"
    elif _is_of_texts(said):
        do = "Put something else before the name (prefix='new_', --text-prefix new_)"
        kind = "is no statistic of captions"
    hint = f"{do}, or use overwrite=True (--overwrite)"
    if before is None:
        raise OutputError(f"{read}: has a column {name!r} that {kind}. {hint} to replace it")
    if before.get("recipe") != said["recipe"]:
        new = table or (_statistic(said) if _is_of_texts(said) else said["head"])
        raise OutputError(
            f"{read}: has a column {name!r} {_made_by(before)}, this run has {new}. {hint} to replace it"
        )


def _is_of_texts(said: Mapping[str, Any]) -> bool:
    """Whether a column is made of captions alone, and of no vectors or keys."""
    return TEXTS in said and not {"vectors", ON} & {*said}


def _may_change(before: Mapping[str, Any], said: Mapping[str, Any]) -> bool:
    """Whether columns come from where they came from before: a table may have changed, or counts of captions."""
    if TABLE in said:
        return bool(before.get(TABLE) == said[TABLE])
    return BALANCE in said and all(before.get(kind) == said.get(kind) for kind in (BALANCE, TEXTS))


def _made_by(said: Mapping[str, Any]) -> str:
    if TABLE in said:
        return f"of the table {said[TABLE]}"
    return f"of the statistic {_statistic(said)}" if _is_of_texts(said) else f"by the head {said.get('head')}"


def _statistic(said: Mapping[str, Any]) -> str:
    """What was measured of captions, by all in which two of one name may differ."""
    digest = (said.get("by") or {}).get("sha256")
    model = f", SHA-256 {digest[:12]}…" if digest else ""
    return f"{said.get('head')} in {said.get(TEXTS)!r}{model}"
