"""Encoders, their weights, and the one live object a worker; nothing here needs a network."""

from __future__ import annotations

import dataclasses
import gc
import http.server
import json
import logging
import os
import pickle
import re
import shutil
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from colours import ColourReader, MeanColour, check_colours, read_output, write_dataset
from distributed import Client, LocalCluster
from leftovers import check_nothing_left
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config
from timm.models import get_pretrained_cfg, list_pretrained, save_for_hf

from curator_dask import backend
from curator_dask.cache import ENCODERS, SpecCache
from curator_dask.cluster.workers import WorkerUnfit
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.decode.transforms import TransformSpec
from curator_dask.errors import ConfigError, OutputError, WeightsError
from curator_dask.image.embedders import TimmImageEmbedder
from curator_dask.image.embedders.partition import EmbedPartition
from curator_dask.models import encoders
from curator_dask.models.encoders import Encoder
from curator_dask.models.precision import LEAST_COSINE, pictures
from curator_dask.models.sources import files_state
from curator_dask.models.timm import TimmSpec, choose_output, projection_dims
from curator_dask.models.weights import create_timm_model, state_digest
from curator_dask.runs.describing import Loaded
from curator_dask.runs.fit import Fit

SMALL_CLIP = "vit_xsmall_patch16_clip_224"  # the smallest architecture of timm's that ends in a projection


def random_spec(name, **settings):
    return TimmSpec(name, pretrained=False, **{"autocast": False, **settings})


# Which output


@pytest.fixture(scope="module")
def registry():
    """(name, configuration) of every pretrained tag of timm."""
    return {name: get_pretrained_cfg(name).to_dict() for name in list_pretrained()}


def chosen(config, wanted="auto"):
    return choose_output(wanted, config, config["num_classes"], "it")


def is_contrastive_tower(name):
    """By families, as their papers and timm's model cards have it."""
    architecture, _, tag = name.partition(".")
    if (
        "_ft_in" in tag or "_gap" in architecture
    ):  # a classifier made of one; the tower without its projection
        return False
    return (
        "_clip_" in f"{architecture}_"
        or tag.startswith(("clip_laion", "apple_mclip"))
        or "datacomp1b_clip" in tag
        or "pe_core" in architecture
    )


def test_output_of_every_pretrained_model(registry):
    assert len(registry) > 1500
    found = {name for name, config in registry.items() if chosen(config) == "projected"}
    assert found == {name for name in registry if is_contrastive_tower(name)}
    assert len(found) > 80
    others = {chosen(config) for name, config in registry.items() if name not in found}
    assert others == {"pooled"}


@pytest.mark.parametrize(
    ("name", "dim"),
    [
        ("vit_large_patch14_clip_quickgelu_224.openai", 768),
        ("vit_large_patch14_clip_336.openai", 768),
        ("vit_base_patch32_clip_224.laion2b", 512),
        ("vit_base_patch16_clip_224.datacompxl", 512),
        ("resnet50_clip.openai", 1024),
        ("convnext_base.clip_laion2b", 640),
        ("eva02_large_patch14_clip_336.merged2b", 768),
        ("vit_pe_core_base_patch16_224.fb", 1024),
        ("fastvit_mci2.apple_mclip", 512),
        ("vit_base_mci_224.apple_mclip", 512),
        ("vitamin_large_224.datacomp1b_clip", 768),
        ("vitamin_small_224.datacomp1b_clip", 384),
        ("vitamin_small_224.datacomp1b_clip_ltt", 768),
    ],
)
def test_towers_with_a_projection(registry, name, dim):
    config = registry[name]
    assert chosen(config) == chosen(config, "projected") == "projected"
    assert config["num_classes"] == dim and dim in projection_dims(config)
    assert chosen(config, "pooled") == "pooled"
    with pytest.raises(ConfigError, match=r"it: output='logits'.*ends in a projection.*output='auto'"):
        chosen(config, "logits")


@pytest.mark.parametrize(
    ("name", "has_logits"),
    [
        ("resnet50.a1_in1k", True),
        ("convnext_base.clip_laion2b_augreg_ft_in12k_in1k", True),
        ("vit_base_patch16_clip_224.laion2b_ft_in12k", True),
        ("vit_base_patch16_clip_224.openai_ft_in1k", True),
        ("vit_so400m_patch14_siglip_378.webli_ft_in1k", True),
        ("tf_efficientnetv2_s.in21k", True),
        ("vit_base_patch14_dinov2.lvd142m", False),
        ("vit_base_patch16_siglip_224.webli", False),
        ("resnet50_clip_gap.openai", False),
    ],
)
def test_models_without_a_projection(registry, name, has_logits):
    config = registry[name]
    assert chosen(config) == "pooled"
    with pytest.raises(ConfigError, match=r"it: output='projected' needs a contrastive tower.*'pooled'"):
        chosen(config, "projected")
    if has_logits:
        assert chosen(config, "logits") == "logits"
    else:
        with pytest.raises(ConfigError, match=r"output='logits' needs a classifier.*has no head"):
            chosen(config, "logits")


# What an encoder gives, against the plain model


def pixels_of(count, size, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (count, *size, 3), np.uint8))


def timm_vectors(name, pixels, *, head, **kwargs):
    """timm alone: its model, its normalisation of such pixels."""
    model = create_timm_model(name, False, None, kwargs)
    config = resolve_data_config({}, model=model)
    normalize = create_transform(**config).transforms[-1]
    if not head:
        without = timm.create_model(name, num_classes=0, **kwargs).eval()
        kept = without.state_dict().keys()
        without.load_state_dict({key: value for key, value in model.state_dict().items() if key in kept})
        model = without
    inputs = normalize(pixels.permute(0, 3, 1, 2).to(torch.float32) / 255)
    with torch.inference_mode():
        return model(inputs).numpy()


SHALLOW = {"img_size": 32, "depth": 2}  # the whole architecture takes seconds
CASES = [
    ("test_vit", {}, "auto", "pooled", 64, False),
    ("test_vit", {}, "logits", "logits", 1000, True),
    ("resnet10t", {}, "auto", "pooled", 512, False),
    ("test_efficientnet", {}, "auto", "pooled", 256, False),
    ("test_convnext", {}, "pooled", "pooled", 64, False),
    (SMALL_CLIP, SHALLOW, "auto", "projected", 512, True),
    (SMALL_CLIP, SHALLOW, "pooled", "pooled", 256, False),
    ("vit_base_patch16_siglip_224", SHALLOW, "auto", "pooled", 768, True),
]


@pytest.mark.parametrize(("name", "kwargs", "wanted", "output", "dim", "head"), CASES)
def test_same_vectors_as_timm(name, kwargs, wanted, output, dim, head, device):
    """SigLIP has no projection: its pooled output, of its own head, is its embedding."""
    spec = random_spec(name, output=wanted, model_kwargs=tuple(kwargs.items()), normalize=False)
    encoder = spec.build()
    assert encoder.info.model == " ".join([name, *(f"{key}={value}" for key, value in kwargs.items())])
    if "img_size" in kwargs:
        assert encoder.transform.size == (kwargs["img_size"],) * 2
    assert (encoder.info.output, encoder.dim) == (output, dim)
    pixels = pixels_of(3, encoder.transform.size)
    vectors = encoder(pixels.to(encoder.backend.torch_device))
    assert vectors.shape == (3, dim) and vectors.dtype == np.float32
    expected = timm_vectors(name, pixels, head=head, **kwargs)
    assert np.std(expected, axis=0).max() > 0  # three images, three vectors
    scale = np.abs(expected).max()
    np.testing.assert_allclose(vectors / scale, expected / scale, atol=1e-5 if device == "cpu" else 5e-3)


@pytest.mark.parametrize("normalize", [True, False])
def test_shapes_lengths_and_normalisation(normalize):
    encoder = random_spec("test_vit", normalize=normalize).build()
    assert encoder.info.normalized is normalize and encoder.info.dtype == "float32"
    pixels = pixels_of(7, (160, 160))
    plain = timm_vectors("test_vit", pixels, head=False)
    expected = plain / np.linalg.norm(plain, axis=1, keepdims=True) if normalize else plain
    for count in (0, 1, 7):
        vectors = encoder(pixels[:count])
        assert vectors.shape == (count, 64) and vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, expected[:count], atol=1e-5)


@pytest.mark.parametrize(("size", "expected"), [(64, (64, 64)), ((48, 64), (48, 64))])
def test_image_size_of_the_transform(size, expected):
    encoder = random_spec("test_vit", model_kwargs=(("img_size", size),)).build()
    assert encoder.transform.size == expected
    assert encoder(pixels_of(2, expected)).shape == (2, 64)


def test_transform_is_that_of_timm():
    spec = random_spec("test_vit").build().transform
    config = resolve_data_config({}, model=timm.create_model("test_vit"))
    assert spec == TransformSpec.from_timm(config)
    assert (spec.size, spec.mean, spec.crop_pct) == ((160, 160), (0.5, 0.5, 0.5), 0.95)


def test_autocast_gives_float32(device):
    encoder = TimmSpec("test_vit", pretrained=False, autocast=True, normalize=True).build()
    pixels = pixels_of(4, (160, 160)).to(encoder.backend.torch_device)
    vectors = encoder(pixels)
    wanted = encoder.backend.autocast_dtype()
    assert encoder.info.dtype == ("float32" if wanted is None else str(wanted).removeprefix("torch."))
    assert vectors.dtype == np.float32
    full = random_spec("test_vit").build()(pixels)
    assert (vectors * full).sum(axis=1).min() > 0.999


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_batch_normalisation_is_not_done_in_bf16(name, device, monkeypatch):
    monkeypatch.setattr(backend, "_cpu_has_bf16", lambda: True)
    assert TimmSpec("test_vit", pretrained=False).build().dtype is backend.current().autocast_dtype()
    encoder = TimmSpec(name, pretrained=False).build()
    assert encoder.info.dtype == {"cpu": "float32", "gpu": "float16"}[device]


@pytest.mark.parametrize(("name", "enough"), [("test_vit", True), ("test_nfnet", False)])
def test_half_precision_is_kept_where_it_is_measured_to_be_enough(name, enough, device, monkeypatch):
    monkeypatch.setattr(backend, "_cpu_has_bf16", lambda: True)
    encoder = TimmSpec(name, pretrained=False, compile=False).build()
    info, half = encoder.info.to_dict(), str(backend.current().autocast_dtype()).removeprefix("torch.")
    inputs = torch.from_numpy(pictures(*encoder.transform.size))
    full = random_spec(name).build()(inputs.to(encoder.backend.torch_device))
    assert (info["least_cosine"] >= LEAST_COSINE) == enough and info["dtype"] == (
        half if enough else "float32"
    )
    assert ((encoder(inputs.to(encoder.backend.torch_device)) * full).sum(axis=1) >= LEAST_COSINE).all()
    other = 0.99999999 if enough else 0.9
    assert TimmSpec(name, pretrained=False, autocast=other).build().info.dtype == (
        "float32" if enough else half
    )
    assert "least_cosine" not in random_spec(name).build().info.to_dict()


def test_the_limit_of_half_precision_is_a_cosine():
    for wrong in (1, 1.0, 0.0, "half"):
        with pytest.raises(ConfigError, match=r"autocast=.*least cosine"):
            TimmImageEmbedder("test_vit", autocast=wrong)


# The same weights everywhere


def digest_of(name, **kwargs):
    return state_digest(create_timm_model(name, False, None, kwargs))


def test_random_weights_are_the_same_when_models_are_built_at_once():
    names = ["test_vit", "test_vit2", "test_vit3", "test_efficientnet", "test_resnet"] * 2
    with ThreadPoolExecutor(len(names)) as pool:
        at_once = list(pool.map(digest_of, names))
    assert at_once == [digest_of(name) for name in names]


def test_building_neither_uses_nor_changes_the_random_state():
    torch.manual_seed(4)
    before = digest_of("test_vit")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert digest_of("test_vit") == before
    assert torch.equal(torch.rand(3), expected)


def test_digest_tells_models_apart():
    model = create_timm_model("test_vit", False, None, {})
    digests = [
        state_digest(model),
        digest_of("test_vit2"),
        digest_of("test_vit", num_classes=10),
        digest_of("test_vit", img_size=64),
    ]
    with torch.no_grad():
        model.norm.weight[3] += 1e-6
        digests.append(state_digest(model))
        model.norm.weight[3] = 1.0
    assert state_digest(model) == digests[0]
    digests += [
        state_digest(model.half()),
        state_digest(torch.nn.BatchNorm2d(2)),
        state_digest(torch.nn.ReLU()),
    ]
    assert len(set(digests)) == len(digests)


def test_digest_counts_names_shapes_and_buffers():
    def digest(**tensors):
        module = torch.nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return state_digest(module)

    zeros = torch.zeros(2, 3)
    others = [
        zeros,
        zeros.reshape(3, 2),
        zeros.bool(),
        zeros.to(torch.bfloat16),
        torch.tensor(0.0),
        zeros[:0],
    ]
    found = [digest(a=tensor) for tensor in others] + [digest(b=zeros), digest(a=zeros, b=zeros)]
    assert len(set(found)) == len(found)
    assert digest(a=zeros.T.contiguous().T) == digest(a=zeros)  # how it lies in memory does not matter


# What cannot be built, and what to do about it


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("resnet5O", {}, r"'resnet5O'.*no architecture 'resnet5O'. Nearest: resnet50,"),
        ("vit_base_patch16_clip", {}, r"Nearest: .*vit_base_patch16_clip_224"),
        ("timm/resnet50", {}, r"Nearest: resnet50.*hf-hub:org/repo or local-dir:/folder"),
        ("qqqqq", {}, r"no architecture 'qqqqq'. Other sources need a prefix"),
        ("resnet50.a1_in2k", {}, r"no weights 'a1_in2k' for resnet50; it has: a1_in1k,"),
        ("test_vit4.any", {}, r"no weights 'any' for test_vit4; it has: none"),
        ("local-dir:", {}, r"model_name='local-dir:': expected .* folder after the colon"),
        ("hf-hub:", {}, r"model_name='hf-hub:': expected a repository"),
        ("test_vit", {"imgsize": 64}, r"test_vit: .*model_kwargs=\{'imgsize': 64\}.*'imgsize'"),
        ("resnet10t", {"img_size": 64}, r"resnet10t: .*model_kwargs=\{'img_size': 64\}.*'img_size'"),
        ("test_vit", {"img_size": -3}, r"test_vit: timm could not build it"),
        ("resnet10t", {"in_chans": 1}, r"resnet10t takes 1 channels; expected 3 \(RGB\)"),
        ("resnet10t", {"features_only": True}, r"'features_only': True\} timm gives a FeatureListNet"),
        (
            "resnet10t",
            {"global_pool": ""},
            r"resnet10t with random weights: expected one vector an image.*\[2, dim\].*\[2, 512, 6, 6\]",
        ),
    ],
)
def test_names_and_arguments_that_timm_does_not_know(name, kwargs, message):
    with pytest.raises(ConfigError, match=message):
        random_spec(name, model_kwargs=tuple(kwargs.items())).build()


def test_a_name_for_which_timm_has_no_weights():
    with pytest.raises(WeightsError, match=r"test_vit4: timm .* knows no weights for it.*pretrained=False"):
        TimmSpec("test_vit4").build()


# Folders and checkpoints


def write_model(folder, name="test_vit", seed=3, **kwargs):
    """A model folder as timm's `save_for_hf` makes it, with weights that are not those of seed 0."""
    torch.manual_seed(seed)
    model = timm.create_model(name, **kwargs).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    return model


def test_model_folder(tmp_path):
    model = write_model(tmp_path / "model")
    assert {"config.json", "model.safetensors"} <= {path.name for path in (tmp_path / "model").iterdir()}
    encoder = TimmSpec(
        f"local-dir:{tmp_path}/model", output="logits", normalize=False, autocast=False
    ).build()
    assert encoder.info.weights == state_digest(model)
    assert encoder.info.source == f"local-dir:{tmp_path}/model" and encoder.info.model == "test_vit"
    pixels = pixels_of(2, (160, 160))
    with torch.inference_mode():
        expected = model(encoder.transform.normalize(pixels)).numpy()
    np.testing.assert_allclose(encoder(pixels), expected, atol=1e-5)
    # Without the weights' file the name still gives the architecture.
    random_one = TimmSpec(f"local-dir:{tmp_path}/model", pretrained=False, output="logits").build()
    assert random_one.info.weights == digest_of("test_vit")


def test_transform_of_a_model_folder(tmp_path):
    write_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["pretrained_cfg"] |= {
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert TimmSpec(f"local-dir:{tmp_path}").build().transform == TransformSpec(
        (160, 160), "bilinear", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 1.0, "squash"
    )
    resized = TimmSpec(f"local-dir:{tmp_path}", model_kwargs=(("img_size", 96),)).build()
    assert resized.transform.size == (96, 96)
    assert resized(pixels_of(1, (96, 96))).shape == (1, 64)


def test_a_projection_in_a_model_folder(tmp_path):
    """The architecture and tag of config.json say that it is a contrastive tower, not the folder's name."""
    write_model(tmp_path / "resnet50", SMALL_CLIP, **SHALLOW)
    encoder = TimmSpec(f"local-dir:{tmp_path}/resnet50").build()
    assert (encoder.info.output, encoder.dim) == ("projected", 512)


def broken_folder(folder, kind):
    if kind == "no folder":
        return
    write_model(folder)
    config = json.loads((folder / "config.json").read_text())
    if kind == "no config":
        (folder / "config.json").unlink()
    elif kind == "no weights":
        (folder / "model.safetensors").unlink()
    elif kind == "no JSON":
        (folder / "config.json").write_text("{")
    elif kind == "unknown architecture":
        (folder / "config.json").write_text(json.dumps(config | {"architecture": "test_vat"}))
    elif kind == "weights of another":
        save_file(timm.create_model("test_vit2").state_dict(), folder / "model.safetensors")
    elif kind == "cut weights":
        whole = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no folder", "no folder .* on this worker"),
        ("no config", "no config.json in .*model.safetensors"),
        ("no weights", "no model.safetensors in .*config.json"),
        ("no JSON", "cannot be loaded: JSONDecodeError"),
        ("unknown architecture", "cannot be loaded: .*test_vat"),
        ("weights of another", "its weights do not fit: missing: .*; not the model's: .*this architecture"),
        ("cut weights", "cannot be loaded: SafetensorError"),
    ],
)
def test_broken_model_folders(tmp_path, kind, message):
    folder = tmp_path / "model"
    broken_folder(folder, kind)
    with pytest.raises(WeightsError, match=f"^local-dir:{folder}: .*{message}") as caught:
        TimmSpec(f"local-dir:{folder}").build()
    assert "hub" not in str(caught.value).replace(str(folder), "")


@pytest.mark.parametrize("form", ["a.safetensors", "a.pth", "a.pt", "wrapped.pth.tar"])
def test_checkpoint_wins_over_all_other_weights(tmp_path, form):
    model, path = write_model(tmp_path / "model"), tmp_path / form
    if form.endswith(".safetensors"):
        save_file(model.state_dict(), path)
    else:
        state = model.state_dict()
        torch.save({"state_dict": state, "epoch": 3} if form.startswith("wrapped") else state, path)
    for name, pretrained in (("test_vit", True), ("test_vit", False), (f"local-dir:{tmp_path}/model", False)):
        encoder = TimmSpec(name, pretrained=pretrained, checkpoint_path=str(path), output="logits").build()
        assert encoder.info.weights == state_digest(model)


class Trap:
    """Pickled, it is a program that makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("form", ["torch", "pickle"])
@pytest.mark.parametrize("where", ["checkpoint", "folder"])
def test_code_in_a_checkpoint_is_not_run(tmp_path, form, where):
    sprung, content = tmp_path / "sprung", {"weight": Trap(tmp_path / "sprung")}
    write_model(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    path = tmp_path / ("a.pth" if where == "checkpoint" else "model/pytorch_model.bin")
    if form == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(WeightsError):
        if where == "checkpoint":
            TimmSpec("test_vit", checkpoint_path=str(path)).build()
        else:
            TimmSpec(f"local-dir:{tmp_path}/model").build()
    assert not sprung.exists()
    with path.open("rb") as file:  # the trap is one
        torch.load(file, weights_only=False) if form == "torch" else pickle.load(file)
    assert sprung.exists()


def test_checkpoints_that_do_not_fit(tmp_path):
    def refuse(path, message):
        with pytest.raises(WeightsError, match=message) as caught:
            TimmSpec("test_vit", pretrained=False, checkpoint_path=str(path)).build()
        assert str(path) in str(caught.value)

    refuse(tmp_path / "missing.pth", "no such file on this worker")
    refuse(tmp_path, "no such file on this worker")
    other = tmp_path / "other.safetensors"
    save_file(timm.create_model("test_vit2").state_dict(), other)
    refuse(other, "does not fit VisionTransformer: .*Give weights of this architecture")
    for name, data in (("text.safetensors", b"no weights"), ("text.pth", b"no weights"), ("empty.pth", b"")):
        (tmp_path / name).write_bytes(data)
        refuse(tmp_path / name, "does not fit VisionTransformer")
    torch.save(list(range(3)), tmp_path / "list.pth")
    refuse(tmp_path / "list.pth", "does not fit VisionTransformer")


@pytest.mark.parametrize("prefix", ["model.", "module.model.", "visual.trunk."])
def test_prefixed_weights_load_as_the_reason_says(tmp_path, prefix):
    model = timm.create_model("test_vit", num_classes=0)
    state = {prefix + name: value for name, value in model.state_dict().items()} | {"scale": torch.zeros(())}
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    with pytest.raises(WeightsError) as caught:
        TimmSpec("test_vit", checkpoint_path=str(tmp_path / "a.pth")).build()
    said, renamed = str(caught.value), tmp_path / "renamed.pth"
    assert re.search(
        r"missing: cls_token, pos_embed, patch_embed.proj.weight and \d+ more; not the model's: ", said
    )
    assert f"the prefix {prefix.removeprefix('module.')!r}" in said
    assert said.endswith('The weights have no classifier. Pass model_kwargs={"num_classes": 0}')
    code = re.search(r"torch\.save\(.*\)", said)[0].replace("PATH", repr(str(tmp_path / "a.pth")))
    exec(code.replace("'renamed.pth'", repr(str(renamed))), {"torch": torch, "timm": timm})
    spec = TimmSpec("test_vit", checkpoint_path=str(renamed), model_kwargs=(("num_classes", 0),))
    assert spec.build().info.weights == state_digest(model)


@pytest.mark.parametrize("classes", [0, 37])
def test_weights_of_another_classifier_load_as_the_reason_says(tmp_path, classes):
    folder = tmp_path / "model"
    write_model(folder)
    model = timm.create_model("test_vit", num_classes=classes)
    save_file(model.state_dict(), folder / "model.safetensors")
    found = "missing: head.weight, head.bias"
    if classes:
        found = r"of another shape: head.weight \(expected \[1000, 64\], found \[37, 64\]\), head.bias \("
    advice = f'{found}.* classifier.* Pass model_kwargs={{"num_classes": {classes}}}$'
    path, output = str(folder / "model.safetensors"), "logits" if classes else "pooled"
    with pytest.raises(WeightsError, match=advice):
        TimmSpec("test_vit", checkpoint_path=path).build()
    fits = TimmSpec("test_vit", checkpoint_path=path, output=output, model_kwargs=(("num_classes", classes),))
    assert fits.build().info.weights == state_digest(model)
    options = f'checkpoint_path= and model_kwargs={{"num_classes": {classes}}}'
    with pytest.raises(WeightsError, match=f"{found}.* Pass the folder's weights as {options}$"):
        TimmSpec(f"local-dir:{folder}").build()
    fits = replace(fits, model_name=f"local-dir:{folder}")
    assert fits.build().info.weights == state_digest(model)


def test_a_checkpoint_needs_no_weights_in_the_model_folder(tmp_path):
    model, path = write_model(tmp_path / "model"), tmp_path / "model" / "best.pth"
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save(model.state_dict(), path)
    name = f"local-dir:{tmp_path}/model"
    with pytest.raises(WeightsError, match=r"no model.safetensors in .*best.pth.* checkpoint_path="):
        TimmSpec(name).build()
    assert TimmSpec(name, checkpoint_path=str(path), output="logits").build().info.weights == state_digest(
        model
    )


# A hub of models, and other processes. A process takes many seconds to import timm: two tell it all.


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of a model hub as a download needs: the files of one repository, with commit and etag."""

    folder: Path
    asked: list[tuple[str, str]]

    def do_HEAD(self, body=False):
        name = self.path.partition("?")[0].rpartition("/")[2]
        file = self.folder / name
        self.asked.append((self.command, self.path))
        known = "/someone/something/resolve/" in self.path and file.is_file()
        data = file.read_bytes() if known else b"{}"
        self.send_response(200 if known or self.path in ("/", "/stop") else 404)
        if known:
            self.send_header("ETag", f'"{name}-1"')
            self.send_header("X-Repo-Commit", "c" * 40)
        else:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)
        if self.path == "/stop":
            self.server.shutdown()  # of the thread that accepts, not of this one
            self.server.server_close()

    def do_GET(self):
        self.do_HEAD(body=True)

    def log_message(self, *args):
        """Quiet."""


ELSEWHERE = """
    import json, os, random, sys, time, urllib.request
    import torch
    from curator_dask.errors import WeightsError
    from curator_dask.models.timm import TimmSpec
    from curator_dask.models.weights import create_timm_model, state_digest

    torch.manual_seed(random.randrange(2**31))
    for line in sys.stdin:
        name, pretrained = json.loads(line)
        started, found = time.monotonic(), None
        if name == "/stop":
            urllib.request.urlopen(os.environ["HF_ENDPOINT"] + name).read()
        else:
            try:
                found = state_digest(create_timm_model(name, pretrained, None, {}))
            except WeightsError as error:
                found = str(error)
        print(json.dumps([found, time.monotonic() - started]), flush=True)
"""
ON_THE_HUB = "hf-hub:someone/something"
NOT_CACHED = [
    ("hf-hub:someone/else", True),
    ("hf-hub:someone/else@v2", False),
    ("test_vit.r160_in1k", True),
    ("test_vit", True),
]
RANDOM = [("test_vit", False), ("test_efficientnet", False)]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """What other processes found: with a hub, then without it; and offline, with the first one's cache."""
    folder = tmp_path_factory.mktemp("hub")
    model = write_model(folder / "repository")
    handler = type("OneHub", (Hub,), {"folder": folder / "repository", "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "HF_HOME": str(folder / "home"),
        "HF_HUB_CACHE": str(folder / "home" / "cached"),
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }

    def ask(questions, **changed):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(ELSEWHERE)],
            input="\n".join(map(json.dumps, questions)),
            env={**environment, **changed},
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    once = [*RANDOM, (ON_THE_HUB, True), ("/stop", None), (ON_THE_HUB, True), *NOT_CACHED]
    try:
        online = ask(once)
    finally:
        server.server_close()
    offline = ask([(ON_THE_HUB, True), *NOT_CACHED], HF_HUB_OFFLINE="1")
    return {
        "random": [found for found, _ in online[:2]],
        "on the hub": state_digest(model),
        "fetched": online[2][0],
        "asked": handler.asked,
        "from the cache": [online[4], offline[0]],
        "not there": online[5:],
        "not there, offline": offline[1:],
        "cache": environment["HF_HUB_CACHE"],
        "endpoint": environment["HF_ENDPOINT"],
    }


def test_random_weights_are_the_same_in_every_process(elsewhere):
    assert elsewhere["random"] == [digest_of(name) for name, _ in RANDOM]
    assert all(text.startswith("sha256:") for text in elsewhere["random"])


def test_weights_from_a_hub(elsewhere):
    """Fetched over HTTP, the second time from the cache, although the hub is gone."""
    assert elsewhere["fetched"] == elsewhere["on the hub"]
    fetched = {path.rpartition("/")[2] for command, path in elsewhere["asked"] if command == "GET"}
    assert {"config.json", "model.safetensors"} <= fetched
    for found, seconds in elsewhere["from the cache"]:
        assert found == elsewhere["on the hub"] and seconds < 15


@pytest.mark.parametrize("offline", [False, True])
def test_weights_that_cannot_be_fetched(elsewhere, offline):
    """Nobody listens at the hub's port: an answer in seconds, not after a minute of retries."""
    answers = elsewhere["not there, offline" if offline else "not there"]
    for (name, _), (text, seconds) in zip(NOT_CACHED, answers, strict=True):
        assert seconds < 15, text
        begin = f"{name}: the weights could not be loaded. Tried: the cache {elsewhere['cache']},"
        assert text.startswith(begin), text
        assert ("HF_HUB_OFFLINE is set" in text) is offline
        assert (f"then {elsewhere['endpoint']}." in text) is not offline
        for way in ("copy that cache", "HF_HUB_OFFLINE=1", "local-dir:/that/folder", "checkpoint_path="):
            assert way in text, way


# Memory that does not suffice, and models that give something else


class Numbers(torch.nn.Module):
    """Gives each image's first pixel; out of memory above `limit` images."""

    def __init__(self, limit=None):
        super().__init__()
        self.limit, self.batches = limit, []

    def forward(self, images):
        self.batches.append(len(images))
        if self.limit is not None and len(images) > self.limit:
            self.held = torch.zeros(1)
            raise torch.OutOfMemoryError("out of memory, as a GPU says it")
        return images[:, :, 0, 0]


PLAIN = TransformSpec((2, 2), "bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def encoder_of(model, transform=PLAIN, **settings):
    options = {"name": "mine", "source": "mine", "output": "model", "normalize": False, "autocast": False}
    return Encoder(model, transform, **{**options, **settings})


def numbered(count):
    """Images whose pixels are their number."""
    return torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 2, 2, 3)


@pytest.mark.skipif(backend.gpu_count() > 0, reason="on a GPU a batch is a forward pass")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_large_batch_goes_through_in_parts_on_a_cpu(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = Numbers()
        encoder = encoder_of(model)
    finally:
        torch.set_num_threads(before)
    model.batches.clear()
    vectors = encoder(numbered(101))
    assert model.batches == ([16] * 6 + [5] if threads == 1 else [32] * 3 + [5])
    np.testing.assert_allclose(vectors[:, 0] * 255, np.arange(101), atol=1e-3)


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(2**60, dtype=torch.uint8),
        lambda: np.empty(2**60, np.uint8),
        lambda: bytearray(2**60),
    ],
    ids=["torch", "numpy", "python"],
)
def test_an_allocator_of_the_host_that_has_no_more(allocate):
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        allocate()
    assert backend.is_out_of_memory(raised.value)


def test_words_of_allocators_of_a_gpu_and_of_other_errors():
    """As RMM 26.10, torch over RMM, DALI 2.4 and CUDA say it in their sources; none can be had without a GPU."""
    full = [
        MemoryError("std::bad_alloc: out_of_memory: CUDA error (failed to allocate 8 bytes)"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("Critical error in pipeline: CUDA allocation failed"),
    ]
    other = [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("out of memory"),
        OSError(),
    ]
    assert [backend.is_out_of_memory(error) for error in (*full, *other)] == [True] * 3 + [False] * 3


@pytest.mark.usefixtures("no_idle_models")
def test_out_of_memory_halves_the_batch(caplog, monkeypatch):
    monkeypatch.setattr(encoders, "IMAGES_A_THREAD", 23)
    model = Numbers(limit=3)
    encoder = encoder_of(model)
    model.batches.clear()
    with caplog.at_level(logging.INFO, "curator_dask"):
        first, second = encoder(numbered(23)), encoder(numbered(10))
    np.testing.assert_allclose(first[:, 0] * 255, np.arange(23), atol=1e-3)
    np.testing.assert_allclose(second[:, 0] * 255, np.arange(10), atol=1e-3)
    assert model.batches == [23, 12, 6, 3, 3, 3, 3, 3, 3, 3, 2, 3, 3, 3, 1]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["mine: out of memory with a batch of 23 images, going on with 12 (set batch_size=12)"]
    assert encoder(numbered(0)).shape == (0, 3)


def test_out_of_memory_with_one_image_is_an_error():
    model = Numbers()
    encoder = encoder_of(model)
    model.limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        encoder(numbered(5))
    model.limit = None
    assert len(encoder(numbered(5))) == 5  # the lock was given back


class HoldsMemory(torch.nn.Module):
    """Runs out of memory above 2 images, and remembers a tensor of the pass that failed."""

    failed = None

    def forward(self, images):
        if len(images) > 2:
            large = torch.zeros(4)
            self.failed = weakref.ref(large)
            raise torch.OutOfMemoryError
        return images.mean(dim=(2, 3))


def test_memory_of_a_failed_pass_is_free_when_the_device_gets_it_back():
    """The exception's traceback holds the tensors of the pass: as long as it lives nothing can be released."""
    model, alive = HoldsMemory(), []
    encoder = encoder_of(model)
    handler = logging.Handler()
    handler.emit = lambda record: alive.append(model.failed() is not None)  # said right after the release
    logger = logging.getLogger("curator_dask")
    logger.addHandler(handler)
    try:
        assert encoder(numbered(4)).shape == (4, 3)
    finally:
        logger.removeHandler(handler)
    assert alive == [False]


def test_nan_passes_through():
    """What to do with such a row is decided where its key is known."""

    class Sometimes(torch.nn.Module):
        def forward(self, images):
            vectors = images.mean(dim=(2, 3))
            return torch.where(vectors > 1.5 / 255, torch.nan, vectors)

    for normalize in (False, True):
        vectors = encoder_of(Sometimes(), normalize=normalize)(numbered(4))
        assert np.isnan(vectors).all(axis=1).tolist() == [False, False, True, True]
        assert np.isfinite(vectors[:2]).all()  # a vector of zeros too


class Gives(torch.nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, images):
        return self.what(images)


@pytest.mark.parametrize(
    ("what", "found"),
    [
        (lambda images: images.flatten(2), r"\[2, 3, 4\]"),
        (lambda images: images[:, 0, 0, 0], r"\[2\]"),
        (lambda images: images[:1].flatten(1), r"\[1, 12\]"),
        (lambda images: torch.cat([images, images]).flatten(1), r"\[4, 12\]"),
        (lambda images: images.sum(), r"\[\]"),
        (lambda images: (images, images), "tuple"),
        (lambda images: {"vector": images}, "dict"),
        (lambda images: None, "NoneType"),
        (lambda images: images.numpy(), "ndarray"),
    ],
)
def test_models_that_do_not_give_vectors(what, found):
    message = rf"^mine: expected one vector an image, a tensor of shape \[2, dim\]; the model gave {found}"
    with pytest.raises(ConfigError, match=message):
        encoder_of(Gives(what))


def test_a_function_as_model_and_a_transform_of_ones_own():
    def transform(image):
        return torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1)[:, :8, :8]

    encoder = encoder_of(lambda images: images.mean(dim=(2, 3)).to(torch.bfloat16), transform)
    assert (encoder.dim, encoder.info.weights, encoder.info.output) == (3, "unknown", "model")
    assert encoder.info.transform.endswith("transform")
    assert encoder(torch.ones(2, 3, 8, 8)).tolist() == [[1, 1, 1]] * 2
    assert json.loads(json.dumps(encoder.info.to_dict())) == encoder.info.to_dict()
    with pytest.raises(
        ConfigError, match=r"^mine: expected the transform to give a float32 tensor.*gave ndarray"
    ):
        encoder_of(MeanColour(), np.asarray)


def test_a_closed_encoder_lets_its_model_go():
    model = MeanColour()
    gone = weakref.ref(model)
    encoder = encoder_of(model)
    encoder.close()
    del model
    gc.collect()
    assert gone() is None and encoder.model is None


# One live object a process


class Thing:
    def __init__(self):
        self.closed = False

    def close(self):
        self.closed = True


def test_equal_specs_share_and_different_ones_do_not():
    cache = SpecCache(4)
    with cache.lease(random_spec("test_vit"), Thing) as first:
        with cache.lease(random_spec("test_vit"), Thing) as second:
            assert first is second
        for other in (
            random_spec("test_vit", output="pooled"),
            random_spec("test_vit", normalize=False),
            random_spec("test_vit", autocast=True),
            random_spec("test_vit", model_kwargs=(("img_size", 64),)),
            random_spec("test_vit", checkpoint_path="a"),
            TimmSpec("test_vit", autocast=False),
        ):
            with cache.lease(other, Thing) as third:
                assert third is not first
    with cache.lease(random_spec("test_vit"), Thing) as again:
        assert again is first and not first.closed  # in use all the while, and used last
    assert len(cache.specs()) == 4


def test_threads_that_ask_at_once_build_once():
    cache, built, start = SpecCache(2), [], threading.Barrier(6)
    found = []

    def build():
        time.sleep(0.05)
        built.append(Thing())
        return built[-1]

    def ask(spec):
        start.wait()
        with cache.lease(spec, build) as thing:
            found.append((spec, thing))

    threads = [threading.Thread(target=ask, args=(spec,)) for spec in "aaabbb"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 2
    assert len({(spec, id(thing)) for spec, thing in found}) == 2 and len(found) == 6


def test_the_one_used_longest_ago_goes_first_and_none_in_use():
    cache, things = SpecCache(2), {name: Thing() for name in "abcd"}

    def use(name):
        return cache.lease(name, lambda: things[name])

    for name in "aba":
        with use(name):
            pass
    assert cache.specs() == ["b", "a"]
    with use("c"):
        assert things["b"].closed and not things["a"].closed
    with use("a"), use("c"), use("d"):  # three in use: more than there is room for
        assert not any(things[name].closed for name in "acd")
        assert cache.specs() == ["a", "c", "d"]
    assert sum(things[name].closed for name in "acd") == 1
    assert len(cache.specs()) == 2


def test_what_was_pushed_out_is_gone_while_the_next_is_in_use():
    cache = SpecCache(1)
    with cache.lease("a", Thing) as thing:
        gone = weakref.ref(thing)
    del thing
    with cache.lease("b", Thing):
        gc.collect()
        assert gone() is None


def test_a_build_that_fails_leaves_nothing():
    cache = SpecCache(2)

    def fail():
        raise WeightsError("not there")

    with pytest.raises(WeightsError), cache.lease("a", fail):
        pass
    assert cache.specs() == []
    with cache.lease("a", Thing) as thing:
        assert not thing.closed
    assert cache.specs() == ["a"]


def test_a_build_that_fails_is_tried_by_the_next_that_waits():
    cache, entered, results = SpecCache(2), threading.Event(), []

    def fail():
        entered.set()
        time.sleep(0.1)
        raise WeightsError("not there")

    def ask(build):
        try:
            with cache.lease("a", build) as thing:
                results.append(type(thing))
        except WeightsError:
            results.append(WeightsError)

    first = threading.Thread(target=ask, args=(fail,))
    first.start()
    assert entered.wait(5)
    ask(Thing)
    first.join()
    assert sorted(results, key=str) == sorted([WeightsError, Thing], key=str)
    assert cache.specs() == ["a"]


def test_an_error_while_in_use_keeps_the_object():
    cache = SpecCache(1)
    with pytest.raises(ZeroDivisionError), cache.lease("a", Thing):
        raise ZeroDivisionError
    with cache.lease("a", lambda: pytest.fail("it is there already")) as thing:
        assert not thing.closed


def test_a_close_that_fails_does_not_keep_a_lease():
    class Stuck(Thing):
        def close(self):
            raise OSError("stuck")

    cache = SpecCache(1)
    with cache.lease("a", Stuck):
        pass
    with pytest.raises(OSError, match="stuck"), cache.lease("b", Thing):
        pass
    with cache.lease("c", Thing):
        pass
    assert cache.specs() == ["c"]  # "b" is not thought to be in use for ever


def test_clear_closes_what_is_idle():
    cache = SpecCache(3)
    with cache.lease("a", Thing) as idle:
        pass
    with cache.lease("b", Thing) as used:
        cache.clear()
        assert idle.closed and not used.closed and cache.specs() == ["b"]
    cache.clear()
    assert used.closed and cache.specs() == []


@dataclasses.dataclass(frozen=True)
class OfFile:
    """What is built of a file."""

    path: Path

    @property
    def source_state(self):
        return files_state([str(self.path)])


def test_what_was_built_of_other_files_goes(tmp_path):
    cache, spec = SpecCache(2), OfFile(tmp_path / "file")
    assert not cache.refresh(spec)
    with cache.lease(spec, Thing) as before:  # of a file that is fetched by the build, say
        spec.path.write_text("a")
    assert cache.refresh(spec) and before.closed
    with cache.lease(spec, Thing) as first:
        assert not cache.refresh(spec)
        spec.path.write_text("another")
        assert cache.refresh(spec) and not first.closed  # it is in use
        with cache.lease(spec, Thing) as second:
            assert second is not first and not cache.refresh(spec)
    assert first.closed and not second.closed and cache.specs() == [spec]
    spec.path.unlink()
    assert not cache.refresh(spec) and not second.closed
    with cache.lease(spec, lambda: pytest.fail("it is there already")) as again:
        assert again is second
    cache.forget(spec)
    assert second.closed and cache.specs() == [] and not cache.in_use()


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_model_of_other_files_is_loaded_for_the_next_run(tmp_path, client, checkpoint):
    """On workers that have it from the run before."""
    write_dataset(tmp_path / "data", shards=4)
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")

    def write(folder, seed):
        torch.manual_seed(seed)
        save_for_hf(timm.create_model("test_vit").eval(), folder, safe_serialization=True)
        return folder / "model.safetensors"

    def save(folder, out, **options):
        given = (
            {"model_name": "test_vit", "checkpoint_path": folder / "model.safetensors"}
            if checkpoint
            else {"model_name": f"local-dir:{folder}"}
        )
        made = TimmImageEmbedder(**given, num_threads_per_worker=1)(dataset)
        summary = made.save_metadata(tmp_path / out, **options)
        return summary, np.stack(read_output(tmp_path / out).sort_by("key")["image_embedding"].to_pylist())

    write(tmp_path / "model", 1)
    other = write(tmp_path / "other", 2)
    _, before = save(tmp_path / "model", "out")
    shutil.copy(other, tmp_path / "model")
    with pytest.raises(OutputError, match="column 'image_embedding' was made with weights"):
        save(tmp_path / "model", "out")
    summary, after = save(tmp_path / "model", "out", overwrite=True)
    _, expected = save(tmp_path / "other", "expected")
    assert summary.written == 4 and np.array_equal(after, expected)
    assert np.abs(after - before).max() > 0.01
    assert save(tmp_path / "model", "out")[0].skipped == 4


def test_a_run_does_not_go_on_with_a_model_that_another_has_loaded_anew(tmp_path):
    path = tmp_path / "model.safetensors"
    spec = random_spec("test_vit", checkpoint_path=str(path))
    for seed in (1, 2):
        torch.manual_seed(seed)
        save_file(timm.create_model("test_vit").state_dict(), path)
        step = EmbedPartition(spec, "key", "image_embedding", 4, 1, "pillow", 10**6, "null", True, ())
        if seed == 1:
            run = Fit((step,), Loaded(step.describe(), frozenset()))
            run.check()
        else:
            run.check()  # nobody has looked at the files since: what it has is what it began with
            step.describe()
            with pytest.raises(WorkerUnfit, match="does not run the same model as the first workers"):
                run.check()


# One model a worker, on a real cluster


class CountingReader(ColourReader):
    """Says each time that it loads its model."""

    loaded: list = []  # noqa: RUF012 - of the class, so of the process, as the workers are threads of this one

    def __init__(self, note, **settings):
        super().__init__(**settings)
        self.note = note

    def load_embedding_model(self, device):
        model = super().load_embedding_model(device)
        CountingReader.loaded.append((self.note, weakref.ref(model)))
        time.sleep(0.1)  # time for another thread to come by
        return model


@pytest.fixture
def cluster():
    ENCODERS.clear()
    CountingReader.loaded.clear()
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None, protocol="inproc://"
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client
        check_nothing_left(client)
    ENCODERS.clear()
    assert ENCODERS.specs() == []


def test_one_model_a_worker(tmp_path, cluster, monkeypatch):
    monkeypatch.setattr(ENCODERS, "capacity", 2)  # more where a pass had more models at once
    write_dataset(tmp_path, shards=8, samples=3)
    dataset = ImageTextPairDataset.from_webdataset(tmp_path)

    def embed(note, **settings):
        frame = CountingReader(note, **settings)(dataset).metadata.compute()
        check_colours(frame["key"], frame["image_embedding"])
        return [name for name, _ in CountingReader.loaded]

    assert embed("one") == ["one"]  # 8 partitions, 2 threads
    assert embed("one") == ["one"]
    assert embed("two") == ["one", "two"]
    assert embed("one") == ["one", "two"]  # both are kept
    assert embed("three") == ["one", "two", "three"]
    gc.collect()
    alive = {name: reference() is not None for name, reference in CountingReader.loaded}
    assert alive == {"one": True, "two": False, "three": True}  # "two" was used longest ago
    assert embed("two") == ["one", "two", "three", "two"]


def test_two_models_in_one_graph(tmp_path, cluster):
    write_dataset(tmp_path, shards=4, samples=3)
    dataset = ImageTextPairDataset.from_webdataset(tmp_path)
    both = CountingReader("b", image_embedding_column="b")(
        CountingReader("a", image_embedding_column="a")(dataset)
    )
    frame = both.metadata.compute()
    check_colours(frame["key"], frame["a"])
    check_colours(frame["key"], frame["b"])
    assert sorted(name for name, _ in CountingReader.loaded) == ["a", "b"]
