"""Writing one partition as Parquet, on the worker that holds it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curator_dask import backend
from curator_dask.errors import OutputError
from curator_dask.frames.parquet import conform, is_finished, read_footer, read_metadata, write_table

ERROR_COLUMN = "image_error"
#: Below the output. Readers of a folder of Parquet files (pyarrow, Spark) pass over names that begin with "_":
#: as "errors" they would read the failed rows back among the good ones.
ERRORS_FOLDER = "_errors"
_EXAMPLES = 3  # of each reason, that a report carries


@dataclass(frozen=True)
class Target:
    """Where a partition goes.

    Attributes
    ----------
    name
        Of the shard or its part.
    path
        Of the Parquet file.
    fingerprint
        Of all that decides the content.
    shard
        State of the shard when the run was planned; None where partitions were mixed.
    companion
        The shard's own Parquet file, if it has one.
    source
        ``"parquet"`` or ``"tar"``: where the rows came from; None where partitions were mixed.
    """

    name: str
    path: str
    fingerprint: str
    shard: dict[str, Any] | None
    companion: str | None
    source: str | None


@dataclass(frozen=True)
class WritePartition:
    """Writes a partition's file and reports its counts; the last node of the graph.

    Attributes
    ----------
    schema
        Of every file.
    id_col
        Column of the keys, for messages.
    embeddings
        What made each embedding column.
    drop_failed
        Write rows with an ``image_error`` to ``_errors/``.
    keep_rows
        Refuse to replace a file by one with fewer rows.
    """

    schema: pa.Schema
    id_col: str
    embeddings: Mapping[str, Any]
    drop_failed: bool
    keep_rows: bool

    def __dask_tokenize__(self) -> Any:
        settings = (self.id_col, self.embeddings, self.drop_failed, self.keep_rows)
        return (type(self).__name__, self.schema.to_string(), *settings)

    def __call__(self, frame: Any, target_frame: pd.DataFrame) -> pd.DataFrame:
        """Write one partition.

        Returns
        -------
        One row, whose column ``target`` is JSON: ``name``, ``rows``, ``failed``, ``dropped``, ``reasons`` and
        ``examples``.

        Raises
        ------
        OutputError
            The file cannot be written, or would have fewer rows than the one it replaces.
        """
        target = Target(**json.loads(target_frame["target"].iloc[0]))
        whole = backend.frame_to_arrow(frame)
        table = conform(whole, self.schema, target.name)
        errors = (
            whole.column(ERROR_COLUMN)
            if ERROR_COLUMN in whole.column_names
            else pa.nulls(len(whole), pa.string())
        )
        bad = pc.is_valid(errors)
        report = _report(target.name, whole, errors, self.id_col)
        report["dropped"] = report["failed"] if self.drop_failed else 0
        before = (
            read_metadata(target.companion) if target.companion and "://" not in target.companion else None
        )
        stored = {
            "fingerprint": target.fingerprint,
            "shard": target.shard,
            # Rows that an earlier run took from the tar are the tar's, also when they were read from its output.
            "source": (before or {}).get("source") or target.source,
            "embeddings": {**self._inherited(before), **self.embeddings},
        }
        if is_finished(read_footer(target.path), target.fingerprint):
            # Dask runs a task again when its worker died after writing: to write into the dataset's own file
            # what was made of that file would apply every step twice.
            return _reported(report)
        if self.keep_rows:
            _check_rows_kept(target, len(table))
        failed = table.filter(bad) if self.drop_failed else table.slice(0, 0)
        self._write_failed(target, failed, stored)
        if self.drop_failed:
            table = table.filter(pc.invert(bad))
        write_table(target.path, table, {**stored, "rows": len(table)})
        return _reported(report)

    def _inherited(self, before: dict[str, Any] | None) -> dict[str, Any]:
        """What made the embeddings that came with the shard's rows and are written unchanged."""
        found = (before or {}).get("embeddings", {})
        return {name: info for name, info in found.items() if name in self.schema.names}

    def _write_failed(self, target: Target, table: pa.Table, stored: Mapping[str, Any]) -> None:
        path = Path(target.path)
        root = path.parents[target.name.count("/")]
        errors = root / ERRORS_FOLDER / f"{target.name}.parquet"
        if len(table):
            write_table(str(errors), table, stored)
        elif errors.exists():
            errors.unlink(missing_ok=True)  # left by an earlier run in which more failed, or went there


def _reported(report: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame({"target": [json.dumps(report)]}).astype({"target": "str"})


def _check_rows_kept(target: Target, rows: int) -> None:
    try:
        before = pq.read_metadata(target.path).num_rows if Path(target.path).exists() else 0
    except (OSError, pa.ArrowInvalid):
        return
    if before > rows:
        raise OutputError(
            f"{target.path} has {before} rows and would be replaced by one with {rows}. Rows were filtered: give"
            " save_metadata another path, or overwrite=True to drop them from the dataset's own files"
        )


def _report(name: str, table: pa.Table, errors: Any, id_col: str) -> dict[str, Any]:
    reasons: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    keys = table.column(id_col) if id_col in table.column_names else None
    for row in pc.indices_nonzero(pc.is_valid(errors)).to_pylist():
        reason = errors[row].as_py()
        kind = reason.partition(":")[0].partition(" (")[0]
        reasons[kind] += 1
        if len(examples.setdefault(kind, [])) < _EXAMPLES:
            examples[kind].append(f"{name} {'' if keys is None else keys[row].as_py()}: {reason}")
    return {
        "name": name,
        "rows": table.num_rows,
        "failed": sum(reasons.values()),
        "reasons": dict(reasons),
        "examples": examples,
    }
