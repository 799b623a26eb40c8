"""The text of the page: it holds no row; those it asks the server for."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import jinja2

from curator_dask import __version__
from curator_dask.browsing.looking import MOST_CHOSEN, Browser


def render(browser: Browser, nonce: str) -> str:
    """The page as HTML.

    Parameters
    ----------
    browser
        Of the output.
    nonce
        By which the browser knows the page's own script and style.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    rows = browser.rows
    data: dict[str, Any] = {
        "rows": len(rows),
        "idCol": rows.id_col,
        "columns": [name for name in rows.types if name not in (rows.id_col, rows.caption, "__url__")],
        "numbers": rows.numbers,
        "noText": browser.why_no_text,
        "noImage": browser.why_no_image,
        "path": browser.path,
        "most": MOST_CHOSEN,
    }
    return environment.from_string(_read("browsing", "page.html")).render(
        name=browser.path.rstrip("/").rpartition("/")[2] or browser.path,
        searched=browser.searched,
        data=data,
        nonce=nonce,
        style=_read("report", "page.css") + _read("browsing", "page.css"),
        script=_read("report", "common.js") + _read("browsing", "page.js"),
        version=__version__,
    )


def _read(folder: str, name: str) -> str:
    return files(f"curator_dask.{folder}").joinpath(name).read_text(encoding="utf-8")
