"""Runs in the scheduler's dashboard: what it follows, its page in a real browser, and its figures for Prometheus."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import dask
import pytest
from bokeh.document import Document
from bokeh.models import Plot
from colours import SlowColourReader, write_dataset
from distributed import Client, LocalCluster

from curator_dask import get_client
from curator_dask.cluster.progress import at_work, report, watch
from curator_dask.cluster.watching import offer_dashboard
from curator_dask.dashboard import serving
from curator_dask.dashboard.following import Course, Run, Runs
from curator_dask.dashboard.panes import Failures, Filters, Overview
from curator_dask.dashboard.topics import PROGRESS, RUNS, WAITING, WORK
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.meter import Meter

ANGRY = "<script>alert(1)</script>"


def followed(client: Client) -> dict[str, Run]:
    """The runs that the scheduler knows of, which is in this process."""
    return client.cluster.scheduler.plugins[Runs.name].runs


def address_of(client: Client) -> str:
    return client.dashboard_link.removesuffix("/status")


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read().decode()


def wait_until(holds, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def watched():
    """A client of a cluster as `get_client` makes it."""
    with get_client("cpu", n_workers=2, verbose=False, dashboard_address="127.0.0.1:0") as client:
        yield client


def slow_dataset(folder, shards: int, seconds: float) -> ImageTextPairDataset:
    """Ten images a shard, two of all bad, and two left out."""
    write_dataset(folder, shards, bad={"000010004": b"", "000020001": b"GIF89a"})
    dataset = SlowColourReader(seconds)(ImageTextPairDataset.from_webdataset(folder))
    return dataset.filter("key not in ('000000003', '000000004')")


def test_the_page_shows_a_run_as_it_goes_on(tmp_path, watched, open_page):
    dataset, output = slow_dataset(tmp_path / "in", 12, 0.1), str(tmp_path / "out")
    page = open_page(f"{address_of(watched)}/curator_dask")
    thread = threading.Thread(target=dataset.save_metadata, args=[output])
    thread.start()
    row = page.locator("tr", has_text=output)
    row.wait_for(timeout=30_000)
    seen = set()

    def is_over() -> bool:
        text = row.inner_text()
        seen.add(re.search(r"(\d+) of 12", text)[1])
        return "ended" in text

    wait_until(is_over, 60)
    thread.join()
    assert len(seen) > 1, "the figures stood still"
    assert "12" in seen
    page.get_by_text("GIF: its headers cannot be read").wait_for()
    page.get_by_text("filter \"key not in ('000000003', '000000004')\"").wait_for()
    assert page.locator(".navbar a", has_text="Curator_dask").get_attribute("href") == "curator_dask"
    page.goto(f"{address_of(watched)}/individual-curator-time")
    page.locator("canvas").first.wait_for(timeout=30_000)


def test_the_scheduler_knows_what_the_summary_says(tmp_path, watched):
    metrics = pytest.importorskip("prometheus_client.parser", reason="no prometheus_client")
    summary = slow_dataset(tmp_path / "in", 3, 0.02).save_metadata(tmp_path / "out")
    run = next(run for run in followed(watched).values() if run.meter.what == summary.path)
    wait_until(lambda: run.meter.images == 30)
    assert (run.meter.done, run.meter.broken, run.meter.rows) == (3, 0, summary.rows)
    assert (run.meter.failed, run.meter.reasons, run.end) == (summary.failed, summary.reasons, "ended")
    assert [*run.meter.last["empty"]] == summary.examples["empty"]
    assert set(run.seconds) == {*WORK, WAITING}
    assert 30 / 4 * 0.02 <= run.seconds["forward"] < summary.seconds
    assert not any(run.under_way.values())
    found = {}
    for family in metrics.text_string_to_metric_families(fetch(f"{address_of(watched)}/metrics")):
        for name, labels, value in ((each.name, each.labels, each.value) for each in family.samples):
            if labels.get("run") == run.meter.run:
                key = (name.removeprefix("dask_curator_"), labels.get("reason") or labels.get("filter"))
                found[key] = found.get(key, 0) + value
    assert found["images_total", None] == 30
    assert found["failures_total", "empty"] == found["failures_total", "damaged GIF"] == 1
    assert found["rows_left_out_total", "filter \"key not in ('000000003', '000000004')\""] == 2
    assert (found["shards", None], found["shards_done", None], found["running", None]) == (3, 3, 0)
    assert found["time_seconds_total", None] == pytest.approx(sum(run.seconds.values()))


def page_of(dask_scheduler, **metrics) -> list[str]:
    """Titles of the page's charts, as if workers told these figures of themselves."""
    runs = dask_scheduler.plugins[Runs.name].runs
    for worker in dask_scheduler.workers.values():  # till they tell theirs again: nothing else runs meanwhile
        worker.metrics = {**worker.metrics, **metrics}
    document = Document()
    serving._page(SimpleNamespace(runs=runs, latest=None), dask_scheduler, {}, document)
    return [figure.title.text for figure in document.select({"type": Plot})]


def test_memory_and_load_of_gpus_are_shown_where_workers_have_some(watched):
    def titles(**metrics):
        every = watched.run_on_scheduler(page_of, **metrics)
        return sorted(each for each in every if each.startswith("GPU"))

    gpu = {"gpu_memory_used": 3 << 30, "gpu-memory-total": 16 << 30, "gpu_utilization": 40}
    assert titles() == []
    assert titles(**gpu) == ["GPU Memory: 6.00 GiB / 32.00 GiB", "GPU Utilization"]
    assert titles(**gpu | {"gpu_utilization": None})[1:] == ["GPU Utilization"]
    # As of GPUs that share the host's memory, of which the driver tells none: the rest of the page is there.
    assert titles(**gpu | {"gpu_memory_used": None}) == []


def held_task(images: int, path: str) -> None:
    with at_work(2):
        report(images=images)
        while not Path(path).exists():
            time.sleep(0.02)


def test_two_runs_at_once_are_told_apart(tmp_path, watched):
    one, other = Meter(4, what="one"), Meter(5, what="other")
    gate = tmp_path / "gate"
    second = Client(watched.scheduler.address, set_as_default=False)
    with watch(one, watched, show=False):
        first_task = watched.submit(held_task, 3, str(gate))
        with watch(other, second, show=False):
            second_task = second.submit(held_task, 5, str(gate))
            runs = followed(watched)
            wait_until(lambda: runs[one.run].under_way and runs[other.run].under_way)
            assert [sum(runs[each.run].under_way.values()) for each in (one, other)] == [2, 2]
            gate.touch()
            first_task.result(), second_task.result()
            wait_until(lambda: runs[one.run].meter.images == 3 and runs[other.run].meter.images == 5)
            wait_until(
                lambda: not any((*runs[one.run].under_way.values(), *runs[other.run].under_way.values()))
            )
            assert [runs[each.run].end for each in (one, other)] == ["", ""]
            second.close()
            wait_until(lambda: runs[other.run].end == "its client is gone")
        assert runs[one.run].end == ""
    assert runs[one.run].end == "ended"
    assert (runs[one.run].label, runs[other.run].label) == (
        f"one ({one.run[:4]})",
        f"other ({other.run[:4]})",
    )


def test_a_run_that_fails_is_not_under_way_for_ever(watched):
    meter = Meter(1)
    with pytest.raises(KeyboardInterrupt), watch(meter, watched, show=False):
        raise KeyboardInterrupt
    assert followed(watched)[meter.run].end == "stopped"


def panes_at(address: str) -> set[str]:
    return {
        path for path in json.loads(fetch(f"{address}/individual-plots.json")).values() if "curator" in path
    }


def test_a_scheduler_that_runs_gets_the_page_when_a_client_connects():
    with (
        LocalCluster(processes=False, n_workers=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as plain,
    ):
        address = address_of(plain)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            fetch(f"{address}/curator_dask")
        before = json.loads(fetch(f"{address}/individual-plots.json"))
        for _ in range(2):
            with get_client(scheduler_address=cluster, verbose=False):
                page = fetch(f"{address}/curator_dask")
        assert page.count('href="curator_dask"') == 1
        assert len(panes_at(address)) == 5
        assert before.items() <= json.loads(fetch(f"{address}/individual-plots.json")).items()
        for path in panes_at(address):
            assert "bokeh" in fetch(address + path)


def test_a_scheduler_has_the_page_from_the_start_by_preload():
    with (
        dask.config.set({"distributed.scheduler.preload": ["curator_dask.dashboard"]}),
        LocalCluster(processes=False, n_workers=0, dashboard_address=":0") as cluster,
    ):
        address = cluster.dashboard_link.removesuffix("/status")
        assert 'href="curator_dask"' in fetch(f"{address}/status")
        assert len(panes_at(address)) == 5


def test_a_scheduler_without_a_dashboard_follows_runs_all_the_same():
    with (
        LocalCluster(processes=False, n_workers=1, dashboard_address=None) as cluster,
        get_client(scheduler_address=cluster, verbose=False) as client,
        watch(Meter(1), client, show=False),
    ):
        assert len(cluster.scheduler.plugins[Runs.name].runs) == 1


SCHEDULER = """
import sys, asyncio
sys.modules["curator_dask"] = None
from distributed import Scheduler

async def main():
    async with Scheduler(dashboard_address="127.0.0.1:0", host="127.0.0.1", port=0) as scheduler:
        print(scheduler.address, flush=True)
        await scheduler.finished()

asyncio.run(main())
"""


def test_a_scheduler_that_lacks_the_package_does_without():
    process = subprocess.Popen(
        [sys.executable, "-c", SCHEDULER], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        with Client(process.stdout.readline().decode().strip(), set_as_default=False) as client:
            offer_dashboard(client)
            with watch(Meter(3), client, show=False):
                pass
            client.shutdown()
    finally:
        process.kill()
        said = process.communicate()[1].decode()
    assert "Traceback" not in said
    assert "curator_dask is not in the dashboard" in said or not said


def test_a_long_run_keeps_a_few_hundred_points():
    course = Course()
    for hours in range(200):
        course.started = time.monotonic() - 3600 * hours
        course.add("a", 100)
    seconds, rates = course.rates("a", time.monotonic() - course.started)
    assert 100 < len(seconds) <= 240
    width = seconds[1] - seconds[0]
    assert sum(rates) * width == pytest.approx(200 * 100, rel=0.02)
    assert seconds[-1] == pytest.approx(199 * 3600, rel=0.02)


@pytest.mark.parametrize(
    ("seconds", "slowest"),
    [
        ({"fetch": 9, "decode": 4, "forward": 3, "write": 1, WAITING: 6}, "fetch"),
        ({"fetch": 2, "decode": 9, "forward": 3, "write": 1, WAITING: 6}, "decode"),
        ({"fetch": 2, "decode": 9, "forward": 9, "write": 1, WAITING: 1}, "forward"),
        ({"fetch": 2, "decode": 9, "forward": 1, "write": 9, WAITING: 1}, "write"),
    ],
)
def test_what_to_turn_next(seconds, slowest):
    run = Run(Meter(1))
    assert run.advice == ""
    run.seconds.update(seconds)
    assert run.advice == WORK[slowest]


def test_what_data_say_is_text_on_the_page():
    runs = Runs()
    meter = Meter(5, what=ANGRY)
    meter.finish(3, {ANGRY: 1}, {ANGRY: [ANGRY]})
    meter.give_up(ANGRY, ANGRY)
    runs.log_event(RUNS, {"client": "a", **meter.told})
    runs.log_event(PROGRESS, {"run": meter.run, "images": 1, "failed": 1, "left_out": {ANGRY: 4}})
    for pane, count in ((Overview, 1), (Failures, 4), (Filters, 1)):
        text = pane(runs, lambda: runs.latest).text()
        assert "<script" not in text
        assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") == count


def test_only_the_last_runs_are_kept_and_none_that_is_under_way():
    runs, names = Runs(), [f"run {number}" for number in range(20)]
    for name in names:
        meter = Meter(1, run=name)
        runs.log_event(RUNS, {"client": "a", **meter.told, **({} if name == "run 0" else {"end": "ended"})})
    assert list(runs.runs) == ["run 0", *names[-11:]]
    assert runs.latest.meter.run == "run 0"
