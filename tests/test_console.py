"""The library logs; the command line and notebooks show it as plain lines."""

from __future__ import annotations

import builtins
import logging
import os
import subprocess
import sys
from pathlib import Path

import dask
import pytest
from colour_stages import stages_of
from colours import ColourReader, write_dataset

from curator_dask import get_client
from curator_dask.console import show_in_notebook, show_messages
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError
from curator_dask.pipeline import Pipeline

TESTS = str(Path(__file__).parent)


@pytest.fixture
def logger():
    """The library's, as if nobody had configured it."""
    logger = logging.getLogger("curator_dask")
    handlers, level = logger.handlers[:], logger.level
    logger.handlers[:] = []
    logger.setLevel(logging.NOTSET)
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_plain_lines_on_their_streams(logger, capsys):
    show_messages()
    show_messages()
    assert len(logger.handlers) == 1
    logger.debug("no")
    logger.info("found %d", 3)
    logging.getLogger("curator_dask.webdataset.index").warning("100 %s stale", "%")
    logger.error("gone")
    assert capsys.readouterr() == ("found 3\n", "warning: 100 % stale\nerror: gone\n")


def test_what_the_user_configured_stays(logger, capsys):
    logger.setLevel(logging.ERROR)
    show_messages()
    logger.warning("no")
    assert logger.level == logging.ERROR
    logger.handlers[:] = [own := logging.NullHandler()]
    show_messages()
    assert logger.handlers == [own]
    logger.error("no")
    assert capsys.readouterr() == ("", "")


def test_who_stops_reading_sees_no_traceback():
    """As ``curator-dask info OUTPUT | head`` does: the rest is done, the exit code is that of the work."""
    code = (
        "import logging, sys; from curator_dask.console import show_messages; show_messages()\n"
        "sys.stdin.read()\n"
        "for n in range(9): logging.getLogger('curator_dask').info('line %d', n)\n"
        "print('done', file=sys.stderr)"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, text=True
    ) as ran:
        ran.stdout.close()
        ran.stdin.close()
        assert (ran.stderr.read(), ran.wait(30)) == ("done\n", 0)


def test_a_message_that_cannot_be_made_does_no_harm(logger, capsys, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)
    show_messages()
    logger.info("%d", "no number")
    logger.info("on")
    assert capsys.readouterr() == ("on\n", "")


@pytest.mark.parametrize("first", ["get_client", "from_webdataset", "save_metadata"])
def test_a_notebook_shows_messages_from_the_first_use_on(logger, tmp_path, monkeypatch, first):
    write_dataset(tmp_path, shards=1)
    dataset = ImageTextPairDataset.from_webdataset(tmp_path)
    show_in_notebook()
    assert logger.handlers == []
    monkeypatch.setattr(builtins, "get_ipython", lambda: None, raising=False)
    if first == "get_client":
        with pytest.raises(ConfigError):
            get_client("tpu")
    elif first == "from_webdataset":
        ImageTextPairDataset.from_webdataset(tmp_path)
    else:
        dataset.save_metadata(tmp_path / "out")
    assert len(logger.handlers) == 1


SCRIPT = """
import sys
from curator_dask import get_client
from curator_dask.datasets import ImageTextPairDataset
from colours import ColourReader

if __name__ == "__main__":
    with get_client("cpu", n_workers=1):
        dataset = ImageTextPairDataset.from_webdataset(sys.argv[1])
        summary = ColourReader()(dataset).save_metadata(sys.argv[2])
    print("rows", summary.rows)
"""


@pytest.mark.slow
def test_a_script_shows_nothing_of_its_own_accord(tmp_path):
    write_dataset(tmp_path / "data", bad={"000000001": b""})
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script, tmp_path / "data", tmp_path / "out"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([TESTS, *filter(None, sys.path)])},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "rows 30\n", "")


def test_what_is_said_from_first_to_last(said, tmp_path):
    write_dataset(tmp_path / "data", bad={"000000001": b""})
    with get_client("cpu", n_workers=1):
        dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")
        summary = ColourReader()(dataset).save_metadata(tmp_path / "out")
    cluster, found, loading, made, last = said.messages
    assert cluster.startswith("Dask cpu cluster: 1 worker, 1 task and ")
    assert found.startswith("found 3 shards below ")
    assert loading.startswith("loading ColourReader") and loading.endswith(" on 1 worker")
    assert made.startswith("image_embedding: 3 values, model output of ColourReader()")
    assert last == str(summary)


@pytest.mark.slow
def test_verbose_stages_speak_in_their_workers_log(tmp_path, capfd):
    write_dataset(tmp_path)
    # A forked worker's output is that of the process it was forked from.
    spawned = dask.config.set({"distributed.worker.multiprocessing-method": "spawn"})
    with spawned, get_client("cpu", n_workers=1, verbose=False):
        capfd.readouterr()
        Pipeline("loud", stages=stages_of(tmp_path, None, verbose=True)).run()
    out, err = capfd.readouterr()
    assert out.count(" batch 0: ") == 3
    assert "found" not in out
    assert [
        line for line in err.splitlines() if "elapsed" not in line
    ] == []  # on a slow machine progress is shown
