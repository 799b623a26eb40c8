"""Large JPEGs decoded at a smaller scale: near the exact pixels, and only where that was asked for and has room."""

from __future__ import annotations

import io

import numpy as np
import pytest
from colours import ColourReader
from dask.base import tokenize
from PIL import Image
from skimage import data as photographs

from curator_dask.decode import pillow
from curator_dask.decode.loader import Loader
from curator_dask.decode.spec import LoaderSpec
from curator_dask.decode.transforms import TransformSpec
from curator_dask.errors import ConfigError

pytestmark = pytest.mark.usefixtures("in_this_process")

#: Resizes the shorter edge to 64, so that 128 and more is left at a half of 256, an eighth of 1024.
SPEC = TransformSpec((64, 64), "bicubic", (0.5,) * 3, (0.5,) * 3)


def jpeg(width, height, turned=False, kind="JPEG"):
    picture = Image.fromarray(photographs.astronaut()).resize((width, height), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    if turned:
        exif[0x0112] = 6
        picture = picture.transpose(Image.Transpose.ROTATE_90)
    file = io.BytesIO()
    picture.save(file, kind, exif=exif)
    return file.getvalue()


@pytest.fixture
def decoded(monkeypatch):
    """Sizes of what Pillow decoded."""
    sizes = []
    to_rgb = pillow._to_rgb

    def noted(image):
        sizes.append(image.size)
        return to_rgb(image)

    monkeypatch.setattr(pillow, "_to_rgb", noted)
    return sizes


def pixels_of(images, transforms=(SPEC,), **options):
    loader = Loader(LoaderSpec(transforms, (8,) * len(transforms), 1, **options))
    try:
        found = {}
        for batch in loader.load(enumerate(images)):
            assert not batch.errors
            pairs = zip(batch.positions, batch.pixels, strict=True)
            found |= {(batch.which, at): np.asarray(each) for at, each in pairs}
        return [found[0, number] for number in range(len(images))]
    finally:
        loader.close()


@pytest.mark.parametrize("decoder", ["dali", "pillow"])
@pytest.mark.parametrize(
    ("size", "scale"),
    [
        ((1024, 1024), 8),
        ((1025, 1031), 8),
        ((1000, 700), 4),
        ((1001, 703), 4),
        ((300, 256), 2),
        ((300, 255), 1),
    ],
)
def test_near_the_exact_pixels_from_a_fraction_of_them(decoded, decoder, size, scale):
    images = [jpeg(*size), jpeg(*size, turned=True)]
    exact = pixels_of(images, decoder=decoder)
    decoded.clear()
    fast = pixels_of(images, decoder=decoder, decode_scale="fast")
    for one, other in zip(exact, fast, strict=True):
        assert np.abs(one.astype(int) - other).mean() < (1.5 if scale > 1 else 1e-9)
    if scale > 1:
        smaller = tuple(-(-edge // scale) for edge in size)
        # A turned one has the pixel that stands for fewer at another edge.
        turned = smaller if not any(edge % scale for edge in size) else size
        assert decoded == [smaller, turned]


def test_what_cannot_be_decoded_smaller_is_exact(decoded):
    images = [jpeg(1024, 1024, kind="PNG"), jpeg(1024, 1024, kind="WEBP"), jpeg(128, 1024)]
    for one, other in zip(pixels_of(images), pixels_of(images, decode_scale="fast"), strict=True):
        assert (one == other).all()
    assert {*decoded} == {(1024, 1024)}  # the WebP's, which is Pillow's anyway


def test_beside_a_transform_that_may_look_at_any_pixel_it_is_exact(decoded):
    large = [jpeg(1024, 1024)]
    whole = pixels_of(large, (SPEC, None), decode_scale="fast")
    assert (whole[0] == pixels_of(large)[0]).all() and decoded == []


def test_it_is_part_of_what_made_a_vector():
    exact, fast = ColourReader(), ColourReader(decode_scale="fast")
    steps = [each._step("key", (), None) for each in (exact, fast, ColourReader(decode_scale="exact"))]
    assert tokenize(steps[0]) == tokenize(steps[2]) != tokenize(steps[1])
    assert steps[0].recipe == steps[2].recipe != steps[1].recipe
    assert exact.arguments == ColourReader(decode_scale="exact").arguments != fast.arguments
    with pytest.raises(ConfigError, match="decode_scale='half': expected 'exact' or 'fast'"):
        ColourReader(decode_scale="half")
