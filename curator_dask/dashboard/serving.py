"""The page and its panes on the scheduler's own server, in its menu, and in the list that JupyterLab reads."""

from __future__ import annotations

from functools import partial
from typing import Any

from bokeh.layouts import column, row
from bokeh.server.tornado import BokehTornado
from distributed.dashboard.components import add_periodic_callback
from distributed.dashboard.components.nvml import GPUCurrentLoad
from distributed.dashboard.components.scheduler import BOKEH_THEME, env
from distributed.dashboard.core import BokehApplication
from distributed.dashboard.scheduler import template_variables
from distributed.http.scheduler.info import IndividualPlots
from distributed.utils import log_errors
from tornado.ioloop import IOLoop

from curator_dask.dashboard.following import Runs
from curator_dask.dashboard.panes import Chooser, Failures, Filters, ImageRate, Overview, Pane, TimeSplit

#: Name of the page, and what stands for it in the menu.
PAGE = "curator_dask"
_EVERY = 1000  # milliseconds
_PANES: dict[str, type[Pane]] = {
    "runs": Overview,
    "images-per-second": ImageRate,
    "time": TimeSplit,
    "failures": Failures,
    "filters": Filters,
}


def serve(scheduler: Any, runs: Runs) -> None:
    """Put page and panes beside the scheduler's own; nothing where it has no dashboard."""
    http = scheduler.http_application
    own = next((each for each in http.applications if isinstance(each, BokehTornado)), None)
    if own is None:
        return
    menu = template_variables(scheduler)
    names = {f"individual-curator-{name}": pane for name, pane in _PANES.items()}
    application = BokehApplication(
        {f"/{PAGE}": partial(_page, runs)}
        | {f"/{name}": partial(_alone, runs, pane) for name, pane in names.items()},
        scheduler,
        prefix=own.prefix,
        template_variables=menu,
    )
    http.add_application(application)
    application.initialize(IOLoop.current())
    application.start()
    menu["pages"].append(PAGE)
    plots = [{"url": name, "name": name.partition("-")[2].replace("-", " ").title()} for name in names]
    menu["plots"][:] = sorted([*menu["plots"], *plots], key=lambda plot: plot["name"])
    # Dask's own handler lists the panes of the first application alone.
    panes = {name.replace("-", " ").title(): f"/{name}" for name in names}
    given = {"dask_server": scheduler, "extra": {"panes": panes}}
    http.add_handlers(r".*", [(f"{own.prefix}/individual-plots.json", _Plots, given)])


class _Plots(IndividualPlots):
    """The panes of the scheduler by their names, and these."""

    def write(self, chunk: Any) -> None:
        """Called by the handler of the scheduler's own with all that it has."""
        super().write({**chunk, **self.extra["panes"]})


@log_errors
def _alone(runs: Runs, pane: type[Pane], scheduler: Any, extra: dict[str, Any], document: Any) -> None:
    """A pane of the latest run that fills its frame."""
    shown = pane(runs, lambda: runs.latest, sizing_mode="stretch_both")
    shown.update()
    add_periodic_callback(document, shown, _EVERY)
    document.add_root(shown.root)
    document.theme = BOKEH_THEME
    document.title = "Dask: curator_dask"


def _knows_gpus(scheduler: Any) -> bool:
    """Whether Dask's own panes of GPUs can be drawn: some that share the host's memory tell no figure of it."""
    every = [worker.metrics for worker in scheduler.workers.values()]
    found = [each for each in every if "gpu_memory_used" in each]
    return bool(found) and all(
        each["gpu_memory_used"] is not None and each.get("gpu-memory-total") is not None for each in found
    )


@log_errors
def _page(runs: Runs, scheduler: Any, extra: dict[str, Any], document: Any) -> None:
    chooser = Chooser(runs)
    wide = {"sizing_mode": "stretch_width"}
    overview, failures, filters = (kind(runs, chooser, **wide) for kind in (Overview, Failures, Filters))
    rate, split = (kind(runs, chooser, height=280, **wide) for kind in (ImageRate, TimeSplit))
    charts = [rate.root, split.root]
    for shown in (chooser, overview, rate, split, failures, filters):
        shown.update()
        add_periodic_callback(document, shown, _EVERY)
    if _knows_gpus(scheduler):
        load = GPUCurrentLoad(scheduler, height=160, **wide)
        load.update()
        add_periodic_callback(document, load, _EVERY)
        gpus = [row(load.memory_figure, load.utilization_figure, sizing_mode="stretch_width")]
    else:
        gpus = []
    parts = [overview.root, chooser.root, *charts, *gpus, failures.root, filters.root]
    document.add_root(column(parts, sizing_mode="stretch_width"))
    document.title = "Dask: curator_dask"
    document.theme = BOKEH_THEME
    document.template = env.get_template("simple.html")
    document.template_variables.update(extra)
