"""Export: the samples of chosen rows go into new tars, every member byte for byte, but for images made smaller.

First the rows are there as Parquet: those of an output, or what a frame comes to. Then each of these files is asked for
its samples (`selecting`). Then it is decided which go where (`splitting`, `sharding`), and each new tar is written by a
task of its own (`packing`); `export_run` has these done. What is known on the way, and of which tar each sample is, is
beside the tars, not among them: in a folder of their name and ``.export``.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import dask.dataframe as dd

from curator_dask.cluster.setup import OpenWorkers, when_needed
from curator_dask.errors import ConfigError, OutputError
from curator_dask.frames.names import URL_COLUMN
from curator_dask.frames.parquet import read_record
from curator_dask.frames.record import inputs_of
from curator_dask.outputs.card import Making
from curator_dask.outputs.encoded import Encoded
from curator_dask.outputs.export_columns import schema_of
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.export_place import ExportPlace
from curator_dask.outputs.export_run import ExportRun
from curator_dask.outputs.export_summary import ExportSummary
from curator_dask.outputs.given import given_files
from curator_dask.outputs.parquet import ParquetSink
from curator_dask.outputs.placing import locate
from curator_dask.outputs.planning import name_of
from curator_dask.outputs.removed import DUPLICATES, check_removed
from curator_dask.outputs.saving import check_apart, check_writable
from curator_dask.outputs.selecting import Folder, stop_at
from curator_dask.outputs.whole_samples import check_kind
from curator_dask.outputs.writing import Output
from curator_dask.runs.filtering import some_columns
from curator_dask.runs.groups import Layout
from curator_dask.runs.parts import Part
from curator_dask.runs.run import run
from curator_dask.runs.sink import Job, Plan
from curator_dask.runs.step import Step
from curator_dask.storage import Options, absolute, is_remote, join
from curator_dask.words import some_of_these


def export_output(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    options: ExportOptions | None = None,
    *,
    id_col: str = "key",
    storage_options: Options = None,
    output_storage_options: Options = None,
    shard_storage_options: Options = None,
    workers: OpenWorkers = contextlib.nullcontext,
    making: Making | None = None,
    part: tuple[int, int] | str | None = None,
) -> ExportSummary:
    """Write the samples of an output's rows into new tars.

    Parameters
    ----------
    path
        What `save_metadata`, ``curator-dask embed`` or ``filter`` wrote, or other Parquet files with the columns of
        keys and ``__url__``.
    output
        Where the tars go.
    options
        Which samples, and how.
    id_col
        Column of the keys, where files do not say it.
    storage_options, output_storage_options, shard_storage_options
        For fsspec, where `path`, `output`, and the tars that the rows are of, are URLs; without the others the first
        are those of all.
    workers
        Opens the cluster to work on, once there is something to do; else it is the one that is there.
    making
        What came before the export, for a card.
    part
        Write one part of the new tars, as ``(3, 8)`` or ``"3/8"``, counted from 0, beside others that write theirs.
        All plan the same, so the rows and the options must be the same. A call without it then finds all tars there,
        or writes what is left, and after that ``sizes.json`` and the card.

    Raises
    ------
    CuratorError
        As of `ImageTextPairDataset.to_webdataset`.
    """
    started = time.monotonic()
    rows = Folder(locate(os.fspath(path), storage_options), storage_options)
    names = given_files(rows.path, rows.options)
    if names == [DUPLICATES]:
        raise OutputError(
            f"{rows.path}: is what dedup wrote, with the rows that go and those that stay for them. Give the folder of"
            " vectors, and this one as without= (--without)"
        )
    given = storage_options if output_storage_options is None else output_storage_options
    target = Folder(locate(os.fspath(output), given), given)
    check_apart(rows.path, target.path)
    options, only = options or ExportOptions(), Part.of_given(part)
    for name in ("dry_run", "append"):
        if only is not None and getattr(options, name):
            raise ConfigError(
                f"part {only} and {name} (--{name.replace('_', '-')}): parts write the tars of a new export. Leave one"
                " out"
            )
    found = schema_of(rows, names)
    options.check_columns(found.empty_table(), found.names)
    if options.samples is not None:
        record = read_record(rows.file(names[0]), rows.options)
        check_kind([record.url] if record is not None and record.url else [], options.is_tables)
    for duplicates in (options.without, options.split_groups):
        if duplicates is not None:
            check_removed(absolute(duplicates, storage_options), storage_options)
    place = ExportPlace(target, only)
    with place.open(options.dry_run), when_needed(workers) as client:
        of_tars = storage_options if shard_storage_options is None else shard_storage_options
        export = ExportRun(place, options, id_col, of_tars, client)
        export.write(rows, names)
        return export.done(started, making=making)


def export_frame(
    frame: dd.DataFrame,
    earlier_steps: Sequence[Step],
    tars: Sequence[str],
    output: str | os.PathLike[str],
    options: ExportOptions,
    *,
    id_col: str,
    input_options: Options = None,
    output_options: Options = None,
    layout: Layout | None = None,
    encoded: Encoded | None = None,
    workers: OpenWorkers = contextlib.nullcontext,
) -> ExportSummary:
    """Compute a frame, and write the samples of its rows into new tars; see `ImageTextPairDataset.to_webdataset`.

    `workers` is as for `export_output`.
    """
    started = time.monotonic()
    names = list(frame.columns)
    wanted = [id_col, URL_COLUMN, *options.names(names), *([] if encoded is None else [encoded.column])]
    if missing := [name for name in wanted if name not in names]:
        raise ConfigError(f"no such columns {missing}; the metadata has {some_of_these(names, missing[0])}")
    options.check_columns(some_columns(frame._meta, options.names(names)), names)
    if options.split_groups is not None:
        check_removed(absolute(options.split_groups))
    if options.samples is not None:
        check_kind(tars[:1], options.is_tables)
    path = os.fspath(output)
    if output_options is None and any(
        path.partition("://")[0] == tar.partition("://")[0] for tar in tars[:1]
    ):
        output_options = input_options
    target = Folder(locate(path, output_options), output_options)
    for folder in {posixpath.dirname(tar) for tar in tars}:
        check_apart(folder, target.path)
    place = ExportPlace(target)
    with place.open(options.dry_run, keep_rows=bool(earlier_steps)), when_needed(workers) as client:
        export = ExportRun(place, options, id_col, input_options, client, encoded)
        sink = _RowsSink(Output(join(place.beside, "rows"), target.options, False, True, False))
        if not is_remote(sink.place):
            check_writable(sink.place)
        # Of sizes, too, what they are of: the record says how that was measured.
        scores = (getattr(step, "scores", {}).get(options.size_column, {}) for step in earlier_steps)
        wanted += [name for score in scores for name in inputs_of(score)]
        kept = [name for name in names if options.metadata is not None or name in wanted]
        summary, _ = run(
            frame,
            earlier_steps,
            sink,
            kept=kept,
            id_col=id_col,
            input_options=input_options,
            layout=layout,
            client=client,
        )
        stop_at(summary.failed_shards, "its rows could not be read")
        export.write(Folder(sink.place, target.options), sink.names)
        return export.done(started, summary.filtered)


@dataclass(frozen=True)
class _RowsSink(ParquetSink):
    """Keeps the names of its files, in the order of the partitions."""

    names: list[str] = field(default_factory=list)

    def plan(self, job: Job) -> Plan:
        plan = super().plan(job)
        self.names[:] = [f"{name_of(job, number)}.parquet" for number in range(len(plan.targets))]
        return plan
