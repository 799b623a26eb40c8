"""Text states of an export: they are what transformers makes of each caption alone, and each lies with its sample."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from colours import colour_of, write_tar
from encoders import by_transformers, write_encoder
from PIL import Image
from safetensors.torch import load_file, save_file
from test_buckets import samples_in
from test_smaller import saved
from texts import captions
from typer.testing import CliRunner

from curator_dask.cli import app
from curator_dask.curation import Recipe, curate
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, OutputError, WeightsError
from curator_dask.models.text_states import TextStatesSpec
from curator_dask.outputs.text_states import TextStates

pytestmark = pytest.mark.usefixtures("in_this_process")

KEYS = [f"{number:05d}" for number in range(24)]
TEXTS = dict(zip(KEYS, captions(len(KEYS), 30), strict=True))


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    return {kind: write_encoder(folder / kind, kind) for kind in ("t5", "clip", "gemma")}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for shard in range(2):
        members = []
        for key in KEYS[shard::2]:
            image = saved(Image.new("RGB", (20, 20), colour_of(key)), "PNG")
            members += [(f"{key}.png", image), (f"{key}.txt", TEXTS[key].encode())]
        write_tar(folder / f"{shard:05d}.tar", members)
    return folder


@pytest.fixture
def dataset(data):
    return ImageTextPairDataset.from_webdataset(data)


def arrays_in(folder, suffix):
    return {
        key.rpartition("/")[2]: np.load(io.BytesIO(members[suffix]), allow_pickle=False)
        for key, members in samples_in(folder).items()
    }


def close(found, wanted, size):
    """To rounding; of float16 to its own."""
    assert found.shape == tuple(wanted.shape)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 if size == "float32" else 5e-3)


def test_they_are_those_of_transformers_and_each_lies_with_its_caption(encoders, dataset, tmp_path):
    given = [
        {"model": str(encoders["t5"]), "name": "t5", "max_length": 12, "stored": "float32", "batch_size": 5},
        {"model": str(encoders["clip"]), "name": "clip", "padded": True, "pooled": True, "layer": -2},
        {"model": str(encoders["gemma"]), "name": "gemma", "max_length": 16, "stored": "float32"},
    ]
    summary = dataset.to_webdataset(tmp_path / "out", text_states=given, shuffle=3, samples_per_shard=7)
    assert (summary.kept, summary.written) == (len(KEYS), 4)
    names = ("t5.npy", "clip.npy", "clip_pooled.npy", "gemma.npy")
    assert {name: summary.fields[name] for name in names} == dict.fromkeys(names, len(KEYS))
    found = {name: arrays_in(tmp_path / "out", name) for name in names}
    lengths = set()
    for key, text in TEXTS.items():
        close(found["t5.npy"][key], by_transformers(encoders["t5"], text, 12, False)[0], "float32")
        close(found["gemma.npy"][key], by_transformers(encoders["gemma"], text, 16, False)[0], "float32")
        states, pooled = by_transformers(encoders["clip"], text, 20, True, -2)
        close(found["clip.npy"][key], states, "float16")
        close(found["clip_pooled.npy"][key], pooled, "float16")
        lengths.add(len(found["t5.npy"][key]))
    assert len(lengths) > 3 and max(lengths) == 12  # some were cut, none was padded
    for key, members in samples_in(tmp_path / "out").items():
        assert members["txt"].decode() == TEXTS[key.rpartition("/")[2]]
    empty = np.load(tmp_path / "out" / "t5.empty.npy")
    close(empty, by_transformers(encoders["t5"], "", 12, False)[0], "float32")
    assert np.load(tmp_path / "out" / "clip_pooled.empty.npy").shape == (16,)
    said = json.loads((tmp_path / "out" / "text_states.json").read_text())["encoders"]
    assert [each["source"] for each in said] == ["text_encoder"] * 3 and said[1]["layer"] == -2
    assert [each["dim"] for each in said] == [32] * 3 and all(len(each["weights"]) == 64 for each in said)
    assert str(tmp_path) not in (tmp_path / "out" / "text_states.json").read_text()

    before = {path: path.read_bytes() for path in (tmp_path / "out").glob("*.tar")}
    again = dataset.to_webdataset(tmp_path / "out", text_states=given, shuffle=3, samples_per_shard=7)
    assert again.written == 0 and again.fields["t5.npy"] == len(KEYS)
    next(iter(before)).unlink()
    dataset.to_webdataset(tmp_path / "out", text_states=given, shuffle=3, samples_per_shard=7)
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").glob("*.tar")}
    # Others take their place, and what is said of them.
    dataset.to_webdataset(tmp_path / "out", shuffle=3, samples_per_shard=7, overwrite=True)
    assert not [
        path for path in (tmp_path / "out").iterdir() if "empty" in path.name or "states" in path.name
    ]
    assert "t5.npy" not in next(iter(samples_in(tmp_path / "out").values()))


def test_what_is_added_is_of_the_same_encoder(encoders, data, dataset, tmp_path):
    given = {"model": str(encoders["t5"]), "max_length": 12}
    dataset.to_webdataset(tmp_path / "out", text_states=given)
    members = [("new.png", saved(Image.new("RGB", (9, 9)), "PNG")), ("new.txt", b"a caption that is new")]
    write_tar(tmp_path / "more" / "00002.tar", members)
    more = ImageTextPairDataset.from_webdataset(tmp_path / "more")
    for other in (
        {**given, "max_length": 13},
        {**given, "model": str(write_encoder(tmp_path / "o", "t5", 1))},
    ):
        with pytest.raises(OutputError, match="text states of its tars were made otherwise"):
            more.to_webdataset(tmp_path / "out", text_states=other, append=True)
    with pytest.raises(OutputError, match="text_states"):
        more.to_webdataset(tmp_path / "out", append=True)
    summary = more.to_webdataset(tmp_path / "out", text_states=given, append=True)
    assert (summary.written, len(arrays_in(tmp_path / "out", "text_states.npy"))) == (1, len(KEYS) + 1)


def test_by_command_and_recipe(encoders, data, tmp_path):
    given = {"model": str(encoders["clip"]), "name": "clip", "column": "caption"}
    command = ["export", str(data), str(tmp_path / "out"), "--text-states", json.dumps(given), "--card"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    states = arrays_in(tmp_path / "out", "clip.npy")
    close(states["00005"], by_transformers(encoders["clip"], TEXTS["00005"], 20, False)[0], "float16")
    assert "`.clip.npy`: states of the text in `caption`" in (tmp_path / "out" / "README.md").read_text()
    recipe = Recipe(text_statistics=["words"], where="text_words >= 2", export={"text_states": given})
    curate(data, tmp_path / "curated", recipe)
    assert {*arrays_in(tmp_path / "curated" / "shards", "clip.npy")} == {
        key for key, text in TEXTS.items() if len(text.split()) >= 2
    }


@pytest.mark.parametrize(
    "given, said",
    [
        ({"model": ""}, "expected a text encoder"),
        ({"model": "x", "tokens": 3}, "there is no 'tokens'"),
        ({"model": "x", "max_length": 1}, "max_length"),
        ({"model": "x", "layer": 0}, "layer"),
        ({"model": "x", "stored": "bfloat16"}, "stored"),
        ({"model": "x", "name": "../x"}, "name="),
        ({"model": "x", "batch_size": 0}, "batch_size"),
        ([{"model": "x"}, {"model": "y"}], "give each a name"),
        (
            [{"model": "x", "name": "a", "pooled": True}, {"model": "y", "name": "a_pooled"}],
            "give each a name",
        ),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_loaded(given, said):
    with pytest.raises(ConfigError, match=said):
        TextStates.all_of(given)


def test_what_does_not_fit_is_told(encoders, dataset, tmp_path):
    t5, clip = str(encoders["t5"]), str(encoders["clip"])
    for given, said in (
        ({"model": t5}, "120 for PixArt-alpha"),
        ({"model": t5, "max_length": 12, "pooled": True}, "no vector of a whole caption"),
        ({"model": clip, "max_length": 21}, "has 20 positions"),
        ({"model": t5, "max_length": 12, "column": "alt"}, "alt"),
        ({"model": clip, "layer": -9}, "cannot make states of a text, of layer -9"),
    ):
        with pytest.raises(ConfigError, match=said):
            dataset.to_webdataset(tmp_path / "out", text_states=given)
    with pytest.raises(ConfigError, match="shard_bytes"):
        dataset.to_webdataset(tmp_path / "out", text_states=clip, shard_bytes=10_000)
    with pytest.raises(ConfigError, match="is of tars"):
        dataset.to_webdataset(tmp_path / "out", text_states=clip, format="parquet")
    dataset.to_webdataset(tmp_path / "once", text_states=clip)
    again = ImageTextPairDataset.from_webdataset(tmp_path / "once")
    with pytest.raises(ConfigError, match=r"have a member \.text_states\.npy already"):
        again.to_webdataset(tmp_path / "twice", text_states=clip)


def test_weights_that_are_not_whole_and_states_that_are_not_finite(dataset, tmp_path):
    folder = write_encoder(tmp_path / "t5", "t5")
    path = folder / "model.safetensors"
    whole = load_file(path)
    spec, _ = TextStatesSpec(str(folder), max_length=12).known()
    name = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
    save_file({each: value for each, value in whole.items() if each != name}, path, {"format": "pt"})
    with pytest.raises(WeightsError, match=f"lack 1 tensors of T5EncoderModel: {name}"):
        TextStatesSpec(str(folder), max_length=12).build()
    with pytest.raises(WeightsError, match="expected weights with SHA-256"):
        spec.build()
    save_file(
        whole | {"encoder.final_layer_norm.weight": whole[name].new_full((32,), 1e6)}, path, {"format": "pt"}
    )
    summary = dataset.to_webdataset(tmp_path / "out", text_states={"model": str(folder), "max_length": 12})
    (why,) = {*summary.failed_shards.values()}
    assert "not finite: a state has the value" in why and "stored='float32'" in why and "text_states" in why
