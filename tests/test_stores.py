"""The commands beside a store: what they take from one, what they do not, and what they say then."""

from __future__ import annotations

import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from botocore.exceptions import EndpointConnectionError
from s3 import closed_port
from typer.testing import CliRunner

from curator_dask import patience, storage
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


class Refusing(BaseHTTPRequestHandler):
    """Asks for less, some times, then has a file."""

    def do_GET(self):
        self.server.asked += 1
        code = 503 if self.server.asked <= self.server.refusals else 200
        self.send_response(code)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"what")

    def log_message(self, *_):
        pass


def test_a_store_that_is_not_there_is_told_soon_and_one_that_falters_is_waited_for(monkeypatch, caplog):
    caplog.set_level(logging.DEBUG, "curator_dask")
    monkeypatch.setattr(patience, "UNREACHED_SECONDS", 0.0)
    monkeypatch.setattr(patience, "_answered", set())
    with closed_port() as port:
        place = {"endpoint_url": f"http://127.0.0.1:{port}"}
        options = {"key": "k", "secret": "s", "client_kwargs": place}
        options["config_kwargs"] = {"retries": {"max_attempts": 0}}
        with pytest.raises(EndpointConnectionError, match=f"Could not connect to the endpoint URL.*:{port}"):
            storage.read_bytes("s3://bucket/file", options)
        done = CliRunner().invoke(
            app, ["info", "s3://bucket/out", "--storage-options", json.dumps(options)], catch_exceptions=False
        )
        assert done.exit_code == 2 and "Check the address and storage_options" in done.output
    assert "failed" not in caplog.text  # it was tried once
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        server.asked, server.refusals = 0, 1
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/file"
        assert storage.read_bytes(url) == b"what"
        assert server.asked == 2
        server.shutdown()
    # It has answered: it may be there again soon.
    monkeypatch.setattr(patience, "TRIES", 2)
    with pytest.raises(OSError, match="Cannot connect to host"):
        storage.read_bytes(url)
    assert "try 1 of 5 failed (ClientResponseError(" in caplog.text
    assert "try 1 of 2 failed (ClientConnectorError" in caplog.text
