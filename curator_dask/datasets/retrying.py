"""Trying the failed rows of an output again, and only these.

What `save_metadata` wrote says all that is needed: each row its shard and key, each file what made its vectors.
So the dataset that it came from need not be given again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask import backend
from curator_dask.datasets.planning import describe_difference, list_files
from curator_dask.datasets.runlock import RunLock
from curator_dask.datasets.running import current_client, in_threads, set_up_workers
from curator_dask.datasets.saving import clear_stages, describe
from curator_dask.datasets.summary import SaveSummary
from curator_dask.datasets.targets import run_targets
from curator_dask.datasets.writing import ERROR_COLUMN, ERRORS_FOLDER, Output, Target, report_frame, report_of
from curator_dask.errors import OutputError, ShardError
from curator_dask.frames.parquet import Footer, conform, open_parquet, read_footer, write_table
from curator_dask.storage import Options, absolute, exists, join, remove
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
        _check_shard(stored, self.step.storage_options)
        dropped = table.slice(0, 0)
        if exists(errors_path, self.output.options):
            dropped, _ = _read(errors_path, self.output.options)
        bad = pc.indices_nonzero(pc.is_null(table.column(self.step.column)))
        tried = pa.concat_tables([table.take(bad), dropped])
        done = backend.frame_to_arrow(self.step(backend.current().from_arrow(tried)))
        done = conform(done, tried.schema.remove_metadata(), name)
        report = report_of(name, done, self.step.id_col)
        mended, again = done.slice(0, len(bad)), done.slice(len(bad))
        good = pc.is_valid(again.column(self.step.column))
        table = pa.concat_tables([_replaced(table, bad, mended), again.filter(good)])
        if not any(str(reason).startswith("gave up") for reason in table.column(ERROR_COLUMN).to_pylist()):
            stored["fingerprint"] = stored.get("complete_as") or stored["fingerprint"]
        write_table(path, table, {**stored, "rows": len(table)}, self.output.options)
        left = again.filter(pc.invert(good))
        if len(left):
            write_table(errors_path, left, stored, self.output.options)
        elif len(dropped):
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
    output = Output(absolute(path, options), options, in_place=False, overwrite=False, drop_failed=False)
    client = current_client()
    if client is not None:
        set_up_workers(client)
    summary = SaveSummary(output.folder, again=True)
    if not list_files(output):
        raise _nothing_there(output, column)
    try:
        with RunLock(output.folder, options):
            stored, targets, summary.skipped = _find(output, column)
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
                frame = dd.from_map(
                    RetryFile(step, output), [it.name for it in targets], meta=report_frame({})
                )
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
    output = Output(absolute(path, options), options, in_place=False, overwrite=False, drop_failed=False)
    for file in sorted(list_files(output)):
        stored = read_footer(file, options).stored
        if stored is not None:
            return {name: found for name, found in (stored.get("settings") or {}).items() if found}
    raise OutputError(f"{path}: no file of curator_dask's is there. Give the folder that embed wrote to")


def _find(output: Output, column: str) -> tuple[dict[str, Any], list[Target], int]:
    """What made the column, the files with failed rows, and the number of those without."""
    files = sorted(list_files(output))
    footers = in_threads(lambda path: read_footer(path, output.options), files)
    mine = {path: footer for path, footer in zip(files, footers, strict=True) if _has(footer, column)}
    if not mine:
        raise _nothing_there(output, column)
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
    return made[0], targets, len(paths) - len(targets)


def _nothing_there(output: Output, column: str) -> OutputError:
    return OutputError(
        f"{output.folder}: no file there has a column {column!r} that curator_dask made. Give the folder that"
        " save_metadata (or embed) wrote to, and the name of the column"
    )


def _has(footer: Footer, column: str) -> bool:
    return footer.stored is not None and column in footer.stored.get("embeddings", {})


def _has_failed(path: str, options: Options) -> bool:
    """Whether a row has an ``image_error``, by the footer alone."""
    with open_parquet(path, options) as file:
        # Columns of the file are counted by their leaves; a list's stand before it.
        leaves = [file.metadata.schema.column(number).path for number in range(file.metadata.num_columns)]
        column = leaves.index(ERROR_COLUMN)
        groups = (file.metadata.row_group(number) for number in range(file.num_row_groups))
        return any(group.column(column).statistics.null_count < group.num_rows for group in groups)


def _read(path: str, options: Options) -> tuple[pa.Table, dict[str, Any]]:
    stored = read_footer(path, options).stored
    try:
        with open_parquet(path, options) as file:
            table = file.read()
    except Exception as error:  # a store's own, of many types
        raise ShardError(f"{path}: cannot be read: {error!r}") from error
    return table.replace_schema_metadata(None), stored or {}


def _check_shard(stored: Mapping[str, Any], options: Options) -> None:
    shard = stored.get("shard")
    if shard and shard.get("tar") and vars(stamp(shard["url"], options)) != shard["tar"]:
        raise ShardError(
            f"{shard['url']}: the shard has changed since it was embedded: run embed again, which makes this file anew"
        )


def _replaced(table: pa.Table, rows: pa.Array, by: pa.Table) -> pa.Table:
    """The table with other rows in some places."""
    order = np.arange(len(table))
    order[np.asarray(rows)] = len(table) + np.arange(len(by))
    return pa.concat_tables([table, by]).take(pa.array(order))
