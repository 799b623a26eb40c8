"""Running the tasks that write an output's files: what each one came to, and what kills workers."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import dask.dataframe as dd
import pandas as pd

from curator_dask.cluster.interrupts import heard
from curator_dask.cluster.progress import Meter, watch
from curator_dask.cluster.workers import ResultLost, WorkersDied
from curator_dask.errors import ClusterError, CuratorError, ShardError
from curator_dask.runs.execute import run_alone, run_partitions, run_pieces
from curator_dask.runs.groups import Groups
from curator_dask.runs.lineage import map_items, replace_functions
from curator_dask.runs.reports import BROKEN, report_frame
from curator_dask.runs.summary import SaveSummary
from curator_dask.runs.targets import Target, TargetTexts, target_frame

if TYPE_CHECKING:
    from distributed import Client

#: Shards that killed their workers, with none finished, after which it is not the shards.
HOPELESS = 6


def run_targets(
    written: dd.DataFrame,
    client: Client | None,
    targets: Sequence[Target],
    summary: SaveSummary,
    apart: bool,
    *,
    groups: Groups | None = None,
    resources: Mapping[str, float] | None = None,
    take: Callable[[int, Mapping[str, Any]], None] | None = None,
) -> None:
    """Write the files of all targets and count; what kills workers is tried again alone, then given up.

    Parameters
    ----------
    written
        Frame with a partition a target, whose partitions are reports (`writing.report_frame`).
    client
        Of the cluster; None runs in this process.
    targets
        Of the partitions, for their names.
    summary
        Where to count.
    apart
        The partitions share no work.
    groups
        The same work with several targets a task; only where the partitions are `apart`.
    resources
        Of a worker, that a task takes (`distributed`'s, such as ``{"GPU": 0.25}``).
    take
        Called with the number of each target that is done, and the row of its report.

    Raises
    ------
    ClusterError
        Workers die on all that is given to them, or the cluster is gone.
    CuratorError
        What would happen to every shard, such as an output that cannot be written.
    """
    meter = Meter(len(targets))
    suspects: list[int] = []
    failed: list[int] = []  # with their groups
    deaths = 0
    results: Generator[tuple[Sequence[int], Any], None, None] = (
        run_pieces(groups.next_piece, client, resources)
        if groups is not None
        else (([number], result) for number, result in run_partitions(written, client, apart, resources))
    )

    def settle(number: int, result: Any) -> None:
        row = _only_row(result) if isinstance(result, pd.DataFrame) else result
        if _settle(targets[number], row, meter, summary) and take is not None:
            take(number, row)

    # Closed at once also where an error ends the run, whose traceback would keep its tasks on the cluster.
    with heard(), watch(meter, client), contextlib.closing(results):
        for members, result in results:
            if isinstance(result, WorkersDied | ResultLost) and apart:
                suspects += members
                deaths += 1
                if deaths >= HOPELESS and not meter.done:
                    raise ClusterError(
                        f"workers died while working on {_names(suspects, targets)}, and no shard was finished."
                        f" {_WHY}"
                    )
            elif groups is not None and isinstance(result, list):
                for member, row in zip(members, result, strict=False):
                    settle(member, row)
                groups.give_back(members[len(result) :], together=len(result) > 1)
            elif len(members) > 1 and client is not None and not isinstance(result, CuratorError):
                failed += members
            else:
                for member in members:
                    settle(member, result)
        if client is None or not (suspects or failed):
            return
        if suspects:
            print(
                f"workers died while working on {_names(suspects, targets)}: tried again one by one, to see which of"
                " them it is",
                file=sys.stderr,
                flush=True,
            )
        if groups is not None:  # most of a group's shards are innocent: each by itself, but side by side
            alone, suspects = groups.one_by_one([*suspects, *failed]), []
            with contextlib.closing(run_pieces(alone.next_piece, client, resources)) as single:
                for (member,), result in single:
                    if isinstance(result, WorkersDied | ResultLost):
                        suspects.append(member)
                    else:
                        settle(member, result[0] if isinstance(result, list) else result)
        for number in suspects:
            result = run_alone(written, number, client, resources)
            if isinstance(result, WorkersDied):
                result = run_alone(_giving_up(written, result), number, client, resources)
            settle(number, result)


_WHY = (
    "Look at the workers' logs: most often it is memory; fewer workers (n_workers) leave more for each, and a smaller"
    " batch_size needs less. Run again then: finished files are kept"
)


def _names(numbers: Sequence[int], targets: Sequence[Target]) -> str:
    return ", ".join(targets[number].name for number in numbers)


def _only_row(frame: pd.DataFrame) -> dict[str, Any]:
    return {name: frame[name].iloc[0] for name in frame.columns}


def _settle(target: Target, result: Any, meter: Meter, summary: SaveSummary) -> bool:
    """Count what a target came to, the row of its report or an exception; whether it is done."""
    report = json.loads(result["target"]) if isinstance(result, dict) else {}
    if BROKEN in report:
        summary.failed_shards[target.name] = report[BROKEN]
        meter.broken += 1
    elif report:
        summary.add(report)
        meter.finish(report["rows"])
    elif isinstance(result, CuratorError) and not isinstance(result, ShardError):
        raise result  # it would happen to every shard
    else:
        reason = str(result) if isinstance(result, CuratorError) else f"{type(result).__name__}: {result}"
        summary.failed_shards[target.name] = reason
        meter.broken += 1
    return bool(report) and BROKEN not in report


@runtime_checkable
class GivesUp(Protocol):
    """What is done to a partition, and can be given up."""

    def give_up(self, reason: str) -> Any:
        """The same, without the work that kills workers: rows get the reason in the place of what it makes."""


def _giving_up(written: dd.DataFrame, error: WorkersDied) -> dd.DataFrame:
    """The same files, with null vectors and the reason in place of what kills workers; a rerun tries again."""

    def change(function: Any) -> Any:
        return function.give_up(f"gave up: {error}") if isinstance(function, GivesUp) else function

    return replace_functions(written, change)


def write_graph(
    frame: dd.DataFrame,
    targets: Sequence[Target],
    todo: Sequence[int],
    write: Callable[[Any, pd.DataFrame], pd.DataFrame],
    meta: pd.DataFrame | None = None,
) -> dd.DataFrame:
    """The lazy frame whose partitions write the targets with the numbers `todo` and report on them."""
    assert frame.npartitions == len(targets), (frame.npartitions, len(targets))
    picked = frame if len(todo) == len(targets) else frame.partitions[todo]
    texts = TargetTexts([targets[number] for number in todo])
    return dd.map_partitions(
        write,
        picked,
        map_items(target_frame, texts, report_frame({}), "target"),
        meta=report_frame({}) if meta is None else meta,
        align_dataframes=False,
        enforce_metadata=False,
    )
