"""Runs in the scheduler's dashboard: what it follows, its page in a real browser, and its figures for Prometheus."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
from colours import SlowColourReader, write_dataset
from distributed import Client

from curator_dask import get_client
from curator_dask.dashboard.following import Course, Run, Runs
from curator_dask.dashboard.topics import PROGRESS, RUNS, WORK
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.meter import Meter


def followed(client: Client) -> dict[str, Run]:
    return client.run_on_scheduler(_followed)


def _followed(dask_scheduler):
    return dask_scheduler.plugins[Runs.name].runs


def address_of(client: Client) -> str:
    return client.dashboard_link.removesuffix("/status")


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read().decode()


def wait_until(holds, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture(scope="module")
def watched():
    """A cluster with a dashboard, as `get_client` makes it, and a client."""
    with get_client("cpu", n_workers=2, verbose=False, dashboard_address="127.0.0.1:0") as client:
        yield client


@pytest.fixture
def slow_run(tmp_path, watched):
    """Does a run in the background, of 12 shards with 10 images of which two are bad; gives where it writes."""
    write_dataset(tmp_path / "in", shards=12, bad={"000010004": b"", "000020001": b"GIF89a"})
    dataset = SlowColourReader(0.1)(ImageTextPairDataset.from_webdataset(tmp_path / "in"))
    dataset = dataset.filter("key not in ('000000003', '000000004')")
    thread = threading.Thread(target=dataset.save_metadata, args=[tmp_path / "out"])
    thread.start()
    yield str(tmp_path / "out")
    thread.join()


def test_the_page_shows_a_run_as_it_goes_on(watched, slow_run, open_page):
    page = open_page(f"{address_of(watched)}/curator_dask")
    row = page.locator("tr", has_text=slow_run)
    row.wait_for(timeout=30_000)
    counts = set()

    def is_done() -> bool:
        text = row.inner_text()
        counts.add(re.search(r"(\d+) of 12", text)[1])
        return "ended" in text

    wait_until(is_done, 60)
    assert len(counts) > 1, "the figures stood still"
    assert "12" in counts
    page.get_by_text("GIF: its headers cannot be read").wait_for()
    page.get_by_text("filter \"key not in ('000000003', '000000004')\"").wait_for()
    menu = page.locator(".navbar a", has_text="Curator_dask")
    assert menu.get_attribute("href") == "curator_dask"
    page.goto(f"{address_of(watched)}/individual-curator-time")
    page.locator("canvas").first.wait_for(timeout=30_000)
