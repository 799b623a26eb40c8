"""What a run leaves on its workers: one model, no open shard, no results."""

from __future__ import annotations

import os
import threading
import time

import dask.dataframe as dd
import psutil
import pytest
from colours import ColourReader, Gate, check_colours, read_output, write_dataset
from distributed import Client, LocalCluster, get_task_stream

from curator_dask import get_client
from curator_dask.cache import ENCODERS, LOADERS
from curator_dask.cluster import presence as presence_module
from curator_dask.cluster.leaving import leave, leave_if_broken
from curator_dask.cluster.presence import Presence
from curator_dask.cluster.setup import set_up_workers
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ClusterError
from curator_dask.settings import PATIENCE

SHARDS, SAMPLES = 8, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume") / "data"
    write_dataset(folder, SHARDS, SAMPLES, bad={"000030005": b""})
    return folder


def live_specs():
    # By name: sent by value, it would take the caches along.
    from curator_dask import cache

    return cache.ENCODERS.specs(), cache.LOADERS.specs()


def finished_tasks(dask_scheduler):
    return {name: prefix.state_counts["memory"] for name, prefix in dask_scheduler.task_prefixes.items()}


def test_one_model_a_worker_for_all_shards(folder, client, tmp_path):
    embed = ColourReader()
    embed(ImageTextPairDataset.from_webdataset(folder)).save_metadata(tmp_path / "one")
    mine = embed.encoder_spec()

    for encoders, loaders in client.run(live_specs).values():
        assert encoders.count(mine) == 1
        assert len(encoders) <= 2
        assert len(loaders) <= 2


def test_a_model_is_loaded_where_there_is_work(folder, client, tmp_path, said):
    """Of two workers one, and that does it; both, where an earlier run has left enough for both."""
    dataset = ImageTextPairDataset.from_webdataset(folder)
    embed, first, out = ColourReader(batch_size=3), tmp_path / "first", tmp_path / "out"
    with get_task_stream(client) as stream:
        embed(dataset.with_metadata(dataset.metadata.partitions[:1])).save_metadata(first)
    (loaded,) = {task["worker"] for task in stream.data if "describe" in task["key"]}
    assert {task["worker"] for task in stream.data} == {loaded}
    assert sum(embed.encoder_spec() in encoders for encoders, _ in client.run(live_specs).values()) == 1
    embed(dataset).save_metadata(out)
    for name in ("00003", "00005"):
        (out / f"{name}.parquet").unlink()
    for left, workers in ((2, 2), (0, 1)):
        with get_task_stream(client) as stream:
            assert embed(dataset).save_metadata(out).written == left
        assert len([task for task in stream.data if "describe" in task["key"]]) == workers


def test_nothing_is_left_on_the_workers(folder, client, tmp_path):
    def state():
        process = psutil.Process()
        loading = [thread.name for thread in threading.enumerate() if thread.name.startswith("curator-load")]
        tars = [file.path for file in process.open_files() if file.path.endswith(".tar")]
        return loading, tars

    ColourReader()(ImageTextPairDataset.from_webdataset(folder)).save_metadata(tmp_path / "out")
    for loading, tars in client.run(state).values():
        assert loading == []
        assert tars == []
    end = time.monotonic() + 30  # workers hear of it that a result is no longer wanted, soon but not at once
    while any(client.run(lambda dask_worker: len(dask_worker.data)).values()):
        assert time.monotonic() < end, "results stay on the workers"
        time.sleep(0.1)


def test_a_partition_is_one_task(folder, client, tmp_path):
    dataset = ColourReader()(ImageTextPairDataset.from_webdataset(folder))
    before = client.run_on_scheduler(finished_tasks)
    dataset.save_metadata(tmp_path)
    after = client.run_on_scheduler(finished_tasks)
    counts = {name: count - before.get(name, 0) for name, count in after.items()}
    assert sum(count for name, count in counts.items() if name != "describe") == SHARDS, counts


def test_memory_does_not_grow_with_shards(client, tmp_path):
    """A generous bound; `benchmarks/memory.py` measures."""

    def memory():
        return psutil.Process().memory_info().rss

    write_dataset(tmp_path / "few", 6, SAMPLES)
    write_dataset(tmp_path / "many", 60, SAMPLES)
    embed = ColourReader()
    after = []
    for name in ("few", "many"):
        summary = embed(ImageTextPairDataset.from_webdataset(tmp_path / name)).save_metadata(
            tmp_path / f"{name}-out"
        )
        assert summary.failed_shards == {}
        after.append(sum(client.run(memory).values()))
    assert after[1] < after[0] * 1.15, "memory grew by more than 15 % with ten times as many shards"


@pytest.mark.parametrize("how", ["shuffle", "merge", "sort_values"])
def test_vectors_can_be_shuffled_on_a_cluster(folder, client, tmp_path, how):
    dataset = ColourReader()(ImageTextPairDataset.from_webdataset(folder))
    frame = dataset.metadata
    if how == "merge":
        other = dd.from_pandas(frame[["key"]].compute().assign(score=1.0), npartitions=3)
        frame = frame.merge(other, on="key")
    else:
        frame = getattr(frame, how)("key")
    dataset.with_metadata(frame).save_metadata(tmp_path / "out")
    table = read_output(tmp_path / "out")
    assert len(table) == SHARDS * SAMPLES
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist(), bad={"000030005"})


def paused(dask_worker):
    """As Dask does where memory runs out; its memory monitor, which would look again, is stopped."""
    from distributed.core import Status

    dask_worker.periodic_callbacks["memory_monitor"].stop()
    dask_worker.status = Status.paused


def test_workers_paused_for_memory_end_the_run(folder, private_cluster, tmp_path, monkeypatch):
    """Dask lets them finish what they do, and gives them nothing more."""
    monkeypatch.setenv(PATIENCE.name, "2s")
    monkeypatch.setattr(presence_module, "_LOOK_EVERY", 0.5)
    with private_cluster(n_workers=1) as client:
        dataset = ColourReader()(ImageTextPairDataset.from_webdataset(folder))
        (address,) = client.run(paused)
        expected = f"every worker is paused for its memory.*{address} has .* of its limit of .*--memory-limit"
        with pytest.raises(ClusterError, match=expected):
            dataset.save_metadata(tmp_path / "out")


@pytest.mark.parametrize("when", ["before the run", "with a task that waits"])
def test_one_paused_of_two_does_not_hold_up_the_run(folder, private_cluster, tmp_path, monkeypatch, when):
    """What it was given and has not begun is done by the other; Dask would leave it there."""
    monkeypatch.setattr(presence_module, "_LOOK_EVERY", 0.5)
    gate, out = tmp_path / "gate", tmp_path / "out"
    with private_cluster(n_workers=2) as client:
        dataset = ColourReader()(ImageTextPairDataset.from_webdataset(folder)).apply(Gate(gate))
        first, _ = client.scheduler_info(n_workers=-1)["workers"]

        def pause_later():
            end = time.monotonic() + 30
            while len(client.processing()[first]) < 2 and time.monotonic() < end:
                time.sleep(0.05)
            client.run(paused, workers=[first])
            gate.touch()

        pausing = threading.Thread(target=pause_later)
        if when == "before the run":
            gate.touch()
            client.run(paused, workers=[first])
        else:
            pausing.start()
        summary = dataset.save_metadata(out)
        if pausing.ident:
            pausing.join()
    assert summary.rows == SHARDS * SAMPLES and summary.complete
    table = read_output(out)
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist(), bad={"000030005"})


def test_a_paused_worker_finishes_what_it_has_begun(private_cluster, monkeypatch):
    """However long that takes: Dask lets it, and so it is not given up."""
    monkeypatch.setenv(PATIENCE.name, "1s")
    with private_cluster(n_workers=1) as client:
        future = client.submit(time.sleep, 6, pure=False)
        time.sleep(1)
        client.run(paused)
        presence = Presence(client)
        while not future.done():
            presence.check()
            time.sleep(0.1)
        del future


def keep_what_is_freed(dask_worker):
    """Have a model of 300 MB that nobody uses, below a block that is used; Dask's limit is such that it pauses.

    It has to be let go, and malloc has to give back what it then holds.
    """
    blocks = [bytes(2000) for _ in range(150_000)]
    dask_worker.pin = blocks.pop()
    with ENCODERS.lease("large", lambda: blocks), LOADERS.lease("small", object):
        pass
    used = psutil.Process().memory_info().rss
    dask_worker.memory_manager.memory_limit = int(used / 0.85)


def status(dask_worker):
    return dask_worker.status.name


def wait_for_status(client, wanted, seconds):
    end = time.monotonic() + seconds
    while (now := {*client.run(status).values()}) != {wanted} and time.monotonic() < end:
        time.sleep(0.1)
    return now


def test_a_paused_worker_gives_memory_back_and_goes_on(private_cluster):
    with private_cluster(n_workers=1) as client:
        client.run(keep_what_is_freed)
        assert wait_for_status(client, "paused", 20) == {"paused"}
        assert wait_for_status(client, "running", 3) == {"paused"}, "it is resumed without us"
        set_up_workers(client)
        assert wait_for_status(client, "running", 20) == {"running"}


def test_a_cluster_that_starts_workers_for_work_alone(folder, tmp_path, monkeypatch):
    """An adaptive one without workers at rest: it is asked for work, not for workers."""
    monkeypatch.setenv(PATIENCE.name, "60s")
    with LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        cluster.adapt(minimum=0, maximum=1, interval="200ms")
        with get_client(scheduler_address=cluster.scheduler_address, verbose=False):
            summary = ColourReader()(ImageTextPairDataset.from_webdataset(folder)).save_metadata(
                tmp_path / "out"
            )
    assert summary.rows == SHARDS * SAMPLES and not summary.failed_shards


def test_a_cluster_without_workers_is_not_waited_for_for_ever(folder, monkeypatch):
    monkeypatch.setenv(PATIENCE.name, "2s")
    options = {"n_workers": 0, "dashboard_address": "127.0.0.1:0"}
    with (
        LocalCluster(**options) as cluster,
        Client(cluster),
        pytest.raises(ClusterError, match=f"the cluster has no worker, for .* s.*{PATIENCE.name}"),
    ):
        ImageTextPairDataset.from_webdataset(folder)


def test_a_worker_that_leaves_has_another_in_its_place(private_cluster, tmp_path):
    """What a worker does whose GPU is lost; the loss itself needs a GPU."""
    first = tmp_path / "first"

    def work():
        if not first.exists():
            first.write_text(str(os.getpid()))
            leave("shard 00000", "CUDA error: an illegal memory access was encountered")
        return os.getpid()

    with private_cluster(n_workers=1) as client:
        assert client.submit(work).result(timeout=60) != int(first.read_text())


def test_a_process_that_is_no_worker_does_not_end_itself():
    with pytest.raises(
        ClusterError, match=r"00000: the GPU of this process is lost \(why\).*run the same again"
    ):
        leave("00000", "why")
    leave_if_broken("00000")  # nothing is wrong here
