"""Several shards as one task: what they come to, one by one, and that nobody waits for another's trouble."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from colours import ColourReader, MeanColour, SlowColourReader, check_colours, read_output, write_dataset
from distributed import get_task_stream
from hypothesis import given
from hypothesis import strategies as st

from curator_dask import get_client
from curator_dask.datasets import ImageTextPairDataset, groups
from curator_dask.datasets.groups import GROUPS_A_THREAD, MOST_BYTES, MOST_SHARDS, groups_by_size
from curator_dask.datasets.planning import plan_targets
from curator_dask.datasets.running import run_partitions
from curator_dask.datasets.saving import Running
from curator_dask.datasets.writing import Output, WritePartition
from curator_dask.errors import OutputError
from curator_dask.frames.lineage import trace
from curator_dask.frames.parquet import output_schema
from curator_dask.progress import Meter

SHARDS, SAMPLES = 40, 4
BAD, BROKEN, WITHOUT_TAR = "000050002", "00013", "00021"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("groups") / "data"
    write_dataset(folder, SHARDS, SAMPLES, bad={BAD: b"no image"})
    (folder / f"{BROKEN}.parquet").write_bytes(b"no Parquet")
    return folder


@pytest.fixture(scope="module")
def client():
    with get_client("cpu", n_workers=2, verbose=False) as client:
        yield client


def tasks_in(stream):
    """The keys of the tasks of partitions."""
    return [task["key"] for task in stream.data if isinstance(task["key"], tuple)]


@given(
    sizes=st.lists(st.integers(0, MOST_BYTES * 2) | st.integers(0, MOST_BYTES // 20), max_size=300),
    threads=st.integers(1, 40),
)
def test_groups_are_neighbours_within_bounds(sizes, threads):
    found = groups_by_size(sizes, threads)
    assert [number for group in found for number in group] == list(range(len(sizes)))
    for group in found:
        held = sum(sizes[number] for number in group)
        assert 1 <= len(group) <= MOST_SHARDS
        assert held <= MOST_BYTES or len(group) == 1
        # Of what was left each thread could have several such groups.
        assert len(group) == 1 or len(group) * GROUPS_A_THREAD * threads <= len(sizes) - group.start


def test_few_shards_are_tasks_of_their_own_and_many_are_not():
    assert groups_by_size([1000] * 15, 2) == [range(number, number + 1) for number in range(15)]
    assert len(groups_by_size([1000] * 10_000, 2)) < 10_000 / MOST_SHARDS + 30
    assert len(groups_by_size([MOST_BYTES] * 100, 2)) == 100


def test_grouped_or_not_the_files_are_the_same(folder, client, tmp_path, monkeypatch):
    """With a bad image, a shard that cannot be read, and files that are finished: as one task a shard."""
    dataset = ColourReader()(ImageTextPairDataset.from_webdataset(folder))
    summaries = {}
    for name, most in (("alone", 1), ("grouped", MOST_SHARDS)):
        monkeypatch.setattr(groups, "MOST_SHARDS", most)
        with get_task_stream(client) as stream:
            summaries[name] = dataset.save_metadata(tmp_path / name)
        tasks = tasks_in(stream)
        assert len(tasks) == SHARDS if most == 1 else SHARDS / MOST_SHARDS < len(tasks) < SHARDS, tasks
    one, other = summaries.values()
    for field in ("rows", "failed", "written", "reasons", "examples", "skipped"):
        assert getattr(one, field) == getattr(other, field), field
    assert list(one.failed_shards) == list(other.failed_shards) == [BROKEN]
    assert one.failed_shards == other.failed_shards
    table = read_output(tmp_path / "grouped")
    assert len(table) == (SHARDS - 1) * SAMPLES
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist(), bad={BAD})
    names = {path.name for path in (tmp_path / "alone").iterdir()}
    assert names == {path.name for path in (tmp_path / "grouped").iterdir()} and len(names) == SHARDS - 1
    for name in names:
        first, second = (pq.read_table(tmp_path / each / name) for each in ("alone", "grouped"))
        assert first.equals(second, check_metadata=True), name
        assert {key[:5] for key in second["key"].to_pylist()} == {name[:5]}

    for number in range(1, SHARDS, 2):
        (tmp_path / "grouped" / f"{number:05d}.parquet").unlink(missing_ok=True)
    again = dataset.save_metadata(tmp_path / "grouped")
    assert (again.written, again.skipped) == (SHARDS // 2 - 1, SHARDS // 2)
    assert read_output(tmp_path / "grouped").equals(table)


def test_a_tar_that_is_missing_in_a_group(client, tmp_path):
    write_dataset(tmp_path / "in", SHARDS, SAMPLES)
    dataset = ColourReader()(ImageTextPairDataset.from_webdataset(tmp_path / "in"))
    (tmp_path / "in" / f"{WITHOUT_TAR}.tar").unlink()
    summary = dataset.save_metadata(tmp_path / "out")
    assert (summary.written, list(summary.failed_shards)) == (SHARDS - 1, [WITHOUT_TAR])
    assert f"{WITHOUT_TAR}.tar" in summary.failed_shards[WITHOUT_TAR]
    table = read_output(tmp_path / "out")
    assert len(table) == (SHARDS - 1) * SAMPLES
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist())


def add_one(frame):
    return frame.assign(width=frame["width"] + 1)


def test_what_is_more_than_functions_in_a_row_is_not_grouped(folder, client, tmp_path):
    """Their tasks are Dask's own: filters, columns, functions with arguments, the same function twice."""
    frame = ImageTextPairDataset.from_webdataset(folder).metadata

    def mapped(step, *others):
        return frame.map_partitions(step, *others, meta=frame._meta, enforce_metadata=False)

    once, twice = mapped(add_one), mapped(add_one).map_partitions(add_one, meta=frame._meta)
    assert trace(frame).is_mapped and trace(frame.partitions[3:]).is_mapped and trace(once).is_mapped
    unsafe = mapped(add_one).map_partitions(add_one, meta=frame._meta, enforce_metadata=False)
    for other in (
        frame[["key", "__url__"]],
        frame[frame.width > 1],
        twice,
        unsafe,
        mapped(lambda f, n: f, 1),
    ):
        assert not trace(other).is_mapped
    dataset = ImageTextPairDataset.from_webdataset(folder)
    dataset.with_metadata(unsafe).save_metadata(tmp_path / "twice")
    assert set(read_output(tmp_path / "twice")["width"].to_pylist()) == {26}


class Diarist(ColourReader):
    """Writes down each shard that it embeds; dies with its worker, once, before it has embedded a certain one."""

    def __init__(self, diary, deadly, **settings):
        super().__init__(**settings)
        self.diary, self.deadly = os.fspath(diary), deadly

    def load_embedding_model(self, device):
        return WritingMeanColour(self.diary, self.deadly)


class WritingMeanColour(MeanColour):
    def __init__(self, diary, deadly):
        super().__init__()
        self.diary, self.deadly = Path(diary), deadly

    def forward(self, images):
        made = super().forward(images)
        red, green, blue = torch.round(made[0] / 4).int().tolist()
        shard = (red * 4096 + green * 64 + blue) // 10_000
        if shard == self.deadly and not (self.diary / "dead").exists():
            (self.diary / "dead").touch()
            os._exit(1)
        (self.diary / f"{time.time_ns()}-{shard:05d}").touch()
        return made


def test_what_a_worker_had_written_when_it_died_is_not_done_again(tmp_path):
    """The deadly shard is the fifth of its group; and shards are done in their order."""
    shards = 26  # whose colours are all different
    write_dataset(tmp_path / "in", shards, SAMPLES)
    (tmp_path / "diary").mkdir()
    with get_client("cpu", n_workers=1, verbose=False):
        dataset = ImageTextPairDataset.from_webdataset(tmp_path / "in")
        embedder = Diarist(tmp_path / "diary", 4, on_error="raise")
        summary = embedder(dataset).save_metadata(tmp_path / "out")
    assert (tmp_path / "diary" / "dead").exists()
    assert (summary.rows, summary.written, summary.failed) == (shards * SAMPLES, shards, 0)
    embedded = [int(path.name[-5:]) for path in sorted((tmp_path / "diary").glob("*-*"))]
    # The first group has six; a model is tried on a black image, the colour of shard 0, when it is loaded.
    assert groups_by_size([1] * shards, 1)[0] == range(6)
    assert [shard for shard in embedded if shard] == list(range(1, shards))
    table = read_output(tmp_path / "out")
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist())


def grouped(dataset, out, client):
    """The groups that `save_metadata` would run."""
    frame = dataset.metadata
    lineage = trace(frame)
    output = Output(os.fspath(out), None, in_place=False, overwrite=False, drop_failed=False)
    schema = output_schema(frame._meta, {"image_embedding": 3}, lineage.reader.schema)
    targets = plan_targets(frame, lineage, output, schema, {}, None)
    write = WritePartition(schema, output, "key", {})
    return Running().groups(lineage, targets, range(len(targets)), write, client)


def test_a_group_that_nobody_waits_for_ends_with_its_shard(folder, tmp_path):
    """As after Ctrl-C, where the workers are a cluster's that stays."""

    class Slow(ColourReader):
        def load_embedding_model(self, device):
            return Sleeper()

    class Sleeper(MeanColour):
        def forward(self, images):
            time.sleep(0.5)
            return super().forward(images)

    with get_client("cpu", n_workers=1, verbose=False) as client:
        dataset = Slow()(ImageTextPairDataset.from_webdataset(folder))
        found = grouped(dataset, tmp_path / "out", client)
        assert len(found.members[0]) == MOST_SHARDS
        results = run_partitions(found.frame, client)
        assert len(next(results)[1]) == MOST_SHARDS
        while len(list((tmp_path / "out").glob("*.parquet"))) < MOST_SHARDS + 2:
            time.sleep(0.02)
        results.close()
        time.sleep(3)
        files = len(list((tmp_path / "out").glob("*.parquet")))
        assert MOST_SHARDS + 2 <= files <= MOST_SHARDS + 4, files
        assert not any(client.processing().values())
        # The same again is begun again.
        again = dict(run_partitions(found.frame.partitions[[1]], client))
        assert len(again[0]) == len(found.members[1])


def test_an_output_that_cannot_be_written_ends_the_run(client, tmp_path):
    for place in ("a", "b"):
        write_dataset(tmp_path / "in" / place, SHARDS, SAMPLES)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b").write_text("in the way of a folder")
    dataset = ColourReader()(ImageTextPairDataset.from_webdataset(tmp_path / "in"))
    with pytest.raises(OutputError, match="could not be written"):
        dataset.save_metadata(tmp_path / "out")


def test_a_meter_knows_of_shards_before_their_tasks_end():
    meter = Meter(shards=20)
    meter.count({"images": 300, "failed": 0, "shards": 3, "rows": 300})
    meter.started -= 10
    assert str(meter).startswith("shards 3/20 | 300 images, 30.0/s")
    assert meter.remaining == pytest.approx((20 * 100 - 300) / 30, rel=0.05)
    for _ in range(8):
        meter.finish(rows=100)
    assert str(meter).startswith("shards 8/20")
    meter.count({"images": 0, "failed": 0, "shards": 30, "rows": 3000})  # told again after a worker's death
    meter.broken = 1
    assert str(meter).startswith("shards 19/20, 1 failed")


def test_progress_tells_of_shards_within_a_group(folder, client, tmp_path, monkeypatch):
    """Before the first task has ended, shards are counted."""
    seen = []
    count = Meter.count
    monkeypatch.setattr(
        Meter, "count", lambda self, event: (count(self, event), seen.append((self.done, self.finished)))
    )
    SlowColourReader(0.3)(ImageTextPairDataset.from_webdataset(folder)).save_metadata(tmp_path / "out")
    assert any(done == 0 and finished > 0 for done, finished in seen), seen
    assert max(finished for _, finished in seen) <= SHARDS - 1
