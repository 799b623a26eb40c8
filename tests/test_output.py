"""The place that a run writes to: full, read-only, or another run's; and columns that other runs have put there."""

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
from colours import (
    ColourReader,
    SlowColourReader,
    check_colours,
    members_of,
    read_output,
    write_dataset,
    write_tar,
)

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, OutputError
from curator_dask.frames.committing import host_name, machine_name
from curator_dask.frames.parquet import read_record
from curator_dask.image.statistics import ImageStatistics
from curator_dask.models.encoders import Encoder
from curator_dask.outputs.lock import LOCK_NAME, STALE_SECONDS, RunLock
from curator_dask.runs.step import ColumnStep

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
    assert not out.exists()
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
        "host": host or host_name(),
        "machine": host or machine_name(),
        "pid": pid,
        "process_started": psutil.Process(pid).create_time() if psutil.pid_exists(pid) else 0,
        "since": time.time() - 60,
        "seen": time.time() if seen is None else seen,
    }


def without_machine(note):
    del note["machine"]
    return note


DEAD = 2**22 + 1  # above what Linux gives to a process


@pytest.mark.parametrize(
    "note, is_alive",
    [
        (lambda: note_of(os.getppid()), True),
        (lambda: note_of(DEAD), False),
        (lambda: {**note_of(os.getppid()), "process_started": 1.0}, False),  # its number was used again
        (lambda: note_of(DEAD, host="elsewhere"), True),
        (lambda: note_of(DEAD, host="elsewhere", seen=time.time() - STALE_SECONDS - 1), False),
        # Machines of one name, and notes of earlier versions, which say the name alone.
        (lambda: {**note_of(DEAD), "machine": f"{host_name()}.0123abcd"}, True),
        (lambda: {**note_of(os.getppid()), "machine": f"{host_name()}.0123abcd", "seen": 1.0}, False),
        (lambda: without_machine(note_of(os.getppid(), seen=1.0)), True),
        (lambda: without_machine(note_of(DEAD)), True),
        (lambda: without_machine(note_of(DEAD, seen=1.0)), False),
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


def test_two_runs_that_begin_at_the_same_moment(tmp_path, monkeypatch):
    """Both have found no note before either wrote its own."""
    monkeypatch.setattr(RunLock, "check", lambda lock: None)
    with RunLock(str(tmp_path)):
        with pytest.raises(OutputError, match="another run is writing there"), RunLock(str(tmp_path)):
            pass
        assert (tmp_path / LOCK_NAME).exists()
    with RunLock(str(tmp_path)):
        pass
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_has_left_of_its_note_is_swept(tmp_path):
    """Only what is old, and is called as notes are."""
    old = time.time() - 300
    names = {
        ".curator_dask-run.json.0123abcd.tmp": True,
        ".curator_dask-run.json.mine.tmp": False,
        "a.tmp": False,
    }
    for name in (*names, ".curator_dask-run.json.ffffffff.tmp"):
        (tmp_path / name).write_text("{")
        if name in names:
            os.utime(tmp_path / name, (old, old))
    with RunLock(str(tmp_path)):
        pass
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {name for name, goes in names.items() if not goes} | {
        ".curator_dask-run.json.ffffffff.tmp"
    }


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
    assert len(list(out.with_suffix(".errors").iterdir())) == 1
    save(tmp_path / "data", out, drop_failed=True, overwrite=True)
    assert [path.name for path in out.with_suffix(".errors").iterdir()] == ["00000.parquet"]
    save(tmp_path / "data", out)
    assert list(out.with_suffix(".errors").iterdir()) == []


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


# Columns that other runs have made

BAD = "000000002"


class Models:
    """Two models whose columns are ``a`` and ``b``, in turn into one output; counts what each is given."""

    def __init__(self, folder, out, monkeypatch):
        self.folder, self.out = folder, out
        self.images = []
        forward = Encoder.__call__
        monkeypatch.setattr(
            Encoder, "__call__", lambda *args: (self.images.append(len(args[1])), forward(*args))[1]
        )

    def dataset(self, columns, **settings):
        dataset = ImageTextPairDataset.from_webdataset(self.folder)
        for column in columns:
            dataset = ColourReader(image_embedding_column=column, **settings)(dataset)
        return dataset

    def save(self, makes, change=lambda dataset: dataset, settings=None, **saving):
        """Files written and skipped, and images embedded; the summary."""
        self.images.clear()
        summary = change(self.dataset(makes, **(settings or {}))).save_metadata(self.out, **saving)
        return (summary.written, summary.skipped, sum(self.images)), summary

    def read(self):
        return read_output(self.out or self.folder)

    def check(self, bad=(BAD,)):
        table = self.read()
        for column in "ab":
            check_colours(table["key"].to_pylist(), table[column].to_pylist(), bad)
        return table


@pytest.fixture
def models(tmp_path, monkeypatch, in_this_process):
    write_dataset(tmp_path / "data", 2, 5, bad={BAD: b"no image"})
    return Models(tmp_path / "data", tmp_path / "out", monkeypatch)


@pytest.fixture(params=["elsewhere", "in place"])
def either(models, request):
    models.out = models.out if request.param == "elsewhere" else None
    return models


def test_two_models_in_turn_keep_each_others_columns(either):
    """The second adds its column, and each finds its own finished, whatever the other has left of its own."""
    assert either.save("a")[0] == (2, 0, 9)
    before = either.read()
    small = {"max_pixels": 24 * 20}
    done, summary = either.save("b", settings=small)
    assert (done, summary.failed) == ((2, 0, 0), 10), "one too large, or no image, each"
    table = either.read()
    assert all(table[name].equals(before[name]) for name in ("key", "__url__", "a"))
    assert {text and text.partition(":")[0] for text in table["image_error"].to_pylist()} == {
        "[b] too large",
        "not an image (starts with 'no image')",
    }
    for columns, settings in (("a", {}), ("b", small), ("a", {}), ("b", small)):
        done, summary = either.save(columns, settings=settings)
        assert done == (0, 2, 0)
        assert summary.failed_before == (1 if columns == "a" else 10), "of its own column"
    # With other options only their column is made anew.
    assert either.save("b")[0] == (2, 0, 9)
    assert either.save("a")[0] == either.save("b")[0] == (0, 2, 0)
    assert either.check()["a"].equals(before["a"])
    # Both in one pass, and one alone again: nothing is embedded.
    assert either.save("ab")[0] == either.save("a")[0] == either.save("b")[0] == (2, 0, 0)
    either.check()


def test_one_pass_after_one_model_embeds_with_the_other(models):
    models.save("a")
    before = models.read()
    assert models.save("ab")[0] == (2, 0, 9)
    assert models.check()["a"].equals(before["a"])


def test_vectors_of_a_shard_that_changed_do_not_stay_beside_new_rows(either):
    """The other model's are gone, with a reason, and both it and a retry make them."""
    either.save("a")
    either.save("b")
    url = str(either.folder / "00001.tar")
    keys = [f"00001{number:04d}" for number in range(5)]
    write_tar(either.folder / "00001.tar", [member for key in keys for member in members_of(key, b"now bad")])
    done, summary = either.save("b")
    assert done == (1, 1, 0) and summary.not_made == {url: {"count": 1, "examples": ["a"]}}
    table = either.read()
    reason = dict(zip(table["key"].to_pylist(), table["image_error"].to_pylist(), strict=True))
    assert all(reason[key].startswith("[a] not made: ") for key in keys)
    assert all("retry --column a); [b] not an image" in reason[key] for key in keys)
    assert either.save("b")[0] == (0, 2, 0)

    write_tar(either.folder / "00001.tar", [member for key in keys for member in members_of(key)])
    either.save("b")
    retried = ColourReader(image_embedding_column="a").retry(either.out or either.folder)
    assert (retried.rows, retried.failed, retried.not_made) == (6, 1, {})
    either.check()
    done, summary = either.save("b", settings={"max_pixels": 10**6})
    assert done == (2, 0, 9) and summary.not_made == {}, "what a retry made is not kept"
    either.check()
    assert either.save("a")[0] == (1, 1, 0), "what a retry made is not taken over"
    either.check()


def test_a_tar_that_cannot_be_looked_at_has_not_changed(models):
    models.save("a")
    before, rows = models.read(), models.dataset("")
    (models.folder / "00001.tar").rename(models.folder / "away")
    assert rows.save_metadata(models.out).written == 2, "rows alone need no tar"
    assert models.read()["a"].equals(before["a"])
    (models.folder / "away").rename(models.folder / "00001.tar")
    assert models.save("a")[0] == (0, 2, 0)
    models.save("b")
    assert models.check()["a"].equals(before["a"])


def test_columns_of_another_dataset_do_not_come_back(models, tmp_path):
    models.save("a")
    models.folder = tmp_path / "other"
    write_dataset(models.folder, 2, 3)
    pq.write_table(
        pq.read_table(models.folder / "00001.parquet").slice(0, 0), models.folder / "00001.parquet"
    )
    with pytest.raises(OutputError, match=r"00000\.parquet: was made of .*data/00000\.tar"):
        models.save("b")
    models.save("b", overwrite=True)
    assert "a" not in models.read().column_names
    # A shard without rows is one like others.
    models.save("a")
    assert models.save("a")[0] == models.save("b")[0] == (0, 2, 0)
    assert len(models.check(bad=())) == 3


def test_columns_find_their_rows_by_key(models):
    models.save("a")
    for path in models.folder.glob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.take(list(range(len(table)))[::-1]), path)
    models.save("b")
    models.check()


def test_a_model_that_stopped_half_way_is_finished_beside_the_other(models):
    models.save("a")
    (models.out / "00001.parquet").unlink()
    models.save("b")
    assert models.read()["a"].null_count == 6, "all files have one schema"
    assert models.save("a")[0] == (1, 1, 5)
    assert models.save("a")[0] == models.save("b")[0] == (0, 2, 0)
    assert set(models.check()["image_error"].to_pylist()) == {None, "not an image (starts with 'no image')"}


def without_the_first(dataset):
    return dataset.with_metadata(dataset.metadata[dataset.metadata["key"] > "000000000"])


def test_rows_of_the_other_model_are_not_lost(models):
    models.save("a")
    with pytest.raises(OutputError, match=r"has 1 row with values of \['a'\].*overwrite=True"):
        models.save("b", without_the_first)
    assert models.save("b", without_the_first, overwrite=True)[0] == (2, 0, 9)
    assert len(models.check()) == 9
    assert models.save("a")[0] == (1, 1, 4), "its row is lacking there"


def test_rows_that_the_other_model_was_not_given(models):
    models.save("a", without_the_first)
    models.save("b")
    assert models.read()["a"].null_count == 2
    assert models.save("a")[0] == (2, 0, 4)
    models.check()


def test_another_model_under_the_same_name(models):
    models.save("a")
    models.save("b")
    other = {"normalize_embeddings": True}
    with pytest.raises(OutputError, match=r"'b' was made with.*image_embedding_column.*overwrite=True"):
        models.save("b", settings=other)
    assert models.save("b", settings=other, overwrite=True)[0] == (2, 0, 9)
    assert models.save("a")[0] == models.save("b", settings=other)[0] == (0, 2, 0)


def test_dropped_rows_of_two_models(models):
    """What has no vector of one of them lies aside with both columns, and is known there."""
    models.save("a", drop_failed=True)
    small = {"max_pixels": 28 * 20 - 1}  # keys have nine characters, and images their width of it
    models.save("b", settings=small, drop_failed=True)
    assert len(models.read()) == 0
    done, summary = models.save("a", drop_failed=True)
    assert done == (2, 0, 0) and (summary.failed, summary.dropped) == (1, 10)
    assert models.save("b", settings=small, drop_failed=True)[0] == (0, 2, 0)
    assert models.save("b")[0] == (2, 0, 9)
    assert len(models.check()) == 10


class RednessOf(ColumnStep):
    needs = frozenset({"vectors"})
    columns = {"redness": pa.float32()}  # noqa: RUF012

    def __init__(self, column, times=1):
        self.column, self.times = column, times

    def compute(self, rows):
        return {
            "redness": [
                None if each is None else each[0] * self.times
                for each in rows.column(self.column).to_pylist()
            ]
        }


def test_what_was_made_of_the_other_models_vectors_stays(models):
    models.save("a", lambda dataset: dataset.apply(RednessOf("a")))
    before = models.read()
    few = ["key", "__url__", "b", "image_error"]
    models.save("b", columns=few)
    table = models.check()
    assert table.column_names[-4:] == ["a", "b", "image_error", "redness"]
    assert all(table[name].equals(before[name]) for name in before.column_names)
    assert models.save("a", lambda dataset: dataset.apply(RednessOf("a")))[0] == (0, 2, 0)
    with pytest.raises(OutputError, match="after the embedding redness was made"):
        ColourReader(image_embedding_column="a").retry(models.out)
    with pytest.raises(OutputError, match=r"has columns \['redness'\] that another run has made, with other"):
        models.save("c", lambda dataset: dataset.apply(RednessOf("c", 2)))
    with pytest.raises(
        OutputError, match=r"has columns \['redness'\].*vectors that they may be of are made anew"
    ):
        models.save("a", settings={"max_pixels": 10**6})
    write_tar(models.folder / "00001.tar", members_of("000010000"))
    with pytest.raises(OutputError, match=r"00001.*\['caption', 'width', 'redness'\].*shard has changed"):
        models.save("b", columns=few)


def test_statistics_and_models_in_turn(models):
    models.save("", ImageStatistics(["format", "brightness"]))
    before = models.read()
    for makes in "ab":
        models.save(makes)
    table = models.check()
    assert all(table[name].equals(before[name]) for name in ("format", "brightness"))
    assert models.save("", ImageStatistics(["format", "brightness"]))[0] == (0, 2, 0)
    assert models.save("a")[0] == models.save("b")[0] == (0, 2, 0)
    # Too large for the statistics alone: their reason stays when a model's column is made anew.
    models.save("", ImageStatistics(["brightness"], prefix="of_", max_pixels=24 * 20))
    models.save("b", settings={"max_pixels": 10**6})
    table = models.check()
    assert table["of_brightness"].null_count == 10
    reasons = [text for text in table["image_error"].to_pylist() if not text.startswith("not an image")]
    assert len(reasons) == 9 and all(text.startswith("[image statistics] too large") for text in reasons)


def with_a_function(dataset):
    return dataset.with_metadata(dataset.metadata.map_partitions(lambda frame: frame))


def shuffled(dataset):
    return dataset.with_metadata(dataset.metadata.shuffle("key", npartitions=2))


@pytest.mark.parametrize("change", [with_a_function, shuffled])
def test_rows_whose_keys_may_be_others_get_no_columns(models, change):
    models.save("a", change)
    with pytest.raises(
        OutputError, match=r"has embeddings \['a'\] that this run would not write: .*no function"
    ):
        models.save("b", change)


def test_values_that_another_run_has_changed_are_not_finished_work(models):
    """A file counts as a model's for as long as it says what that model's run would write."""
    wider = [
        lambda dataset, by=by: dataset.with_metadata(dataset.metadata.assign(width=by)) for by in (1.5, 2.5)
    ]
    models.save("a", wider[0])
    models.save("b", wider[1])
    assert set(models.read()["width"].to_pylist()) == {2.5}
    assert models.save("a", wider[0])[0] == (2, 0, 0)
    # NaN is no change.
    models.save("a", lambda dataset: dataset.with_metadata(dataset.metadata.assign(width=float("nan"))))
    models.save("b", lambda dataset: dataset.with_metadata(dataset.metadata.assign(width=float("nan"))))
    record = read_record(str(models.out / "00000.parquet"))
    assert record.run_of("a")["fingerprint"] not in ("", record.fingerprint)
