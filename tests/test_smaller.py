"""Images that are made smaller, each against what Pillow makes of it by hand."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, features

from curator_dask.decode.smaller import Smaller, SmallerImages, make_smaller
from curator_dask.errors import ConfigError, ImageError

LANCZOS = Image.Resampling.LANCZOS
ORIENTATION = 0x0112
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SIDE = SmallerImages(max_side=60)


def photograph(width=240, height=180) -> Image.Image:
    """Smooth, no two of its corners alike."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (6, 8, 3)).astype(np.uint8)
    small[0, 0], small[0, -1], small[-1, 0] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def saved(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[ORIENTATION], found[0x010F] = orientation, "a camera"
    return found


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def apart(one: Image.Image, other: Image.Image) -> float:
    """The mean difference of their values; of their sizes and modes there is none."""
    assert (one.size, one.mode) == (other.size, other.mode)
    return float(np.abs(np.asarray(one, np.float64) - np.asarray(other, np.float64)).mean())


def by_hand(image: Image.Image, size=(60, 45)) -> Image.Image:
    """Lanczos of all pixels."""
    return image.resize(size, LANCZOS)


@pytest.mark.parametrize(
    ("how", "size", "expected"),
    [
        ({"max_side": 100}, (100, 30), (100, 30)),
        ({"max_side": 100}, (101, 30), (100, 30)),
        ({"max_side": 100}, (400, 300), (100, 75)),
        ({"max_side": 100}, (300, 400), (75, 100)),
        ({"max_side": 100}, (20_000, 3), (100, 1)),  # and no side is of no pixels
        ({"min_side": 100}, (100, 3000), (100, 3000)),
        ({"min_side": 100}, (99, 3000), (99, 3000)),
        ({"min_side": 100}, (400, 300), (133, 100)),
        ({"min_side": 100}, (200, 6001), (100, 3000)),
    ],
)
def test_the_size_that_an_image_gets(how, size, expected):
    assert SmallerImages(**how).size(*size) == expected


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_is_upright_for_who_looks_at_exif_and_who_does_not(form, orientation):
    """So are rows that know of the orientation, too: the file says that it is upright."""
    options = {"lossless": True} if form == "WEBP" else {"quality": 95}
    data = saved(photograph(), form, exif=exif(orientation), **options)
    made = make_smaller(data, SIDE)
    expected = by_hand(upright := ImageOps.exif_transpose(opened(data)), made[:2])
    assert sorted(made[:2]) == [45, 60] and (made.width > made.height) == (upright.width > upright.height)
    found = opened(made.data)
    assert (found.format, found.getexif().get(ORIENTATION)) == (form, 1) and 0x010F not in found.getexif()
    assert apart(found, expected) < (4 if form == "JPEG" else 0.5)
    assert apart(ImageOps.exif_transpose(found), found) == 0


def test_a_large_jpeg_is_as_near_to_all_its_pixels_as_can_be_seen():
    """It is decoded at an eighth; and sizes that eighths do not divide lose no edge."""
    for size in ((1600, 1200), (1593, 1195)):
        data = saved(photograph(*size), "JPEG", quality=95)
        made = make_smaller(data, SmallerImages(max_side=100, image_format="png"))
        expected = by_hand(opened(data), made[:2])
        errors = np.asarray(opened(made.data), np.float64) - np.asarray(expected, np.float64)
        assert made[:2] == (100, 75) and 10 * np.log10(255**2 / (errors**2).mean()) > 50


def test_what_is_small_enough_stays_and_is_not_decoded():
    data = saved(photograph(), "JPEG")
    for how in ({"max_side": 240}, {"min_side": 180}, {"max_side": 240, "image_format": "jpeg"}):
        assert make_smaller(data[:2000], SmallerImages(**how)) == Smaller(240, 180, None, "JPEG")
    made = make_smaller(data, SmallerImages(max_side=240, image_format="png"))
    assert (made.form, made.fewer) == ("PNG", False) and apart(opened(made.data), opened(data)) == 0


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_the_profile_of_its_colours_stays(mode):
    profile = SRGB if mode == "RGB" else SRGB[:16] + {"L": b"GRAY", "CMYK": b"CMYK"}[mode] + SRGB[20:]
    data = saved(photograph().convert(mode), "JPEG", quality=95, icc_profile=profile, comment=b"secret")
    made = opened(make_smaller(data, SIDE).data)
    assert made.info["icc_profile"] == profile and "comment" not in made.info
    assert apart(made, by_hand(opened(data))) < 4
    if mode == "L":
        with pytest.raises(ImageError, match="grey: WEBP does not hold its ICC profile"):
            make_smaller(data, SmallerImages(max_side=60, image_format="webp"))


def test_what_a_png_says_of_its_colours_stays():
    data = png_saying(gamma(100_000))
    assert opened(data).info["gamma"] == opened(make_smaller(data, SIDE).data).info["gamma"] == 1.0


def png_saying(*chunks: tuple[bytes, bytes], behind: bool = False) -> bytes:
    """A PNG with these chunks before its pixels, or behind them."""
    data = saved(photograph(), "PNG")
    said = b"".join(
        struct.pack(">I", len(value)) + name + value + struct.pack(">I", zlib.crc32(name + value))
        for name, value in chunks
    )
    at = len(data) - 12 if behind else 33
    return data[:at] + said + data[at:]


def gamma(value: int) -> tuple[bytes, bytes]:
    return b"gAMA", struct.pack(">I", value)


def primaries(*values: int) -> tuple[bytes, bytes]:
    return b"cHRM", struct.pack(">8I", *values)


OF_SRGB = primaries(31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
NEAR_SRGB = primaries(31269, 32899, 63999, 33001, 30000, 60000, 15000, 5999)  # Photoshop's
WIDE = primaries(31270, 32900, 70800, 29200, 17000, 79700, 13100, 4600)
PROFILE = (b"iCCP", b"sRGB\0\0" + zlib.compress(SRGB))
INTENT, HDR, OF_SRGB_TOO = (b"sRGB", b"\0"), (b"cICP", bytes([9, 16, 0, 1])), (b"cICP", bytes([1, 13, 0, 1]))


@pytest.mark.parametrize("form", ["jpeg", "webp"])
@pytest.mark.parametrize(
    ("chunks", "lost"),
    [
        ([gamma(100_000)], "gAMA"),
        ([gamma(100_000), OF_SRGB], "gAMA"),
        ([gamma(45_455), WIDE], "cHRM"),
        ([gamma(100_000), WIDE], "cHRM, gAMA"),
        ([HDR, INTENT, gamma(45_455)], "cICP"),
        ([HDR, PROFILE], "cICP"),
        ([OF_SRGB_TOO, PROFILE], "cICP"),  # which a JPEG's reader would follow
        ([gamma(45_455)], None),
        ([gamma(45_455), NEAR_SRGB], None),
        ([INTENT, gamma(100_000), WIDE], None),
        ([PROFILE, gamma(100_000), WIDE], None),
        ([OF_SRGB_TOO, gamma(100_000), WIDE], None),
    ],
)
def test_colours_that_only_a_png_can_say_are_not_read_as_others(chunks, lost, form):
    data, how = png_saying(*chunks), SmallerImages(max_side=60, image_format=form)
    if lost is None:
        made = opened(make_smaller(data, how).data)
        assert made.info.get("icc_profile") == (SRGB if PROFILE in chunks else None)
    else:
        with pytest.raises(ImageError, match=rf"^colours: {form.upper()} does not hold what .* \({lost}\)"):
            make_smaller(data, how)
        assert opened(make_smaller(data, SIDE).data).info.get("gamma") == opened(data).info.get("gamma")


def turning(orientation: int) -> bytes:
    """XMP, of a packet."""
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/"'
        f' tiff:Orientation="{orientation}"/></rdf:RDF></x:xmpmeta>'
    ).encode()


def says_how_it_lies(kind: str, orientation: int) -> bytes:
    itxt = b"XML:com.adobe.xmp\0\0\0\0\0" + turning(orientation)
    packed = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(turning(orientation))
    match kind.split():
        case ["PNG", "chunk", where]:
            return png_saying((b"eXIf", exif(orientation).tobytes()[6:]), behind=where == "behind")
        case ["PNG", "XMP", where]:
            return png_saying((b"iTXt", packed if where == "packed" else itxt), behind=where == "behind")
        case [form, "XMP"]:
            return saved(photograph(), form, xmp=turning(orientation))
        case [form, "both"]:  # of which EXIF counts
            return saved(photograph(), form, exif=exif(orientation), xmp=turning(9 - orientation))
        case [form]:
            return saved(photograph(), form, exif=exif(orientation))
    raise AssertionError(kind)


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 7, 8])
@pytest.mark.parametrize(
    "kind",
    [
        *("JPEG", "JPEG XMP", "JPEG both", "WEBP", "WEBP XMP", "TIFF", "PNG"),
        *("PNG chunk before", "PNG chunk behind", "PNG XMP before", "PNG XMP packed", "PNG XMP behind"),
        pytest.param("AVIF", marks=pytest.mark.skipif(not features.check("avif"), reason="no AVIF here")),
    ],
)
def test_the_size_of_what_is_copied_is_that_of_the_picture_as_it_is_seen(kind, orientation):
    data = says_how_it_lies(kind, orientation)
    found = make_smaller(data, SmallerImages(max_side=240))
    expected = ImageOps.exif_transpose(opened(data)).size
    assert found.data is None and found[:2] == expected
    assert expected == ((240, 180) if orientation < 5 else (180, 240))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_turns_nothing():
    data = png_saying((b"eXIf", b"II*\0\xff\xff\xff\xff"))
    assert make_smaller(data, SmallerImages(max_side=240))[:3] == (240, 180, None)


def premultiplied(image: Image.Image, size=(60, 45)) -> np.ndarray:
    """RGBA resized by NumPy's arithmetic and Pillow's Lanczos of floats, cut after each pass as that of bytes is."""
    values = np.asarray(image.convert("RGBA"), np.float32) / 255
    values[..., :3] *= values[..., 3:]
    bands = [values[..., band].copy() for band in range(4)]
    for each in ((size[0], image.height), size):
        bands = [np.asarray(Image.fromarray(band).resize(each, LANCZOS)).clip(0, 1) for band in bands]
    small = np.stack(bands, -1)
    small[..., :3] /= np.maximum(small[..., 3:], 1e-6)
    return (small * 255).clip(0, 255)


def palette_with_a_clear_colour() -> bytes:
    pixels = np.full((180, 240), 1, np.uint8)
    pixels[40:140, 60:181] = 2
    image = Image.fromarray(pixels, "P")
    image.putpalette([0, 0, 0, 0, 255, 0, 255, 200, 100])  # the clear one is of loud green
    return saved(image, "PNG", transparency=1)


@pytest.mark.parametrize("form", ["keep", "webp"])
@pytest.mark.parametrize("kind", ["palette", "RGBA", "LA", "colour key"])
def test_transparency_is_not_lost_and_what_is_clear_does_not_shine_through(kind, form):
    data = palette_with_a_clear_colour()
    rgba = opened(data).convert("RGBA")
    if kind == "colour key":
        data = saved(rgba.convert("RGB"), "PNG", transparency=(0, 255, 0))
    elif kind != "palette":
        data = saved(rgba := rgba.convert(kind), "PNG")
    made = opened(make_smaller(data, SmallerImages(max_side=60, image_format=form, quality=100)).data)
    assert made.format == {"keep": "PNG", "webp": "WEBP"}[form]
    assert made.mode == ("LA" if (kind, form) == ("LA", "keep") else "RGBA")
    found, expected = np.asarray(made.convert("RGBA"), np.float64), premultiplied(rgba)
    assert np.abs(found[..., 3] - expected[..., 3]).max() <= 2
    seen = expected[..., 3] > 100
    assert np.abs(found - expected)[seen].max() <= (12 if form == "webp" else 4)
    with pytest.raises(ImageError, match="transparent: JPEG does not hold"):
        make_smaller(data, SmallerImages(max_side=60, image_format="jpeg"))


def test_alpha_that_hides_nothing_needs_no_place():
    data = saved(photograph().convert("RGBA"), "PNG")
    made = opened(make_smaller(data, SmallerImages(max_side=60, image_format="jpeg")).data)
    assert made.format == "JPEG" and apart(made, by_hand(photograph())) < 4


def test_grey_of_16_bits_keeps_them():
    values = np.linspace(0, 65535, 240 * 180).reshape(180, 240).astype(np.uint16)
    made = opened(make_smaller(saved(Image.fromarray(values), "PNG"), SIDE).data)
    floats = np.asarray(Image.fromarray(values.astype(np.float32)).resize((60, 45), LANCZOS))
    assert made.mode == "I;16" and np.abs(np.asarray(made, np.float64) - floats).max() <= 1.5
    assert len(np.unique(np.asarray(made))) > 2000


def test_two_colours_become_greys():
    image = Image.fromarray(np.indices((180, 240)).sum(0) % 8 < 4)
    assert image.mode == "1"
    made = opened(make_smaller(saved(image, "PNG"), SIDE).data)
    assert apart(made, by_hand(image.convert("L"))) < 3


def test_webp_without_loss_stays_so():
    for options in ({"lossless": True}, {"lossless": True, "icc_profile": SRGB}):
        data = saved(photograph(), "WEBP", **options)
        made = opened(make_smaller(data, SmallerImages(max_side=60, quality=1)).data)
        assert apart(made, photograph().resize((60, 45), LANCZOS, reducing_gap=3.0)) == 0
        assert made.info.get("icc_profile") == options.get("icc_profile")
    lossy = saved(photograph(), "WEBP")
    sizes = [
        len(make_smaller(lossy, SmallerImages(max_side=60, quality=quality)).data) for quality in (5, 95)
    ]
    assert sizes[0] < sizes[1] / 2


def test_colours_of_a_jpeg_are_not_halved():
    stripes = np.zeros((45, 60, 3), np.uint8)
    stripes[:, ::2], stripes[:, 1::2] = (255, 0, 0), (0, 0, 255)
    data = saved(Image.fromarray(stripes), "PNG")
    made = opened(make_smaller(data, SmallerImages(max_side=60, image_format="jpeg")).data)
    assert apart(made, Image.fromarray(stripes)) < 6  # 64 where they are


def deep_colours() -> bytes:
    """A PNG of 16 bits a colour, by hand: Pillow writes none."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + bytes(6 * 240) for _ in range(180))
    head = struct.pack(">IIBBBBB", 240, 180, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def bomb() -> bytes:
    data = bytearray(saved(photograph(), "PNG"))
    data[16:24] = struct.pack(">II", 20_000, 20_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


PAGES = {"save_all": True, "append_images": [photograph().rotate(180)]}


@pytest.mark.parametrize(
    ("data", "form", "reason"),
    [
        (b"", "keep", r"empty \(0 bytes\)"),
        (b"<!DOCTYPE html>", "jpeg", "not an image"),
        (saved(photograph(), "JPEG")[:3000], "keep", "truncated: "),
        (saved(photograph(), "PNG")[:3000], "keep", "truncated: |damaged PNG"),
        (bomb(), "keep", r"too large: 20000x20000 = 400,000,000 pixels, over max_pixels"),
        (deep_colours(), "keep", "deep: colours of more than 8 bits"),
        (saved(Image.new("I;16", (240, 180)), "PNG"), "jpeg", "deep: JPEG does not hold"),
        (saved(Image.new("F", (240, 180)), "TIFF"), "png", "deep: PNG does not hold"),
        (saved(photograph().convert("CMYK"), "JPEG"), "png", "CMYK: PNG does not hold"),
        (saved(photograph(), "PNG", **PAGES), "keep", "animated: "),
        (saved(photograph(), "WEBP", **PAGES), "webp", "animated: "),
        (saved(photograph(), "GIF", **PAGES), "png", "animated: "),
        (saved(photograph(), "BMP"), "keep", "format: BMP is made smaller in another format only"),
        (saved(photograph(40_000, 2), "PNG"), "webp", "not written: as WEBP: "),
    ],
)
def test_what_cannot_be_made_smaller_says_why(data, form, reason):
    how = {"min_side": 1} if "not written" in reason else {"max_side": 60}
    with pytest.raises(ImageError, match=f"^(?:{reason})"):
        make_smaller(data, SmallerImages(**how, image_format=form))


@pytest.mark.parametrize("kind", ["BMP", "GIF", "TIFF"])
def test_other_formats_become_one_that_is_asked_for(kind):
    options = {"exif": exif(6)} if kind == "TIFF" else {}
    data = saved(photograph(), kind, **options)
    made = make_smaller(data, SmallerImages(max_side=60, image_format="png"))
    expected = ImageOps.exif_transpose(opened(data)).convert("RGB")
    assert apart(opened(made.data), by_hand(expected, made[:2])) < 0.5
    assert made[:2] == ((45, 60) if kind == "TIFF" else (60, 45))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({}, "give one of the two"),
        ({"max_side": 1, "min_side": 1}, "give one of the two"),
        ({"max_side": 0}, "max_side=0: expected a whole number of at least 1"),
        ({"min_side": True}, "min_side=True: expected a whole number"),
        ({"max_side": 1, "quality": 0}, "quality=0: expected a whole number from 1 to 100"),
        ({"max_side": 1, "image_format": "gif"}, "image_format='gif': expected one of 'keep', 'jpeg'"),
    ],
)
def test_what_cannot_be_asked(how, said):
    with pytest.raises(ConfigError, match=said):
        SmallerImages(**how)
