"""Pipelines on real clusters: how many tasks there are, what they hold, what they leave, and what kills them."""

from __future__ import annotations

import time

import pytest
from colour_stages import Diary, most_at_once, stages_of
from colours import check_colours, read_output, write_dataset
from distributed import get_task_stream

from curator_dask.errors import ConfigError
from curator_dask.pipeline import Pipeline

SHARDS, SAMPLES = 8, 12
BAD = "000030005"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline") / "data"
    write_dataset(folder, SHARDS, SAMPLES, bad={BAD: b""})
    return folder


def diary_of(tmp_path):
    folder = tmp_path / "diary"
    folder.mkdir()
    return folder


def events_in(folder):
    """What was called, in which process."""
    return [tuple(path.name.split("-")[:2]) for path in folder.iterdir()]


@pytest.mark.parametrize("size", [1, 3])
def test_one_task_a_group_and_no_pixels_in_it(folder, client, tmp_path, size):
    with get_task_stream(client) as stream:
        summary = Pipeline("files", stages=stages_of(folder, tmp_path / "out", size=size)).run(client).summary
    assert (summary.rows, summary.failed, summary.written) == (SHARDS * SAMPLES, 1, SHARDS)
    table = read_output(tmp_path / "out")
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist(), bad={BAD})
    assert len([task for task in stream.data if "describe" in task["key"]]) == 2, "a worker"
    work = [task for task in stream.data if isinstance(task["key"], tuple)]  # those of partitions
    assert len(work) == -(-SHARDS // size), [task["key"] for task in work]
    assert max(task["nbytes"] for task in work) < 20_000
    assert_nothing_left(client)


def test_objects_come_back_in_order_and_without_pixels(folder, client):
    result = Pipeline("objects", stages=stages_of(folder)).run(client)
    objects = result.objects
    assert len(objects) == SHARDS * SAMPLES
    shards = [each.metadata["__url__"] for each in objects]
    assert shards == sorted(shards)
    assert all(each.image_data is None for each in objects)
    check_colours([each.image_id for each in objects], [each.embedding for each in objects], bad={BAD})
    assert_nothing_left(client)


def test_stages_are_set_up_once_a_machine_and_once_a_worker(folder, client, tmp_path):
    diary = diary_of(tmp_path)
    Pipeline(
        "diary", stages=stages_of(folder, tmp_path / "out", Diary(diary))
    ).run()  # the client that there is
    events = events_in(diary)
    workers = {process for what, process in events if what == "setup"}
    assert len(workers) == 2
    for what, times in (("node", 1), ("setup", 2), ("teardown", 2)):
        assert [name for name, _ in events].count(what) == times, what
    assert {process for what, process in events if what == "teardown"} == workers
    assert {process for what, process in events if what == "begin"} <= workers


def test_a_share_of_a_gpu_bounds_the_tasks_at_once(private_cluster, tmp_path):
    """By Dask's resources alone, so a CPU worker that declares a GPU will do."""
    write_dataset(tmp_path / "data", 8, 1)
    with private_cluster(n_workers=1, threads_per_worker=4, resources={"GPU": 1}) as client:
        most = {}
        for share in (0.5, 0.25, 1):
            diary = tmp_path / f"diary-{share}"
            diary.mkdir()
            stage = Diary(diary, seconds=0.3, thread_safe=True)
            stage.num_gpus_per_worker = share
            Pipeline("share", stages=stages_of(tmp_path / "data", None, stage, embeds=False)).run(client)
            most[share] = most_at_once(diary)
        assert most == {0.5: 2, 0.25: 4, 1: 1}
        stage.num_gpus_per_worker = 2
        with pytest.raises(ConfigError, match="num_gpus_per_worker=2: the workers have 1 each"):
            Pipeline("share", stages=stages_of(tmp_path / "data", None, stage, embeds=False)).run(client)
        assert_nothing_left(client)


def test_without_gpus_a_share_of_one_means_nothing(folder, client, tmp_path):
    diary = diary_of(tmp_path)
    stage = Diary(diary, seconds=0.2)
    stage.num_gpus_per_worker = 3
    Pipeline("share", stages=stages_of(folder, None, stage, embeds=False, batch=100)).run(client)
    assert most_at_once(diary) == 2, "both workers"


def test_a_stage_that_is_not_thread_safe_is_in_one_thread_at_a_time(private_cluster, tmp_path):
    write_dataset(tmp_path / "data", 6, 1)
    with private_cluster(n_workers=1, threads_per_worker=3) as client:
        most = {}
        for safe in (True, False):
            diary = tmp_path / f"diary-{safe}"
            diary.mkdir()
            stage = Diary(diary, seconds=0.2, thread_safe=safe)
            Pipeline("threads", stages=stages_of(tmp_path / "data", None, stage, embeds=False)).run(client)
            most[safe] = most_at_once(diary)
    assert most == {True: 3, False: 1}


def assert_nothing_left(client):
    """No result in the workers' memory, no stage set up."""
    end = time.monotonic() + 10
    while any(client.who_has().values()) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(client.who_has().values())
    assert set(client.run(stages_alive).values()) == {0}


def stages_alive():
    from curator_dask.stages.live import CHAINS

    return len(CHAINS.specs())
