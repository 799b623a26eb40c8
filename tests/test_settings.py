"""The environment variables: what they take, and when a bad one is an error."""

from __future__ import annotations

import subprocess
import sys

import forked
import fsspec
import pytest
from colours import ColourReader, write_dataset

from curator_dask import get_client
from curator_dask.checks.preflight import preflight
from curator_dask.cluster.presence import Presence
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError
from curator_dask.settings import PATIENCE, STAGE_BYTES, STALL_SECONDS, VARIABLES, absolute, home
from curator_dask.storage import read_bytes
from curator_dask.webdataset.staging import STAGE, Stage

ANY = pytest.mark.parametrize("variable", VARIABLES, ids=lambda variable: variable.name)


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        (STAGE_BYTES, None, 16_000_000_000),
        (STAGE_BYTES, "", 16_000_000_000),
        (STAGE_BYTES, "16GB", 16_000_000_000),
        (STAGE_BYTES, "1.5 MiB", 3 << 19),
        (STAGE_BYTES, "16e9", 16_000_000_000),
        (STAGE_BYTES, "0", 0),
        (STALL_SECONDS, None, 60),
        (STALL_SECONDS, "3.0", 3),
        (STALL_SECONDS, "0.25", 0.25),
        (STALL_SECONDS, "250ms", 0.25),
        (PATIENCE, None, 600),
        (PATIENCE, "1min", 60),
        (PATIENCE, "1.5 mins", 90),
        (PATIENCE, "10 sec", 10),
        (PATIENCE, "2m", 120),
        (PATIENCE, "2 hours", 7200),
        (PATIENCE, " 600 ", 600),
        (PATIENCE, "0", 0),
    ],
)
def test_values(monkeypatch, variable, text, value):
    if text is None:
        monkeypatch.delenv(variable.name, raising=False)
    else:
        monkeypatch.setenv(variable.name, text)
    assert variable.value() == value


@ANY
@pytest.mark.parametrize("text", ["many", "-1", "1 parsec", "GB", "s", "0x10", "inf", "nan", "1e999", "1,5"])
def test_bad_values(monkeypatch, variable, text):
    monkeypatch.setenv(variable.name, text)
    with pytest.raises(ConfigError) as caught:
        variable.value()
    said = str(caught.value)
    assert said.startswith(f"{variable.name}={text!r}: expected a ")
    assert variable.unit in said and variable.meaning in said and variable.default in said
    assert "such as " in said


@ANY
def test_a_unit_of_another_kind(monkeypatch, variable):
    monkeypatch.setenv(variable.name, "1min" if variable.unit == "bytes" else "16GB")
    with pytest.raises(ConfigError, match=f"expected a .*number of {variable.unit}"):
        variable.value()


def test_a_store_cannot_be_waited_for_no_time(monkeypatch):
    monkeypatch.setenv(STALL_SECONDS.name, "0")
    with pytest.raises(ConfigError, match="expected a positive number of seconds"):
        STALL_SECONDS.value()


def test_bad_values_do_not_keep_the_package_from_being_imported(tmp_path):
    bad = {variable.name: "bad" for variable in VARIABLES}
    done = forked.start(forked.import_all, "curator_dask", log=tmp_path / "log", env=bad)
    done.join(100)
    assert done.exitcode == 0, (tmp_path / "log").read_text()


def test_settings_load_nothing():
    code = "import sys, curator_dask.settings; assert not {'dask', 'fsspec'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def remote(tmp_path):
    """A small dataset in a store."""
    write_dataset(tmp_path, shards=2, samples=3)
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path), "/settings/data", recursive=True)
    yield "memory://settings/data"
    store.rm("/settings", recursive=True)


@ANY
def test_a_bad_value_is_said_before_work_begins(monkeypatch, tmp_path, variable):
    write_dataset(tmp_path, shards=1, samples=1)
    monkeypatch.setenv(variable.name, "lots")
    for begin in (ImageTextPairDataset.from_webdataset, preflight, lambda _: get_client("cpu")):
        with pytest.raises(ConfigError, match=f"{variable.name}='lots'"):
            begin(tmp_path)


@pytest.mark.usefixtures("in_this_process")
def test_a_bad_value_on_a_worker_ends_the_run(monkeypatch, remote, tmp_path):
    dataset = ColourReader()(ImageTextPairDataset.from_webdataset(remote))
    monkeypatch.setenv(STAGE_BYTES.name, "lots")
    with pytest.raises(ConfigError, match=f"{STAGE_BYTES.name}='lots'"):
        dataset.save_metadata(tmp_path / "out")
    assert len(STAGE) == 0
    monkeypatch.setenv(STAGE_BYTES.name, "100")
    assert dataset.save_metadata(tmp_path / "out").rows == 6


def test_values_are_read_when_they_are_used(monkeypatch, remote):
    tar = f"{remote}/00000.tar"
    size = len(read_bytes(tar))
    stage = Stage()
    for limit, copies in ((size - 1, 0), (size, 1)):
        monkeypatch.setenv(STAGE_BYTES.name, str(limit))
        assert stage.has_room(tar) == bool(copies)
        with stage.lease(tar) as path:
            assert path.stat().st_size == size
        assert len(stage) == copies
    monkeypatch.setenv(STAGE_BYTES.name, "some")
    with pytest.raises(ConfigError), stage.lease(tar):
        pass
    stage.clear()
    assert len(stage) == 0
    for text, seconds in (("5s", 5), ("1min", 60)):
        monkeypatch.setenv(PATIENCE.name, text)
        assert Presence(None).patience == seconds


def test_a_home_that_nobody_has(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert absolute("~/weights") == tmp_path / "weights"
    monkeypatch.setenv("CURATOR_DASK_HOME", "~nobody.here/x")
    with pytest.raises(ConfigError, match=r"~nobody\.here/x: ~nobody\.here is the home of nobody"):
        home()
