"""Workers and clients that are killed in mid-run, as real processes."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from colours import ColourReader, SlowColourReader, check_colours, read_output, write_dataset

from curator_dask import get_client
from curator_dask.datasets import ImageTextPairDataset

SHARDS, SAMPLES = 8, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume") / "data"
    write_dataset(folder, SHARDS, SAMPLES, bad={"000030005": b""})
    return folder


@pytest.fixture(scope="module")
def client():
    with get_client("cpu", n_workers=2) as client:
        yield client


@pytest.fixture(scope="module")
def undisturbed(folder, client, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    summary = SlowColourReader()(ImageTextPairDataset.from_webdataset(folder)).save_metadata(out)
    assert (summary.rows, summary.failed, summary.written) == (SHARDS * SAMPLES, 1, SHARDS)
    table = read_output(out)
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist(), bad={"000030005"})
    return digests(out)


def digests(out: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.iterdir())}


def live_specs():
    # By name: sent by value, it would take the caches along.
    from curator_dask.models import cache

    return cache.ENCODERS.specs(), cache.LOADERS.specs()


def finished_tasks(dask_scheduler):
    return {name: prefix.state_counts["memory"] for name, prefix in dask_scheduler.task_prefixes.items()}


def wait_for_files(out: Path, count: int, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while len(list(out.glob("*.parquet"))) < count:
        assert time.monotonic() < end, f"fewer than {count} files in {out} after {seconds} s"
        time.sleep(0.02)


def test_a_killed_worker_costs_a_retry(folder, client, undisturbed, tmp_path):
    def kill_one():
        wait_for_files(tmp_path, 2)
        victim = next(iter(client.run(os.getpid).values()))
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)

    killed: list[int] = []
    killer = threading.Thread(target=kill_one)
    killer.start()
    summary = SlowColourReader()(ImageTextPairDataset.from_webdataset(folder)).save_metadata(tmp_path)
    killer.join()
    assert killed
    assert digests(tmp_path) == undisturbed
    assert (summary.rows, summary.written, summary.failed_shards) == (SHARDS * SAMPLES, SHARDS, {})


def test_a_killed_client_is_started_again(folder, undisturbed, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from colours import SlowColourReader
        from curator_dask import get_client
        from curator_dask.datasets import ImageTextPairDataset
        if __name__ == "__main__":
            with get_client("cpu", n_workers=2):
                dataset = ImageTextPairDataset.from_webdataset({str(folder)!r})
                summary = SlowColourReader()(dataset).save_metadata({str(tmp_path / "out")!r})
            print("SUMMARY", summary.written, summary.skipped)
        """)
    )
    first = subprocess.Popen([sys.executable, script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (tmp_path / "out").mkdir()
    wait_for_files(tmp_path / "out", 2)
    family = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(signal.SIGKILL)
    first.wait()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive, f"still running without their client: {alive}"

    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    assert 2 <= len(before) < SHARDS
    for name in before:
        assert pq.read_metadata(tmp_path / "out" / name).num_rows == SAMPLES
    second = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=240)
    assert second.returncode == 0, second.stderr
    assert f"SUMMARY {SHARDS - len(before)} {len(before)}" in second.stdout
    assert digests(tmp_path / "out") == undisturbed
    for name, stamp in before.items():
        assert (tmp_path / "out" / name).stat().st_mtime_ns == stamp


def test_one_model_a_worker_for_all_shards(folder, client, tmp_path):
    embed = ColourReader()
    embed(ImageTextPairDataset.from_webdataset(folder)).save_metadata(tmp_path / "one")
    mine = embed.encoder_spec()

    for encoders, loaders in client.run(live_specs).values():
        assert encoders.count(mine) == 1
        assert len(encoders) <= 2
        assert len(loaders) <= 2


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
