"""Workers that are not like the others: without the package, or another version of it; at the start, and later."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

import pytest
import torch
from colours import ColourReader, Gate, MeanColour, check_colours, read_output, write_dataset

from curator_dask import __version__, get_client
from curator_dask.checks.indexing import write_indexes
from curator_dask.cluster import presence as presence_module
from curator_dask.cluster.workers import WorkerUnfit
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ClusterError
from curator_dask.settings import PATIENCE

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
def joins_later(
    client,
    gate,
    said,
    expected,
    preload=(),
    change=lambda: None,
    then=lambda: None,
    begun=None,
):
    """Another worker joins when the run has begun; the gate opens when the expected words have been said."""

    def wait_for(condition):
        end = time.monotonic() + 60
        while not condition() and time.monotonic() < end:
            time.sleep(0.02)

    def add():
        wait_for(begun or (lambda: "image_embedding: 3 values" in said.text))
        change()
        client.cluster.new_spec["options"]["preload"] = preload
        client.cluster.scale(len(client.cluster.worker_spec) + 1)
        wait_for(lambda: expected in said.text)
        then()
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
        with joins_later(client, gate, said, expected, preload(WITHOUT)):
            summary = dataset.save_metadata(out)
    assert expected in said.text
    assert summary.rows == SHARDS * SAMPLES and summary.complete
    table = read_output(out)
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist())


class FileColourReader(ColourReader):
    """Whose weight, of 1, is in a file."""

    def __init__(self, path, **settings):
        super().__init__(**settings)
        self.path = str(path)

    def load_embedding_model(self, device):
        layer = torch.nn.Linear(3, 3, bias=False)
        layer.weight.data = torch.eye(3) * float(Path(self.path).read_text())
        return torch.nn.Sequential(MeanColour(), layer.requires_grad_(False)).to(device)


@pytest.mark.parametrize("fault", ["no model", "another model", "an older version"])
def test_a_late_worker_that_is_unfit_is_left_out(folder, private_cluster, preload, tmp_path, said, fault):
    gate, out, weight = tmp_path / "gate", tmp_path / "out", tmp_path / "weight"
    weight.write_text("1")
    first, change, expected = {
        "no model": ((), weight.unlink, "cannot load FileColourReader"),
        "another model": (
            (),
            lambda: weight.write_text("2"),
            "does not run the same model as the first workers",
        ),
        "an older version": (preload(OLDER), lambda: None, f"expected the client's version {__version__}"),
    }[fault]
    with private_cluster(n_workers=1) as client:
        embedder = FileColourReader(weight)
        dataset = embedder(ImageTextPairDataset.from_webdataset(folder)).apply(Gate(gate))
        with joins_later(client, gate, said, expected, first, change):
            summary = dataset.save_metadata(out)
    (line,) = [line for line in said.messages if expected in line]  # once, however many tasks it was given
    assert line.startswith("the worker tcp://") and line.endswith("It is left out")
    assert summary.rows == SHARDS * SAMPLES and summary.complete
    table = read_output(out)
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist())


def test_what_only_a_worker_that_died_may_do_is_handed_out_again(
    folder, private_cluster, preload, tmp_path, said, monkeypatch
):
    """The one in its place has another address, and an unfit one is there all the while."""
    monkeypatch.setattr(presence_module, "_LOOK_EVERY", 0.5)
    gate, out = tmp_path / "gate", tmp_path / "out"
    with private_cluster(n_workers=1) as client:
        (fit,) = client.scheduler_info(n_workers=-1)["workers"]
        dataset = ColourReader()(ImageTextPairDataset.from_webdataset(folder)).apply(Gate(gate))

        def kill():
            end = time.monotonic() + 30  # until what came back from the unfit one is waiting for the other
            while len(client.processing()[fit]) < 3 and time.monotonic() < end:
                time.sleep(0.05)
            client.run(os._exit, 1, workers=[fit], on_error="ignore")

        expected = "expected the client's version"
        with joins_later(client, gate, said, expected, preload(OLDER), then=kill):
            summary = dataset.save_metadata(out)
    assert summary.rows == SHARDS * SAMPLES and summary.complete
    table = read_output(out)
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist())


def test_where_all_workers_have_become_unfit_the_run_ends(
    folder, private_cluster, tmp_path, said, monkeypatch
):
    gate, weight = tmp_path / "gate", tmp_path / "weight"
    weight.write_text("1")
    with private_cluster(n_workers=1) as client:
        embedder = FileColourReader(weight)
        dataset = embedder(ImageTextPairDataset.from_webdataset(folder)).apply(Gate(gate))

        def begun():
            return "image_embedding: 3 values" in said.text and any(client.processing().values())

        def lose_the_model():
            monkeypatch.setenv(
                PATIENCE.name, "1s"
            )  # of a fit worker, and not of workers that are started again
            weight.unlink()
            client.restart_workers(list(client.scheduler_info(n_workers=-1)["workers"]))

        with (
            joins_later(client, gate, said, "is left out", change=lose_the_model, begun=begun),
            pytest.raises(WorkerUnfit, match=r"cannot load FileColourReader.*FileNotFoundError"),
        ):
            dataset.save_metadata(tmp_path / "out")


class GatedReader(FileColourReader):
    """Whose model works when a file is there."""

    def __init__(self, path, gate, **settings):
        super().__init__(path, **settings)
        self.gate = str(gate)

    def load_embedding_model(self, device):
        return torch.nn.Sequential(WaitsFor(self.gate), super().load_embedding_model(device))


class WaitsFor(torch.nn.Module):
    def __init__(self, path):
        super().__init__()
        self.path = path

    def forward(self, images):
        end = time.monotonic() + 60
        # When a model is loaded it is tried with two pictures.
        while len(images) == SAMPLES and not Path(self.path).exists() and time.monotonic() < end:
            time.sleep(0.02)
        return images


def test_a_retry_leaves_a_late_worker_out_too(folder, private_cluster, tmp_path, said):
    gate, out, weight = tmp_path / "gate", tmp_path / "out", tmp_path / "weight"
    weight.write_text("1")
    dataset = ImageTextPairDataset.from_webdataset(folder)

    def begun():
        return any("retry-file" in str(key) for keys in client.processing().values() for key in keys)

    assert GatedReader(weight, gate, max_pixels=1)(dataset).save_metadata(out).good == 0
    expected = "cannot load GatedReader"
    with (
        private_cluster(n_workers=1) as client,
        joins_later(client, gate, said, expected, change=weight.unlink, begun=begun),
    ):
        summary = GatedReader(weight, gate).retry(out)
    assert len([line for line in said.messages if expected in line]) == 1
    assert (summary.rows, summary.failed) == (SHARDS * SAMPLES, 0) and summary.complete
    table = read_output(out)
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist())
