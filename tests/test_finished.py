"""A command that has nothing left to do knows it without a cluster; what has changed is never passed over."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import timm
from colours import write_dataset
from safetensors.torch import save_file
from typer.testing import CliRunner

from curator_dask import backend
from curator_dask.cli import app
from curator_dask.errors import OutputError
from curator_dask.models import sources
from curator_dask.outputs.finished import FinishedCommand
from curator_dask.outputs.lock import RunLock
from curator_dask.runs.summary import SaveSummary
from curator_dask.webdataset.shards import discover

ARGUMENTS = ["embed", "data", "out", "--model", "local-dir:model", "--cluster", "cpu"]
HEAVY = ("torch", "timm", "transformers", "nvidia", "dask", "distributed", "pandas")


class Started(Exception):
    """Workers would be started."""


def write_model(folder, seed=0):
    import torch

    folder.mkdir(exist_ok=True)
    torch.manual_seed(seed)
    model = timm.create_model("test_vit", num_classes=0)
    save_file(model.state_dict(), folder / "model.safetensors")
    said = {"architecture": "test_vit", "num_classes": 0, "pretrained_cfg": {"input_size": [3, 64, 64]}}
    (folder / "config.json").write_text(json.dumps(said))


def embed(*more):
    done = CliRunner().invoke(app, [*ARGUMENTS, *map(str, more)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with shards, a model, and an output, of which a note says that it is finished."""
    folder = tmp_path_factory.mktemp("unchanged")
    write_dataset(folder / "data", shards=2, samples=3, bad={"000000001": b""})
    write_model(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("CURATOR_DASK_HOME", str(folder / "home"))
        done = embed("--workers", "1")
        assert done.exit_code == 0, done.output
        assert "6 rows in 2 files; 1 failed image" in done.output
        # The model was written so shortly before that it could have changed once more: no note was left of it.
        time.sleep(2)
        done = embed("--workers", "1", "--json", "by-a-run.json")
        assert "nothing to do" in done.output
    return folder


@pytest.fixture
def here(made, monkeypatch):
    """The same, where the start of workers ends the command."""

    def start(*arguments):
        raise Started

    monkeypatch.chdir(made)
    monkeypatch.setenv("CURATOR_DASK_HOME", str(made / "home"))
    monkeypatch.setattr(sys.modules["curator_dask.cli.over_images"], "workers_of", start)
    return made


def test_what_is_finished_is_told_as_a_run_tells_it(here):
    done = embed("--json", "note.json", "--min-good", "0.9")
    assert done.exit_code == 1  # of 6 images 5 have a vector
    assert "nothing to do, 2 files finished before" in done.output
    assert "in these 6 rows, 1 failed: 1 " in done.output
    ran, known = (json.loads((here / name).read_text()) for name in ("by-a-run.json", "note.json"))
    assert ran["failed_before"] == known["failed_before"] == 1
    for told in (ran, known):
        assert told.pop("seconds") >= told.pop("startup_seconds")
    assert ran == known
    assert not list((here / "out").glob(".*"))


def test_an_output_that_was_removed_is_made_again(here):
    (here / "out").rename(here / "away")
    with pytest.raises(Started):
        embed()
    assert not (here / "out").exists()
    (here / "away").rename(here / "out")
    assert embed("--min-good", "0.5").exit_code == 0


def test_nothing_heavy_is_loaded(here):
    script = f"import sys; from curator_dask.cli import app; app({ARGUMENTS!r}, standalone_mode=False)"
    script += f"; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert "nothing to do" in done.stdout


def test_another_argument_starts_workers(here):
    for more in (["--no-normalize"], ["--max-pixels", "1000"], ["--overwrite"]):
        with pytest.raises(Started):
            embed(*more)
    assert embed("--workers", "2", "--min-good", "0.5").exit_code == 0


@pytest.fixture
def known(here, tmp_path, monkeypatch):
    """Looks whether a run on a model of the test's own is finished; a note says so, and what is changed is put back."""
    shutil.copytree(here / "model", tmp_path / "model")
    for name in ("data", "out"):
        shutil.copytree(here / name, tmp_path / name)
    monkeypatch.setenv("CURATOR_DASK_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sources, "_CLOCKS", 0)

    def look(asked="embed"):
        model = sources.Sources.of(f"local-dir:{tmp_path / 'model'}", None, None, True)
        where = (discover(here / "data"), "parquet", str(here / "out"), "image_embedding")
        return FinishedCommand({"asked": asked}, *where, model, "cpu")

    look().remember(
        SaveSummary("", fingerprint=json.loads((here / "by-a-run.json").read_text())["fingerprint"]), None
    )
    assert look().summary() is not None
    yield look
    for name in ("data", "out"):
        for path in (here / name).iterdir():
            path.unlink()
        shutil.copytree(tmp_path / name, here / name, dirs_exist_ok=True)


def rewritten(path):
    """With the same bytes and times, as a copy that keeps times: only the file's own change tells it."""
    seen = path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))


def of_another_run(path):
    table = pq.read_table(path)
    said = json.loads(table.schema.metadata[b"curator_dask"])
    stored = {b"curator_dask": json.dumps({**said, "fingerprint": "0" * 64}).encode()}
    pq.write_table(table.replace_schema_metadata(stored), path)


CHANGES = {
    "weights": lambda data, out, model: write_model(model, seed=1),
    "weights of the same size and time": lambda data, out, model: rewritten(model / "model.safetensors"),
    "another file of the model": lambda data, out, model: (model / "more.safetensors").touch(),
    "no model": lambda data, out, model: shutil.rmtree(model),
    "a tar": lambda data, out, model: os.utime(data / "00000.tar"),
    "rows": lambda data, out, model: os.utime(data / "00001.parquet"),
    "no rows": lambda data, out, model: (data / "00001.parquet").unlink(),
    "a shard more": lambda data, out, model: shutil.copy(data / "00000.tar", data / "2.tar"),
    "a shard less": lambda data, out, model: [path.unlink() for path in data.glob("00001.*")],
    "an output less": lambda data, out, model: (out / "00000.parquet").unlink(),
    "an output more": lambda data, out, model: shutil.copy(out / "00000.parquet", out / "a.parquet"),
    "another's output": lambda data, out, model: of_another_run(out / "00001.parquet"),
    "an output's rows": lambda data, out, model: pq.write_table(
        pq.read_table(out / "00001.parquet").slice(1), out / "00001.parquet"
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_is_not_passed_over(known, here, tmp_path, change):
    CHANGES[change](here / "data", here / "out", tmp_path / "model")
    assert known().summary() is None


def test_another_machine_and_other_packages_are_not_taken_for_the_same(known, tmp_path, monkeypatch):
    assert known("something else").summary() is None
    with monkeypatch.context() as patch:
        (tmp_path / "site" / "timm-0.0.1.dist-info").mkdir(parents=True)
        patch.syspath_prepend(tmp_path / "site")
        assert known().summary() is None
    # setuptools 84.2.1 adds a folder when it is imported, as by a torch that compiles.
    with monkeypatch.context() as patch:
        vendored = Path(sysconfig.get_path("purelib"), "setuptools", "_vendor")
        assert list(vendored.glob("*.dist-info"))
        patch.syspath_prepend(vendored)
        assert known().summary() is not None
    for name in ("HF_HOME", "CURATOR_DASK_DEVICE"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "another")
            assert known().summary() is None
    here = backend.hardware("cpu")
    for other in (here.replace("model name", "model name\t: other"), None):
        monkeypatch.setattr(backend, "hardware", lambda device, other=other: other)
        assert known().summary() is None
    monkeypatch.setattr(backend, "hardware", lambda device: here)
    assert known().summary() is not None


def test_no_note_is_left_of_what_is_not_known(known, tmp_path, monkeypatch):
    """Of a run that was not whole, and of a model that may have changed since it was loaded."""
    note = next((tmp_path / "home" / "finished").iterdir())
    note.unlink()
    before = known()
    before.remember(SaveSummary("", fingerprint="f", damaged_shards={"a.tar": "cut"}), None)
    before.remember(SaveSummary(""), None)
    rewritten(tmp_path / "model" / "config.json")
    before.remember(SaveSummary("", fingerprint="f"), None)
    monkeypatch.setattr(sources, "_CLOCKS", 2_000_000_000)
    known().remember(SaveSummary("", fingerprint="f"), None)
    assert not note.exists()


def test_another_run_keeps_a_finished_one_out(known, here):
    with RunLock(str(here / "out")), pytest.raises(OutputError, match="another run is writing there"):
        known().summary()
