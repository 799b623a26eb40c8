"""What goes wrong on the way to new tars: with what is copied, with the place they go to, and with workers."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import tarfile
import threading
import time
from pathlib import Path

import dask
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import ColourReader, write_dataset
from leftovers import left_in
from s3 import BUCKET, Fault, options, s3_server
from tars import tar_bytes, write

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import OutputError, ShardError
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.exporting import export_output
from curator_dask.outputs.lock import RunLock
from curator_dask.outputs.packing import PackShard

SHARDS, SAMPLES = 4, 6


@pytest.fixture
def data(tmp_path):
    write_dataset(tmp_path / "data", SHARDS, SAMPLES)
    return tmp_path / "data"


@pytest.fixture
def export(data, tmp_path, in_this_process):
    """Export all samples, five a tar."""

    def run(out=tmp_path / "out", **settings):
        dataset = ImageTextPairDataset.from_webdataset(data)
        return dataset.to_webdataset(out, **{"samples_per_shard": 5, **settings})

    return run


def digests(folder: Path) -> dict[str, str]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def names_in(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return tar.getnames()


# ---- what is copied


def test_samples_that_are_missing_or_cut(data, export, tmp_path):
    """They are counted, and named; the others are exported."""
    table = pq.read_table(data / "00000.parquet")
    more = pa.table({"key": ["nobody"], "caption": ["x"], "width": [1]})
    pq.write_table(pa.concat_tables([table, more]), data / "00000.parquet")
    whole = (data / "00001.tar").read_bytes()
    (data / "00001.tar").write_bytes(whole[: 3 * 1024 * 3 + 700])  # in the first member of the fourth sample
    (data / "00002.tar").write_bytes(b"<!DOCTYPE html>" * 100)
    summary = export()
    names = [name for path in (tmp_path / "out").glob("*.tar") for name in names_in(path)]
    kept = {name.partition(".")[0] for name in names}
    assert (summary.rows, summary.kept, summary.missing) == (25, 15, 10)
    assert len(kept) == 15 and len(names) == 45  # no sample without its caption
    assert {key[:5] for key in kept} == {"00000", "00001", "00003"}
    assert dict(summary.reasons) == {"missing": 9, "damaged": 1}
    assert not summary.complete and {Path(url).name for url in summary.damaged_shards} == {
        "00001.tar",
        "00002.tar",
    }
    said = str(summary)
    assert "no sample 'nobody' in the tar" in said and "expected a tar, found a file" in said
    assert "the tar ends in this sample, or behind it: truncated" in said
    again = export()
    assert (again.written, again.kept, again.reasons) == (0, 15, summary.reasons)


@pytest.mark.parametrize("what", ["tar", "parquet"])
def test_a_file_that_is_gone_stops_it_before_a_tar_is_written(data, export, tmp_path, what):
    dataset = ImageTextPairDataset.from_webdataset(data)
    (data / f"00002.{what}").unlink()
    with pytest.raises(ShardError, match=r"00002.*no tar was written.*(still there|not a Parquet file)"):
        dataset.to_webdataset(tmp_path / "out", samples_per_shard=5)
    assert not list((tmp_path / "out").glob("*.tar"))


@pytest.mark.parametrize("change", ["touched", "gone"])
def test_a_tar_that_changes_while_it_is_copied(data, export, tmp_path, monkeypatch, change):
    """New tars that draw from it fail, the others are written; and then there is a way on."""
    first = PackShard.__call__

    def call(self, shard):
        if shard.number == 1:
            if change == "touched":
                os.utime(data / "00003.tar", ns=(1, 1))
            else:
                (data / "00003.tar").rename(tmp_path / "away.tar")
        return first(self, shard)

    monkeypatch.setattr(PackShard, "__call__", call)
    summary = export()
    reason = {"touched": "the shard was changed since", "gone": "is it still there"}[change]
    assert sorted(summary.failed_shards) == ["00003", "00004"] and summary.written == 3
    assert all(reason in why for why in summary.failed_shards.values()) and not summary.complete
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == [
        "00000.tar",
        "00001.tar",
        "00002.tar",
    ]
    assert not left_in(tmp_path)
    monkeypatch.undo()
    if change == "gone":
        (tmp_path / "away.tar").rename(data / "00003.tar")
    again = export()
    assert (again.skipped, again.written, again.failed_shards) == (3, 2, {})


@pytest.mark.parametrize("mixed", [False, True])
def test_a_tar_that_changed_after_it_was_embedded(data, tmp_path, in_this_process, mixed):
    """Its rows may be of other samples: no tar is written, until they are made anew."""

    def embed():
        dataset = ImageTextPairDataset.from_webdataset(data)
        rows = dataset.metadata.repartition(npartitions=2) if mixed else dataset.metadata
        ColourReader()(dataset.with_metadata(rows)).save_metadata(tmp_path / "rows")

    embed()
    out = tmp_path / "out"
    assert export_output(tmp_path / "rows", out, ExportOptions(samples_per_shard=5)).kept == 24
    tar = (data / "00002.tar").read_bytes()
    (data / "00002.tar").write_bytes(tar)
    with pytest.raises(
        ShardError, match=r"no tar was written: .*00002.tar: the shard has changed .*embed again"
    ):
        export_output(tmp_path / "rows", tmp_path / "other", ExportOptions(dry_run=True))
    with pytest.raises(ShardError, match="no tar was written"):
        export_output(tmp_path / "rows", tmp_path / "new" / "other")
    assert not (tmp_path / "new" / "other").exists() and not [*tmp_path.glob("other*")]
    embed()
    assert (
        export_output(tmp_path / "rows", out, ExportOptions(samples_per_shard=5, overwrite=True)).kept == 24
    )


def test_images_that_failed_are_said(tmp_path, in_this_process):
    write_dataset(tmp_path / "data", 2, SAMPLES, bad={"000000001": b"<html>", "000010002": b""})
    dataset = ColourReader()(ImageTextPairDataset.from_webdataset(tmp_path / "data"))
    made = tmp_path / "out.export" / "rows"
    for dry_run in (True, False):
        times = [path.stat().st_mtime_ns for path in sorted(made.glob("*.parquet"))]
        summary = dataset.to_webdataset(tmp_path / "out", dry_run=dry_run)
        assert (tmp_path / "out").exists() is not dry_run
        assert dict(summary.errors) == {"not an image": 1, "empty": 1} == summary.to_dict()["errors"]
        assert dry_run or times == [path.stat().st_mtime_ns for path in sorted(made.glob("*.parquet"))] != []
        assert "2 of the samples have an image_error" in str(summary) and summary.kept == 12
    without = dataset.to_webdataset(tmp_path / "good", where="image_error is null")
    assert (without.errors, without.kept) == ({}, 10) and "image_error (" not in str(without)


def test_links_and_members_twice(tmp_path, in_this_process):
    link = tarfile.TarInfo("b.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "a.jpg"
    members = [("a.jpg", b"1"), ("a.txt", b"2"), ("a.jpg", b"3"), link, ("b.txt", b"4"), ("README", b"5")]
    write(tmp_path / "data" / "0.tar", tar_bytes(members))
    summary = ImageTextPairDataset.from_webdataset(tmp_path / "data").to_webdataset(tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "00000.tar") as tar:
        found = {each.name: (each.type, tar.extractfile(each).read()) for each in tar}
    file = tarfile.REGTYPE
    # A symbolic link is to the last of its name.
    assert found == {
        "a.jpg": (file, b"1"),
        "a.txt": (file, b"2"),
        "b.jpg": (file, b"3"),
        "b.txt": (file, b"4"),
    }
    assert "used again in a tar" in str(summary)


# ---- the place


def export_with_small_files(out, embeddings, said):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))
    try:
        export_output(embeddings, out, ExportOptions(samples_per_shard=5))
    except OutputError as error:
        said.send(str(error))
    said.close()


def test_a_full_disk(data, export, tmp_path):
    """As a quota does it: no file may be larger than a small tar."""
    ImageTextPairDataset.from_webdataset(data).save_metadata(tmp_path / "rows")
    forked, out = multiprocessing.get_context("forkserver"), tmp_path / "out"
    hear, said = forked.Pipe(duplex=False)
    process = forked.Process(target=export_with_small_files, args=(out, tmp_path / "rows", said))
    process.start()
    said.close()
    assert "00000.tar: could not be written: File too large. Nothing was left behind" in hear.recv()
    process.join(60)
    assert process.exitcode == 0 and not out.exists()
    assert export_output(tmp_path / "rows", out, ExportOptions(samples_per_shard=5)).written == 5
    export(tmp_path / "undisturbed")
    assert digests(out) == digests(tmp_path / "undisturbed")


def test_there_is_not_enough_space(tmp_path, in_this_process):
    """A picture of eight terabytes, most of them a hole."""
    info = tarfile.TarInfo("a.jpg")
    info.size = 8 << 40
    (tmp_path / "data").mkdir()
    with (tmp_path / "data" / "0.tar").open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(512 + info.size + 1024)
    if shutil.disk_usage(tmp_path).free > info.size:
        pytest.skip("there is")
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "data" / "0.parquet")
    with pytest.raises(OutputError, match=r"the new tars need 8796.1 GB, and .* GB are free: make room"):
        ImageTextPairDataset.from_webdataset(tmp_path / "data").to_webdataset(tmp_path / "out")


def test_a_folder_that_cannot_be_written(export, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o500)
    try:
        if os.access(out, os.W_OK):  # to root nothing is read-only but a device that is
            subprocess.run(["mount", "--bind", str(out), str(out)], capture_output=True)
            done = subprocess.run(["mount", "-o", "remount,ro,bind", str(out)], capture_output=True)
            if done.returncode:
                pytest.skip("root, and nothing can be mounted here")
        with pytest.raises(OutputError, match="could not be written"):
            export()
    finally:
        subprocess.run(["umount", str(out)], capture_output=True)
        out.chmod(0o700)
    assert export().written == 5


def test_one_export_at_a_time(export, tmp_path):
    (tmp_path / "out").mkdir()
    with RunLock(str(tmp_path / "out")), pytest.raises(OutputError, match="another run is writing there"):
        export()


# ---- stores


def test_from_a_store_to_a_store(data, export, tmp_path, monkeypatch):
    export(tmp_path / "local", where="key like '%2' or key like '%4'", columns=["width"])
    with s3_server() as server:
        opts = options(server)
        store = fsspec.filesystem("s3", **opts)
        store.put(str(data), f"{BUCKET}/data", recursive=True)
        dataset = ImageTextPairDataset.from_webdataset(f"s3://{BUCKET}/data", storage_options=opts)
        server.faults += [Fault("503", "PUT", "00000.tar", 1), Fault("cut", "GET", "data/00001.tar", 1)]
        where = "key like '%2' or key like '%4'"
        out = f"s3://{BUCKET}/new/out"
        summary = dataset.to_webdataset(out, where=where, columns=["width"], samples_per_shard=5)
        assert (summary.kept, summary.written, summary.failed_shards) == (8, 2, {})
        found = {path.rpartition("/")[2]: store.cat_file(path) for path in store.find(f"{BUCKET}/new/out")}
        for path in (tmp_path / "local").iterdir():
            if path.suffix != ".parquet":  # their records differ
                assert found[path.name] == path.read_bytes(), path.name
        assert sorted(found) == sorted(path.name for path in (tmp_path / "local").iterdir())
        again = dataset.to_webdataset(out, where=where, columns=["width"], samples_per_shard=5)
        assert (again.written, again.skipped) == (0, 2)
        with pytest.raises(OutputError, match="made of other samples"):
            dataset.to_webdataset(out, samples_per_shard=5)
        server.faults += [Fault("cut", "GET", "data/00002.tar", 1)]
        small = dataset.to_webdataset(tmp_path / "small", max_side=16, columns=["width"], samples_per_shard=5)
        assert (small.written, small.images_smaller, small.failed_shards) == (5, 24, {})
    export(tmp_path / "local small", max_side=16, columns=["width"])
    for path in (tmp_path / "local small").glob("*.tar"):
        assert (tmp_path / "small" / path.name).read_bytes() == path.read_bytes()


# ---- workers


def wait_until(condition, seconds, what):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not after {seconds} s: {what}"
        time.sleep(0.01)


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_workers_killed_at_random_moments(private_cluster, tmp_path, kills):
    """The tars are those of an export in which nothing happens, to the bit."""
    shards, samples = (10, 16) if kills < 4 else (30, 80)
    write_dataset(tmp_path / "data", shards, samples)
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")
    settings = {
        "samples_per_shard": 2,
        "shuffle": 5,
        "columns": ["width"],
        "old_id_col": "old",
        "max_side": 16,
    }
    chance, out = random.Random(kills), tmp_path / "out"
    killed: list[int] = []
    problems: list[BaseException] = []
    total = shards * samples // 2
    with dask.config.set(scheduler="sync"):
        undisturbed = dataset.to_webdataset(tmp_path / "undisturbed", **settings)
    assert (undisturbed.written, undisturbed.failed_shards) == (total, {})
    with private_cluster(n_workers=2) as client:

        def pids():
            nannies = client.cluster.workers.values()
            return [each.process.pid for each in nannies if each.process is not None and each.process.pid]

        def kill_again_and_again():
            try:
                for number in range(kills):
                    there = number * total // (kills + 2)
                    wait_until(lambda there=there: len(list(out.glob("*.tar"))) > there, 120, f"{there} tars")
                    time.sleep(chance.uniform(0, 0.02))
                    wait_until(pids, 60, "a worker")
                    victim = chance.choice(pids())
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(victim, signal.SIGKILL)
                        killed.append(victim)
            except BaseException as error:
                problems.append(error)

        thread = threading.Thread(target=kill_again_and_again)
        thread.start()
        summary = dataset.to_webdataset(out, **settings)
        thread.join()
    assert not problems and len(killed) == kills
    assert (summary.written, summary.failed_shards, summary.kept) == (total, {}, shards * samples)
    parts = {
        path.name: digest for path, digest in zip(sorted(out.iterdir()), digests(out).values(), strict=True)
    }
    assert parts == digests(tmp_path / "undisturbed")


def test_a_tar_that_is_a_link_into_the_output_is_not_written_over(tmp_path, in_this_process):
    write_dataset(tmp_path / "out", 1, 4, parquet=False)
    before = (tmp_path / "out/00000.tar").read_bytes()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/00000.tar").symlink_to(tmp_path / "out/00000.tar")
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")
    with pytest.raises(OutputError, match="out"):
        dataset.to_webdataset(tmp_path / "out", where="key like '%1'", overwrite=True)
    assert (tmp_path / "out/00000.tar").read_bytes() == before
