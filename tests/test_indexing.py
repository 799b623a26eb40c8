"""Index files for a whole dataset: who gets one, who does not and why, and what DALI's own reader makes of them."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from colours import image_of, members_of, write_dataset, write_tar

from curator_dask.checks.indexing import write_indexes
from curator_dask.errors import ConfigError, DatasetError
from curator_dask.webdataset.index import ShardIndex


@pytest.fixture
def folder(tmp_path):
    write_dataset(tmp_path / "data", shards=3, samples=5)
    return tmp_path / "data"


def states(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(folder.rglob("*.idx"))}


def test_every_tar_gets_one(folder):
    summary = write_indexes(folder)
    assert (summary.written, summary.fitting, summary.failed) == (3, 0, {})
    for tar in folder.glob("*.tar"):
        index = ShardIndex.read_idx(tar.with_suffix(".idx"), tar)
        assert index.samples == ShardIndex.scan(tar).samples
    assert sorted(path.suffix for path in folder.iterdir()) == [".idx"] * 3 + [".parquet"] * 3 + [".tar"] * 3
    assert "3 index files written, 0 fitted already, 0 failed" in str(summary)


def test_those_that_fit_are_left_alone(folder):
    write_indexes(folder / "00001.tar")
    before = states(folder)
    summary = write_indexes(folder)
    assert (summary.written, summary.fitting) == (2, 1)
    assert states(folder)["00001.idx"] == before["00001.idx"]
    # One that belongs to an earlier state of its tar is written again, others are not.
    write_tar(folder / "00002.tar", members_of("5") + members_of("6"))
    before = states(folder)
    summary = write_indexes(folder)
    assert (summary.written, summary.fitting) == (1, 2)
    assert {name for name, state in states(folder).items() if state != before[name]} == {"00002.idx"}
    summary = write_indexes(folder, overwrite=True)
    assert (summary.written, summary.fitting) == (3, 0)


def damage(folder: Path) -> dict[str, str]:
    """Shards that cannot have an index; a part of the reason each gets."""
    write_tar(folder / "space.tar", [("a photo.png", image_of("1"))])
    write_tar(folder / "without.tar", [])
    tar = write_tar(folder / "cut.tar", members_of("1") + members_of("2"))
    os.truncate(tar, tar.stat().st_size // 2)
    (folder / "zero.tar").write_bytes(b"")
    (folder / "text.tar").write_text("no tar" * 200)
    os.mkfifo(folder / "fifo.tar")
    (folder / "link.tar").symlink_to("nowhere")
    return {
        "space": "a photo.png",
        "without": "no empty index",
        "cut": "truncated",
        "zero": "empty file",
        "text": "expected a tar",
        "fifo": "FIFO",
        "link": "No such file",
    }


def test_those_that_cannot_have_one_are_named(folder):
    reasons = damage(folder)
    summary = write_indexes(folder)
    assert summary.written == 3
    assert summary.failed.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in summary.failed[name]
        assert f"no index for {name}: " in str(summary)
    assert states(folder).keys() == {"00000.idx", "00001.idx", "00002.idx"}
    assert not list(folder.glob(".*"))  # nothing half done


def test_a_long_list_of_failures_is_cut(tmp_path):
    for number in range(25):
        (tmp_path / f"{number}.tar").write_bytes(b"")
    text = str(write_indexes(tmp_path))
    assert len(text.splitlines()) == 22
    assert text.endswith("and 5 more")


def test_files_that_are_none_of_dalis_stay(folder):
    (folder / "00001.idx").write_bytes(b"\0\0\x08\x03 an array of MNIST")
    (folder / "00002.idx").mkdir()
    (folder / "00000.idx").write_bytes(b"")  # what a full disk leaves
    summary = write_indexes(folder)
    assert summary.written == 1
    assert summary.failed.keys() == {"00001", "00002"}
    assert all("move it away" in reason for reason in summary.failed.values())
    assert (folder / "00001.idx").read_bytes().startswith(b"\0\0\x08\x03")
    summary = write_indexes(folder, overwrite=True)
    assert summary.failed.keys() == {"00002"}  # a directory is never replaced
    assert (folder / "00002.idx").is_dir()


def test_a_disk_that_takes_no_more(folder):
    code = (
        "import resource\n"
        "from curator_dask.checks.indexing import write_indexes\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        f"print(write_indexes({str(folder)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.count("File too large") == 3, done.stderr
    assert not done.stderr
    assert not list(folder.glob("*.idx")) + list(folder.glob(".*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written(folder):
    folder.chmod(0o500)
    try:
        summary = write_indexes(folder)
    finally:
        folder.chmod(0o700)
    assert summary.failed.keys() == {"00000", "00001", "00002"}
    assert "ermission" in summary.failed["00000"]


def test_it_lies_beside_the_name_that_was_given(folder, tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "00000.tar").symlink_to(folder / "00000.tar")
    assert write_indexes(tmp_path / "links").written == 1
    assert states(tmp_path / "links").keys() == {"00000.idx"}
    assert not states(folder)


def test_wrong_usage(tmp_path):
    with pytest.raises(ConfigError, match="s3://bucket/data: expected local tars"):
        write_indexes("s3://bucket/data")
    with pytest.raises(DatasetError, match="nowhere"):
        write_indexes(tmp_path / "nowhere")


def test_on_a_cluster(folder, private_cluster):
    """All that is written here is written there, also when a worker is killed meanwhile."""
    reasons = damage(folder)
    for number in range(40):
        members = [member for key in range(200) for member in members_of(str(key), b"no image")]
        write_tar(folder / "more" / f"{number}.tar", members)
    with private_cluster(n_workers=2, dashboard_address=None) as client:
        pids = client.run(os.getpid)
        client.submit(os.kill, next(iter(pids.values())), signal.SIGKILL, pure=False)
        summary = write_indexes(folder)
        assert summary.written + summary.fitting == 43
        assert sorted(summary.failed) == sorted(reasons)
        again = write_indexes(folder)
        assert (again.written, again.fitting, again.failed.keys()) == (0, 43, reasons.keys())
        assert set(client.run(os.getpid).values()) != set(pids.values())  # one was killed indeed
        deadline = time.monotonic() + 10
        while client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)):
            assert time.monotonic() < deadline, "tasks are left on the scheduler"
            time.sleep(0.05)
    for tar in (folder / "more").glob("*.tar"):
        assert ShardIndex.read_idx(tar.with_suffix(".idx"), tar).samples == ShardIndex.scan(tar).samples


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_dalis_own_reader_takes_them(tmp_path, format):
    """DALI's webdataset reader gives by these index files the bytes that `tarfile` does."""
    pytest.importorskip("nvidia.dali")
    from nvidia.dali import fn, pipeline_def

    rng = random.Random(3)
    written = {}
    for shard in range(3):
        path = tmp_path / f"{shard}.tar"
        keys = [f"{shard}{number:04d}" for number in range(20)]
        keys += [f"folder.{shard}/ü{shard}", f"./dot{shard}", "f" * 90 + "/" + "n" * 60 + str(shard)]
        members = [
            (f"{key}.{ext}", rng.randbytes(rng.randrange(1, 3000))) for key in keys for ext in ("jpg", "txt")
        ]
        members[5:5] = [("README", b"passed over"), (f"._{shard}.jpg", b"hidden")]
        # Interleaved: the captions of the last samples come after their images.
        members[-6:] = members[-6::2] + members[-5::2]
        with tarfile.open(path, "w", format=format) as tar:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size, info.uname = len(data), "Ann Lee"
                tar.addfile(info, io.BytesIO(data))
    summary = write_indexes(tmp_path)
    assert (summary.written, summary.failed) == (3, {})
    for path in sorted(tmp_path.glob("*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                stem, _, ext = info.name.removeprefix("./").rpartition("/")[2].partition(".")
                if stem and ext and info.isreg():
                    written.setdefault((path.name, info.name.rpartition(".")[0]), {})[ext] = tar.extractfile(
                        info
                    ).read()
    assert len(written) == 3 * 23

    @pipeline_def(batch_size=len(written), num_threads=1, device_id=None)
    def pipeline():
        tars = sorted(tmp_path.glob("*.tar"))
        return tuple(
            fn.readers.webdataset(
                paths=[str(tar) for tar in tars],
                index_paths=[str(tar.with_suffix(".idx")) for tar in tars],
                ext=["jpg", "txt"],
                missing_component_behavior="error",
            )
        )

    pipe = pipeline()
    pipe.build()
    images, texts = pipe.run()
    read = [(bytes(images.at(number)), bytes(texts.at(number))) for number in range(len(written))]
    assert read == [(sample["jpg"], sample["txt"]) for sample in written.values()]
