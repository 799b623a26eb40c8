"""Commands start workers where something is left to do, and only there."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from colours import write_dataset
from typer.testing import CliRunner

from curator_dask.cli import app
from curator_dask.cluster import client
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.image.embedders import TimmImageEmbedder

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture
def started(monkeypatch):
    """One for each start of workers; the work is done in this process."""
    starts = []

    def start(*arguments):
        starts.append(arguments)
        return nullcontext()

    for module in ("options", "score", "dedup", "export", "filter"):
        monkeypatch.setattr(sys.modules[f"curator_dask.cli.{module}"], "workers_of", start)
    monkeypatch.setattr(client, "load_ahead", lambda *arguments: None)
    return starts


@pytest.fixture
def out(tmp_path, monkeypatch):
    """An output, with one row that has failed."""
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "data", shards=2, samples=4, bad={"000010001": b""})
    embedder = TimmImageEmbedder("test_vit", pretrained=False)
    embedder(ImageTextPairDataset.from_webdataset("data")).save_metadata("out")
    torch.save({"weight": torch.ones(1, 64), "bias": torch.zeros(1)}, "head.pth")
    return tmp_path / "out"


def run(*arguments):
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.output


def written_again(folder):
    """One of its files, with one row less."""
    path = Path(folder, "00001.parquet")
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)


@pytest.mark.parametrize(
    ("command", "made"),
    [
        ("score out scored --head ones=head.pth", "scored"),
        ("score out --head ones=head.pth", "out"),
        ("filter out passing --where width>1 --overwrite", "passing"),
        ("dedup out duplicates --normalize", "duplicates.work"),
        ("export out tars --where width>1 --overwrite", "tars"),
        ("export data tars --samples-per-shard 3 --overwrite", "tars"),
    ],
)
def test_workers_are_started_where_something_is_left(out, tmp_path, started, command, made):
    run(*command.split())
    assert len(started) == 1
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / made).rglob("*") if path.is_file()}
    assert before
    run(*command.split())
    assert len(started) == 1
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / made).rglob("*") if path.is_file()}
    assert after == before
    written_again(command.split()[1])
    run(*command.split())
    assert len(started) == 2


def test_a_retry_starts_workers_for_rows_that_failed(out, started):
    assert "1 failed row tried again, 0 have a vector now" in run("retry", "out")
    assert len(started) == 1
    (out / "00001.parquet").unlink()
    assert "nothing to do, no row had failed" in run("retry", "out")
    assert len(started) == 1
