"""From shards to the shards that are left, by one command; the counts add up, and every byte is the source's."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from dataclasses import fields

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import write_tar
from PIL import Image
from typer.testing import CliRunner

from curator_dask.cli import app, options
from curator_dask.cluster import client
from curator_dask.curation import Recipe, curate
from curator_dask.errors import ConfigError, CuratorError, OutputError
from curator_dask.models import sources
from curator_dask.report import mapping

pytestmark = pytest.mark.usefixtures("in_this_process")

SHARDS, SAMPLES = 3, 8


def picture(seed, width=64, quality=92):
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((width, 48), Image.Resampling.BICUBIC).save(file, "JPEG", quality=quality)
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of each shard: a broken image, a narrow one, and one that is another's of the first shard, saved again."""
    folder = tmp_path_factory.mktemp("curation") / "data"
    for shard in range(SHARDS):
        members = []
        for sample in range(SAMPLES):
            key = f"{shard:03}{sample:03}"
            image = picture(1000 * shard + sample)
            if sample == 1:
                image = b"no image"
            elif sample == 2:
                image = picture(5, width=30)
            elif sample == 3 and shard:
                image = picture(4, quality=90)
            members += [(f"{key}.jpg", image), (f"{key}.txt", f"caption of {key}".encode())]
        write_tar(folder / f"{shard:05}.tar", members)
    return folder


def samples_in(folder):
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                found.setdefault(key, {})[suffix] = tar.extractfile(member).read()
    return found


CONFIG = """
model: test_vit
model_options: {pretrained: false, batch_size: 8, autocast: false, checkpoint_path: null}
statistics: [width, height]
prefix: image_
where: image_width >= 40
duplicates: {eps: 0.002, recall: 1, keep: [image_width desc, key]}
export: {samples_per_shard: 7}
"""
#: The two later copies of sample 4 of the first shard.
COPIES = {"001003", "002003"}


def expected():
    keys = {f"{shard:03}{sample:03}" for shard in range(SHARDS) for sample in range(SAMPLES)}
    return {key for key in keys if key[3:] not in ("001", "002")} - COPIES


@pytest.fixture
def weights(tmp_path):
    """Random weights, the same in each run."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(3)
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


class Started(Exception):
    """Workers would be started."""


def test_one_command_does_all_and_again_nothing(folder, weights, tmp_path, monkeypatch):
    monkeypatch.setenv("CURATOR_DASK_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sources, "_CLOCKS", 0)
    config, out = tmp_path / "recipe.yaml", tmp_path / "out"
    config.write_text(CONFIG.replace("checkpoint_path: null", f"checkpoint_path: {weights}"))
    command = ["curate", str(folder), str(out), "--config", str(config), "--cluster", "cpu", "--workers", "1"]
    said, page = tmp_path / "said.json", tmp_path / "page.html"
    monkeypatch.setattr(mapping, "FEW", 1000)  # a map takes longest, and is of the report's own tests
    wrong = CliRunner().invoke(app, [*command, "--report", str(tmp_path / "nowhere" / "page.html")])
    assert wrong.exit_code == 2 and not out.exists(), wrong.output
    result = CliRunner().invoke(app, [*command, "--json", str(said), "--report", str(page)])
    assert result.exit_code == 0, result.output
    before, after = samples_in(folder), samples_in(out / "shards")
    assert {*after} == expected()
    assert 'id="duplicates"' in page.read_text() and "image_width" in page.read_text()
    assert after == {key: before[key] for key in after}
    found = json.loads(said.read_text())
    counts = [found[name] for name in ("rows", "failed", "filtered", "duplicates", "missing", "kept")]
    assert counts == [24, 3, 3, 2, 0, 16]
    assert {*found["steps"]} == {"embeddings", "passing", "duplicates", "shards"}
    beside = pq.read_table(out / "shards" / "00000.parquet")
    assert {"key", "caption", "image_width", "image_embedding"} <= {*beside.column_names} and len(beside) == 7
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")}

    def start(*arguments):
        raise Started

    monkeypatch.setattr(options, "workers_of", start)
    result = CliRunner().invoke(app, [*command, "--json", str(said)])
    assert result.exit_code == 0, result.output
    again = json.loads(said.read_text())
    assert [again[name] for name in ("rows", "failed", "filtered", "duplicates", "missing", "kept")] == counts
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")} == stamps
    assert again["steps"]["embeddings"]["written"] == 0 and len(stamps) == 3
    loaded = []
    monkeypatch.setattr(client, "load_ahead", lambda *arguments: loaded.append(arguments))
    for left, embeds in (
        (lambda text: (out / "shards" / "00000.idx").unlink(), 0),
        (lambda text: config.write_text(text.replace("width, height", "width")), 1),
        (lambda text: weights.touch(), 1),
    ):
        text = config.read_text()
        left(text)
        assert isinstance(CliRunner().invoke(app, command).exception, Started)
        assert len(loaded) == embeds
        loaded.clear()
        config.write_text(text)


def test_without_a_model_rows_are_chosen_by_what_is_there(folder, tmp_path):
    where = "caption like '%2' or caption like '%3'"  # two in each shard
    recipe = Recipe(where=where, at_most={"__url__": 1}, export={"keys": "sequential"})
    summary = curate(folder, tmp_path / "out", recipe)
    assert (summary.rows, summary.failed, summary.filtered, summary.kept) == (24, 0, 21, 3)
    assert [*samples_in(tmp_path / "out/shards")] == ["000000000", "000000001", "000000002"]
    assert "3 of 24 rows" in str(summary)


def test_without_a_model_duplicates_go_by_their_hashes(folder, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "statistics: [width, phash]\nprefix: image_\nwhere: image_width >= 40\n"
        "duplicates: {exact: {image_phash: 4}, keep: [image_width desc, key]}\ntop: {image_width: 1000}"
    )
    summary = curate(folder, tmp_path / "out", Recipe.read(recipe))
    assert {*samples_in(tmp_path / "out/shards")} == expected()
    assert (summary.rows, summary.failed, summary.filtered, summary.duplicates, summary.kept) == (
        24,
        3,
        3,
        2,
        16,
    )


def test_captions_that_come_often_and_images_that_nobody_has_looked_at_go_before_twins_are_found(tmp_path):
    """Else a row that cannot be blurred would stay, and be left out, in the place of one that can be."""
    keys = [f"k{number}" for number in range(8)]
    members = [(f"{key}.jpg", picture(number % 4)) for number, key in enumerate(keys)]
    write_tar(tmp_path / "data/0.tar", members)
    box = [[0.1, 0.1, 0.4, 0.4]]
    boxes = pa.array([None, box, [], box, box, None, box, []], pa.list_(pa.list_(pa.float32())))
    captions = ["often" if number in (0, 2, 6) else f"a {number}" for number in range(8)]
    table = pa.table({"key": keys, "alt": captions, "faces_boxes": boxes})
    pq.write_table(table, tmp_path / "data/0.parquet")
    said = {
        "statistics": ["phash"],
        "same_captions": {"text": "alt"},
        "where": "text_same_captions < 3 -- of the others none says anything",
        "duplicates": {"exact": {"phash": 2}, "keep": ["key"]},
        "export": {"blur": "faces_boxes"},
    }
    summary = curate(tmp_path / "data", tmp_path / "out", Recipe(**said))
    # Of the twins (0, 4), (1, 5), (2, 6), (3, 7) the first would stay.
    assert {*samples_in(tmp_path / "out/shards")} == {"k4", "k1", "k3"}
    found = pq.read_table(tmp_path / "out/embeddings").to_pylist()
    assert [row["text_same_captions"] for row in found] == [captions.count(each) for each in captions]
    counts = ("rows", "failed", "filtered", "duplicates", "missing", "kept")
    assert [getattr(summary, name) for name in counts] == [8, 0, 4, 1, 0, 3]
    again = curate(tmp_path / "data", tmp_path / "out", Recipe(**said))
    assert again.steps["embeddings"].written == again.steps["shards"].written == 0
    with pytest.raises(ConfigError, match=r"there is no column 'caption'. The rows will have"):
        curate(tmp_path / "data", tmp_path / "other", Recipe(same_captions=True))
    with pytest.raises(ConfigError, match=r"same_captions: .*'column'"):
        Recipe(same_captions={"column": "alt"})


def test_a_folder_of_images_with_a_table_of_captions(tmp_path):
    """Beside a tar, too, if the recipe says that the images are meant."""
    data = tmp_path / "data"
    write_tar(data / "other.tar", [("x.jpg", picture(9))])
    rows = ["file_name,caption"]
    for number in range(4):
        (data / f"{number}.jpg").write_bytes(picture(number))
        rows += [f"{number}.jpg,number {number}"]
    (tmp_path / "captions.csv").write_text("\n".join(rows))
    recipe = Recipe(
        images=True,
        captions=str(tmp_path / "captions.csv"),
        where="caption <> 'number 2'",
        export={"caption": "caption"},
    )
    summary = curate(data, tmp_path / "out", recipe)
    assert (summary.rows, summary.kept) == (4, 3)
    assert samples_in(tmp_path / "out/shards") == {
        key: {"jpg": picture(int(key)), "txt": f"number {key}".encode()} for key in "013"
    }
    beside = pq.read_table(tmp_path / "out/shards/00000.parquet")
    assert beside["caption"].to_pylist() == ["number 0", "number 1", "number 3"]
    with pytest.raises(ConfigError, match=r"--captions\): is for image files"):
        curate(data, tmp_path / "other", Recipe(captions="none"))
    for wrong in ({"where": "no > 3"}, {"top": {"no": 0.5}}, {"at_most": {"caption": 1}, "by": "no"}):
        with pytest.raises(ConfigError, match="there is no column 'no'"):
            curate(data, tmp_path / "other", Recipe(images=True, **wrong))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("captions: [a]", "captions=\\['a'\\], images=False: expected txt"),
        ("model: {name: test_vit}", "model: expected text, found {'name': 'test_vit'}"),
        ("where: [a]", "where: expected text"),
        ("model: test_vit\naesthetic: 3", "aesthetic: expected the path of a head's file"),
        ("statistics: {width: 1}", "statistics=.*: expected a list of names"),
        ("modell: test_vit", r"unknown name 'modell' \(did you mean model\?\)\. There are model, "),
        ("- a", "expected names and values, found list"),
        ("a: [", "not a YAML file"),
        ("aesthetic: true", "aesthetic: needs vectors: give a model"),
        ("near: {like: /a}", "near: needs vectors: give a model"),
        ("model: test_vit\nnear: {like: 3}", "near: expected columns and folders"),
        ("clusters: {cluster: /a}", "clusters: needs vectors: give a model"),
        ("at_most: {label: 0}", "at_most: .*expected a column and how many rows"),
        ("at_most: {label: 3}\ntop: {width: 0.5}", "top and at_most: expected one of the two"),
        ("top: {width: 1.5}", "top: width=1.5: expected a column with a share"),
        ("top: {width: 2, height: 2}", "top: .*: expected a column with a share"),
        ("duplicates: {eps: 0.1}", r"duplicates: needs vectors: .*by hashes alone \(exact\)"),
        ("model: test_vit\nmodel_options: {batchsize: 3}", "model_options: .*batchsize"),
        ("model: test_vit\nduplicates: {epsilon: 3}", "duplicates: .*epsilon"),
        ("model: test_vit\nduplicates: {eps: 3}", "eps=3"),
        ("export: {where: a}", r"export: \['where'\] is not given there"),
        ("export: {samples: all}", "export: .*samples.* rows are counted here"),
        ("export: {sample: 3}", "export: .*sample"),
        ("each_image: 3", "each_image=3.*true or false"),
        (
            "export: {maxside: 3}",
            r"export: .*'maxside' \(did you mean max_side.*There are filter_column, .*max_side",
        ),
        (
            "model: test_vit\nduplicates: {embeding_column: a}",
            r"duplicates: .*\(did you mean embedding_column.*There are eps, ",
        ),
        ("balance: {concept: a, most: 3}", r"balance: .*'concept' \(did you mean concepts"),
        (
            "classify: [{model_name: test_vit, clases: {}}]",
            r"'clases' \(did you mean classes.*There are model_name, .*batch_size",
        ),
    ],
)
def test_a_recipe_that_cannot_be(tmp_path, text, message):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        Recipe.read(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("near: {like: FOLDER/nowhere}", "nowhere: no Parquet file is there, nor such a folder"),
        ("near: {like: FOLDER}", "no Parquet file is there, but labels.csv, recipe.yaml"),
        ("join: [{table: FOLDER/no.csv}]", "no.csv: there is no such file"),
        (
            "export: {splits: {val: 0.1}, split_groups: FOLDER/nowhere}",
            "nowhere/duplicates.parquet: is no table of duplicates",
        ),
        ("join: [{table: FOLDER/labels.csv, on: key=id}]", "expected a column 'id' to find rows by"),
        (
            "join: [{table: FOLDER/labels.csv, on: key, columns: [lable]}]",
            "no column 'lable' (did you",
        ),
    ],
)
def test_what_a_recipe_names_is_looked_at_before_workers_start(folder, tmp_path, monkeypatch, text, message):
    """They take seconds to be there."""
    (tmp_path / "labels.csv").write_text("key,label\n000000,a\n")
    config = "model: test_vit\nmodel_options: {pretrained: false}\n"
    (tmp_path / "recipe.yaml").write_text(config + text.replace("FOLDER", str(tmp_path)))

    def start(*arguments):
        raise Started

    monkeypatch.setattr(options, "workers_of", start)
    monkeypatch.setattr(client, "load_ahead", start)
    command = ["curate", str(folder), str(tmp_path / "out"), "--config", str(tmp_path / "recipe.yaml")]
    done = CliRunner().invoke(app, [*command, "--cluster", "cpu", "--workers", "1"])
    assert done.exit_code == 2 and message in " ".join(done.output.split()), done.output
    # What is there starts them.
    (tmp_path / "recipe.yaml").write_text(f"{config}join: [{{table: {tmp_path}/labels.csv, on: key}}]\n")
    done = CliRunner().invoke(app, [*command, "--cluster", "cpu", "--workers", "1"])
    assert isinstance(done.exception, Started)


def test_a_file_that_is_not_there_is_told_with_where_it_was_looked_for(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = "paths are relative to the folder in which the command runs"
    for given, name in (
        ({"balance": {"concepts": "concepts.txt", "most": 3}}, "concepts.txt"),
        ({"balance": {"concepts": "concepts.csv", "most": 3}}, "concepts.csv"),
        ({"join": [{"table": "optout.txt", "mark": "optout"}]}, "optout.txt"),
        ({"model": "test_vit", "near": {"like": "wanted"}}, "wanted"),
        ({"model": "test_vit", "nsfw": "head.pth"}, "head.pth"),
        ({"model": "test_vit", "clusters": {"cluster": "some.safetensors"}}, "some.safetensors"),
    ):
        if "model" in given:
            given["model_options"] = {"pretrained": False}
        with pytest.raises(CuratorError) as caught:
            curate(folder, tmp_path / "out", Recipe(**given))
        assert f"{tmp_path / name}" in str(caught.value) and relative in str(caught.value), caught.value
    with pytest.raises(ConfigError, match=f"at {tmp_path}/recipe.yaml .{relative}"):
        Recipe.read("recipe.yaml")
    with pytest.raises(CuratorError) as caught:  # it says where already
        curate(folder, tmp_path / "out", Recipe(join=[{"table": f"{tmp_path}/no.csv"}]))
    assert relative not in str(caught.value)


def test_a_joined_table_that_has_none_of_the_rows_ends_before_the_export(folder, tmp_path):
    """It was joined by a wrong column. A list that only marks may name none: that is said, and all go on."""
    keys = [f"{shard:03}{sample:03}" for shard in range(SHARDS) for sample in range(SAMPLES)]
    listed, config, out = tmp_path / "optout.txt", tmp_path / "recipe.yaml", tmp_path / "out"
    listed.write_text("".join(f"{key}\n" for key in [*keys[:5], "nobody"]))
    labels = tmp_path / "labels.csv"
    labels.write_text(f"key,label\n{keys[0]},a\n")

    def run(join, where, out, *words):
        config.write_text(f"join: [{{{join}}}]\nwhere: {where}\n")
        command = ["curate", str(folder), str(out), "--config", str(config), "--cluster", "cpu"]
        done = CliRunner().invoke(app, [*command, "--workers", "1", *words])
        return done.exit_code, " ".join(done.output.split())

    code, said = run(f"table: {labels}, on: caption=key", "label is null", out)
    assert code == 1, said
    expected = f"column 'caption' of the rows has 'caption of {keys[0]}', "
    assert f"{labels}: has none of the rows: {expected}" in said and f"of the table '{keys[0]}'. " in said
    assert [each.name for each in out.iterdir()] == ["embeddings"]
    assert pq.read_table(out / "embeddings")["label"].to_pylist() == [None] * len(keys)
    code, said = run(f"table: {listed}, on: caption, mark: optout", "not optout", tmp_path / "all")
    assert code == 0 and f"NONE found: {expected}" in said, said
    assert {*samples_in(tmp_path / "all" / "shards")} == {*keys}
    optout = f"table: {listed}, on: key, mark: optout"
    code, said = run(optout, "not optout", tmp_path / "rest", "--json", str(tmp_path / "said.json"))
    assert code == 0, said
    assert f"joined {listed} on key=key: 5 rows found in the table, 19 without; 1 row of the table" in said
    (joined,) = json.loads((tmp_path / "said.json").read_text())["joined"]
    assert (joined["found"], joined["without"], joined["unasked"], joined["without_key"]) == (5, 19, 1, 0)
    assert {*samples_in(tmp_path / "rest" / "shards")} == {*keys[5:]}


def states(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def test_other_rows_are_refused_before_anything_is_replaced(folder, tmp_path):
    out = tmp_path / "out"
    concepts = tmp_path / "concepts.txt"
    concepts.write_text("caption\n000004")
    first = {"where": "key > '000001'", "balance": {"concepts": str(concepts), "most": 9}}
    kept = curate(folder, out, Recipe(**first)).kept
    before = states(out)
    for other in (
        {**first, "where": "key > '000002'"},
        {**first, "top": {"key_number": 3}},
        {**first, "balance": {**first["balance"], "most": 8}},
        {"where": first["where"]},
    ):
        with pytest.raises(
            OutputError, match=r"shards: is there, and .*chooses other rows; nothing was replaced"
        ):
            curate(folder, out, Recipe(**other))
        assert states(out) == before
    same = {**first, "balance": {**first["balance"], "match_case": False}}
    assert curate(folder, out, Recipe(**same)).kept == kept and states(out) == before
    concepts.write_text("caption\n000005")
    with pytest.raises(OutputError, match="chooses other rows"):
        curate(folder, out, Recipe(**first))
    # Other rows by the same recipe.
    concepts.write_text("caption\n000004")
    table = pq.read_table(out / "embeddings" / "00001.parquet")
    metadata = table.schema.metadata
    pq.write_table(
        table.append_column("more", [range(len(table))]).replace_schema_metadata(metadata),
        out / "embeddings" / "00001.parquet",
    )
    before = states(out / "passing") | states(out / "balanced") | states(out / "shards")
    with pytest.raises(
        OutputError, match=r"shards: is there, and lacks 'more', which embeddings has got since"
    ):
        curate(folder, out, Recipe(**first))
    assert states(out / "passing") | states(out / "balanced") | states(out / "shards") == before
    pq.write_table(table, out / "embeddings" / "00001.parquet")
    with pytest.raises(OutputError, match=r"passing/00001\.parquet: is there, and was made of other rows"):
        curate(folder, out, Recipe(**first))
    assert states(out / "passing") | states(out / "balanced") | states(out / "shards") == before
    shutil.rmtree(out / "shards")  # nothing of another choice is there any more
    assert curate(folder, out, Recipe(where="key > '000002' -- and no comment")).kept == 21


def test_of_duplicates_by_hash_those_go_that_are_worse_now(folder, tmp_path):
    """With the same rows, and with files of which none has passed."""
    out = tmp_path / "out"
    first = {"statistics": ["phash", "bytes"], "duplicates": {"exact": {"phash": 4}, "keep": ["key"]}}
    curate(folder, out, Recipe(**first))
    other = {**first, "duplicates": {**first["duplicates"], "keep": ["key desc"]}}
    assert curate(folder, out, Recipe(**other), overwrite=True).duplicates > 0
    curate(folder, tmp_path / "anew", Recipe(**other))
    assert samples_in(out / "shards") == samples_in(tmp_path / "anew" / "shards")
    assert "002003" in samples_in(out / "shards")
    few = Recipe(**first, where="key like '000%'")
    assert curate(folder, tmp_path / "few", few).kept == len(samples_in(tmp_path / "few" / "shards")) > 0


def test_files_of_an_earlier_recipe_go(folder, tmp_path):
    out, data = tmp_path / "out", tmp_path / "data"
    shutil.copytree(folder, data)
    (tmp_path / "concepts.txt").write_text("caption")
    balance = {"concepts": str(tmp_path / "concepts.txt"), "most": 9}
    curate(data, out, Recipe(statistics=["phash"], balance=balance, duplicates={"exact": {"phash": 4}}))
    assert (out / "balanced" / "00001.parquet").exists() and (
        out / "duplicates" / "duplicates.parquet"
    ).exists()
    other = Recipe(statistics=["phash"])
    assert curate(data, out, other, overwrite=True).kept == 21
    assert not (out / "balanced").exists() and not (out / "duplicates").exists()
    passing = pq.read_table(out / "passing")
    assert "balanced" not in passing.column_names and len(passing) == 21
    # A shard that is gone from the rows is gone from what passes.
    (out / "embeddings" / "00002.parquet").unlink()
    (data / "00002.tar").unlink()
    with pytest.raises(OutputError, match=r"shards: .* of passing/00002.parquet too.*nothing was replaced"):
        curate(data, out, other)
    assert curate(data, out, other, overwrite=True).kept == 14
    assert [path.name for path in sorted((out / "passing").iterdir())] == ["00000.parquet", "00001.parquet"]
    # One that is new is not even embedded: the tars were made without its rows.
    before = states(out)
    write_tar(data / "00003.tar", [("003000.jpg", picture(3000))])
    with pytest.raises(
        OutputError, match=r"was made without embeddings/00003.parquet: .*nothing was replaced"
    ):
        curate(data, out, other)
    assert states(out) == before
    assert curate(data, out, other, overwrite=True).kept == 15


def test_a_reference_in_a_store_is_looked_at_each_time(tmp_path):
    """Its state is not known without opening it: no note may say that nothing has changed."""
    near = {"like": str(tmp_path)}
    assert Recipe(model="test_vit", near=near).sources() is not None
    assert Recipe(model="test_vit", near={**near, "other": "memory://wanted"}).sources() is None


def test_its_help_names_all_that_a_recipe_takes():
    said = CliRunner().invoke(app, ["curate", "--help"], env={"COLUMNS": "300"}).stdout
    (_, told) = said.split("What is done:")
    assert {each.name for each in fields(Recipe)} <= {
        *re.findall(r"\w+", told.partition("duplicates, export.")[0])
    } | {
        "duplicates",
        "export",
    }
