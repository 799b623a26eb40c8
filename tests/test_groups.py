"""Several shards as one task: what they come to, one by one, and that nobody waits for another's trouble."""

from __future__ import annotations

import os
import pickle
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from colours import ColourReader, MeanColour, SlowColourReader, check_colours, read_output, write_dataset
from distributed import get_task_stream
from hypothesis import given
from hypothesis import strategies as st

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import OutputError
from curator_dask.runs import groups
from curator_dask.runs.groups import GROUPS_A_THREAD, MOST_SHARDS, Groups, RunGroup, shrinking_groups
from curator_dask.runs.lineage import trace
from curator_dask.runs.shardwise import shard_function
from curator_dask.runs.targets import Target

SHARDS, SAMPLES = 40, 4
BAD, BROKEN, WITHOUT_TAR = "000050002", "00013", "00021"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("groups") / "data"
    write_dataset(folder, SHARDS, SAMPLES, bad={BAD: b"no image"})
    (folder / f"{BROKEN}.parquet").write_bytes(b"no Parquet")
    return folder


def tasks_in(stream):
    """The keys of the tasks of partitions."""
    return [task["key"] for task in stream.data if isinstance(task["key"], tuple)]


@given(count=st.integers(0, 700), threads=st.integers(1, 40))
def test_groups_shrink_to_the_end(count, threads):
    found = shrinking_groups(count, threads)
    assert [number for group in found for number in group] == list(range(count))
    sizes = [len(group) for group in found]
    assert sizes == sorted(sizes, reverse=True)
    for group in found:
        # Of what was left each thread could have several such groups.
        most = (count - group.start) / (GROUPS_A_THREAD * threads)
        assert 1 <= len(group) <= max(1, min(MOST_SHARDS, most))


def test_few_shards_are_tasks_of_their_own_and_many_are_not():
    assert shrinking_groups(15, 2) == [range(number, number + 1) for number in range(15)]
    assert len(shrinking_groups(10_000, 2)) < 10_000 / MOST_SHARDS + 30


def groups_of(members, count_threads):
    targets = [Target(str(number), "", "", None, None, None) for number in range(10_000)]
    return Groups(RunGroup(None, (), None), members, range(10_000), targets, count_threads)


def test_groups_are_handed_out_large_ones_first():
    """What is given back comes before what is smaller, and nothing comes while each thread has its next."""
    groups = groups_of(shrinking_groups(40, 1), lambda: 1)
    sizes = []
    while (piece := groups.next_piece(0)) is not None:
        sizes.append([len(members) for members in piece[1]])
        assert piece[0].npartitions == len(piece[1])
        assert groups.next_piece(3) is None
        if len(sizes) == 1:
            groups.give_back(range(5, 8), together=True)
            groups.give_back(range(13, 15), together=False)
            groups.give_back((), together=True)
    assert sizes == [[10, 7], [3, 1, 1], [5, 4, 3], [2, 2], [1] * 7]

    many = groups_of(shrinking_groups(8000, 1), lambda: 1)
    lengths = []
    while (piece := many.next_piece(2)) is not None:
        lengths.append(sum(map(len, piece[1])))
        if len(lengths) == 1:
            assert many.next_piece(len(piece[1])) is None
            piece = many.next_piece(len(piece[1]) // 2)  # of the same size: before they run out
            lengths.append(sum(map(len, piece[1])))
    assert 1000 - MOST_SHARDS < max(lengths) <= 1000 and sum(lengths) == 8000


def test_workers_that_come_later_get_their_share(monkeypatch):
    monkeypatch.setattr(groups, "_COUNT_EVERY", 0.0)
    threads = [1]
    found = groups_of([], lambda: threads[0])
    found.give_back(range(30), together=False)
    assert found.next_piece(3) is None
    threads[0] = 2
    assert len(found.next_piece(3)[1]) == 30


def test_a_piece_carries_its_own_shards_alone():
    """What goes to the scheduler is as small as what it is for, however many shards there are."""
    many = groups_of(shrinking_groups(10_000, 1), lambda: 1)
    frame, members = many.next_piece(0)
    assert 1000 - MOST_SHARDS < sum(map(len, members)) <= 1000
    assert len(pickle.dumps(frame.expr)) < 300_000


def test_names_of_tasks_are_new_each_time():
    groups = groups_of([range(2)], lambda: 1)
    one, other = groups.one_by_one([1]).next_piece(0), groups.one_by_one([1]).next_piece(0)
    assert one[0].expr._name != other[0].expr._name and one[1] == other[1] == [[1]]


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


def shard_of(colours):
    """The number of the shard, up to 25, that images of these colours are from."""
    red, green, blue = torch.round(colours[0] / 4).int().tolist()
    return (red * 4096 + green * 64 + blue) // 10_000


class WritingMeanColour(MeanColour):
    def __init__(self, diary, deadly):
        super().__init__()
        self.diary, self.deadly = Path(diary), deadly

    def forward(self, images):
        made = super().forward(images)
        if len(images) == 2 and not images[1].any():
            return made  # the pictures on which a model is tried when it is loaded
        shard = shard_of(made)
        if shard == self.deadly and not (self.diary / "dead").exists():
            (self.diary / "dead").touch()
            os._exit(1)
        (self.diary / f"{time.time_ns()}-{shard:05d}").touch()
        return made


def test_what_a_worker_had_written_when_it_died_is_not_done_again(private_cluster, tmp_path, monkeypatch):
    """The deadly shard is the fifth of its group."""
    monkeypatch.setattr(groups, "JOINED_BYTES", 0)
    shards = 26  # whose colours are all different
    write_dataset(tmp_path / "in", shards, SAMPLES)
    (tmp_path / "diary").mkdir()
    with private_cluster(n_workers=1):
        dataset = ImageTextPairDataset.from_webdataset(tmp_path / "in")
        embedder = Diarist(tmp_path / "diary", 4, on_error="raise")
        summary = embedder(dataset).save_metadata(tmp_path / "out")
    assert (tmp_path / "diary" / "dead").exists()
    assert (summary.rows, summary.written, summary.failed) == (shards * SAMPLES, shards, 0)
    embedded = [int(path.name[-5:]) for path in (tmp_path / "diary").glob("*-*")]
    assert shrinking_groups(shards, 1)[0] == range(6)
    assert sorted(embedded) == list(range(shards))
    table = read_output(tmp_path / "out")
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist())


@pytest.mark.parametrize("seconds", [0.0, 0.7])
def test_a_group_that_takes_long_gives_back_what_is_left(folder, client, tmp_path, monkeypatch, seconds):
    monkeypatch.setattr(groups, "LONG_ENOUGH", seconds)
    monkeypatch.setattr(groups, "JOINED_BYTES", 0)
    with get_task_stream(client) as stream:
        dataset = SlowColourReader(0.2 if seconds else 0)(ImageTextPairDataset.from_webdataset(folder))
        summary = dataset.save_metadata(tmp_path / "out")
    assert (summary.written, summary.failed, list(summary.failed_shards)) == (SHARDS - 1, 1, [BROKEN])
    table = read_output(tmp_path / "out")
    assert len(table) == (SHARDS - 1) * SAMPLES
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist(), bad={BAD})
    tasks, fewest = len(tasks_in(stream)), len(shrinking_groups(SHARDS, 2))
    assert tasks == SHARDS if not seconds else fewest < tasks < SHARDS


class Kept:
    """A writer that keeps the frames."""

    def __init__(self):
        self.frames = {}

    def known(self, target):
        return None

    def reusable(self, target):
        return None

    def write(self, frame, target):
        self.frames[target.name] = frame
        return {"target": target.name}


def test_small_shards_share_batches(in_this_process, tmp_path):
    """The model sees the images of several in one batch, up to a number of bytes, and each has its own file."""
    write_dataset(tmp_path / "in", 6, SAMPLES)
    (tmp_path / "diary").mkdir()
    dataset = Diarist(tmp_path / "diary", None, batch_size=100)(
        ImageTextPairDataset.from_webdataset(tmp_path / "in")
    )
    lineage = trace(dataset.metadata)
    writer = Kept()
    size = (tmp_path / "in" / "00000.tar").stat().st_size
    targets = [Target(part.name, "", "", {"tar": {"size": size}}, None, None) for part in lineage.ranges]
    items = [(part, target.to_json()) for part, target in zip(lineage.ranges, targets, strict=True)]
    run = RunGroup(shard_function(lineage), writer, joined_bytes=3 * size)
    assert run(items) == [{"target": target.name} for target in targets]
    assert len([*(tmp_path / "diary").iterdir()]) == 2
    for name, frame in writer.frames.items():
        assert {key[:5] for key in frame["key"]} == {name} and list(frame.index) == list(range(SAMPLES))
        check_colours(frame["key"].tolist(), frame["image_embedding"].tolist())


class Panic(BaseException):
    """As an extension's, which is no Exception."""


class Panicking(ColourReader):
    """Raises what no library catches, at one shard."""

    def load_embedding_model(self, device):
        return PanickingMeanColour()


class PanickingMeanColour(MeanColour):
    def forward(self, images):
        made = super().forward(images)
        if 7 in map(shard_of, made.split(1)):
            raise Panic("at shard 7")
        return made


def test_what_ends_a_whole_group_costs_one_shard(client, tmp_path):
    write_dataset(tmp_path / "in", 26, SAMPLES)
    dataset = Panicking()(ImageTextPairDataset.from_webdataset(tmp_path / "in"))
    summary = dataset.save_metadata(tmp_path / "out")
    assert (summary.written, summary.failed_shards) == (25, {"00007": "Panic: at shard 7"})
    check_colours(*(read_output(tmp_path / "out")[name].to_pylist() for name in ("key", "image_embedding")))


def test_an_output_that_cannot_be_written_ends_the_run(client, tmp_path):
    for place in ("a", "b"):
        write_dataset(tmp_path / "in" / place, SHARDS, SAMPLES)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b").write_text("in the way of a folder")
    dataset = ColourReader()(ImageTextPairDataset.from_webdataset(tmp_path / "in"))
    with pytest.raises(OutputError, match="could not be written") as caught:
        dataset.save_metadata(tmp_path / "out")
    end = time.monotonic() + 10
    while (
        client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)) and time.monotonic() < end
    ):
        time.sleep(0.1)
    assert time.monotonic() < end, f"tasks are left, while {caught} is kept"
