"""HTML in a notebook's output: whether there is one, a place that changes, and the few forms that are shown there.

IPython is no dependency: it is there wherever a notebook is. What comes from data (captions, keys, paths, reasons) is
escaped here, and nowhere else.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from curator_dask.words import ranked

_MUTED = "opacity:.65"
_BAR = "background:#3b82c4;height:.8em;min-width:2px;border-radius:2px"


def in_notebook() -> bool:
    """Whether a cell of a notebook runs, of a kernel whose front end shows HTML; not in IPython at a terminal."""
    find = getattr(builtins, "get_ipython", None)  # there while IPython runs a cell
    return find is not None and getattr(find(), "kernel", None) is not None


class Place:
    """A place below the cell that runs, whose content is replaced.

    The notebook's own means do this (`IPython.display` and its ids): no widget and no script, so the last content is
    also in the file that is saved, and in what nbconvert makes of it.
    """

    def __init__(self) -> None:
        import IPython.display

        display: Any = IPython.display.display  # not typed in all of its versions
        self._handle = display(_bundle("", ""), raw=True, display_id=True)

    def show(self, html: str, text: str) -> None:
        """Replace what is there; `text` is for front ends without HTML."""
        self._handle.update(_bundle(html, text), raw=True)


def _bundle(html: str, text: str) -> dict[str, str]:
    return {"text/html": html, "text/plain": text}


def table(rows: Iterable[Sequence[Any]]) -> str:
    """Rows of text as a table, the first cell of each a heading."""
    lines = [
        f'<tr><th style="text-align:left">{escape(str(first))}</th>'
        + "".join(f'<td style="text-align:left">{escape(str(each))}</td>' for each in others)
        + "</tr>"
        for first, *others in rows
    ]
    return f"<table>{''.join(lines)}</table>" if lines else ""


def bars(counts: Mapping[str, int], remarks: Mapping[str, str]) -> str:
    """Counts as horizontal bars, the largest first, each with a remark in small print."""
    most = max(counts.values(), default=0)
    lines = [
        f'<tr><td style="text-align:left">{escape(name)}</td><td style="text-align:right">{count}</td>'
        f'<td style="width:12em"><div style="{_BAR};width:{100 * count / most:.1f}%"></div></td>'
        f'<td style="text-align:left;{_MUTED}">{escape(remarks.get(name, ""))}</td></tr>'
        for name, count in ranked(counts)
    ]
    return f"<table>{''.join(lines)}</table>" if lines else ""


def progress(done: int, total: int, line: str, link: str | None) -> str:
    """A bar, a line, and a link to the dashboard."""
    more = ""
    if link is not None:
        more = f' | <a href="{escape(link)}" target="_blank" rel="noopener">dashboard</a>'
    return (
        f'<div><progress value="{done}" max="{max(total, 1)}" style="width:24em;max-width:100%"></progress>'
        f'<div style="font-variant-numeric:tabular-nums">{escape(line)}{more}</div></div>'
    )
