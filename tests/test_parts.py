"""Parts of a run, as of an array of jobs: each its own shards, all one output, and the same as one run of the whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sysconfig
import threading
import time
from collections import Counter
from pathlib import Path

import dask
import forked
import pyarrow.parquet as pq
import pytest
from colours import ColourReader, MeanColour, check_colours, read_output, write_dataset
from typer.testing import CliRunner

from curator_dask.cli import app
from curator_dask.cluster.limits import find_limits
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, OutputError
from curator_dask.info import describe_output
from curator_dask.outputs import lock
from curator_dask.outputs.lock import LOCK_NAME, PARTS_FOLDER, RunLock
from curator_dask.runs.parts import Part, part_of

SHARDS, SAMPLES = 8, 4
BAD = "000030002"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts") / "data"
    write_dataset(folder, SHARDS, SAMPLES, bad={BAD: b""})
    return folder


def digests(folder):
    """Of all files below a folder, hidden ones too."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def save(folder, out, part=None, reader=ColourReader, **how):
    given = {name: how.pop(name) for name in ("rows_per_partition",) if name in how}
    dataset = ImageTextPairDataset.from_webdataset(folder, **given)
    return reader()(dataset).save_metadata(out, part=part, **how)


class HeldColourReader(ColourReader):
    def load_embedding_model(self, device):
        return HeldMeanColour()


class HeldMeanColour(MeanColour):
    """Where ``HELD`` names a file, an output and a part of 4, waits for it once the part has one in the output."""

    def forward(self, images):
        if held := os.environ.get("HELD"):
            go, out, part = held.split(":")
            mine = [path for path in Path(out).glob("*.parquet") if part_of(path.stem, 4) == int(part)]
            while mine and not Path(go).exists():
                time.sleep(0.01)
        return super().forward(images)


class TakenOverColourReader(ColourReader):
    def load_embedding_model(self, device):
        return TakenOverMeanColour()


class TakenOverMeanColour(MeanColour):
    """Puts the note of another run into the file that ``TAKEN_OVER`` names."""

    def forward(self, images):
        file, _, note = os.environ["TAKEN_OVER"].partition(":")
        for _ in range(10):  # of which a renewal that has just looked may write over the first
            Path(file).write_text(note)
            time.sleep(0.03)
        return super().forward(images)


def save_held(folder, out, part):
    """In a process of its own."""
    with dask.config.set(scheduler="sync"):
        save(folder, out, part, HeldColourReader)


def test_which_part_a_shard_is_of():
    """Never another in a later version: a part that runs again would find others' shards to be its own."""
    names = [
        "00000",
        "00001",
        "00007",
        "a/00001",
        "train-00005-of-01000",
        "9" * 5000,
        "cats",
        "ä",
        "a.part-1/x",
    ]
    assert [part_of(name, 4) for name in names] == [3, 0, 3, 0, 2, 3, 3, 2, 0]
    assert {part_of(name, 1) for name in names} == {0}


@pytest.mark.parametrize(
    "name, most",
    [
        ("{0:05d}", 0),
        ("train-{0:05d}-of-01000", 0),
        ("{folder:02d}/{place:05d}", 0.08),  # folders of 37
        ("{ten:06d}", 0.25),  # every tenth
        ("{digest}", 0.25),
    ],
)
@pytest.mark.parametrize("parts", [8, 10])
def test_parts_are_of_about_one_size(name, most, parts):
    digest = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(1000)]
    names = [
        name.format(each, folder=each // 37, place=each % 37, ten=10 * each, digest=digest[each])
        for each in range(1000)
    ]
    sizes = Counter(part_of(each, parts) for each in names)
    assert sum(sizes.values()) == 1000 and len(sizes) == parts
    assert max(sizes.values()) <= (1 + most) * 1000 / parts


@pytest.mark.parametrize(
    "given",
    ["8/8", "9/8", "0/0", "3", "1 of 8", "-1/8", "x/8", "1/2/3", (8, 8), (0, 1.5), (True, 2), 3],
)
def test_what_is_no_part(given, folder, tmp_path):
    with pytest.raises(ConfigError, match="counted from 0: those of 8 are 0/8 to 7/8"):
        save(folder, tmp_path / "out", given)
    assert not (tmp_path / "out").exists()


def test_an_array_that_begins_at_1_is_refused_in_each_of_its_jobs(monkeypatch):
    for name, value in {"ID": 3, "COUNT": 8, "MIN": 1, "MAX": 8}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    with pytest.raises(ConfigError, match=r"numbers from 1 to 8.*--array=0-7"):
        Part.of_given("3/8")
    assert Part.of_given("2/8") == Part(2, 8)  # reckoned by the script
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "0")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MAX", "7")
    assert Part.of_given("3/8") == Part(3, 8)


def test_parts_at_once_one_killed_and_the_dataset_growing_are_one_run_of_the_whole(folder, tmp_path):
    """Four processes; one is killed, and begins again when there are more shards, some of them of the others."""
    data, out, go = tmp_path / "data", tmp_path / "out", tmp_path / "go"
    shutil.copytree(folder, data)
    jobs = [
        forked.start(
            save_held, data, out, (number, 4), log=tmp_path / "log", env={"HELD": f"{go}:{out}:{number}"}
        )
        for number in range(4)
    ]
    end = time.monotonic() + 60
    while len(list(out.glob("*.parquet"))) < 4:  # all are at work
        assert time.monotonic() < end and all(job.is_alive() for job in jobs), (tmp_path / "log").read_text()
        time.sleep(0.01)
    assert sorted(path.name for path in (out / PARTS_FOLDER).iterdir()) == [
        f"{n}-of-4.json" for n in range(4)
    ]
    os.kill(jobs[2].pid, signal.SIGKILL)
    go.touch()
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0, 0, -signal.SIGKILL, 0]
    assert [path.name for path in (out / PARTS_FOLDER).iterdir()] == ["2-of-4.json"]
    assert "part 2/4 was left by a run that is dead" in describe_output(out).lock
    assert len(list(out.glob("*.parquet"))) == SHARDS - 1

    write_dataset(tmp_path / "more", SHARDS + 4, SAMPLES, bad={BAD: b""})
    for number in range(SHARDS, SHARDS + 4):
        for suffix in (".tar", ".parquet"):
            shutil.copy2(tmp_path / "more" / f"{number:05d}{suffix}", data)
    with dask.config.set(scheduler="sync"):
        again = save(data, out, (2, 4), HeldColourReader)
        assert again.part == again.to_dict()["part"] == {"number": 2, "of": 4, "shards": 3, "all_shards": 12}
        assert "part 2/4: 3 of 12 shards" in str(again) and (again.written, again.skipped) == (2, 1)
        rest, whole = (save(data, tmp_path / name, reader=HeldColourReader) for name in ("out", "whole"))
        assert (rest.written, rest.skipped, rest.part) == (3, 9, None)  # the new ones of the other parts
        assert rest.fingerprint == whole.fingerprint
        assert digests(out) == digests(tmp_path / "whole")
        nothing = save(data, out, reader=HeldColourReader)
    assert (nothing.written, nothing.skipped, nothing.rows_before) == (0, 12, 12 * SAMPLES)
    table = read_output(out)
    check_colours(table.column("key").to_pylist(), table.column("image_embedding").to_pylist(), bad={BAD})
    assert len({*table.column("key").to_pylist()}) == len(table) == 12 * SAMPLES


@pytest.mark.usefixtures("in_this_process")
class TestInThisProcess:
    def test_each_part_has_its_own_and_the_whole_finds_all_done(self, folder, tmp_path):
        out, seen = tmp_path / "out", []
        for number in range(5):
            summary = save(folder, out, f"{number}/5")
            assert summary.rows == summary.part["shards"] * SAMPLES
            assert {part_of(name, 5) for name in summary.shards} <= {number}
            seen += summary.shards
            assert save(folder, out, f"{number}/5").skipped == summary.part["shards"]
        assert sorted(seen) == [f"{number:05d}" for number in range(SHARDS)]
        rest = save(folder, out)
        assert (rest.written, rest.skipped, rest.failed_before) == (0, SHARDS, 1)
        save(folder, tmp_path / "whole")
        assert digests(out) == digests(tmp_path / "whole")

    def test_a_part_without_shards(self, folder, tmp_path, said):
        taken = {part_of(f"{each:05d}", 40) for each in range(SHARDS)}
        empty = min({*range(40)} - taken)
        summary = save(folder, tmp_path / "out", (empty, 40))
        assert (summary.written, summary.complete, summary.good) == (0, True, 1.0)
        assert f"part {empty}/40: 0 of 8 shards" in said.text
        assert not (tmp_path / "out").exists()

    def test_a_second_model_in_parts_keeps_the_first(self, folder, tmp_path):
        for name in ("whole", "out"):
            save(folder, tmp_path / name)
        second = lambda: ColourReader(image_embedding_column="second")  # noqa: E731
        save(folder, tmp_path / "whole", reader=second)
        for number in range(3):
            save(folder, tmp_path / "out", (number, 3), second)
        assert {"image_embedding", "second"} <= {*read_output(tmp_path / "out").column_names}
        assert digests(tmp_path / "out") == digests(tmp_path / "whole")

    def test_failed_rows_that_go_elsewhere(self, folder, tmp_path):
        for number in range(3):
            save(folder, tmp_path / "out", (number, 3), drop_failed=True)
        save(folder, tmp_path / "whole", drop_failed=True)
        for each in ("out", "out.errors"):
            assert digests(tmp_path / each) == digests(tmp_path / each.replace("out", "whole"))

    def test_other_settings_are_refused_by_each_part(self, folder, tmp_path):
        save(folder, tmp_path / "out")
        other = lambda: ColourReader(normalize_embeddings=True)  # noqa: E731
        before = digests(tmp_path / "out")
        for number in range(2):
            with pytest.raises(OutputError, match=r"would be replaced.*--overwrite"):
                save(folder, tmp_path / "out", (number, 2), other)
        assert digests(tmp_path / "out") == before

    def test_other_settings_than_those_of_another_part_are_refused(self, folder, tmp_path):
        """Though none of a part's own files is there; also while the other is at work, and has none itself."""
        out = tmp_path / "out"
        other = lambda: ColourReader(normalize_embeddings=True)  # noqa: E731
        save(folder, out, (0, 2))
        before = digests(out)
        with pytest.raises(OutputError, match="of another part: column 'image_embedding' was made with norm"):
            save(folder, out, (1, 2), other)
        assert digests(out) == before
        second = lambda: ColourReader(image_embedding_column="second")  # noqa: E731
        assert (
            save(folder, tmp_path / "two", (0, 2)).written
            == save(folder, tmp_path / "two", (1, 2), second).written
        )
        out = tmp_path / "at once"
        out.mkdir()
        with RunLock(str(out), part=Part(0, 2)) as lock:
            lock.declare({"image_embedding": {"normalized": True}})
            with pytest.raises(
                OutputError, match=r"'image_embedding' of part 0/2, which is at work, was made with "
            ):
                save(folder, out, (1, 2))
            assert save(folder, out, (1, 2), second).written == 4
        assert not [*out.glob(".*")]

    @pytest.mark.parametrize("part", [None, (0, 1)])
    def test_a_run_that_was_taken_for_dead_ends(self, part, folder, tmp_path, monkeypatch):
        """It was suspended, say, and its successor has other settings: it must not write between its files."""
        monkeypatch.setattr(lock, "RENEW_SECONDS", 0.02)
        out, beside = tmp_path / "out", Path(LOCK_NAME) if part is None else Path(PARTS_FOLDER, "0-of-1.json")
        note = json.dumps({"run": "x", "host": "elsewhere", "pid": 1, "since": 0, "seen": time.time()})

        monkeypatch.setenv("TAKEN_OVER", f"{out / beside}:{note}")
        with pytest.raises(OutputError, match=r"process 1 on elsewhere.* no sign of life .* and ends"):
            save(folder, out, part, TakenOverColourReader)
        assert len([*out.glob("*.parquet")]) == 1
        assert (out / beside).read_text() == note  # it is the other's

    def test_shards_cut_otherwise_are_replaced_when_all_parts_are_done(self, folder, tmp_path, said):
        out = tmp_path / "out"
        cut = {"rows_per_partition": 2}
        for number in range(3):  # all partitions of a shard are of one part
            save(folder, out, (number, 3), **cut)
        assert len(list(out.glob("*.parquet"))) == 2 * SHARDS
        for number in range(3):
            with pytest.raises(OutputError, match="16 files of the same rows in other partitions"):
                save(folder, out, (number, 3))
            save(folder, out, (number, 3), overwrite=True)
            assert "16 files of the same rows in other partitions" in said.text
        assert len(list(out.glob("*.parquet"))) == 3 * SHARDS
        assert save(folder, out, overwrite=True).skipped == SHARDS
        save(folder, tmp_path / "whole")
        assert digests(out) == digests(tmp_path / "whole")

    def test_rows_that_were_mixed_have_no_parts(self, folder, tmp_path):
        dataset = ColourReader()(ImageTextPairDataset.from_webdataset(folder))
        for mixed in (
            dataset.metadata.repartition(npartitions=3),
            dataset.metadata.sample(frac=0.5, random_state=1),
        ):
            with pytest.raises(ConfigError, match="a part is of whole shards"):
                dataset.with_metadata(mixed).save_metadata(tmp_path / "out", part=(0, 2))
        picked = dataset.with_metadata(dataset.metadata.partitions[[1, 3, 5]])
        assert picked.save_metadata(tmp_path / "out", part=(0, 1)).written == 3

    def test_while_a_part_runs(self, folder, tmp_path):
        """Another part of as many may run, and nothing else; what is refused changes nothing."""
        out = tmp_path / "out"
        out.mkdir()
        with RunLock(str(out), part=Part(1, 4)):
            before = digests(out)
            for part, who in (
                (None, "part 1/4 of a run"),
                ((0, 2), "part 1/4 of a run"),
                ((1, 4), "another run of part 1/4"),
            ):
                with pytest.raises(OutputError, match=f"{who} is writing there, process {os.getpid()} "):
                    save(folder, out, part)
            assert digests(out) == before
            assert save(folder, out, (0, 4)).written
            assert "part 1/4 is being written" in describe_output(out).lock
        assert not (out / PARTS_FOLDER).exists()
        with RunLock(str(out)), pytest.raises(OutputError, match="another run is writing there"):
            save(folder, out, (0, 4))
        assert not (out / PARTS_FOLDER).exists()


def test_of_a_part_and_the_whole_that_begin_at_once_not_both_go_on(tmp_path, monkeypatch):
    """Both have found no note before either wrote its own: each looks again."""
    monkeypatch.setattr(RunLock, "check", lambda lock: None)
    for first, second in (
        (None, Part(0, 2)),
        (Part(0, 2), None),
        (Part(0, 2), Part(0, 3)),
        (Part(0, 2), Part(0, 2)),
    ):
        with RunLock(str(tmp_path), part=first):
            before = {*tmp_path.rglob("*")}
            with pytest.raises(OutputError, match="is writing there"), RunLock(str(tmp_path), part=second):
                pass
            assert {*tmp_path.rglob("*")} == before
    assert not list(tmp_path.iterdir())


def test_the_folder_of_notes_may_go_when_a_part_is_about_to_write_its_own(tmp_path, monkeypatch):
    """It goes with the last of the parts that end."""
    write, gone = RunLock._write_local, []

    def write_too_late(lock, data, new):
        if len(gone) < 3:
            gone.append((tmp_path / PARTS_FOLDER).rmdir())
        write(lock, data, new)

    monkeypatch.setattr(RunLock, "_write_local", write_too_late)
    with RunLock(str(tmp_path), part=Part(1, 4)):
        assert [path.name for path in (tmp_path / PARTS_FOLDER).iterdir()] == ["1-of-4.json"]
    assert len(gone) == 3
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mine, other", [(None, Part(0, 2)), (Part(0, 2), Part(0, 3)), (Part(0, 2), None)])
def test_who_was_away_for_long_looks_who_came(mine, other, tmp_path, monkeypatch):
    """Its note stands, or was swept away; of one that was here all the while others know to keep out."""
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.02)
    monkeypatch.setattr(RunLock, "check", lambda lock: None)
    with RunLock(str(tmp_path), part=mine) as held:
        monkeypatch.setattr(
            lock, "_is_alive", lambda note: note["run"] != held._note["run"]
        )  # as others see it
        with RunLock(str(tmp_path), part=other):
            time.sleep(0.1)
            held.check_held()
            monkeypatch.setattr(lock, "STALE_SECONDS", -1.0)  # so long ago it was here
            time.sleep(0.2)
            with pytest.raises(OutputError, match="was taken for dead, and ends"):
                held.check_held()


def test_a_job_that_is_put_back_waits_until_its_own_note_is_out_of_date(tmp_path, monkeypatch, said):
    """It was killed on another machine; a living one renews its note meanwhile."""
    monkeypatch.setattr(lock, "STALE_SECONDS", 2.0)
    monkeypatch.setattr(lock, "_LOOK_SECONDS", 0.05)
    note = tmp_path / PARTS_FOLDER / "1-of-4.json"
    note.parent.mkdir()

    def write(seen):
        note.write_text(json.dumps({"run": "x", "host": "elsewhere", "pid": 1, "since": seen, "seen": seen}))

    write(time.time() - 1.5)
    start = time.monotonic()
    with RunLock(str(tmp_path), part=Part(1, 4)):
        assert 0.3 < time.monotonic() - start < 10
        assert json.loads(note.read_text())["pid"] == os.getpid()
    assert "part 1/4 has a note of process 1 on elsewhere" in said.text
    note.parent.mkdir()
    write(time.time() - 1)
    renewing = threading.Timer(0.2, write, [time.time()])
    renewing.start()
    with pytest.raises(OutputError, match="another run of part 1/4 is writing there, process 1 on elsewhere"):
        RunLock(str(tmp_path), part=Part(1, 4)).check()
    renewing.join()
    write(time.time() - 9)  # the whole sweeps it
    with RunLock(str(tmp_path)):
        assert [path.name for path in tmp_path.iterdir()] == [LOCK_NAME]


COMMAND = [str(Path(sysconfig.get_path("scripts")) / "curator-dask"), "embed"]


def test_the_command_is_ended_by_what_slurm_sends_and_goes_on(folder, tmp_path):
    """SIGTERM to all processes of a job: the client's and its workers'."""
    write_dataset(tmp_path / "data", 120, 3)
    more = ["--text-statistics", "words", "--statistics", "phash", "--cluster", "cpu", "--workers", "1"]
    command = [*COMMAND, "data", "out", *more, "--part", "0/2"]
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
    end = time.monotonic() + 60
    while len(list((tmp_path / "out").glob("*.parquet"))) < 3:
        assert time.monotonic() < end and job.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.01)
    os.killpg(job.pid, signal.SIGTERM)
    time.sleep(0.1)
    os.killpg(job.pid, signal.SIGTERM)  # as of scancel after a time limit
    assert job.wait(60) == 128 + signal.SIGTERM
    said = (tmp_path / "log").read_text()
    assert "interrupted by SIGTERM: finished shards are kept, the same command goes on from there" in said
    assert "Traceback" not in said
    there = {path.name for path in (tmp_path / "out").glob("*.parquet")}
    # A worker that was ended while it wrote leaves that file's hidden beginning, which the next run takes away.
    left = {path.name for path in (tmp_path / "out").iterdir()} - there
    assert all(name.startswith(".") and name.endswith(".tmp") for name in left) and len(left) <= 2, left
    assert 3 <= len(there) < 60
    for name in there:
        pq.read_table(tmp_path / "out" / name)

    done, again = (subprocess.run(command, cwd=tmp_path, capture_output=True, text=True) for _ in range(2))
    mine = [name for name in (f"{each:05d}" for each in range(120)) if part_of(name, 2) == 0]
    assert done.returncode == again.returncode == 0, done.stderr + again.stderr
    assert (
        f"in {len(mine) - len(there)} files" in done.stdout and f"{len(there)} files finished" in done.stdout
    )
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {*mine}
    assert "nothing to do, 60 files finished before" in again.stdout
    assert "part 0/2: 60 of 120 shards" in again.stdout
    assert "Dask cpu cluster" in done.stderr + done.stdout
    assert "Dask cpu cluster" not in again.stderr + again.stdout  # it is known without


@pytest.mark.parametrize("command", ["embed", "classify", "caption", "detect", "ask"])
def test_the_commands_refuse_before_anything_is_started(command, folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with RunLock(str(out), part=Part(1, 4)):
        for part, match in (
            ("4/4", "0/8 to 7/8"),
            ("1/4", "another run of part 1/4"),
            (None, "part 1/4 of a run"),
        ):
            given = [] if part is None else ["--part", part]
            given += ["--question", "Is it?", "--answer", "Yes", "--answer", "No"] if command == "ask" else []
            done = CliRunner().invoke(app, [command, str(folder), str(out), "--model", "resnet18", *given])
            assert done.exit_code == 2, done.output
            assert match in done.output.replace("\n", " "), done.output


GROUP = "0::/system.slice/slurmstepd.scope/job_7/step_batch/user/task_0\n"
GIB = 2**30
STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_TASKS_PER_NODE": "4(x2),2", "SLURM_NODEID": "1"}


@pytest.mark.parametrize(
    "environment, groups, cores, memory, why",
    [
        ({}, "0::/\n", 64, 500, ""),
        ({"SLURM_CPUS_PER_TASK": "4"}, "", 64, 500, ""),  # no job
        (
            {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "4", "SLURM_CPUS_ON_NODE": "8"},
            "",
            4,
            500,
            "SLURM_CPUS_PER_TASK=4",
        ),
        ({"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "8"}, "", 8, 500, "SLURM_CPUS_ON_NODE=8"),
        ({"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "128"}, "", 64, 500, ""),
        ({"SLURM_JOB_ID": "7", "SLURM_MEM_PER_NODE": "8192"}, "", 64, 8, "SLURM_MEM_PER_NODE=8192"),
        ({"SLURM_JOB_ID": "7", "SLURM_MEM_PER_NODE": "0"}, "", 64, 500, ""),  # all of it
        (
            {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "4", "SLURM_MEM_PER_CPU": "2048"},
            "",
            *(4, 8, "SLURM_CPUS_PER_TASK=4, SLURM_MEM_PER_CPU=2048"),
        ),
        ({"SLURM_JOB_ID": "7", "SLURM_MEM_PER_GPU": "4096"}, "", 64, 8, "SLURM_MEM_PER_GPU=4096"),
        ({}, GROUP, 64, 16, "the memory of its cgroup"),
        ({}, "9:memory:/slurm/uid_1/job_7\n1:cpu:/\n", 64, 12, "the memory of its cgroup"),
        ({}, "0::/../../elsewhere\nno group\n", 64, 500, ""),
        # Several parts as tasks of one step share what the node gives.
        (
            {**STEP, "SLURM_CPUS_ON_NODE": "32", "SLURM_MEM_PER_NODE": "65536"},
            "",
            *(8, 16, "SLURM_CPUS_ON_NODE=32 for 4 tasks, SLURM_MEM_PER_NODE=65536 for 4 tasks"),
        ),
        (
            {**STEP, "SLURM_NODEID": "2", "SLURM_CPUS_PER_TASK": "4", "SLURM_MEM_PER_CPU": "2048"},
            "",
            *(4, 8, "SLURM_CPUS_PER_TASK=4, SLURM_MEM_PER_CPU=2048"),
        ),
        ({**STEP, "SLURM_NODEID": "2"}, GROUP, 64, 8, "the memory of its cgroup for 2 tasks"),
    ],
)
def test_what_a_job_was_given_of_its_node(tmp_path, environment, groups, cores, memory, why):
    files = {
        "system.slice/slurmstepd.scope/job_7/memory.max": f"{16 * GIB}\n",
        "system.slice/slurmstepd.scope/job_7/step_batch/user/task_0/memory.max": "max\n",
        "memory/slurm/memory.limit_in_bytes": "9223372036854771712\n",
        "memory/slurm/uid_1/job_7/memory.limit_in_bytes": f"{12 * GIB}\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = find_limits(64, 500 * GIB, environment, groups, tmp_path, gpus=2)
    assert (found.cores, found.memory, found.why) == (cores, memory * GIB, why)
