"""Whether the worker that a task came to can do it: one that joined later was not asked when the run began."""

from __future__ import annotations

import uuid
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from curator_dask import __version__
from curator_dask.cache import ENCODERS, POSSESSIONS, Remembered
from curator_dask.cluster.workers import WorkerUnfit
from curator_dask.runs.blaming import told
from curator_dask.runs.describing import Loaded, differences
from curator_dask.runs.step import Step
from curator_dask.webdataset.staging import current_worker

#: Runs that this process was found fit for.
_FIT: Remembered[bool] = POSSESSIONS.add("fit", Remembered(16))


@dataclass(frozen=True)
class Fit:
    """What a worker must be for the tasks of a run.

    Attributes
    ----------
    steps
        Whose models it must be able to load.
    loaded
        What they must be then, as the first workers said, and which those are.
    version
        Of this package.
    run
        Names the run.
    """

    steps: Sequence[Step]
    loaded: Loaded
    version: str = __version__
    run: str = field(default_factory=lambda: uuid.uuid4().hex)

    def enough_for(self, count: int) -> frozenset[str] | None:
        """The workers that have loaded the models, where they are enough for so many tasks; None where not."""
        return self.loaded.workers if 0 < count <= len(self.loaded.workers) else None

    def check(self) -> None:
        """Look once a run.

        Raises
        ------
        WorkerUnfit
            This worker has another version of the package, cannot load a model, or loads another than the others did.
        """
        _FIT.get(self.run, self._look)

    def _look(self) -> bool:
        if __version__ != self.version:
            raise _unfit(f"has curator_dask {__version__}, expected the client's version {self.version}")
        found: dict[str, Mapping[str, Any]] = {}
        for step in self.steps:
            try:
                found |= step.describe()
            except Exception as error:
                raise _unfit(f"cannot load {step.label}: {told(error)}") from error
        for column, info in found.items():
            differing = differences(self.loaded.described[column], info)
            if differing:
                raise _unfit(f"does not run the same model as the first workers, for {column}: {differing}")
        return True


def refresh_model(spec: Hashable) -> None:
    """Have the model of a spec loaded anew here with its next lease, if its files have changed since it was loaded.

    For `Step.describe`, which begins a run. Of other runs that go on here this process is not fit any more: they
    must not go on with the new model.
    """
    if ENCODERS.refresh(spec):
        _FIT.clear()


def _unfit(what: str) -> WorkerUnfit:
    worker = current_worker()
    address = "this process" if worker is None else worker.address
    error = WorkerUnfit(
        f"the worker {address} {what}. Give every node the same files, versions and kind of device"
    )
    error.worker = address
    return error
