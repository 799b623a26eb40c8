"""What decoders' libraries say of an image without naming it does not reach stderr, and pixels are Pillow's."""

from __future__ import annotations

import ctypes
import io
import struct
import threading
import time
import warnings
import zlib

import numpy as np
import pytest
import tifffile
from colours import ColourReader, write_tar
from PIL import Image, ImageCms

from curator_dask.cluster.setup import set_up_workers
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.decode import quiet
from curator_dask.decode.loader import Loader
from curator_dask.decode.pillow import decode
from curator_dask.decode.spec import LoaderSpec
from curator_dask.errors import ImageError

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def encode(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def chunk(name, data, crc=None):
    crc = zlib.crc32(name + data) if crc is None else crc
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)


def png_with(*chunks, mode="RGB"):
    """With others before the pixels."""
    data = encode(PICTURE.convert(mode), "PNG")
    at = data.index(b"IDAT") - 4
    return data[:at] + b"".join(chunks) + data[at:]


def changed(data, at, new):
    return data[:at] + new + data[at + len(new) :]


def good_images():
    """Of which Pillow says nothing, and libpng or libjpeg as DALI has it something."""
    profile = zlib.compress(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    jpeg = encode(PICTURE, "JPEG")
    scan = jpeg.index(b"\xff\xda")
    return {
        "a profile of colour in grey": png_with(chunk(b"iCCP", b"x\0\0" + profile), mode="L"),
        "a profile that is none": png_with(chunk(b"iCCP", b"x\0\0garbage")),
        "bits": png_with(chunk(b"sBIT", b"\x09\x09\x09")),
        "a time": png_with(chunk(b"tIME", bytes(7))),
        "transparency beside alpha": png_with(chunk(b"tRNS", bytes(6)), mode="RGBA"),
        "a palette in grey": png_with(chunk(b"PLTE", bytes(9)), mode="L"),
        "a palette that counts": encode(PICTURE.quantize(16), "PNG", transparency=3),
        "brightness": png_with(chunk(b"gAMA", struct.pack(">I", 100_000)), chunk(b"cHRM", bytes(32))),
        "JFIF 2": changed(jpeg, 11, b"\2"),
        "the scan's parameters": changed(jpeg, scan + 5 + 2 * jpeg[scan + 4] + 1, b"\5"),
    }


def corrupt_images():
    """Which Pillow decodes as far as their data go, and what libjpeg and libpng say of them."""
    jpeg, png = encode(PICTURE, "JPEG"), encode(PICTURE, "PNG")
    middle = (jpeg.index(b"\xff\xda") + len(jpeg)) // 2
    return {
        jpeg[:middle] + b"\xff\xd9": "Corrupt JPEG data: premature end of data segment",
        changed(png, len(png) - 16, b"\0\0\0\0"): "libpng error: IDAT: CRC error",
    }


def bad_png():
    """Pillow refuses it for its text."""
    return png_with(chunk(b"tEXt", b"a\0b", crc=1))


def bad_tiffs():
    """And libtiff's words."""
    file = io.BytesIO()
    tifffile.imwrite(file, np.asarray(PICTURE), photometric="rgb", compression="deflate")
    data = file.getvalue()
    page = tifffile.TiffFile(io.BytesIO(data)).pages[0]
    (place,), (count,) = page.dataoffsets, page.databytecounts
    length = page.tags["StripByteCounts"].valueoffset
    return {
        "damaged": (
            changed(data, place, bytes(4)),
            "^damaged TIFF: decoder error -2 .ZIPDecode: Decoding error",
        ),
        "cut": (data[: place + count // 2], "TIFFFillStrip: Read error on strip 0; got "),
        "length": (
            changed(data, length, struct.pack("<I", 10**6)),
            "TIFFFillStrip: Read error on strip 0; got ",
        ),
    }


@pytest.mark.parametrize("decoder", ["dali", "pillow"])
def test_images_of_which_a_library_complains(decoder, capfd):
    good, bad = good_images(), [bad_png(), *(data for data, _ in bad_tiffs().values())]
    good |= {words: data for data, words in corrupt_images().items()}
    loader = Loader(LoaderSpec((None,), (64,), 2, decoder=decoder, device="cpu"))
    try:
        (batch,) = loader.load(enumerate([*good.values(), *bad]))
        ctypes.CDLL(None).perror(b"another's")  # as long as there is a pipeline
    finally:
        loader.close()
    assert [line.partition(":")[0] for line in capfd.readouterr().err.splitlines()] == ["another's"]
    words = corrupt_images().values()
    assert batch.said == ({} if decoder == "pillow" else {[*good].index(each): each for each in words})
    assert sorted(batch.positions.tolist()) == [*range(len(good))]
    in_order = sorted(zip(batch.positions.tolist(), batch.pixels, strict=True), key=lambda pair: pair[0])
    for (name, data), (_, pixels) in zip(good.items(), in_order, strict=True):
        own = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        np.testing.assert_array_equal(pixels, own, err_msg=name)
    assert len(batch.errors) == len(bad)


def test_threads_that_decode_at_once_are_told_of_their_own_images(capfd):
    """Beside a load of which nobody takes any more, with a chunk that DALI has begun."""
    jpeg, png = corrupt_images()
    good = encode(PICTURE, "JPEG")
    images = {
        "good": [good] * 64,
        "jpeg": [jpeg if n % 8 == 1 else good for n in range(64)],
        "png": [png if n % 16 == 3 else good for n in range(64)],
        "waits": [jpeg if n == 63 else good for n in range(64)],
    }
    expected = {name: {n for n, data in enumerate(all_) if data != good} for name, all_ in images.items()}
    loaders = {name: Loader(LoaderSpec((None,), (8,), 2, decoder="dali", device="cpu")) for name in images}
    said = {name: set() for name in images}
    beside = loaders["waits"].load(enumerate(images["waits"]))
    next(beside)

    def load(name, batches):
        for batch in batches:
            said[name] |= {*batch.said}

    names = ("good", "jpeg", "png")
    threads = [
        threading.Thread(target=load, args=(name, loaders[name].load(enumerate(images[name]))))
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load("waits", beside)
    for loader in loaders.values():
        loader.close()
    assert said == expected
    assert capfd.readouterr().err == ""


def test_corrupt_images_are_named(in_this_process, tmp_path, capfd):
    jpeg, png = corrupt_images()
    images = {"good.jpg": encode(PICTURE, "JPEG"), "half.jpg": jpeg, "sum.jpg": png}
    write_tar(tmp_path / "a.tar", [*images.items()])
    read = ColourReader()(ImageTextPairDataset.from_webdataset(tmp_path))
    first, second = (read.save_metadata(tmp_path / "out") for _ in range(2))
    words = [*corrupt_images().values()]
    expected = {"count": 2, "examples": [f"half ({words[0]})", f"sum ({words[1]})"]}
    assert (first.good, first.corrupt) == (1.0, {str(tmp_path / "a.tar"): expected})
    assert (second.skipped, second.corrupt) == (1, first.corrupt)
    assert f"a.tar half ({words[0]})" in str(second)
    # In parts they add up, also where a retry has come upon them.
    parts = ImageTextPairDataset.from_webdataset(tmp_path, rows_per_partition=2)
    limited, out = ColourReader(max_pixels=1)(parts), tmp_path / "parts"
    refused = limited.save_metadata(out)
    told = [refused.corrupt, ColourReader().retry(out).corrupt, limited.save_metadata(out).corrupt]
    anew = [ColourReader()(parts).save_metadata(tmp_path / "anew").corrupt for _ in range(2)]
    assert [*told, *anew] == [{}, *[first.corrupt] * 4]
    assert not any(line in capfd.readouterr().err for line in words)


@pytest.mark.parametrize("name", bad_tiffs())
def test_a_reason_has_the_words_of_libtiff(name, capfd):
    data, words = bad_tiffs()[name]
    with pytest.raises(ImageError, match=words):
        decode(data, 10**6)
    assert capfd.readouterr().err == ""
    with pytest.raises(OSError, match="decoder error"):  # another's use of Pillow in this process
        Image.open(io.BytesIO(data)).load()
    assert words[-20:] in capfd.readouterr().err


def test_threads_that_begin_at_once_have_libtiff_call_one_function(monkeypatch):
    """Of two one would be let go, and libtiff would call what is no longer there."""
    installed = []
    monkeypatch.setattr(quiet, "_caught", [])
    monkeypatch.setattr(quiet, "_installed", lambda: (time.sleep(0.05), installed.append(1)))
    threads = [threading.Thread(target=decode, args=(encode(PICTURE, "PNG"), 10**6)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert installed == [1]


def warned():
    exif = Image.Exif()
    exif[0x010E] = "a text that is longer than four bytes"
    data = encode(PICTURE, "JPEG", exif=exif)
    cut = changed(data, data.index(b"\x01\x0e") + 4, struct.pack(">I", 10**6))
    with warnings.catch_warnings(record=True) as caught:
        warnings.warn("of another's", stacklevel=1)
        decode(cut, 10**6)
    return [str(each.message) for each in caught]


def test_warnings_of_pillow_do_not_fill_a_workers_log(client):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        first, *pillows = warned()
    assert first == "of another's" and pillows
    set_up_workers(client)
    workers = len(client.scheduler_info(n_workers=-1)["workers"])
    assert [*client.run(warned).values()] == [["of another's"]] * workers
