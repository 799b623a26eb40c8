"""Folders with a file an image in a store: what `test_image_folders` holds of a disk, over a real S3 server."""

from __future__ import annotations

import tarfile
import time

import fsspec
import pytest
from colours import ColourReader, check_colours, read_output, write_dataset
from s3 import BUCKET, Fault, options, s3_server
from test_image_folders import rows_of, write_images
from test_parquet_images import check_rows, write

from curator_dask import patience, storage
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import DatasetError, ShardError
from curator_dask.outputs import lock
from curator_dask.webdataset.finding import find_shards
from curator_dask.webdataset.opening import open_shard

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture(scope="module")
def server():
    with s3_server() as server:
        yield server


@pytest.fixture(scope="module")
def store(server):
    return fsspec.filesystem("s3", **options(server), use_listings_cache=False)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local") / "data"
    return folder, write_images(folder)


@pytest.fixture(scope="module")
def whole(store, local):
    """The folder in the store, for tests that write nothing beside its images."""
    store.put(str(local[0]), f"{BUCKET}/whole", recursive=True)
    return f"s3://{BUCKET}/whole"


@pytest.fixture
def url(server, whole):
    server.faults.clear()
    return whole


@pytest.fixture
def own(server, store, local, request):
    """A folder in the store for one test, with ten of the images and their captions."""
    server.faults.clear()
    name = f"{BUCKET}/{request.node.name}"
    store.put(str(local[0] / "z"), f"{name}/z", recursive=True)
    return f"s3://{name}"


def images_in(url, server, **settings):
    return ImageTextPairDataset.from_images(
        url, storage_options=options(server), **{"samples_per_shard": 4, **settings}
    )


def test_rows_are_those_of_the_same_folder_on_a_disk(url, server, local):
    here = rows_of(ImageTextPairDataset.from_images(local[0], samples_per_shard=4)).drop(columns="__url__")
    dataset = images_in(url, server)
    assert dataset.npartitions > 3
    there = rows_of(dataset)
    assert set(there["__url__"].str.startswith(f"{url}/")) == {True}
    assert there.drop(columns="__url__").equals(here)


def test_every_row_has_its_own_image_and_a_change_costs_its_own_shard(url, server, store, local, tmp_path):
    dataset = ColourReader()(images_in(url, server))
    done = dataset.save_metadata(tmp_path / "out")
    assert done.rows == 40 and not done.failed, done
    table = read_output(tmp_path / "out")
    check_colours([key.as_py()[-4:] for key in table["key"]], table["image_embedding"].to_pylist())
    again = ColourReader()(images_in(url, server)).save_metadata(tmp_path / "out")
    assert again.written == 0 and again.skipped == done.written
    # Changed in place, by as many bytes: the store's listing tells.
    path = "z/ü/pic0003"
    other = local[1]["z/ü/pic0007"]
    name = next(each for each in store.find(url) if path in each and not each.endswith((".txt", ".json")))
    before = store.cat_file(name)
    store.pipe_file(name, other)
    third = ColourReader()(images_in(url, server)).save_metadata(tmp_path / "out")
    store.pipe_file(name, before)
    assert third.written == 1 and third.skipped == done.written - 1


def test_an_export_has_the_original_bytes(url, server, local, tmp_path):
    images_in(url, server).to_webdataset(tmp_path / "tars", samples_per_shard=25)
    found = {}
    for path in sorted((tmp_path / "tars").glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    images = {
        name.rpartition(".")[0]: data for name, data in found.items() if not name.endswith(("txt", "json"))
    }
    assert images == local[1]
    captions = {name: data for name, data in found.items() if name.endswith("txt")}
    assert len(captions) == 40 and captions["pic0004.txt"] == b"caption of 4"


def test_captions_from_a_table_in_the_store(own, server, store, local):
    store.pipe_file(f"{own}/pic0000.png", local[1]["pic0000"])
    table = "file_name,caption\npic0000.png,zero\nz/ü/pic0007.WebP,one\n"
    store.pipe_file(f"{own}/captions.csv", table.encode())
    rows = rows_of(images_in(own, server, captions=f"{own}/captions.csv"))
    assert len(rows) == 11
    assert rows.caption.dropna().to_dict() == {"pic0000": "zero", "z/ü/pic0007": "one"}


def test_a_store_that_falters_costs_a_shard_and_no_caption(url, server, tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "TRIES", 1)
    dataset = ColourReader()(images_in(url, server))
    server.faults.append(Fault("cut", part="pic0004.txt"))
    server.faults.append(Fault("403", part="pic0001.WebP"))
    done = dataset.save_metadata(tmp_path / "out")
    assert len(done.failed_shards) == 1 and "pic0004.txt: the file cannot be fetched" in str(
        done.failed_shards
    )
    assert done.failed == 1 and "pic0001" in str(done)
    server.faults.clear()
    again = ColourReader()(images_in(url, server)).save_metadata(tmp_path / "out")
    assert again.written == 1 and not again.failed_shards
    server.faults.append(Fault("403", part="list-type"))
    with pytest.raises(DatasetError, match="the store does not answer as it should"):
        images_in(url, server)


def test_a_folder_that_has_none_is_said(own, server, store):
    store.pipe_file(f"{own}/text/a.txt", b"")
    with pytest.raises(DatasetError, match="expected at least one image, found none"):
        images_in(f"{own}/text", server)
    assert find_shards(own, options(server)).shards[0].url.endswith(".images")


def test_workers_that_stay_see_images_that_came_after_a_computation(
    own, server, store, local, tmp_path, client
):
    one = f"{own}/z"
    assert len(images_in(one, server).compute()) == 10
    store.pipe_file(f"{one}/pic0040.png", local[1]["pic0000"])
    dataset = images_in(one, server)
    assert len(dataset.compute()) == 11
    store.pipe_file(f"{one}/pic0041.png", local[1]["pic0004"])
    done = ColourReader()(images_in(one, server, captions=None)).save_metadata(tmp_path / "out")
    assert (done.rows, done.failed) == (12, 0)


def test_names_may_have_what_links_file_systems_in_a_chain(server, local, tmp_path):
    server.faults.clear()
    url, data = f"s3://{BUCKET}/chain", local[1]["pic0004"]
    fs, path = storage.filesystem(f"{url}/odd/a::b+%20#c? 0004.png", options(server))
    assert path.endswith("/odd/a::b+%20#c? 0004.png")
    fs.pipe_file(path, data)
    done = ColourReader()(images_in(f"{url}/odd", server, captions=None)).save_metadata(tmp_path / "out")
    assert (done.rows, done.failed) == (1, 0) and not done.failed_shards
    chained, inside = storage.filesystem(f"simplecache::{url}/odd", {"s3": options(server)})
    assert "simplecache" in chained.protocol and chained.ls(inside, detail=False) == [path]


def test_a_large_image_has_the_time_of_its_blocks(server, store, monkeypatch):
    server.faults.clear()
    url = f"s3://{BUCKET}/blocks"
    monkeypatch.setattr(patience, "TRIES", 1)
    monkeypatch.setenv(patience.STALL_SECONDS.name, "0.5")
    monkeypatch.setattr(server, "delay", 0.8)
    store.pipe_file(f"{url}/large.png", b"x" * 100)
    monkeypatch.setattr(patience, "BLOCK_BYTES", 20)
    assert storage.read_bytes(f"{url}/large.png", options(server), 100) == b"x" * 100
    with pytest.raises(TimeoutError):
        storage.read_bytes(f"{url}/large.png", options(server), 20)


def test_images_inside_parquet_are_read_patiently(server, store, tmp_path):
    """By ranges, each tried again; what is replaced while it is read is told."""
    server.faults.clear()
    write(tmp_path / "data")
    url = f"s3://{BUCKET}/parquet"
    store.put(str(tmp_path / "data"), f"{BUCKET}/parquet", recursive=True)
    dataset = ImageTextPairDataset.from_parquet(url, storage_options=options(server))
    server.faults.append(Fault("503", times=2))
    server.faults.append(Fault("cut", times=1))
    summary = ColourReader()(dataset).save_metadata(tmp_path / "out")
    assert (summary.rows, summary.failed) == (36, 0) and not any(fault.times for fault in server.faults)
    check_rows(read_output(tmp_path / "out"))
    name = f"{url}/train-00001-of-00003.parquet"
    with open_shard(name, storage_options=options(server)) as reader:
        store.pipe_file(name, store.cat_file(name) + b"x")
        with pytest.raises(ShardError, match="was changed while it was read"):
            reader.check_unchanged()
    again = ColourReader()(dataset).save_metadata(tmp_path / "out")
    assert again.skipped == 2 and "not a Parquet file that can be read" in str(again.failed_shards)


def test_access_that_is_refused_is_no_fault_of_the_file(server, store, tmp_path):
    server.faults.clear()
    write_dataset(tmp_path / "data", 2, 3)
    store.put(str(tmp_path / "data"), f"{BUCKET}/a b=c%20d+e", recursive=True)
    url, out = f"s3://{BUCKET}/a b=c%20d+e/", f"s3://{BUCKET}/x=1 %/out/"
    dataset = ImageTextPairDataset.from_webdataset(url, storage_options=options(server))
    server.faults.append(Fault("403", "GET", "e/00001.parquet"))
    said = ColourReader()(dataset).save_metadata(out).failed_shards["00001"]
    assert f"{url}00001.parquet: could not be read" in said and "AccessDenied" in said
    assert "storage_options" in said and "not a Parquet file" not in said
    server.faults.clear()
    again = ColourReader()(dataset).save_metadata(out)
    assert (again.written, again.skipped, again.rows) == (1, 1, 3)


def test_a_store_that_has_gone_away_does_not_hold_up_the_end_of_a_run(server, store, monkeypatch):
    server.faults.clear()
    monkeypatch.setattr(lock, "LEAVE_SECONDS", 0.3)
    folder = f"s3://{BUCKET}/gone"
    started = time.monotonic()
    with lock.RunLock(folder, options(server)):
        server.faults += [Fault("stall", "HEAD", "gone"), Fault("stall", "GET", "gone")]
        started = time.monotonic()
    assert 0.3 <= time.monotonic() - started < 5
    server.faults.clear()
    assert store.exists(f"{folder}/{lock.LOCK_NAME}")  # left behind, it keeps nobody out
    with lock.RunLock(folder, options(server)):
        server.release()
    assert not store.exists(f"{folder}/{lock.LOCK_NAME}")
