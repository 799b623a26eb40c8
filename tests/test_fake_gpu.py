"""All that torch computes on a GPU has its tensors there, and brings to the host what it reads: seen without a GPU."""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import timm
import torch
from captioners import write_captioner
from detectors import ASKED, write_detector
from encoders import write_encoder
from fake_gpu import GPU, FakeGpu, ended_by_length, fake_gpu, on_the_host
from questioners import write_questioner
from texts import make_pair

from curator_dask import backend
from curator_dask.compare import kernel, moments, neighbours
from curator_dask.decode import resize
from curator_dask.decode.batches import Batch, Gather, GatherWhole
from curator_dask.decode.dali import DALI_MODES, DaliDecoder
from curator_dask.decode.resize import BatchResize, DeviceResize
from curator_dask.decode.spec import ImageOptions
from curator_dask.decode.transforms import TransformSpec
from curator_dask.dedup import nearest, products
from curator_dask.image.classifiers.clusters import CentroidDistance, NearestCentroid
from curator_dask.image.classifiers.reference import Nearest, SquareNorm
from curator_dask.image.embedders.covering import CoveredImages
from curator_dask.models import clip_text, detecting, encoders, text_states, texts, towers, writers
from curator_dask.models.asker import Asker
from curator_dask.models.asking import QuestionSpec
from curator_dask.models.caption_inputs import Inputs
from curator_dask.models.captioner import Captioner
from curator_dask.models.captioning import CaptionSpec
from curator_dask.models.classes import ClassNames
from curator_dask.models.classification import Classification, LogitsEncoder
from curator_dask.models.clip import ClipSpec
from curator_dask.models.clip_text import ClipTextSpec
from curator_dask.models.detecting import DetectionSpec
from curator_dask.models.detector import Detector
from curator_dask.models.encoders import Encoder
from curator_dask.models.heads import Head
from curator_dask.models.question_inputs import QuestionInputs
from curator_dask.models.questions import Question
from curator_dask.models.text_states import TextStatesSpec
from curator_dask.report.similar import most_similar
from curator_dask.text.contrast import Batch as Contrast
from curator_dask.text.contrasting import normalisation

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
    assert [each.shape for each in most_similar(one, 4)] == [(50, 4), (50, 4)]
    batch = Contrast(np.arange(70, dtype=np.uint64), other, other)
    assert normalisation(one, one, np.arange(40, 90, dtype=np.uint64), batch, 0.01).shape == (50,)


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
    nearest.compare(one, other, np.arange(70), nearest.Best.none(50, 2))


def test_heads(gpu):
    vectors, others = torch.tensor(unit(7)).to(GPU), torch.from_numpy(unit(9)).to(GPU)
    head = Head("linear", 16, torch.nn.Linear(16, 1)).to(GPU)
    square = SquareNorm(torch.zeros((16, 16), device=GPU))
    for model in (NearestCentroid(others), CentroidDistance(others), Nearest([others, others]), square, head):
        made = model(vectors)
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
def test_a_model_that_classifies(gpu):
    model = on_the_host(timm.create_model)("test_vit", num_classes=7)
    how = {"name": "x", "source": "x", "output": "logits", "normalize": False, "autocast": True}
    encoder = LogitsEncoder(model, TRANSFORM, **how)
    seen = Classification(encoder, ClassNames(tuple("abcdefg")), "softmax", ((1, 2),))
    assert seen(torch.zeros((5, 32, 32, 3), dtype=torch.uint8, device=GPU)).chosen.shape == (5, 1)


class CuPys:
    """An image in a GPU's memory, as CuPy has it."""

    __cuda_array_interface__ = None

    def __init__(self, height, width):
        self.tensor = torch.zeros((height, width, 3), dtype=torch.uint8, device=GPU)
        self.dtype, self.shape, self.ndim = np.dtype(np.uint8), (height, width, 3), 3

    def get(self):
        return np.zeros(self.shape, np.uint8)


class AtOnce:
    """Does in this thread what a pool would: a fake GPU is that of one thread."""

    def __init__(self, *_, **__): ...

    def submit(self, work, *given):
        future = Future()
        future.set_result(work(*given))
        return future

    def shutdown(self, **_): ...


@pytest.fixture
def in_one_thread(monkeypatch, gpu):
    """Without streams, which no thread but this one would have."""
    monkeypatch.setattr(resize, "ThreadPoolExecutor", AtOnce)
    for name in ("side_stream", "wait_for_outputs"):
        monkeypatch.setattr(FakeGpu, name, lambda place: nullcontext())
    monkeypatch.setattr(FakeGpu, "mark", lambda place: lambda: None)
    monkeypatch.setattr(FakeGpu, "adopt", lambda place, tensor: None)
    tensor_of = backend.tensor_of
    monkeypatch.setattr(
        backend, "tensor_of", lambda image: image.tensor if isinstance(image, CuPys) else tensor_of(image)
    )


def test_images_of_both_memories_become_a_batch_on_the_gpu(in_one_thread):
    on_the_host = np.zeros((40, 50, 3), np.uint8)
    on_the_host.flags.writeable = False  # as Pillow's are
    for exact in (False, True):
        rows, why = BatchResize(TRANSFORM, 2, exact).start([on_the_host, CuPys(30, 20), on_the_host[0]])()
        assert rows.device == GPU and rows.shape == (2, 32, 32, 3) and [*why] == [2]
    batches, place = [], backend.current()
    rows = Gather(4, (32, 32, 3), place, batches.append)
    rows.add([0, 1], torch.zeros((2, 32, 32, 3), dtype=torch.uint8, device=GPU))
    whole = GatherWhole(4, place, batches.append, 1)
    whole.add([1], [CuPys(9, 9).tensor])
    for collector, image in ((rows, np.zeros((32, 32, 3), np.uint8)), (whole, on_the_host)):
        collector.take(3, image)
        collector.flush()
    assert batches[0].pixels.device == GPU and {each.device for each in batches[1].pixels} == {GPU}


@pytest.mark.parametrize("transform", [TRANSFORM, lambda image: torch.zeros(3, 8, 8)])
def test_images_whose_boxes_are_covered(in_one_thread, transform):
    """Those that have none stay on the GPU until they are resized; the others come back there."""
    boxes = pa.array([[[0, 0, 0.5, 0.5]], [], [[0, 0, 1, 1]]], pa.list_(pa.list_(pa.float32())))
    rows = SimpleNamespace(column=lambda name: boxes, reasons=lambda name: [None] * 3)
    batch = Batch(np.arange(3), [CuPys(30, 20) for _ in range(3)], {})
    positions, pixels, why = CoveredImages("boxes", rows, transform, ImageOptions())(batch)
    assert positions.tolist() == [0, 1, 2] and pixels.device == GPU and len(pixels) == 3 and not why


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize("kind", ["clip", pytest.param("siglip", marks=pytest.mark.slow)])
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


@pytest.fixture
def writing_gpu(monkeypatch):
    """The same for models that write: processors and tokenizers compute on the host."""
    makes = on_the_host(Inputs.__init__)

    def made(inputs, *given):
        makes(inputs, *given)
        inputs.prepare = on_the_host(inputs.prepare)

    monkeypatch.setattr(writers, "load_whole", on_the_host(writers.load_whole))
    monkeypatch.setattr(writers, "state_digest", lambda model: "none")
    monkeypatch.setattr(Inputs, "__init__", made)
    monkeypatch.setattr(QuestionInputs, "__init__", on_the_host(QuestionInputs.__init__))
    monkeypatch.setattr(Asker, "_prepare", on_the_host(Asker._prepare))
    monkeypatch.setattr(Captioner, "_decode", lambda model, tokens: "of zeros")
    ended_by_length(monkeypatch)
    return lambda: fake_gpu(monkeypatch)


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize("kind", ["t5", "clip"])  # a Gemma asks the driver about its masks
def test_states_of_captions(monkeypatch, tmp_path, kind, request):
    folder = str(write_encoder(tmp_path, kind))
    monkeypatch.setattr(text_states, "load_model", on_the_host(text_states.load_model))
    request.getfixturevalue("gpu")
    for padded in (False, True):
        spec = TextStatesSpec(folder, max_length=12, padded=padded, layer=-2, pooled=kind == "clip")
        encoder = spec.build()
        assert {each.device for each in encoder._model.parameters()} == {GPU}
        found = encoder(["a cat", "", "b " * 50], 2)
        assert [len(each.tokens) == 12 for each in found] == [padded, padded, True]


SEVERAL = [np.zeros((40, 50, 3), np.uint8)] * 3


@pytest.mark.parametrize(
    "kind", ["vit-gpt2", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("blip", "blip-2", "git"))]
)
def test_a_model_that_writes(tmp_path, kind, writing_gpu):
    """LLaVA and others are not among these: they count tokens of images in tensors."""
    write_captioner(tmp_path, kind)
    with writing_gpu():
        model = CaptionSpec(str(tmp_path), max_new_tokens=3, dtype="float16").build()
        model._room.limit = None  # what is compared of zeros is not alike
        assert {each.device for each in model._model.parameters()} == {GPU}
        assert [each.reason for each in model(SEVERAL, 3)] == [None] * 3


@pytest.mark.parametrize(
    "kind",
    [
        "git",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("blip-vqa", "blip-2-t5", "instructblip")),
    ],
)
def test_a_model_that_is_asked(tmp_path, kind, writing_gpu):
    write_questioner(tmp_path, kind)
    question = Question.parse('is it " {text} " of a photo', "caption")
    with writing_gpu():
        model = QuestionSpec(str(tmp_path), question, ("Yes", "No", "is not"), dtype="float16").build()
        assert {each.device for each in model._model.parameters()} == {GPU}
        found = model(SEVERAL, 3, [("a photo",), ("not",), ("a photo of it",)])
    assert [each.reason for each in found] == [None] * 3
    assert all(each.likelihoods.shape == (3,) for each in found)


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
