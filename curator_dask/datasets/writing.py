"""Writing one partition as Parquet, on the worker that holds it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask import backend
from curator_dask.datasets.tar_rows import URL_COLUMN
from curator_dask.errors import OutputError
from curator_dask.frames.parquet import conform, is_finished, read_footer, read_metadata, write_table
from curator_dask.storage import Options, exists, join, remove
from curator_dask.webdataset.remarks import remarks_on

ERROR_COLUMN = "image_error"
#: Below the output. Readers of a folder of Parquet files (pyarrow, Spark) pass over names that begin with "_":
#: as "errors" they would read the failed rows back among the good ones.
ERRORS_FOLDER = "_errors"
_EXAMPLES = 3  # of each reason, that a report carries
#: In the place of a report of a partition that failed: the reason.
BROKEN = "broken"


@dataclass(frozen=True)
class Output:
    """Where a run writes.

    Attributes
    ----------
    folder
        Local path or fsspec URL.
    options
        For fsspec.
    in_place
        It is the dataset's own folder.
    overwrite
        What other runs or programs made may be replaced.
    drop_failed
        Rows whose image failed go to ``_errors/``.
    """

    folder: str
    options: Options
    in_place: bool
    overwrite: bool
    drop_failed: bool


@dataclass(frozen=True, slots=True)  # there may be 100,000
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
    dataset
        Where partitions were mixed, a digest of all shards that they came from, if these are known.
    """

    name: str
    path: str
    fingerprint: str
    shard: dict[str, Any] | None
    companion: str | None
    source: str | None
    dataset: str | None = None

    def to_json(self) -> str:
        """All of it, as text."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def from_json(cls, text: str) -> Target:
        """The target of which this is `to_json`."""
        return cls(**json.loads(text))


class TargetTexts(Sequence[str]):
    """`Target.to_json` of each target, made when it is asked for: 100,000 at once would be in the way.

    Parameters
    ----------
    targets
        Of the partitions of a graph, in their order.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, number: Any) -> Any:
        return self.targets[number].to_json()

    def __dask_tokenize__(self) -> Any:
        said = "\n".join(f"{it.name}\0{it.path}\0{it.fingerprint}" for it in self.targets)
        return (type(self).__name__, hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest())


@dataclass(frozen=True)
class WritePartition:
    """Writes a partition's file and reports its counts; the last node of the graph.

    Attributes
    ----------
    schema
        Of every file.
    output
        Where the files are.
    id_col
        Column of the keys, for messages.
    embeddings
        What made each embedding column.
    settings
        By column, the arguments of the embedder; null for one of the user's own.
    input_options
        For fsspec, where the dataset is in a store.
    unfinished
        Store no fingerprint, so that a rerun makes the file again.
    """

    schema: pa.Schema
    output: Output
    id_col: str
    embeddings: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    input_options: Options = None
    unfinished: bool = False

    def __dask_tokenize__(self) -> Any:
        settings = {**vars(self), "schema": self.schema.to_string(), "output": vars(self.output)}
        return (type(self).__name__, settings)

    def __call__(self, frame: Any, target_frame: pd.DataFrame) -> pd.DataFrame:
        """Write one partition whose target is a partition too; the report as `report_frame`."""
        return report_frame(self._write(frame, Target.from_json(target_frame["target"].iloc[0])))

    def row(self, frame: Any, text: str) -> dict[str, Any]:
        """Write one partition, given its target as JSON.

        Returns
        -------
        dict
            ``target`` is JSON: ``name``, ``rows``, ``failed``, ``dropped``, ``reasons``, ``examples`` and
            ``remarks``.

        Raises
        ------
        OutputError
            The file cannot be written, or would have fewer rows than the one it replaces.
        """
        return report_row(self._write(frame, Target.from_json(text)))

    def known_row(self, text: str) -> dict[str, Any] | None:
        """What `row` gave when it wrote the file; None if the file is not there, or is another's."""
        target = Target.from_json(text)
        footer = read_footer(target.path, self.output.options)
        report = (footer.stored or {}).get("report")
        return report_row(report) if report and is_finished(footer, target.fingerprint) else None

    def _write(self, frame: Any, target: Target) -> dict[str, Any]:
        whole = backend.frame_to_arrow(frame)
        table = conform(whole, self.schema, target.name)
        bad = pc.is_valid(_errors(whole))
        report = report_of(target.name, whole, self.id_col)
        report["dropped"] = report["failed"] if self.output.drop_failed else 0
        report["remarks"] = remarks_on(_urls(whole, target))
        before = read_metadata(target.companion, self.input_options) if target.companion else None
        stored = {
            "fingerprint": "" if self.unfinished else target.fingerprint,
            "complete_as": target.fingerprint,  # what it is once rows that were given up have been tried again
            "id_col": self.id_col,
            "shard": target.shard,
            "dataset": target.dataset,
            # Rows that an earlier run took from the tar are the tar's, also when they were read from its output.
            "source": (before or {}).get("source") or target.source,
            "embeddings": {**self._inherited(before), **self.embeddings},
            "settings": {**((before or {}).get("settings") or {}), **self.settings},
            "remarks": report["remarks"],
            "report": report,
        }
        if is_finished(read_footer(target.path, self.output.options), target.fingerprint):
            # Dask runs a task again when its worker died after writing: to write into the dataset's own file
            # what was made of that file would apply every step twice.
            return report
        if self.output.in_place and not self.output.overwrite:
            self._check_rows_kept(target, len(table))
        failed = table.filter(bad) if self.output.drop_failed else table.slice(0, 0)
        self._write_failed(target, failed, stored)
        if self.output.drop_failed:
            table = table.filter(pc.invert(bad))
        write_table(target.path, table, {**stored, "rows": len(table)}, self.output.options)
        return report

    def _inherited(self, before: dict[str, Any] | None) -> dict[str, Any]:
        """What made the embeddings that came with the shard's rows and are written unchanged."""
        found = (before or {}).get("embeddings", {})
        return {name: info for name, info in found.items() if name in self.schema.names}

    def _write_failed(self, target: Target, table: pa.Table, stored: Mapping[str, Any]) -> None:
        errors = join(self.output.folder, f"{ERRORS_FOLDER}/{target.name}.parquet")
        if len(table):
            write_table(errors, table, stored, self.output.options)
        elif exists(errors, self.output.options):
            remove(errors, self.output.options)  # left by an earlier run in which more failed, or went there

    def _check_rows_kept(self, target: Target, rows: int) -> None:
        before = read_footer(target.path, self.output.options).rows
        if before > rows:
            raise OutputError(
                f"{target.path} has {before} rows and would be replaced by one with {rows}. Rows were filtered: give"
                " save_metadata another path, or overwrite=True to drop them from the dataset's own files"
            )


def _urls(table: pa.Table, target: Target) -> list[str]:
    """The shards that a partition came from."""
    found = pc.unique(table.column(URL_COLUMN)).to_pylist() if URL_COLUMN in table.column_names else []
    return [url for url in {*found, (target.shard or {}).get("url")} if url is not None]


def report_row(report: Mapping[str, Any]) -> dict[str, Any]:
    """A report as the row of a table: ``target`` is JSON."""
    return {"target": json.dumps(report)}


def failure_row(reason: str) -> dict[str, Any]:
    """The row in the place of the report of a partition that failed."""
    return report_row({BROKEN: reason})


def report_frame(report: Mapping[str, Any]) -> pd.DataFrame:
    """A report as a partition that Dask can carry: one row, whose column ``target`` is JSON."""
    return target_frame(json.dumps(report))


def target_frame(text: str) -> pd.DataFrame:
    """A target, as JSON, as a partition that Dask can carry."""
    return pd.DataFrame({"target": [text]}, dtype="str")


def report_of(name: str, table: pa.Table, id_col: str) -> dict[str, Any]:
    """Counts of rows by what became of their images, as `SaveSummary.add` takes them.

    Parameters
    ----------
    name
        Of the partition.
    table
        Its rows.
    id_col
        Column of the keys.
    """
    errors = _errors(table)
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
        "dropped": 0,
        "reasons": dict(reasons),
        "examples": examples,
        "remarks": {},
    }


def _errors(table: pa.Table) -> pa.ChunkedArray | pa.Array:
    has_errors = ERROR_COLUMN in table.column_names
    return table.column(ERROR_COLUMN) if has_errors else pa.nulls(len(table), pa.string())
