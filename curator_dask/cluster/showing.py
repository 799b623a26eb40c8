"""How far a run is, shown to who waits: a line at a terminal, a bar in a notebook, else a line now and then."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, repeat
from typing import Any

from curator_dask.meter import Meter
from curator_dask.notebook import Place, in_notebook, progress

#: Seconds from one line to the next where there is no terminal to draw on: soon one that says that work has begun, then
#: ever more seldom, and from the last on every so often.
_LOG_AFTER = (1.0, 4.0, 10.0, 15.0, 30.0)
_LOOK_EVERY = 0.25  # seconds, at a terminal
_DRAW_EVERY = 0.5  # seconds, in a notebook: each is a message that is kept until the cell has ended


@contextmanager
def showing(meter: Meter, link: str | None) -> Iterator[None]:
    """Show a meter for as long as the block lasts.

    Parameters
    ----------
    meter
        Read a few times a second.
    link
        Of the dashboard, for notebooks.
    """
    place = Place() if in_notebook() else None
    stop = threading.Event()
    target, arguments = (_to_stderr, (meter, stop)) if place is None else (_draw, (meter, stop, place, link))
    thread = threading.Thread(target=target, args=arguments, name="curator_dask-progress", daemon=True)
    thread.start()
    end = "ended"
    try:
        yield
    except BaseException:
        end = "stopped. Finished shards are kept: run the cell again to go on"
        raise
    finally:
        stop.set()
        thread.join()
        if place is not None:
            _put(place, meter, f"{meter.outcome} | {end}", link)


def _draw(meter: Meter, stop: threading.Event, place: Place, link: str | None) -> None:
    while True:
        _put(place, meter, str(meter), link)
        if stop.wait(_DRAW_EVERY):
            return


def _put(place: Place, meter: Meter, line: str, link: str | None) -> None:
    place.show(progress(meter.done + meter.broken, meter.shards, line, link), line)


def _to_stderr(meter: Meter, stop: threading.Event) -> None:
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        pauses = chain(_LOG_AFTER, repeat(_LOG_AFTER[-1]))
        while not stop.wait(next(pauses)):
            print(meter, file=sys.stderr, flush=True)
        return
    from rich.live import Live
    from rich.text import Text

    with Live(console=console, refresh_per_second=4, transient=True) as live:
        while not stop.wait(_LOOK_EVERY):
            live.update(Text(str(meter)))


def dashboard_link(client: Any) -> str | None:
    """Where the dashboard of a client's cluster is; None where it has none, or there is no client."""
    try:
        link = client.dashboard_link if client is not None else None
    except (KeyError, ValueError):  # a scheduler that was started without one
        return None
    return str(link) if link else None
