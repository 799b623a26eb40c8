"""Processes that die, hang or are interrupted in mid-run: real ones, killed for real."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import dask
import forked
import psutil
import pyarrow as pa
import pytest
import torch
from colour_stages import DeadlyStage, stages_of
from colours import (
    ColourReader,
    MeanColour,
    SlowColourReader,
    check_colours,
    colour_of,
    read_output,
    write_dataset,
)
from distributed import scheduler
from leftovers import cluster_that_is_left_clean

from curator_dask import get_client
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ClusterError, CuratorError
from curator_dask.pipeline import Pipeline
from curator_dask.runs.reports import report_frame, report_of
from curator_dask.runs.settle import HOPELESS, file_tasks, run_targets
from curator_dask.runs.summary import SaveSummary
from curator_dask.runs.targets import Target
from curator_dask.settings import PATIENCE

SHARDS, SAMPLES = 24, 12
BAD = "000030005"
TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults") / "data"
    write_dataset(folder, SHARDS, SAMPLES, bad={BAD: b""})
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    """Digests of the files of a run in which nothing happens."""
    out = tmp_path_factory.mktemp("undisturbed")
    with cluster_that_is_left_clean(out, n_workers=1):
        summary = embed(SlowColourReader(), folder, out)
    assert (summary.rows, summary.failed, summary.written) == (SHARDS * SAMPLES, 1, SHARDS)
    table = read_output(out)
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist(), bad={BAD})
    return digests(out)


def embed(embedder, folder, out):
    return embedder(ImageTextPairDataset.from_webdataset(folder)).save_metadata(out)


def digests(out: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.glob("*.parquet"))
    }


def leftovers(out: Path) -> list[str]:
    return [path.name for path in out.rglob("*") if path.is_file() and path.suffix != ".parquet"]


def wait_for_files(out: Path, count: int, seconds: float = 120) -> None:
    wait_until(lambda: len(list(out.glob("*.parquet"))) >= count, seconds, f"{count} files in {out}")


def wait_until(condition, seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not after {seconds} s: {what}"
        time.sleep(0.02)


def worker_pids(client) -> list[int]:
    """Of the workers' processes that live now, also of those that are still starting."""
    nannies = client.cluster.workers.values()
    return [nanny.process.pid for nanny in nannies if nanny.process is not None and nanny.process.pid]


@contextlib.contextmanager
def meanwhile(action):
    """Run `action` in a thread beside the block; what it raises fails the test."""
    problems = []

    def act():
        try:
            action()
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    assert not problems, problems


# ---- workers


@pytest.mark.parametrize(
    ("workers", "kills"),
    [
        pytest.param(1, 3, marks=pytest.mark.slow),
        (2, 4),
        pytest.param(4, 7, marks=pytest.mark.slow),
    ],
)
def test_workers_killed_at_random_moments(folder, undisturbed, private_cluster, tmp_path, workers, kills):
    chance = random.Random(workers)
    killed: list[int] = []

    with private_cluster(n_workers=workers) as client:

        def kill_again_and_again():
            time.sleep(chance.uniform(0, 1))  # the first while models load
            for number in range(kills):
                wait_for_files(tmp_path, number * SHARDS // (kills + 1))
                time.sleep(chance.uniform(0, 0.2))
                wait_until(lambda: worker_pids(client), 60, "a worker")
                victim = chance.choice(worker_pids(client))
                os.kill(victim, signal.SIGKILL)
                killed.append(victim)

        with meanwhile(kill_again_and_again):
            summary = embed(SlowColourReader(), folder, tmp_path)
    assert len(killed) == kills
    assert digests(tmp_path) == undisturbed
    assert (summary.rows, summary.failed, summary.written) == (SHARDS * SAMPLES, 1, SHARDS)
    assert summary.failed_shards == {}
    assert "gave up" not in summary.reasons


@pytest.mark.parametrize("seconds", [2, 20], ids=["shortly", "for longer than a worker may be silent"])
def test_a_stopped_worker(folder, undisturbed, private_cluster, tmp_path, seconds):
    stopped: list[int] = []
    with (
        dask.config.set({"distributed.scheduler.worker-ttl": "5s"}),
        private_cluster(n_workers=2) as client,
    ):

        def stop_one():
            wait_for_files(tmp_path, 2)
            victim = worker_pids(client)[0]
            os.kill(victim, signal.SIGSTOP)
            stopped.append(victim)
            end = time.monotonic() + seconds
            while time.monotonic() < end and psutil.pid_exists(victim):
                time.sleep(0.1)
            with contextlib.suppress(ProcessLookupError):  # it was replaced
                os.kill(victim, signal.SIGCONT)

        with meanwhile(stop_one):
            summary = embed(SlowColourReader(), folder, tmp_path)
    assert stopped
    assert digests(tmp_path) == undisturbed
    assert (summary.written, summary.failed_shards) == (SHARDS, {})


# ---- shards that kill their worker


class Poison(ColourReader):
    """Kills its process when it meets one of some images, as long as a file is there."""

    def __init__(self, keys, fuse, **settings):
        super().__init__(**settings)
        self.keys, self.fuse = tuple(keys), str(fuse)

    def load_embedding_model(self, device):
        return PoisonedMeanColour(self.keys, self.fuse).to(device)


class PoisonedMeanColour(MeanColour):
    def __init__(self, keys, fuse):
        super().__init__()
        self.colours, self.fuse = [colour_of(key) for key in keys], fuse

    def forward(self, images):
        time.sleep(0.01)
        colours = super().forward(images)
        for colour in self.colours:
            hit = (colours.round() == torch.tensor(colour, dtype=colours.dtype)).all(dim=1).any()
            if hit and Path(self.fuse).exists():
                os.abort()
        return colours


class PoisonedTransform(ColourReader):
    """The same, in the transform, which runs in the threads that decode."""

    def __init__(self, keys, fuse, **settings):
        super().__init__(**settings)
        self.keys, self.fuse = tuple(keys), str(fuse)

    @property
    def transform(self):
        return Deadly(tuple(colour_of(key) for key in self.keys), self.fuse)


class Deadly:
    def __init__(self, colours, fuse):
        self.colours, self.fuse = colours, fuse

    def __hash__(self):
        return hash((self.colours, self.fuse))

    def __eq__(self, other):
        return isinstance(other, Deadly) and vars(self) == vars(other)

    def __call__(self, image):
        if image.getpixel((0, 0)) in self.colours and Path(self.fuse).exists():
            os.kill(os.getpid(), signal.SIGKILL)
        colour = torch.tensor(image.getpixel((0, 0)), dtype=torch.float32) / 255
        return colour[:, None, None].expand(3, 16, 16)


@pytest.mark.parametrize(
    ("kind", "workers", "threads", "poison", "tries"),
    [
        pytest.param(Poison, 1, 1, ["000020005"], 4, marks=pytest.mark.slow),  # 4 is Dask's default
        (PoisonedTransform, 1, 2, ["000020005"], 2),
        (Poison, 2, 1, ["000020005", "000050001"], 2),
        pytest.param(Poison, 2, 2, ["000000001"], 2, marks=pytest.mark.slow),
    ],
)
def test_what_kills_its_worker_is_given_up(
    private_cluster, tmp_path, caplog, kind, workers, threads, poison, tries
):
    shards = 8
    fuse = tmp_path / "fuse"
    fuse.touch()
    keys = write_dataset(tmp_path / "data", shards, SAMPLES)
    marked = {key for key in keys if key[:5] in {bad[:5] for bad in poison}}
    with private_cluster(
        n_workers=workers,
        threads_per_worker=threads,
        scheduler_kwargs={"allowed_failures": tries - 1},
    ):
        summary = embed(kind(poison, fuse), tmp_path / "data", tmp_path / "out")
        said = [line for line in caplog.messages if "tried again one by one" in line]
        assert len(said) == 1
        assert all(bad[:5] in said[0] for bad in poison)
        assert (summary.rows, summary.written) == (shards * SAMPLES, shards)
        assert summary.failed == summary.reasons["gave up"] == len(marked)
        assert summary.failed_shards == {}

        table = read_output(tmp_path / "out")
        assert sorted(table["key"].to_pylist()) == sorted(keys)
        check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist(), bad=marked)
        for key, reason in zip(table["key"].to_pylist(), table["image_error"].to_pylist(), strict=True):
            assert (reason is not None) == (key in marked)
            assert reason is None or reason.startswith(f"gave up: {tries} workers died"), reason

        fuse.unlink()
        again = embed(kind(poison, fuse), tmp_path / "data", tmp_path / "out")
    assert (again.written, again.skipped, again.failed) == (len(poison), shards - len(poison), 0)
    table = read_output(tmp_path / "out")
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist())
    assert table["image_error"].null_count == len(keys)


def test_a_stage_that_kills_its_worker_is_given_up(private_cluster, tmp_path):
    """In a group of shards, of which the others are finished all the same."""
    write_dataset(tmp_path / "data", 4, samples=3)
    stages = stages_of(tmp_path / "data", tmp_path / "out", DeadlyStage("000010002"), size=2)
    with private_cluster(n_workers=1, scheduler_kwargs={"allowed_failures": 0}) as client:
        summary = Pipeline("deadly", stages=stages).run(client).summary
    assert (summary.rows, summary.failed, summary.written) == (12, 3, 4) and summary.failed_shards == {}
    assert summary.reasons["gave up"] == 3 and not summary.complete
    table = read_output(tmp_path / "out")
    lost = {key for key in table["key"].to_pylist() if key.startswith("00001")}
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist(), bad=lost)


def test_workers_that_die_on_everything_end_the_run(private_cluster, tmp_path):
    """As where there is too little memory: each of thousands of shards would be tried eight times."""
    (tmp_path / "fuse").touch()
    shards = HOPELESS + 2
    write_dataset(tmp_path / "data", shards, samples=2)
    poison = [f"{shard:05d}0001" for shard in range(shards)]
    with private_cluster(n_workers=1, scheduler_kwargs={"allowed_failures": 0}):
        with pytest.raises(ClusterError, match=r"workers died while working on 0.*most often it is memory"):
            embed(Poison(poison, tmp_path / "fuse"), tmp_path / "data", tmp_path / "out")
        assert list((tmp_path / "out").glob("*")) == []
        (tmp_path / "fuse").unlink()
        assert embed(Poison(poison, tmp_path / "fuse"), tmp_path / "data", tmp_path / "out").written == shards


@dataclass(frozen=True)
class WaitsForTheGate:
    """Reports on a file once the gate is open."""

    folder: Path

    def __call__(self, name):
        (self.folder / f"{name}.begun").touch()
        while not (self.folder / "gate").exists():
            time.sleep(0.01)
        return report_frame(report_of(name, pa.table({"key": [name]}), "key"))

    def give_up(self, reason):
        raise AssertionError(reason)


def test_workers_that_are_restarted_are_blamed_for_nothing(private_cluster, tmp_path, caplog):
    """More tasks are lost at once than where too little memory ends a run, and none of them is done."""
    caplog.set_level("WARNING", "curator_dask")
    names = [f"{number:05d}" for number in range(HOPELESS + 2)]
    summary = SaveSummary(str(tmp_path), opened=False)
    with private_cluster(n_workers=1) as client, ThreadPoolExecutor(1) as pool:

        def restart():
            while not [*tmp_path.glob("*.begun")]:
                time.sleep(0.01)
            client.restart(timeout=120)
            (tmp_path / "gate").touch()

        restarted = pool.submit(restart)
        try:
            tasks = file_tasks(WaitsForTheGate(tmp_path), names, "waits", client)
            targets = [Target.of_file(str(tmp_path), name) for name in names]
            run_targets(tasks, client, targets, summary)
        finally:
            (tmp_path / "gate").touch()
        restarted.result()
    assert (summary.written, summary.rows, summary.failed_shards) == (len(names), len(names), {})
    assert [line for line in caplog.messages if "died" in line or "memory" in line] == []


def deadly_filter(part, key, fuse):
    if (part["key"] == key).any() and Path(fuse).exists():
        os.abort()
    return part


def test_what_kills_before_the_images_is_a_failed_shard(private_cluster, tmp_path):
    """Its rows cannot be marked, since nobody knows them."""
    (tmp_path / "fuse").touch()
    write_dataset(tmp_path / "data", 4, SAMPLES)
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")
    meta = dataset.metadata._meta
    frame = dataset.metadata.map_partitions(deadly_filter, "000010003", str(tmp_path / "fuse"), meta=meta)
    dataset = ColourReader()(dataset.with_metadata(frame))
    with private_cluster(n_workers=1, scheduler_kwargs={"allowed_failures": 0}):
        summary = dataset.save_metadata(tmp_path / "out")
        assert list(summary.failed_shards) == ["00001"]
        assert "1 worker died" in summary.failed_shards["00001"]
        assert (summary.rows, summary.failed, summary.written) == (3 * SAMPLES, 0, 3)


# ---- the client


def program(folder, out, *address):
    """What a user's script does: on a cluster of its own, or on the one at an address."""
    options = {"scheduler_address": address[0]} if address else {"cluster_type": "cpu", "n_workers": 2}
    try:
        with get_client(**options):
            summary = SlowColourReader()(ImageTextPairDataset.from_webdataset(folder)).save_metadata(out)
    except CuratorError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print("SUMMARY", summary.written, summary.skipped)


SCRIPT = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from test_faults import program
if __name__ == "__main__":
    program(*sys.argv[1:])
"""


@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_client_killed_at_random_moments_is_started_again(folder, undisturbed, tmp_path, kills):
    chance = random.Random(3)
    out, log = tmp_path / "out", tmp_path / "log"
    finished = 0
    for _ in range(kills):
        before = forked.processes()
        client = forked.start(program, folder, out, log=tmp_path / "of the killed")
        wait_for_files(out, finished + 2)
        time.sleep(chance.uniform(0, 0.3))
        family = [each for each in forked.processes() - before if each.pid != client.pid]
        assert len(family) >= 2
        client.kill()
        client.join()
        _, alive = psutil.wait_procs(family, timeout=60)
        assert not alive, f"still running without their client: {alive}"
        now = digests(out)
        assert finished + 2 <= len(now) < SHARDS
        assert now.items() <= undisturbed.items()
        finished = len(now)
    last = forked.start(program, folder, out, log=log)
    last.join(240)
    assert last.exitcode == 0, log.read_text()
    assert f"SUMMARY {SHARDS - finished} {finished}" in log.read_text()
    assert digests(out) == undisturbed
    assert leftovers(out) == []


# ---- the cluster


@contextlib.contextmanager
def running_cluster(folder: Path):
    """A scheduler and a worker with its nanny, by the commands `dask scheduler` and `dask worker`."""
    file = folder / "scheduler.json"
    options = ["--scheduler-file", str(file), "--no-dashboard"]

    def command(name, *arguments):
        return forked.start(
            dask_command,
            name,
            [*arguments, *options],
            log=folder / "cluster.log",
            env={"CURATOR_DASK_DEVICE": "cpu"},
        )

    parts = [command("scheduler", "--port", "0", "--host", "127.0.0.1")]
    try:
        wait_until(file.exists, 60, "the scheduler's file")
        parts.append(command("worker", "--nworkers", "1", "--nthreads", "1"))
        yield json.loads(file.read_text())["address"], *parts
    finally:
        for part in parts:
            part.kill()
            part.join()


def dask_command(name, arguments):
    importlib.import_module(f"distributed.cli.dask_{name}").main(arguments)


def errors_of_its_end(log, is_alive, out, files, action):
    """Act when a client has made so many files; its errors, and the seconds it took to end."""
    wait_for_files(out, files)
    action()
    start = time.monotonic()
    wait_until(lambda: not is_alive(), 120, "the client's end")
    return log.read_text(), time.monotonic() - start


@pytest.mark.parametrize("fails", [{2}, {2, 3, 4}])
def test_tasks_that_the_scheduler_cannot_read(
    folder, undisturbed, private_cluster, tmp_path, monkeypatch, fails
):
    """The scheduler is in this process: what it unpickles a graph with fails a few times."""
    calls, deserialize = itertools.count(), scheduler.deserialize

    def failing(*arguments):
        if next(calls) in fails:
            raise ValueError("not readable")
        return deserialize(*arguments)

    out = tmp_path / "out"
    with private_cluster(n_workers=1):
        monkeypatch.setattr(scheduler, "deserialize", failing)
        summary = embed(SlowColourReader(), folder, out)
    assert next(calls) > max(fails)
    assert summary.complete and digests(out) == undisturbed


def test_the_scheduler_killed(folder, undisturbed, private_cluster, tmp_path):
    """Under a user's own script, of which Python's words at its end are seen too."""
    out, log, script = tmp_path / "out", tmp_path / "log", tmp_path / "script.py"
    script.write_text(SCRIPT)
    with running_cluster(tmp_path) as (address, scheduler, _), log.open("w") as file:
        client = subprocess.Popen(
            [sys.executable, script, folder, out, address], stdout=subprocess.DEVNULL, stderr=file
        )
        try:
            errors, seconds = errors_of_its_end(log, lambda: client.poll() is None, out, 3, scheduler.kill)
        finally:
            client.kill()
    assert client.returncode == 1
    assert seconds < 30
    last = errors.strip().splitlines()[-1]
    assert last.startswith(f"ClusterError: the connection to the scheduler at {address} was lost")
    assert "run again" in last
    assert "Traceback" not in errors
    assert 3 <= len(digests(out)) < SHARDS
    assert digests(out).items() <= undisturbed.items()
    with private_cluster(n_workers=1):
        embed(SlowColourReader(), folder, out)
    assert digests(out) == undisturbed
    assert leftovers(out) == []


def test_all_workers_gone_for_good(folder, undisturbed, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    with running_cluster(tmp_path) as (address, _, workers):
        client = forked.start(program, folder, out, address, log=log, env={PATIENCE.name: "6s"})
        try:
            errors, seconds = errors_of_its_end(log, client.is_alive, out, 3, workers.kill)
        finally:
            client.kill()
    assert client.exitcode == 1
    assert 5 < seconds < 40
    last = errors.strip().splitlines()[-1]
    assert last.startswith("ClusterError: the cluster has no worker, for ")
    assert PATIENCE.name in last
    assert "Traceback" not in errors
    assert digests(out).items() <= undisturbed.items()


# ---- Ctrl-C


def in_session(session: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many") / "data"
    write_dataset(folder, 150, SAMPLES)
    return folder


@pytest.mark.parametrize(
    "moment",
    ["the cluster starts", pytest.param("the model loads", marks=pytest.mark.slow), "in the middle"],
)
def test_ctrl_c(many_shards, tmp_path, moment):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "curator_dask.cli", "embed", many_shards, out, "--model", "test_vit"]
    options = ["--no-pretrained", "--cluster", "cpu", "--workers", "2", "--batch-size", "1"]
    log = tmp_path / "log"
    with log.open("wb") as file:
        run = subprocess.Popen([*command, *options], stdout=file, stderr=file, start_new_session=True)
        if moment == "the cluster starts":
            wait_until(lambda: len(in_session(run.pid)) >= 3, 60, "workers' processes")
        elif moment == "the model loads":
            wait_until(lambda: "loading " in log.read_text(), 60, "a line that says so")
        else:
            wait_for_files(out, 3)
        os.killpg(run.pid, signal.SIGINT)
        start = time.monotonic()
        try:
            run.wait(60)
        finally:
            text = log.read_text()
            seconds = time.monotonic() - start
            with contextlib.suppress(psutil.TimeoutExpired):
                psutil.wait_procs(in_session(run.pid), timeout=3)  # the resource tracker ends a moment later
            left = in_session(run.pid)
            for process in left:
                process.kill()
            run.kill()
    assert run.returncode == 130, text
    assert seconds < 10, text
    assert left == [], text
    assert leftovers(out) == [] if out.exists() else moment != "in the middle"
    assert "interrupted: finished shards are kept" in text
    assert "Traceback" not in text


# ---- nothing is left


def test_no_files_and_threads_are_left(private_cluster, tmp_path):
    folder = tmp_path / "data"
    write_dataset(folder, 3, 4)

    def counts(process=None):
        import gc

        import psutil

        gc.collect()
        process = psutil.Process()
        return process.num_fds(), process.num_threads()

    with private_cluster(n_workers=1) as client:  # which has a part in every run
        found = []
        for number in range(7):
            embed(ColourReader(), folder, tmp_path / str(number))
            gc.collect()
            time.sleep(0.5)
            found.append({"client": counts(), **client.run(counts)})
    # The first run starts what stays: pools, connections, the model. After it a pool may still grow by a connection
    # or two, each with both its ends in the client's process; a file left behind by every run would make five.
    first, *later = found[1:]
    for who, (files, threads) in first.items():
        assert later[-1][who][0] <= files + 4, (who, found)
        assert max(run[who][1] for run in later) <= threads + 1, (who, found)
