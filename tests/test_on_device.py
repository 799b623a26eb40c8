"""A whole run on a cluster of each device: what a GPU's frames, memory and arrays make of it, and a CPU's."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from colour_stages import stages_of
from colours import ColourReader, check_colours, read_output, write_dataset

from curator_dask import backend
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.image.embedders import TimmImageEmbedder
from curator_dask.pipeline import Pipeline
from curator_dask.runs.step import ColumnStep
from curator_dask.stages import ProcessingStage

SHARDS, SAMPLES = 4, 12
BAD = "000020005"
DAYS = [datetime.date(2024, 5, 1 + number) for number in range(SAMPLES - 1)]
#: Of types that cuDF lacks; the last value is null.
COLUMNS = {
    "day": pa.array([*DAYS, None], pa.date32()),
    "raw": pa.array([*(bytes([number, 255]) for number in range(SAMPLES - 1)), None]),
    "point": pa.array([*([number, 0.5] for number in range(SAMPLES - 1)), None], pa.list_(pa.float64(), 2)),
    "tags": pa.array(
        [*([("a", number)] for number in range(SAMPLES - 1)), None], pa.map_(pa.string(), pa.int8())
    ),
    "nothing": pa.nulls(SAMPLES, pa.list_(pa.struct([("a", pa.int8())]))),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("device") / "data"
    write_dataset(folder, SHARDS, SAMPLES, bad={BAD: b"no image"})
    for path in folder.glob("*.parquet"):
        table = pq.read_table(path)
        for name, column in COLUMNS.items():
            table = table.append_column(name, column)
        pq.write_table(table, path)
    return folder


def sources(folder):
    columns = ["key", *COLUMNS]
    return {row["key"]: row for row in read_output(folder).select(columns).to_pylist()}


def test_workers_are_on_the_device(device_client, device):
    for found in device_client.run(backend.current).values():
        assert found.device == device
        assert found.frames == ("cudf" if device == "gpu" else "pandas")
    where = device_client.run(os.environ.get, backend.DEVICE_VARIABLE)
    assert set(where.values()) == {device}


def test_save_again_retry_and_another_model(device_client, folder, tmp_path):
    dataset = ImageTextPairDataset.from_webdataset(folder)
    first = ColourReader()(dataset).save_metadata(tmp_path / "out")
    assert (first.rows, first.failed, first.written) == (SHARDS * SAMPLES, 1, SHARDS)
    again = ColourReader()(dataset).save_metadata(tmp_path / "out")
    assert (again.written, again.skipped) == (0, SHARDS)
    tried = ColourReader().retry(tmp_path / "out")
    assert (tried.rows, tried.failed) == (1, 1)
    both = ColourReader(image_embedding_column="second")(ColourReader()(dataset))
    both.save_metadata(tmp_path / "both")
    for name, vectors in (("out", ["image_embedding"]), ("both", ["image_embedding", "second"])):
        table = read_output(tmp_path / name)
        for column in vectors:
            check_colours(table["key"].to_pylist(), table[column].to_pylist(), bad={BAD})
            assert table.schema.field(column).type == pa.list_(pa.float32(), 3)
        assert [table.schema.field(column).type for column in COLUMNS] == [
            each.type for each in COLUMNS.values()
        ]
        assert {row["key"]: row for row in table.select(["key", *COLUMNS]).to_pylist()} == sources(folder)
        assert table["image_error"].null_count == len(table) - 1


def test_partitions_that_are_mixed_and_filtered(device_client, device, folder, tmp_path):
    frame = ImageTextPairDataset.from_webdataset(folder)
    first = DAYS[6] if device == "cpu" else pd.Timestamp(DAYS[6])  # cuDF has times alone
    mixed = frame.with_metadata(frame.metadata[frame.metadata["day"] >= first].shuffle("key"))
    summary = ColourReader()(mixed).save_metadata(tmp_path / "out")
    table = read_output(tmp_path / "out")
    assert (
        summary.rows
        == len(table)
        == sum(row["day"] is not None and row["day"] >= DAYS[6] for row in sources(folder).values())
    )
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist(), bad={BAD})
    assert {row["key"]: row for row in table.select(["key", *COLUMNS]).to_pylist()}.items() <= sources(
        folder
    ).items()


class Dated(ColumnStep):
    """Makes columns of types that cuDF lacks."""

    columns = {"made": pa.date32(), "packed": pa.large_binary()}  # noqa: RUF012

    def compute(self, rows):
        return {"made": [DAYS[0]] * len(rows), "packed": [b"\x00\xff"] * len(rows)}


def test_columns_that_a_step_makes_have_the_types_that_it_promises(device_client, folder, tmp_path):
    dataset = ImageTextPairDataset.from_webdataset(folder).apply(Dated())
    assert dataset.filter("nothing[1].a is null").save_metadata(tmp_path / "out").rows == SHARDS * SAMPLES
    table = read_output(tmp_path / "out")
    assert {name: table.schema.field(name).type for name in Dated.columns} == Dated.columns
    assert set(table["made"].to_pylist()) == {DAYS[0]} and set(table["packed"].to_pylist()) == {b"\x00\xff"}


class Inverted(ProcessingStage):
    """Turns the colours around, in the pixels' own library."""

    name = "inverted"

    def __init__(self, library):
        self.library = library

    def inputs(self):
        return ["data"], ["image_data"]

    def outputs(self):
        return ["data"], ["image_data"]

    def process(self, task):
        for image in task.data:
            if image.error is None:
                assert type(image.image_data).__module__.partition(".")[0] == self.library
                image.image_data = 255 - image.image_data
        return task


def test_a_stage_that_changes_pixels_on_the_device(device_client, device, folder, tmp_path):
    stage = Inverted("cupy" if device == "gpu" else "numpy")
    Pipeline("inverted", stages=stages_of(folder, tmp_path / "out", stage)).run(device_client)
    table = read_output(tmp_path / "out")
    vectors = [each and [255 - value for value in each] for each in table["image_embedding"].to_pylist()]
    check_colours(table["key"].to_pylist(), vectors, bad={BAD})


@pytest.mark.parametrize("device", ["gpu"], indirect=True)
def test_a_gpu_without_room_for_the_batch(device_client, folder, tmp_path):
    model = TimmImageEmbedder("resnet50", pretrained=False, batch_size=4096)
    dataset = ImageTextPairDataset.from_webdataset(folder)
    model(dataset).save_metadata(tmp_path / "free")
    device_client.run(torch.cuda.set_per_process_memory_fraction, 0.004)
    model(dataset).save_metadata(tmp_path / "full")
    free, full = (read_output(tmp_path / name) for name in ("free", "full"))
    assert full["image_error"].equals(free["image_error"]) and full["key"].equals(free["key"])


class LosesItsGpu(ColumnStep):
    """On the first call ever, breaks the context of the worker's GPU."""

    columns = {"n": pa.int8()}  # noqa: RUF012

    def __init__(self, marker):
        self.marker = str(marker)

    def compute(self, rows):
        if not Path(self.marker).exists():
            Path(self.marker).touch()
            values, beyond = torch.zeros(1, device="cuda"), torch.tensor([9], device="cuda")
            values[beyond] += 1  # asserts on the device, and so later
        return {"n": pa.array([1] * len(rows), pa.int8())}


@pytest.mark.parametrize("device", ["gpu"], indirect=True)
@pytest.mark.parametrize("are_mixed", [False, True])
def test_a_worker_whose_gpu_is_lost(device_client, folder, tmp_path, are_mixed):
    dataset = ImageTextPairDataset.from_webdataset(folder)
    if are_mixed:
        dataset = dataset.with_metadata(dataset.metadata.repartition(npartitions=SHARDS // 2))
    dataset = ColourReader()(dataset).apply(LosesItsGpu(tmp_path / "marker"))
    summary = dataset.save_metadata(tmp_path / "out")
    assert (summary.rows, summary.failed, summary.failed_shards) == (SHARDS * SAMPLES, 1, {})
