"""Workers that are not like the others: without the package, or another version of it; at the start, and later."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest
from colours import ColourReader, Gate, check_colours, read_output, write_dataset

from curator_dask import __version__, get_client
from curator_dask.checks.indexing import write_indexes
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ClusterError

SHARDS, SAMPLES = 12, 6

#: What a worker's process does before it joins.
WITHOUT = "import sys; sys.modules['curator_dask'] = None"
OLDER = "import curator_dask; curator_dask.__version__ = '0.0.9'"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("late") / "data"
    write_dataset(folder, SHARDS, SAMPLES)
    return folder


@pytest.fixture
def preload(tmp_path):
    """Writes what a worker's process is to do first, as `preload` takes it."""

    def write(text):
        path = tmp_path / "preload.py"
        path.write_text(text)
        return [str(path)]

    return write


@contextlib.contextmanager
def joins_later(client, preload, gate, said, expected):
    """Another worker joins when the run has begun; the gate opens when the expected words have been said."""

    def wait_for(text):
        end = time.monotonic() + 60
        while text not in said.text and time.monotonic() < end:
            time.sleep(0.02)

    def add():
        wait_for("image_embedding: 3 values")
        client.cluster.new_spec["options"]["preload"] = preload
        client.cluster.scale(len(client.cluster.worker_spec) + 1)
        wait_for(expected)
        gate.touch()

    thread = threading.Thread(target=add)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (
            WITHOUT,
            r"worker tcp://\S+ cannot import curator_dask \(ModuleNotFoundError.*expected " + __version__,
        ),
        (OLDER, r"worker tcp://\S+ has curator_dask 0.0.9; expected " + __version__),
    ],
    ids=["none", "older"],
)
def test_workers_without_this_version_are_named_before_they_get_a_task(folder, preload, first, expected):
    with get_client("cpu", n_workers=1, preload=preload(first), verbose=False) as client:
        for call in (ImageTextPairDataset.from_webdataset, write_indexes):
            with pytest.raises(ClusterError, match=expected):
                call(folder)
        assert len(client.scheduler_info(n_workers=-1)["workers"]) == 1  # a task would have ended it


def test_a_late_worker_without_the_package_is_left_out(folder, private_cluster, preload, tmp_path, said):
    gate, out = tmp_path / "gate", tmp_path / "out"
    expected = "is left out: it cannot import curator_dask (ModuleNotFoundError"
    with private_cluster(n_workers=1) as client:
        dataset = ColourReader()(ImageTextPairDataset.from_webdataset(folder)).apply(Gate(gate))
        with joins_later(client, preload(WITHOUT), gate, said, expected):
            summary = dataset.save_metadata(out)
    assert expected in said.text
    assert summary.rows == SHARDS * SAMPLES and summary.complete
    table = read_output(out)
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist())
