"""One loader for several models: each image is decoded once, and each model's pixels are what it has alone."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageOps
from test_loader import bad_images, coloured, corrupt_png, encode, good_images, limit, with_exif

from curator_dask import backend
from curator_dask.decode import chunks as chunks_module
from curator_dask.decode import pillow as pillow_module
from curator_dask.decode.chunks import ChunkDecoder
from curator_dask.decode.dali import DaliDecoder
from curator_dask.decode.loader import Loader
from curator_dask.decode.pillow import PillowResize
from curator_dask.decode.spec import LoaderSpec
from curator_dask.decode.transforms import TransformSpec
from curator_dask.errors import ShardError

DECODERS = ["dali", "pillow"]
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
SMALL = TransformSpec((64, 64), "bicubic", MEAN, STD, 0.875)
WIDE = TransformSpec((48, 80), "bilinear", MEAN, STD, 1.0, "squash")
BORDERED = TransformSpec((72, 64), "lanczos", MEAN, STD, 1.0, "border")
HARD = TransformSpec((32, 32), "nearest", MEAN, STD)


def thumbnail(image):
    """A user's transform; fails on some, and gives some another shape."""
    assert image.mode == "RGB"
    if image.width == 81:
        raise ValueError("no 81")
    side = 10 if image.width == 82 else 12
    return torch.from_numpy(np.array(image.resize((side, side), Image.Resampling.BOX)))


def scribble(image):
    """Another, which draws on what it is given."""
    ImageDraw.Draw(image).rectangle((0, 0, image.width, image.height), fill=(1, 2, 3))
    return torch.tensor(image.getpixel((0, 0)))


@pytest.fixture(scope="module")
def photograph():
    image = Image.open(Path(skimage.data.__file__).parent / "chelsea.png").convert("RGB")
    return image.resize((225, 150))


@pytest.fixture
def make_loader(device):
    """Loaders for the device of the test, closed when it ends; `in_dali`: as on a GPU, wherever it runs."""
    made = []

    def make(transforms, batch_sizes=None, num_threads=2, in_dali=None, **options):
        sizes = batch_sizes or (16,) * len(transforms)
        made.append(Loader(LoaderSpec(tuple(transforms), sizes, num_threads, device=device, **options)))
        if in_dali is not None:
            made[-1]._decoder.close()
            made[-1]._decoder = ChunkDecoder(made[-1].spec, backend.current(), in_dali)
        return made[-1]

    yield make
    for one in made:
        one.close()


def unpack(loader, stream):
    """For each transform arrays and errors by position, having checked what holds for all batches."""
    transforms, sizes = loader.spec.transforms, loader.spec.batch_sizes
    batches = list(loader.load(stream))
    found = []
    for which, (transform, size) in enumerate(zip(transforms, sizes, strict=True)):
        arrays, errors = {}, {}
        own = [batch for batch in batches if batch.which == which]
        for batch in own:
            assert len(batch.pixels) == len(batch.positions) <= size
            assert transform is None or batch is own[-1] or len(batch.positions) == size
            for position, one in zip(batch.positions.tolist(), batch.pixels, strict=True):
                assert position not in arrays
                arrays[position] = (backend.tensor_of(one) if transform is None else one).cpu().numpy()
            assert not errors.keys() & batch.errors.keys()
            errors.update(batch.errors)
        assert not arrays.keys() & errors.keys()
        found.append((arrays, errors))
    return found


def check_same(found, expected, most=0.0):
    (arrays, errors), (own_arrays, own_errors) = found, expected
    assert errors == own_errors and arrays.keys() == own_arrays.keys()
    for position, array in arrays.items():
        assert array.dtype == own_arrays[position].dtype and array.shape == own_arrays[position].shape
        difference = np.abs(array.astype(float) - own_arrays[position]).mean()
        assert difference <= most, position


@pytest.mark.parametrize("decoder", DECODERS)
def test_each_transform_has_what_it_has_alone(photograph, make_loader, device, decoder):
    """Every kind of image, good and bad, through six transforms at once and through each alone."""
    good = good_images(photograph) | {f"turned {n}": with_exif(photograph, n) for n in (3, 6, 8)}
    stream = [*good.items(), *((name, data) for name, (data, _) in bad_images(photograph).items())]
    stream += [(f"colour {n}", coloured(n)) for n in range(40)]
    np.random.default_rng(4).shuffle(stream)
    images = [(position, data) for position, (_, data) in enumerate(stream)]
    transforms = (SMALL, WIDE, thumbnail, None, BORDERED, SMALL)
    found = unpack(make_loader(transforms, (16, 7, 5, 3, 100, 1), decoder=decoder), images)
    most = 0.01 if device == "gpu" else 0  # nvJPEG's kernels may differ from chunk to chunk
    for transform, its in zip(transforms, found, strict=True):
        check_same(its, unpack(make_loader([transform], decoder=decoder), images)[0], most)
    for position, (name, data) in enumerate(stream):
        if name in good:
            image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
            for transform, (arrays, _) in zip(transforms, found, strict=True):
                if isinstance(transform, TransformSpec):
                    expected = PillowResize(transform)(image).astype(float)
                    assert np.abs(arrays[position] - expected).mean() <= limit(device), name


BROKEN = [b"", b"<html>", coloured(1)[:60], ShardError("shard 0.tar: ends early")]


def image_of(position):
    """Colour says the position; bad, odd and ordinary images stand in turn."""
    if position % 9 == 4:
        return BROKEN[position % 4]
    colour = (position, 255 - position, 128)
    if position % 5 == 2:
        return encode(Image.new("RGB", (90, 90), colour), "BMP")
    return corrupt_png(position) if position % 23 == 7 else coloured(position)


KINDS = {"small": SMALL, "wide": WIDE, "hard": HARD, "whole": None, "own": thumbnail}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kinds=st.lists(st.tuples(st.sampled_from(sorted(KINDS)), st.integers(1, 40)), min_size=1, max_size=4),
    count=st.integers(0, 120),
    seed=st.integers(0, 99),
    chunk=st.sampled_from([6_000, 100_000, 1 << 28]),
    decoder=st.sampled_from(DECODERS),
    in_dali=st.booleans(),
)
def test_every_position_once_a_transform(
    monkeypatch, make_loader, device, kinds, count, seed, chunk, decoder, in_dali
):
    """Whatever the batch sizes and chunks; as on a GPU, too. Colours tell whether any two were swapped."""
    monkeypatch.setattr(chunks_module, "CHUNK_PIXELS", chunk)
    transforms, sizes = [KINDS[kind] for kind, _ in kinds], tuple(size for _, size in kinds)
    order = np.random.default_rng(seed).permutation(count).tolist()
    one = make_loader(transforms, sizes, in_dali=in_dali or device == "gpu", decoder=decoder)
    found = unpack(one, [(position, image_of(position)) for position in order])
    one.close()
    bad = {p for p in order if p % 9 == 4 or (p % 23 == 7 and p % 5 != 2)}
    for transform, (arrays, errors) in zip(transforms, found, strict=True):
        if transform is not thumbnail:
            assert errors.keys() == bad
        else:  # the first of its shapes is the right one: which it is depends on the order
            assert errors.keys() >= bad
            assert all("transform" in errors[position] for position in errors.keys() - bad)
        assert arrays.keys() | errors.keys() == set(order)
        for position, array in arrays.items():
            assert (array == (position, 255 - position, 128)).all(), position


@pytest.mark.parametrize("decoder", DECODERS)
def test_an_error_of_one_transform_is_its_own(make_loader, decoder):
    images = [(n, coloured(n)) for n in range(60)] + [(60, b""), (61, corrupt_png(61))]
    (small, small_errors), (_, own_errors), (_, whole_errors) = unpack(
        make_loader([SMALL, thumbnail, None], decoder=decoder), images
    )
    assert small_errors.keys() == whole_errors.keys() == {60, 61} and len(small) == 60
    assert own_errors.keys() == {60, 61} | {n for n in range(60) if n % 7 in (1, 2)}
    assert own_errors[1] == "the transform thumbnail failed: ValueError: no 81"
    assert "shape (10, 10, 3), expected (12, 12, 3)" in own_errors[2]
    for errors in (small_errors, own_errors):
        assert errors[60] == "empty (0 bytes)" and errors[61] == whole_errors[61]


@pytest.mark.parametrize("decoder", DECODERS)
def test_no_transform_changes_what_the_others_see(make_loader, decoder):
    """One that draws on its image stands before each of the others; whole images are each caller's own."""
    images = [(n, image_of(n)) for n in range(50) if n % 9 != 4 and n % 23 != 7]
    transforms = [
        scribble,
        SMALL,
        scribble,
        None,
        scribble,
        lambda image: torch.tensor(image.getpixel((5, 5))),
    ]
    found = unpack(make_loader(transforms, decoder=decoder), images)
    for number, (arrays, errors) in enumerate(found):
        assert not errors and len(arrays) == len(images)
        for position, array in arrays.items():
            colour = (1, 2, 3) if number in (0, 2, 4) else (position, 255 - position, 128)
            assert (array == colour).all(), (number, position)
    seen = {0: {}, 1: {}}
    for batch in make_loader([None, None], (4, 9), decoder=decoder).load(images):
        for position, image in zip(batch.positions.tolist(), batch.pixels, strict=True):
            tensor = backend.tensor_of(image)
            seen[batch.which][position] = tensor.cpu().numpy().copy()
            image[:] = 7
    for of_one in seen.values():
        assert len(of_one) == len(images)
        for position, array in of_one.items():
            assert (array == (position, 255 - position, 128)).all()


@pytest.fixture
def decoded(monkeypatch):
    """How many images DALI was given, and how many Pillow decoded."""
    counts = {"dali": 0, "pillow": 0}
    start, decode = DaliDecoder.start, pillow_module.decode

    def counted_start(self, encoded, sizes):
        counts["dali"] += len(encoded)
        return start(self, encoded, sizes)

    def counted_decode(data, *how):
        counts["pillow"] += 1
        return decode(data, *how)

    monkeypatch.setattr(DaliDecoder, "start", counted_start)
    monkeypatch.setattr(pillow_module, "decode", counted_decode)
    return counts


@pytest.mark.parametrize(
    ("transforms", "options", "expected"),
    [
        ([SMALL, WIDE, BORDERED], {}, (70, 30)),
        ([SMALL, WIDE, None], {}, (70, 30)),
        ([thumbnail, SMALL], {"in_dali": False}, (70, 30)),
        ([thumbnail, scribble], {}, (0, 100)),
        ([thumbnail], {}, (0, 100)),
        ([SMALL, thumbnail, None], {"decoder": "pillow"}, (0, 100)),
        ([SMALL, None, WIDE], {"in_dali": True}, (70, 30)),
        ([SMALL, HARD, thumbnail], {"in_dali": True}, (70, 100)),  # on a GPU, for Pillow's pixels
    ],
)
def test_each_image_is_decoded_once(make_loader, device, decoded, transforms, options, expected):
    if device == "gpu" and options.get("in_dali") is False:
        pytest.skip("DALI's pixels are on the GPU")
    images = [
        (n, encode(Image.new("RGB", (50, 50), (n, n, n)), "GIF") if n < 30 else coloured(n))
        for n in range(100)
    ]
    found = unpack(make_loader(transforms, **options), images)
    assert all(len(arrays) + len(errors) == 100 for arrays, errors in found)
    assert (decoded["dali"], decoded["pillow"]) == expected


def test_the_branches_of_one_pipeline_are_those_of_several(photograph):
    """Bit for bit; the pipeline is used again, with fewer images."""
    transforms = [SMALL, None, WIDE, BORDERED, SMALL, None]
    images = [photograph.resize(size) for size in ((225, 150), (90, 300), (64, 64), (31, 33), (500, 40))]
    data = [np.frombuffer(encode(image, quality=90), np.uint8) for image in images]
    sizes = [image.size[::-1] for image in images]

    def outputs(decoder, count):
        decoder.start(data[:count], sizes[:count])
        made, found = decoder.finish()
        assert found == sizes[:count]
        return [[np.asarray(one).copy() for one in each] for each in made]

    together = DaliDecoder(5, 2, transforms=transforms)
    alone = [DaliDecoder(5, 2, transforms=[transform]) for transform in transforms]
    for count in (5, 2):
        found = outputs(together, count)
        for its, decoder in zip(found, alone, strict=True):
            (expected,) = outputs(decoder, count)
            assert len(its) == count
            for one, other in zip(its, expected, strict=True):
                np.testing.assert_array_equal(one, other)
    for decoder in (together, *alone):
        decoder.close()


def test_the_gpus_way_each_transform_has_what_it_has_alone(photograph, make_loader, monkeypatch):
    """Finished pixels out of DALI, Pillow's for what DALI lacks; a bad image in the chunk, and a size misread."""
    finish = DaliDecoder.finish

    def wrong(self):  # the first of every chunk
        made, found = finish(self)
        return made, [(found[0][0] + 1, found[0][1]), *found[1:]]

    monkeypatch.setattr(DaliDecoder, "finish", wrong)
    images = [encode(photograph.resize((200 + n, 150)), quality=90) for n in range(30)]
    images += [corrupt_png(n) for n in range(3)] + [encode(photograph, "GIF"), b"", coloured(40)]
    order = np.random.default_rng(2).permutation(len(images)).tolist()
    stream = [(position, images[position]) for position in order]
    transforms = [SMALL, HARD, None, thumbnail, BORDERED, WIDE]
    found = unpack(make_loader(transforms, (20, 20, 3, 4, 20, 5), in_dali=True), stream)
    for transform, its in zip(transforms, found, strict=True):
        check_same(its, unpack(make_loader([transform], (20,), in_dali=True), stream)[0])
    for number, transform in enumerate(transforms):
        exact = unpack(make_loader([transform], decoder="pillow"), stream)[0]
        if transform in (HARD, thumbnail):
            check_same(found[number], exact)
        else:  # what DALI cannot take
            np.testing.assert_array_equal(found[number][0][33], exact[0][33])


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("transforms", [(SMALL, WIDE, thumbnail), (SMALL, None)], ids=["pixels", "whole"])
def test_closed_at_any_point_nothing_is_busy(make_loader, decoder, transforms):
    one = make_loader(transforms, (4, 9, 2)[: len(transforms)], decoder=decoder)
    first = unpack(one, [(n, coloured(n)) for n in range(60)])
    threads = threading.active_count()
    for taken in (0, 1, 2, 3, 5, 8, 13):
        read = []

        def stream(read=read):
            for n in range(100_000):
                read.append(n)
                yield n, image_of(n % 250)

        batches = one.load(stream())
        for _ in range(taken):
            next(batches)
        time.sleep(0.02 * (taken % 3))
        batches.close()
        so_far = len(read)
        assert threading.active_count() == threads
        assert so_far < 1000
        time.sleep(0.05)
        assert len(read) == so_far
    again = unpack(one, [(n, coloured(n)) for n in range(60)])
    for its, expected in zip(again, first, strict=True):
        check_same(its, expected)


def test_little_is_read_ahead_of_a_slow_caller(make_loader):
    read = []

    def stream():
        for n in range(5000):
            read.append(n)
            yield n, coloured(n % 250)

    batches = make_loader([SMALL, WIDE], (8, 4)).load(stream())
    next(batches)
    deadline = time.monotonic() + 20
    while len(read) < 16 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    assert 16 <= len(read) < 200
    batches.close()
