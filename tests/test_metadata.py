"""What image files say of themselves: each claim by where it stands; what cannot be read is not taken for silence."""

from __future__ import annotations

import io
import json
import struct
import time
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import image_of, write_tar
from embedded import AI, chunk, encoded, exif, iptc, manifest, put, segment, xmp
from PIL import Image, IptcImagePlugin, TiffImagePlugin

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.decode.embedded import embedded
from curator_dask.decode.exif import ExifError, without_gps
from curator_dask.errors import ConfigError
from curator_dask.frames.names import IMAGE_DEFINITIONS, METADATA_DEFINITIONS
from curator_dask.image.classifiers import score_output
from curator_dask.image.statistics import METADATA, STATISTICS, ImageStatistics
from curator_dask.image.statistics.metadata import read_metadata
from curator_dask.image.statistics.names import EVERY

pytestmark = pytest.mark.usefixtures("in_this_process")

FORMATS = ("JPEG", "PNG", "WEBP")
NOTHING = {name: False if kind == pa.bool_() else None for name, kind in METADATA.items()}
PLAIN = Image.new("RGB", (30, 20), (200, 40, 90))
BY = "https://creativecommons.org/licenses/by/4.0/"
NO_PLUS = "http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED-GENAIMLTRAINING"


def plain(form: str) -> bytes:
    return encoded(PLAIN, form)


def said(data: bytes) -> dict:
    """What is not as in a file that says nothing."""
    found = read_metadata(data)
    assert {*found} == {*METADATA}
    return {name: value for name, value in found.items() if value != NOTHING[name]}


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_that_says_nothing(form):
    assert said(plain(form)) == {}


@pytest.mark.parametrize("form", FORMATS)
def test_exif_as_pillow_writes_it(form):
    block = exif(
        6,
        Make="Canon",
        Model="Canon EOS 5D",
        Software="Lightroom",
        Artist="Zoë Müller",
        Copyright="© Zoë",
        DateTimeOriginal="2019:08:12 12:34:56",
    )
    data = encoded(PLAIN, form, exif=block)
    assert Image.open(io.BytesIO(data)).getexif().get_ifd(0x8825)[2] == (48.0, 8.0, 30.5)
    expected = {
        "has_gps": True,
        "taken": "2019-08-12T12:34:56",
        "camera": "Canon EOS 5D",
        "software": "Lightroom",
        "creator": "Zoë Müller",
        "copyright": "© Zoë",
    }
    assert said(data) == expected == said(put(plain(form), block))
    assert said(put(plain(form), exif(3, place=False))) == {}
    assert said(put(plain(form), exif(place=False, Make="Apple", Model="iPhone 12"))) == {
        "camera": "Apple iPhone 12"
    }


def test_texts_of_exif_3_are_utf_8():
    """Whose type Pillow 13 does not know, and leaves out."""
    text = "Zoë".encode() + b"\0"
    entry = struct.pack("<HHII", 0x013B, 129, len(text), 26)
    block = b"II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0) + text
    assert said(put(plain("JPEG"), block)) == {"creator": "Zoë"}


def test_zeros_are_no_place_and_no_time():
    block = exif(DateTimeOriginal="0000:00:00 00:00:00").removeprefix(b"Exif\0\0")
    latitude = struct.pack(f"{'>' if block[:2] == b'MM' else '<'}4I", 48, 1, 8, 1)
    at = block.index(latitude)
    blank = bytearray(block)
    blank[at : at + 48] = bytes(48)  # 0/0, six times
    assert said(put(plain("JPEG"), bytes(blank))) == {}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("as_attributes", [False, True])
def test_xmp_in_both_of_its_forms(form, as_attributes):
    creators = "<dc:creator><rdf:Seq><rdf:li>Ana &amp; Bo</rdf:li><rdf:li>Cy</rdf:li></rdf:Seq></dc:creator>"
    rights = (
        '<dc:rights><rdf:Alt><rdf:li xml:lang="de">alle</rdf:li><rdf:li xml:lang="x-default">all</rdf:li></rdf:Alt>'
        "</dc:rights>"
    )
    single = {
        "xmp:CreatorTool": "GIMP 3",
        "xmpRights:WebStatement": "https://example.org/licence",
        "plus:DataMining": NO_PLUS,
        "Iptc4xmpExt:DigitalSourceType": AI,
        "exif:GPSLatitude": "48,8.5N",
        "photoshop:DateCreated": "2020-01-02T03:04:05+01:00",
    }
    if as_attributes:
        packet = xmp(creators + rights, " ".join(f'{name}="{text}"' for name, text in single.items()))
    else:
        packet = xmp(creators + rights + "".join(f"<{name}>{text}</{name}>" for name, text in single.items()))
    assert said(put(plain(form), xmp=packet)) == {
        "has_gps": True,
        "taken": "2020-01-02T03:04:05",
        "software": "GIMP 3",
        "creator": "Ana & Bo; Cy",
        "copyright": "all",
        "license_url": "https://example.org/licence",
        "digital_source": "trainedAlgorithmicMedia",
        "ai_claimed": True,
        "data_mining": "DMI-PROHIBITED-GENAIMLTRAINING",
        "data_mining_prohibited": True,
    }


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (xmp(f'<cc:license rdf:resource="{BY}"/>'), {"license_url": BY}),
        (xmp(attributes='plus:DataMining="DMI-ALLOWED"'), {"data_mining": "DMI-ALLOWED"}),
        (
            xmp('<plus:DataMining rdf:resource="http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED"/>'),
            {"data_mining": "DMI-PROHIBITED", "data_mining_prohibited": True},
        ),
        (
            xmp(attributes='tdm:reservation="1"'),
            {"data_mining": "tdm-reservation=1", "data_mining_prohibited": True},
        ),
        (xmp(attributes='tdm:reservation="0"'), {"data_mining": "tdm-reservation=0"}),
        (xmp("<TC260:AIGC>{&quot;Label&quot;:&quot;1&quot;}</TC260:AIGC>"), {"ai_claimed": True}),
        (
            xmp(
                attributes=f'Iptc4xmpExt:DigitalSourceType="{AI.replace("trainedAlgorithmicMedia", "digitalCapture")}"'
            ),
            {"digital_source": "digitalCapture"},
        ),
    ],
)
def test_claims_of_xmp(packet, expected):
    assert said(put(plain("PNG"), xmp=packet)) == expected


def test_iptc_and_which_of_several_is_taken():
    data = put(
        plain("JPEG"),
        exif(place=False, Artist="of EXIF", Copyright="of EXIF"),
        iptc=iptc(byline="Zoë", copyright="of IPTC"),
    )
    assert said(data) == {"creator": "Zoë", "copyright": "of IPTC"}
    info = IptcImagePlugin.getiptcinfo(Image.open(io.BytesIO(data)))
    assert info[2, 80].decode() == "Zoë"  # Pillow reads these records, too
    packet = xmp("<dc:creator><rdf:Seq><rdf:li>of XMP</rdf:li></rdf:Seq></dc:creator>")
    assert said(put(data, xmp=packet))["creator"] == "of XMP"


@pytest.mark.parametrize("form", FORMATS)
def test_c2pa(form):
    store = manifest("compositeWithTrainedAlgorithmicMedia", "notAllowed", size=150_000)
    assert said(put(plain(form), store=store)) == {
        "digital_source": "compositeWithTrainedAlgorithmicMedia",
        "ai_claimed": True,
        "has_c2pa": True,
        "data_mining": "notAllowed",
        "data_mining_prohibited": True,
    }
    assert said(put(plain(form), store=manifest("digitalCapture"))) == {
        "digital_source": "digitalCapture",
        "has_c2pa": True,
    }
    assert said(put(plain(form), store=manifest(mining="allowed"))) == {"has_c2pa": True}


@pytest.mark.parametrize(
    ("texts", "software"),
    [
        (
            {"parameters": "a cat\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1"},
            "Stable Diffusion web UI",
        ),
        ({"prompt": json.dumps({"3": {"class_type": "KSampler"}})}, "ComfyUI"),
        ({"workflow": json.dumps({"nodes": []})}, "ComfyUI"),
        ({"Software": "NovelAI", "Comment": "{}"}, "NovelAI"),
        ({"invokeai_metadata": "{}"}, "InvokeAI"),
        ({"Description": "a cat --v 6 Job ID: 12345678-1234-1234-1234-123456789abc"}, "Midjourney"),
        ({"AIGC": '{"Label": "1"}'}, None),
    ],
)
def test_notes_of_generators(texts, software):
    found = said(put(plain("PNG"), **texts))
    assert found == {"ai_claimed": True} | ({"software": software} if software else {})
    packed = [
        chunk(b"zTXt", name.encode() + b"\0\0" + zlib.compress(text.encode())) for name, text in texts.items()
    ]
    data = plain("PNG")
    assert said(data[:33] + b"".join(packed) + data[33:]) == found


def test_notes_of_generators_in_exif():
    block = Image.Exif()
    note = "a cat\nSteps: 20, Sampler: Euler a, Seed: 7"
    block.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + note.encode("utf-16-be")
    assert said(put(plain("JPEG"), block.tobytes())) == {
        "ai_claimed": True,
        "software": "Stable Diffusion web UI",
    }
    comfy = exif(place=False, Model='prompt:{"1": {"class_type": "KSampler"}}', Make="workflow:{}")
    assert said(put(plain("WEBP"), comfy)) == {"ai_claimed": True, "software": "ComfyUI"}  # and no camera


def test_texts_that_are_no_generators_notes():
    texts = {
        "Description": "Steps: 12 of them",
        "Software": "GIMP",
        "parameters": "aperture 2.8",
        "Author": "Ana",
    }
    assert said(put(plain("PNG"), **texts)) == {"software": "GIMP", "creator": "Ana"}


def far_namespace():
    """100 kB which a parser would make 200 MB of: it gives the namespace with each name."""
    names = "".join(f"<far:n{number}/>" for number in range(2000))
    return xmp(names).replace(b"<rdf:Description", b'<rdf:Description xmlns:far="' + b"u" * 100_000 + b'"')


def test_what_cannot_be_read_is_not_known():
    """A truth that may stand there is null; and nothing that stands elsewhere is lost."""
    unknown = dict.fromkeys(["has_gps", "ai_claimed", "data_mining_prohibited"])
    bomb = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
    for packet in (
        xmp()[:-90],
        bomb + xmp("<dc:rights>&b;</dc:rights>"),
        b"<a>" * 20_000,
        b"<a>" + b" " * (1 << 20),
        far_namespace(),
    ):
        found = said(put(plain("PNG"), exif(place=False, Artist="Ana"), packet))
        assert found == {**unknown, "creator": "Ana"}
    found = said(
        put(plain("PNG"), exif(place=True)[:40], xmp(attributes=f'Iptc4xmpExt:DigitalSourceType="{AI}"'))
    )
    assert found == {**unknown, "digital_source": "trainedAlgorithmicMedia", "ai_claimed": True}
    # Texts that unpack to many megabytes, or gigabytes, are not unpacked, be they one or many.
    data = plain("PNG")
    for size, times in ((1 << 25, 1), (1 << 21, 5000)):
        packed = chunk(b"zTXt", b"parameters\0\0" + zlib.compress(bytes(size)))
        bomb, start = data[:33] + times * packed + data[33:], time.process_time()
        assert said(bomb) == unknown
        assert time.process_time() - start < 1


def leading_to_a_place(times, entries):
    """EXIF that leads several times to one place, whose values all lie in one another."""
    place = 8 + 2 + 12 * times + 4
    value = place + 2 + 12 * entries + 4
    block = b"II*\0" + struct.pack("<IH", 8, times)
    block += struct.pack("<HHII", 0x8825, 4, 1, place) * times + bytes(4) + struct.pack("<H", entries)
    return (
        block + struct.pack("<HHII", 2, 1, 1 << 16, value) * entries + bytes(4) + b"\7" * (1 << 16) + b"end"
    )


def test_places_that_lie_in_one_another_are_blanked_once():
    started = time.process_time()
    made = without_gps(leading_to_a_place(1, 60_000))
    assert made == b"II*\0\x08" + bytes(len(made) - 8) + b"end"
    with pytest.raises(ExifError, match="2,600 places"):
        without_gps(leading_to_a_place(2600, 200))
    assert without_gps(leading_to_a_place(16, 200)).strip(b"\0").endswith(b"end")
    assert time.process_time() - started < 2


def test_xmp_that_one_segment_has_no_room_for():
    more, guid = xmp(attributes=f'plus:DataMining="{NO_PLUS}"'), b"0123456789ABCDEF0123456789ABCDEF"
    data, half = plain("JPEG"), len(more) // 2
    mark = b"http://ns.adobe.com/xmp/extension/\0"
    parts = [
        segment(0xE1, mark + guid + struct.pack(">II", len(more), at) + more[at : at + half + 1])
        for at in (half + 1, 0)
    ]
    main = put(data, xmp=xmp(attributes='xmp:CreatorTool="GIMP"'))
    found = said(main[:2] + b"".join(parts) + main[2:])
    assert (found["software"], found["data_mining_prohibited"]) == ("GIMP", True)
    assert said(main[:2] + parts[0] + main[2:])["data_mining_prohibited"] is None


def test_other_formats():
    packet = xmp(attributes=f'plus:DataMining="{NO_PLUS}"')
    tiff = TiffImagePlugin.ImageFileDirectory_v2()
    tiff[700], tiff[315], tiff[33723] = packet, "Ana", b"\x1c\x02\x74\0\x02ab"
    tiff.tagtype[700], tiff.tagtype[33723] = 1, 7
    found = said(encoded(PLAIN, "TIFF", tiffinfo=tiff))
    assert (found["creator"], found["copyright"], found["data_mining_prohibited"]) == ("Ana", "ab", True)
    assert (
        said(encoded(PLAIN, "TIFF"))
        == said(encoded(PLAIN, "BMP"))
        == said(encoded(PLAIN, "GIF", comment="hi"))
        == {}
    )
    found = said(encoded(PLAIN, "AVIF", exif=exif(Artist="Ana"), xmp=packet))
    assert (found["creator"], found["has_gps"], found["data_mining_prohibited"]) == ("Ana", True, True)
    assert embedded(encoded(PLAIN, "GIF", comment="hi")).texts == {"comment": "hi"}


def test_columns_in_a_pass_and_in_an_output_that_is_there(tmp_path):
    """Under each key its own; `all` stays what it was, and a rerun finds what is finished."""
    files = {
        "gps": put(image_of("000000000"), exif(Artist="Ana")),
        "ai": put(plain("PNG"), store=manifest("trainedAlgorithmicMedia")),
        "no": put(plain("WEBP"), xmp=xmp(attributes=f'plus:DataMining="{NO_PLUS}"')),
        "none": plain("JPEG"),
        "torn": put(plain("PNG"), xmp=b"<"),
        "bad": b"<html>",
    }  # fmt: skip
    write_tar(tmp_path / "data/0.tar", [(f"{key}.png", data) for key, data in files.items()])
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data", id_col="key")
    measure = ImageStatistics(["metadata", "format"])
    summary = measure(dataset).save_metadata(tmp_path / "out")
    assert (summary.rows, summary.failed) == (6, 1)
    rows = {row["key"]: row for row in pq.read_table(tmp_path / "out").to_pylist()}
    for key, data in files.items():
        expected = dict.fromkeys(METADATA) if key == "bad" else read_metadata(data)
        assert {name: rows[key][name] for name in METADATA} == expected, key
    assert (rows["gps"]["has_gps"], rows["gps"]["creator"]) == (True, "Ana")
    assert "not an image" in rows["bad"]["image_error"]
    assert measure(dataset).save_metadata(tmp_path / "out").skipped == 1
    # An output that is there gets them, too, and is finished then.
    ImageStatistics(["format"])(dataset).save_metadata(tmp_path / "later")
    score_output(tmp_path / "later", [ImageStatistics(["metadata"])])
    later = {row["key"]: row for row in pq.read_table(tmp_path / "later").to_pylist()}
    assert all(later[key][name] == rows[key][name] for key in files for name in METADATA)
    kept = measure(dataset).filter("not ai_claimed and not data_mining_prohibited").compute()
    assert sorted(kept["key"]) == ["gps", "none"]  # not what may say so and cannot be read


def test_names():
    assert ImageStatistics().names == [*STATISTICS] == ImageStatistics(["all"]).names
    assert ImageStatistics(["metadata", "phash"]).names == ["phash", *METADATA]
    assert ImageStatistics(["all", "has_gps"]).names == [*STATISTICS, "has_gps"]
    assert [*METADATA_DEFINITIONS] == [*METADATA] and [*IMAGE_DEFINITIONS] == [*EVERY]
    with pytest.raises(ConfigError, match="of metadata"):
        ImageStatistics(["gps"])
