"""The loader: every image comes out once, in its place, whatever stands beside it."""

from __future__ import annotations

import gc
import io
import logging
import mmap
import re
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import psutil
import pytest
import skimage.data
import timm.data
import torch
from PIL import Image, ImageOps

from curator_dask import backend
from curator_dask.decode import chunks as chunks_module
from curator_dask.decode.batches import Gather
from curator_dask.decode.dali import DaliDecoder
from curator_dask.decode.loader import Batch, Loader
from curator_dask.decode.sniff import sniff
from curator_dask.decode.spec import LoaderSpec
from curator_dask.decode.transforms import TransformSpec
from curator_dask.errors import ConfigError, CuratorError, ShardError

SPEC = TransformSpec((64, 64), "bicubic", (0.48, 0.46, 0.41), (0.27, 0.26, 0.28), 0.875)
DECODERS = ["dali", "pillow"]


@pytest.fixture(scope="module")
def photograph():
    image = Image.open(Path(skimage.data.__file__).parent / "chelsea.png").convert("RGB")
    return image.resize((225, 150))


@pytest.fixture
def make_loader(device):
    """Loaders for the device of the test, closed when it ends."""
    made = []

    def make(transform=SPEC, batch_size=16, num_threads=2, **options):
        made.append(Loader(LoaderSpec((transform,), (batch_size,), num_threads, device=device, **options)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def encode(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def coloured(number, **options):
    """An image of one colour, whose red channel says `number`."""
    return encode(Image.new("RGB", (80 + number % 7, 70), (number, 255 - number, 128)), "PNG", **options)


def with_exif(image, orientation, kind="JPEG"):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(image, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))


def unpack(batches, batch_size=16):
    """Pixels and errors by position, having checked what holds for all batches."""
    pixels, errors = {}, {}
    for number, batch in enumerate(batches):
        assert isinstance(batch, Batch) and batch.positions.dtype == np.int64
        assert batch.pixels.dtype == torch.uint8 and len(batch.pixels) == len(batch.positions) <= batch_size
        assert number == len(batches) - 1 or len(batch.positions) == batch_size, "only the last is not full"
        for position, one in zip(batch.positions.tolist(), batch.pixels.cpu().numpy(), strict=True):
            assert position not in pixels
            pixels[position] = one
        assert not errors.keys() & batch.errors.keys()
        errors.update(batch.errors)
    assert not pixels.keys() & errors.keys()
    return pixels, errors


def timm_pixels(image):
    transform = timm.data.create_transform(
        (3, *SPEC.size), interpolation=SPEC.interpolation, crop_pct=SPEC.crop_pct, use_prefetcher=True
    )
    return transform(image).permute(1, 2, 0).numpy()


def limit(device):
    """Mean pixel difference from Pillow: nvJPEG decodes with other rounding than libjpeg."""
    return 1.0 if device == "gpu" else 0.05


def good_images(photograph):
    rgba = photograph.copy()
    rgba.putalpha(Image.linear_gradient("L").resize(photograph.size))
    gray = photograph.convert("L")
    return {
        "jpeg": encode(photograph, quality=95),
        "progressive": encode(photograph, progressive=True),
        "gray jpeg": encode(gray),
        "cmyk": encode(photograph.convert("CMYK")),
        "png": encode(photograph, "PNG"),
        "png rgba": encode(rgba, "PNG"),
        "png la": encode(rgba.convert("LA"), "PNG"),
        "png palette": encode(photograph.quantize(64), "PNG"),
        "png palette, transparent": encode(photograph.quantize(64), "PNG", transparency=3),
        "png 1 bit": encode(photograph.convert("1", dither=Image.Dither.NONE), "PNG"),
        "webp": encode(photograph, "WEBP"),
        "webp rgba": encode(rgba, "WEBP"),
        "webp lossless": encode(photograph, "WEBP", lossless=True),
        "webp animated": encode(
            photograph, "WEBP", save_all=True, append_images=[ImageOps.invert(photograph)]
        ),
        "gif": encode(photograph, "GIF"),
        "gif animated": encode(
            photograph.quantize(32),
            "GIF",
            save_all=True,
            append_images=[ImageOps.invert(photograph).quantize(32)],
        ),
        "avif": encode(photograph, "AVIF"),
        "bmp": encode(photograph, "BMP"),
        "tiff": encode(photograph, "TIFF"),
        "jpeg 2000": encode(photograph, "JPEG2000"),
        "bytes after the jpeg": encode(photograph) + b"\0" * 200 + b"trailer" * 20,
    }


def bad_images(photograph):
    jpeg, png = encode(photograph, quality=95), encode(photograph, "PNG")
    webp = encode(photograph, "WEBP")
    damaged = bytearray(png)
    damaged[len(png) // 2 : len(png) // 2 + 400] = bytes(400)
    return {
        "zero bytes": (b"", r"empty \(0 bytes\)"),
        "html": (b"<!DOCTYPE html><html>gone</html>", "not an image .starts with '<!DOCTYPE html'"),
        "random": (np.random.default_rng(0).bytes(5000), "not an image"),
        "truncated jpeg": (jpeg[: len(jpeg) * 6 // 10], "truncated: "),
        "truncated png": (png[: len(png) * 6 // 10], "truncated: |damaged PNG"),
        "truncated webp": (webp[: len(webp) * 6 // 10], "WebP"),
        "jpeg of its magic only": (jpeg[:3], "JPEG"),
        "png of its header only": (png[:33], "PNG|truncated"),
        "damaged png": (bytes(damaged), "PNG|truncated"),
        "unreadable": (ShardError("shard x.tar: member a.jpg cannot be read"), "member a.jpg"),
    }


def test_damage_inside_a_jpeg_is_judged_as_pillow_does(photograph, make_loader):
    """DALI decodes some images to their end that Pillow, and so timm, refuses: their vectors would be noise."""
    rng, damaged = np.random.default_rng(5), []
    for number in range(240):
        data = bytearray(encode(photograph, quality=90, progressive=number % 4 == 0))
        size = int(rng.choice([1, 40, 400, 4000]))
        start = int(rng.integers(0, len(data) - size - 2))
        data[start : start + size] = rng.bytes(size)
        damaged.append(bytes(data))
    found = {}
    for decoder in DECODERS:
        found[decoder] = unpack(list(make_loader(decoder=decoder).load(enumerate(damaged))))
    (dali, dali_errors), (pillow, pillow_errors) = found["dali"], found["pillow"]
    assert len(pillow_errors) > 20 and len(pillow) > 20, "no test of both kinds"
    assert dali_errors.keys() == pillow_errors.keys()
    for number, pixels in pillow.items():
        assert abs(pixels.astype(float) - dali[number]).mean() < 0.5, number


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_kind_of_image(photograph, make_loader, device, decoder):
    """Good ones as timm sees them, bad ones with a reason, in one mixed stream."""
    good, bad = good_images(photograph), bad_images(photograph)
    stream = [*good.items(), *((name, data) for name, (data, _) in bad.items())]
    np.random.default_rng(3).shuffle(stream)
    pixels, errors = unpack(
        list(make_loader(decoder=decoder).load((i, d) for i, (_, d) in enumerate(stream)))
    )
    assert sorted([*pixels, *errors]) == list(range(len(stream)))
    for position, (name, data) in enumerate(stream):
        if name in bad:
            assert errors[position] and len(errors[position]) < 200
            assert re.search(bad[name][1], errors[position]), (name, errors[position])
        else:
            expected = timm_pixels(Image.open(io.BytesIO(data)).convert("RGB"))
            difference = np.abs(pixels[position].astype(int) - expected).mean()
            assert difference <= (0 if decoder == "pillow" else limit(device)), name


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_images_are_upright(photograph, make_loader, device, decoder, kind):
    data = [with_exif(photograph, orientation, kind) for orientation in range(10)]
    pixels, errors = unpack(list(make_loader(decoder=decoder).load(enumerate(data))))
    assert not errors
    for orientation, one in enumerate(data):
        expected = timm_pixels(ImageOps.exif_transpose(Image.open(io.BytesIO(one))).convert("RGB"))
        assert np.abs(pixels[orientation].astype(int) - expected).mean() <= limit(device), orientation


def test_sniffing_reads_what_pillow_reads(photograph):
    for name, data in good_images(photograph).items():
        header = sniff(data, 10**6)
        assert (header.height, header.width) == (150, 225), name
        assert header.kind == Image.open(io.BytesIO(data)).format, name
    for orientation in range(10):
        sideways = 5 <= orientation <= 8
        header = sniff(with_exif(photograph, orientation), 10**6)
        assert (header.height, header.width) == ((225, 150) if sideways else (150, 225))
        assert header.plain == (1 <= orientation <= 8)
    for order in ("<", ">"):  # both byte orders
        mark = {"<": b"II*\0", ">": b"MM\0*"}[order]
        tiff = mark + struct.pack(order + "IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
        jpeg = encode(photograph)
        turned = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff + jpeg[2:]
        assert sniff(turned, 10**6)[1:4] == (225, 150, True)
        assert ImageOps.exif_transpose(Image.open(io.BytesIO(turned))).size == (150, 225)


@pytest.mark.parametrize("decoder", DECODERS)
def test_orientation_that_only_xmp_has(photograph, make_loader, decoder):
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:D tiff:Orientation="6"/></x:xmpmeta>'
    data = encode(photograph, xmp=packet)
    pixels, _ = unpack(list(make_loader(decoder=decoder).load([(0, data)])))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert upright.size == (150, 225)
    check_pixels(pixels[0], timm_pixels(upright), decoder)


def check_pixels(found, expected, decoder):
    """Pillow's result: to the bit where Pillow resizes; torch's rounding differs in a few places."""
    apart = np.abs(found.astype(int) - expected.astype(int))
    assert apart.max() <= (0 if decoder == "pillow" else 1) and apart.mean() < 0.02


@pytest.mark.parametrize("decoder", DECODERS)
def test_16_bit_images_keep_their_contrast(make_loader, decoder):
    ramp = (np.arange(200)[None].repeat(200, 0) * 300).astype(np.uint16)
    pixels, errors = unpack(
        list(make_loader(decoder=decoder).load([(0, encode(Image.fromarray(ramp), "PNG"))]))
    )
    assert not errors
    check_pixels(
        pixels[0], timm_pixels(Image.fromarray((ramp >> 8).astype(np.uint8)).convert("RGB")), decoder
    )


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_no_image_takes_the_place_of_another(make_loader, decoder, batch_size):
    """Colour says the position; bad, odd and slow images stand between; positions are in no order."""
    broken = [b"", b"<html>", coloured(1)[:60]]
    order = np.random.default_rng(1).permutation(200)

    def stream():
        for position in order:
            if position % 9 == 4:
                yield int(position), broken[position % 3]
            elif position % 5 == 2:
                colour = (int(position), 255 - int(position), 128)
                yield int(position), encode(Image.new("RGB", (90, 90), colour), "BMP")
            else:
                yield int(position), coloured(int(position))

    one = make_loader(batch_size=batch_size, decoder=decoder)
    for _ in range(2):
        pixels, errors = unpack(list(one.load(stream())), batch_size)
        assert sorted(errors) == [p for p in range(200) if p % 9 == 4]
        assert sorted(pixels) == [p for p in range(200) if p % 9 != 4]
        for position, image in pixels.items():
            assert (image == (position, 255 - position, 128)).all(), position


def corrupt_png(number):
    """A PNG whose headers and chunks are in order, but whose compressed pixels are not."""
    data = coloured(number)
    start = data.index(b"IDAT")
    length = struct.unpack(">I", data[start - 4 : start])[0]
    body = b"\x55" * length
    chunk = b"IDAT" + body
    return data[:start] + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[start + 4 + length + 4 :]


def test_dali_losing_a_batch_costs_the_bad_image_only(make_loader, caplog):
    """These pass the sniffing and break DALI's whole batch."""
    bad = {5, 6, 40, 63}
    data = [corrupt_png(n) if n in bad else coloured(n) for n in range(100)]
    assert all(sniff(data[n], 10**6).plain for n in bad)
    caplog.set_level(logging.DEBUG, "curator_dask")
    one = make_loader(batch_size=50)
    for _ in range(2):
        pixels, errors = unpack(list(one.load(enumerate(data))), 50)
        assert errors.keys() == bad and all(
            "PNG" in reason or "truncated" in reason for reason in errors.values()
        )
        assert all((pixels[n] == (n, 255 - n, 128)).all() for n in range(100) if n not in bad)
    assert "asked for its halves" in caplog.text


@pytest.mark.parametrize("decoder", DECODERS)
def test_too_large_is_refused_before_decoding(make_loader, decoder):
    def header_only(width, height):  # says its size, and holds nothing that could be decoded
        head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        chunks = [head, b"IDAT" + zlib.compress(b"")]
        body = b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
        return b"\x89PNG\r\n\x1a\n" + body + b"\0\0\0\0IEND\xaeB`\x82"

    jpeg = bytearray(encode(Image.new("RGB", (8, 8))))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 20_000, 20_000)
    data = [header_only(20_000, 20_000), bytes(jpeg), coloured(3)]
    data += [encode(Image.new("L", (200, 101)), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF")]
    _, errors = unpack(list(make_loader(decoder=decoder).load(enumerate(data))))
    assert errors == dict.fromkeys(
        (0, 1), "too large: 20000x20000 = 400,000,000 pixels, over max_pixels = 178,956,970"
    )
    pixels, errors = unpack(list(make_loader(decoder=decoder, max_pixels=200 * 100).load(enumerate(data))))
    assert list(pixels) == [2] and all(reason.startswith("too large: ") for reason in errors.values())


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_chunk_is_bounded_in_pixels(make_loader, monkeypatch, decoder):
    monkeypatch.setattr(chunks_module, "CHUNK_PIXELS", 20_000)
    pixels, _ = unpack(list(make_loader(decoder=decoder).load((n, coloured(n)) for n in range(50))))
    assert all((pixels[n] == (n, 255 - n, 128)).all() for n in range(50))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_larger_images_than_pillow_allows_where_asked_for(make_loader, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    data = encode(Image.new("RGB", (100, 100)), "GIF")
    assert not next(iter(make_loader(max_pixels=10_000).load([(0, data)]))).errors


@pytest.mark.parametrize("decoder", DECODERS)
def test_containers_of_bytes(make_loader, decoder, tmp_path):
    """Memory-mapped bytes too, whose file can be closed after the load, and after an early stop."""
    data = [coloured(n) for n in range(40)]
    (tmp_path / "shard").write_bytes(b"".join(data))
    one = make_loader(batch_size=8, decoder=decoder)
    with (tmp_path / "shard").open("rb") as file:
        for early in (False, True):
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            view, ends = memoryview(mapped), np.cumsum([0, *map(len, data)])
            parts = (view[ends[n] : ends[n + 1]] for n in range(40))
            kinds = [bytes, lambda part: part, lambda part: np.frombuffer(part, np.uint8)]
            batches = one.load((n, kinds[n % 3](part)) for n, part in enumerate(parts))
            got = [next(batches)] if early else list(batches)
            batches.close()
            del batches, parts, view
            gc.collect()
            mapped.close()  # BufferError if anything still looked at it
            pixels, errors = unpack(got, 8)
            assert not errors and len(pixels) == (8 if early else 40)
            assert all((pixels[n] == (n, 255 - n, 128)).all() for n in pixels)


def test_no_images_and_none_good(make_loader):
    one = make_loader()
    assert list(one.load([])) == []
    (batch,) = one.load([(7, b""), (3, b"")])
    assert batch.errors == {7: "empty (0 bytes)", 3: "empty (0 bytes)"}
    assert batch.positions.shape == (0,) and batch.pixels.shape == (0, 64, 64, 3)
    assert "errors=2" in repr(batch)


def test_batches_are_kept_apart(make_loader):
    """What was handed out does not change when the next is decoded."""
    batches = list(make_loader(batch_size=4).load((n, coloured(n)) for n in range(150)))
    for batch in batches:
        assert (batch.pixels.cpu()[:, 0, 0, 0] == torch.from_numpy(batch.positions)).all()


@pytest.mark.parametrize("decoder", DECODERS)
def test_early_stop_and_exceptions_leave_nothing(device, decoder):
    process, before = psutil.Process(), threading.active_count()
    one = Loader(LoaderSpec((SPEC,), (4,), 2, decoder=decoder, device=device))
    list(one.load((n, coloured(n)) for n in range(20)))
    threads, native = threading.active_count(), process.num_threads()

    def failing():
        for n in range(37):
            yield n, coloured(n)
        raise ShardError("shard 00003.tar: ends in the middle")

    for _ in range(5):
        batches = one.load((n, coloured(n % 250)) for n in range(100_000))
        next(batches)
        batches.close()
        with pytest.raises(ShardError, match=r"00003\.tar"):
            list(one.load(failing()))
        with pytest.raises(ZeroDivisionError):
            for _ in one.load((n, coloured(n % 250)) for n in range(100_000)):
                1 / 0  # noqa: B018
    gc.collect()
    assert threading.active_count() <= threads  # fewer where those of tests before have ended
    assert process.num_threads() <= native + 1
    pixels, _ = unpack(list(one.load((n, coloured(n)) for n in range(50))), 4)
    assert len(pixels) == 50
    one.close()
    assert threading.active_count() <= before
    with pytest.raises(CuratorError, match="closed"):
        list(one.load([]))


def test_the_next_batch_is_decoded_meanwhile(make_loader):
    """While the caller holds the first batch, the images of the next are read; but not all of them."""
    read = []

    def stream():
        for n in range(5000):
            read.append(n)
            yield n, coloured(n % 250)

    batches = make_loader(batch_size=8).load(stream())
    next(batches)
    deadline = time.monotonic() + 20
    while len(read) < 24 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(read) >= 24
    time.sleep(0.3)
    assert len(read) < 200
    batches.close()


def test_one_load_at_a_time(make_loader):
    one = make_loader(batch_size=2)
    first = one.load((n, coloured(n)) for n in range(50))
    next(first)
    with pytest.raises(CuratorError, match="finish or close"):
        next(one.load([(0, coloured(0))]))
    got = []
    other = threading.Thread(target=lambda: got.extend(one.load([(0, coloured(0))])))
    other.start()
    assert not got
    first.close()
    other.join(20)
    assert len(got) == 1


def test_blocks_of_rows_are_cut_at_the_batches(device):
    """On a GPU whole chunks arrive at once; here their lengths and the batch's do not fit."""
    place, batches = backend.current(), []
    gather = Gather(5, (2, 2, 3), place, batches.append)
    at = 0
    for count in (3, 1, 12, 0, 2, 5):
        numbers = list(range(at, at + count))
        block = torch.tensor(numbers, dtype=torch.uint8)[:, None, None, None].expand(count, 2, 2, 3)
        gather.add(numbers, block.to(place.torch_device))
        at += count
    gather.fail({99: "bad"})
    gather.flush()
    assert [len(batch.positions) for batch in batches] == [5, 5, 5, 5, 3]
    assert np.concatenate([batch.positions for batch in batches]).tolist() == list(range(23))
    assert all((b.pixels.cpu().numpy() == b.positions[:, None, None, None]).all() for b in batches)
    assert batches[-1].errors == {99: "bad"}


class Brightness:
    """A user's transform, as a plain callable."""

    def __call__(self, image):
        assert image.mode == "RGB"
        if image.width == 81:
            raise ValueError("no 81")
        if image.width == 82:
            return torch.zeros(5)
        return torch.tensor([image.height, image.width, image.getpixel((0, 0))[0]])


def test_a_transform_of_ones_own(make_loader, photograph):
    data = [coloured(n) for n in range(30)] + [with_exif(photograph, 6), b""]
    batches = list(make_loader(Brightness(), batch_size=8).load(enumerate(data)))
    rows = {int(p): r for b in batches for p, r in zip(b.positions, b.pixels.cpu().tolist(), strict=True)}
    errors = {p: reason for b in batches for p, reason in b.errors.items()}
    assert sorted([*rows, *errors]) == list(range(32))
    assert all(batch.pixels.dtype == torch.float32 for batch in batches)
    for n in range(30):
        if n % 7 == 1:
            assert errors[n] == "the transform Brightness failed: ValueError: no 81"
        elif n % 7 == 2:
            assert "shape (5,), expected (3,)" in errors[n]
        else:
            assert rows[n] == [70, 80 + n % 7, n]
    assert rows[30][:2] == [225, 150]
    assert errors[31] == "empty (0 bytes)"


@pytest.mark.parametrize("interpolation", ["nearest", "box", "hamming", "lanczos"])
def test_what_has_no_fast_resize_is_said_once_and_exact(
    make_loader, device, photograph, caplog, interpolation
):
    spec = TransformSpec((64, 64), interpolation, SPEC.mean, SPEC.std, 0.875)
    data = [encode(photograph, "PNG")] * 3
    with caplog.at_level(logging.WARNING, "curator_dask"):
        one = make_loader(spec)
        for _ in range(2):
            pixels, errors = unpack(list(one.load(enumerate(data))))
    said = [record.getMessage() for record in caplog.records if record.name == "curator_dask"]
    assert not errors
    transform = timm.data.create_transform(
        (3, 64, 64), interpolation=interpolation, crop_pct=0.875, use_prefetcher=True
    )
    expected = transform(photograph).permute(1, 2, 0).numpy()
    if device == "gpu" and interpolation == "lanczos":
        assert not said and np.abs(pixels[2].astype(int) - expected).mean() <= limit(device)
    else:
        assert len(said) == 1 and "Pillow" in said[0] and repr(interpolation) in said[0]
        np.testing.assert_array_equal(pixels[2], expected)


def test_the_usual_ones_are_not_remarked(make_loader, caplog):
    with caplog.at_level(logging.WARNING):
        list(make_loader().load([(0, coloured(0))]))
    assert not caplog.records


def test_a_size_that_dali_reads_in_another_way(make_loader, photograph, monkeypatch):
    """The crop is planned from the sniffed size: if DALI decodes another, Pillow does that image."""
    monkeypatch.setattr(DaliDecoder, "finish", _with_wrong_size(DaliDecoder.finish))
    data = [encode(photograph, "PNG"), coloured(9)]
    pixels, errors = unpack(list(make_loader().load(enumerate(data))))
    assert not errors
    check_pixels(pixels[0], timm_pixels(photograph), "dali")
    assert (pixels[1] == (9, 246, 128)).all()


def _with_wrong_size(finish):
    def wrong(self):
        pixels, found = finish(self)
        return pixels, [(found[0][0] + 1, found[0][1]), *found[1:]]

    return wrong


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transforms": ("center",)}, "transforms"),
        ({"transforms": ()}, "transforms"),
        ({"transforms": SPEC}, "transforms"),
        ({"batch_sizes": (0,)}, "batch_sizes"),
        ({"batch_sizes": (1, 1)}, "batch_sizes"),
        ({"batch_sizes": 1}, "batch_sizes"),
        ({"num_threads": 1.5}, "num_threads"),
        ({"decoder": "opencv"}, "decoder"),
        ({"device": "cuda"}, "device"),
        ({"max_pixels": 0}, "max_pixels"),
    ],
)
def test_impossible_specs_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        LoaderSpec(**{"transforms": (SPEC,), "batch_sizes": (1,), "num_threads": 1, **change})


def test_specs_are_keys_and_the_gpu_must_be_there(monkeypatch):
    one, same = (LoaderSpec((SPEC,), (8,), 2) for _ in range(2))
    others = [LoaderSpec((SPEC,), (8,), 2, decoder="pillow"), LoaderSpec((SPEC, SPEC), (8, 8), 2)]
    assert len({one, same, *others}) == 3
    monkeypatch.setenv(backend.DEVICE_VARIABLE, "cpu")
    backend.current.cache_clear()
    try:
        with pytest.raises(ConfigError, match="on the CPU"):
            Loader(LoaderSpec((SPEC,), (8,), 2, device="gpu"))
    finally:
        backend.current.cache_clear()
