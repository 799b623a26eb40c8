"""CLIP and SigLIP against transformers' own classes and processors, on folders that those have written."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import math
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
import transformers
from colours import write_tar
from hypothesis import given, settings, strategies
from PIL import Image, ImageOps
from safetensors.torch import save_file

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.decode.pillow import PillowResize
from curator_dask.decode.transforms import TransformSpec
from curator_dask.errors import ConfigError, OutputError, WeightsError
from curator_dask.frames.columns import list_to_matrix
from curator_dask.image.embedders import ClipImageEmbedder, TimmImageEmbedder
from curator_dask.image.embedders.making import from_settings, is_transformers, make_embedder
from curator_dask.models.clip import ClipSpec
from curator_dask.models.processors import crop_pct_of, read_transform

pytestmark = pytest.mark.usefixtures("quiet_transformers")

SIZE = 64
VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": SIZE,
    "patch_size": 16,
}
TEXT = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT |= {"vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def spread(model):
    """Weights so large that two images get two vectors; those of transformers give one cosine of 1 after another.

    They are NumPy's, the same whatever release of torch draws.
    """
    rng = np.random.default_rng(6)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                values = rng.standard_normal(parameter.shape) / np.sqrt(parameter[0].numel())
                parameter.copy_(torch.from_numpy(values))
    return model.eval()


def make_clip(folder, size=SIZE, **vision):
    torch.manual_seed(1)
    config = transformers.CLIPConfig(
        text_config=TEXT, vision_config={**VISION, "image_size": size, **vision}, projection_dim=48
    )
    model = spread(transformers.CLIPModel(config))
    model.save_pretrained(folder)
    transformers.CLIPImageProcessor(size={"shortest_edge": size}, crop_size=size).save_pretrained(folder)
    return model


def make_siglip(folder):
    torch.manual_seed(2)
    config = transformers.SiglipConfig(text_config=TEXT, vision_config=VISION)
    model = spread(transformers.SiglipModel(config))
    model.save_pretrained(folder)
    transformers.SiglipImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return folder, make_clip(folder)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("siglip")
    return folder, make_siglip(folder)


def edit(folder, name, **changes):
    path = folder / name
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**found, **changes}))


# Fidelity

# Width and height; most of them resized to something from which 64 cannot be cut in the middle.
SIZES = [
    (320, 240),
    (241, 323),
    (500, 375),
    (375, 500),
    (64, 65),
    (67, 64),
    (1203, 301),
    (97, 640),
    (640, 480),
]
CROPPED_UNEVENLY = [(241, 323), (64, 65), (67, 64), (1203, 301), (99, 131)]


def encoded(image, form="JPEG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Photographs by key: many sizes, gray, CMYK, PNG, and every orientation that EXIF knows."""
    found = {}
    for name in ("astronaut", "chelsea", "coffee"):
        photograph = Image.open(Path(skimage.data.__file__).parent / f"{name}.png").convert("RGB")
        for width, height in SIZES:
            found[f"{name}{width}x{height}.jpg"] = encoded(photograph.resize((width, height)), quality=92)
        found[f"{name}gray.jpg"] = encoded(photograph.convert("L").resize((301, 222)), quality=92)
        found[f"{name}cmyk.jpg"] = encoded(photograph.convert("CMYK").resize((222, 301)), quality=92)
        found[f"{name}png.png"] = encoded(photograph.resize((131, 99)), "PNG")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        found[f"exif{orientation}.jpg"] = encoded(photograph.resize((203, 131)), exif=exif, quality=92)
    folder = tmp_path_factory.mktemp("images")
    write_tar(folder / "0.tar", list(found.items()))
    return folder, {name.partition(".")[0]: data for name, data in found.items()}


def upright(data):
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")


def transformers_own(model, processor, images):
    """Normalised image features, as a user of transformers computes them."""
    found = {}
    for key, image in images.items():
        with torch.inference_mode():
            features = model.get_image_features(**processor(image, return_tensors="pt")).pooler_output
        found[key] = torch.nn.functional.normalize(features, dim=-1)[0].numpy()
    return found


def embed(folder, model_folder, **options):
    embedder = ClipImageEmbedder(model_folder, batch_size=16, autocast=False, **options)
    frame = embedder(ImageTextPairDataset.from_webdataset(folder)).compute()
    assert frame["image_error"].isna().all(), frame["image_error"].dropna().tolist()
    matrix, valid = list_to_matrix(frame["image_embedding"])
    assert valid.all() and matrix.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(matrix, axis=1), 1, atol=1e-5)
    return dict(zip(frame["key"], matrix, strict=True))


def worst(found, expected):
    assert found.keys() == expected.keys()
    return min((float(found[key] @ expected[key]), key) for key in found)


def most_alike(vectors):
    """The largest cosine of two different photographs."""
    several = np.stack([vectors[f"{name}320x240"] for name in ("astronaut", "chelsea", "coffee")])
    return (several @ several.T)[np.triu_indices(3, 1)].max()


PROCESSORS = {
    "clip": [transformers.CLIPImageProcessor, transformers.CLIPImageProcessorPil],
    "siglip": [transformers.SiglipImageProcessor, transformers.SiglipImageProcessorPil],
}


@pytest.fixture(scope="module")
def expected(clip, siglip, images):
    """By model and processor, what transformers makes of the images."""
    data = {key: upright(each) for key, each in images[1].items()}
    return {
        kind: [transformers_own(model, each.from_pretrained(folder), data) for each in PROCESSORS[kind]]
        for kind, (folder, model) in (("clip", clip), ("siglip", siglip))
    }


@pytest.mark.parametrize(("decoder", "bound"), [("dali", 0.999), ("pillow", 0.99999)])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_min_cosine_against_transformers(
    request, images, expected, kind, decoder, bound, device, in_this_process
):
    found = embed(images[0], request.getfixturevalue(kind)[0], decoder=decoder)
    assert most_alike(found) < 0.9
    by_torchvision, by_pillow = (worst(found, each) for each in expected[kind])
    assert by_pillow[0] >= bound, by_pillow
    # transformers' other processor resizes with torchvision: not Pillow to the last bit, least where Pillow begins
    # with the height (97x640); without that it is 0.999998 for CLIP.
    assert by_torchvision[0] >= min(bound, 0.9999), by_torchvision


def test_the_test_can_tell_the_two_roundings_of_a_crop(clip):
    """Where the crop cannot lie in the middle, timm's rounding gives other vectors than transformers'."""
    folder, model = clip
    encoder = ClipSpec(str(folder), autocast=False).build()
    photograph = Image.fromarray(skimage.data.astronaut())
    data = {str(size): photograph.resize(size) for size in CROPPED_UNEVENLY}
    expected = transformers_own(model, transformers.CLIPImageProcessorPil.from_pretrained(folder), data)
    for crop_mode, bounds in (("center_floor", (0.99999, 1.1)), ("center", (-1, 0.999))):
        resize = PillowResize(dataclasses.replace(encoder.transform, crop_mode=crop_mode))
        pixels = torch.from_numpy(np.stack([resize(image) for image in data.values()]))
        found = dict(zip(data, encoder(pixels.to(encoder.backend.torch_device)), strict=True))
        assert bounds[0] <= worst(found, expected)[0] < bounds[1], crop_mode


def test_autocast_changes_little(clip, device):
    folder, _ = clip
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), np.uint8))
    by_autocast, full = (
        encoder(pixels.to(encoder.backend.torch_device))
        for encoder in (ClipSpec(str(folder), autocast=autocast).build() for autocast in (True, False))
    )
    assert (by_autocast * full).sum(axis=1).min() > 0.99


@pytest.mark.slow
def test_vit_l_14_at_full_size(tmp_path):
    """Random weights, saved as float16 as many are; the vectors are those of float32 arithmetic."""
    config = transformers.CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        patch_size=14,
        projection_dim=768,
        dtype="float16",
    )
    config.save_pretrained(tmp_path)
    with torch.device("meta"):  # transformers' own random weights take 25 s to make
        shapes = transformers.CLIPVisionModelWithProjection(config).state_dict()
    torch.manual_seed(3)
    weights = {
        name: ((torch.rand(shape.shape) - 0.5) * 0.07 + ("norm" in name and name.endswith("weight"))).half()
        for name, shape in shapes.items()
    }
    assert sum(map(torch.numel, weights.values())) > 300e6
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    try:
        encoder = ClipSpec(str(tmp_path), autocast=False).build()
        kind = transformers.CLIPVisionModelWithProjection
        model = kind.from_pretrained(tmp_path, dtype=torch.float32).eval()
    finally:
        (tmp_path / "model.safetensors").unlink()  # 600 MB
    assert (encoder.dim, encoder.transform.size, encoder.info.output) == (768, (224, 224), "projected")
    assert {parameter.dtype for parameter in encoder.model.parameters()} == {torch.float32}
    resize = PillowResize(encoder.transform)
    sources = (skimage.data.astronaut(), skimage.data.chelsea())
    pixels = torch.from_numpy(np.stack([resize(Image.fromarray(source)) for source in sources]))
    found = encoder(pixels.to(encoder.backend.torch_device))
    encoder.close()
    assert found.shape == (2, 768) and found.dtype == np.float32
    assert found[0] @ found[1] < 0.99
    with torch.inference_mode():
        expected = model(encoder.transform.normalize(pixels[:1])).image_embeds[0]
    assert found[0] @ torch.nn.functional.normalize(expected, dim=0).numpy() > 0.9999


# What is read from a folder


def test_what_an_encoder_says_of_itself(clip, siglip):
    info = ClipSpec(str(clip[0]), autocast=False).build().info
    assert info.model == (
        "CLIPVisionModelWithProjection image_size=64 patch_size=16 hidden_size=64 intermediate_size=128"
        " num_hidden_layers=2 num_attention_heads=4 hidden_act=quick_gelu layer_norm_eps=1e-05"
    )
    assert (info.output, info.dim, info.dtype, info.normalized) == ("projected", 48, "float32", True)
    assert json.loads(json.dumps(info.to_dict())) == info.to_dict()
    other = ClipSpec(str(siglip[0]), normalize=False).build().info
    assert other.model.startswith("SiglipVisionModel ")
    assert (other.output, other.dim, other.normalized) == ("pooled", 64, False)


def same_but_for_the_source(one, other):
    return dataclasses.replace(one, source="") == dataclasses.replace(other, source="")


@pytest.mark.parametrize("form", ["moved", "tower", "sharded", "old config", "processor_config"])
def test_the_same_model_in_other_clothes(clip, tmp_path, form):
    """Outputs of one are those of the other, so their fingerprints must be the same."""
    folder, model = clip
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    if form == "tower":
        (other / "model.safetensors").unlink()
        vision = transformers.CLIPConfig.from_pretrained(folder).vision_config
        vision.projection_dim = 48  # else transformers takes 512 for it
        tower = transformers.CLIPVisionModelWithProjection.from_pretrained(folder, config=vision)
        tower.save_pretrained(other)
        assert json.loads((other / "config.json").read_text())["model_type"] == "clip_vision_model"
    elif form == "sharded":
        (other / "model.safetensors").unlink()
        model.save_pretrained(other, max_shard_size="100KB")
        assert len(list(other.glob("model-*.safetensors"))) > 1
    elif form == "old config":  # as OpenAI's repository has it
        edit(other, "preprocessor_config.json", size=SIZE, crop_size=SIZE)
    elif form == "processor_config":  # as transformers 5 saves a whole processor
        stated = json.loads((other / "preprocessor_config.json").read_text())
        (other / "preprocessor_config.json").unlink()
        edit(other, "processor_config.json", image_processor=stated, processor_class="CLIPProcessor")
    assert same_but_for_the_source(ClipSpec(str(other)).build().info, ClipSpec(str(folder)).build().info)


def test_what_changes_the_vectors_changes_the_info(clip, tmp_path):
    """An activation is no tensor: the digest of the weights does not know it."""
    infos = [ClipSpec(str(clip[0])).build().info]
    for name, change in (
        ("config.json", {"hidden_act": "gelu"}),
        ("config.json", {"num_attention_heads": 8}),
        ("preprocessor_config.json", {"resample": 2}),
    ):
        folder = tmp_path / str(len(infos))
        shutil.copytree(clip[0], folder)
        if name == "config.json":
            config = json.loads((folder / name).read_text())
            change = {"vision_config": {**config["vision_config"], **change}}
        edit(folder, name, **change)
        infos.append(dataclasses.replace(ClipSpec(str(folder)).build().info, source=""))
    assert len({json.dumps(info.to_dict()) for info in infos}) == 4


def test_nothing_is_said_while_a_model_loads(clip, capfd, caplog):
    """The text tower's tensors have no place in the vision tower, as it should be."""
    transformers.logging.enable_progress_bar()
    before = transformers.logging.get_verbosity()
    with caplog.at_level(logging.WARNING):
        ClipSpec(str(clip[0])).build()
    captured = capfd.readouterr()
    transformers.logging.disable_progress_bar()
    assert (captured.out, captured.err, caplog.text) == ("", "", "")
    assert transformers.logging.get_verbosity() == before


def test_specs_are_keys(clip):
    spec = ClipSpec(str(clip[0]))
    assert pickle.loads(pickle.dumps(spec)) == spec and hash(spec) == hash(ClipSpec(str(clip[0])))
    assert len({spec, ClipSpec(), ClipSpec(model_dir="a"), ClipSpec(normalize=False)}) == 4
    assert str(ClipSpec()) == "openai/clip-vit-large-patch14"


# The transform


PIXELS_OF = [
    {},
    {"size": SIZE},
    {"size": {"shortest_edge": 75}, "crop_size": {"height": SIZE, "width": SIZE}},
    {"size": {"shortest_edge": 81}, "resample": 2},
    {"size": {"height": SIZE, "width": SIZE}, "resample": 1},
    {"size": {"height": 48, "width": SIZE}, "do_center_crop": False},
    {"size": {"height": 80, "width": 80}},
    {"do_normalize": False, "resample": 4},
    {"image_mean": [0.1, 0.2, 0.3], "image_std": [1.0, 0.5, 0.25], "resample": 5},
    {"image_mean": 0.4, "image_std": 0.2},
    {"do_normalize": None, "do_pad": None},
]


@pytest.mark.parametrize("changes", PIXELS_OF, ids=str)
def test_pixels_are_those_of_transformers(tmp_path, changes):
    stated = {"size": {"shortest_edge": SIZE}, "crop_size": SIZE, **changes}
    edit(tmp_path, "preprocessor_config.json", **stated)
    spec = read_transform(tmp_path, "CLIP")
    own = transformers.CLIPImageProcessorPil.from_pretrained(tmp_path)
    photograph = Image.fromarray(skimage.data.chelsea())
    for size in [*SIZES, *CROPPED_UNEVENLY]:
        image = photograph.resize(size)
        expected = own(image, return_tensors="pt").pixel_values
        found = spec.normalize(torch.from_numpy(PillowResize(spec)(image))[None])
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_defaults_are_those_of_transformers(tmp_path):
    for name, kind in (
        ("CLIP", transformers.CLIPImageProcessor),
        ("Siglip", transformers.SiglipImageProcessor),
    ):
        without = read_transform(tmp_path, name)
        kind().save_pretrained(tmp_path / name)
        assert without == read_transform(tmp_path / name, name)
        assert without.size == (224, 224) and without.interpolation == "bicubic"
        # A file may leave out what is the default.
        (tmp_path / f"{name}2").mkdir()
        edit(tmp_path / f"{name}2", "preprocessor_config.json", do_resize=True)
        assert without == read_transform(tmp_path / f"{name}2", name)


def test_every_edge_is_met_exactly():
    """The resize aims at floor(crop / crop_pct): one rounding error would cost a whole pixel."""
    for crop in (1, 32, 224, 299, 336, 384, 512):
        for edge in range(1, 1200):
            assert math.floor(crop / crop_pct_of(crop, edge)) == edge, (crop, edge)
    assert any(math.floor(224 / (224 / edge)) != edge for edge in range(1, 1200))  # there is such an error


@settings(max_examples=500, deadline=None)
@given(strategies.integers(1, 1 << 15), strategies.integers(1, 1 << 15))
def test_any_edge_is_met_exactly(crop, edge):
    spec = TransformSpec(
        (crop, crop), "bicubic", (0.5,) * 3, (0.5,) * 3, crop_pct_of(crop, edge), "center_floor"
    )
    assert spec.scale_size == (edge, edge)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_resize": False}, "do_resize is False; expected True"),
        ({"do_rescale": False}, "do_rescale is False"),
        ({"do_pad": True}, "do_pad is True; expected False"),
        ({"use_square_size": True}, "use_square_size"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor is 0.0078.*expected 1/255"),
        ({"resample": 6}, "resample is 6"),
        ({"size": {"shortest_edge": 64, "longest_edge": 90}}, "size is .*longest_edge"),
        ({"size": {"longest_edge": 90}}, "size is .*longest_edge"),
        ({"size": {"shortest_edge": 0}}, "size is .*expected a whole number"),
        ({"size": "large"}, "size is 'large'"),
        ({"size": {"height": 81, "width": 81}}, r"crop_size is \[64, 64\]; expected \[81, 81\]"),
        ({"size": {"height": 80, "width": 90}}, r"crop_size is \[64, 64\]; expected \[80, 90\]"),
        ({"size": {"height": 80, "width": 0}}, "size is .*height and width"),
        ({"crop_size": {"height": 64, "width": 32}}, r"crop_size is \[64, 32\]; expected a square"),
        ({"crop_size": 70}, r"crop_size is \[70, 70\]; expected at most 64"),
        ({"crop_size": {"shortest_edge": 64}}, "crop_size is"),
        ({"do_center_crop": False}, "do_center_crop is False"),
        ({"image_processor_type": "ViTImageProcessor"}, "image_processor_type is 'ViTImageProcessor'"),
        ({"image_mean": [0.5]}, "image_mean is .*expected a number for each"),
        # What transformers takes for false, or cannot do without.
        ({"do_resize": None}, r"preprocessor_config\.json: do_resize is null; expected True"),
        ({"do_rescale": None}, "do_rescale is null; expected True"),
        ({"do_center_crop": None}, "do_center_crop is null"),
        ({"size": None}, "size is null"),
        ({"crop_size": None}, "crop_size is null"),
        ({"resample": None}, "resample is null"),
        ({"rescale_factor": None}, "rescale_factor is null"),
        ({"image_std": None}, "image_std is null"),
        ({"image_std": [0.5, 0.5, 0.0]}, "std"),
    ],
)
def test_what_a_transform_cannot_express_is_named(clip, tmp_path, changes, message):
    folder = tmp_path / "model"
    shutil.copytree(clip[0], folder)
    edit(folder, "preprocessor_config.json", **changes)
    with pytest.raises(ConfigError, match=message):
        ClipSpec(str(folder)).build()


# Folders that cannot be used


def broken(folder, kind):
    if kind == "another type":
        edit(folder, "config.json", model_type="blip")
    elif kind == "timm's":
        (folder / "config.json").write_text(json.dumps({"architecture": "resnet18", "num_classes": 1000}))
    elif kind == "another size":
        edit(folder, "preprocessor_config.json", size=96, crop_size=96)
    elif kind == "no JSON":
        (folder / "config.json").write_text("{")
    elif kind == "no object":
        (folder / "preprocessor_config.json").write_text("[]")
    elif kind == "too few layers":
        config = json.loads((folder / "config.json").read_text())
        edit(folder, "config.json", vision_config={**config["vision_config"], "num_hidden_layers": 3})
    elif kind == "too many layers":
        config = json.loads((folder / "config.json").read_text())
        edit(folder, "config.json", vision_config={**config["vision_config"], "num_hidden_layers": 1})
    elif kind == "other widths":
        config = json.loads((folder / "config.json").read_text())
        edit(folder, "config.json", vision_config={**config["vision_config"], "intermediate_size": 64})
    elif kind == "cut weights":
        whole = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("another type", ConfigError, "model_type 'blip'; expected one of clip, clip_vision_model, siglip"),
        ("timm's", ConfigError, "timm's, of the architecture 'resnet18'.*hf-hub:org/repo or local-dir:"),
        ("another size", ConfigError, r"images of \[96, 96\] pixels, its model takes \[64, 64\]"),
        ("no JSON", WeightsError, "config.json: cannot be read as JSON"),
        ("no object", WeightsError, "preprocessor_config.json: expected a JSON object, found a list"),
        ("too few layers", WeightsError, r"lack \d+ tensors of CLIPVisionModelWithProjection: .*layers\.2\."),
        ("too many layers", WeightsError, r"tensors that its config.json does not have: .*layers\.1\."),
        ("other widths", WeightsError, r"mlp\.fc1\.bias \(expected \[64\], found \[128\]\).* of one model"),
        ("cut weights", WeightsError, "cannot be loaded: SafetensorError"),
    ],
)
def test_folders_that_cannot_be_used(clip, tmp_path, kind, error, message):
    folder = tmp_path / "model"
    shutil.copytree(clip[0], folder)
    broken(folder, kind)
    with pytest.raises(error, match=message) as caught:
        ClipSpec(str(folder)).build()
    assert str(folder) in str(caught.value)


# The embedder, and the names of models


def test_an_embedder_is_made_again_from_its_settings(clip, tmp_path, monkeypatch):
    monkeypatch.chdir(clip[0].parent)
    made = ClipImageEmbedder(clip[0].name, tmp_path, 32, image_embedding_column="clip", decoder="pillow")
    assert made.model_name == str(clip[0])  # a worker has another working directory
    assert ClipImageEmbedder(Path("not/there")).model_name == str(clip[0].parent / "not" / "there")
    again = from_settings(json.loads(json.dumps(made.settings())))
    assert type(again) is ClipImageEmbedder and vars(again) == vars(made)
    assert again.encoder_spec() == made.encoder_spec() == ClipSpec(str(clip[0]), str(tmp_path))
    assert ClipImageEmbedder().encoder_spec() == ClipSpec()
    old = from_settings(json.loads(json.dumps(TimmImageEmbedder("test_vit", False).settings())))
    assert type(old) is TimmImageEmbedder and not old.pretrained
    with pytest.raises(OutputError, match=r"made by OtherEmbedder; this version .* TimmImageEmbedder, Clip"):
        from_settings({"embedder": "OtherEmbedder"})
    with pytest.raises(ConfigError, match="model_name=''"):
        ClipImageEmbedder("")


def test_whose_model_a_name_means(clip, tmp_path, monkeypatch):
    monkeypatch.chdir(clip[0].parent)
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    for name in ("openai/clip-vit-large-patch14", "a/b@main", str(clip[0]), clip[0].name):
        assert is_transformers(name), name
    for name in ("resnet18", "hf-hub:timm/resnet18", f"local-dir:{clip[0]}", str(tmp_path), "/nowhere"):
        assert not is_transformers(name), name


TIMMS = {"pretrained": True, "output": "auto", "checkpoint_path": None, "model_kwargs": {}}


def test_options_that_a_model_does_not_have():
    assert isinstance(make_embedder("a/b", "models", TIMMS), ClipImageEmbedder)
    assert isinstance(make_embedder("test_vit", None, TIMMS), TimmImageEmbedder)
    others = {"pretrained": False, "output": "pooled", "checkpoint_path": "a", "model_kwargs": {"b": 1}}
    with pytest.raises(ConfigError, match="--no-pretrained, --model-output, --checkpoint, --model-kwargs"):
        make_embedder("a/b", None, others)
    with pytest.raises(
        ConfigError, match=r"--model-dir is for .* CLIP and SigLIP; --model test_vit is timm's"
    ):
        make_embedder("test_vit", "models", TIMMS)


def test_importing_the_embedders_does_not_load_transformers():
    code = "import sys, curator_dask.image.embedders.making; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
