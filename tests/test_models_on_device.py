"""What models, products and files of rows come to on a GPU is what they come to on a CPU.

Run by ``scripts/gpu_check.sh``. On a CPU it compares that with itself, which shows that the tests run.
"""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from captioners import write_captioner
from detectors import ASKED, write_detector
from encoders import write_encoder
from PIL import Image
from questioners import write_questioner
from test_classification import write_model
from texts import captions, make_pair

from curator_dask import backend
from curator_dask.balancing import balance_clusters
from curator_dask.cache import ENCODERS, LOADERS
from curator_dask.compare import compare_outputs
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.dedup import SemanticDeduplication
from curator_dask.image.asking import QuestionModel
from curator_dask.image.captioning import CaptionModel
from curator_dask.image.classifiers import ClassificationModel, ReferenceSimilarity, score_output
from curator_dask.image.classifiers.centroids import find_centroids
from curator_dask.image.detection import DetectionModel
from curator_dask.image.embedders import ClipImageEmbedder
from curator_dask.image.statistics import AspectBuckets, ImageStatistics
from curator_dask.indexing import VectorIndex
from curator_dask.models.asking import QuestionSpec
from curator_dask.models.captioning import CaptionSpec
from curator_dask.models.clip_text import ClipTextSpec
from curator_dask.models.detecting import DetectionSpec
from curator_dask.models.latents import LatentSpec
from curator_dask.models.questions import Question
from curator_dask.models.text_states import TextStatesSpec
from curator_dask.outputs.filtering import filter_output
from curator_dask.retrieval import retrieve
from curator_dask.tables import TableColumns
from curator_dask.text import ClipScore, ClipTextEmbedder, NegClipLoss, TextStatistics, ZeroShotClassifier

pytestmark = [
    pytest.mark.usefixtures("quiet_transformers"),
    pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), "gpu"], indirect=True),
]
SHARDS, ROWS = 3, 12
#: Of what files come to, what is rounded.
CLOSE = ("reference_similarity", "similarity", "retrieved_similarity", "neg_clip_loss", "cluster_distance")


def on(device, work):
    """What some work comes to in this process, on a device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(backend.DEVICE_VARIABLE, device)
        for forget in (backend.current.cache_clear, ENCODERS.clear, LOADERS.clear):
            forget()
        return work()


def pictures(count, size=None):
    rng = np.random.default_rng(4)
    for number in range(count):
        blocks = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
        yield blocks.resize(size or (40 + number % 5, 32), Image.Resampling.NEAREST)


def on_device(images):
    """As a loader hands them out: NumPy's, or CuPy's of a GPU."""
    place = backend.current().torch_device
    return [backend.array_of(torch.from_numpy(np.array(image)).to(place)) for image in images]


@pytest.mark.parametrize("kind", ["blip", "vit-gpt2", "llava", "qwen2-vl"])
def test_captions(device, tmp_path, kind):
    prompt = "describe it" if kind in ("llava", "qwen2-vl") else None
    spec = CaptionSpec(str(write_captioner(tmp_path, kind)), prompt=prompt, max_new_tokens=6, dtype="float32")

    def write():
        model = spec.build()
        assert next(model._model.parameters()).device == backend.current().torch_device
        return model(on_device(pictures(5)), 3)

    found, expected = on(device, write), on("cpu", write)
    assert found == expected and len({each.text for each in found}) > 1


@pytest.mark.parametrize("kind", ["t5", "clip", "gemma"])
@pytest.mark.parametrize("padded", [False, True])
def test_states_of_captions(device, tmp_path, kind, padded):
    spec = TextStatesSpec(str(write_encoder(tmp_path, kind)), max_length=12, padded=padded, stored="float32")
    texts = captions(9, 30)
    found, expected = (on(each, lambda: spec.build()(texts, 4)) for each in (device, "cpu"))
    for one, other in zip(found, expected, strict=True):
        assert one.was_cut == other.was_cut
        np.testing.assert_allclose(one.tokens, other.tokens, atol=5e-3)


@pytest.mark.parametrize("form", ["mean", "moments", "sample"])
def test_latents(device, tmp_path, form):
    pytest.importorskip("diffusers")  # which the GPU machine may lack
    from vaes import write_vae

    spec = LatentSpec(str(write_vae(tmp_path / "vae")), form=form, scaled=True, stored="float32")
    images = [np.array(each) for each in pictures(5, (48, 32))]
    keys = [str(number) for number in range(len(images))]
    found, expected = (on(each, lambda: spec.build()(images, keys)) for each in (device, "cpu"))
    for one, other in zip(found, expected, strict=True):
        assert one.shape == (8 if form == "moments" else 4, 4, 6)
        np.testing.assert_allclose(one, other, atol=1e-2)


@pytest.mark.parametrize("kind", ["detr", "rt-detr", "yolos", "owlv2", "grounding-dino"])
def test_things_that_are_found(device, tmp_path, kind):
    prompts = ("a human face", "dog") if kind in ASKED else ()
    spec = DetectionSpec(
        str(write_detector(tmp_path, kind)), prompts=prompts, threshold=0.01, dtype="float32"
    )
    found, expected = (on(each, lambda: spec.build()(on_device(pictures(5)), 3)) for each in (device, "cpu"))
    assert any(len(each.labels) for each in expected)
    for one, other in zip(found, expected, strict=True):
        assert one.reason is None and abs(len(one.labels) - len(other.labels)) <= 1
        few = min(len(one.labels), len(other.labels), 3)
        np.testing.assert_allclose(one.scores[:few], other.scores[:few], atol=5e-3)


@pytest.mark.parametrize("kind", ["blip-vqa", "git", "llava"])
def test_answers(device, tmp_path, kind):
    """Of questions of several lengths, which are filled up."""
    folder = str(write_questioner(tmp_path, kind))
    question = Question.parse('is it " {text} " of a photo', "caption")
    spec = QuestionSpec(folder, question, ("Yes", "No", "is not"), dtype="float32")
    said = [("a photo",), ("not",), ("a photo of it",), ("it",), ("photo",)]
    found, expected = (
        on(each, lambda: spec.build()(on_device(pictures(5)), 3, said)) for each in (device, "cpu")
    )
    assert [each.reason for each in found] == [None] * 5
    found, expected = (np.stack([each.likelihoods for each in every]) for every in (found, expected))
    np.testing.assert_allclose(found, expected, atol=2e-2)
    assert expected.std(axis=0).max() > 0.1


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_texts(device, tmp_path, kind):
    make_pair(tmp_path, kind)
    texts = [each or "a" for each in captions(12, 40)]
    spec = ClipTextSpec(str(tmp_path), long_text="mean")
    found, expected = (on(each, lambda: spec.build()(texts, 5)) for each in (device, "cpu"))
    np.testing.assert_allclose(found.vectors, expected.vectors, atol=1e-4)
    assert (found.long == expected.long).all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images in Parquet files, a table for them, and the models."""
    folder = tmp_path_factory.mktemp("made")
    made = [*pictures(SHARDS * ROWS)]
    (folder / "data").mkdir()
    for shard in range(SHARDS):
        rows = range(shard * ROWS, (shard + 1) * ROWS)
        files = [io.BytesIO() for _ in rows]
        for row, file in zip(rows, files, strict=True):
            made[row].save(file, "PNG")
        table = {
            "id": [f"{row:04d}" for row in rows],
            "image": [{"bytes": file.getvalue(), "path": None} for file in files],
            "caption": [(captions(SHARDS * ROWS, 9)[row] or "a") for row in rows],
            "number": pa.array(rows, pa.int32()),
            "blob": [bytes([row]) for row in rows],
        }
        pq.write_table(pa.table(table), folder / "data" / f"{shard:05d}.parquet", row_group_size=5)
    table = {"id": [f"{row:04d}" for row in range(0, SHARDS * ROWS, 2)]}
    table["day"] = pa.array([*range(len(table["id"]))], pa.int32()).cast(pa.date32())
    pq.write_table(pa.table(table), folder / "table.parquet")
    make_pair(folder / "clip", "clip")
    write_captioner(folder / "captioner", "blip")
    write_detector(folder / "detector", "yolos")
    write_questioner(folder / "questioner", "blip-vqa")
    write_model(folder / "classifier")
    return folder


def save(folder, out):
    """All that is made of images, captions and tables in one pass."""
    clip = str(folder / "clip")
    text = ClipTextEmbedder(clip, text_column="caption")
    dataset = ImageTextPairDataset.from_parquet(folder / "data", id_col="id", rows_per_partition=8)
    dataset = dataset.top("number", 30)
    for step in (
        ImageStatistics(["phash", "pdq", "pdq_quality", "blurriness", "width", "height"]),
        AspectBuckets(64),
        CaptionModel(str(folder / "captioner"), max_new_tokens=5, dtype="float32"),
        DetectionModel(str(folder / "detector"), threshold=0.01, dtype="float32"),
        ClassificationModel(folder / "classifier", prefix="seen", autocast=False),
        QuestionModel(
            folder / "questioner",
            question="is it {text}",
            answers=["Yes", "No"],
            column="asked",
            dtype="float32",
        ),
        ClipImageEmbedder(clip, autocast=False),
        ClipImageEmbedder(
            clip, autocast=False, cover="detected_boxes", image_embedding_column="covered_embedding"
        ),
        ClipScore(text),
        ZeroShotClassifier({"one": ["a cat"], "other": ["eine Katze"]}, text),
        TextStatistics(["words"], "caption"),
        TableColumns(folder / "table.parquet", on="id"),
    ):
        dataset = step(dataset)
    dataset = dataset.filter("width > 40 and detected_number >= 0")
    dataset.save_metadata(out)
    return pq.read_table(out)


@pytest.fixture(scope="module")
def on_a_cpu(folder):
    """The same, made in this process on a CPU before there is another."""
    return on("cpu", lambda: save(folder, folder / "cpu"))


def test_all_in_one_pass(on_a_cpu, device, device_client, folder, tmp_path):
    found, expected = save(folder, tmp_path / "out").sort_by("id"), on_a_cpu.sort_by("id")
    assert found.schema.equals(expected.schema) and found.num_rows == expected.num_rows
    near = {"image_embedding": 1e-2, "clip_score": 2e-2, "one": 0.1, "other": 0.1, "detected_scores": 5e-3}
    near |= {"detected_boxes": 5e-3, "detected_area": 5e-3, "covered_embedding": 5e-2}
    near |= {name: 2e-2 for name in expected.column_names if name.startswith(("asked_", "seen_"))}
    near = {name: most for name, most in near.items() if not pa.types.is_string(expected[name].type)}
    for name in expected.column_names:
        one, other = found[name].to_pylist(), expected[name].to_pylist()
        if name not in near:
            assert one == other, name
            continue
        for left, right in zip(one, other, strict=True):
            np.testing.assert_allclose(left, right, atol=near[name], err_msg=name)


def of_files(folder, out):
    """What heads, conditions, retrieval, deduplication and comparison make of one output."""
    whole, half = folder / "cpu", out / "half"
    filter_output(whole, half, where="number % 2 = 0")
    contrast = NegClipLoss(
        ClipTextEmbedder(str(folder / "clip"), text_column="caption"), batch_size=8, batches=2, check=False
    )
    score_output(whole, [ReferenceSimilarity(half), contrast], out / "scored")
    find_centroids(folder / "cpu", 3).save(out / "centroids.safetensors")
    balance_clusters(whole, out / "centroids.safetensors", 12, out / "balanced", neighbours=2)
    VectorIndex.build(whole, out / "index")
    queries = np.stack(pq.read_table(whole)["image_embedding"].to_pylist())
    keys = [[hit.key for hit in hits] for hits in VectorIndex(out / "index").search(queries, top=3)]
    pq.write_table(pa.table({"id": pq.read_table(whole)["id"], "keys": keys}), out / "searched.parquet")
    retrieve(whole, half, out / "near", top=2, pairs=out / "pairs.parquet")
    SemanticDeduplication(eps=0.2, n_clusters=2, exact={"pdq": 31})(whole).save(out / "duplicates")
    compared = compare_outputs(whole, half, sample=8, k=2, permutations=5)
    names = ("half", "scored", "balanced", "searched.parquet", "near", "pairs.parquet", "duplicates")
    return {name: pq.read_table(out / name) for name in names}, compared


@pytest.fixture(scope="module")
def files_on_a_cpu(on_a_cpu, folder):
    return on("cpu", lambda: of_files(folder, folder / "of-files"))


def test_what_is_made_of_files(files_on_a_cpu, device, device_client, folder, tmp_path):
    tables, compared = of_files(folder, tmp_path)
    expected, compared_before = files_on_a_cpu
    for name, table in tables.items():
        assert table.schema.equals(expected[name].schema) and len(table) == len(expected[name]) > 1, name
        for column in table.column_names:
            one, other = (each.column(column) for each in (table, expected[name]))
            if column in CLOSE:
                np.testing.assert_allclose(one.to_numpy(), other.to_numpy(), atol=1e-5)
            else:
                assert one.to_pylist() == other.to_pylist(), (name, column)
    for name in ("frechet", "cmmd"):
        one, other = (
            json.loads(json.dumps(vars(getattr(each, name)))) for each in (compared, compared_before)
        )
        assert one == pytest.approx(other, rel=1e-4, abs=1e-4), name
