"""Samples that are left out of a new tar while it is written: which, and why, in a file beside the manifest."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import write_table
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.choosing import read_rows
from curator_dask.outputs.removed import read_duplicates
from curator_dask.outputs.selecting import Folder
from curator_dask.outputs.splits import SplitCount
from curator_dask.rows.remarks import EXAMPLES
from curator_dask.storage import Options, join, remove, walk
from curator_dask.webdataset.samples import key_text

#: The folder of these files; and in a report, how many samples there are.
UNBLURRED = "unblurred"


class Counts(Protocol):
    """Those of `curator_dask.outputs.export_summary.ExportSummary` that samples are taken out of."""

    kept: int
    missing: int
    fields: Counter[str]
    errors: Counter[str]
    no_vector: Counter[str]
    broken_vector: Counter[str]
    no_image: int
    members_left: Counter[str]
    reasons: Counter[str]
    examples: dict[str, list[str]]


def put_left_out(manifest: Folder, name: str, reasons: Mapping[int, str], samples: pa.Table) -> None:
    """Say beside the manifest which samples of a tar are not in it; or remove what another export has said.

    Parameters
    ----------
    manifest, name
        Where the manifest is, and the name of the tar.
    reasons
        Why samples are left out, by their numbers in `samples`.
    samples
        That were to be in the tar.
    """
    folder = Folder(join(posixpath.dirname(manifest.path), UNBLURRED), manifest.options)
    numbers = sorted(reasons)
    if not numbers:
        remove(folder.file(f"{name}.parquet"), folder.options)
        return
    some = samples.take(pa.array(numbers, pa.int64()))
    old = keys_before(some)
    table = pa.table(
        {
            "shard": pa.array([name] * len(numbers), pa.string()),
            "source_shard": some.column("url"),
            "source_key": pa.array(old, pa.string()),
            "reason": pa.array([reasons[number] for number in numbers], pa.string()),
        }
    )
    write_table(folder.file(f"{name}.parquet"), table, FileRecord(""), folder.options)


def keys_before(samples: pa.Table) -> list[str]:
    """The keys that samples have in their source, to be shown."""
    keys = samples.column("source_key").to_pylist()
    return [key_text(key.decode("utf-8", "surrogateescape")) for key in keys]


def is_without_file(report: Mapping[str, Any]) -> bool:
    """Whether there is no file of what a report is on, as none of its samples is left."""
    return not (report["rows"] or report["bytes"])


def take_out(summary: Counts, lost: Mapping[str, Any], parts: Iterable[SplitCount]) -> None:
    """Count samples that were to be in a tar, and are not, with those of its split and its value."""
    summary.kept -= lost["samples"]
    summary.missing += lost["samples"]
    for part in parts:
        part.samples -= lost["samples"]
    summary.fields.subtract(lost["fields"])
    summary.errors.subtract(lost.get("errors", {}))
    for suffix, counts in lost.get("vectors", {}).items():
        summary.fields.subtract({suffix: counts["members"]})
        summary.no_vector.subtract({suffix: counts["null"] + counts["broken"]})
        summary.broken_vector.subtract({suffix: counts["broken"]})
    if pictures := lost.get("pictures"):
        summary.no_image -= pictures["none"]
        summary.members_left.subtract(pictures["left"])
    summary.fields, summary.errors, summary.members_left = (
        +summary.fields,
        +summary.errors,
        +summary.members_left,
    )
    summary.reasons.update(lost["reasons"])
    for kind, some in lost["examples"].items():
        known = summary.examples.setdefault(kind, [])
        known += some[: EXAMPLES - len(known)]


def twins_lost(left_out: Folder, duplicates: str, options: Options = None) -> int:
    """How many rows have gone for a better twin that is left out itself: nothing of such a group is exported.

    Parameters
    ----------
    left_out
        The folder of the files that say which samples are.
    duplicates, options
        That of the table of duplicates, for fsspec.
    """
    names = [name for name in walk(left_out.path, left_out.options) if name.endswith(".parquet")]
    columns = ["source_shard", "source_key"]
    gone = [read_rows(left_out.file(name), left_out.options, columns) for name in names]
    lost = {
        pair for table in gone for pair in zip(*(table[each].to_pylist() for each in columns), strict=True)
    }
    if not lost:
        return 0
    table = read_duplicates(duplicates, [URL_COLUMN, "id", "group", "kept"], options)
    stays = table.filter(table["kept"])
    pairs = zip(stays[URL_COLUMN].to_pylist(), stays["id"].to_pylist(), strict=True)
    is_lost = pa.array([pair in lost for pair in pairs], pa.bool_())
    without = pc.is_in(table["group"], stays.filter(pc.invert(is_lost))["group"].unique())
    with_lost = pc.is_in(table["group"], stays.filter(is_lost)["group"].unique())
    found = pc.and_(pc.and_(with_lost, pc.invert(without)), pc.invert(table["kept"]))
    return int(pc.sum(found).as_py() or 0)
