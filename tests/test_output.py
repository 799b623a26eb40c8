"""The place that a run writes to: full, read-only, or another run's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from colours import ColourReader, check_colours, read_output, write_dataset

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.datasets.runlock import LOCK_NAME, STALE_SECONDS, RunLock
from curator_dask.errors import OutputError

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


SCRIPT = """
    import resource, signal, sys
    sys.path.insert(0, {tests!r})
    import dask
    from colours import ColourReader
    from curator_dask.datasets import ImageTextPairDataset
    from curator_dask.errors import OutputError
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    dataset = ColourReader()(ImageTextPairDataset.from_webdataset({data!r}))
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
    try:
        dataset.save_metadata({out!r})
    except OutputError as error:
        print("REFUSED", error)
"""


def test_a_file_that_may_not_grow(folder, tmp_path):
    """As a quota does it; also where nothing may be mounted."""
    out = tmp_path / "out"
    code = textwrap.dedent(SCRIPT).format(
        tests=str(Path(__file__).parent), data=str(folder), out=str(out), limit=2000
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "REFUSED" in done.stdout and "could not be written: File too large" in done.stdout, done.stderr
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


def test_two_runs_at_once(folder, tmp_path):
    script = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from colours import SlowColourReader
        from curator_dask.datasets import ImageTextPairDataset
        embed = SlowColourReader(seconds=0.3)
        embed(ImageTextPairDataset.from_webdataset({str(folder)!r})).save_metadata({str(tmp_path / "out")!r})
    """)
    first = subprocess.Popen([sys.executable, "-c", script])
    end = time.monotonic() + 60
    while not (tmp_path / "out" / LOCK_NAME).exists():
        assert time.monotonic() < end and first.poll() is None
        time.sleep(0.02)
    with pytest.raises(OutputError, match=f"another run is writing there, process {first.pid} "):
        save(folder, tmp_path / "out")
    assert first.wait(60) == 0, "the first run was disturbed"
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
