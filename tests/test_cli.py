"""The command line, as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from colours import write_dataset

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "data"
    write_dataset(folder, shards=2, samples=6, bad={"000000001": b""})
    return folder


def run(*arguments, cwd=None):
    command = [sys.executable, "-m", "curator_dask.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=cwd)


def test_embed_and_rerun(folder, tmp_path):
    arguments = [
        "embed",
        folder,
        tmp_path / "out",
        "--model",
        "test_vit",
        "--no-pretrained",
        "--cluster",
        "cpu",
    ]
    done = run(*arguments, "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert "found 2 shards" in done.stdout
    assert "image_embedding: 64 values, pooled output of test_vit" in done.stdout
    assert "12 rows in 2 files; 1 failed images" in done.stdout
    assert "1 x empty, for example 00000 000000001: empty" in done.stdout
    assert "Traceback" not in done.stderr
    assert "still alive" not in done.stderr
    schema = pq.read_schema(tmp_path / "out" / "00000.parquet")
    assert str(schema.field("image_embedding").type) == "fixed_size_list<element: float>[64]"

    (folder / "00001.tar").rename(folder / "00001.tar.away")
    try:
        (folder / "00001.tar").write_bytes(b"not a tar")
        again = run(*arguments, "--workers", "1")
    finally:
        (folder / "00001.tar.away").rename(folder / "00001.tar")
    assert again.returncode == 1, again.stderr
    assert "1 files were finished before" in again.stdout
    assert "shard failed: 00001" in again.stdout
    assert "Traceback" not in again.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed"], "Missing argument"),
        (["embed", "nowhere", "out", "--model", "resnet18", "--cluster", "cpu"], "nowhere"),
        (["embed", "{data}", "out", "--model", "resnet18", "--batch-size", "0"], "greater than or equal to"),
        (["embed", "{data}", "out", "--model", "resnet18", "--cluster", "tpu"], "tpu"),
        (["embed", "{data}", "out", "--model", "resnet18", "--scheduler-file", "none.json"], "none.json"),
        (["embed", "{data}", "out", "--model", "resnet18", "--id-col", "uid", "--cluster", "cpu"], "uid"),
    ],
)
def test_wrong_usage(folder, tmp_path, arguments, message):
    done = run(*(argument.format(data=folder) for argument in arguments), cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_model_is_wrong_usage(folder, tmp_path):
    done = run("embed", folder, tmp_path, "--model", "resnet5", "--cluster", "cpu", "--workers", "1")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "resnet50" in done.stderr
    assert "Traceback" not in done.stderr
