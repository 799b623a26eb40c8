"""Trying the failed rows of an output again, and only these.

What `save_metadata` wrote says all that is needed: each row its shard and key, each file what made its vectors.
So the dataset that it came from need not be given again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask import backend
from curator_dask.cluster.workers import current_client, set_up_workers
from curator_dask.errors import OutputError, ShardError
from curator_dask.frames.names import ERROR_COLUMN, URL_COLUMN
from curator_dask.frames.parquet import Footer, conform, open_parquet, read_footer, write_table
from curator_dask.outputs.lock import RunLock
from curator_dask.outputs.planning import describe_difference, list_files
from curator_dask.outputs.saving import locate
from curator_dask.outputs.writing import ERRORS_FOLDER, Output
from curator_dask.runs.describing import describe
from curator_dask.runs.lineage import map_items
from curator_dask.runs.reports import report_frame, report_of
from curator_dask.runs.settle import run_targets
from curator_dask.runs.state import clear_stages
from curator_dask.runs.summary import SaveSummary
from curator_dask.runs.targets import Target
from curator_dask.storage import Options, exists, is_remote, join, local_path, remove
from curator_dask.threads import in_threads
from curator_dask.webdataset.shards import stamp


@dataclass(frozen=True)
class RetryFile:
    """Embeds the failed rows of one file again and writes it anew, where any has a vector now.

    Attributes
    ----------
    step
        The embedder's `EmbedPartition`.
    output
        Where the files are.
    """

    step: Any
    output: Output

    def __call__(self, name: str) -> pd.DataFrame:
        """Do it; returns a report as `WritePartition` does, of the rows that were tried.

        Raises
        ------
        ShardError
            The shard cannot be read, or has changed since the file was written.
        """
        path = join(self.output.folder, f"{name}.parquet")
        errors_path = join(self.output.folder, f"{ERRORS_FOLDER}/{name}.parquet")
        table, stored = _read(path, self.output.options)
        stored.pop("report", None)  # of the rows as they were
        _check_shard(path, table, stored, self.step.storage_options)
        kept, dropped = table.slice(0, 0), table.slice(0, 0)
        if exists(errors_path, self.output.options):
            aside = _without(_read(errors_path, self.output.options)[0], table, self.step.id_col)
            lacking = pc.is_null(aside.column(self.step.column))
            kept, dropped = aside.filter(pc.invert(lacking)), aside.filter(lacking)
        bad = pc.indices_nonzero(pc.is_null(table.column(self.step.column)))
        tried = pa.concat_tables([table.take(bad), dropped])
        done = backend.frame_to_arrow(self.step(backend.current().from_arrow(tried)))
        done = conform(done, tried.schema.remove_metadata(), name)
        failed = done.filter(pc.is_null(done.column(self.step.column)))
        report = {**report_of(name, failed, self.step.id_col), "rows": len(done)}
        mended, again = done.slice(0, len(bad)), done.slice(len(bad))
        # What was dropped is good when nothing is wrong with it, in another embedding's eyes either.
        good = pc.is_null(again.column(ERROR_COLUMN))
        table = pa.concat_tables([_replaced(table, bad, mended), again.filter(good)])
        if not any(str(reason).startswith("gave up") for reason in table.column(ERROR_COLUMN).to_pylist()):
            stored["fingerprint"] = stored.get("complete_as") or stored["fingerprint"]
        # In this order a death in between leaves rows in both places, and `_without` forgives that; never in none.
        write_table(path, table, {**stored, "rows": len(table)}, self.output.options)
        left = pa.concat_tables([kept, again.filter(pc.invert(good))])
        if len(left):
            write_table(errors_path, left, stored, self.output.options)
        elif exists(errors_path, self.output.options):
            remove(errors_path, self.output.options)
        return report_frame(report)


def retry(
    path: str,
    column: str,
    make_step: Callable[[str, Sequence[str]], Any],
    options: Options = None,
) -> SaveSummary:
    """Embed the failed rows of an output again; see `ImageEmbedder.retry`.

    Parameters
    ----------
    path
        Of the output.
    column
        The embedding.
    make_step
        Makes the step that embeds, given the column of the keys and the other embeddings of the output.
    options
        For fsspec, of the output.
    """
    started = time.monotonic()
    output = _output(path, options)
    client = current_client()
    if client is not None:
        set_up_workers(client)
    summary = SaveSummary(output.folder, again=True)
    if not list_files(output):
        raise _nothing_there(output, column)
    try:
        with RunLock(output.folder, options):
            stored, targets, remarks = _find(output, column)
            summary.add_remarks(remarks)
            if targets:
                others = [name for name in stored["embeddings"] if name != column]
                step = make_step(stored["id_col"], others)
                made = describe(step, client)
                difference = describe_difference(stored["embeddings"][column], made)
                if difference:
                    raise OutputError(
                        f"{output.folder}: column {column!r} {difference}: retry with the same model"
                    )
                summary.startup_seconds = time.monotonic() - started
                retry_file = RetryFile(step, output)
                frame = map_items(retry_file, [it.name for it in targets], report_frame({}), "retry-file")
                run_targets(frame, client, targets, summary, apart=True)
    finally:
        clear_stages(client)
    summary.seconds = time.monotonic() - started
    print(summary)
    return summary


def find_settings(path: str, options: Options = None) -> dict[str, dict[str, Any]]:
    """By column, the arguments of the embedder that made an output, for those that JSON can hold.

    Raises
    ------
    OutputError
        No file there was written by curator_dask.
    """
    output = _output(path, options)
    for file in sorted(list_files(output)):
        stored = read_footer(file, options).stored
        if stored is not None:
            return {name: found for name, found in (stored.get("settings") or {}).items() if found}
    raise OutputError(f"{path}: no file of curator_dask's is there. Give the folder that embed wrote to")


def _output(path: str, options: Options) -> Output:
    return Output(locate(path, options), options, in_place=False, overwrite=False, drop_failed=False)


def _find(output: Output, column: str) -> tuple[dict[str, Any], list[Target], dict[str, Any]]:
    """What made the column, the files with failed rows, and what was noticed of all shards."""
    files = sorted(list_files(output))
    footers = in_threads(lambda path: read_footer(path, output.options), files)
    mine = {path: footer for path, footer in zip(files, footers, strict=True) if _has(footer, column)}
    if not mine:
        raise _nothing_there(output, column)
    for path, footer in mine.items():
        needed = [(footer.stored or {}).get("id_col"), URL_COLUMN, ERROR_COLUMN]
        lacking = [name for name in needed if name not in footer.columns]
        if lacking:
            raise OutputError(
                f"{path}: has no columns {lacking}, by which failed rows and their images are found. Only an output"
                " with them can be retried: run embed again, with overwrite"
            )
    made = [footer.stored or {} for footer in mine.values()]
    for other in made:
        difference = describe_difference(made[0]["embeddings"][column], other["embeddings"][column])
        if difference:
            raise OutputError(
                f"{output.folder}: the files do not have one model: column {column!r} {difference}"
            )
    names = {path: path.removeprefix(output.folder).lstrip("/").removesuffix(".parquet") for path in mine}
    with_errors = {
        name.removeprefix(f"{ERRORS_FOLDER}/") for name in names.values() if name.startswith(ERRORS_FOLDER)
    }
    paths = [path for path in mine if not names[path].startswith(f"{ERRORS_FOLDER}/")]
    failed = in_threads(lambda path: _has_failed(path, output.options), paths)
    targets = [
        Target(names[path], path, "", (mine[path].stored or {}).get("shard"), None, None)
        for path, has_failed in zip(paths, failed, strict=True)
        if has_failed or names[path] in with_errors
    ]
    remarks = {url: facts for other in made for url, facts in (other.get("remarks") or {}).items()}
    return made[0], targets, remarks


def _nothing_there(output: Output, column: str) -> OutputError:
    return OutputError(
        f"{output.folder}: no file there has a column {column!r} that curator_dask made. Give the folder that"
        " save_metadata (or embed) wrote to, and the name of the column"
    )


def _has(footer: Footer, column: str) -> bool:
    return footer.stored is not None and column in footer.stored.get("embeddings", {})


def _has_failed(path: str, options: Options) -> bool:
    """Whether a row has an ``image_error``, by the footer alone where that says it."""
    with open_parquet(path, options) as file:
        # Columns of a footer are counted by their leaves; a list's stand before it.
        leaves = [file.metadata.schema.column(number).path for number in range(file.metadata.num_columns)]
        column = leaves.index(ERROR_COLUMN)
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        counts = [group.column(column).statistics for group in groups if group.num_rows]
        if any(count is None or not count.has_null_count for count in counts):
            return bool(file.read(columns=[ERROR_COLUMN]).column(0).drop_null())
        return sum(count.null_count for count in counts) < file.metadata.num_rows


def _read(path: str, options: Options) -> tuple[pa.Table, dict[str, Any]]:
    stored = read_footer(path, options).stored
    try:
        with open_parquet(path, options) as file:
            table = file.read()
    except Exception as error:  # a store's own, of many types
        raise ShardError(f"{path}: cannot be read: {error!r}") from error
    return table.replace_schema_metadata(None), stored or {}


def _without(table: pa.Table, other: pa.Table, id_col: str) -> pa.Table:
    """The rows of one table that the other has not: a retry that died may have left them in both."""
    columns = [URL_COLUMN, id_col]
    there = set(zip(*(other.column(name).to_pylist() for name in columns), strict=True))
    rows = zip(*(table.column(name).to_pylist() for name in columns), strict=True)
    return table.filter(pa.array([row not in there for row in rows], pa.bool_()))


def _check_shard(path: str, table: pa.Table, stored: Mapping[str, Any], options: Options) -> None:
    """Raise ShardError where a shard is another than the one that was embedded, as far as that can be told."""
    shard = stored.get("shard")
    if shard:
        changed = (
            [shard["url"]] if shard.get("tar") and vars(stamp(shard["url"], options)) != shard["tar"] else []
        )
    elif is_remote(path):
        changed = []
    else:  # of mixed partitions it is not written down, but no shard can be younger than the file
        made = int(stamp(path).version)
        urls = [url for url in pc.unique(table.column(URL_COLUMN)).to_pylist() if url and not is_remote(url)]
        changed = [url for url in urls if int(stamp(local_path(url)).version) > made]
    if changed:
        raise ShardError(
            f"{changed[0]}: the shard has changed since it was embedded: run embed again, which makes this file anew"
        )


def _replaced(table: pa.Table, rows: pa.Array, by: pa.Table) -> pa.Table:
    """The table with other rows in some places."""
    order = np.arange(len(table))
    order[np.asarray(rows)] = len(table) + np.arange(len(by))
    return pa.concat_tables([table, by]).take(pa.array(order))
