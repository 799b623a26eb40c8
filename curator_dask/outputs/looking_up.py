"""Looking up the samples of all files of rows of an export, where it was not done before."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from curator_dask.outputs.export_place import ExportPlace
from curator_dask.outputs.selecting import FileRows, SelectSamples
from curator_dask.outputs.whole_samples import check_together
from curator_dask.runs.parts import part_of
from curator_dask.runs.settle import file_tasks, run_targets
from curator_dask.runs.summary import SaveSummary
from curator_dask.runs.targets import Target
from curator_dask.threads import in_threads

if TYPE_CHECKING:
    from distributed import Client


def look_up(
    select: SelectSamples,
    asked: Sequence[FileRows],
    place: ExportPlace,
    client: Callable[[], Client | None],
    summary: SaveSummary,
) -> dict[str, Mapping[str, Any]]:
    """The reports on the files, by name, in their order; those that fail are in the summary alone.

    Parameters
    ----------
    select
        Looks up the samples of one.
    asked
        The files. A part begins with its own, and goes on with those of the parts behind it: of what parts that began
        together have done meanwhile, little is done twice.
    place
        Of the export.
    client
        Gives that of the cluster.
    summary
        Where to count.
    """
    known = in_threads(select.known, asked)
    reports = {each.name: report for each, report in zip(asked, known, strict=True) if report is not None}
    for report in reports.values():
        summary.add(report)
    todo = [each for each in asked if each.name not in reports]
    if (part := place.part) is not None:
        todo.sort(
            key=lambda each: (part_of(each.name.removesuffix(".parquet"), part.of) - part.number) % part.of
        )

    def take(number: int, row: Mapping[str, Any]) -> None:
        reports[todo[number].name] = json.loads(row["target"])

    if todo:
        connected = client()
        targets = [Target.of_file(select.target.path, each.name) for each in todo]
        tasks = file_tasks(select, todo, "select-samples", connected)
        run_targets(tasks, connected, targets, summary, take, held=place.check_held)
    check_together(reports)
    return {each.name: reports[each.name] for each in asked if each.name in reports}
