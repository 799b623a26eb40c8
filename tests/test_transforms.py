"""The transform against timm's own, under Pillow."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import timm.data
import torch
from PIL import Image

from curator_dask.decode.dali import DALI_MODES, DaliDecoder
from curator_dask.decode.pillow import PillowResize, width_first
from curator_dask.decode.resize import HostResize
from curator_dask.decode.transforms import INTERPOLATIONS, TransformSpec
from curator_dask.errors import ConfigError

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)

# Height and width: down and up, odd, equal to the target, long enough that Pillow begins with the height.
SIZES = [(375, 500), (500, 375), (301, 451), (64, 48), (31, 33), (224, 224), (900, 200), (97, 640)]
EXTREMES = [(1, 1), (2, 700), (2000, 1), (1, 2000)]


@pytest.fixture(scope="module")
def photograph():
    return Image.open(Path(skimage.data.__file__).parent / "chelsea.png").convert("RGB")


def spec_of(interpolation="bicubic", crop_mode="center", size=(224, 224), crop_pct=0.875):
    return TransformSpec(size, interpolation, MEAN, STD, crop_pct, crop_mode)


def timm_config(spec):
    return {
        "input_size": (3, *spec.size),
        "interpolation": spec.interpolation,
        "mean": spec.mean,
        "std": spec.std,
        "crop_pct": spec.crop_pct,
        "crop_mode": spec.crop_mode,
    }


def timm_pixels(spec, image):
    """timm's transform up to its normalisation, which works on whole numbers over 255."""
    config = {**timm_config(spec), "mean": (0.0,) * 3, "std": (1.0,) * 3}
    transform = timm.data.create_transform(**config)
    for step in transform.transforms:  # the border's colour comes from the mean
        if hasattr(step, "fill"):
            step.fill = [round(255 * value) for value in spec.mean]
    return (transform(image).permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()


def difference(one, other):
    assert one.shape == other.shape and one.dtype == other.dtype == np.uint8
    return np.abs(one.astype(int) - other).mean()


CASES = [
    ("bicubic", "center", (224, 224), 0.875),
    ("bicubic", "center", (160, 256), 0.95),
    ("bicubic", "squash", (224, 224), 1.0),
    ("bicubic", "squash", (160, 256), 0.875),
    ("bicubic", "border", (224, 224), 1.0),
    ("bicubic", "border", (160, 256), 0.875),
    ("bicubic", "center", (224, 224), 1.1),
    ("bilinear", "center", (224, 224), 0.875),
    ("bilinear", "squash", (224, 224), 0.9),
    ("bilinear", "border", (160, 256), 0.875),
    ("lanczos", "center", (224, 224), 0.875),
    ("nearest", "squash", (224, 224), 1.0),
    ("box", "center", (96, 96), 0.875),
    ("hamming", "border", (96, 96), 0.875),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_pixels_are_those_of_timm(photograph, case):
    interpolation, crop_mode, size, crop_pct = case
    spec = spec_of(interpolation, crop_mode, size, crop_pct)
    by_pillow, on_host = PillowResize(spec), HostResize(spec)
    for height, width in SIZES:
        image = photograph.resize((width, height))
        expected = timm_pixels(spec, image)
        np.testing.assert_array_equal(by_pillow(image), expected)
        assert difference(on_host(np.array(image)), expected) <= 0.01, (height, width)
        if interpolation not in ("nearest", "box"):  # hard edges: a pixel on one belongs to either side
            assert difference(by_pillow.region(image), expected) <= 0.05, (height, width)


@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
def test_a_crop_that_is_rounded_down(photograph, crop_pct):
    """transformers' crop, by every decoder's way, against Pillow and a slice; and that it is not timm's."""
    spec, timms = (spec_of(crop_mode=mode, crop_pct=crop_pct) for mode in ("center_floor", "center"))
    sizes, uneven = [*SIZES, (301, 227), (225, 224), (331, 224)], 0
    images = [photograph.resize((width, height)) for height, width in sizes]
    decoder = DaliDecoder(len(sizes), 2, transforms=[spec])
    decoder.start([np.frombuffer(encode(image), np.uint8) for image in images], sizes)
    ((by_dali,), _) = decoder.finish()
    for image, (height, width), got in zip(images, sizes, by_dali.numpy(), strict=True):
        short = spec.scale_size[0]
        to_height, to_width = (
            (short, int(short * width / height)) if height <= width else (int(short * height / width), short)
        )
        top, left = (to_height - 224) // 2, (to_width - 224) // 2
        whole = np.array(image.resize((to_width, to_height), Image.Resampling.BICUBIC))
        expected = whole[top : top + 224, left : left + 224]
        np.testing.assert_array_equal(PillowResize(spec)(image), expected)
        assert difference(PillowResize(spec).region(image), expected) <= 0.05, (height, width)
        assert difference(HostResize(spec)(np.array(image)), expected) <= 0.01, (height, width)
        assert difference(got, expected) <= 0.05, (height, width)
        rows, columns = spec.geometry(height, width)
        if (rows, columns) != timms.geometry(height, width):
            uneven += 1
            assert difference(PillowResize(timms)(image), expected) > 0.5
    assert uneven >= 2


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_extreme_sizes(photograph, crop_mode):
    spec = spec_of(crop_mode=crop_mode)
    for height, width in EXTREMES:
        image = photograph.resize((width, height))
        expected = PillowResize(spec)(image)
        if crop_mode != "border" or max(height, width) < 700:  # timm itself fails where nothing is left
            np.testing.assert_array_equal(expected, timm_pixels(spec, image))
        assert difference(HostResize(spec)(np.array(image)), expected) <= 0.05, (height, width)


def test_a_long_image_does_not_take_the_memory_of_its_resize():
    # Whole, it would become 256 x 15,360,000: 16 GB in Pillow.
    line = np.tile(np.arange(60_000) // 256, (3, 1)).T[None].astype(np.uint8)
    middle = PillowResize(spec_of())(Image.fromarray(line))
    assert middle.shape == (224, 224, 3)
    assert set(np.unique(middle)) <= {116, 117, 118}
    np.testing.assert_array_equal(HostResize(spec_of())(line), middle)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize(
    ("interpolation", "limit"), [("bicubic", 0.05), ("bilinear", 0.12), ("lanczos", 0.05)]
)
def test_the_gpu_recipe_on_the_cpu(photograph, crop_mode, interpolation, limit):
    """DALI's own two passes. Bilinear meets exact halves, which DALI rounds to even and Pillow up."""
    assert interpolation in DALI_MODES
    spec = spec_of(interpolation, crop_mode)
    images = [photograph.resize((width, height)) for height, width in SIZES]
    decoder = DaliDecoder(len(SIZES), 2, transforms=[spec])
    for count in (len(SIZES), 3):  # the pipeline is used again, with fewer images
        decoder.start([np.frombuffer(encode(image), np.uint8) for image in images[:count]], SIZES[:count])
        (pixels,), found = decoder.finish()
        assert found == SIZES[:count]
        for image, got in zip(images, pixels.numpy(), strict=False):
            assert difference(got, timm_pixels(spec, image)) <= limit, image.size
    decoder.close()


def encode(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def test_order_of_the_passes_is_pillows():
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(150):
        height, width, to_height, to_width = (int(value) for value in rng.integers(8, 120, 4))
        spec = TransformSpec((to_height, to_width), "bicubic", MEAN, STD, 1.0, "squash")
        image = Image.fromarray(rng.integers(0, 256, (height, width), dtype=np.uint8))
        size, bicubic = (to_width, to_height), Image.Resampling.BICUBIC
        middle = (to_width, height) if width_first(*spec.geometry(height, width)) else (width, to_height)
        seen.add(middle[1] == height)
        by_hand = image.resize(middle, bicubic).resize(size, bicubic)
        assert by_hand.tobytes() == image.resize(size, bicubic).tobytes(), (image.size, size)
    assert True in seen


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_normalised_pixels_are_those_of_timm(photograph, device, crop_mode):
    from curator_dask import backend

    spec = spec_of(crop_mode=crop_mode)
    images = [photograph.resize((width, height)) for height, width in SIZES[:3]]
    pixels = torch.from_numpy(np.stack([PillowResize(spec)(image) for image in images]))
    before = pixels.clone()
    got = spec.normalize(pixels.to(backend.current().torch_device))
    assert got.device.type == backend.current().torch_device.type
    assert got.dtype == torch.float32 and got.is_contiguous(memory_format=torch.channels_last)
    transform = timm.data.create_transform(**timm_config(spec))
    expected = torch.stack([transform(image) for image in images])
    torch.testing.assert_close(got.cpu(), expected, rtol=0, atol=1e-6)
    assert torch.equal(pixels, before)


def test_normalize_takes_any_number_of_images():
    spec = spec_of()
    assert spec.normalize(torch.zeros((0, 224, 224, 3), dtype=torch.uint8)).shape == (0, 3, 224, 224)
    one = torch.arange(12, dtype=torch.uint8).reshape(1, 2, 2, 3)
    expected = (one.double() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(spec.normalize(one), expected.permute(0, 3, 1, 2).float())
    with pytest.raises(ConfigError, match="expected uint8 pixels"):
        spec.normalize(one.float())


def test_from_timm_takes_what_timm_resolves():
    config = timm.data.resolve_data_config(
        pretrained_cfg={
            "input_size": (3, 256, 192),
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": [0.5] * 3,
        }
    )
    spec = TransformSpec.from_timm(config)
    assert spec == TransformSpec(
        (256, 192), "bicubic", (0.5, 0.5, 0.5), timm.data.IMAGENET_DEFAULT_STD, 1.0, "squash"
    )
    assert pickle.loads(pickle.dumps(spec)) == spec and hash(spec) == hash(TransformSpec.from_timm(config))
    assert TransformSpec(**json.loads(json.dumps(spec.to_dict()))) == spec


def test_from_timm_defaults_are_timms(photograph):
    config = {"input_size": (3, 96, 96), "interpolation": "bilinear", "mean": MEAN, "std": STD}
    spec = TransformSpec.from_timm(config)
    np.testing.assert_allclose(
        spec.normalize(torch.from_numpy(PillowResize(spec)(photograph))[None])[0],
        timm.data.create_transform(**config)(photograph),
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": (224,)}, "size"),
        ({"size": (0, 224)}, "at least 1"),
        ({"size": 224}, "size"),
        ({"interpolation": "random"}, "interpolation"),
        ({"crop_mode": "middle"}, "crop_mode"),
        ({"crop_pct": 0}, "crop_pct"),
        ({"crop_pct": 300.0}, "crop_pct"),
        ({"mean": (0.5, 0.5)}, "mean"),
        ({"std": (0.5, 0.5, 0.0)}, "std"),
    ],
)
def test_impossible_specs_are_refused(change, message):
    fields = {"size": (224, 224), "interpolation": "bicubic", "mean": MEAN, "std": STD, **change}
    with pytest.raises(ConfigError, match=message):
        TransformSpec(**fields)


@pytest.mark.parametrize(
    "config", [{}, {"input_size": 224}, {**timm_config(spec_of()), "input_size": (1, 8, 8)}]
)
def test_from_timm_refuses_other_configs(config):
    with pytest.raises(ConfigError, match="from_timm"):
        TransformSpec.from_timm(config)


def test_every_interpolation_of_timm_is_known():
    from timm.data.transforms import _str_to_pil_interpolation

    assert set(INTERPOLATIONS) == set(_str_to_pil_interpolation)
