"""Images without their metadata: the same pixels from the same bytes, seen as they were; alone and in an export."""

from __future__ import annotations

import io
import json
import random
import struct
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import colour_of, write_tar
from embedded import AI, chunk, encoded, exif, iptc, manifest, put, segment, xmp
from PIL import Image, ImageCms, ImageOps, IptcImagePlugin

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.decode.embedded import embedded
from curator_dask.decode.jpeg import segments
from curator_dask.decode.stripping import strip
from curator_dask.errors import ConfigError, ImageError, OutputError
from curator_dask.image.statistics.metadata import read_metadata
from curator_dask.outputs.stripped import Stripping, without_exif_text

pytestmark = pytest.mark.usefixtures("in_this_process")

FORMATS = ("JPEG", "PNG", "WEBP")
PLACES = xmp(
    "<exif:GPSAltitude>5/1</exif:GPSAltitude><dc:rights>mine</dc:rights>"
    '<Iptc4xmpExt:LocationCreated><rdf:Bag><rdf:li rdf:parseType="Resource"><Iptc4xmpExt:City>Munich</Iptc4xmpExt:City>'
    "</rdf:li></rdf:Bag></Iptc4xmpExt:LocationCreated>",
    f'exif:GPSLatitude="48,8.5N" photoshop:City=\'Munich\' Iptc4xmpExt:DigitalSourceType="{AI}"',
)
SECRETS = (b"48,8.5N", b"Munich", b"jumb")


def picture(form: str = "PNG", size: tuple[int, int] = (33, 20), **options) -> bytes:
    pixels = np.random.default_rng(4).integers(0, 256, (*size[::-1], 3), np.uint8)
    return encoded(Image.fromarray(pixels), form, **options)


def whole(form: str, orientation: int | None = 6, **options) -> bytes:
    """A picture with all metadata that its format holds."""
    texts = {"comment": "Munich"} if form == "JPEG" else {"Comment": "hello", "exif:GPSLatitude": "48"}
    block = exif(orientation, Artist="Ana", Make="Canon")
    return put(
        picture(form, **options),
        block,
        PLACES,
        iptc(byline="Bo", city="Munich"),
        manifest("digitalCapture"),
        **texts,
    )


def seen(data: bytes) -> np.ndarray:
    """As viewers show it."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image))


def scans(data: bytes) -> bytes:
    """What of a file encodes its pixels."""
    if data[:2] == b"\xff\xd8":
        *_, (_, at) = segments(memoryview(data))
        return data[at:]
    return b"".join(data[at : at + 40] for at in (data.find(b"IDAT"), data.find(b"VP8 ")) if at >= 0)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
def test_all_goes_but_the_orientation(form, orientation):
    data = whole(form, orientation)
    made = strip(data)
    assert np.array_equal(seen(made), seen(data)) and scans(made) == scans(data)
    said = read_metadata(made)
    assert not any(said.values()) and None not in (said["has_gps"], said["ai_claimed"], said["has_c2pa"])
    with Image.open(io.BytesIO(made)) as image:
        assert dict(image.getexif()) == ({} if orientation is None else {0x0112: orientation})
        assert not {*image.info} & {"xmp", "photoshop", "comment", "Comment", "icc_profile"}
    assert strip(made) == made
    assert not any(secret in made for secret in (*SECRETS, b"Ana", b"Bo", b"mine", b"hello"))


@pytest.mark.parametrize("form", FORMATS)
def test_the_place_alone(form):
    data = whole(form)
    if form == "JPEG":
        data = data.replace(b"\xff\xfe\x00\x08Munich", b"\xff\xfe\x00\x07hello")
    made = strip(data, "location")
    assert np.array_equal(seen(made), seen(data)) and scans(made) == scans(data)
    before, after = read_metadata(data), read_metadata(made)
    assert (before["has_gps"], before["has_c2pa"]) == (True, True)
    assert after == {**before, "has_gps": False, "has_c2pa": False}
    assert after["creator"] == ("Bo" if form == "JPEG" else "Ana") and after["digital_source"]
    assert not any(secret in made for secret in SECRETS)
    with Image.open(io.BytesIO(made)) as image:
        tags = image.getexif()
        assert not tags.get_ifd(0x8825) and {**tags} == {0x010F: "Canon", 0x0112: 6, 0x013B: "Ana"}
        if form == "JPEG":
            records = IptcImagePlugin.getiptcinfo(image)
            assert (records[2, 80], records[2, 90]) == (b"Bo", b" " * 6)
    assert strip(made, "location") == made
    # Neither are the degrees there with nothing that leads to them, nor an entry too many.
    for order in "<>":
        degrees = struct.pack(f"{order}4I", 48, 1, 8, 1)
        assert degrees not in made
    block, there = embedded(made).exif, embedded(data).exif
    counts = [each[8:10] if each[:2] == b"II" else each[9:7:-1] for each in (block, there)]
    assert [int.from_bytes(each, "little") for each in counts] == [3, 4] and len(block) == len(there)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("what", ["all", "location"])
def test_a_file_without_metadata_is_the_same(form, what):
    data = picture(form)
    assert strip(data, what) == data


def test_an_orientation_that_xmp_says():
    data = put(
        picture("JPEG"), xmp=xmp("<dc:rights>mine</dc:rights>", 'tiff:Orientation="8" exif:GPSLatitude="1"')
    )
    assert seen(data).shape == (33, 20, 3)
    for what in ("all", "location"):
        made = strip(data, what)
        assert np.array_equal(seen(made), seen(data)) and b"GPSLatitude" not in made
    assert b"mine" in strip(data, "location")


def test_what_makes_the_colours_stays():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for form in FORMATS:
        made = strip(picture(form, icc_profile=profile, exif=exif(Artist="Ana")))
        assert Image.open(io.BytesIO(made)).info["icc_profile"] == profile and b"Ana" not in made
    cmyk = encoded(
        Image.fromarray(np.random.default_rng(1).integers(0, 255, (16, 16, 4), np.uint8), "CMYK"), "JPEG"
    )
    assert b"Adobe" in cmyk and strip(put(cmyk, exif())) == cmyk
    data = picture("PNG")
    colours = chunk(b"gAMA", (45000).to_bytes(4, "big")) + chunk(b"cICP", bytes([9, 16, 0, 1]))
    colours += chunk(b"tRNS", b"\0\1\0\2\0\3") + chunk(b"pHYs", bytes(9))
    data = data[:33] + colours + data[33:]
    assert strip(put(data, exif(), Comment="hi")) == data
    frames = [Image.new("RGB", (20, 10), each) for each in ("red", "blue", "green")]
    for form in ("PNG", "WEBP"):
        moving = encoded(
            frames[0], form, save_all=True, append_images=frames[1:], exif=exif(Artist="Ana"), lossless=True
        )
        made = strip(moving)
        with Image.open(io.BytesIO(made)) as image:
            assert image.n_frames == 3 and b"Ana" not in made
            for number, frame in enumerate(frames):
                image.seek(number)
                assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(frame))


def test_what_lies_beside_the_image_of_a_jpeg():
    data = picture("JPEG", (64, 48), progressive=True)
    *_, (_, first) = segments(memoryview(data))
    second = data.index(b"\xff\xc4", first)  # tables before the next scan
    beside = segment(0xFE, b"between scans") + segment(0xE1, b"Exif\0\0" + exif()[6:])
    thumbnail = b"JFIF\0\1\2\0\0\1\0\1\2\2" + bytes(range(12))
    odd = data[:2] + segment(0xE0, thumbnail) + data[20:second] + beside + data[second:]
    odd += b"\xff\xd8 a film, or another picture \xff\xd9"
    assert np.array_equal(seen(odd), seen(data))
    made = strip(odd)
    assert made == data[:2] + segment(0xE0, thumbnail[:12] + b"\0\0") + data[20:]
    several = encoded(
        Image.open(io.BytesIO(data)), "MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))]
    )
    made = strip(several, "location")
    assert np.array_equal(seen(made), seen(several)) and Image.open(io.BytesIO(made)).format == "JPEG"


def test_what_is_not_taken_apart():
    for form, name in (("GIF", "GIF"), ("TIFF", "TIF"), ("AVIF", "AVIF")):
        with pytest.raises(ImageError, match=f"metadata stays in {name}: only JPEG, PNG and WebP"):
            strip(picture(form))
    for form in FORMATS:
        with pytest.raises(ImageError, match="metadata stays: the file is damaged"):
            strip(whole(form)[:300])
    with pytest.raises(ConfigError, match=r"strip_metadata='gps'.*expected 'all' or 'location'"):
        strip(b"", "gps")


def test_damaged_files_are_refused_or_decode_to_what_they_did():
    draw, files = random.Random(7), [whole(form) for form in FORMATS] + [picture("JPEG", progressive=True)]
    taken = 0
    for _ in range(500):
        data = bytearray(draw.choice(files))
        for _ in range(draw.choice([1, 2, 9])):
            at = draw.randrange(len(data))
            data[at : at + draw.choice([0, 1, 1, 1, 3])] = bytes(
                [draw.randrange(256)] * draw.choice([1, 1, 1, 0])
            )
        data = bytes(data)
        read_metadata(data)
        for what in ("all", "location"):
            try:
                made = strip(data, what)
                before = seen(data)
            except Exception as error:
                assert type(error) is not IndexError
                continue
            taken += 1
            assert np.array_equal(seen(made), before) and not read_metadata(made)["has_gps"]
    assert taken > 100


EXIF_TEXT = json.dumps({"Image Orientation": "Rotated 90 CW", "GPS GPSLatitude": "[48, 8, 61/2]"})


def test_the_text_that_img2dataset_keeps_of_exif():
    document = json.dumps({"n": 1.0, "exif": EXIF_TEXT, "of": {"exif": EXIF_TEXT}}, indent=4).encode()
    assert (
        without_exif_text(document)
        == json.dumps(
            {"n": 1.0, "exif": '{"Image Orientation": "Rotated 90 CW"}', "of": {"exif": EXIF_TEXT}}, indent=4
        ).encode()
    )
    assert without_exif_text(b'{"exif": {"GPS": 1}, "a": 1e3}') == b'{"exif": null, "a": 1e3}'
    assert without_exif_text(b'\xef\xbb\xbf{"exif": "GPS"}') == b'\xef\xbb\xbf{"exif": null}'
    for same in (b'{"a": 1}', b'["exif"]', b"\xff", b'{"exif": null}', b'{"exif": '):
        assert without_exif_text(same) == same


def test_the_column_of_these_texts_is_of_any_type_of_text():
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.int64()):
        texts = pa.nulls(2, kind) if kind == pa.int64() else pa.array([EXIF_TEXT, None]).cast(kind)
        made = Stripping("all").rows(pa.table({"exif": texts}))["exif"]
        wanted = None if kind == pa.int64() else '{"Image Orientation": "Rotated 90 CW"}'
        assert made.to_pylist() == [wanted, None] and made.type == kind


@pytest.fixture
def data(tmp_path):
    members = [
        *(("a.jpg", whole("JPEG")), ("a.json", json.dumps({"key": "a", "exif": EXIF_TEXT}).encode())),
        *(("a.mask.png", whole("PNG")), ("a.txt", b"caption of a")),
        *(("b.webp", whole("WEBP")), ("b.json", b'{"key": "b"}')),
        *(
            ("c.png", encoded(Image.new("RGB", (60, 40), colour_of("000000000")), "PNG")),
            ("d.gif", picture("GIF")),
        ),
        *(("e.jpg", whole("JPEG")[:900]), ("f.png", whole("PNG", size=(300, 200)))),
    ]
    write_tar(tmp_path / "data/00000.tar", members)
    rows = {"key": [*"abcdef"], "exif": [EXIF_TEXT, "{}", None, None, None, None]}
    rows["boxes"] = [[], [[0.1, 0.1, 0.5, 0.5]], [], [], [], []]
    boxes = pa.array(rows["boxes"], pa.list_(pa.list_(pa.float32())))
    pq.write_table(pa.table({**rows, "boxes": boxes}), tmp_path / "data/00000.parquet")
    return tmp_path / "data"


def held(folder) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {each.name: tar.extractfile(each).read() for each in tar}
    return found


def test_an_export_without_metadata(data, tmp_path):
    dataset, out, before = ImageTextPairDataset.from_webdataset(data), tmp_path / "out", held(data)
    summary = dataset.to_webdataset(out, strip_metadata="all", card=True)
    after = held(out)
    assert [*after] == [*before]
    for name, file in before.items():
        if name in ("a.jpg", "a.mask.png", "b.webp", "f.png"):
            assert after[name] == strip(file) != file and np.array_equal(seen(after[name]), seen(file))
        elif name != "a.json":
            assert after[name] == file
    assert json.loads(after["a.json"])["exif"] == '{"Image Orientation": "Rotated 90 CW"}'
    rows = {row["key"]: row for row in pq.read_table(out / "00000.parquet").to_pylist()}
    assert rows["a"]["exif"] == '{"Image Orientation": "Rotated 90 CW"}' and rows["b"]["exif"] is None
    assert rows["f"]["exported_bytes"] == len(after["f.png"])
    # Counted, named, and in the manifest.
    taken = sum(len(before[name]) - len(after[name]) for name in ("a.jpg", "a.mask.png", "b.webp", "f.png"))
    assert (summary.images_stripped, summary.stripped_bytes, summary.texts_stripped) == (4, taken, 1)
    assert summary.images_left == {"metadata stays in GIF": 1, "metadata stays": 1}
    assert (summary.images_smaller, summary.images_converted) == (0, 0)
    said = str(summary)
    assert (
        "metadata taken out of 4 image files" in said
        and "1 image stays as before, metadata stays in GIF" in said
    )
    manifest_rows = {row["key"]: row for row in pq.read_table(f"{out}.export/manifest").to_pylist()}
    left = {key: row["image_left"] for key, row in manifest_rows.items() if row["image_left"]}
    assert [*left] == ["d", "e"] and left["d"].startswith("metadata stays in GIF")
    assert manifest_rows["a"]["source_offsets"][:3] == [-1, -1, -1] and manifest_rows["c"][
        "source_offsets"
    ] != [-1]
    card = (out / "README.md").read_text()
    assert (
        "was taken out of 4 image files; their pixels are as they were encoded. 2 files of other formats"
        in card
    )
    # The same again is finished, with the same summary; other settings are another export.
    again = dataset.to_webdataset(out, strip_metadata="all", card=True)
    assert (again.written, again.skipped, again.images_stripped, again.images_left) == (
        0,
        1,
        4,
        summary.images_left,
    )
    for other in (None, "location"):
        with pytest.raises(OutputError, match="overwrite"):
            dataset.to_webdataset(out, strip_metadata=other)
    with pytest.raises(OutputError, match="strip_metadata='all'"):
        dataset.to_webdataset(out, append=True)
    with pytest.raises(ConfigError, match="give max_side or min_side"):
        dataset.to_webdataset(out, strip_metadata="all", image_format="webp")


def test_with_smaller_and_blurred_images_and_in_parquet(data, tmp_path):
    before = held(data)
    dataset = ImageTextPairDataset.from_webdataset(data)
    dataset.to_webdataset(tmp_path / "out", strip_metadata="location", max_side=100, blur="boxes")
    after = held(tmp_path / "out")
    assert after["a.jpg"] == strip(before["a.jpg"], "location")
    for name, size in (("b.webp", (20, 33)), ("f.png", (67, 100))):  # made anew: blurred, and smaller
        assert Image.open(io.BytesIO(after[name])).size == size
        assert not any(read_metadata(after[name])[each] for each in ("has_gps", "creator", "has_c2pa"))
    summary = dataset.to_webdataset(tmp_path / "tables", strip_metadata="all", format="parquet")
    rows = {row["key"]: row for row in pq.read_table(tmp_path / "tables/data").to_pylist()}
    assert all(rows[key]["image"]["bytes"] == strip(before[rows[key]["image"]["path"]]) for key in "abcf")
    assert rows["a"]["exif"] == '{"Image Orientation": "Rotated 90 CW"}' and summary.images_stripped == 3
