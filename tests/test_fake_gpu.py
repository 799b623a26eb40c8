"""All that torch computes on a GPU has its tensors there, and brings to the host what it reads: seen without a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from detectors import ASKED, write_detector
from fake_gpu import GPU, fake_gpu, on_the_host
from texts import make_pair

from curator_dask.compare import kernel, moments, neighbours
from curator_dask.decode.dali import DALI_MODES, DaliDecoder
from curator_dask.decode.resize import DeviceResize
from curator_dask.decode.transforms import TransformSpec
from curator_dask.dedup import nearest, products
from curator_dask.image.classifiers.clusters import NearestCentroid
from curator_dask.image.classifiers.reference import Nearest
from curator_dask.models import clip_text, detecting, encoders, texts, towers
from curator_dask.models.clip import ClipSpec
from curator_dask.models.clip_text import ClipTextSpec
from curator_dask.models.detecting import DetectionSpec
from curator_dask.models.detector import Detector
from curator_dask.models.encoders import Encoder
from curator_dask.models.heads import Head

pytestmark = pytest.mark.usefixtures("quiet_transformers")

TRANSFORM = TransformSpec((32, 32), "bicubic", (0.5,) * 3, (0.5,) * 3)
#: grounding-dino is not among them: it reads the shapes of its features from tensors.
SLOWER = ("detr", "conditional-detr", "deformable-detr", "rt-detr", "owlv2")


@pytest.fixture
def gpu(monkeypatch):
    """Models are made, and images prepared, on the host as ever; digests of weights would be read of them there."""
    monkeypatch.setattr(towers, "load_model", on_the_host(towers.load_model))
    monkeypatch.setattr(Detector, "_prepare", on_the_host(Detector._prepare))
    for module in (encoders, texts, clip_text, detecting):
        monkeypatch.setattr(module, "state_digest", lambda model: "none")
    with fake_gpu(monkeypatch):
        yield


def unit(rows, dim=16):
    vectors = np.random.default_rng(rows).normal(size=(rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_what_cannot_be_on_a_gpu_cannot_be_here(gpu):
    here, there = torch.zeros(3), torch.zeros(3, device=GPU)
    with pytest.raises(RuntimeError, match="same device"):
        _ = here + there
    with pytest.raises(RuntimeError, match="indices should be"):
        _ = here[there > 0]
    with pytest.raises(TypeError, match="can't convert cuda"):
        there.numpy()
    with pytest.raises(TypeError, match="unsupported ScalarType"):
        there.bfloat16().cpu().numpy()
    assert there.cpu().numpy().tolist() == [0, 0, 0] and (there + there).device == GPU


def test_measures_of_two_sets_of_vectors(gpu):
    one, other = unit(50), unit(70)
    assert kernel.discrepancies([one, one], 3, 0).chance.shape == (3,)
    gaussians = [moments.Gaussian(moments.Moments.of(each)) for each in (one, other)]
    assert all(each.covariance.device == GPU for each in gaussians)
    assert isinstance(moments.frechet(*gaussians), float)
    assert neighbours.radii(one, 3).shape == (50,)
    assert isinstance(neighbours.most_own(one, np.ones(50), other, 3, 2), list)
    assert 0 <= neighbours.neighbours(one, np.ones(50), other, np.ones(70), 3).precision <= 1


def test_products_and_what_is_near(gpu):
    one, other = products.Block(unit(50)), products.Block(unit(70))
    found = products.products(one, other, slice(0, 70))
    assert found.device == GPU and found.dtype == torch.bfloat16 and found.shape == (50, 70)
    assert products.products(one, other, slice(0, 70), np.array([1, 2])).shape == (2, 70)
    assert [len(each) for each in products.near(found, 0.9)] == [1, 1]
    assert len(list(products.near_in_parts(found, 0.9, 700))) == 5
    assert products.plain_products(unit(5), products.on_device(unit(70))).shape == (5, 70)
    for least in (0.5, -0.5):
        rows, columns = nearest._may_be(found, np.full(50, least), 2, 0.01)
        assert len(rows) == len(columns) == 1


def test_heads(gpu):
    vectors, others = torch.tensor(unit(7)).to(GPU), torch.from_numpy(unit(9)).to(GPU)
    head = Head("linear", 16, torch.nn.Linear(16, 1)).to(GPU)
    for made in (NearestCentroid(others)(vectors), Nearest([others, others])(vectors), head(vectors)):
        assert made.device == GPU and len(made) == 7


def test_a_resize(gpu):
    for size in ((40, 90), (20, 10)):
        made = DeviceResize(TRANSFORM)(torch.zeros((*size, 3), dtype=torch.uint8, device=GPU))
        assert made.device == GPU and made.shape == (32, 32, 3) and made.dtype == torch.uint8


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_an_encoder(gpu, name):
    model = on_the_host(timm.create_model)(name, num_classes=0)
    how = {"name": "x", "source": "x", "output": "pooled", "owned": True}
    encoder = Encoder(model, TRANSFORM, normalize=True, autocast=True, **how)
    vectors = encoder(torch.zeros((5, 32, 32, 3), dtype=torch.uint8, device=GPU))
    assert vectors.shape == (5, encoder.dim) and vectors.dtype == np.float32


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_both_towers(monkeypatch, tmp_path, kind, request):
    make_pair(tmp_path, kind)
    request.getfixturevalue("gpu")
    images = ClipSpec(str(tmp_path)).build()
    assert images(torch.zeros((5, 32, 32, 3), dtype=torch.uint8, device=GPU)).shape == (5, images.dim)
    for long_text in ("truncate", "mean"):
        encoder = ClipTextSpec(str(tmp_path), long_text=long_text).build()
        assert encoder(["a cat", "b " * 50], 2).vectors.shape == (2, images.dim)


@pytest.mark.parametrize(
    "kind", ["yolos", "owlvit", *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOWER)]
)
def test_a_model_that_finds_things(tmp_path, kind, request):
    write_detector(tmp_path, kind)
    request.getfixturevalue("gpu")
    prompts = ("a human face", "dog") if kind in ASKED else ()
    model = DetectionSpec(str(tmp_path), prompts=prompts, dtype="float16").build()
    assert {each.device for each in model._model.parameters()} == {GPU}
    found = model([np.zeros((40, 50, 3), np.uint8)] * 3, 2)
    assert [each.reason for each in found] == [None] * 3 and all(each.boxes.shape[1] == 4 for each in found)


@pytest.mark.parametrize("mode", sorted(DALI_MODES))
def test_dali_knows_what_its_operators_are_told_on_a_gpu(monkeypatch, mode):
    """It looks at names and devices where the graph is made, and asks the driver where it is built."""
    dali = pytest.importorskip("nvidia.dali")
    monkeypatch.setattr(dali.Pipeline, "build", lambda pipeline: None)
    plain, bordered = (
        TransformSpec(size, mode, (0.5,) * 3, (0.5,) * 3, crop_mode=crop)
        for size, crop in (((32, 32), "center"), ((48, 32), "border"))
    )
    assert bordered.pads
    transforms = (plain, None, bordered)
    made = DaliDecoder(4, 2, device_id=0, decoder="mixed", transforms=transforms)._build()
    assert [each.device for each in made._graph_out] == ["gpu", "gpu", "gpu", "cpu"]
