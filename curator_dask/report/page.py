"""From what a report knows to the text of its page."""

from __future__ import annotations

import base64
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
from bokeh.core.types import ID
from bokeh.embed import json_item
from bokeh.models import ColumnDataSource, Range1d
from bokeh.plotting import figure
from bokeh.resources import Resources

from curator_dask import __version__
from curator_dask.report.categories import Category
from curator_dask.report.contents import Report
from curator_dask.report.measures import Measure, meaning_of

_HERE = files("curator_dask.report")
_LIBRARY = Resources(mode="inline", minified=True, components=["bokeh", "bokeh-gl"])


def render(report: Report) -> str:
    """The page as HTML. What comes from rows is escaped by the template, or is JSON that a script shows as text."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # Bokeh describes a model where it comes first, and names it after that: the order matters.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    environment.filters["count"] = lambda value: f"{value:,}"
    environment.filters["short"] = short_number
    rows = report.look.rows
    template = environment.from_string(_read("page.html"))
    return template.render(
        report=report,
        head=report.head,
        columns=_columns(report),
        places=report.pictures.places,
        captions={
            (url, str(key)): text for url, key, text in zip(rows.urls, rows.keys, rows.captions, strict=True)
        },
        data=payload(report),
        style=_read("page.css"),
        script="\n".join(_read(name) for name in ("common.js", "page.js", "values.js", "map.js", "label.js")),
        plotting="" if report.map.lacking else "\n".join(_LIBRARY.js_raw),
        version=__version__,
    )


def payload(report: Report) -> dict[str, Any]:
    """What the page's script works with; JSON-able."""
    rows, pictures = report.look.rows, report.pictures
    numbers = [pictures.places.get(row, -1) for row in zip(rows.urls, map(str, rows.keys), strict=True)]
    shards = {url: number for number, url in enumerate(dict.fromkeys(rows.urls))}
    return {
        "output": report.folder.path,
        "rows": report.folder.rows,
        "whole": len(rows) == report.folder.rows,
        "sampled": len(rows),
        "measures": [_measure(report, each) for each in report.measures],
        "keys": [str(key) for key in rows.keys],
        "idCol": report.folder.files[0].id_col if report.folder.files else "key",
        "columns": sorted({"__url__", *(name.lower() for name in report.folder.types)}),
        "urls": [url or "" for url in shards],
        "shards": ["" if url is None else url.rsplit("/", 1)[-1] for url in shards],
        "shard": packed([shards[url] for url in rows.urls], "int32"),
        "captions": {
            row: text
            for row, (number, text) in enumerate(zip(numbers, rows.captions, strict=True))
            if number >= 0 and text
        },
        "pictures": pictures.made,
        "picture": packed(numbers, "int32"),
        "map": None if report.map.lacking else _map(report),
        "categories": [_category(report, each) for each in report.categories],
    }


def _measure(report: Report, measure: Measure) -> dict[str, Any]:
    # Whole numbers that are not large are float32's, too.
    small = measure.is_whole and max(abs(measure.low), abs(measure.high)) <= 1 << 24
    kind = "float32" if measure.is_single or small else "float64"
    return {
        "name": measure.name,
        "sql": measure.sql,
        "meaning": meaning_of(measure.name),
        "single": measure.is_single,
        "whole": measure.is_whole,
        "known": measure.known,
        "low": measure.low,
        "high": measure.high,
        "middle": measure.middle,
        "steps": _plain(measure.steps, measure.is_whole),
        "atLeast": measure.at_least.tolist(),
        "atMost": measure.at_most.tolist(),
        "bars": _plain(measure.bars, measure.is_whole),
        "heights": measure.heights.tolist(),
        "values": packed(report.look.rows.numbers[measure.name], kind),
    }


def _map(report: Report) -> dict[str, Any]:
    """The map, and its plot without points: the script gives it those, in colours of its own."""
    found = report.map
    plot = figure(
        tools="pan,wheel_zoom",
        active_scroll="wheel_zoom",
        toolbar_location=None,
        sizing_mode="stretch_both",
        output_backend="webgl",
        background_fill_alpha=0,
        border_fill_alpha=0,
        outline_line_color=None,
        x_range=Range1d(start=0, end=1),
        y_range=Range1d(start=0, end=1),
    )
    plot.axis.visible = plot.grid.visible = False
    points = ColumnDataSource({"x": [], "y": [], "colour": [], "size": []}, name="points")
    plot.scatter("x", "y", size="size", color="colour", alpha=0.85, line_color=None, source=points)
    labels = ColumnDataSource({"x": [], "y": [], "text": []}, name="labels")
    plot.text(
        "x",
        "y",
        "text",
        source=labels,
        name="names",
        text_align="center",
        text_font_size="12px",
        text_font_style="bold",
    )
    return {
        "plot": json_item(plot, ID("map-plot")),
        "rows": packed(found.rows, "int32"),
        "x": packed(found.places[:, 0], "float32"),
        "y": packed(found.places[:, 1], "float32"),
        "clusters": packed(found.clusters, "int32"),
        "names": found.names,
    }


def _plain(values: np.ndarray, whole: bool) -> list[Any]:
    return [int(each) for each in values] if whole else values.tolist()


def packed(values: Any, kind: str) -> dict[str, str]:
    """Numbers as base64 of their bytes, the lowest first."""
    array = np.asarray(values, np.dtype(kind).newbyteorder("<"))
    return {"kind": kind, "base64": base64.b64encode(array.tobytes()).decode()}


def _category(report: Report, category: Category) -> dict[str, Any]:
    """A column of values; the number of each row's: of those that are named, then of all others, then of null."""
    named = category.named
    numbers: dict[str | None, int] = {value: number for number, (value, _) in enumerate(named)}
    numbers[None] = len(named) + 1
    codes = [numbers.get(text, len(named)) for text in report.look.rows.texts[category.name]]
    known = category.counts.total()
    return {
        "name": category.name,
        "sql": category.sql,
        "flag": category.is_flag,
        "values": [value for value, _ in named],
        "counts": [count for _, count in named],
        "others": known - sum(count for _, count in named),
        "different": len(category.counts),
        "nulls": report.folder.rows - known,
        "codes": packed(codes, "uint8" if len(named) < 255 else "uint16"),
    }


def _columns(report: Report) -> list[dict[str, Any]]:
    """A line for each column of the files."""
    folder, look = report.folder, report.look
    measures = {each.name: each for each in report.measures}
    lines = []
    for name, kind in folder.types.items():
        text, measure = "", measures.get(name)
        if measure is not None:
            low, middle, high = (short_number(each) for each in (measure.low, measure.middle, measure.high))
            text = f"{low} to {high}, median {middle}"
        elif name in report.others:
            text = f"no threshold: {report.others[name]}"
        elif name in look.rows.texts:
            known = [each for each in look.rows.texts[name] if each is not None]
            of = "" if len(look.rows) == folder.rows else f" in {len(look.rows):,} rows"
            text = f"{len(set(known)):,} different{of}" + (
                f", {known[0][:60]!r} for example" if known else ""
            )
        nulls = folder.nulls.get(name)
        if name == folder.vectors:
            nulls = folder.rows - look.valid - look.broken
        lines.append({"name": name, "type": str(kind), "nulls": nulls, "text": text})
    return lines


def short_number(value: float) -> str:
    """Four digits that count, with separators where it is large."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
