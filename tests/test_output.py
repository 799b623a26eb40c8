"""The place that a run writes to: full, read-only, or another run's."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import time

import fsspec
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import ColourReader, SlowColourReader, check_colours, read_output, write_dataset

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, OutputError
from curator_dask.outputs.lock import LOCK_NAME, STALE_SECONDS, RunLock

SHARDS, SAMPLES = 3, 8


@pytest.fixture
def folder(tmp_path):
    write_dataset(tmp_path / "data", SHARDS, SAMPLES)
    return tmp_path / "data"


def save(folder, out, **settings):
    return ColourReader()(ImageTextPairDataset.from_webdataset(folder)).save_metadata(out, **settings)


def check_whole(out):
    table = read_output(out)
    assert len(table) == SHARDS * SAMPLES
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist())


@pytest.fixture
def small_device(tmp_path):
    """A device of 64 KiB, where this may be mounted."""
    place = tmp_path / "device"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_device(folder, small_device, in_this_process):
    filler = small_device / "filler"
    filler.write_bytes(bytes(52 << 10))  # room for one file of output, not for three
    with pytest.raises(
        OutputError, match=r"\.parquet: could not be written: No space left on device.*make room"
    ):
        save(folder, small_device / "out")
    finished = len(list((small_device / "out").iterdir()))
    assert finished == len(list((small_device / "out").glob("*.parquet"))) < SHARDS, "a partial file is left"
    filler.unlink()
    summary = save(folder, small_device / "out")
    assert (summary.skipped, summary.written) == (finished, SHARDS - finished)
    check_whole(small_device / "out")


# Processes that have the heavy modules from the beginning.
FORKED = multiprocessing.get_context("forkserver")


def save_with_small_files(folder, out, limit, said):
    """Where no file may have more bytes; says what the run ended with."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        save(folder, out)
    except OutputError as error:
        said.send(str(error))
    said.close()


def test_a_file_that_may_not_grow(folder, tmp_path):
    """As a quota does it; also where nothing may be mounted."""
    out = tmp_path / "out"
    hear, said = FORKED.Pipe(duplex=False)
    process = FORKED.Process(target=save_with_small_files, args=(folder, out, 2000, said))
    process.start()
    said.close()
    assert "could not be written: File too large" in hear.recv()
    process.join(60)
    assert process.exitcode == 0
    assert list(out.iterdir()) == []
    save(folder, out)
    check_whole(out)


def test_read_only(folder, tmp_path, in_this_process):
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
            save(folder, out)
        assert list(out.iterdir()) == []
    finally:
        subprocess.run(["umount", str(out)], capture_output=True)
        out.chmod(0o700)
    save(folder, out)
    check_whole(out)


def note_of(pid, host=None, seen=None):
    return {
        "run": "another",
        "host": host or os.uname().nodename,
        "pid": pid,
        "process_started": psutil.Process(pid).create_time() if psutil.pid_exists(pid) else 0,
        "since": time.time() - 60,
        "seen": time.time() if seen is None else seen,
    }


DEAD = 2**22 + 1  # above what Linux gives to a process


@pytest.mark.parametrize(
    "note, is_alive",
    [
        (lambda: note_of(os.getppid()), True),
        (lambda: note_of(DEAD), False),
        (lambda: {**note_of(os.getppid()), "process_started": 1.0}, False),  # its number was used again
        (lambda: note_of(DEAD, host="elsewhere"), True),
        (lambda: note_of(DEAD, host="elsewhere", seen=time.time() - STALE_SECONDS - 1), False),
        (lambda: ["no note"], False),
        (dict, False),
    ],
)
def test_a_note_of_another_run(folder, tmp_path, in_this_process, note, is_alive):
    out = tmp_path / "out"
    out.mkdir()
    (out / LOCK_NAME).write_text(json.dumps(note()))
    if is_alive:
        with pytest.raises(
            OutputError, match=r"another run is writing there, process \d+ on .*, since 2.*Wait until"
        ):
            save(folder, out)
        assert sorted(path.name for path in out.iterdir()) == [LOCK_NAME]
    else:
        save(folder, out)
        check_whole(out)
        assert not (out / LOCK_NAME).exists()


def save_slowly(folder, out):
    SlowColourReader(seconds=0.3)(ImageTextPairDataset.from_webdataset(folder)).save_metadata(out)


def test_two_runs_at_once(folder, tmp_path):
    first = FORKED.Process(target=save_slowly, args=(folder, tmp_path / "out"))
    first.start()
    end = time.monotonic() + 60
    while not (tmp_path / "out" / LOCK_NAME).exists():
        assert time.monotonic() < end and first.exitcode is None
        time.sleep(0.02)
    with pytest.raises(OutputError, match=f"another run is writing there, process {first.pid} "):
        save(folder, tmp_path / "out")
    first.join(60)
    assert first.exitcode == 0, "the first run was disturbed"
    check_whole(tmp_path / "out")
    assert not (tmp_path / "out" / LOCK_NAME).exists()


def test_the_note_goes_also_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), RunLock(str(tmp_path)):
        assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", ["tar", "parquet", "idx"])
def test_a_fifo_among_the_shards_is_not_waited_for(folder, tmp_path, in_this_process, suffix):
    victim = folder / f"00001.{suffix}"
    victim.unlink(missing_ok=True)
    os.mkfifo(victim)
    began = time.monotonic()
    summary = save(folder, tmp_path / "out")
    assert time.monotonic() - began < 30
    if suffix == "idx":  # the tar itself says it all
        assert summary.failed_shards == {}
        check_whole(tmp_path / "out")
    else:
        assert list(summary.failed_shards) == ["00001"]
        assert "FIFO" in summary.failed_shards["00001"] and str(victim) in summary.failed_shards["00001"]
        assert summary.rows == (SHARDS - 1) * SAMPLES


def test_overwrite_leaves_other_outputs_below_the_folder_alone(folder, tmp_path, in_this_process):
    """Whatever partitions they have, and also the dataset's own files."""
    write_dataset(tmp_path / "other", SHARDS, SAMPLES, key="9{shard:03d}{sample:04d}")
    mine = ColourReader()(ImageTextPairDataset.from_webdataset(folder))
    mixed = mine.with_metadata(mine.metadata.shuffle("key"))
    other = ColourReader()(ImageTextPairDataset.from_webdataset(tmp_path / "other"))
    mine.save_metadata()
    other.save_metadata(tmp_path / "out" / "other")
    other.with_metadata(other.metadata.shuffle("key")).save_metadata(tmp_path / "out" / "mixed")

    def files():
        return {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}

    before = files()
    mine.save_metadata(tmp_path / "out", overwrite=True)
    mixed.save_metadata(tmp_path, overwrite=True)
    after = files()
    assert {path: after.get(path) for path in before} == before
    # Those that hold the same rows do go.
    mixed.save_metadata(tmp_path / "out", overwrite=True)
    assert not list((tmp_path / "out").glob("0*.parquet"))
    mine.save_metadata(tmp_path / "out", overwrite=True)
    assert not list((tmp_path / "out").glob("part-*.parquet"))


def test_dropped_rows_of_other_partitions_do_not_stay(tmp_path, in_this_process):
    write_dataset(tmp_path / "data", 2, 6, bad={"000000005": b""})
    out = tmp_path / "out"
    parts = ImageTextPairDataset.from_webdataset(tmp_path / "data", rows_per_partition=2)
    ColourReader()(parts).save_metadata(out, drop_failed=True)
    assert len(list((out / "_errors").iterdir())) == 1
    save(tmp_path / "data", out, drop_failed=True, overwrite=True)
    assert [path.name for path in (out / "_errors").iterdir()] == ["00000.parquet"]
    save(tmp_path / "data", out)
    assert list((out / "_errors").iterdir()) == []


def test_the_datasets_own_folder_by_another_name(folder, tmp_path, in_this_process):
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(ConfigError, match="drop_failed=True would drop rows"):
        save(folder, tmp_path / "link", drop_failed=True, overwrite=True)
    save(folder, tmp_path / "link")
    check_whole(folder)
    assert save(folder, tmp_path / "link").skipped == SHARDS


def test_the_root_of_a_store_is_no_local_folder(folder, in_this_process, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fs = fsspec.filesystem("memory")
    try:
        save(folder, "memory://")
        assert [path for path in fs.find("/") if path.endswith(".parquet")] == [
            f"/{n:05d}.parquet" for n in range(3)
        ]
        assert not (tmp_path / "memory:").exists()
        assert save(folder, "memory://").skipped == SHARDS
    finally:
        fs.rm("/", recursive=True)


def test_a_parquet_of_another_shard_is_said(folder, tmp_path, in_this_process):
    (folder / "00000.parquet").rename(folder / "away")
    (folder / "00001.parquet").rename(folder / "00000.parquet")
    (folder / "away").rename(folder / "00001.parquet")
    summary = save(folder, tmp_path / "out")
    assert summary.failed == 2 * SAMPLES
    assert not summary.complete
    for shard in ("00000", "00001"):
        assert "none of the 8 ids of its Parquet" in summary.damaged_shards[str(folder / f"{shard}.tar")]


def test_text_that_is_not_utf8(tmp_path, in_this_process):
    """In the ids it costs the shard, with a reason; in the downloader's status nothing."""
    write_dataset(tmp_path / "data", 2, 3, bad={"000010002": b""})
    odd = pa.array([b"ok", b"\xe9", b"x"]).view(pa.string())
    for shard, column in (("00000", "key"), ("00001", "status")):
        table = pq.read_table(tmp_path / "data" / f"{shard}.parquet")
        for name in ("00000", "00001"):
            path = tmp_path / "data" / f"{name}.parquet"
            if "status" not in pq.read_schema(path).names:
                whole = pq.read_table(path)
                pq.write_table(whole.append_column("status", pa.array(["success"] * 3)), path)
        table = pq.read_table(tmp_path / "data" / f"{shard}.parquet")
        at = table.column_names.index(column)
        pq.write_table(table.set_column(at, column, odd), tmp_path / "data" / f"{shard}.parquet")
    summary = save(tmp_path / "data", tmp_path / "out")
    assert list(summary.failed_shards) == ["00000"]
    assert "column 'key', found bytes that are not UTF-8 in row 1" in summary.failed_shards["00000"]
    assert (summary.rows, summary.failed) == (3, 1)
