"""A real browser for tests of pages: Chromium, led by playwright. A test without one is skipped, and says so.

The system's Chromium is taken (``apt-get install chromium``, or the variable ``CHROMIUM``): playwright's own would have
to be fetched from a host of its own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
WIDE, LAPTOP, NARROW = (
    {"width": width, "height": height} for width, height in ((1280, 900), (1280, 720), (390, 844))
)


@dataclass
class Seen:
    """What pages have said and asked for, besides what they show."""

    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def watch(self, page: Any) -> None:
        page.on("console", lambda said: said.type == "error" and self.errors.append(said.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("requestfailed", lambda request: self.errors.append(f"{request.url}: {request.failure}"))
        page.on("request", lambda request: self.requests.append(request.url))


def find_chromium() -> str | None:
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, PROGRAMS)), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium. Of one module: while playwright is there, its event loop counts as this thread's running one."""
    program = find_chromium()
    if program is None:
        pytest.skip("no browser: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    with playwright.sync_playwright() as started:
        # Its sandbox does not start as root, nor where a container forbids it new namespaces.
        chromium = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def seen() -> Iterator[Seen]:
    """What the pages of this test said; an error on the console, or a request that failed, fails the test."""
    found = Seen()
    yield found
    assert found.errors == []


@pytest.fixture
def open_page(browser: Any, seen: Seen) -> Iterator[Any]:
    """Opens a URL in a new page, with playwright's options: ``open_page(url, color_scheme="dark")``."""
    contexts = []

    def open_one(url: str, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": WIDE, **options})
        contexts.append(context)
        page = context.new_page()
        seen.watch(page)
        page.goto(url)
        return page

    yield open_one
    for context in contexts:
        context.close()
