"""The commands beside a store: what they take from one, what they do not, and what they say then."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from curator_dask.cli import app
from curator_dask.errors import ConfigError
from curator_dask.settings import absolute

HERE_ALONE = {
    "centroids": ["centroids", "s3://bucket/out", "s3://bucket/here.safetensors", "--number", "2"],
    "fit": ["fit", "s3://bucket/out", "s3://bucket/here.safetensors", "--label", "good"],
    "score": ["score", "s3://bucket/out", "--head", "good=s3://bucket/here.safetensors"],
    "index": ["search", "s3://bucket/out", "--like", "1", "--index", "s3://bucket/here"],
    "sheet": ["search", "s3://bucket/out", "--like", "1", "--sheet", "s3://bucket/here.png"],
    "image": ["search", "s3://bucket/out", "--image", "s3://bucket/here.jpg"],
    "report": ["report", "s3://bucket/out", "s3://bucket/here.html"],
    "label": ["label", "s3://bucket/out", "s3://bucket/here.html", "--name", "good"],
    "compare": ["compare", "s3://bucket/out", "s3://bucket/out", "s3://bucket/here.html"],
    "json": ["info", "s3://bucket/out", "--json", "s3://bucket/here.json"],
}


@pytest.mark.parametrize("name", HERE_ALONE)
def test_files_of_this_machine_are_not_looked_for_in_a_folder_called_s3(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, HERE_ALONE[name])
    assert done.exit_code == 2, done.output
    assert "error: s3://bucket/here" in done.output
    assert "expected a path of this machine" in done.output
    assert not Path("s3:").exists()


@pytest.mark.parametrize("path", ["s3://bucket/a b", Path("s3://bucket/a b"), "s3:///bucket/a b"])
def test_no_path_is_made_of_a_url(path):
    with pytest.raises(ConfigError, match=r"^s3://bucket/a b: expected a path of this machine"):
        absolute(path)
    assert absolute("./s3:/x").parts[-2:] == ("s3:", "x")
    assert absolute("a:b/c").name == "c"
