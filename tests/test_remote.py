"""Datasets and outputs in a store: a real S3 server on loopback, and what may go wrong on the way to it."""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path

import fsspec
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import ColourReader, MeanColour, check_colours, write_dataset, write_tar
from distributed import Client
from fsspec.implementations.local import LocalFileSystem
from leftovers import SECONDS, check_nothing_left
from s3 import BUCKET, Fault, options, s3_server

from curator_dask import get_client, patience
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import DatasetError, OutputError, ShardError
from curator_dask.frames.committing import machine_name
from curator_dask.info import describe_output
from curator_dask.outputs.lock import RunLock
from curator_dask.runs.parts import Part
from curator_dask.webdataset.reader import ShardReader
from curator_dask.webdataset.staging import STAGE, Stage

SHARDS, SAMPLES = 5, 6
BAD = {"000010003": b"<!DOCTYPE html>"}
STALL = 1.5  # seconds; what is healthy here answers within milliseconds


@pytest.fixture(scope="module")
def server():
    with s3_server() as server:
        yield server


@pytest.fixture(autouse=True)
def well(request):
    """Every test begins with a server that has no faults."""
    yield
    if "server" in request.fixturenames:
        server = request.getfixturevalue("server")
        server.faults.clear()
        server.delay = 0.0


@pytest.fixture(scope="module")
def store(server):
    return fsspec.filesystem("s3", **options(server))


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    folder = tmp_path_factory.mktemp("remote") / "data"
    keys = write_dataset(folder, SHARDS, SAMPLES, bad=BAD)
    return folder, keys


@pytest.fixture(scope="module")
def url(store, local):
    store.put(str(local[0]), f"{BUCKET}/data", recursive=True)
    return f"s3://{BUCKET}/data"


@pytest.fixture(scope="module")
def impatient_cluster():
    """Where a call that stalls is given up soon."""
    with get_client("cpu", n_workers=2, env={"CURATOR_DASK_STALL_SECONDS": str(STALL)}) as client:
        yield client


@pytest.fixture
def client(impatient_cluster, server, tmp_path):
    yield impatient_cluster
    server.faults.clear()
    server.release()
    check_nothing_left(impatient_cluster, tmp_path)


def open_dataset(url, server, **settings):
    return ImageTextPairDataset.from_webdataset(url, storage_options=options(server), **settings)


def read_remote(store, folder) -> pa.Table:
    found = sorted(store.find(folder.removeprefix("s3://")))
    files = [path for path in found if path.endswith(".parquet") and "/_errors/" not in path]
    return pa.concat_tables([pq.read_table(store.open(path)) for path in files])


def check_output(table, keys):
    assert sorted(table["key"].to_pylist()) == sorted(keys)
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist(), bad=BAD)


def check_no_copies(client):
    def look():
        from curator_dask.webdataset.staging import STAGE

        return [] if STAGE._folder is None else [path.name for path in STAGE._folder.iterdir()]

    end = time.monotonic() + SECONDS  # workers are told to let them go, and not waited for
    while found := [name for names in client.run(look).values() for name in names]:
        assert time.monotonic() < end, f"left behind: {found}"
        time.sleep(0.05)


@pytest.mark.parametrize("metadata", ["parquet", "tar"])
def test_from_a_store_to_a_store(server, store, url, local, client, metadata):
    out = f"s3://{BUCKET}/out-{metadata}"
    dataset = open_dataset(url, server, metadata=metadata)
    assert set(dataset.tar_files) == {f"{url}/{shard:05d}.tar" for shard in range(SHARDS)}
    summary = ColourReader()(dataset).save_metadata(out)
    assert (summary.rows, summary.failed, summary.written) == (SHARDS * SAMPLES, 1, SHARDS)
    check_output(read_remote(store, out), local[1])
    assert [path.rpartition("/")[2] for path in store.find(out)] == [
        f"{n:05d}.parquet" for n in range(SHARDS)
    ]
    check_no_copies(client)

    again = ColourReader()(dataset).save_metadata(out)
    assert (again.written, again.skipped) == (0, SHARDS)
    store.rm_file(f"{out}/00002.parquet")
    third = ColourReader()(dataset).save_metadata(out)
    assert (third.written, third.skipped) == (1, SHARDS - 1)
    check_output(read_remote(store, out), local[1])


def test_from_a_store_to_a_folder_and_back(server, store, url, local, client, tmp_path):
    ColourReader()(open_dataset(url, server)).save_metadata(tmp_path / "out")
    check_output(pq.read_table(tmp_path / "out"), local[1])
    out = f"s3://{BUCKET}/from-local"
    near = ImageTextPairDataset.from_webdataset(local[0])
    ColourReader()(near).save_metadata(out, storage_options=options(server), drop_failed=True)
    good, failed = read_remote(store, out), pq.read_table(store.open(f"{out}.errors/00001.parquet"))
    assert failed["key"].to_pylist() == list(BAD)
    check_colours(good["key"].to_pylist(), good["image_embedding"].to_pylist())


def test_into_the_datasets_own_folder(server, store, local, client):
    store.put(str(local[0]), f"{BUCKET}/own", recursive=True)
    ColourReader()(open_dataset(f"s3://{BUCKET}/own", server)).save_metadata()
    check_output(read_remote(store, f"{BUCKET}/own"), local[1])
    again = ColourReader()(open_dataset(f"s3://{BUCKET}/own", server)).save_metadata()
    assert (again.written, again.skipped) == (0, SHARDS)


def test_faults_that_pass_cost_time_alone(server, store, url, local, client):
    out = f"s3://{BUCKET}/passing"
    dataset = open_dataset(url, server)
    for number, kind in enumerate(("503", "cut", "stall")):
        server.faults += [
            Fault(kind, "GET", f"data/{number:05d}.tar", times=2),
            Fault(kind, "GET", f"data/{number:05d}.parquet", times=1),
            Fault("stall" if kind == "stall" else "503", "PUT", f"passing/{number:05d}.parquet", times=2),
        ]
    summary = ColourReader()(dataset).save_metadata(out)
    assert summary.failed_shards == {}
    assert all(fault.times == 0 for fault in server.faults), "a fault that was not met proves nothing"
    check_output(read_remote(store, out), local[1])


def try_so_often(times):
    """Calls to a store, in a worker's process; how often it was before."""
    before, patience.TRIES = patience.TRIES, times
    return before


@pytest.fixture
def soon_given_up(client):
    """What does not pass is tried twice, not for half a minute."""
    before = client.run(try_so_often, 2)
    yield
    for worker, times in before.items():
        client.run(try_so_often, times, workers=[worker])


@pytest.mark.usefixtures("soon_given_up")
def test_faults_that_stay_cost_their_shard(server, store, url, local, client):
    out = f"s3://{BUCKET}/staying"
    dataset = open_dataset(url, server)
    kinds = ("503", "cut", "stall", "403")
    server.faults += [Fault(kind, "GET", f"data/{number:05d}.tar") for number, kind in enumerate(kinds)]
    summary = ColourReader()(dataset).save_metadata(out)
    assert sorted(summary.failed_shards) == ["00000", "00001", "00002", "00003"]
    for number in range(len(kinds)):
        assert f"{url}/{number:05d}.tar" in summary.failed_shards[f"{number:05d}"]
    assert f"no answer within {STALL:g} s" in summary.failed_shards["00002"]
    assert "PermissionError" in summary.failed_shards["00003"]
    assert (summary.rows, summary.written) == (SAMPLES, 1)
    check_no_copies(client)
    server.faults.clear()
    again = ColourReader()(dataset).save_metadata(out)
    assert (again.written, again.skipped, again.failed_shards) == (SHARDS - 1, 1, {})
    check_output(read_remote(store, out), local[1])


def test_an_output_that_cannot_be_written(server, url, client):
    dataset = open_dataset(url, server)
    server.faults.append(Fault("403", "PUT", "refused"))
    with pytest.raises(OutputError, match=r"s3://bucket/refused.*could not be written"):
        ColourReader()(dataset).save_metadata(f"s3://{BUCKET}/refused")
    server.faults[:] = [Fault("403", "PUT", "00003.parquet")]
    with pytest.raises(OutputError, match=r"late/00003\.parquet: could not be written"):
        ColourReader()(dataset).save_metadata(f"s3://{BUCKET}/late")


@pytest.mark.parametrize(
    "path, match",
    [
        (f"s3://{BUCKET}/nowhere", "found nothing"),
        ("s3://nobucket/data", "nobucket"),
        (f"s3://{BUCKET}/data/00099.tar", "do not exist"),
        ("nostore://bucket/data", "nostore"),
    ],
)
def test_what_is_not_there(server, url, in_this_process, path, match):
    with pytest.raises(DatasetError, match=match):
        open_dataset(path, server)


def test_a_store_that_refuses_is_named_without_its_secrets(server, url):
    server.faults.append(Fault("403", "GET"))
    with pytest.raises(DatasetError) as caught:
        open_dataset(url, server)
    assert "storage_options" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_run_keeps_others_out(server, store, url, client):
    out = f"s3://{BUCKET}/locked"
    other = psutil.Process().ppid()
    note = {
        "run": "x",
        "host": os.uname().nodename,
        "machine": machine_name(),
        "pid": other,
        "process_started": psutil.Process(other).create_time(),
        "since": time.time(),
        "seen": time.time(),
    }
    store.pipe_file(f"{out}/.curator_dask-run.json", json.dumps(note).encode())
    with pytest.raises(OutputError, match=f"another run is writing there, process {other} "):
        ColourReader()(open_dataset(url, server)).save_metadata(out)
    note["pid"] = 2**22 + 1  # no such process: left behind
    store.pipe_file(f"{out}/.curator_dask-run.json", json.dumps(note).encode())
    assert ColourReader()(open_dataset(url, server)).save_metadata(out).written == SHARDS
    assert not store.exists(f"{out}/.curator_dask-run.json")


def test_parts_stand_beside_one_another_and_keep_all_else_out(server, store, url, local, client):
    out, whole = f"s3://{BUCKET}/parts", f"s3://{BUCKET}/whole"
    reader, dataset = ColourReader(), open_dataset(url, server)
    with RunLock(out, dataset.storage_options, Part(2, 3)):
        assert [name.rpartition("/")[2] for name in store.find(out)] == ["2-of-3.json"]
        done = [reader(dataset).save_metadata(out, part=(number, 3)) for number in (0, 1)]
        for part, who in (
            ((2, 3), "another run of part 2/3"),
            ((0, 2), "part 2/3 of a run"),
            (None, "part 2/3"),
        ):
            with pytest.raises(OutputError, match=f"{who}.* is writing there"):
                reader(dataset).save_metadata(out, part=part)
        assert "part 2/3 is being written" in describe_output(out, storage_options=options(server)).lock
    done.append(reader(dataset).save_metadata(out, part=(2, 3)))
    assert [each.part["shards"] for each in done] == [each.written for each in done]
    reader(dataset).save_metadata(whole)
    assert reader(dataset).save_metadata(out).skipped == sum(each.written for each in done) == SHARDS
    store.invalidate_cache()
    names = [
        {path.removeprefix(f"{BUCKET}/{each}/") for path in store.find(f"{BUCKET}/{each}")}
        for each in ("parts", "whole")
    ]
    assert names[0] == names[1] and len(names[0]) == SHARDS
    for name in names[0]:
        assert store.cat(f"{out}/{name}") == store.cat(f"{whole}/{name}")
    store.pipe_file(f"{out}/.curator_dask-parts/7-of-9.json", b'{"seen": 0}')  # left by a job that was killed
    reader(dataset).save_metadata(out)
    store.invalidate_cache()
    assert len(store.find(out)) == SHARDS


class TimedColourReader(ColourReader):
    """Notes when each shard's images are embedded."""

    def __init__(self, folder, **settings):
        super().__init__(**settings)
        self.folder = str(folder)

    def load_embedding_model(self, device):
        return TimedMeanColour(self.folder)


class TimedMeanColour(MeanColour):
    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def forward(self, images):
        began = time.time()
        time.sleep(0.5)
        Path(self.folder, f"{began}-{time.time()}").touch()
        return super().forward(images)


def test_the_next_shard_is_fetched_meanwhile(server, url, private_cluster, tmp_path):
    (tmp_path / "times").mkdir()
    with private_cluster(n_workers=1):
        dataset = open_dataset(url, server)
        reader = TimedColourReader(tmp_path / "times", batch_size=100)
        reader(dataset).save_metadata(tmp_path / "out")
    computing = sorted(tuple(map(float, path.name.split("-"))) for path in (tmp_path / "times").iterdir())
    computing = computing[-SHARDS:]  # before them, the model is tried on images of no shard
    fetches = [when for when, method, path in server.log if method == "GET" and path.endswith(".tar")][
        -SHARDS:
    ]
    ahead = sum(any(began < when < ended for began, ended in computing) for when in fetches)
    assert ahead >= SHARDS - 3, (computing, fetches)
    for (_, ended), (began, _) in itertools.pairwise(computing):
        assert began >= ended, "two shards were computed at once on one thread"


def test_copies_are_bounded_and_shared(tmp_path, monkeypatch):
    fs = fsspec.filesystem("memory")
    sizes = {}
    try:
        for name in "abcd":
            data = write_tar(tmp_path / f"{name}.tar", [(f"{name}.txt", name.encode() * 20_000)]).read_bytes()
            fs.pipe(f"/stage/{name}.tar", data)
            sizes[name] = len(data)
        stage = Stage(limit=2 * sizes["a"])
        with stage.lease("memory://stage/a.tar") as a, stage.lease("memory://stage/a.tar") as same:
            assert a == same and a.read_bytes() == fs.cat("/stage/a.tar")
            assert stage.has_room("memory://stage/b.tar")
            with stage.lease("memory://stage/b.tar") as b:
                assert not stage.has_room("memory://stage/c.tar")
                with stage.lease("memory://stage/c.tar") as c:  # what is needed is had all the same
                    assert a.exists() and b.exists() and c.exists()
                assert not c.exists()
                assert a.exists() and b.exists()
        assert len(list(a.parent.iterdir())) == len(stage) == 2
        fs.pipe("/stage/a.tar", b"new")
        with stage.lease("memory://stage/a.tar") as new:
            assert new.read_bytes() == b"new"
        stage.clear()
        assert list(a.parent.iterdir()) == []
        with (
            pytest.raises(ShardError, match=r"memory://stage/gone\.tar"),
            stage.lease("memory://stage/gone.tar"),
        ):
            pass
        assert len(stage) == 0
    finally:
        fs.rm("/stage", recursive=True)


def test_columns_are_learned_from_the_beginning_of_a_tar(server, url):
    dataset = open_dataset(url, server, metadata="tar")
    assert list(dataset.metadata.columns) == ["key", "caption", "width", "score", "__url__"]
    assert len(STAGE) == 0
    with ShardReader(f"{url}/00000.tar", storage_options=options(server), first=9_000) as reader:
        assert 2 <= len(reader.index.samples) < SAMPLES
        assert reader.index.problem
        assert [path.stat().st_size for path in STAGE._folder.iterdir()] == [9_000]
    STAGE.clear()


class PlainStore(LocalFileSystem):
    """Files behind a protocol of its own that is no object store's: a write there is no single request."""

    protocol = "plain"

    @classmethod
    def _strip_protocol(cls, path):
        return LocalFileSystem._strip_protocol(str(path).removeprefix("plain://"))

    def unstrip_protocol(self, name):
        return "plain://" + self._strip_protocol(name)


def test_a_store_without_atomic_writes(tmp_path, in_this_process):
    """There a file is written beside its name and renamed, over the one before as well."""
    fsspec.register_implementation("plain", PlainStore, clobber=True)
    keys = write_dataset(tmp_path / "data", 3, SAMPLES)
    dataset = ImageTextPairDataset.from_webdataset(f"plain://{tmp_path}/data")
    out = f"plain://{tmp_path}/out/deep"
    # Its own process: the workers of a cluster do not know this store.
    with Client(processes=False, n_workers=1, dashboard_address=None) as client:
        ColourReader()(dataset).save_metadata(out)
        assert ColourReader()(dataset).save_metadata(out).skipped == 3
        ColourReader(batch_size=5, max_pixels=9_999)(dataset).save_metadata(out, overwrite=True)
        check_nothing_left(client, tmp_path)
    files = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert [path.name for path in files] == [f"{number:05d}.parquet" for number in range(3)]
    table = pq.read_table(tmp_path / "out" / "deep")
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist())
    assert sorted(table["key"].to_pylist()) == sorted(keys)
