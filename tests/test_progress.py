"""Counts on their way from a task to the one who waits."""

from __future__ import annotations

import time

import dask
import pytest
from colours import ColourReader, write_dataset

from curator_dask import get_client
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.progress import Meter, Reporter, report, watch


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


def test_reports_in_this_process():
    meter = Meter(shards=1)
    with watch(meter, None, show=False), Reporter() as reporter:
        reporter.add(images=3, failed=1)
    report(images=50)
    assert (meter.images, meter.failed) == (3, 1)


def test_a_task_that_fails_has_told_what_it_did():
    meter = Meter(shards=1)
    with watch(meter, None, show=False), pytest.raises(ValueError), Reporter() as reporter:
        reporter.add(images=3, failed=1)
        raise ValueError
    assert (meter.images, meter.failed) == (3, 1)


def test_batches_are_told_together(monkeypatch):
    events: list[dict[str, int]] = []
    monkeypatch.setattr(Meter, "count", lambda _, event: events.append(event))
    with watch(Meter(shards=1), None, show=False), Reporter() as reporter:
        for _ in range(1000):
            reporter.add(images=16, failed=1)
        before = len(events)
        time.sleep(1)
        reporter.add(images=16, failed=1)
        assert len(events) == before + 1  # a watcher does not wait for the task's end
    assert len(events) < 100
    assert sum(event["images"] for event in events) == 16 * 1001
    assert sum(event["failed"] for event in events) == 1001


@pytest.mark.parametrize("on_cluster", [False, True])
def test_a_run_counts_every_image(tmp_path, on_cluster):
    write_dataset(tmp_path, bad={"000010004": b"", "000020001": b"GIF89a"})
    dataset = ColourReader()(ImageTextPairDataset.from_webdataset(tmp_path))
    meter = Meter(shards=3)
    if on_cluster:
        with get_client("cpu", n_workers=2) as client, watch(meter, client, show=False):
            dataset.compute()
    else:
        with dask.config.set(scheduler="sync"), watch(meter, None, show=False):
            dataset.compute()
    assert (meter.images, meter.failed) == (30, 2)
