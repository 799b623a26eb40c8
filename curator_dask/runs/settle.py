"""Running the tasks that write an output's files: what each one came to, and what kills workers."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import dask.dataframe as dd
import pandas as pd

from curator_dask.cluster.interrupts import heard
from curator_dask.cluster.progress import Meter, watch
from curator_dask.cluster.workers import FETCHES, HandedBack, NotTaken, ResultLost, WorkersDied
from curator_dask.errors import ClusterError, CuratorError, ShardError
from curator_dask.rows.reasons import GAVE_UP
from curator_dask.runs.blaming import told
from curator_dask.runs.execute import Hands, picked, run_alone, run_partitions, run_pieces
from curator_dask.runs.fit import Fit
from curator_dask.runs.graph import map_items, unfused
from curator_dask.runs.groups import Groups
from curator_dask.runs.reports import BROKEN, report_frame
from curator_dask.runs.summary import SaveSummary
from curator_dask.runs.targets import Target, TargetTexts, target_frame

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger("curator_dask")

#: Shards that killed their workers, with none finished, after which it is not the shards.
HOPELESS = 6

#: Numbers of targets, and what their task came to: a list of rows, of the first of them at least, or an exception.
Result = tuple[Sequence[int], Any]


class Named(Protocol):
    """What a task does: a target, or the range of a shard that goes into it."""

    @property
    def name(self) -> str:
        """What messages call it."""


class Tasks(Protocol):
    """The tasks of a run: how its targets are done."""

    def run(self) -> Generator[Result, None, None]:
        """Do all of them."""

    def again(self, numbers: Sequence[int]) -> Generator[Result, None, None]:
        """Those of them that can be told apart side by side, each in a task of its own; of the others nothing."""

    def alone(self, number: int) -> Any:
        """One of them, while nothing else of this run is on the cluster.

        When a worker dies, Dask counts that against every task that it held (distributed#1469, #2694): what ends
        with `WorkersDied` among others may be innocent, what does so alone is not.
        """

    def given_up(self, number: int, reason: str) -> Any:
        """One of them, without the work that kills workers: its rows get the reason."""


class ShardTasks:
    """Each task does one or several shards, from the range to the finished target.

    Parameters
    ----------
    make_groups
        Given why what kills workers is given up, or None, makes the groups.
    client
        Of the cluster; None does the work in this process.
    resources
        Of a worker, that a task takes.
    ready
        See `Hands`.
    """

    def __init__(
        self,
        make_groups: Callable[[str | None], Groups],
        client: Client | None,
        resources: Mapping[str, float] | None = None,
        ready: Collection[str] | None = None,
    ) -> None:
        self._make_groups, self._client, self._resources = make_groups, client, resources
        self._groups = make_groups(None)
        self._hands = None if client is None else Hands(client, ready)

    def run(self) -> Generator[Result, None, None]:
        """Do all of them; what a group has had no time for, or was not begun, is handed out again."""
        with contextlib.closing(self._run(self._groups)) as results:
            for members, result in results:
                if isinstance(result, HandedBack):
                    self._groups.give_back(members, together=True)
                    continue
                yield members, result
                if isinstance(result, list):
                    self._groups.give_back(members[len(result) :], together=len(result) > 1)

    def again(self, numbers: Sequence[int]) -> Generator[Result, None, None]:
        """Some of them, each in a task of its own, side by side."""
        yield from self._run(self._groups.one_by_one(numbers))

    def alone(self, number: int) -> Any:
        """One of them, while nothing else of this run is on the cluster."""
        return self._one(self._groups, number)

    def given_up(self, number: int, reason: str) -> Any:
        """One of them, without the work that kills workers."""
        return self._one(self._make_groups(reason), number)

    def _one(self, groups: Groups, number: int) -> Any:
        for _ in range(FETCHES):
            ((_, result),) = self._run(groups.one_by_one([number]))
            if not isinstance(result, ResultLost):
                break
        return result

    def _run(self, groups: Groups) -> Generator[Result, None, None]:
        yield from run_pieces(groups.next_piece, self._client, self._resources, hands=self._hands)


class FrameTasks:
    """The tasks of a frame whose partitions were mixed, or may know their number: Dask lays them out.

    Parameters
    ----------
    written
        Frame with a partition a target, whose partitions are reports (`report_frame`).
    giving_up
        The same, given why what kills workers is given up.
    apart
        The partitions share no work.
    client, resources, ready
        As for `ShardTasks`.
    """

    def __init__(
        self,
        written: dd.DataFrame,
        giving_up: Callable[[str], dd.DataFrame],
        apart: bool,
        client: Client | None,
        resources: Mapping[str, float] | None = None,
        ready: Collection[str] | None = None,
    ) -> None:
        self._written, self._giving_up, self._apart = written, giving_up, apart
        self._client, self._resources = client, resources
        self._hands = Hands(client, ready) if client is not None and apart else None

    def run(self) -> Generator[Result, None, None]:
        """Compute all partitions; what was not begun is handed out again."""
        frame, numbers = self._written, [*range(self._written.npartitions)]
        while numbers:
            handed_back = []
            results = run_partitions(frame, self._client, self._apart, self._resources, self._hands)
            with contextlib.closing(results):
                for position, result in results:
                    if isinstance(result, HandedBack) and self._apart:
                        handed_back.append(numbers[position])
                        continue
                    if isinstance(result, WorkersDied | ResultLost) and not self._apart:
                        result = ShardError(str(result))  # what they share cannot be tried alone
                    yield [numbers[position]], _rows(result)
            numbers = handed_back
            frame = picked(self._written, numbers) if numbers else frame

    def again(self, numbers: Sequence[int]) -> Generator[Result, None, None]:
        """None: each was a task of its own before."""
        yield from ()

    def alone(self, number: int) -> Any:
        """One partition, while nothing else of this run is on the cluster."""
        assert self._client is not None
        return _rows(run_alone(self._written, number, self._client, self._resources, self._hands))

    def given_up(self, number: int, reason: str) -> Any:
        """One partition, without the work that kills workers."""
        assert self._client is not None
        return _rows(run_alone(self._giving_up(reason), number, self._client, self._resources))


@dataclass(frozen=True)
class _Checked:
    """A function of a file, called once it is known that the worker is fit for it."""

    function: Any
    fit: Fit

    def __call__(self, item: Any) -> Any:
        self.fit.check()
        return self.function(item)


def file_tasks(
    function: Any,
    items: Sequence[Any],
    token: str,
    client: Client | None,
    fit: Fit | None = None,
) -> FrameTasks:
    """A task a file, of a function that is called with the file's name, or what stands for it, and gives a report.

    Parameters
    ----------
    function
        With a `give_up`, as a step has it.
    items
        Of the files.
    token
        For the tasks' names.
    client
        Of the cluster; None where it is in this process.
    fit
        What a worker must be; None where any will do. What is given up needs nothing.
    """
    checked = function if fit is None or client is None else _Checked(function, fit)

    def written(reason: str | None) -> dd.DataFrame:
        each = checked if reason is None else function.give_up(reason)
        return map_items(each, items, report_frame({}), token)

    ready = None if fit is None else fit.enough_for(len(items))
    return FrameTasks(written(None), written, True, client, ready=ready)


def _rows(result: Any) -> Any:
    """A partition that is a report's frame as a list of its one row; exceptions as they are."""
    if not isinstance(result, pd.DataFrame):
        return result
    return [{name: result[name].iloc[0] for name in result.columns}]


def write_graph(
    frame: dd.DataFrame,
    targets: Sequence[Target],
    todo: Sequence[int],
    write: Callable[[Any, pd.DataFrame], pd.DataFrame],
) -> dd.DataFrame:
    """The lazy frame whose partitions write the targets with the numbers `todo` and report on them."""
    assert frame.npartitions == len(targets), (frame.npartitions, len(targets))
    frame = unfused(frame)
    picked = frame if len(todo) == len(targets) else frame.partitions[todo]
    texts = TargetTexts([targets[number] for number in todo])
    written: dd.DataFrame = dd.map_partitions(
        write,
        picked,
        map_items(target_frame, texts, report_frame({}), "target"),
        meta=report_frame({}),
        align_dataframes=False,
        enforce_metadata=False,
    )
    return written


def run_targets(
    tasks: Tasks,
    client: Client | None,
    targets: Sequence[Named],
    summary: SaveSummary,
    take: Callable[[int, Mapping[str, Any]], None] | None = None,
    of: str = "",
    held: Callable[[], None] | None = None,
) -> None:
    """Do all targets and count; what kills workers is tried again alone, then given up.

    Parameters
    ----------
    tasks
        How they are done.
    client
        Of the cluster; None where it is in this process.
    targets
        For their names.
    summary
        Where to count.
    take
        Called with the number of each target that is done, and the row of its report.
    of
        What they are called while they are done; else they are shards, or files where no image is opened.
    held
        Called with each that ends: raises OutputError where another run has come to write there (`RunLock.check_held`).

    Raises
    ------
    ClusterError
        Workers die on all that is given to them, or the cluster is gone.
    CuratorError
        What would happen to every shard, such as an output that cannot be written.
    """
    meter = Meter(len(targets), what=summary.path, of=of or ("shards" if summary.opened else "files"))
    suspects: list[int] = []
    grouped: list[int] = []  # those of whose group the task failed
    deaths = 0

    def settle(numbers: Sequence[int], result: Any) -> None:
        if held is not None:
            held()
        rows = result if isinstance(result, list) else [result] * len(numbers)
        for number, row in zip(numbers, rows, strict=False):
            if _settle(targets[number], row, meter, summary) and take is not None:
                take(number, row)

    # Closed at once also where an error ends the run, whose traceback would keep its tasks on the cluster.
    with heard(), watch(meter, client), contextlib.closing(tasks.run()) as results:
        for members, result in results:
            died = isinstance(result, WorkersDied | ResultLost)
            if not died and (len(members) == 1 or isinstance(result, list | CuratorError)):
                settle(members, result)
                continue
            (suspects if len(members) == 1 else grouped).extend(members)
            deaths += died and not isinstance(result, HandedBack | NotTaken)
            if deaths >= HOPELESS and not meter.done:
                raise ClusterError(
                    f"workers died while working on {_names([*suspects, *grouped], targets)}, and no shard was"
                    f" finished. {_WHY}"
                )
        if deaths:
            logger.warning(
                "workers died while working on %s: tried again one by one, to see which of them it is",
                _names([*suspects, *grouped], targets),
            )
        if grouped:  # most are innocent: each by itself, but side by side
            with contextlib.closing(tasks.again(grouped)) as single:
                for (member,), result in single:
                    if isinstance(result, WorkersDied | ResultLost):
                        suspects.append(member)
                    else:
                        settle([member], result)
        for number in suspects:
            result = tasks.alone(number)
            if isinstance(result, WorkersDied):
                result = tasks.given_up(number, f"{GAVE_UP}: {result}")
            settle([number], result)


_WHY = (
    "Look at the workers' logs: most often it is memory; fewer workers (n_workers) leave more for each, and a smaller"
    " batch_size needs less. Run again then: finished files are kept"
)


def _names(numbers: Sequence[int], targets: Sequence[Named]) -> str:
    return ", ".join(targets[number].name for number in numbers)


def _settle(target: Named, result: Any, meter: Meter, summary: SaveSummary) -> bool:
    """Count what a target came to, the row of its report or an exception; whether it is done."""
    report = json.loads(result["target"]) if isinstance(result, dict) else {}
    if report and BROKEN not in report:
        summary.add(report)
        meter.finish(report["rows"], report["reasons"], report["examples"])
        return True
    if isinstance(result, CuratorError) and not isinstance(result, ShardError):
        raise result  # it would happen to every shard
    reason = report[BROKEN] if report else told(result)
    summary.failed_shards[target.name] = reason
    meter.give_up(target.name, reason)
    return False
