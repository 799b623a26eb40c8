"""A real browser for tests of pages: Chromium, led by playwright. A test without one is skipped, and says so.

The system's Chromium is taken (``apt-get install chromium``, or the variable ``CHROMIUM``): playwright's own would have
to be fetched from a host of its own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
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

    def watch(self, page: Any) -> Callable[[], None]:
        """Write down what the page says from now on; returns what ends that."""
        listeners: dict[str, Callable[[Any], object]] = {
            "console": lambda said: said.type == "error" and self.errors.append(said.text),
            "pageerror": lambda error: self.errors.append(str(error)),
            "requestfailed": lambda request: self.errors.append(f"{request.url}: {request.failure}"),
            "request": lambda request: self.requests.append(request.url),
        }
        for event, listener in listeners.items():
            page.on(event, listener)

        def stop() -> None:
            for event, listener in listeners.items():
                page.remove_listener(event, listener)

        return stop


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


@pytest.fixture(scope="module")
def page(browser: Any) -> Iterator[Any]:
    """The page of all tests of a module: a new one, that has compiled no script yet, takes seconds for each."""
    context = browser.new_context(viewport=WIDE)
    yield context.new_page()
    context.close()


@pytest.fixture
def open_page(page: Any, seen: Seen) -> Iterator[Any]:
    """Loads a URL anew, in a window of some size and a dark room or a light one."""

    def open_one(url: str, viewport: Any = WIDE, color_scheme: str = "light") -> Any:
        page.set_viewport_size(viewport)
        page.emulate_media(color_scheme=color_scheme)
        page.goto(url)
        return page

    stop = seen.watch(page)
    yield open_one
    stop()  # what is under way may end
    page.goto("about:blank")
