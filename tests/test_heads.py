"""Heads on vectors: read safely, equal to plain torch, put on no vectors but their own, and never in a row's place."""

from __future__ import annotations

import functools
import http.server
import itertools
import json
import os
import pickle
import signal
import threading
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from colours import ColourReader, colour_of, write_dataset
from safetensors.torch import save_file
from test_cli import run_here

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.decode.chunks import ChunkDecoder
from curator_dask.errors import ConfigError, DatasetError, OutputError, WeightsError
from curator_dask.frames.parquet import read_record, write_table
from curator_dask.frames.record import FileRecord
from curator_dask.image.classifiers import (
    AestheticClassifier,
    HeadClassifier,
    ImageClassifier,
    NsfwClassifier,
    score_output,
)
from curator_dask.image.statistics import ImageStatistics
from curator_dask.models import head_files
from curator_dask.models.downloads import HubFile
from curator_dask.models.families import OPENAI_B32, OPENAI_L14
from curator_dask.models.head_files import PackedHead, digest_of_tensors
from curator_dask.models.heads import Head, digest_of, load_head
from curator_dask.testing import StepTests

REAL = Path(os.environ.get("CURATOR_DASK_TEST_WEIGHTS") or Path(__file__).parents[2] / "shared" / "weights")
needs_real = pytest.mark.skipif(
    not (REAL / "README.md").is_file(),
    reason="needs LAION's heads: CURATOR_DASK_TEST_WEIGHTS, or ../shared/weights",
)
L14 = {
    "model": "vit_large_patch14_clip_quickgelu_224",
    "source": "vit_large_patch14_clip_quickgelu_224.openai",
    "weights": "sha256:0",
    "transform": "any",
    "output": "projected",
    "dim": 768,
    "dtype": "float32",
    "normalized": True,
}
TOWER = (
    "CLIPVisionModelWithProjection image_size=224 patch_size=14 hidden_size=1024 intermediate_size=4096"
    " num_hidden_layers=24 num_attention_heads=16 hidden_act=quick_gelu layer_norm_eps=1e-05"
)


# What heads are, in plain torch


class PlainAesthetic(torch.nn.Module):
    """As LAION's has it, with dropout between."""

    def __init__(self, dim=768):
        super().__init__()
        sizes = [dim, 1024, 128, 64, 16, 1]
        linear = [torch.nn.Linear(*each) for each in itertools.pairwise(sizes)]
        drop = torch.nn.Dropout
        self.layers = torch.nn.Sequential(
            linear[0], drop(0.2), linear[1], drop(0.2), linear[2], drop(0.1), linear[3], linear[4]
        )

    def forward(self, vectors):
        return self.layers(vectors)


class PlainNsfw(torch.nn.Module):
    """As Keras computes it: a variance of two millions, and one of nothing."""

    def __init__(self, dim=768):
        super().__init__()
        sizes = [dim, 64, 512, 256, 1]
        self.norm = torch.nn.Module()
        self.norm.register_buffer("mean", torch.randn(dim) / 30)
        variance = torch.rand(dim) / 700
        variance[:2] = torch.tensor([2_009_215.0, 0.0])
        self.norm.mean[1] = 0
        self.norm.register_buffer("variance", variance)
        for number, pair in enumerate(itertools.pairwise(sizes), 1):
            setattr(self, f"linear_{number}", torch.nn.Linear(*pair))

    def forward(self, vectors):
        deviation = torch.maximum(torch.sqrt(self.norm.variance), torch.tensor(1e-7))
        made = (vectors - self.norm.mean) / deviation
        for linear in (self.linear_1, self.linear_2, self.linear_3):
            made = torch.relu(linear(made))
        return torch.sigmoid(self.linear_4(made))


FORMS = {
    "aesthetic": PlainAesthetic,
    "nsfw": PlainNsfw,
    "linear": functools.partial(torch.nn.Linear, 768, 1),
}


def plain(form):
    torch.manual_seed(7)
    return FORMS[form]().eval()


def saved(folder, form, end=".pth"):
    """The head in a file, as it is published."""
    path = Path(folder) / f"{form}{end}"
    tensors = plain(form).state_dict()
    save_file(tensors, path) if end == ".safetensors" else torch.save(tensors, path)
    return path


def vectors_of(rows, dim=768, seed=1):
    matrix = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    matrix[:, 1] = 0  # that of which the NSFW head has seen no other value
    return matrix


@functools.cache
def expected(form, rows, seed=1):
    with torch.inference_mode():
        return plain(form)(torch.from_numpy(vectors_of(rows, seed=seed))).reshape(-1).numpy()


def write_vectors(folder, info=L14, files=2, rows=30, lacking=(3,)):
    """An output as embed writes it, without the shards that it was made of; its vectors by their number."""
    for file in range(files):
        matrix = vectors_of(rows, seed=file)
        table = pa.table(
            {
                "key": [f"{file:05d}{row:04d}" for row in range(rows)],
                "__url__": [f"/no/such/{file:05d}.tar"] * rows,
                "image_embedding": pa.FixedSizeListArray.from_arrays(
                    pa.array(matrix.reshape(-1)),
                    768,
                    mask=pa.array([row in lacking for row in range(rows)], pa.bool_()),
                ),
                "image_error": ["empty (0 bytes)" if row in lacking else None for row in range(rows)],
            }
        )
        record = FileRecord(
            "f", "f", id_col="key", embeddings={} if info is None else {"image_embedding": info}
        )
        write_table(str(folder / f"{file:05d}.parquet"), table, record)
    return folder


def check_scores(folder, column, form, lacking=(3,), rows=30):
    """Every row has the score of its own vector; the others none."""
    paths = sorted(Path(folder).glob("*.parquet"))
    assert paths
    for seed, path in enumerate(paths):
        table = pq.read_table(path)
        scores = table[column].to_pylist()
        for row, score in enumerate(scores):
            if row in lacking:
                assert score is None
            else:
                assert score == pytest.approx(expected(form, rows, seed)[row], abs=1e-5), (path, row)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("end", [".pth", ".safetensors"])
def test_a_head_gives_what_plain_torch_does(tmp_path, form, end):
    head = load_head(saved(tmp_path, form, end))
    assert (head.form, head.dim) == (form, 768)
    with torch.inference_mode():
        made = head(torch.from_numpy(vectors_of(100))).reshape(-1).numpy()
    np.testing.assert_allclose(made, expected(form, 100), atol=1e-5)
    assert np.ptp(made) > 1e-3


def test_a_head_in_half_precision_is_computed_in_float32(tmp_path):
    save_file(
        {name: each.half() for name, each in plain("linear").state_dict().items()}, tmp_path / "h.safetensors"
    )
    made = load_head(tmp_path / "h.safetensors")(torch.from_numpy(vectors_of(9))).reshape(-1)
    assert made.dtype == torch.float32
    np.testing.assert_allclose(made, expected("linear", 9), atol=1e-3)


# Files that are none


class Runs:
    """Would write a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


BROKEN = {
    "cut.pth": (
        lambda path: path.write_bytes(saved(path.parent, "aesthetic").read_bytes()[:100_000]),
        "cut off",
    ),
    "cut.safetensors": (
        lambda path: path.write_bytes(saved(path.parent, "linear", ".safetensors").read_bytes()[:-5]),
        "cut off",
    ),
    "empty.pth": (lambda path: path.write_bytes(b""), r"\(0 bytes\)"),
    "page.pth": (lambda path: path.write_bytes(b"\n<!DOCTYPE html><html>GitHub</html>"), "is a web page"),
    "page.safetensors": (lambda path: path.write_bytes(b"<html>"), "is a web page"),
    "code.pth": (
        lambda path: torch.save({"weight": Runs(path.parent / "run")}, path),
        "the code of posix.mkdir",
    ),
    "pickle.pth": (
        lambda path: path.write_bytes(pickle.dumps(Runs(path.parent / "run"), 2)),
        "a pickle of something",
    ),
    "module.pth": (lambda path: torch.save(torch.nn.Linear(3, 1), path), "state_dict"),
    "list.pth": (lambda path: torch.save([torch.zeros(3)], path), "found list"),
    "shape.pth": (
        lambda path: torch.save(torch.nn.Linear(768, 2).state_dict(), path),
        r"found weight \[2, 768\]",
    ),
    "names.pth": (lambda path: torch.save({"w": torch.zeros(1, 3)}, path), r"found w \[1, 3\]"),
    "nan.pth": (
        lambda path: torch.save({"weight": torch.full((1, 3), torch.nan), "bias": torch.zeros(1)}, path),
        "NaN",
    ),
    "absent.pth": (lambda path: None, "every worker"),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_no_head_is_refused_and_says_why(tmp_path, name):
    make, why = BROKEN[name]
    path = tmp_path / name
    make(path)
    with pytest.raises(WeightsError, match=why) as caught:
        load_head(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 700
    assert not (tmp_path / "run").exists()


def test_a_head_of_another_kind_is_refused_by_the_class_that_is_not_for_it(tmp_path):
    for classifier in (
        NsfwClassifier(model_path=saved(tmp_path, "aesthetic")),
        AestheticClassifier(model_path=saved(tmp_path, "nsfw")),
    ):
        with pytest.raises(WeightsError, match="HeadClassifier for any"):
            classifier.load_model(torch.device("cpu"))


# Which vectors


@pytest.mark.parametrize(
    ("info", "difference"),
    [
        ({}, None),
        ({"source": "hf-hub:timm/vit_large_patch14_clip_224.openai"}, None),
        ({"source": "local-dir:/models/clip"}, None),
        ({"model": TOWER, "source": "openai/clip-vit-large-patch14"}, None),
        ({"model": TOWER, "source": "/models/clip"}, None),
        # 768 values each, and of no use
        ({"source": "vit_large_patch14_clip_quickgelu_224.dfn2b"}, "weights 'dfn2b' are not"),
        ({"source": "vit_large_patch14_clip_quickgelu_224"}, "weights 'dfn2b' are not"),  # timm's default
        ({"source": "hf-hub:apple/DFN2B-CLIP-ViT-L-14"}, "another model"),
        ({"source": f"{L14['source']} with random weights"}, "with random weights, not OpenAI"),
        ({"model": "vit_large_patch14_clip_224", "source": "vit_large_patch14_clip_224.openai"}, "QuickGELU"),
        (
            {"model": TOWER.replace("quick_gelu", "gelu"), "source": "laion/x"},
            "hidden_act gelu, not quick_gelu",
        ),
        ({"model": TOWER, "source": "someone/finetuned-clip"}, "someone/finetuned-clip is another model"),
        ({"model": TOWER.replace("image_size=224", "image_size=336")}, "image_size 336, not 224"),
        (
            {"model": "vit_base_patch32_clip_quickgelu_224", "output": "pooled"},
            "another model; the pooled output",
        ),
        ({"output": "pooled", "dim": 1024}, "pooled output is not the projected one; its vectors have 1024"),
        ({"normalized": False}, "not of length 1"),
        ({"model": "Mine() [code 0]", "source": "mine", "output": "model"}, "is another model"),
    ],
)
def test_vectors_of_another_model_are_told_by_their_record(info, difference):
    said = "; ".join(OPENAI_L14.differences({**L14, **info}))
    assert said == "" if difference is None else difference in said


def test_each_published_head_is_for_its_own_model(tmp_path):
    torch.save(torch.nn.Linear(512, 1).state_dict(), tmp_path / "b32.pth")
    torch.save(torch.nn.Linear(1280, 1).state_dict(), tmp_path / "other.pth")
    assert AestheticClassifier(model_path=saved(tmp_path, "aesthetic")).vectors == OPENAI_L14
    assert NsfwClassifier(model_path=saved(tmp_path, "nsfw")).vectors == OPENAI_L14
    assert AestheticClassifier(model_path=tmp_path / "b32.pth").vectors == OPENAI_B32
    with pytest.raises(WeightsError, match="HeadClassifier"):
        _ = AestheticClassifier(model_path=tmp_path / "other.pth").vectors


@pytest.mark.parametrize("info", [{**L14, "source": "vit_large_patch14_clip_quickgelu_224.dfn2b"}, None])
def test_the_wrong_vectors_are_refused_before_anything_is_written(tmp_path, in_this_process, info):
    out = write_vectors(tmp_path / "out", info)
    before = [path.read_bytes() for path in sorted(out.glob("*"))]
    head = saved(tmp_path, "aesthetic")
    with pytest.raises(ConfigError) as caught:
        score_output(out, [AestheticClassifier(model_path=head)])
    for part in (
        "OpenAI's CLIP ViT-L/14",
        "image_embedding",
        "dfn2b" if info else "nothing says",
        "check=False",
    ):
        assert part in str(caught.value)
    assert [path.read_bytes() for path in sorted(out.glob("*"))] == before
    score_output(out, [AestheticClassifier(model_path=head, check=False)])
    check_scores(out, "aesthetic_score", "aesthetic")
    assert read_record(str(out / "00000.parquet")).scores["aesthetic_score"]["checked"] is False


def test_vectors_that_are_made_in_the_same_run_are_looked_at_too(tmp_path, in_this_process):
    write_dataset(tmp_path / "data", 1, 3)
    dataset = ColourReader()(ImageTextPairDataset.from_webdataset(tmp_path / "data"))
    scored = AestheticClassifier(model_path=saved(tmp_path, "aesthetic"))(dataset)
    for run in (scored.compute, lambda: scored.save_metadata(tmp_path / "out")):
        with pytest.raises(ConfigError, match=r"has those of ColourReader.*not normalised, 3 values"):
            run()
    assert not list((tmp_path / "out").glob("*.parquet"))


def test_files_of_two_models_are_not_scored_as_one(tmp_path, in_this_process):
    out = write_vectors(tmp_path / "out", files=1)
    write_vectors(tmp_path / "other", {**L14, "weights": "sha256:1"}, files=1)
    (tmp_path / "other" / "00000.parquet").rename(out / "00001.parquet")
    with pytest.raises(DatasetError, match="is not of one model"):
        score_output(out, [HeadClassifier(saved(tmp_path, "linear"), "x")])


# Scores


class Probe(ImageClassifier):
    """A head of a user's own: whether an image is redder than a limit."""

    def __init__(self, path, limit=100.0, **settings):
        super().__init__("probe", pred_column="red", pred_type=bool, embedding_size=3, **settings)
        self.path, self.limit = str(path), limit

    def load_model(self, device):
        weights = torch.load(self.path, map_location=device, weights_only=True)
        return lambda vectors: vectors @ weights["weight"].T

    def postprocess(self, series):
        return series > self.limit


def red_head(folder, channel=0):
    path = Path(folder) / "red.pth"
    torch.save({"weight": torch.eye(3)[[channel]], "bias": torch.zeros(1)}, path)
    return path


BAD = {"000000001": b"", "000010003": b"GIF"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads") / "data"
    write_dataset(folder, 2, 8, bad=BAD)
    return folder


@pytest.fixture(scope="module")
def red(tmp_path_factory):
    return red_head(tmp_path_factory.mktemp("red"), channel=2)


def dataset_of(folder):
    return ImageTextPairDataset.from_webdataset(folder)


def check_red(frame, column="red"):
    """Every row of a pandas frame has the blue of its own key; the bad ones nothing."""
    assert len(frame) == 16
    for key, score in zip(frame["key"], frame[column], strict=True):
        assert pd.isna(score) == (key in BAD)
        assert key in BAD or abs(score - colour_of(key)[2]) < 0.6


class TestHead(StepTests):
    @pytest.fixture
    def step(self, folder, red):
        return HeadClassifier(red, "red")(ColourReader()(dataset_of(folder))).steps[-1]

    @pytest.fixture
    def frame(self, folder, in_this_process):
        return ColourReader()(dataset_of(folder)).metadata.partitions[0].compute()


class TestProbe(TestHead):
    @pytest.fixture
    def step(self, folder, red):
        return Probe(red)(ColourReader()(dataset_of(folder))).steps[-1]


def test_heads_score_in_the_pass_that_embeds(folder, red, tmp_path, in_this_process, monkeypatch):
    decoded, admit = [], ChunkDecoder.admit
    monkeypatch.setattr(
        ChunkDecoder,
        "admit",
        lambda self, chunk, row, data: (decoded.append(row), admit(self, chunk, row, data))[1],
    )
    heads = [HeadClassifier(red, "red"), HeadClassifier(red_head(tmp_path), "green")]
    embedder = ColourReader(classifiers=heads)
    summary = embedder(dataset_of(folder)).save_metadata(tmp_path / "out")
    table = pq.read_table(tmp_path / "out")
    assert len(decoded) == 16 and (summary.rows, summary.failed) == (16, 2)
    assert summary.reasons == {"empty": 1, "not an image": 1}
    check_red(table.to_pandas())
    plainly = ColourReader()(dataset_of(folder))
    plainly.save_metadata(tmp_path / "plain")
    before = pq.read_table(tmp_path / "plain")
    assert all(table[name].equals(before[name]) for name in before.column_names)
    assert embedder(dataset_of(folder)).save_metadata(tmp_path / "out").skipped == 2
    # Heads are no part of what made the vectors: other settings of them embed nothing again.
    record = read_record(str(tmp_path / "out" / "00000.parquet"))
    assert record.embeddings == read_record(str(tmp_path / "plain" / "00000.parquet")).embeddings
    assert set(record.scores) == {"red", "green"} == set(record.derived)
    embedder(dataset_of(folder)).save_metadata(tmp_path / "plain")
    assert len(decoded) == 32
    check_red(pq.read_table(tmp_path / "plain").to_pandas())


def test_a_score_stays_with_its_own_vector_alone(folder, red, tmp_path, in_this_process):
    """Beside another model's column scores are kept: not for rows that are new, nor for vectors made anew."""
    out = tmp_path / "out"
    heads = [HeadClassifier(red, "red", check=False), HeadClassifier(red, "other", "b", check=False)]
    even = dataset_of(folder).filter("cast(key[-1:] as int) % 2 = 0")
    ColourReader()(even).save_metadata(out)
    ColourReader(image_embedding_column="b")(even).save_metadata(out)
    assert score_output(out, heads).written == 2
    summary = ColourReader()(dataset_of(folder)).save_metadata(out)
    assert {name for fact in summary.not_made.values() for name in fact["examples"]} == {"b", "red"}
    ColourReader(image_embedding_column="b")(dataset_of(folder)).save_metadata(out)
    assert score_output(out, heads).written == 2
    for column in ("red", "other"):
        check_red(pq.read_table(out).to_pandas(), column)
    assert not read_record(str(out / "00000.parquet")).remarks.get("not-made")
    assert score_output(out, heads).written == 0

    ColourReader(normalize_embeddings=True)(dataset_of(folder)).save_metadata(out, overwrite=True)
    table = pq.read_table(out)
    for vector, score in zip(table["image_embedding"].to_pylist(), table["red"].to_pylist(), strict=True):
        assert score is None or score == vector[2]
    check_red(table.to_pandas(), "other")
    assert score_output(out, heads, overwrite=True).written == 2
    table = pq.read_table(out)
    for vector, score in zip(table["image_embedding"].to_pylist(), table["red"].to_pylist(), strict=True):
        assert score == (None if vector is None else pytest.approx(vector[2], abs=1e-5))


def test_classifiers_of_an_embedder_are_for_its_column(red):
    with pytest.raises(ConfigError, match="scores 'other'"):
        ColourReader(classifiers=[HeadClassifier(red, "red", "other")])
    with pytest.raises(ConfigError, match="expected classifiers"):
        ColourReader(classifiers=[HeadClassifier])


def test_a_head_of_ones_own(folder, red, tmp_path, in_this_process):
    embedded = ColourReader()(dataset_of(folder))
    frame = Probe(red, 20.0, batch_size=3)(embedded).compute()
    assert frame["red"].dtype == "bool[pyarrow]"
    for key, score in zip(frame["key"], frame["red"], strict=True):
        assert key in BAD or bool(score) == (colour_of(key)[2] > 20)
    # Another limit, or another file of the same name, is another head.
    mine = red_head(tmp_path, 2)
    embedded.save_metadata(tmp_path / "out")
    assert score_output(tmp_path / "out", [Probe(mine, 20.0)]).written == 2
    assert score_output(tmp_path / "out", [Probe(mine, 20.0)]).written == 0
    with pytest.raises(OutputError, match="by the head probe"):
        score_output(tmp_path / "out", [Probe(mine, 21.0)])
    red_head(tmp_path, 0)
    assert score_output(tmp_path / "out", [Probe(mine, 20.0)], overwrite=True).written == 2


class Labels(Probe):
    def __init__(self, path):
        super().__init__(path)
        self.pred_type = str

    def postprocess(self, series):
        return series.map(lambda score: "red" if score > 20 else "not")


def test_scores_may_become_words(folder, red, in_this_process):
    frame = Labels(red)(ColourReader()(dataset_of(folder))).compute()
    for key, label in zip(frame["key"], frame["red"], strict=True):
        assert key in BAD or label == ("red" if colour_of(key)[2] > 20 else "not")


class Odd(Probe):
    """Fails in one of several ways."""

    def load_model(self, device):
        return {
            "raises": lambda vectors: 1 / 0,
            "several": lambda vectors: vectors,
            "squeezed": lambda vectors: vectors[:, 0].squeeze(),
            "not finite": lambda vectors: torch.where(vectors[:, 2] > 20, torch.nan, -torch.inf),
        }[self.limit]

    def postprocess(self, series):
        return series


def test_a_head_that_raises_costs_its_shard_and_says_so(folder, red, tmp_path, in_this_process):
    summary = Odd(red, "raises")(ColourReader()(dataset_of(folder))).save_metadata(tmp_path / "out")
    assert len(summary.failed_shards) == 2
    for reason in summary.failed_shards.values():
        assert reason.startswith("Odd probe: the head failed on vectors [7, 3]: ZeroDivisionError")


def test_a_head_of_several_scores_is_refused(folder, red, in_this_process):
    with pytest.raises(ConfigError, match="expected one score a vector"):
        Odd(red, "several")(ColourReader()(dataset_of(folder))).compute()


def test_a_head_that_squeezes_a_batch_of_one(folder, red, in_this_process):
    head = Odd(red, "squeezed", batch_size=1)
    head.pred_type = float
    frame = head(ColourReader()(dataset_of(folder))).compute()
    assert frame["red"].isna().sum() == 2


def test_a_score_is_finite_or_null_with_a_reason(folder, red, tmp_path, in_this_process):
    embedded = ColourReader()(dataset_of(folder))
    head = Odd(red, "not finite")
    head.pred_type = float
    summary = head(embedded).save_metadata(tmp_path / "out")
    table = pq.read_table(tmp_path / "out")
    assert table["red"].null_count == 16 and table["image_embedding"].null_count == 2
    assert summary.reasons == {"not finite (red)": 14, "empty": 1, "not an image": 1}
    # A further head loses no reason, and has none of its own.
    more = score_output(tmp_path / "out", [HeadClassifier(red, "fine")])
    assert more.reasons == more.earlier == {"not finite (red)": 14, "empty": 1, "not an image": 1}
    assert "failed rows" not in str(more) and " x " not in str(more) and more.complete
    line = "16 rows had failed in an earlier run: 14 not finite (red), 1 empty, 1 not an image"
    assert f"  {line}" in str(more).splitlines()
    again = pq.read_table(tmp_path / "out")
    check_red(again.to_pandas(), "fine")
    for key, before, after in zip(
        *(each.to_pylist() for each in (table["key"], table["image_error"], again["image_error"])),
        strict=True,
    ):
        assert before == after if key not in BAD else before in after
    # One that fails by itself says so, and how many had failed before.
    odd = Odd(red, "not finite")
    odd.pred_column, odd.pred_type = "odd", float
    both = score_output(tmp_path / "out", [odd])
    assert both.reasons == {"not finite (odd)": 14, "empty": 1, "not an image": 1}
    assert both.earlier == {"empty": 1, "not an image": 1}
    assert "; 14 failed rows" in str(both) and "  14 x not finite (odd), for example" in str(both)
    assert "  2 other rows had failed in an earlier run: 1 empty, 1 not an image" in str(both)


# Vectors that are there already


def test_scores_are_added_to_an_output_and_nothing_else_changes(tmp_path, in_this_process, monkeypatch):
    """No tar is there to be opened. A second run does nothing, a further head only itself."""
    out = write_vectors(tmp_path / "out")
    before = pq.read_table(out)
    aesthetic = AestheticClassifier(model_path=saved(tmp_path, "aesthetic"))
    nsfw = NsfwClassifier(model_path=saved(tmp_path, "nsfw", ".safetensors"))
    linear = HeadClassifier(saved(tmp_path, "linear"), "mine")
    called, call = [], Head.__call__
    monkeypatch.setattr(
        Head, "__call__", lambda self, vectors: (called.append(self.form), call(self, vectors))[1]
    )
    summary = score_output(out, [aesthetic, nsfw])
    assert (summary.rows, summary.failed, summary.written, summary.skipped) == (60, 2, 2, 0)
    assert set(called) == {"aesthetic", "nsfw"}
    called.clear()
    summary = score_output(out, [aesthetic, nsfw])
    assert (summary.written, summary.skipped, summary.rows_before, called) == (0, 2, 60, [])
    summary = score_output(out, [aesthetic, nsfw, linear])
    assert (summary.written, set(called)) == (2, {"linear"})
    table = pq.read_table(out)
    assert table.column_names[-4:] == ["aesthetic_score", "nsfw_score", "mine", "image_error"]
    assert all(table[name].equals(before[name]) for name in before.column_names)
    for column, form in {"aesthetic_score": "aesthetic", "nsfw_score": "nsfw", "mine": "linear"}.items():
        check_scores(out, column, form)
        assert table[column].type == pa.float32()


def test_scores_stay_beside_a_second_model(folder, red, tmp_path, in_this_process):
    out, head = tmp_path / "out", HeadClassifier(red, "red")
    ColourReader()(dataset_of(folder)).save_metadata(out)
    score_output(out, [head])
    before = pq.read_table(out)
    ColourReader(image_embedding_column="second")(dataset_of(folder)).save_metadata(out)
    assert pq.read_table(out)["red"].equals(before["red"])
    summary = score_output(out, [head, HeadClassifier(red, "other", "second")])
    assert summary.written == 2
    table = pq.read_table(out)
    assert table["other"].equals(table["red"]) and table["red"].equals(before["red"])
    assert set(read_record(str(out / "00000.parquet")).scores) == {"red", "other"}


def test_scores_stay_where_the_run_that_embeds_has_a_statistic_more(folder, red, tmp_path, in_this_process):
    out = tmp_path / "out"
    ColourReader()(dataset_of(folder)).save_metadata(out)
    score_output(out, [HeadClassifier(red, "red")])
    before = pq.read_table(out)["red"]
    assert ColourReader()(ImageStatistics(["phash"])(dataset_of(folder))).save_metadata(out).written == 2
    table = pq.read_table(out)
    assert table["red"].equals(before) and table["phash"].null_count == len(BAD)
    assert score_output(out, [HeadClassifier(red, "red")]).written == 0


def test_an_output_elsewhere_leaves_the_vectors_files_alone(tmp_path, in_this_process, caplog):
    out, other = write_vectors(tmp_path / "out"), tmp_path / "scored"
    before = {path.name: path.read_bytes() for path in out.glob("*.parquet")}
    head = HeadClassifier(saved(tmp_path, "linear"), "mine")
    assert score_output(out, [head], other).written == 2
    assert {path.name: path.read_bytes() for path in out.glob("*.parquet")} == before
    check_scores(other, "mine", "linear")
    assert score_output(out, [head], other).skipped == 2
    # Vectors that have changed are scored again.
    table = pq.read_table(out / "00000.parquet")
    write_table(str(out / "00000.parquet"), table.slice(0, 20), read_record(str(out / "00000.parquet")))
    assert (summary := score_output(out, [head], other)).written == 1 and summary.skipped == 1
    assert pq.read_metadata(other / "00000.parquet").num_rows == 20
    (out / "00001.parquet").unlink()
    score_output(out, [head], other)
    assert "1 file there, 00001.parquet for example, not of this run" in caplog.text


def test_what_would_be_replaced_is_not(tmp_path, in_this_process):
    out = write_vectors(tmp_path / "out", files=1)
    head = saved(tmp_path, "linear")
    with pytest.raises(OutputError, match="no score of a head"):
        score_output(out, [HeadClassifier(head, "key")])
    with pytest.raises(OutputError, match="no column 'other' of vectors"):
        score_output(out, [HeadClassifier(head, "mine", "other")])
    with pytest.raises(OutputError, match="no Parquet file"):
        score_output(tmp_path / "none", [HeadClassifier(head, "mine")])
    with pytest.raises(ConfigError, match="two make the column 'mine'"):
        score_output(out, [HeadClassifier(head, "mine")] * 2)
    write_vectors(tmp_path / "taken", files=1)
    with pytest.raises(OutputError, match="would be replaced"):
        score_output(out, [HeadClassifier(head, "mine")], tmp_path / "taken")


@pytest.mark.parametrize(("rows", "lacking"), [(0, ()), (4, (0, 1, 2, 3))])
def test_no_rows_and_no_vectors(tmp_path, in_this_process, rows, lacking):
    out = write_vectors(tmp_path / "out", rows=rows, lacking=lacking)
    summary = score_output(out, [HeadClassifier(saved(tmp_path, "linear"), "mine")])
    assert (summary.rows, summary.failed) == (2 * rows, 2 * len(lacking))
    assert pq.read_table(out)["mine"].null_count == 2 * rows
    assert pq.read_schema(out / "00000.parquet").field("mine").type == pa.float32()


def test_null_vectors_of_others_have_a_reason(tmp_path, in_this_process):
    """Parquet from elsewhere: no record, no reasons."""
    out = write_vectors(tmp_path / "out", files=1)
    table = pq.read_table(out / "00000.parquet").drop_columns(["image_error", "__url__"])
    pq.write_table(table.replace_schema_metadata({"theirs": "kept"}), out / "00000.parquet")
    summary = score_output(out, [HeadClassifier(saved(tmp_path, "linear"), "mine")])
    check_scores(out, "mine", "linear")
    assert summary.reasons == {"no vector": 1}
    again = score_output(out, [HeadClassifier(saved(tmp_path, "linear"), "mine")])
    assert (again.written, again.failed_before) == (0, 1)
    assert pq.read_schema(out / "00000.parquet").metadata[b"theirs"] == b"kept"


@pytest.mark.parametrize("info", [L14, None])
def test_a_head_for_another_length_is_refused_before_anything_is_written(
    folder, red, tmp_path, in_this_process, info
):
    torch.save(torch.nn.Linear(512, 1).state_dict(), tmp_path / "b32.pth")
    head = HeadClassifier(tmp_path / "b32.pth", "mine", check=False)
    out = write_vectors(tmp_path / "out", info)
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ConfigError, match=r"expected vectors of 512 values in 'image_embedding', found 768"):
        score_output(out, [HeadClassifier(saved(tmp_path, "linear"), "good"), head])
    assert {path: path.read_bytes() for path in out.iterdir() if path.suffix == ".parquet"} == before
    with pytest.raises(ConfigError, match="expected vectors of 512 values in 'image_embedding', found 3"):
        head(ColourReader()(dataset_of(folder))).save_metadata(tmp_path / "new")
    assert not list((tmp_path / "new").glob("*.parquet"))


def test_vectors_of_another_length_cost_their_file(tmp_path, in_this_process):
    """Whose type does not say how long they are."""
    torch.save(torch.nn.Linear(512, 1).state_dict(), tmp_path / "b32.pth")
    out = write_vectors(tmp_path / "out", None, files=1)
    table = pq.read_table(out / "00000.parquet")
    lists = table["image_embedding"].cast(pa.list_(pa.float32()))
    pq.write_table(table.set_column(2, "image_embedding", lists), out / "00000.parquet")
    summary = score_output(out, [HeadClassifier(tmp_path / "b32.pth", "mine")])
    (reason,) = summary.failed_shards.values()
    assert "expected vectors of 512 values" in reason and "found [768]" in reason


def test_a_dataset_whose_own_files_have_vectors(folder, red, tmp_path, in_this_process, monkeypatch):
    """Rows come from the Parquet beside the tars: these are not opened."""
    write_dataset(tmp_path / "data", 2, 8, bad=BAD)
    ColourReader()(dataset_of(tmp_path / "data")).save_metadata()
    monkeypatch.setattr(
        "curator_dask.webdataset.reader.ShardReader.__init__",
        lambda *args, **settings: pytest.fail("a tar was opened"),
    )
    scored = HeadClassifier(red, "red")(dataset_of(tmp_path / "data"))
    check_red(scored.compute())
    assert scored.save_metadata().written == 2
    check_red(pq.read_table(sorted((tmp_path / "data").glob("*.parquet"))).to_pandas())
    again = HeadClassifier(red, "red")(dataset_of(tmp_path / "data"))
    assert again.save_metadata().skipped == 2
    with pytest.raises(DatasetError, match="no such column of vectors"):
        HeadClassifier(red, "x", "width")(dataset_of(tmp_path / "data"))


class Kills(HeadClassifier):
    """Its first worker dies in the middle."""

    def load_model(self, device):
        head = super().load_model(device)

        def model(vectors):
            flag = Path(self.model_path).with_name("killed")
            if not flag.exists():
                flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return head(vectors)

        return model


def test_a_killed_worker_changes_no_score(tmp_path, private_cluster):
    out, other = write_vectors(tmp_path / "out", files=3), write_vectors(tmp_path / "other", files=3)
    path = saved(tmp_path, "aesthetic")
    with private_cluster(n_workers=1):
        summary = score_output(out, [Kills(path, "mine")])
        assert summary.complete and (tmp_path / "killed").exists()
        score_output(other, [HeadClassifier(path, "mine")])
    assert pq.read_table(out).equals(pq.read_table(other))
    check_scores(out, "mine", "aesthetic")


@pytest.mark.parametrize(
    "kind", ["list<double>", "large_list<float>", "list<halffloat>", "fixed_size_list<int32>[768]"]
)
def test_vectors_of_other_programs_are_scored_whatever_their_type(tmp_path, in_this_process, kind):
    value = {"d": np.float64, "f": np.float32, "h": np.float16, "i": np.int32}[kind.partition("<")[2][0]]
    matrix = (vectors_of(6) * (100 if value is np.int32 else 1)).astype(value)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), 768)
    if not kind.startswith("fixed"):
        lists = pa.large_list if kind.startswith("large") else pa.list_
        vectors = pa.array([*vectors.to_pylist()[:5], None], lists(vectors.type.value_type))
    write_table(
        str(tmp_path / "out" / "a.parquet"), pa.table({"key": [*"abcdef"], "v": vectors}), FileRecord("")
    )
    head = HeadClassifier(saved(tmp_path, "linear"), "mine", "v", check=False)
    assert score_output(tmp_path / "out", [head]).complete
    made = pq.read_table(tmp_path / "out")
    assert made["v"].combine_chunks().equals(vectors)  # as it was
    with torch.inference_mode():
        wanted = plain("linear")(torch.from_numpy(matrix.astype(np.float32))).reshape(-1).tolist()
    wanted = wanted if kind.startswith("fixed") else [*wanted[:5], None]
    assert made["mine"].to_pylist() == pytest.approx(wanted, abs=1e-4)
    summary = score_output(tmp_path / "out", [HeadClassifier(head.model_path, "other", "key", check=False)])
    assert "'key': expected vectors, found string" in summary.failed_shards["a"]


# Files that are fetched


@pytest.fixture
def published(tmp_path, monkeypatch):
    """LAION's head on a server of this machine; what was asked for, with which headers."""
    path, asked = saved(tmp_path, "aesthetic"), []

    class Server(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(dict(self.headers))
            super().do_GET()

        def log_message(self, *args):
            pass

    handler = functools.partial(Server, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/{path.name}"
        file = HubFile("head.pth", url, None, path.stat().st_size, digest_of(path))
        for module in ("curator_dask.image.classifiers.aesthetic", "curator_dask.models.head_files"):
            monkeypatch.setattr(f"{module}.AESTHETIC", file)
        monkeypatch.setenv("CURATOR_DASK_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("NEMO_CURATOR_HOME", str(tmp_path / "nemo"))
        monkeypatch.setenv("HF_TOKEN", "secret")
        try:
            yield path, asked
        finally:
            server.shutdown()
            thread.join()


def test_the_published_head_is_fetched_once_and_needs_no_network_then(published, tmp_path, in_this_process):
    path, asked = published
    score_output(write_vectors(tmp_path / "out"), [AestheticClassifier()])
    check_scores(tmp_path / "out", "aesthetic_score", "aesthetic")
    assert len(asked) == 1 and not any("secret" in value for value in asked[0].values())
    assert digest_of(tmp_path / "home" / "head.pth") == digest_of(path)
    # By whatever path it comes, it is the same head.
    summary = score_output(tmp_path / "out", [AestheticClassifier(model_path=path)])
    assert (summary.skipped, len(asked)) == (2, 1)


def test_the_file_of_nemo_curator_is_used_if_it_is_the_same(published, tmp_path):
    path, asked = published
    nemo = tmp_path / "nemo" / "head.pth"
    nemo.parent.mkdir()
    nemo.write_bytes(path.read_bytes())
    assert AestheticClassifier().locate() == nemo and not asked
    nemo.write_bytes(b"another")
    assert AestheticClassifier().locate() == tmp_path / "home" / "head.pth" and len(asked) == 1


def test_what_comes_must_be_what_is_pinned(published, tmp_path):
    path, _ = published
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(WeightsError, match="expected a file with SHA-256"):
        AestheticClassifier().locate()
    path.unlink()
    with pytest.raises(WeightsError, match=r"could not be fetched .* as model_path"):
        AestheticClassifier().locate()


@pytest.fixture
def published_nsfw(published, tmp_path, monkeypatch):
    """LAION's detector in its archive, on that server; the archive, where it is kept, and what was asked for."""
    path, asked = published
    head = saved(tmp_path, "nsfw")
    archive = tmp_path / "nsfw.zip"
    url = AestheticClassifier().published.url.replace(path.name, archive.name)
    nsfw = PackedHead(
        head_files.NSFW.name, HubFile(archive.name, url, None, None, None), digest_of_tensors(head)
    )
    monkeypatch.setattr("curator_dask.image.classifiers.nsfw.NSFW", nsfw)
    with zipfile.ZipFile(archive, "w") as opened:
        opened.write(head, f"../../{nsfw.name}")  # a path that is not taken
    return archive, tmp_path / "home" / nsfw.name, asked


def test_the_nsfw_head_is_taken_out_of_its_archive(published_nsfw, tmp_path, in_this_process):
    _, kept, asked = published_nsfw
    out = write_vectors(tmp_path / "out")
    for _ in range(2):
        score_output(out, [NsfwClassifier()])
    check_scores(out, "nsfw_score", "nsfw")
    assert len(asked) == 1 and {path.suffix for path in kept.parent.iterdir()} <= {".pth", ".lock"}
    # That of NeMo Curator is used if it is the same, in whatever way it was saved.
    nemo = tmp_path / "nemo" / kept.name
    nemo.parent.mkdir()
    torch.save({name: value.double() for name, value in plain("nsfw").state_dict().items()}, nemo)
    kept.unlink()
    assert NsfwClassifier().locate() == nemo and len(asked) == 1


@pytest.mark.parametrize("found", ["another head", "no head", "another file", "a web page"])
def test_what_comes_in_an_archive_must_be_the_head(published_nsfw, tmp_path, found):
    archive, kept, _ = published_nsfw
    if found == "a web page":
        archive.write_text("<!doctype html><title>no</title>")
    else:
        other = dict(plain("nsfw").state_dict())
        other["linear_4.bias"] = other["linear_4.bias"] + 1
        torch.save(other if found != "no head" else "text", tmp_path / "other.pth")
        with zipfile.ZipFile(archive, "w") as opened:
            opened.write(tmp_path / "other.pth", "other.pth" if found == "another file" else kept.name)
    kept.parent.mkdir()
    kept.write_bytes(b"somebody's own")
    with pytest.raises(WeightsError, match=r"(tensors with SHA-256|an archive).*model_path"):
        NsfwClassifier().locate()
    assert {path.suffix for path in kept.parent.iterdir()} <= {".lock", ".other"}
    assert kept.with_name(f"{kept.name}.other").read_bytes() == b"somebody's own"


def test_a_file_that_a_worker_has_otherwise_is_refused(tmp_path, in_this_process):
    out, path = write_vectors(tmp_path / "out"), saved(tmp_path, "linear")
    table = pq.read_table(out / "00000.parquet").to_pandas()
    step = HeadClassifier(path, "mine").step(None)
    torch.save(torch.nn.Linear(768, 1).state_dict(), path)
    with pytest.raises(WeightsError, match="which the client has"):
        step(table)


# The command


def test_score_by_the_command(tmp_path, client):
    out = write_vectors(tmp_path / "out")
    at = ["--scheduler-address", client.scheduler.address]
    head = saved(tmp_path, "linear")
    arguments = ["score", out, "--aesthetic", saved(tmp_path, "aesthetic"), "--head", f"mine={head}", *at]
    arguments += ["--near", f"like={write_vectors(tmp_path / 'wanted', files=1)}"]
    done = run_here(*arguments)
    assert done.returncode == 0, done.stderr
    assert "60 rows in 2 files" in done.stdout
    check_scores(out, "aesthetic_score", "aesthetic")
    check_scores(out, "mine", "linear")
    # The first file is the reference itself.
    like = [pq.read_table(out / f"0000{number}.parquet")["like"].drop_null() for number in range(2)]
    assert min(like[0].to_pylist()) > 1 - 1e-6 and max(like[1].to_pylist()) < 0.5
    assert "2 files finished before" in run_here(*arguments).stdout
    for wrong, said in (
        (["--head", "mine"], "NAME=FILE"),
        (["--near", "=a"], "NAME=FOLDER"),
        ([], "give a head"),
    ):
        done = run_here("score", out, *wrong)
        assert done.returncode == 2 and said in done.stderr
    write_vectors(tmp_path / "b32", {**L14, "model": "vit_base_patch32_clip_quickgelu_224"})
    done = run_here("score", tmp_path / "b32", "--nsfw", saved(tmp_path, "nsfw"), *at)
    assert done.returncode == 2 and "is for vectors of OpenAI's CLIP ViT-L/14" in done.stderr
    assert (
        run_here("score", tmp_path / "b32", "--nsfw", tmp_path / "nsfw.pth", "--no-check", *at).returncode
        == 0
    )


GOLDEN = {
    "aesthetic_score": [1.6555, 2.3593, 3.0698, 3.6725, 4.2380, 4.7010, 5.0731, 5.3654, 5.5767, 5.7468],
    "linear": [-2.4579, -0.1379, 1.8951, 3.5849, 5.0997, 6.4701, 7.7870, 9.0480, 10.2264, 11.3044],
    "nsfw_score": [0.00007, 0.00012, 0.00017, 0.00014, 0.00018, 0.00029, 0.00033, 0.00023, 0.00013, 0.00014],
}


@needs_real
def test_real_heads_on_real_vectors(tmp_path, client):
    matrix = np.load(REAL / "clip_vit_l_14_ratings.npy").astype(np.float32).reshape(10, 768)
    table = pa.table(
        {
            "key": [str(number) for number in range(10)],
            "image_embedding": pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), 768),
        }
    )
    record = FileRecord("f", id_col="key", embeddings={"image_embedding": L14})
    write_table(str(tmp_path / "out" / "ratings.parquet"), table, record)
    done = run_here(
        *("score", tmp_path / "out", "--scheduler-address", client.scheduler.address),
        *("--aesthetic", REAL / "sac+logos+ava1-l14-linearMSE.pth", "--nsfw", REAL / "nsfw_l14.safetensors"),
        *("--head", f"linear={REAL / 'sa_0_4_vit_l_14_linear.pth'}"),
    )
    assert done.returncode == 0, done.stderr
    made = pq.read_table(tmp_path / "out")
    for column, values in GOLDEN.items():
        np.testing.assert_allclose(made[column].to_numpy(), values, atol=1e-4)
    assert json.loads(pq.read_schema(tmp_path / "out" / "ratings.parquet").metadata[b"curator_dask"])[
        "scores"
    ]


@needs_real
def test_real_heads_of_the_other_model(tmp_path, in_this_process):
    """LAION's first predictor of B/32 is known by its shape; that of L/14 is refused."""
    path = REAL / "sa_0_4_vit_b_32_linear.pth"
    matrix = np.load(REAL / "clip_vit_b_32_ratings.npy").astype(np.float32).reshape(10, 512)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), 512)
    b32 = {**L14, "dim": 512}
    b32 |= {name: L14[name].replace("large_patch14", "base_patch32") for name in ("model", "source")}
    record = FileRecord("f", id_col="key", embeddings={"image_embedding": b32})
    table = pa.table({"key": [str(number) for number in range(10)], "image_embedding": vectors})
    write_table(str(tmp_path / "out" / "ratings.parquet"), table, record)
    score_output(tmp_path / "out", [AestheticClassifier(model_path=path)])
    linear = torch.nn.Linear(512, 1)
    linear.load_state_dict(torch.load(path, weights_only=True))
    with torch.inference_mode():
        expected = linear(torch.from_numpy(matrix))[:, 0].numpy()
    made = pq.read_table(tmp_path / "out")["aesthetic_score"].to_numpy()
    np.testing.assert_allclose(made, expected, atol=1e-4)
    assert (np.diff(made) > 0).all()
    with pytest.raises(ConfigError, match="is for vectors of OpenAI's CLIP ViT-L/14"):
        score_output(tmp_path / "out", [NsfwClassifier(model_path=REAL / "nsfw_l14.safetensors")])


@needs_real
def test_the_pins_are_those_of_the_real_files():
    path = REAL / head_files.AESTHETIC.name
    assert (path.stat().st_size, digest_of(path)) == (head_files.AESTHETIC.size, head_files.AESTHETIC.digest)
    assert digest_of_tensors(REAL / "nsfw_l14.safetensors") == head_files.NSFW.digest
