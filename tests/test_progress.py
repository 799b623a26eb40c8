"""Counts on their way from a task to the one who waits."""

from __future__ import annotations

import time

import dask
import pytest
from colours import ColourReader, write_dataset
from distributed import Client, Event

from curator_dask.cluster import showing
from curator_dask.cluster.progress import Meter, report, watch
from curator_dask.datasets import ImageTextPairDataset


def test_a_meter_says_how_far_it_is():
    meter = Meter(shards=4)
    assert "0/4" in str(meter)
    assert "? left" in str(meter)
    meter.count({"images": 100, "failed": 3})
    meter.finish(rows=60)
    meter.broken, meter.started = 1, meter.started - 10
    assert meter.rate == pytest.approx(10, rel=0.05)
    # 3 shards of 60 rows, less the 100 images that are done, at 10 a second.
    assert meter.remaining == pytest.approx(8, rel=0.05)
    assert str(meter) == "shards 1/4, 1 failed | 100 images, 10.0/s | 3 failed | 0:10 elapsed, 0:08 left"
    meter.of, meter.images = "scan: files", 0
    assert str(meter) == "scan: files 1/4, 1 failed | 0:10 elapsed, 0:10 left"


def test_reports_in_this_process():
    meter = Meter(shards=1)
    with watch(meter, None, show=False):
        report(images=3, failed=1)
    report(images=50)
    assert (meter.images, meter.failed) == (3, 1)


def until(meter: Meter, images: int, failed: int) -> None:
    """Wait for what was reported: workers add it up and tell it twice a second."""
    end = time.monotonic() + 10
    while (meter.images, meter.failed) != (images, failed) and time.monotonic() < end:
        time.sleep(0.05)
    assert (meter.images, meter.failed) == (images, failed)


def failing_task() -> None:
    report(images=3, failed=1)
    raise ValueError


def test_a_task_that_fails_has_told_what_it_did(client):
    meter = Meter(shards=1)
    time.sleep(1)  # what tasks of tests before this one have done is told half a second later
    with watch(meter, client, show=False):
        # Not `result`: Dask keeps the error that was raised, and by its traceback the future, as long as the client.
        assert isinstance(client.submit(failing_task).exception(), ValueError)
        until(meter, 3, 1)


def test_a_run_does_not_count_what_another_client_of_its_cluster_does(client):
    meter, others = Meter(shards=1), Meter(shards=1)
    with Client(client.scheduler.address, set_as_default=False) as other, watch(meter, client, show=False):
        with watch(others, other, show=False):
            other.submit(failing_task, pure=False).exception()
            until(others, 3, 1)
        assert (meter.images, meter.failed) == (0, 0)


def long_task() -> None:
    for _ in range(1000):
        report(images=16, failed=1)
    time.sleep(1.5)  # the first are told by then
    report(images=16, failed=1)
    assert Event("heard").wait(30)


def short_task(_: int) -> None:
    report(images=1)


def test_what_a_worker_did_is_told_together_and_soon(client, monkeypatch):
    events: list[dict[str, int]] = []
    count, meter = Meter.count, Meter(shards=1)

    def counted(self: Meter, event: dict[str, int]) -> None:
        if self is meter:  # and not the dashboard's: this process has the scheduler, too
            events.append(event)
        count(self, event)

    monkeypatch.setattr(Meter, "count", counted)
    with watch(meter, client, show=False):
        task = client.submit(long_task)
        until(meter, 16 * 1001, 1001)
        assert not task.done()  # a watcher does not wait for the task's end
        assert len(events) == 2
        Event("heard").set()
        task.result()
        client.gather(client.map(short_task, range(50)))
        until(meter, 16 * 1001 + 50, 1001)
    assert len(events) < 25  # not one for each task


def test_workers_that_come_and_go_in_one_process_are_heard():
    for _ in range(2):
        meter = Meter(shards=1)
        with (
            Client(processes=False, n_workers=2, dashboard_address=None) as client,
            watch(meter, client, show=False),
        ):
            client.gather(client.map(short_task, range(10)))
            until(meter, 10, 0)
            client.submit(short_task, 11).result()  # all is over before this is told


@pytest.mark.parametrize("on_cluster", [False, True])
def test_a_run_counts_every_image(tmp_path, request, on_cluster):
    write_dataset(tmp_path, bad={"000010004": b"", "000020001": b"GIF89a"})
    dataset = ColourReader()(ImageTextPairDataset.from_webdataset(tmp_path))
    meter = Meter(shards=3)
    if on_cluster:
        with watch(meter, request.getfixturevalue("client"), show=False):
            dataset.compute()
            until(meter, 30, 2)
    else:
        with dask.config.set(scheduler="sync"), watch(meter, None, show=False):
            dataset.compute()
    assert (meter.images, meter.failed) == (30, 2)


def test_without_a_terminal_a_line_says_soon_that_work_has_begun(capsys, monkeypatch):
    """A log of hours gets no more lines for it than one each half minute."""
    monkeypatch.setattr(showing, "_LOG_AFTER", (0.05, 0.2, 30.0))
    meter = Meter(3)
    with watch(meter, None):
        time.sleep(0.12)
        assert capsys.readouterr().err.startswith("shards 0/3 | 0 images")
        meter.finish(10)
        time.sleep(0.3)
        assert capsys.readouterr().err.startswith("shards 1/3 |")
    assert capsys.readouterr().err == ""
