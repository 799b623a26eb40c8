"""Models that are compiled: the same vectors, whatever the size of a batch, and never a run that fails for it."""

from __future__ import annotations

import logging
import os
import shutil
import time

import numpy as np
import pytest
import timm
import torch
from timm.models import register_model

from curator_dask.errors import ConfigError
from curator_dask.image.embedders import TimmImageEmbedder
from curator_dask.models import compiled_files, compiling
from curator_dask.models.timm import TimmSpec

CNN = "test_resnet.r160_in1k"
TINY, OTHER = "tiny_cnn", "other_tiny_cnn"
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="no C++ compiler"
)


class Tiny(torch.nn.Module):
    """What compiling pays for, and no more of it: each layer costs the compiler seconds."""

    num_classes = 0

    def __init__(self, width: int, name: str) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, width, 3, stride=2, bias=False)
        self.norm = torch.nn.BatchNorm2d(width)
        self.pretrained_cfg = {"architecture": name, "input_size": (3, 32, 32)}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.convolution(images))).mean((2, 3))


@register_model
def tiny_cnn(pretrained=False, **kwargs) -> Tiny:
    return Tiny(8, TINY)


@register_model
def other_tiny_cnn(pretrained=False, **kwargs) -> Tiny:
    return Tiny(16, OTHER)


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randint(
        0, 256, (12, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """No folder, so nothing is kept: compiling takes half the time then."""
    monkeypatch.setenv("CURATOR_DASK_HOME", str(tmp_path))
    (tmp_path / "compiled").touch()
    return tmp_path


def encoder(model=TINY, **settings):
    torch.manual_seed(0)
    return TimmSpec(model, pretrained=False, autocast=False, **settings).build()


@needs_compiler
def test_batches_of_all_sizes_have_the_same_vectors(pixels, monkeypatch):
    expected = encoder(compile=False)(pixels)
    sizes: list[int] = []
    make = compiling._compiled

    def counted(model, inputs):
        compiled = make(model, inputs)

        def call(batch):
            sizes.append(len(batch))
            return compiled(batch)

        return call

    monkeypatch.setattr(compiling, "_compiled", counted)
    made = encoder(compile=True)
    for count, size in ((8, 8), (8, 8), (7, 8), (6, 8), (5, None), (1, None), (12, 12), (9, 12), (8, None)):
        sizes.clear()
        # Only a larger batch may be compiled for: one that is filled up must look like a full one.
        with torch._dynamo.config.patch(error_on_recompile=count not in (8, 12)):
            vectors = made(pixels[:count])
        np.testing.assert_allclose(vectors, expected[:count], atol=1e-5)
        assert np.abs(vectors[0] - expected[-1]).max() > 1e-4, "no test: all images have one vector"
        assert set(sizes) == ({size} if size else set())


@needs_compiler
@pytest.mark.parametrize(("faster", "model"), [(True, CNN), (False, TINY)])
def test_auto_waits_and_keeps_what_is_faster(pixels, monkeypatch, caplog, faster, model):
    caplog.set_level(logging.DEBUG, "curator_dask")
    monkeypatch.setattr(compiling, "_LEAST_GAIN", 0.0 if faster else 1e9)
    made = encoder(model, compile="auto")
    before = made(pixels[:8])
    assert made._run._spent > 0
    made(pixels[:8])
    assert not caplog.messages, "compiled before the time"
    monkeypatch.setattr(compiling, "WORTH_AFTER", made._run._spent)
    made(pixels[:4])
    assert not caplog.messages, "compiled for the smaller batch at a shard's end"
    np.testing.assert_allclose(made(pixels[:8]), before, atol=1e-5)
    assert made._run.compiled_for == (8 if faster else 0)
    assert "times as fast" in caplog.text and ("not used" in caplog.text) != faster
    np.testing.assert_allclose(made(pixels[:8]), before, atol=1e-5)


@needs_compiler
def test_what_was_compiled_is_taken_from_its_file_by_the_same_model_alone(pixels, home, monkeypatch):
    (home / "compiled").unlink()
    some, more = pixels[:4], pixels[:5]
    first = encoder(compile=True)
    vectors = first(some)

    monkeypatch.setattr(compiled_files, "make", None)  # what is compiled from now on fails
    monkeypatch.setattr(compiling, "_compiled", None)
    monkeypatch.setattr(compiling, "_WORTH_LOADING_AFTER", 0.0)
    monkeypatch.setattr(compiling, "_LEAST_GAIN", 0.0)
    for setting in (True, "auto"):
        again = encoder(compile=setting)
        np.testing.assert_array_equal(again(some), vectors)
        assert again._run.compiled_for == 4
        with torch.inference_mode(), pytest.raises(ValueError, match="compiled for inputs of shape"):
            again._run._compiled(again.transform.normalize(more))

    def taken(batch=some, model=TINY, factor=1.0):
        made, plain = encoder(model, compile="auto"), encoder(model, compile=False)
        for each in (made, plain):
            with torch.no_grad():
                for weights in each.model.parameters():
                    weights.mul_(factor)
        np.testing.assert_allclose(made(batch), plain(batch), atol=1e-5)
        return made._run.compiled_for > 0

    assert taken()
    assert not taken(more), "for a batch of another size"
    assert not taken(model=OTHER), "of another model"
    folder = home / "compiled"
    (kept,) = folder.iterdir()
    folder.chmod(0o777)
    assert not taken(), "that others could have put there"
    folder.chmod(0o700)
    assert taken()
    assert not taken(factor=-1.0), "that gives other vectors"
    assert not kept.exists()


def test_files_that_were_not_used_for_longest_go(home, monkeypatch):
    folder = home / "several"
    for number, name in enumerate((".unfinished-old", "old", "new", ".unfinished-new")):
        (folder / name).mkdir(parents=True)
        (folder / name / "library").write_bytes(bytes(100))
        os.utime(folder / name, (time.time() - (0 if "new" in name else 1e6 - number),) * 2)
    monkeypatch.setattr(compiled_files, "_MOST_BYTES", 150)
    compiled_files._tidy(folder)
    assert {each.name for each in folder.iterdir()} == {"new", ".unfinished-new"}


def test_no_compiler_costs_a_warning(pixels, monkeypatch, caplog, tmp_path):
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    expected = encoder(compile=False)(pixels)
    made = encoder(compile=True)
    with config.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}):
        np.testing.assert_array_equal(made(pixels), expected)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"{TINY} with random weights: not compiled, going on as before" in warning
    np.testing.assert_array_equal(made(pixels), expected)


def test_memory_that_is_full_is_the_callers(pixels):
    full = torch.OutOfMemoryError

    class Large(torch.nn.Module):
        def forward(self, images):
            raise full("no memory left")

    made = compiling.CompilingModel(Large(), "large", at_once=True)
    with pytest.raises(full), torch.inference_mode():
        made(pixels.float())
    assert made.compiled_for == 0


def test_it_pays_for_cnns_on_a_cpu(device):
    small = {"pretrained": False}
    assert compiling.pays(timm.create_model(CNN, **small)) == (device == "cpu")
    assert not compiling.pays(timm.create_model("test_vit", **small))
    assert not compiling.pays(timm.create_model("test_convnext", **small))
    assert not compiling.pays(lambda images: images)


def test_the_setting_travels():
    assert TimmImageEmbedder(CNN).encoder_spec().compile == "auto"
    assert TimmImageEmbedder(CNN, compile=True).encoder_spec().compile is True
    embedder = TimmImageEmbedder(CNN, compile=False)
    assert TimmImageEmbedder(**embedder.settings()).compile is False
    with pytest.raises(ConfigError, match="compile='yes': expected 'auto', True or False"):
        TimmImageEmbedder(CNN, compile="yes")
