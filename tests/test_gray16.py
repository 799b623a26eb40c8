"""Grey of more than 8 bits a sample: as bright as its file says, whatever the format and the decoder."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest
import skimage.util
import tifffile
from colours import ColourReader, image_of, write_tar
from dask.base import tokenize
from PIL import Image, TiffImagePlugin

from curator_dask.checks.preflight import preflight
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.decode.loader import Loader
from curator_dask.decode.spec import LoaderSpec
from curator_dask.errors import ConfigError
from curator_dask.image.embedders.partition import EmbedPartition

pytestmark = pytest.mark.usefixtures("in_this_process")

DEPTHS = (10, 12, 14, 16)
SHAPE = (24, 40)


def samples_of(bits):
    """Every brightness there is, and black and white."""
    samples = np.random.default_rng(bits).integers(0, 2**bits, SHAPE).astype(np.uint16)
    samples[0, :2] = 0, 2**bits - 1
    return samples


def png(samples, significant=None):
    """With the chunk that says how many bits have a meaning; Pillow writes none."""
    height, width = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)]
    chunks += [] if significant is None else [b"sBIT" + bytes([significant])]
    chunks += [b"IDAT" + zlib.compress(rows), b"IEND"]
    body = b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(samples, **tags):
    """With tags by number, as ``_281=4095``."""
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        directory[int(name[1:])] = value
    file = io.BytesIO()
    Image.fromarray(samples).save(file, "TIFF", tiffinfo=directory)
    return file.getvalue()


def packed_tiff(samples):
    """12 bits a sample, two samples in three bytes."""
    height, width = samples.shape
    first, second = samples.reshape(-1, 2).astype(np.uint16).T
    parts = [first >> 4, (first & 15) << 4 | second >> 8, second & 255]
    data = np.stack(parts, 1).astype(np.uint8).tobytes()
    entries = [(256, width), (257, height), (258, 12), (259, 1), (262, 1)]
    entries += [(273, 8), (277, 1), (278, height), (279, len(data))]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return (
        b"II*\0"
        + struct.pack("<I", 8 + len(data))
        + data
        + struct.pack("<H", len(entries))
        + directory
        + bytes(4)
    )


def plain_tiff(samples, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, samples, photometric="minisblack", **options)
    return file.getvalue()


def pgm(samples, white):
    return b"P5\n%d %d\n%d\n" % (*samples.shape[::-1], white) + samples.astype(">u2").tobytes()


def jp2(samples, bits):
    """Lossless; written as of 16 bits, which Pillow can, with the depth in its headers changed."""
    file = io.BytesIO()
    shifted = (
        samples.astype(int) - (1 << bits - 1) + (1 << 15)
    )  # the format stores the distance to the middle
    Image.fromarray(shifted.astype(np.uint16)).save(file, "JPEG2000", irreversible=False)
    data = bytearray(file.getvalue())
    for place in (data.index(b"ihdr") + 14, data.index(b"\xff\x51") + 40):
        assert data[place] == 15
        data[place] = bits - 1
    return bytes(data)


def spread(samples, bits):
    """Samples of fewer bits over all 16, as PNG wants them."""
    return np.rint(samples * ((2**16 - 1) / (2**bits - 1))).astype(np.uint16)


def declared(bits):
    """The samples of a depth in every format that can declare it."""
    samples = samples_of(bits)
    files = {
        "PGM": pgm(samples, 2**bits - 1),
        "JPEG 2000": jp2(samples, bits),
        "PNG": png(samples) if bits == 16 else png(spread(samples, bits)),
        "TIFF": tiff(samples, _281=2**bits - 1),
        "TIFF, another tag": tiff(samples, _341=2**bits - 1),
    }
    if bits < 16:
        files["PNG, sBIT"] = png(spread(samples, bits), bits)
        files["PNG, sBIT, not spread"] = png(samples, bits)
    if bits == 12:
        files["TIFF, packed"] = packed_tiff(samples)
    return files


def pixels_of(files, decoder, **options):
    """Red, green and blue of each, whole."""
    loader = Loader(LoaderSpec((None,), (64,), 2, decoder=decoder, device="cpu", **options))
    try:
        found = {}
        for batch in loader.load(enumerate(files)):
            assert not batch.errors
            found |= dict(zip(batch.positions.tolist(), batch.pixels, strict=True))
    finally:
        loader.close()
    return [found[number] for number in range(len(files))]


@pytest.mark.parametrize("decoder", ["dali", "pillow"])
@pytest.mark.parametrize("bits", DEPTHS)
def test_the_highest_bits_of_the_declared_depth_are_taken(decoder, bits):
    files = declared(bits)
    expected = np.repeat((samples_of(bits) >> bits - 8).astype(np.uint8)[..., None], 3, axis=2)
    for name, found in zip(files, pixels_of([*files.values()], decoder), strict=True):
        np.testing.assert_array_equal(found, expected, err_msg=name)


@pytest.mark.parametrize("decoder", ["dali", "pillow"])
@pytest.mark.parametrize("bits", DEPTHS)
def test_pillows_own_way_is_that_of_its_conversion(decoder, bits):
    files = [*declared(bits).values()]
    expected = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
    for found, own in zip(pixels_of(files, decoder, gray16="pillow"), expected, strict=True):
        np.testing.assert_array_equal(found, own)


def test_what_declares_no_smaller_depth_has_all_its_bits():
    """A dark PNG with sBIT whose samples are spread, and a largest sample that is a statistic."""
    dark = samples_of(8) >> 3
    files = [png(spread(dark, 12), 12), png(dark << 4, 12), tiff(samples_of(12), _281=3999)]
    expected = [spread(dark, 12) >> 8, dark << 4 >> 8, samples_of(12) >> 8]
    for found, samples in zip(pixels_of(files, "pillow"), expected, strict=True):
        np.testing.assert_array_equal(found[..., 0], samples)


@pytest.mark.parametrize(("kind", "bits"), [(np.int16, 15), (np.int32, 31), (np.uint32, 32)])
def test_samples_with_a_sign_and_of_32_bits_are_not_all_white(kind, bits):
    samples = (np.arange(256, dtype=np.int64).reshape(16, 16) << bits - 8).astype(kind)
    files = [plain_tiff(samples), plain_tiff(-samples)] if kind != np.uint32 else [plain_tiff(samples)]
    found = pixels_of(files, "pillow")
    np.testing.assert_array_equal(found[0][..., 0], np.arange(256).reshape(16, 16))
    assert kind == np.uint32 or not found[1].any()


def float_files(samples):
    """In every format that holds them and Pillow reads; a compressed TIFF goes through libtiff."""
    height, width = samples.shape
    single = np.ascontiguousarray(samples, np.float32)
    return {
        "TIFF": plain_tiff(single),
        "TIFF, compressed": plain_tiff(single, compression="deflate"),
        "PFM": b"Pf\n%d %d\n-1.0\n" % (width, height) + single[::-1].tobytes(),
    }


@pytest.mark.parametrize("decoder", ["dali", "pillow"])
def test_floats_are_0_to_1_where_they_stay_below_2(decoder):
    """As scikit-image, which writes them, reads them; others as Pillow has them."""
    unit = samples_of(8).astype(np.float32) / 255
    files = float_files(unit)
    for name, found in zip(files, pixels_of([*files.values()], decoder), strict=True):
        np.testing.assert_array_equal(found[..., 0], skimage.util.img_as_ubyte(unit), err_msg=name)
    own = [*files.values(), *float_files(unit * 400 - 50).values()]
    expected = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in own]
    for found, image in zip(pixels_of(own, decoder, gray16="pillow"), expected, strict=True):
        np.testing.assert_array_equal(found, image)
    for found, image in zip(pixels_of(own[3:], decoder), expected[3:], strict=True):
        np.testing.assert_array_equal(found, image)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([-0.1, 0.5, 1.1, 1], [0, 128, 255, 255]),  # as a bicubic resize overshoots
        ([np.nan, np.inf, -np.inf, 0.2], [0, 255, 0, 51]),
        ([np.nan, np.inf, -3.4e38, 200], [0, 255, 0, 200]),  # what maps hold where they hold nothing
        ([np.nan] * 4, [0] * 4),
    ],
)
def test_floats_that_are_no_brightness_have_one(given, expected):
    samples = np.repeat(np.array(given, np.float32), 64).reshape(16, 16)
    (found,) = pixels_of([plain_tiff(samples)], "pillow")
    np.testing.assert_array_equal(found[..., 0], np.repeat(expected, 64).reshape(16, 16))


def test_the_option_counts_where_it_is_given_and_check_counts_such_images(tmp_path):
    white = png(np.full((24, 24), 300, np.uint16))  # white where Pillow cuts, else nearly black
    unit = plain_tiff(np.ones((24, 24), np.float32))
    write_tar(tmp_path / "data" / "0.tar", [("a.png", white), ("b.png", image_of("3")), ("c.tiff", unit)])
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")
    (note,) = [each for each in preflight(tmp_path / "data").notes if each.kind == "gray16"]
    assert note.count == 2 and note.examples == ("0: 'a'",)
    for gray16, red in (("scale", 1), ("pillow", 255)):
        summary = ColourReader(gray16=gray16)(dataset).save_metadata(tmp_path / "out")
        assert summary.written == 1  # not taken for the same
        vector = pq.read_table(tmp_path / "out")["image_embedding"].to_pylist()[0]
        np.testing.assert_allclose(vector, np.full(3, red), atol=1e-4)
        assert ColourReader(gray16=gray16)(dataset).save_metadata(tmp_path / "out").written == 0
    with pytest.raises(ConfigError, match="gray16='white': expected 'scale' or 'pillow'"):
        ColourReader(gray16="white")


def test_names_of_mixed_frames_know_it_only_where_it_is_given():
    settings = ("key", "image_embedding", 4, 1, "dali", 10**6, "null", True, (), None, None, "null", None)
    assert tokenize(EmbedPartition(None, *settings)) == "8129f2687181cb649017bd733bf9174f"
    assert tokenize(EmbedPartition(None, *settings, "pillow")) != tokenize(EmbedPartition(None, *settings))
