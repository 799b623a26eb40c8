"""The panes of the page: what is drawn of a run, and drawn again every second."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

from bokeh.core.properties import without_property_validation
from bokeh.models import ColumnDataSource, DataRange1d, FactorRange, HoverTool
from bokeh.models.widgets.inputs import Select
from bokeh.models.widgets.markups import Div
from bokeh.palettes import Category10_10
from bokeh.plotting import figure
from distributed.dashboard.components import DashboardComponent
from distributed.dashboard.utils import update

from curator_dask.dashboard.following import Run, Runs
from curator_dask.dashboard.topics import WAITING, WORK
from curator_dask.meter import clock
from curator_dask.words import ranked

_LINES = len(Category10_10)  # workers that have one of their own; the others are added up
_BAR = "display:block;height:.8em;border-radius:3px;margin-top:2px"
_CELL = "text-align:left;padding:2px 12px 2px 0;vertical-align:top"
_LATEST = ""

#: Which run is drawn.
Choice = Callable[[], Run | None]


class Pane(DashboardComponent):
    """A part of the page.

    Parameters
    ----------
    runs
        All of them.
    choice
        The one to draw.
    """

    def __init__(self, runs: Runs, choice: Choice, **options: Any) -> None:
        self.runs, self.choice = runs, choice
        self.root = self.make(**options)

    @abstractmethod
    def make(self, **options: Any) -> Any:
        """The Bokeh model, empty."""

    @abstractmethod
    def draw(self) -> None:
        """Bring it up to date."""

    @without_property_validation  # type: ignore[untyped-decorator]
    def update(self) -> None:
        """Called by distributed every second."""
        self.draw()


class _Text(Pane):
    """A pane of HTML, in which all that comes from data is escaped."""

    def make(self, **options: Any) -> Any:
        return Div(text="", disable_math=True, **options)

    def draw(self) -> None:
        self.root.text = self.text()

    @abstractmethod
    def text(self) -> str:
        """The HTML."""


class Overview(_Text):
    """All runs: shards done, under way and failed, images, time that is left."""

    def text(self) -> str:
        """A row a run, the last one first."""
        rows = [_row_of(run) for run in reversed(list(self.runs.runs.values()))]
        if not rows:
            return "<i>No run of curator_dask has been heard of on this scheduler.</i>"
        shards, images = ("shards", "under way", "shards failed"), ("images", "images/s", "images failed")
        heads = ("run", "", *shards, *images, "time", "left")
        return _table(heads, rows)


def _row_of(run: Run) -> list[str]:
    meter = run.meter
    share = (meter.done + meter.broken) / max(meter.shards, 1)
    filled = f'<span style="{_BAR};margin:0;width:{share:.0%};background:#3b82c4"></span>'
    bar = f'<span style="{_BAR};width:9em;background:#8884">{filled}</span>'
    images, seconds = max(meter.images, meter.rows), max(run.seconds_run, 1e-9)
    left = run.end or ("?" if meter.remaining is None else clock(meter.remaining))
    under_way = sum(run.under_way.values())
    counts = (meter.broken, f"{images:,}", f"{images / seconds:,.1f}", meter.failed, clock(seconds), left)
    texts = [f"{meter.done} of {meter.shards}", under_way, *counts]
    return [f"<b>{escape(run.label)}</b>", bar, *(escape(str(each)) for each in texts)]


class Failures(_Text):
    """Failures of the chosen run, by reason, with the last keys."""

    def text(self) -> str:
        """The commonest reason first."""
        run = self.choice()
        if run is None or not run.meter.reasons:
            return "<b>Failures</b><br><i>none among the rows of finished shards</i>"
        rows = [
            [escape(reason), f"{count:,}", "<br>".join(map(escape, run.meter.last.get(reason, ())))]
            for reason, count in ranked(run.meter.reasons)
        ]
        return f"<b>Failures</b>{_table(('reason', 'count', 'the last'), rows)}"


class Filters(_Text):
    """Rows that filters of the chosen run have left out."""

    def text(self) -> str:
        """By filter."""
        run = self.choice()
        if run is None or not run.left_out:
            return "<b>Left out by filters</b><br><i>no row</i>"
        rows = [[escape(name), f"{count:,}"] for name, count in ranked(run.left_out)]
        return f"<b>Left out by filters</b>{_table(('filter', 'rows'), rows)}"


def _table(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f'<th style="{_CELL}">{head}</th>' for head in heads)
    lines = ["".join(f'<td style="{_CELL}">{each}</td>' for each in row) for row in rows]
    inner = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div style="overflow-x:auto;max-width:96vw"><table><tr>{top}</tr>{inner}</table></div>'


class ImageRate(Pane):
    """Images/s over time, a line for each worker."""

    def make(self, **options: Any) -> Any:
        """A chart."""
        self.source = ColumnDataSource({"xs": [], "ys": [], "worker": [], "color": []})
        chart = figure(
            title="Images/s by worker",
            tools="",
            x_axis_label="seconds since the start",
            y_range=DataRange1d(start=0),
            min_height=220,
            **options,
        )
        chart.multi_line("xs", "ys", source=self.source, color="color", line_width=2, legend_field="worker")
        chart.add_tools(HoverTool(tooltips=[("worker", "@worker")]))
        chart.legend.location = "left"
        chart.legend.orientation, chart.legend.ncols = "horizontal", 5
        chart.add_layout(chart.legend[0], "above")
        chart.legend.label_text_font_size = "9pt"
        chart.toolbar_location = None
        return chart

    def draw(self) -> None:
        """A line for each of the workers that have done most, one for all others."""
        run = self.choice()
        lines: list[tuple[str, list[float], list[float]]] = []
        if run is not None:
            names = list(run.course.counts)  # as they came, so that each keeps its colour
            if len(names) > _LINES:
                names = sorted(names, key=lambda name: -sum(run.course.counts[name]))
            lines = [(f"worker {name}", *run.rates(name)) for name in names]
        if len(lines) > _LINES:
            others = [sum(each) for each in zip(*(ys for _, _, ys in lines[_LINES - 1 :]), strict=True)]
            rest = (f"{len(lines) - _LINES + 1} others", lines[0][1], others)
            lines = [*lines[: _LINES - 1], rest]
        now = "" if run is None or run.end else f": {sum(ys[-1] for _, _, ys in lines if ys):,.1f} in all now"
        self.root.title.text = f"Images/s by worker{now}"
        made = {
            "xs": [xs for _, xs, _ in lines],
            "ys": [ys for _, _, ys in lines],
            "worker": [name for name, _, _ in lines],
            "color": list(Category10_10[: len(lines)]),
        }
        if made != self.source.data:
            self.source.data = made


class TimeSplit(Pane):
    """What the time of the workers' threads is spent on."""

    def make(self, **options: Any) -> Any:
        """A bar chart."""
        kinds = [*WORK, WAITING]
        self.source = ColumnDataSource(
            {"kind": kinds, "seconds": [0.0] * len(kinds), "share": [""] * len(kinds)}
        )
        chart = figure(
            y_range=FactorRange(factors=kinds[::-1]),
            x_range=DataRange1d(start=0),
            title="",
            tools="",
            min_height=220,
            x_axis_label="seconds",
            **options,
        )
        chart.hbar(y="kind", right="seconds", height=0.7, source=self.source, color="#3b82c4")
        chart.add_tools(HoverTool(tooltips=[("@kind", "@seconds{0.0} s, @share")]))
        chart.toolbar_location = None
        return chart

    def draw(self) -> None:
        """The bars, and above them what can be done."""
        run = self.choice()
        kinds = [*WORK, WAITING]
        spent = [0.0 if run is None else run.seconds.get(kind, 0.0) for kind in kinds]
        total = sum(spent) or 1.0
        advice = "" if run is None else run.advice
        self.root.title.text = f"Where the time goes{f': {advice}' if advice else ''}"
        update(
            self.source, {"kind": kinds, "seconds": spent, "share": [f"{each / total:.0%}" for each in spent]}
        )


class Chooser:
    """Which run the page draws: the one that is chosen there, or the latest."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        self.root = Select(title="Run", value=_LATEST, width=420)

    def __call__(self) -> Run | None:
        """The chosen run."""
        return self.runs.runs.get(self.root.value) or self.runs.latest

    def update(self) -> None:
        """Offer those that there are."""
        runs = reversed(list(self.runs.runs.values()))
        options: list[Any] = [(_LATEST, "the latest"), *((run.meter.run, run.label) for run in runs)]
        if options != self.root.options:
            self.root.options = options
