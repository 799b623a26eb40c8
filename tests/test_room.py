"""A device that is full: what allocators say, what goes then, and what is done with less at once."""

from __future__ import annotations

import gc
import json
import shutil
import weakref

import numpy as np
import pytest
import torch
import transformers
from captioners import write_captioner
from colours import ColourReader, write_dataset
from detectors import write_detector
from texts import captions, make_pair
from transformers.image_transforms import center_to_corners_format

from curator_dask import backend
from curator_dask.cache import ENCODERS, SpecCache
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, WeightsError
from curator_dask.image.classifiers import ImageClassifier, ReferenceSimilarity, reference
from curator_dask.models import room
from curator_dask.models.captioning import CaptionSpec
from curator_dask.models.clip import ClipSpec
from curator_dask.models.clip_text import ClipTextSpec
from curator_dask.models.detecting import DetectionSpec
from curator_dask.models.room import Room

pytestmark = pytest.mark.usefixtures("quiet_transformers")


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    """On a CPU, also where there is a GPU: what is full is played."""
    monkeypatch.setenv(backend.DEVICE_VARIABLE, "cpu")
    backend.current.cache_clear()
    ENCODERS.clear()
    yield
    backend.current.cache_clear()
    ENCODERS.clear()


class Thing:
    closed = False

    def close(self):
        self.closed = True


def left_by(cache, name):
    with cache.lease(name, Thing) as thing:
        return thing


def test_words_of_libraries_of_a_gpu():
    """As they stand in torch 2.15's libtorch_cuda, and in nvImageCodec 0.9's libraries, which DALI 2.4 decodes with."""
    said = [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED",
        "GET was unable to find an engine to execute this computation",
        "Unable to find a valid cuDNN algorithm to run convolution",
        "nvJPEG: device allocator failed",
        "pinned allocator failed",
        "nvjpeg: allocator failure",
    ]
    assert all(backend.is_out_of_memory(RuntimeError(each)) for each in said)
    other = [
        "CUDA error: device-side assert triggered",
        "CUBLAS_STATUS_EXECUTION_FAILED",
        "CUDNN_STATUS_BAD_PARAM",
    ]
    assert not any(backend.is_out_of_memory(RuntimeError(each)) for each in other)


@pytest.mark.parametrize("full", [MemoryError, torch.OutOfMemoryError])
def test_what_nobody_is_using_goes_for_what_is_built(full):
    cache = SpecCache(8)
    idle, other = left_by(cache, "idle"), left_by(ENCODERS, "model")
    tried = []

    def build():
        tried.append((idle.closed, other.closed))
        if not idle.closed:
            raise full("no more")
        return Thing()

    with cache.lease("used", Thing) as used:
        with cache.lease("new", build) as new:
            assert tried == [(False, False), (True, True)] and not used.closed and not new.closed
        assert cache.specs() == ["used", "new"]


def test_what_cannot_be_built_is_tried_once():
    cache, tried = SpecCache(8), []

    def fails(error):
        tried.append(error)
        raise error

    with pytest.raises(MemoryError), cache.lease("alone", lambda: fails(MemoryError())):
        pass
    idle = left_by(cache, "idle")
    for error in (WeightsError("out of memory"), RuntimeError("another")):
        with pytest.raises(type(error)), cache.lease("new", lambda error=error: fails(error)):
            pass
    assert len(tried) == 3 and not idle.closed and cache.in_use() == 0


@pytest.mark.parametrize(("count", "seconds"), [(8, 30), (8, 0), (1, 30)])
def test_models_that_were_not_used_for_long_go_before_a_batch_is_halved(monkeypatch, said, count, seconds):
    """What was used just now goes for a single image alone: two models would load in turns."""
    monkeypatch.setattr(room, "LONG_UNUSED", seconds)
    model, idle = Room("mine", "{} images at once"), left_by(ENCODERS, "idle")
    error = RuntimeError("CUDA out of memory")
    assert model.may_be_made(error, count) and not model.may_be_made(RuntimeError("another"), count)
    model.make(count)
    halves = (count, seconds) == (8, 30)
    assert model.limit == (4 if halves else None) and idle.closed is not halves
    assert said.text.count("mine: out of memory with 8 images at once, going on with 4") == halves
    if count == 1:
        assert not model.may_be_made(error, 1)  # nothing is left that could go
    assert [model.of(100), model.of(3)] == ([4, 3] if halves else [100, 3])


def test_texts_that_are_too_many_at_once(tmp_path, monkeypatch, said):
    make_pair(tmp_path / "clip", "clip")
    encoder = ClipTextSpec(str(tmp_path / "clip"), long_text="mean").build()
    texts = [each or "a" for each in captions(9, 30)]
    expected, forward, sizes = encoder(texts, 8), encoder._forward, []

    def full(pieces):
        sizes.append(len(pieces))
        if len(pieces) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(pieces)

    monkeypatch.setattr(encoder, "_forward", full)
    found = encoder(texts, 8)
    np.testing.assert_allclose(found.vectors, expected.vectors, atol=1e-5)
    assert (found.long == expected.long).all() and found.long.any()
    assert sizes[:3] == [8, 4, 2] and {*sizes[3:-1]} == {2}
    assert said.text.count("out of memory with 8 texts at once, going on with 4") == 1
    monkeypatch.setattr(encoder, "_forward", lambda pieces: full([*pieces] * 4))
    with pytest.raises(torch.OutOfMemoryError):
        encoder(texts, 8)


def test_a_reference_for_which_there_is_no_room(tmp_path, monkeypatch, in_this_process):
    write_dataset(tmp_path / "data", 1, 3)  # one is black, and has no direction
    ColourReader()(ImageTextPairDataset.from_webdataset(tmp_path / "data")).save_metadata(tmp_path / "out")
    scorer = ReferenceSimilarity(tmp_path / "out", check=False)
    nearest, tried = reference.Nearest, []

    def full(blocks):
        tried.append(len(blocks))
        if len(tried) < 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return nearest(blocks)

    monkeypatch.setattr(reference, "Nearest", full)
    assert scorer.load_model(torch.device("cpu")).dim == 3 and tried == [1, 1]
    monkeypatch.setattr(reference, "Nearest", lambda blocks: tried.append(0) or bytearray(2**60))
    with pytest.raises(
        ConfigError, match=r"its 2 vectors take 24 bytes, and there is no room for them on cpu"
    ):
        scorer.load_model(torch.device("cpu"))


class FullAtFirst(ImageClassifier):
    """A head for whose first batch there is no room."""

    def load_model(self, device):
        tried = []

        def head(vectors):
            tried.append(len(vectors))
            if len(tried) == 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return vectors[:, 0]

        return head


def test_what_torch_keeps_for_later_goes_for_a_batch_of_vectors(tmp_path, monkeypatch, in_this_process):
    write_dataset(tmp_path / "data", 1, 3)
    dataset = ColourReader()(ImageTextPairDataset.from_webdataset(tmp_path / "data"))
    given_back = []
    monkeypatch.setattr(backend.Backend, "release_memory", lambda place: given_back.append(place.device))
    head = FullAtFirst("red", pred_column="red", check=False)
    rows = head(dataset).metadata.compute()
    assert rows["red"].tolist() == [each[0] for each in rows["image_embedding"]] and given_back == ["cpu"]


def test_boxes_of_a_model_in_half_precision_are_scaled_in_float32(tmp_path):
    """Between 2,048 and 4,096 pixels the numbers of bfloat16 are 16 apart."""
    spec = DetectionSpec(str(write_detector(tmp_path, "yolos")), threshold=0.0, dtype="bfloat16")
    model, image = spec.build(), np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), np.uint8)
    from PIL import Image

    ((_, outputs),) = model._outputs([model._prepare(Image.fromarray(image))])
    assert outputs.pred_boxes.dtype == torch.bfloat16
    expected = center_to_corners_format(outputs.pred_boxes[0].float()).clamp(0, 1).numpy()
    (found,) = model([image], 1)
    assert len(found.boxes) > 3
    apart = np.abs(found.boxes[:, None] - expected[None]).max(axis=2).min(axis=1)
    assert apart.max() < 1e-6


def test_a_model_is_not_compiled_while_it_writes(tmp_path):
    """On a GPU transformers compiles what has a cache of one size; this setting has it do so on a CPU, too."""
    plain = write_captioner(tmp_path / "plain", "llava")
    static = shutil.copytree(plain, tmp_path / "static")
    path = static / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "cache_implementation": "static"}))
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, 50, 3), np.uint8) for _ in range(2)]
    expected = CaptionSpec(str(plain), prompt="describe it", max_new_tokens=4).build()(images, 2)
    model = CaptionSpec(str(static), prompt="describe it", max_new_tokens=4).build()
    config = transformers.CompileConfig()
    config._compile_all_devices = True
    model._model.generation_config.compile_config = config
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model._model, "get_compiled_call", lambda *_: pytest.fail("it would be compiled"))
        assert model(images, 2) == expected
    assert all(each.text for each in expected)


def test_what_is_closed_is_gone_at_once(tmp_path):
    """Not when Python collects what is in circles: until then a device would hold its weights."""
    make_pair(tmp_path, "clip")
    for spec in (ClipSpec(str(tmp_path)), ClipTextSpec(str(tmp_path))):
        model = spec.build()
        weights = [weakref.ref(each) for each in model.model.parameters()]
        gc.collect()
        gc.disable()
        try:
            model.close()
            assert len(weights) > 10 and not any(each() is not None for each in weights)
        finally:
            gc.enable()
