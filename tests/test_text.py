"""Text embedders against transformers' own models, on folders that those have written."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skimage.data
import torch
import transformers
from colours import write_tar
from PIL import Image
from texts import captions, make_pair, transformers_own

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, DatasetError, WeightsError
from curator_dask.frames.columns import list_to_matrix
from curator_dask.image.embedders import ClipImageEmbedder
from curator_dask.models.clip_text import ClipTextSpec
from curator_dask.testing import StepTests
from curator_dask.text import ClipTextEmbedder


@pytest.fixture(autouse=True, scope="module")
def quiet():
    """transformers shows a bar while it saves a model."""
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.enable_progress_bar()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """By kind, a folder and its model."""
    found = {}
    for kind in ("clip", "siglip"):
        folder = tmp_path_factory.mktemp(kind)
        found[kind] = folder, make_pair(folder, kind)
    return found


# Fidelity


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_vectors_are_those_of_transformers(pairs, kind):
    folder, model = pairs[kind]
    texts = captions(200)
    made = ClipTextSpec(str(folder)).build()(texts, 32)
    own = transformers_own(model, folder, texts, kind)
    assert (made.vectors * own).sum(axis=1).min() > 0.99999
    assert np.linalg.norm(made.vectors, axis=1) == pytest.approx(1, abs=1e-6)
    # The oracle tells captions apart, else this would show nothing.
    assert (own[:8] @ own[8:16].T).min() < 0.99
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert made.long.tolist() == [len(tokenizer(text)["input_ids"]) > 20 for text in texts]


def test_long_texts_are_pooled_over_their_pieces(pairs):
    folder, model = pairs["clip"]
    text = next(text for text in captions(40) if len(text.split()) == 77)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = [[1, *ids[start : start + 18], 2] for start in range(0, len(ids), 18)]
    with torch.inference_mode():
        own = [model.get_text_features(torch.tensor([each])).pooler_output[0].numpy() for each in pieces]
    for normalize in (True, False):
        vectors = [each / np.linalg.norm(each) if normalize else each for each in own]
        for how, pool in (("mean", np.mean), ("max", np.max)):
            expected = pool(vectors, axis=0)
            expected = expected / np.linalg.norm(expected) if normalize else expected
            spec = ClipTextSpec(str(folder), long_text=how, normalize=normalize)
            made = spec.build()(["one", text], 4)
            np.testing.assert_allclose(made.vectors[1], expected, atol=2e-5)
            assert made.long.tolist() == [False, True]


def test_the_end_of_a_text_is_found_by_its_number(tmp_path):
    """Older configurations say 2, and transformers takes the largest number; newer ones say which it is."""
    model = make_pair(
        tmp_path, "clip", eos=1
    )  # of these tokenizers the start: each text ends where it begins
    made = ClipTextSpec(str(tmp_path)).build()(captions(20), 8).vectors
    assert (made * transformers_own(model, tmp_path, captions(20), "clip")).sum(axis=1).min() > 0.99999


# In a pass


class TestEmbedText(StepTests):
    @pytest.fixture
    def step(self, pairs):
        return ClipTextEmbedder(pairs["clip"][0]).step("key")

    @pytest.fixture
    def frame(self):
        texts = ["a cat", None, "", " ", "猫が窓のそばの" * 9]
        return pd.DataFrame({"key": list("abcde"), "__url__": "0.tar", "caption": pd.array(texts, "string")})

    def test_rows_without_a_caption_say_why(self, step, frame):
        made = step(frame)
        assert made["text_embedding"].notna().tolist() == [True, False, False, False, True]
        assert made["image_error"].tolist()[1:4] == [
            "no caption: caption is null",
            *["no caption: caption is empty"] * 2,
        ]


def several():
    lists = [["a cat", "a dog"], ["a cat"], [], None, ["", None], ["", "a dog"]]
    return pd.DataFrame(
        {"key": list("abcdef"), "caption": pd.array(lists, pd.ArrowDtype(pa.list_(pa.string())))}
    )


@pytest.mark.parametrize("normalize", [True, False])
def test_of_several_captions_the_vector_is_their_mean(pairs, normalize):
    embedder = ClipTextEmbedder(pairs["clip"][0], normalize_embeddings=normalize)
    made = embedder.step("key")(several())
    one, other = embedder.encoder_spec().build()(["a cat", "a dog"], 2).vectors
    mean = (one + other) / 2
    mean = mean / np.linalg.norm(mean) if normalize else mean
    matrix, valid = list_to_matrix(made["text_embedding"])
    assert valid.tolist() == [True, True, False, False, False, True]
    np.testing.assert_allclose(matrix[valid], [mean, one, other], atol=1e-5)


def test_what_is_no_text_is_refused(pairs):
    frame = pd.DataFrame({"key": ["a"], "caption": [1]})
    with pytest.raises(
        ConfigError, match="text_column='caption': expected text, or lists of text, found int64"
    ):
        ClipTextEmbedder(pairs["clip"][0]).step("key")(frame)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two shards: photographs with captions, one of them with none, one with a long one, one that is no image."""
    folder = tmp_path_factory.mktemp("shards")
    photograph = Image.fromarray(skimage.data.chelsea())
    for shard in range(2):
        members = []
        for number in range(4):
            file = io.BytesIO()
            photograph.rotate(40 * number + shard).resize((60, 40)).save(file, "JPEG")
            broken = number == 3
            members.append((f"{shard}{number}.jpg", b"no image" if broken else file.getvalue()))
            if number != 1:
                text = "a cat " * (30 if number == 2 else 1)
                members.append((f"{shard}{number}.txt", text.encode()))
        write_tar(folder / f"{shard}.tar", members)
    return folder


def test_texts_are_embedded_in_the_pass_over_the_images(pairs, shards, tmp_path, client):
    folder = pairs["clip"][0]
    dataset = ImageTextPairDataset.from_webdataset(shards)
    dataset = ClipTextEmbedder(folder)(ClipImageEmbedder(folder, batch_size=4)(dataset))
    summary = dataset.save_metadata(tmp_path / "out")
    assert {url.rpartition("/")[2]: fact for url, fact in summary.text_truncated.items()} == {
        f"{shard}.tar": {"count": 1, "examples": [f"{shard}2"]} for shard in range(2)
    }
    assert "2 captions longer than their model takes" in str(summary)
    table = pq.read_table(tmp_path / "out" / "0.parquet")
    assert table.schema.field("text_embedding").type == pa.list_(pa.float32(), 24)
    assert table.column("text_embedding").is_valid().to_pylist() == [True, False, True, True]
    assert table.column("image_embedding").is_valid().to_pylist() == [True, True, True, False]
    errors = table.column("image_error").to_pylist()
    assert errors[1] == "[text_embedding] no caption: caption is null" and errors[3].startswith(
        "[image_embedding] "
    )
    again = dataset.save_metadata(tmp_path / "out")
    assert again.written == 0 and again.skipped == 2
    # No pixel is needed for a text: the same dataset without its tars.
    plain = ImageTextPairDataset.from_webdataset(shards)
    alone = ClipTextEmbedder(folder)(plain).metadata.compute()
    assert alone["text_embedding"].notna().tolist() == [True, False, True, True] * 2


def test_arguments_that_cannot_be(pairs, shards):
    folder = pairs["clip"][0]
    for options, message in [
        ({"long_text": "cut"}, "long_text='cut': expected one of truncate, mean, max"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"text_embedding_column": "caption"}, "text_embedding_column='caption': this name is not free"),
    ]:
        with pytest.raises(ConfigError, match=message):
            ClipTextEmbedder(folder, **options)
    with pytest.raises(ConfigError, match="model_name=''"):
        ClipTextEmbedder("")
    with pytest.raises(
        DatasetError, match=r"text_column='title': the metadata has no such column, it has \['key'"
    ):
        ClipTextEmbedder(folder, text_column="title")(ImageTextPairDataset.from_webdataset(shards))


# Folders that cannot be used


def test_folders_that_cannot_be_used(pairs, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(pairs["clip"][0], folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(WeightsError, match=r"the tokenizer cannot be loaded: .*It has tokenizer\.json"):
        ClipTextSpec(str(folder)).build()
    (folder / "config.json").write_text('{"model_type": "clip_vision_model"}')
    with pytest.raises(
        ConfigError, match="model_type 'clip_vision_model'; expected one of clip, clip_text_model"
    ):
        ClipTextSpec(str(folder)).build()
