"""Whole images out of the loader, and their resize afterwards: the two halves of what the loader does at once."""

from __future__ import annotations

import io
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image, ImageOps
from test_loader import bad_images, coloured, corrupt_png, encode, good_images, with_exif

from curator_dask import backend
from curator_dask.decode import batches as batches_module
from curator_dask.decode import chunks as chunks_module
from curator_dask.decode.dali import DaliDecoder
from curator_dask.decode.loader import Loader
from curator_dask.decode.pillow import PillowResize
from curator_dask.decode.resize import BatchResize, DeviceResize, HostResize
from curator_dask.decode.spec import LoaderSpec
from curator_dask.decode.transforms import TransformSpec
from curator_dask.errors import CuratorError

DECODERS = ["dali", "pillow"]
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


@pytest.fixture(scope="module")
def photograph():
    image = Image.open(Path(skimage.data.__file__).parent / "chelsea.png").convert("RGB")
    return image.resize((225, 150))


@pytest.fixture
def make_loader(device):
    """Loaders of whole images for the device of the test, closed when it ends."""
    made = []

    def make(batch_size=16, num_threads=2, **options):
        made.append(Loader(LoaderSpec((None,), (batch_size,), num_threads, device=device, **options)))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def make_resize(device):
    made = []

    def make(spec):
        made.append(BatchResize(spec, 2))
        return made[-1]

    yield make
    for one in made:
        one.close()


def on_host(image):
    """NumPy's own array of what a loader handed out."""
    return backend.tensor_of(image).cpu().numpy()


def unpack(batches, device, batch_size=16):
    """Images and errors by position, having checked what holds for all batches."""
    images, errors = {}, {}
    for batch in batches:
        assert isinstance(batch.pixels, list) and len(batch.pixels) == len(batch.positions) <= batch_size
        for position, image in zip(batch.positions.tolist(), batch.pixels, strict=True):
            assert isinstance(image, np.ndarray) == (device == "cpu")
            assert str(image.dtype) == "uint8" and image.flags.c_contiguous and image.shape[2:] == (3,)
            assert position not in images
            images[position] = image
        assert not errors.keys() & batch.errors.keys()
        errors.update(batch.errors)
    assert not images.keys() & errors.keys()
    return images, errors


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def coloured_like(number):
    """The pixels of test_loader's image of that number."""
    return np.full((70, 80 + number % 7, 3), (number, 255 - number, 128), np.uint8)


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_kind_of_image_as_pillow_has_it(photograph, make_loader, device, decoder):
    good, bad = good_images(photograph), bad_images(photograph)
    good |= {f"turned {number}": with_exif(photograph, number) for number in (3, 6, 8)}
    good |= {"one pixel": encode(Image.new("RGB", (1, 1), (7, 8, 9)), "PNG")}
    good |= {"a line": encode(photograph.resize((300, 2)), quality=95)}
    stream = [*good.items(), *((name, data) for name, (data, _) in bad.items())]
    np.random.default_rng(3).shuffle(stream)
    one = make_loader(decoder=decoder)
    images, errors = unpack(list(one.load((i, data) for i, (_, data) in enumerate(stream))), device)
    assert sorted([*images, *errors]) == list(range(len(stream)))
    for position, (name, data) in enumerate(stream):
        if name in bad:
            assert 0 < len(errors[position]) < 200
            continue
        expected = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
        assert images[position].shape == expected.shape, name
        difference = np.abs(on_host(images[position]).astype(int) - expected).mean()
        assert difference <= (1 if device == "gpu" and decoder == "dali" else 0.01), name


@pytest.mark.parametrize("decoder", DECODERS)
def test_images_stay_as_they_were_handed_out(make_loader, device, decoder):
    """Whatever is decoded after them, through other loads too, and after the loader is gone."""
    one, kept = make_loader(batch_size=8, decoder=decoder), {}
    for number in range(4):
        batches = one.load((n, coloured(n)) for n in range(number * 60, number * 60 + 60))
        kept |= unpack([next(batches)] if number == 2 else list(batches), device, 8)[0]
        batches.close()  # in the middle of a chunk, once
    one.close()
    unpack(list(make_loader(decoder=decoder).load((n, coloured(n)) for n in range(250))), device)
    assert len(kept) == 3 * 60 + 8
    for number, image in kept.items():
        np.testing.assert_array_equal(on_host(image), coloured_like(number))
        image[:] = 255  # and they are the caller's: the next one does not see it


def test_a_batch_is_bounded_in_pixels(make_loader, device, monkeypatch):
    monkeypatch.setattr(batches_module, "WHOLE_PIXELS", 20_000)
    sizes = [(100, 100)] * 5 + [(150, 150), (10, 10), (300, 200)] + [(10, 10)] * 40
    data = [encode(Image.fromarray(noise(*size)), "PNG") for size in sizes]
    batches = list(make_loader().load(enumerate(data)))
    images, errors = unpack(batches, device)
    assert not errors and sorted(images) == list(range(len(sizes)))
    for batch in batches:
        assert len(batch.pixels) == 1 or sum(i.shape[0] * i.shape[1] for i in batch.pixels) <= 20_000
    assert max(len(batch.pixels) for batch in batches) == 16
    for number, image in images.items():
        np.testing.assert_array_equal(on_host(image), noise(*sizes[number]))


@pytest.mark.parametrize("decoder", DECODERS)
def test_no_more_than_five_batches_of_pixels_are_alive(make_loader, device, monkeypatch, decoder):
    """One with the caller, one queued, one gathered; two chunks: here of 4 images each."""
    for module in (batches_module, chunks_module):
        monkeypatch.setattr(module, "WHOLE_PIXELS", 40_000)
    read, data = [], encode(Image.new("RGB", (100, 100)), "PNG")

    def stream():
        for number in range(400):
            read.append(number)
            yield number, data

    batches = make_loader(batch_size=100, decoder=decoder).load(stream())
    assert len(next(batches).pixels) == 4
    most = 0
    for _ in range(20):  # while nothing is taken any more, the reading comes to a halt
        time.sleep(0.02)
        most = len(read)
    assert 8 < most <= 5 * 4 + 1
    batches.close()


def test_dali_losing_a_chunk_costs_the_bad_image_only(make_loader, device):
    bad = {5, 6, 40, 63}
    data = [corrupt_png(n) if n in bad else coloured(n) for n in range(100)]
    images, errors = unpack(list(make_loader(50).load(enumerate(data))), device, 50)
    assert errors.keys() == bad
    for number, image in images.items():
        np.testing.assert_array_equal(on_host(image), coloured_like(number))


def test_a_size_that_dali_reads_in_another_way(make_loader, device, monkeypatch):
    finish = DaliDecoder.finish

    def wrong(self):
        (pixels,), found = finish(self)
        return [[pixels[0] // 2, *pixels[1:]]], [(found[0][0] + 1, found[0][1]), *found[1:]]

    monkeypatch.setattr(DaliDecoder, "finish", wrong)
    images, _ = unpack(list(make_loader().load((n, coloured(n)) for n in range(9))), device)
    assert sorted(images) == list(range(9))
    for number, image in images.items():
        np.testing.assert_array_equal(on_host(image), coloured_like(number))


def test_no_images_and_none_good(make_loader):
    one = make_loader()
    assert list(one.load([])) == []
    (batch,) = one.load([(7, b""), (3, b"")])
    assert batch.errors == {7: "empty (0 bytes)", 3: "empty (0 bytes)"}
    assert batch.positions.shape == (0,) and batch.pixels == []
    assert repr(batch) == "Batch(0 whole images, errors=2)"


# Sizes down and up, odd, the target's own, so tall that Pillow begins with the height; and single lines.
SIZES = [(375, 500), (301, 451), (31, 33), (224, 224), (900, 200), (97, 640), (1500, 2001)]
EXTREMES = [(1, 1), (2, 700), (5000, 1), (1, 5000)]
SPECS = [
    TransformSpec((224, 224), "bicubic", MEAN, STD, 1.0),
    TransformSpec((160, 256), "bilinear", MEAN, STD, 0.875),
    TransformSpec((224, 224), "bicubic", MEAN, STD, 0.9, "squash"),
    TransformSpec((224, 160), "bicubic", MEAN, STD, 1.0, "border"),
    TransformSpec((224, 224), "bicubic", MEAN, STD, 1.1),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_resize_on_a_device_is_pillows(photograph, device, spec):
    by_pillow, on_device = PillowResize(spec), DeviceResize(spec)
    place = backend.current().torch_device
    for height, width in SIZES + EXTREMES:
        image = photograph.resize((width, height))
        try:
            expected = by_pillow(image)
        except ZeroDivisionError:  # timm's own border leaves nothing of a line
            continue
        got = on_device(torch.from_numpy(np.array(image)).to(place))
        assert got.dtype == torch.uint8 and got.device == place
        difference = np.abs(got.cpu().numpy().astype(int) - expected)
        assert difference.mean() <= 0.01 and difference.max() <= 2, (height, width)


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        (TransformSpec((64, 64), "lanczos", MEAN, STD), (100, 120)),
        (SPECS[0], (100, 2000)),  # a panorama
        (SPECS[0], (2, 60_000)),
        (TransformSpec((8, 8), "bicubic", MEAN, STD, 1.0, "squash"), (10, 600)),  # 75 pixels to one
        (SPECS[2], (5792, 5800)),
    ],
)
def test_what_a_gpu_cannot_resize_the_host_does(device, spec, size):
    pixels = noise(*size)
    assert not DeviceResize(spec)._fits(*spec.geometry(*size))
    got = DeviceResize(spec)(torch.from_numpy(pixels).to(backend.current().torch_device))
    assert got.device == backend.current().torch_device
    np.testing.assert_array_equal(got.cpu().numpy(), HostResize(spec)(pixels))


def images_of_a_stage():
    """Images as stages leave them: not contiguous, mirrored, read-only; and wrong ones, with what is found."""
    fixed = noise(40, 50)
    fixed.flags.writeable = False
    good = [noise(90, 70), noise(60, 80)[:, ::-1], noise(80, 60).transpose(1, 0, 2), fixed, noise(1, 1)]
    good += [noise(50, 50)[..., ::-1], noise(100, 100)[10:90, 20:70]]
    wrong = {
        "uint8 of shape (5, 6)": np.zeros((5, 6), np.uint8),
        "uint8 of shape (5, 6, 4)": np.zeros((5, 6, 4), np.uint8),
        "uint8 of shape (0, 6, 3)": np.zeros((0, 6, 3), np.uint8),
        "float32 of shape (5, 6, 3)": np.zeros((5, 6, 3), np.float32),
        "NoneType": None,
        "Image": Image.new("RGB", (5, 6)),
        "list": [[[1, 2, 3]]],
    }
    return good, wrong


def check_batch(resize, spec, place):
    good, wrong = images_of_a_stage()
    images = [good[0], *wrong.values(), *good[1:]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of memory that cannot be written to
        pixels, errors = resize.start(images)()
    assert pixels.dtype == torch.uint8 and pixels.device == place
    assert pixels.shape == (len(good), *spec.size, 3)
    for got, image in zip(pixels.cpu().numpy(), good, strict=True):
        expected = PillowResize(spec)(Image.fromarray(np.ascontiguousarray(image)))
        assert np.abs(got.astype(int) - expected).mean() <= 0.05
    assert list(errors) == list(range(1, len(wrong) + 1))
    for reason, found in zip(errors.values(), wrong, strict=True):
        assert reason == f"not resized: expected uint8 RGB pixels of shape (height, width, 3), got {found}"


@pytest.mark.parametrize("spec", [SPECS[0], SPECS[3]], ids=str)
def test_a_batch_of_whole_images(make_resize, spec):
    check_batch(make_resize(spec), spec, backend.current().torch_device)


def test_the_gpus_way_of_a_batch_on_the_cpu(make_resize, device):
    """All images in one task, as tensors."""
    resize = make_resize(SPECS[0])
    resize._together, resize._resize = True, DeviceResize(SPECS[0])
    check_batch(resize, SPECS[0], backend.current().torch_device)


def test_batches_are_kept_apart_and_in_order(make_resize):
    """Many at once, from two threads, of images whose colour is their number."""
    resize, found = make_resize(SPECS[0]), {}

    def work(start):
        waiting = []
        for first in range(start, start + 100, 10):
            images = [np.full((30 + n % 40, 50, 3), n, np.uint8) for n in range(first, first + 10)]
            waiting.append((first, resize.start(images)))
        for first, finish in reversed(waiting):
            found[first] = finish()

    threads = [threading.Thread(target=work, args=(start,)) for start in (0, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(0, 200, 10))
    for first, (pixels, errors) in found.items():
        assert not errors
        expected = torch.arange(first, first + 10, dtype=torch.uint8)[:, None, None, None]
        assert torch.equal(pixels.cpu(), expected.expand(10, *SPECS[0].size, 3))


def test_no_image_at_all_and_none_good(make_resize, device):
    resize = make_resize(SPECS[0])
    for images in ([], [None]):
        pixels, errors = resize.start(images)()
        assert pixels.shape == (0, 224, 224, 3) and pixels.dtype == torch.uint8
        assert pixels.device == backend.current().torch_device and len(errors) == len(images)


def test_an_image_without_memory_costs_itself(make_resize):
    endless = np.broadcast_to(np.zeros(3, np.uint8), (10**7, 10**6, 3))  # 30 TB, to be copied first
    pixels, errors = make_resize(SPECS[0]).start([noise(20, 20, 1), endless, noise(20, 20, 2)])()
    assert errors.keys() == {1} and "MemoryError" in errors[1]
    expected = [HostResize(SPECS[0])(noise(20, 20, seed)) for seed in (1, 2)]
    assert np.abs(pixels.cpu().numpy().astype(int) - np.stack(expected)).max() <= 1


def test_a_closed_resize_finishes_what_was_started(device):
    before = threading.active_count()
    resize = BatchResize(SPECS[0], 2)
    finish = resize.start([noise(500, 600)] * 20)
    resize.close()
    assert len(finish()[0]) == 20
    assert threading.active_count() == before
    with pytest.raises(CuratorError, match="closed"):
        resize.start([])


def test_what_the_loader_hands_out_is_what_the_resize_takes(photograph, make_loader, make_resize, device):
    """Both halves together make what the loader makes at once."""
    spec, data = SPECS[0], [encode(photograph.resize((200 + n, 160)), quality=90) for n in range(20)]
    images, _ = unpack(list(make_loader(7).load(enumerate(data))), device, 7)
    pixels, errors = make_resize(spec).start([images[number] for number in range(20)])()
    at_once = Loader(LoaderSpec((spec,), (20,), 2, device=device))
    (batch,) = at_once.load(enumerate(data))
    at_once.close()
    assert not errors
    order = np.argsort(batch.positions)
    difference = np.abs(pixels.cpu().numpy().astype(int) - batch.pixels.cpu().numpy()[order])
    assert difference.mean() <= (0.05 if device == "gpu" else 0)


def test_arrays_and_tensors_share_memory(device):
    place = backend.current().torch_device
    tensor = torch.arange(24, dtype=torch.uint8, device=place).reshape(2, 4, 3)
    array = backend.array_of(tensor)
    assert isinstance(array, np.ndarray) == (device == "cpu") and array.shape == (2, 4, 3)
    again = backend.tensor_of(array)
    assert again.data_ptr() == tensor.data_ptr() and again.device == place and torch.equal(again, tensor)
    assert torch.equal(backend.tensor_of(array[:, ::-1]), tensor.flip(1))


def test_read_only_memory_is_shared_without_a_warning():
    array = noise(3, 4)
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = backend.tensor_of(array)
    assert tensor.data_ptr() == array.ctypes.data
    expected = noise(3, 4)
    del array
    np.testing.assert_array_equal(tensor.numpy(), expected)
