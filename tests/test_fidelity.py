"""Vectors against timm's own: its model, its transform, under Pillow. Real weights, real photographs."""

from __future__ import annotations

import functools
import importlib.util
import io
import sys
from pathlib import Path

import dask
import numpy as np
import pytest
import torch
from colours import write_tar
from PIL import Image

from curator_dask import backend
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.frames.columns import list_to_matrix
from curator_dask.image.embedders import TimmImageEmbedder

SCRIPTS = Path(__file__).parent.parent / "scripts"
SIZES = [
    (320, 240),
    (240, 320),
    (224, 224),
    (256, 256),
    (500, 375),
    (375, 500),
    (121, 333),
    (640, 480),
    (97, 401),
]
SIZES += [(64, 48), (225, 223), (1200, 300)]


def photographs():
    """Photographs carried in scikit-image's wheel, as JPEG: each size of half of them, each of them in both kinds."""
    folder = Path(importlib.util.find_spec("skimage").origin).parent / "data"
    found = [folder / name for name in ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png")]
    for which, path in enumerate(path for path in found if path.exists()):
        with Image.open(path) as image:
            for number, size in enumerate(SIZES):
                if (which + number // 2) % 2:
                    continue
                file = io.BytesIO()
                quality, subsampling = (95, 0) if number % 2 else (85, 2)
                image.convert("RGB").resize(size).save(file, "JPEG", quality=quality, subsampling=subsampling)
                yield f"{path.stem}-{size[0]}x{size[1]}", file.getvalue()


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    sys.path.insert(0, str(SCRIPTS))
    try:
        from pretrained_efficientnet import write_model_folder
    finally:
        sys.path.remove(str(SCRIPTS))
    return write_model_folder(tmp_path_factory.mktemp("weights") / "lite0")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    images = tuple(photographs())
    assert len(images) >= 18
    folder = tmp_path_factory.mktemp("photographs")
    write_tar(folder / "0.tar", [(f"{key}.jpg", data) for key, data in images])
    return folder, images


@functools.cache
def timms_own(images, model_folder, **config):
    """L2-normalised pooled features, one image at a time, as a timm user computes them."""
    import timm
    from timm.data import create_transform, resolve_data_config

    model = timm.create_model(f"local-dir:{model_folder}", pretrained=True, num_classes=0).eval()
    transform = create_transform(**{**resolve_data_config({}, model=model), **config})
    with torch.inference_mode():
        vectors = {
            key: model(transform(Image.open(io.BytesIO(data)).convert("RGB"))[None])[0]
            for key, data in images
        }
    return {key: torch.nn.functional.normalize(vector, dim=0).numpy() for key, vector in vectors.items()}


def embed(folder, model_folder, **settings):
    settings = {"autocast": False} | settings
    embedder = TimmImageEmbedder(f"local-dir:{model_folder}", batch_size=16, **settings)
    with dask.config.set(scheduler="sync"):
        frame = embedder(ImageTextPairDataset.from_webdataset(folder)).compute()
    assert frame["image_error"].isna().all(), frame["image_error"].dropna().tolist()
    matrix, valid = list_to_matrix(frame["image_embedding"])
    assert valid.all()
    return dict(zip(frame["key"], matrix, strict=True))


@pytest.mark.parametrize(("decoder", "bound"), [("dali", 0.9999), ("pillow", 0.99999)])
def test_min_cosine_against_timm_under_pillow(images, model_folder, decoder, bound, device):
    folder, data = images
    bound = 0.999 if (device, decoder) == ("gpu", "dali") else bound
    expected, found = timms_own(data, model_folder), embed(folder, model_folder, decoder=decoder)
    assert expected.keys() == found.keys()
    cosines = {key: float(np.dot(expected[key], found[key])) for key in expected}
    worst = min(cosines, key=cosines.__getitem__)
    assert cosines[worst] >= bound, (worst, cosines[worst])
    assert all(abs(np.linalg.norm(vector) - 1) < 1e-5 for vector in found.values())


def test_autocast_where_bf16_is_fast(images, model_folder, device, monkeypatch):
    """The default, also on a CPU that has bf16 (on another it would be slow here, but as coarse)."""
    monkeypatch.setattr(backend, "_cpu_has_bf16", lambda: True)
    folder, data = images
    expected = timms_own(data, model_folder)
    found = embed(folder, model_folder, decoder="pillow", autocast=True)
    bound = {"cpu": 0.99999, "gpu": 0.9998}[device]
    assert min(float(np.dot(expected[key], found[key])) for key in expected) >= bound


def test_the_test_can_tell(images, model_folder):
    """A transform that is off by its crop alone falls below the bounds above."""
    _, data = images
    some = data[:6]
    right, wrong = timms_own(data, model_folder), timms_own(some, model_folder, crop_pct=1.0)
    assert min(float(np.dot(right[key], wrong[key])) for key in wrong) < 0.999


def test_unnormalised_logits(images, model_folder, tmp_path):
    import timm

    data = images[1][:5]
    write_tar(tmp_path / "0.tar", [(f"{key}.jpg", image) for key, image in data])
    found = embed(tmp_path, model_folder, normalize_embeddings=False, output="logits", decoder="pillow")
    from timm.data import create_transform, resolve_data_config

    model = timm.create_model(f"local-dir:{model_folder}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config({}, model=model))
    for key, image in data:
        with torch.inference_mode():
            expected = model(transform(Image.open(io.BytesIO(image)).convert("RGB"))[None])[0].numpy()
        np.testing.assert_allclose(found[key], expected, atol=2e-3)
        assert found[key].shape == (1000,)
