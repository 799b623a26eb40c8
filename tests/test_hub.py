"""Model folders: found, or fetched over HTTP from a server on this machine that speaks the hub's protocol."""

from __future__ import annotations

import hashlib
import http.server
import json
import logging
import os
import pickle
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file

from curator_dask.errors import ConfigError, WeightsError
from curator_dask.models import downloads
from curator_dask.models.captioning import CaptionSpec
from curator_dask.models.hub import CLIP_L14, PINS, Pin, find_beside, find_folder, lacking
from curator_dask.models.sources import Sources, cached_state

FILES = {"config.json", "preprocessor_config.json", "model.safetensors"}
CHUNK = 1 << 14
COMMIT = "c" * 40


class Hub(http.server.BaseHTTPRequestHandler):
    """Files of repositories, with commit, etag (of weights their SHA-256) and ranges; breaks off where it is told."""

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        state = self.server.state
        before, resolve, after = self.path.partition("?")[0].strip("/").partition("/resolve/")
        repository, (revision, _, name) = before.split("/"), after.partition("/")
        given = self.headers.get("Range", "")
        state.log.append((self.command, "/".join(repository), revision, name, given))
        file = state.folder.joinpath(*repository, name)
        if state.broken or not resolve or not file.is_file():
            self.send_response(503 if state.broken else 404)
            if not state.broken:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = file.read_bytes()
        start = int(given.removeprefix("bytes=").removesuffix("-")) if given else 0
        self.send_response(206 if given else 200)
        digest = hashlib.sha256(data).hexdigest()
        self.send_header("ETag", f'"{digest if name.endswith(".safetensors") else digest[:40]}"')
        self.send_header("X-Repo-Commit", state.commit if revision == "main" else revision)
        if given:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if not body:
            return
        time.sleep(state.delay)
        data = state.spoil(name, data)[start:]
        cut = state.cuts.get(name) or [len(data)]
        self.wfile.write(data[: cut.pop(0)])
        if name in state.cuts:
            state.broken = state.breaks_for_good and not cut
            self.close_connection = True
            state.goes_on.wait(60)

    def log_message(self, *args):
        """Quiet."""


class Server(http.server.ThreadingHTTPServer):
    def shutdown_request(self, request):
        """Close a connection; a reset, as routers send it, comes without the orderly end before it."""
        if not self.state.resets:
            return super().shutdown_request(request)
        time.sleep(0.1)  # a reset overtakes what was sent before it
        request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return request.close()


class State:
    """What a server has, what it was asked, and what it does wrong."""

    def __init__(self, folder):
        self.folder = folder
        self.log: list[tuple[str, str, str, str, str]] = []
        self.cuts: dict[str, list[int]] = {}  # by file: bytes after which each answer breaks off
        self.broken = self.breaks_for_good = self.resets = False
        self.delay, self.commit = 0.0, COMMIT
        self.goes_on = threading.Event()  # what is cut is cut at once; otherwise the answer hangs
        self.goes_on.set()
        self.spoil = lambda name, data: data

    def fetched(self):
        return [name for command, *_, name, _ in self.log if command == "GET"]

    def ranges(self, name):
        return [given for command, *_, file, given in self.log if command == "GET" and file == name]


def write_model(folder, seed=0, processor="preprocessor_config.json"):
    """A folder with the three files; the weights are as large as several chunks."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    save_file({"a": rng.random((300, 100), np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", "seed": seed}))
    if processor:
        (folder / processor).write_text('{"size": 224}')
    return folder


def contents(folder):
    """Files that are not hidden, with their bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A hub that has someone/clip, and that this process takes for the hub."""
    write_model(tmp_path / "hub" / "someone" / "clip")
    served = Server(("127.0.0.1", 0), Hub)
    served.state = State(tmp_path / "hub")
    threading.Thread(target=served.serve_forever, args=(0.02,), daemon=True).start()
    endpoint = f"http://127.0.0.1:{served.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        constants, "DOWNLOAD_CHUNK_SIZE", CHUNK
    )  # what was received of a chunk is lost with it
    monkeypatch.setattr(downloads, "PAUSE", 0.01)
    huggingface_hub.close_session()  # made before it knew of NO_PROXY
    yield served.state
    served.shutdown()
    served.server_close()
    huggingface_hub.close_session()


@pytest.fixture
def no_server(server, monkeypatch):
    """Nobody listens where the hub should be."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    return server


def test_a_model_that_writes_comes_with_its_tokenizer_and_template(server, tmp_path):
    folder = write_model(server.folder / "someone" / "writer", processor="processor_config.json")
    (folder / "config.json").write_text('{"model_type": "llava"}')
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        (folder / name).write_text("{}")
    (folder / "modeling.py").write_text("raise SystemExit")
    for model_dir in (None, str(tmp_path / "models")):
        found = CaptionSpec("someone/writer", model_dir).fetch()
        assert {*contents(found)} == {*contents(folder)} - {"modeling.py"}
        before = len(server.log)
        assert CaptionSpec("someone/writer", model_dir).fetch() == found and len(server.log) == before
    (folder / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ConfigError, match="model_type 'clip', which is none of transformers' that write"):
        CaptionSpec("someone/writer", str(tmp_path / "others")).fetch()
    assert not (tmp_path / "others" / "someone" / "writer").exists()


# What is there already


@pytest.mark.parametrize("where", ["model_dir", "org/repo", "model_name", "no preprocessor", "sharded"])
def test_a_folder_with_the_weights_needs_no_network(server, tmp_path, where):
    model_dir = tmp_path / "models"
    folder = model_dir / "someone" / "clip" if where == "org/repo" else model_dir
    write_model(folder, processor=None if where == "no preprocessor" else "preprocessor_config.json")
    if where == "sharded":
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    before = contents(folder)
    name = str(folder) if where == "model_name" else "someone/clip"
    assert find_folder(name, str(model_dir)) == folder
    assert server.log == [] and contents(folder) == before
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_the_model_of_the_name_comes_before_another_in_model_dir(server, tmp_path):
    write_model(tmp_path / "models")
    write_model(tmp_path / "models" / "someone" / "clip", seed=1)
    assert find_folder("someone/clip", str(tmp_path / "models")) == tmp_path / "models" / "someone" / "clip"
    assert find_folder("someone/other", str(tmp_path / "models")) == tmp_path / "models"


def test_a_folder_may_be_read_only(server, tmp_path):
    folder = write_model(tmp_path / "models" / "someone" / "clip")
    for path in (folder, folder.parent, folder.parent.parent):
        path.chmod(0o555)
    try:
        assert find_folder("someone/clip", str(tmp_path / "models")) == folder
    finally:
        for path in (folder, folder.parent, folder.parent.parent):
            path.chmod(0o755)


class Trap:
    """Pickled, it is a program that makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nothing", "no folder .*model here"),
        ("empty", "lacks config.json, model.safetensors; it holds nothing.*save_pretrained"),
        ("no weights", "lacks model.safetensors; it holds config.json, preprocessor_config.json"),
        ("no config", "lacks config.json; it holds model.safetensors"),
        ("pickle", "lacks model.safetensors.*Only safetensors is read.*save_pretrained"),
        ("no shard", "lacks model-2.safetensors"),
        ("bad index", "index.json: cannot be read as JSON"),
        ("climbing index", "index.json: expected a weight_map"),
    ],
)
def test_folders_that_are_not_whole(server, tmp_path, kind, message):
    folder = tmp_path / "model"
    if kind == "empty":
        folder.mkdir()
    elif kind != "nothing":
        write_model(folder)
        (folder / ("config.json" if kind == "no config" else "model.safetensors")).unlink()
    index = folder / "model.safetensors.index.json"
    if kind == "pickle":
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    elif kind == "no shard":
        index.write_text('{"weight_map": {"a": "model-2.safetensors"}}')
    elif kind == "bad index":
        index.write_text("{")
    elif kind == "climbing index":
        index.write_text('{"weight_map": {"a": "../model/config.json"}}')
    with pytest.raises(WeightsError, match=message) as caught:
        find_folder(str(folder))
    assert str(folder) in str(caught.value)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["resnet18", "a/b/c", "a/b@", "hf-hub:a/b", "a/..", "a/b@../c", "", "a/b c"])
def test_names_that_are_no_repository(server, name):
    with pytest.raises(ConfigError, match="expected a folder that is there, or a repository of the hub"):
        find_folder(name)
    assert server.log == []


# Fetching


@pytest.mark.parametrize("into", ["model_dir", "cache"])
def test_fetched_once_then_without_any_network(server, tmp_path, into):
    model_dir = str(tmp_path / "models") if into == "model_dir" else None
    (server.folder / "someone" / "clip" / "pytorch_model.bin").write_bytes(b"no")
    (server.folder / "someone" / "clip" / "tokenizer.json").write_bytes(b"no")
    folder = find_folder("someone/clip", model_dir)
    assert folder == (tmp_path / "models" / "someone" / "clip" if model_dir else folder)
    assert (into == "cache") is folder.is_relative_to(tmp_path / "cache")
    found = contents(folder)
    assert found.keys() == FILES == set(server.fetched())
    assert found == {name: (server.folder / "someone" / "clip" / name).read_bytes() for name in FILES}
    assert not list(folder.parent.glob(".*.partial"))
    server.broken = True
    server.log.clear()
    assert find_folder("someone/clip", model_dir) == folder
    assert server.log == []


def test_files_are_of_one_commit_and_of_the_revision(server, tmp_path):
    """The configuration says which commit the branch is at; a revision has a folder of its own."""
    folder = find_folder("someone/clip@main", str(tmp_path))
    assert folder == tmp_path / "someone" / "clip@main"
    asked = {(name, revision) for _, _, revision, name, _ in server.log}
    assert asked == {("config.json", "main")} | {(name, COMMIT) for name in FILES}
    assert all(revision == COMMIT for command, _, revision, *_ in server.log if command == "GET")


def test_weights_of_the_hub_are_those_that_a_load_would_take(server, tmp_path):
    """The newest state that the hub has, if it is in the cache; the last that was fetched, where it does not answer."""
    folder = find_folder("someone/clip")
    here = cached_state("someone/clip", ask=True)
    assert {Path(path).parent for path in here} == {folder}
    assert Sources.of("someone/clip", None, None, True).state() == here
    server.commit = "d" * 40
    assert cached_state("someone/clip", ask=True) is None
    assert cached_state(f"someone/clip@{folder.name}", ask=True) == here
    server.broken = True
    assert cached_state("someone/clip", ask=True) == here
    assert cached_state("someone/other", ask=True) is None
    assert Sources.of("someone/other", None, None, True) is None


@pytest.mark.parametrize("into", ["model_dir", "cache"])
def test_weights_in_several_files(server, tmp_path, into):
    source = server.folder / "someone" / "clip"
    (source / "model.safetensors").unlink()
    names = [f"model-{number}-of-2.safetensors" for number in (1, 2)]
    for name in names:
        save_file({name: np.zeros(9, np.float32)}, source / name)
    index = {"weight_map": {name: name for name in names}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    (source / "preprocessor_config.json").rename(source / "processor_config.json")
    folder = find_folder("someone/clip", str(tmp_path / "models") if into == "model_dir" else None)
    assert contents(folder).keys() == {
        *names,
        "model.safetensors.index.json",
        "config.json",
        "processor_config.json",
    }
    assert not lacking(folder)


def test_what_stands_beside_the_weights_is_fetched_once(server, tmp_path):
    (server.folder / "someone" / "clip" / "vocab.json").write_text("{}")
    (server.folder / "someone" / "clip" / "tokenizer_config.json").write_text("[]")
    names = ("vocab.json", "merges.txt", "tokenizer_config.json")
    for into in (None, str(tmp_path / "models")):
        folder = find_folder("someone/clip", into)
        assert not (folder / "vocab.json").exists()
        server.log.clear()
        for _ in range(2):
            find_beside("someone/clip", into, folder, names)
        assert server.fetched() == ["vocab.json", "tokenizer_config.json"]
        assert (folder / "vocab.json").read_text() == "{}" and not (folder / "merges.txt").exists()
    server.broken = True
    with pytest.raises(
        WeightsError, match=r"the files are not in .*fetch those of other\.json that it has on a machine"
    ):
        find_beside("someone/clip", str(tmp_path / "models"), folder, ("other.json",))


def test_without_a_preprocessor(server, tmp_path):
    (server.folder / "someone" / "clip" / "preprocessor_config.json").unlink()
    assert contents(find_folder("someone/clip", str(tmp_path))).keys() == FILES - {"preprocessor_config.json"}


@pytest.mark.parametrize("resets", [False, True])
def test_a_cut_connection_is_taken_up_again(server, tmp_path, resets):
    server.resets = resets
    server.cuts["model.safetensors"] = [CHUNK * 2 + 5, CHUNK + 5, 1 << 20]
    folder = find_folder("someone/clip", str(tmp_path))
    assert server.ranges("model.safetensors") == ["", f"bytes={CHUNK * 2}-", f"bytes={CHUNK * 3}-"]
    source = server.folder / "someone" / "clip" / "model.safetensors"
    assert (folder / "model.safetensors").read_bytes() == source.read_bytes()


def test_the_next_run_goes_on_where_one_gave_up(server, tmp_path, caplog):
    """Cut in the middle, then nothing but 503: what came is kept, and is not taken for a model."""
    server.cuts["model.safetensors"] = [CHUNK * 3 + 5]
    server.breaks_for_good = True
    with pytest.raises(WeightsError, match=r"someone/clip: the weights are not in .*clip, and .*503"):
        find_folder("someone/clip", str(tmp_path))
    assert server.fetched().count("model.safetensors") == 1 + downloads.TRIES
    folder = tmp_path / "someone" / "clip"
    assert not folder.exists() or lacking(folder)
    server.broken, server.cuts = False, {}
    server.log.clear()
    assert find_folder("someone/clip", str(tmp_path)) == folder
    assert server.ranges("model.safetensors") == [f"bytes={CHUNK * 3}-"]
    assert server.ranges("preprocessor_config.json") == []  # was whole and verified
    assert contents(folder).keys() == FILES
    assert "going on at byte" in caplog.text


@pytest.mark.parametrize("into", ["model_dir", "cache"])
def test_a_wrong_digest_is_refused(server, tmp_path, into):
    """Of the announced length, but not of the announced content."""
    model_dir = str(tmp_path / "models") if into == "model_dir" else None
    server.spoil = lambda name, data: data[:-4] + b"evil" if name.endswith(".safetensors") else data
    source = server.folder / "someone" / "clip" / "model.safetensors"
    expected = hashlib.sha256(source.read_bytes()).hexdigest()
    with pytest.raises(WeightsError, match=rf"/model.safetensors: expected .* SHA-256 {expected}, found "):
        find_folder("someone/clip", model_dir)
    left = [
        path
        for path in tmp_path.rglob("*.safetensors*")
        if path.is_file() and server.folder not in path.parents
    ]
    assert left == []
    assert not list((tmp_path / "models").rglob("config.json"))
    server.spoil = lambda name, data: data
    assert not lacking(find_folder("someone/clip", model_dir))


def test_the_pinned_model(server, tmp_path, monkeypatch):
    """Its revision is asked for by its commit, and its files must be those, whatever the hub says of them."""
    write_model(server.folder / CLIP_L14)
    pin = PINS[CLIP_L14]
    with pytest.raises(WeightsError, match=f"{pin.revision}/config.json: .*{pin.digests['config.json']}"):
        find_folder(CLIP_L14, str(tmp_path))
    assert {revision for _, _, revision, *_ in server.log} == {pin.revision}
    digests = {
        name: hashlib.sha256((server.folder / CLIP_L14 / name).read_bytes()).hexdigest()
        for name in pin.digests
    }
    assert digests.keys() == FILES
    monkeypatch.setitem(PINS, CLIP_L14, Pin(pin.revision, digests))
    for model_dir in (str(tmp_path), None):
        assert contents(find_folder(CLIP_L14, model_dir)).keys() == FILES
    wrong = {**digests, "preprocessor_config.json": "0" * 64}
    monkeypatch.setitem(PINS, CLIP_L14, Pin(pin.revision, wrong))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "other"))
    for model_dir in (str(tmp_path / "again"), None):
        with pytest.raises(WeightsError, match=r"preprocessor_config.json: expected .* SHA-256 0{64}"):
            find_folder(CLIP_L14, model_dir)
    # Another revision is another model.
    assert contents(find_folder(f"{CLIP_L14}@main", str(tmp_path / "again"))).keys() == FILES


def test_a_configuration_that_is_of_no_use_costs_no_weights(server, tmp_path):
    def refuse(config):
        raise ConfigError(f"not a {config['model_type']}")

    for model_dir in (str(tmp_path), None):
        with pytest.raises(ConfigError, match="not a clip"):
            find_folder("someone/clip", model_dir, refuse)
    assert set(server.fetched()) == {"config.json"}


def test_a_repository_without_safetensors(server, tmp_path):
    source = server.folder / "someone" / "clip"
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"neither model.safetensors nor .*Only safetensors is read"):
        find_folder("someone/clip", str(tmp_path))


@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.parametrize("into", ["model_dir", "cache"])
def test_no_weights_and_no_network(no_server, tmp_path, monkeypatch, into, offline):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    model_dir = str(tmp_path / "models") if into == "model_dir" else None
    started = time.monotonic()
    with pytest.raises(WeightsError) as caught:
        find_folder(CLIP_L14, model_dir)
    assert time.monotonic() - started < 10
    text = str(caught.value)
    assert text.startswith(f"{CLIP_L14}: the weights are not in {tmp_path}")
    assert (str(Path(model_dir, CLIP_L14)) if model_dir else constants.HF_HUB_CACHE) in text
    assert all(name in text for name in FILES)
    assert ("HF_HUB_OFFLINE is set" in text) is offline
    assert "http://127.0.0.1:9" in text


def test_a_repository_that_is_not_there(server, tmp_path):
    with pytest.raises(WeightsError, match=r"someone/else: .*could not be fetched .*HF_TOKEN") as caught:
        find_folder("someone/else", str(tmp_path))
    # Which those are is the repository's matter: tokenizers have many.
    assert (
        "fetch config.json, model.safetensors (or its parts and model.safetensors.index.json) and all small"
        in str(caught.value)
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "models").mkdir(mode=0o555)
    with pytest.raises(WeightsError, match=r"someone/clip: .*models.*PermissionError"):
        find_folder("someone/clip", str(tmp_path / "models"))


def test_a_file_where_a_folder_should_be(server, tmp_path):
    (tmp_path / "models").write_text("")
    with pytest.raises(WeightsError, match=r"someone/clip: .*models"):
        find_folder("someone/clip", str(tmp_path / "models"))


ELSEWHERE = """
    import sys
    from huggingface_hub import constants
    from curator_dask.models.hub import find_folder

    constants.DOWNLOAD_CHUNK_SIZE = int(sys.argv[2])
    print("ready", flush=True)
    sys.stdin.readline()
    print(find_folder("someone/clip", sys.argv[1]))
"""


def start_elsewhere(model_dir):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(ELSEWHERE), str(model_dir), str(CHUNK)],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "HF_ENDPOINT": constants.ENDPOINT,
            "HF_HUB_OFFLINE": "",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def go(*processes):
    """Let them begin, as near to one another as can be."""
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()


def test_two_processes_at_once_fetch_once(server, tmp_path):
    server.delay = 0.5
    both = [start_elsewhere(tmp_path) for _ in range(2)]
    go(*both)
    done = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], done
    assert {out.strip() for out, _ in done} == {str(tmp_path / "someone" / "clip")}
    assert server.fetched().count("model.safetensors") == 1
    assert sum("waiting for it" in err for _, err in done) == 1
    assert sum("fetching" in err and "MB into" in err for _, err in done) == 1


def test_what_a_killed_process_had_is_used_by_the_next(server, tmp_path):
    """It held the lock, too."""
    server.cuts["model.safetensors"] = [CHUNK * 4 + 5]
    server.goes_on.clear()
    process = start_elsewhere(tmp_path)
    go(process)
    deadline = time.monotonic() + 30
    while not any(path.stat().st_size >= CHUNK * 4 for path in tmp_path.rglob("*.part")):
        assert time.monotonic() < deadline, process.poll()
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert not (tmp_path / "someone" / "clip").exists()
    server.cuts.clear()
    server.goes_on.set()
    assert contents(find_folder("someone/clip", str(tmp_path))).keys() == FILES
    assert server.ranges("model.safetensors") == ["", f"bytes={CHUNK * 4}-"]


def test_what_is_said_while_fetching(server, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "curator_dask"):
        find_folder("someone/clip", str(tmp_path))
        find_folder("someone/clip", str(tmp_path))
    assert [record.getMessage() for record in caplog.records] == [
        f"someone/clip: fetching 0 MB into {tmp_path / 'someone' / 'clip'}"
    ]
