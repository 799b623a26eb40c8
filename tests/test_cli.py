"""The command line: each command once as a user runs it, and in this process, which starts sooner."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import transformers
import typer
from colours import image_of, write_dataset, write_tar
from PIL import Image
from s3 import BUCKET, options, s3_server
from typer.testing import CliRunner

from curator_dask.cli import app
from curator_dask.cli.examples import SHOWN
from curator_dask.cli.options import ClusterType, told_plainly, workers_of
from curator_dask.outputs.filtering import filter_output
from curator_dask.webdataset.index import ShardIndex

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "data"
    write_dataset(folder, shards=2, samples=6, bad={"000000001": b""})
    return folder


def run(*arguments, cwd=None):
    command = [sys.executable, "-m", "curator_dask", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=cwd)


def run_here(*arguments):
    """The same in this process, without the imports."""
    done = CliRunner().invoke(app, [*map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


def test_embed_and_rerun(folder, client, tmp_path):
    arguments = ["embed", folder, tmp_path / "out", "--model", "test_vit", "--no-pretrained"]
    arguments += ["--scheduler-address", client.scheduler.address]
    done = run_here(*arguments)
    assert done.returncode == 0, done.stderr
    assert "found 2 shards" in done.stdout
    assert "; test_vit with random weights)" in done.stdout
    assert "12 rows in 2 files; 1 failed image" in done.stdout
    assert "1 x empty, for example 00000 000000001: empty" in done.stdout
    assert "Traceback" not in done.stderr
    schema = pq.read_schema(tmp_path / "out" / "00000.parquet")
    assert str(schema.field("image_embedding").type) == "fixed_size_list<element: float>[64]"

    (folder / "00001.tar").rename(folder / "00001.tar.away")
    try:
        (folder / "00001.tar").write_bytes(b"not a tar")
        again = run_here(*arguments)
    finally:
        (folder / "00001.tar.away").rename(folder / "00001.tar")
    assert again.returncode == 1, again.stderr
    assert "1 file finished before" in again.stdout
    assert "shard failed: 00001" in again.stdout
    assert "Traceback" not in again.stderr


@pytest.mark.parametrize(
    ("bad", "options", "code", "said"),
    [
        (3, [], 1, "NONE of 3 images has a vector"),
        (2, [], 0, ""),
        (2, ["--min-good", "0.5"], 1, "error: 33.3% of the images have a vector, --min-good 0.5"),
        (1, ["--min-good", "0.5"], 0, ""),
    ],
)
def test_a_run_without_enough_vectors_has_failed(client, tmp_path, bad, options, code, said):
    write_dataset(tmp_path / "data", 1, 3, bad={f"00000000{number}": b"" for number in range(bad)})
    arguments = ["embed", tmp_path / "data", tmp_path / "out", "--model", "test_vit", "--no-pretrained"]
    done = run_here(*arguments, "--scheduler-address", client.scheduler.address, *options)
    assert done.returncode == code
    assert said in done.stdout + done.stderr
    assert "NONE" not in done.stdout or bad == 3


def test_what_all_has_taken_is_said_last(client, capsys):
    with told_plainly(""):
        with workers_of(ClusterType.auto, client.scheduler.address, None, None):
            pass
        print("the summary")
    said = capsys.readouterr().out
    assert re.search(r"the summary\n[\d.]+ s in all, from the start of the command\n$", said), said


def test_each_command_is_listed_once_under_a_theme():
    from curator_dask.cli.themes import THEMES

    told = [name for names in THEMES.values() for name in names]
    assert sorted(told) == sorted(SHOWN)
    text = CliRunner().invoke(app, ["--help"]).output
    places = [text.index(f"\n  {name} ") for name in told]
    assert places == sorted(places)
    assert all(f"\n{theme}:\n" in text for theme in THEMES)


def test_examples_of_the_help_are_commands():
    commands = typer.main.get_command(app).commands
    assert commands.keys() == SHOWN.keys()
    for name, (short, examples) in SHOWN.items():
        assert commands[name].get_short_help_str(80) == short
        for example in examples:
            said, *arguments = shlex.split(example)
            assert said == name and commands[name].make_context(name, arguments).params


def test_vectors_of_finished_files_count(client, tmp_path):
    """A rerun that finds nothing but bad images to do is no failure where others are good, and the reverse."""
    address = client.scheduler.address
    write_dataset(tmp_path / "data", 2, 3, bad={f"00001000{number}": b"" for number in range(3)})
    arguments = ["embed", tmp_path / "data", tmp_path / "out", "--model", "test_vit", "--no-pretrained"]
    arguments += ["--scheduler-address", address]
    assert run_here(*arguments).returncode == 0
    (tmp_path / "out/00001.parquet").unlink()
    again = run_here(*arguments)
    assert again.returncode == 0 and "3 failed images" in again.stdout and "NONE" not in again.stdout
    for shard in ("data/00000.tar", "data/00000.parquet", "out/00000.parquet"):
        (tmp_path / shard).unlink()
    nothing = run_here(*arguments)
    assert nothing.returncode == 1 and "nothing to do" in nothing.stdout
    assert "NONE of 3 images has a vector" in nothing.stdout


def test_two_models_in_turn_into_one_output(client, tmp_path):
    """Each its column; a retry without one mends both."""
    write_dataset(tmp_path / "data", 1, 3)
    out = tmp_path / "out"

    def embed(model, column, *more):
        arguments = ["embed", tmp_path / "data", out, "--no-pretrained", "--model", model, "--column", column]
        done = run_here(*arguments, "--scheduler-address", client.scheduler.address, *more)
        return done.stdout + " ".join(done.stderr.split())

    for column in "ab":
        assert "3 rows in 1 file" in embed("test_vit", column, "--max-pixels", "1")
    for column in "ab":
        assert "nothing to do, 1 file finished before" in embed("test_vit", column, "--max-pixels", "1")
    refused = embed("test_vit", "b", "--no-normalize")
    assert "another name by image_embedding_column (--column). Use overwrite=True (--overwrite)" in refused
    done = run_here("retry", out, "--max-pixels", "1000", "--scheduler-address", client.scheduler.address)
    assert done.returncode == 0, done.stderr
    table = pq.read_table(out / "00000.parquet")
    assert table["a"].null_count == table["b"].null_count == 0 == table["image_error"].null_count - 3
    assert table["a"].equals(table["b"]), "of one model"
    assert all(f"{out}, {name}: 3 failed rows tried again" in done.stdout for name in "ab")


def test_statistics_beside_the_vectors(client, tmp_path):
    write_dataset(tmp_path / "data", 1, 3)
    rows = pq.read_table(tmp_path / "data" / "00000.parquet")
    lacking = pa.table({**rows.slice(0, 1).to_pydict(), "key": ["none"]}, rows.schema)  # it was never fetched
    rows = pa.concat_tables([rows, lacking])
    status = pa.array(["success"] * 3 + ["failed_to_download"])
    pq.write_table(rows.append_column("status", status), tmp_path / "data" / "00000.parquet")
    embed = ["embed", tmp_path / "data", tmp_path / "out", "--model", "test_vit", "--no-pretrained"]
    alone = [*embed, "--scheduler-address", client.scheduler.address]
    arguments = [*alone, "--statistics"]
    nobody = ["--scheduler-address", "tcp://127.0.0.1:1"]  # which is not asked
    taken = run_here(*embed, "--statistics", "grey, width", *nobody)
    assert (
        taken.returncode == 2 and "(prefix='image_', --prefix image_, in a recipe" in taken.stderr
    )  # the dataset has a width
    assert "expected a list of some of" in run_here(*arguments, "with").stderr
    done = run_here(*arguments, "grey", "--statistics", "width, grey", "--prefix", "image_")
    assert done.returncode == 0, done.stderr
    table = pq.read_table(tmp_path / "out" / "00000.parquet")
    assert {"image_grey", "image_width", "image_embedding"} <= {*table.column_names}
    assert table["image_grey"].null_count == 1 and "image_border" not in table.column_names
    assert table["image_error"].drop_null().to_pylist() == [
        "missing: no sample 'none' in the tar (status: failed_to_download)"
    ]
    # They stay where the model is run alone, and are taken over where they are asked for again.
    for again, said in ((alone, "4 rows"), (alone, "nothing to do"), ([*arguments, "grey,width"], "4 rows")):
        done = run_here(*again, "--prefix", "image_")
        assert done.returncode == 0 and said in done.stdout, done.output
        assert pq.read_table(tmp_path / "out" / "00000.parquet").equals(table)


def test_summaries_as_json(client, tmp_path):
    write_dataset(tmp_path / "data", 2, 3, bad={"000010002": b""})
    (tmp_path / "out").mkdir()
    cluster = ["--scheduler-address", client.scheduler.address]
    embed = ["embed", tmp_path / "data", tmp_path / "out", "--model", "test_vit", "--no-pretrained", *cluster]
    done = run_here(*embed, "--json", "-")
    assert "found 2 shards" in done.stderr
    found = json.loads(done.stdout)
    assert (found["rows"], found["failed"], found["written"], found["good"]) == (6, 1, 2, 5 / 6)
    assert found["reasons"] == {"empty": 1} and found["complete"] is True and found["seconds"] > 0
    good = {"rows": 3, "failed": 0, "reasons": {}, "before": False}
    failed = {"rows": 3, "failed": 1, "reasons": {"empty": 1}, "before": False}
    assert found["shards"] == {"00000": good, "00001": failed}
    assert found["versions"].keys() >= {"curator-dask", "python", "torch", "timm", "pyarrow"}
    assert found["versions"]["pyarrow"] == pa.__version__

    file = tmp_path / "summary.json"
    (tmp_path / "out" / "00000.parquet").unlink()
    assert "3 rows in 1 file" in run_here(*embed, "--json", file).stdout
    again = json.loads(file.read_text())
    assert again["shards"] == {"00000": good, "00001": {**failed, "before": True}}
    assert (again["skipped"], again["failed_before"]) == (1, 1)
    assert run_here("retry", tmp_path / "out", *cluster, "--json", file).returncode == 0
    assert json.loads(file.read_text())["image_embedding"]["shards"] == {"00001": {**failed, "rows": 1}}
    assert run_here("index", tmp_path / "data", "--json", file).returncode == 0
    assert json.loads(file.read_text())["written"] == 2

    # Where it cannot be written is said before, not after hours.
    (tmp_path / "out" / "00000.parquet").unlink()
    done = run_here(*embed, "--json", tmp_path / "nowhere" / "summary.json")
    assert done.returncode == 2 and "no file can be written there" in done.stderr
    assert not (tmp_path / "out" / "00000.parquet").exists()


def write_clip(folder):
    """A small CLIP with random weights, as transformers writes it."""
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPVisionConfig(**sizes, image_size=32, patch_size=8, projection_dim=24)
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(folder)
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)


def test_embed_with_clip_and_retry(folder, client, tmp_path):
    """With a cluster of the command's own. The folder with the weights is where a download would have put them."""
    name, out = "openai/clip-vit-large-patch14", tmp_path / "out"
    write_clip(tmp_path / "models" / name)
    model = ["--model", name, "--model-dir", "models"]
    done = run("embed", folder, out, *model, "--cluster", "cpu", "--workers", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "image_embedding: 24 values, projected output of CLIPVisionModelWithProjection" in done.stdout
    assert "12 rows in 2 files; 1 failed image" in done.stdout
    assert "LOAD REPORT" not in done.stderr and "Traceback" not in done.stderr
    assert "still alive" not in done.stderr
    before = pq.read_table(out)
    assert before["image_embedding"].type == pa.list_(pa.field("element", pa.float32()), 24)
    # From another working directory.
    done = run_here("retry", out, "--scheduler-address", client.scheduler.address)
    assert done.returncode == 0, done.stderr
    assert "1 failed row tried again, 0 have a vector now" in done.stdout
    assert pq.read_table(out).equals(before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed"], "Missing argument"),
        (["embed", "{data}", "out", "--model", "resnet18", "--batch-size", "0"], "greater than or equal to"),
        (["embed", "{data}", "out", "--model", "resnet18", "--cluster", "tpu"], "tpu"),
    ],
)
def test_wrong_usage(folder, tmp_path, arguments, message):
    done = run(*(argument.format(data=folder) for argument in arguments), cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed", "nowhere", "out", "--model", "resnet18", "--cluster", "cpu"], "nowhere"),
        (["embed", "{data}", "out", "--model", "resnet18", "--id-col", "uid", "--cluster", "cpu"], "uid"),
    ],
)
def test_wrong_usage_with_a_cluster(folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    done = run_here(*(argument.format(data=folder) for argument in arguments), "--workers", "1")
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed", "{data}", "out", "--model", "resnet18", "--scheduler-file", "none.json"], "none.json"),
        (["embed", "{data}", "out", "--model", "resnet18", "--storage-options", "anon"], "--storage-options"),
        (
            ["embed", "{data}", "out", "--model", "m", "--output-storage-options", "[]"],
            "--output-storage-options",
        ),
        (["embed", "{data}", "out", "--model", "m", "--model-kwargs", "1"], "--model-kwargs"),
        (["embed", "{data}", "out", "--model", "a/b", "--model-output", "pooled"], "take --model-output,"),
        (["embed", "{data}", "out", "--model", "resnet18", "--model-dir", "m"], "--model resnet18 is timm's"),
        (["check"], "Missing argument"),
        (["check", "nowhere"], "nowhere"),
        (["check", "{data}", "--all", "--shards", "2"], "--shards"),
        (["check", "{data}", "--shards", "0"], "--shards"),
        (["check", "{data}", "--storage-options", "{{"], "--storage-options"),
        (["check", "{data}", "--id-col", "__url__"], "__url__"),
        (["index", "nowhere"], "nowhere"),
        (["index", "s3://bucket/data"], "expected local tars"),
    ],
)
def test_wrong_usage_in_this_process(folder, tmp_path, arguments, message):
    done = CliRunner().invoke(app, [argument.format(data=folder) for argument in arguments])
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert not done.stdout


def test_an_unknown_model_is_wrong_usage(folder, tmp_path):
    done = run_here("embed", folder, tmp_path, "--model", "resnet5", "--cluster", "cpu", "--workers", "1")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "resnet50" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--model", "test_vit", "--checkpoint", "~nobody.here/x.pt"),
        ("--model", "test_vit", "--captions", "~nobody.here/x.csv"),
        ("--model", "local-dir:~nobody.here/x"),
        ("--model", "~nobody.here/x"),
        ("--model", "org/model", "--model-dir", "~nobody.here/x"),
    ],
)
def test_a_home_that_nobody_has(folder, tmp_path, arguments):
    done = run_here("embed", folder, tmp_path / "out", "--cluster", "cpu", *arguments)
    assert done.returncode == 2, done.stderr
    assert "~nobody.here/x" in done.stderr and "is the home of nobody on this machine" in " ".join(
        done.stderr.split()
    )


def test_check_of_a_good_dataset(tmp_path):
    write_dataset(tmp_path / "data", shards=2, samples=6)
    done = run("check", tmp_path / "data", "--dim", "512", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rows: 12; samples: 12" in done.stdout
    assert f"{12 * 512 * 4 / 1000:.1f} kB of vectors" in done.stdout
    assert "free in" in done.stdout
    assert "nothing that would fail, 0 notes" in done.stdout
    assert not done.stderr
    assert not (tmp_path / "out").exists()


def test_check_of_a_bad_dataset(tmp_path):
    folder = tmp_path / "data"
    write_dataset(folder, shards=12, samples=6, bad={"000000001": b""})
    os.truncate(folder / "00001.tar", (folder / "00001.tar").stat().st_size // 2)
    (folder / "00002.tar").unlink()
    os.mkfifo(folder / "00002.tar")
    (folder / "00003.parquet").write_bytes(b"no Parquet")
    done = run_here("check", folder)
    assert done.returncode == 1, done.stdout + done.stderr
    assert not done.stderr
    lines = done.stdout.splitlines()
    problems = [number for number, line in enumerate(lines) if line.startswith(("PROBLEM", "note"))]
    assert all(lines[number + 1].startswith("    fix: ") for number in problems)
    assert any(
        "tar that is cut" in lines[number] and "00001: truncated" in lines[number] for number in problems
    )
    assert lines[-1].startswith("3 problems")

    # As JSON: one object on one line, and the words for people elsewhere; of one shard, where that is asked for.
    done = run_here("check", folder, "--json", "-", "--shards", "1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("3 problems")
    found = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert found["ok"] is False
    assert {problem["kind"] for problem in found["problems"]} == {"damaged", "unreadable", "companion"}
    assert all(problem["fix"] and problem["examples"] for problem in found["problems"])
    assert found["looked"] == 2  # and the one that does not end as tars do
    assert found["rows"] == 66
    # From the tars the Parquet does not count; and what only costs rows is no failure.
    for name in ("00001", "00002"):
        (folder / f"{name}.tar").unlink()
    done = run_here("check", folder, "--metadata", "tar", "--json", "-", "--all")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [note["kind"] for note in json.loads(done.stdout)["notes"]] == ["bad-image"]


def test_index(tmp_path):
    folder = tmp_path / "data"
    write_dataset(folder, shards=3, samples=6)
    done = run("index", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 index files written" in done.stdout
    assert "cluster" not in done.stdout  # starting one would take longer
    for tar in folder.glob("*.tar"):
        ShardIndex.read_idx(tar.with_suffix(".idx"), tar)
    os.truncate(folder / "00001.tar", (folder / "00001.tar").stat().st_size // 2)
    done = run_here("index", folder, "--workers", "1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "0 index files written, 2 fitted already, 1 failed" in done.stdout
    assert "no index for 00001: truncated" in done.stdout
    assert "Dask cpu cluster: 1 worker" in done.stdout
    assert "Traceback" not in done.stderr


def test_from_a_store_to_a_store(client, tmp_path):
    """Both ends remote, and a tar that was cut: its other samples are embedded, and the command ends with 1."""
    write_dataset(tmp_path / "data", shards=2, samples=6, shuffle=False)
    with s3_server() as server:
        settings = json.dumps(options(server))
        store = fsspec.filesystem("s3", **options(server))
        store.put(str(tmp_path / "data"), f"{BUCKET}/data", recursive=True)
        done = run_here("check", f"s3://{BUCKET}/data", "--json", "-", "--storage-options", settings)
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout)["samples"] == 12
        assert "secret" not in done.stdout

        tar = (tmp_path / "data" / "00001.tar").read_bytes()
        store.pipe_file(f"{BUCKET}/data/00001.tar", tar[: len(tar) // 3])
        left = len(ShardIndex.scan(_written(tmp_path / "cut.tar", tar[: len(tar) // 3])).samples)
        done = run_here("check", f"s3://{BUCKET}/data", "--storage-options", settings)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "00001: truncated" in done.stdout

        where = ["--storage-options", settings, "--output-storage-options", settings]
        model = ["--model", "test_vit", "--no-pretrained", "--scheduler-address", client.scheduler.address]
        done = run_here("embed", f"s3://{BUCKET}/data", f"s3://{BUCKET}/out", *model, *where)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "12 rows in 2 files" in done.stdout
        assert "Traceback" not in done.stderr
        assert "00001" in done.stdout
        with store.open(f"{BUCKET}/out/00001.parquet") as file:
            rows = pq.read_table(file)
    assert rows["image_embedding"].null_count == 6 - left > 0


def _written(path, data):
    path.write_bytes(data)
    return path


def test_retry_takes_the_member_that_was_named(client, tmp_path):
    """The sample's second image, as when the output was made, and not its first."""
    red, blue = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (200, 100), "red").save(red, "PNG")
    Image.new("RGB", (200, 100), "blue").save(blue, "PNG")
    write_tar(tmp_path / "two/0.tar", [("0.a.png", red.getvalue()), ("0.b.png", blue.getvalue())])
    write_tar(tmp_path / "one/0.tar", [("0.png", blue.getvalue())])
    model = ["--model", "test_vit", "--no-pretrained"]
    cluster = ["--scheduler-address", client.scheduler.address]
    assert run_here("embed", tmp_path / "one", tmp_path / "alone", *model, *cluster).returncode == 0
    limited = [*model, *cluster, "--image", "b.png", "--max-pixels", "10000"]
    assert run_here("embed", tmp_path / "two", tmp_path / "out", *limited).returncode == 1  # too large
    done = run_here("retry", tmp_path / "out", "--max-pixels", "100000", *cluster)
    assert "1 failed row tried again, 1 has a vector now" in done.stdout
    alone, mended = (pq.read_table(tmp_path / name)["image_embedding"] for name in ("alone", "out"))
    np.testing.assert_allclose(mended.to_pylist(), alone.to_pylist(), atol=1e-5)


def test_retry(client, tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (200, 100), "red").save(file, "PNG")
    write_dataset(
        tmp_path / "data", shards=2, samples=4, bad={"000000001": b"", "000010002": file.getvalue()}
    )
    model = ["--model", "test_vit", "--no-pretrained", "--model-kwargs", '{"img_size": 64}']
    cluster = ["--scheduler-address", client.scheduler.address]
    out = tmp_path / "out"
    done = run_here("embed", tmp_path / "data", out, *model, *cluster, "--max-pixels", "10000")
    assert done.returncode == 0, done.stderr
    before = pq.read_table(out)
    assert before["image_error"].null_count == 6
    done = run("retry", out, "--max-pixels", "100000", *cluster)
    assert done.returncode == 0, done.stderr
    assert "2 failed rows tried again, 1 has a vector now" in done.stdout
    assert "1 x empty" in done.stdout
    after = pq.read_table(out)
    assert after["image_error"].null_count == 7
    assert after["key"].equals(before["key"])
    kept = before["image_error"].is_null()
    assert after["image_embedding"].filter(kept).equals(before["image_embedding"].filter(kept))

    done = CliRunner().invoke(app, ["retry", str(out), "--column", "other"])
    assert done.exit_code == 2
    assert "do not say which model made other (they do for image_embedding)" in done.stderr
    done = CliRunner().invoke(app, ["retry", str(tmp_path / "data")])
    assert done.exit_code == 2
    assert "no file of curator_dask's is there" in done.stderr


def test_a_folder_of_image_files(client, tmp_path):
    """The commands take it as they take tars: from the check to the curated shards."""
    for number in range(30):
        path = tmp_path / "data" / "ab"[number % 2] / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_of(f"{number:04d}"))
        path.with_suffix(".txt").write_text(f"caption of {number}")
    (tmp_path / "data" / "a" / "0008.png").write_bytes(b"no image")
    at = ("--scheduler-address", client.scheduler.address)
    done = run_here("check", tmp_path / "data", "--json", tmp_path / "check.json")
    found = json.loads((tmp_path / "check.json").read_text())
    assert done.returncode == 0, done.stdout
    assert (found["samples"], found["rows"], found["images"]["unusable"]) == (30, 30, {"not an image": 1})
    model = ("--model", "test_vit", "--no-pretrained")
    rows = {"file_name": ["a/0000.png"], "label": ["red"]}
    pq.write_table(pa.table(rows), tmp_path / "captions.parquet")
    given = ("--captions", tmp_path / "captions.parquet")
    done = run_here("embed", tmp_path / "data", tmp_path / "out", *model, *at, *given)
    assert done.returncode == 0, done.stderr
    assert pq.read_table(tmp_path / "out")["label"].to_pylist() == ["red"] + [None] * 29
    done = run_here("embed", tmp_path / "data", tmp_path / "out", *model, *at)
    assert done.returncode == 0, done.stderr
    assert "30 rows in 1 file; 1 failed image" in done.stdout
    done = run_here("export", tmp_path / "out", tmp_path / "tars", "--where", "image_error is null", *at)
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / "tars" / "00000.tar") as tar:
        images = {each.name: tar.extractfile(each).read() for each in tar if each.name.endswith(".png")}
    assert images == {
        f"{'ab'[number % 2]}/{number:04d}.png": image_of(f"{number:04d}")
        for number in range(30)
        if number != 8
    }
    (tmp_path / "recipe.yaml").write_text(
        "statistics: [width]\nwhere: width >= 0\nexport: {samples_per_shard: 20}\n"
    )
    done = run_here(
        "curate", tmp_path / "data", tmp_path / "curated", "--config", tmp_path / "recipe.yaml", *at
    )
    assert done.returncode == 0, done.stderr
    assert "29 of 30 rows" in done.stdout
    (tmp_path / "curated" / "shards" / "more.png").write_bytes(image_of("7"))
    done = run_here("export", tmp_path / "curated" / "shards", tmp_path / "one", "--images", *at)
    assert (done.returncode, len([*(tmp_path / "one").glob("*.tar")])) == (0, 1), done.stderr
    assert "1 sample in 1 tar" in done.stdout


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """What other Parquet files may be like."""
    folder = tmp_path_factory.mktemp("rows") / "rows"
    folder.mkdir()
    table = pa.table(
        {"key": ["a", "b"], "__url__": ["/no/0.tar"] * 2, "score": [1.0, 2.0], "note": ["x", "y"]}
    )
    pq.write_table(table, folder / "0.parquet")
    return folder


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            ("embed", "{shards}", "{out}", "--model", "test_vitt"),
            "no architecture 'test_vitt'. Nearest: test_vit",
        ),
        (("embed", "{shards}", "{out}", "--model", "local-dir:{out}"), "no folder"),
        (
            ("embed", "{shards}", "{rows}/0.parquet", "--model", "test_vit"),
            "it is a file, and a folder is expected",
        ),
        (("filter", "{rows}/0.parquet", "--where", "score > 1"), "this is a file itself. Give its folder"),
        (("embed", "{shards}", "{out}", "--model", "{rows}"), "is named local-dir:"),
        (("export", "{shards}", "{out}", "--where", "widht > 1"), "no column 'widht' (did you mean width?)"),
        (("export", "{shards}", "{out}", "--columns", "width,none"), "no such columns ['none']"),
        (("export", "{rows}", "{out}", "--where", "skore > 1"), "no column 'skore' (did you mean score?)"),
        (("export", "{rows}", "{out}", "--columns", "score,none"), "no such columns ['none']"),
        (
            ("export", "{rows}", "{out}", "--filter-column", "score"),
            "expected booleans in the column 'score'",
        ),
        (("export", "{rows}", "{out}", "--old-id-col", "note"), "old_id_col='note': there is such a column"),
        (("filter", "{rows}", "{rows}", "--where", "score > 1"), "give another folder for the output"),
        (("filter", "{rows}", "{filtered}", "--where", "score > 1"), "use overwrite=True"),
    ],
)
def test_what_is_wrong_is_said_before_a_cluster_starts(folder, rows, tmp_path, command, said):
    (tmp_path / "filtered").mkdir()
    pq.write_table(pa.table({"key": ["c"]}), tmp_path / "filtered" / "0.parquet")
    names = {"shards": folder, "rows": rows, "out": tmp_path / "out", "filtered": tmp_path / "filtered"}
    done = run_here(*(word.format(**names) for word in command))
    assert done.returncode in (1, 2) and said in " ".join(done.stderr.split()), done.stderr
    assert "cluster" not in done.stdout


def test_a_filter_that_is_finished_starts_no_cluster(rows, tmp_path, in_this_process):
    filter_output(rows, tmp_path / "out", where="score > 1")
    done = run_here("filter", rows, tmp_path / "out", "--where", "score > 1")
    assert done.returncode == 0 and "1 file finished before" in done.stdout
    assert "cluster" not in done.stdout


@pytest.mark.parametrize("name", SHOWN)
def test_an_option_of_one_value_is_given_once(name):
    """Else the last would count, and the others be lost without a word; lists and switches may come again."""
    params = typer.main.get_command(app).commands[name].params
    options = [each for each in params if each.param_type_name == "option" and each.name != "help"]
    if (
        name != "filter"
    ):  # one for all: of the others one of each kind, as each call takes a tenth of a second
        options = [*{(each.is_flag, each.multiple): each for each in options}.values()]
    refused = set()
    for each in options:
        option = max(each.opts, key=len)
        given = [option, option] if each.is_flag else [option, "a", option, "b"]
        done = CliRunner().invoke(app, [name, *given])
        said = " ".join(done.output.split())
        assert done.exit_code == 2 and ("given 2 times" in said or "Missing" in said), said
        refused |= {each.name} if f"for {option}: given 2 times, and takes one value" in said else set()
    assert refused == {each.name for each in options if not (each.is_flag or each.multiple)} != set()


def test_commands_over_images_take_the_same_datasets():
    """A command that lacks one of these options ends in a traceback where the arguments are looked at."""
    commands = typer.main.get_command(app).commands
    asked = {"images", "image_column", "id_col", "metadata", "captions", "rows_per_partition", "nested_json"}
    for name in ("embed", "classify", "caption", "detect", "ask"):
        has = {each.name for each in commands[name].params}
        assert asked <= has, (name, asked - has)
