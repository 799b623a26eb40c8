"""What comes out of a pipeline without a writer: tasks, without pixels, back to the client."""

from __future__ import annotations

import contextlib
import json
import pickle
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import cloudpickle
import pandas as pd
import pyarrow as pa

from curator_dask.frames.names import ERROR_COLUMN
from curator_dask.rows.remarks import current_remarks
from curator_dask.runs.lineage import Lineage
from curator_dask.runs.reports import report_frame, report_of, report_row
from curator_dask.runs.sink import Job, Plan
from curator_dask.runs.summary import SaveSummary
from curator_dask.runs.targets import Target
from curator_dask.stages.fused import RunStages, images_of
from curator_dask.stages.rows import place
from curator_dask.tasks import ImageBatch, Task

_COLUMN = "tasks"


@dataclass(frozen=True)
class TaskSink:
    """Takes the tasks that come out of the last stage; nothing is written, so nothing is ever finished.

    Attributes
    ----------
    step
        The stages. They are run by the writer: what comes out of them need not be rows.
    """

    step: RunStages

    @property
    def place(self) -> str:
        """Nowhere."""
        return ""

    def open(self) -> AbstractContextManager[Any]:
        """There is nobody to keep out."""
        return contextlib.nullcontext()

    def unwritten(self, lineage: Lineage) -> int:
        """Every shard."""
        return len(lineage.ranges or ())

    def plan(self, job: Job) -> Plan:
        """Every shard."""
        targets = [
            Target(part.name, "", "", {"url": part.shard.url}, None, None)
            for part in job.lineage.ranges or ()
        ]
        return Plan(targets, range(len(targets)), CollectTasks(self.step))

    def close(self, plan: Plan, summary: SaveSummary) -> None:
        """Nothing is left behind."""


@dataclass(frozen=True)
class CollectTasks:
    """Runs the stages on a partition and reports; what came out, without pixels, is part of the report's row.

    Attributes
    ----------
    step
        The stages.
    """

    step: RunStages

    def __dask_tokenize__(self) -> Any:
        return (type(self).__name__, self.step.__dask_tokenize__())

    def __call__(self, frame: Any, target_frame: pd.DataFrame) -> pd.DataFrame:
        """The report, and the tasks beside it, as a frame."""
        row = self.write(frame, Target.from_json(target_frame["target"].iloc[0]))
        packed = pd.array([row[_COLUMN]], dtype=pd.ArrowDtype(pa.large_binary()))
        return report_frame(json.loads(row["target"])).assign(**{_COLUMN: packed})

    def known(self, target: Target) -> None:
        """Nothing is written, so nothing is known."""

    def reusable(self, target: Target) -> None:
        """Nothing is there."""

    def give_up(self, reason: str) -> CollectTasks:
        """As `RunStages.give_up`."""
        return replace(self, step=self.step.give_up(reason))

    def write(self, frame: Any, target: Target) -> dict[str, Any]:
        """A report as `curator_dask.runs.reports.report_of` makes it, and the tasks beside it."""
        step, reading, left_by = self.step, uuid.uuid4().hex, dict[Any, str]()
        tasks: list[Task[Any]] = []
        if step.given_up is not None:
            unread = step.reader.unread(frame, step.given_up, reading)
            tasks = [ImageBatch(unread, step.dataset_name, target.name)]
        else:
            with contextlib.closing(step.tasks(frame, reading, left_by)) as stream:
                for task in stream:
                    for image in images_of(task):
                        image.image_data = None
                    tasks.append(task)
        images = [image for task in tasks for image in images_of(task)]
        if all(isinstance(task, ImageBatch) for task in tasks):
            place(frame, images, reading, step.id_col, left_by)
        counted = {
            step.id_col: pa.array([image.image_id for image in images], pa.string()),
            ERROR_COLUMN: pa.array([image.error for image in images], pa.string()),
        }
        report = report_of(target.name, pa.table(counted), step.id_col)
        remarks = current_remarks().on([url] if (url := (target.shard or {}).get("url")) else [])
        return {**report_row({**report, "remarks": remarks}), _COLUMN: _packed(tasks)}


def _packed(tasks: Sequence[Task[Any]]) -> bytes:
    # As bytes: a column of objects would be turned into text by Dask. A user's own tasks may be of `__main__`.
    packed: bytes = cloudpickle.dumps(list(tasks))
    return packed


def collected_tasks(row: Mapping[str, Any]) -> list[Task[Any]]:
    """The tasks in a row that `CollectTasks` made; it comes from a worker of this cluster, as all Dask's results."""
    tasks: list[Task[Any]] = pickle.loads(row[_COLUMN])
    return tasks
