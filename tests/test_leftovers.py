"""The check that ends every test on a cluster sees what is left."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from pathlib import Path

import pytest
from colours import ColourReader, write_dataset
from leftovers import check_nothing_left

from curator_dask import cache
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.outputs.lock import LOCK_NAME
from curator_dask.stages import live
from curator_dask.webdataset import staging

_held: list = []
"""In a worker's process: what is let go by `let_go`."""


def leak_a_model():
    _held.append(contextlib.ExitStack())
    _held[-1].enter_context(cache.ENCODERS.lease("a model", object))


def leak_a_loader():
    _held.append(contextlib.ExitStack())
    _held[-1].enter_context(cache.LOADERS.lease(cache.LOADERS.specs()[0], object))


def leak_a_pipeline():
    spec = live.ChainSpec((), "of a test")
    with live.CHAINS.lease(spec, spec.build):
        pass
    _held.append(contextlib.ExitStack())
    _held[-1].callback(live.CHAINS.forget, spec)


def leak_a_copy():
    path = Path(tempfile.gettempdir(), "shard-of-a-test.tar")
    path.write_bytes(b"tar")
    with staging.STAGE.lease("file://" + str(path)):
        path.unlink()
    _held.append(contextlib.ExitStack())
    _held[-1].callback(staging.STAGE.clear)


def leak_a_thread():
    end = threading.Event()
    threading.Thread(target=end.wait, name="curator-load", daemon=True).start()
    _held.append(contextlib.ExitStack())
    _held[-1].callback(end.set)


def let_go():
    while _held:
        _held.pop().close()


LEAKS = {
    leak_a_model: "1 leases of a model on tcp://",
    leak_a_loader: "1 leases of a loader on tcp://",
    leak_a_pipeline: "pipeline of run of a test on tcp://",
    leak_a_copy: "1 copies of shards on tcp://",
    leak_a_thread: "thread curator-load on tcp://",
}


def test_what_is_left_on_a_worker_is_seen(client, tmp_path):
    write_dataset(tmp_path / "data", 2, 3)
    ColourReader()(ImageTextPairDataset.from_webdataset(tmp_path / "data")).save_metadata(tmp_path / "out")
    check_nothing_left(client, tmp_path)
    one = next(iter(client.scheduler_info(n_workers=-1)["workers"]))
    for leak, message in LEAKS.items():
        client.run(leak, workers=[one])
        try:
            with pytest.raises(AssertionError, match=message):
                check_nothing_left(client, tmp_path, seconds=0.2)
        finally:
            client.run(let_go)
        check_nothing_left(client, tmp_path)


def test_a_result_that_is_kept_is_seen(client):
    future = client.submit(sum, [1, 2])
    assert future.result() == 3
    with pytest.raises(
        AssertionError, match=f"task {future.key} on the scheduler.*result {future.key} on tcp"
    ):
        check_nothing_left(client, seconds=0.2)


@pytest.mark.parametrize("name", [".00000.parquet.host-1-0123abcd.tmp", LOCK_NAME])
def test_a_file_that_is_kept_is_seen(client, tmp_path, name):
    path = tmp_path / "out" / name
    path.parent.mkdir()
    path.touch()
    with pytest.raises(AssertionError, match=f"file {path}"):
        check_nothing_left(client, tmp_path, seconds=0.2)
    path.unlink()
