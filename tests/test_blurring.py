"""Regions of images that are blurred when they are exported: what is lost, what stays, and what is left out."""

from __future__ import annotations

import io
import json
import math
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import write_tar
from PIL import ExifTags, Image, ImageCms, ImageOps
from typer.testing import CliRunner

from curator_dask.cli import app
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.decode.blurring import checked_boxes
from curator_dask.decode.smaller import SmallerImages, make_smaller
from curator_dask.errors import ConfigError, ImageError, OutputError
from curator_dask.recipe import Recipe

pytestmark = pytest.mark.usefixtures("in_this_process")

AS_IT_IS = SmallerImages(any_size=True, quality=95)
SIZE = (160, 120)
BOX = (0.25, 0.3, 0.625, 0.8)  # 60 by 60 pixels, from (40, 36)
ORIENTATION, MARK = 0x0112, b"a preview that nobody has blurred"


def textured(mode="RGB", seed=0, size=SIZE) -> Image.Image:
    """Smooth, with a pattern of strong detail in the box: a checkerboard of 4 pixels and noise."""
    rng = np.random.default_rng(seed)
    ground = Image.fromarray(rng.integers(60, 200, (4, 5, 3), np.uint8))
    pixels = np.asarray(ground.resize(size, Image.Resampling.BICUBIC), np.float64).copy()
    left, top, right, bottom = pixel_box(size)
    rows, columns = np.mgrid[top:bottom, left:right]
    checks = 90 * (-1.0) ** (rows // 4 + columns // 4)
    pixels[top:bottom, left:right] += checks[..., None] + rng.normal(0, 20, (*checks.shape, 3))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.linear_gradient("L").resize(size))
    return image.convert(mode)


def pixel_box(size=SIZE) -> tuple[int, int, int, int]:
    return tuple(round(share * size[number % 2]) for number, share in enumerate(BOX))


def saved(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def values(image: Image.Image) -> np.ndarray:
    found = np.asarray(image, np.float64)
    return found[..., None] if found.ndim == 2 else found


def fine(pixels: np.ndarray) -> float:
    """Energy of the differences of neighbours."""
    return sum(float((np.diff(pixels, axis=axis) ** 2).mean()) for axis in (0, 1))


def check_blurred(before: Image.Image, after: Image.Image, exact: bool, noise=4.0) -> None:
    """Within the box no detail is left, and nothing of the pattern; beyond its margins the picture is as it was."""
    assert (before.size, before.mode) == (after.size, after.mode)
    old, new = values(before), values(after)
    scale = 257 if before.mode == "I;16" else 1
    left, top, right, bottom = pixel_box(before.size)
    inside = (slice(top, bottom), slice(left, right))
    assert fine(new[inside]) < fine(old[inside]) / 20
    was, now = (each[inside] - each[inside].mean(axis=(0, 1)) for each in (old, new))
    pattern = (-1.0) ** sum(np.mgrid[top:bottom, left:right] // 4)[..., None]
    assert np.abs((was * pattern).mean()) > 20 * scale  # it was there
    assert np.abs((now * pattern).mean(axis=(0, 1))).max() < 0.5 * scale
    margin = 2 * math.ceil(0.1 * max(right - left, bottom - top)) + 1
    outside = np.ones(old.shape[:2], bool)
    outside[max(0, top - margin) : bottom + margin, max(0, left - margin) : right + margin] = False
    apart = np.abs(old - new)[outside]
    assert outside.mean() > 0.2 and (apart.max() == 0 if exact else apart.mean() < noise)


@pytest.mark.parametrize(
    ("mode", "form", "options"),
    [
        ("RGB", "JPEG", {"quality": 95, "subsampling": 0}),
        ("L", "JPEG", {"quality": 95}),
        ("CMYK", "JPEG", {"quality": 95, "subsampling": 0}),
        ("RGB", "WEBP", {"quality": 95}),
        ("RGBA", "WEBP", {"lossless": True}),
        ("RGB", "PNG", {}),
        ("L", "PNG", {}),
        ("LA", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("I;16", "PNG", {}),
    ],
)
def test_no_detail_is_left_and_all_else_stays(mode, form, options):
    data = saved(textured(mode), form, **options)
    made = make_smaller(data, AS_IT_IS, boxes=[BOX])
    assert (made.form, made.width, made.height, made.fewer) == (form, *SIZE, False)
    is_exact = form == "PNG" or "lossless" in options
    check_blurred(Image.open(io.BytesIO(data)), Image.open(io.BytesIO(made.data)), is_exact)
    assert make_smaller(data, AS_IT_IS, boxes=[BOX]).data == made.data
    if mode != "RGB":
        return
    strong = make_smaller(data, AS_IT_IS, boxes=[BOX], strength=4).data
    assert fine(values(Image.open(io.BytesIO(strong)))[41:91, 45:95]) < fine(
        values(Image.open(io.BytesIO(made.data)))[41:91, 45:95]
    )


def test_what_is_clear_does_not_shine_through_nor_stay_behind():
    """Colours under an alpha of 0 are gone, too."""
    image = textured("RGBA")
    pixels = np.asarray(image).copy()
    pixels[..., 3] = 0
    made = Image.open(
        io.BytesIO(make_smaller(saved(Image.fromarray(pixels), "PNG"), AS_IT_IS, boxes=[BOX]).data)
    )
    left, top, right, bottom = pixel_box()
    assert not np.asarray(made)[top:bottom, left:right].any()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_are_of_the_image_as_it_is_seen(orientation):
    seen = textured(seed=orientation)
    method = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation)
    stored = seen if method is None else seen.transpose(Image.Transpose(method))
    tag = Image.Exif()
    tag[ORIENTATION] = orientation
    data = saved(stored, "JPEG", quality=95, subsampling=0, exif=tag)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.abs(values(upright) - values(seen)).mean() < 5
    made = make_smaller(data, AS_IT_IS, boxes=[BOX])
    assert (made.width, made.height) == SIZE
    check_blurred(upright, ImageOps.exif_transpose(Image.open(io.BytesIO(made.data))), exact=False)


def test_no_other_picture_of_it_stays_in_the_file():
    """Thumbnails in EXIF, second pictures and gain maps behind the first, XMP, comments, and what follows the end."""
    image, small = textured(), saved(textured(size=(40, 30)), "JPEG", comment=MARK)
    assert MARK in small
    # A directory with the orientation, and one with the place and the length of a thumbnail.
    little = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
    at = len(little) - 6 + 4
    ifd = b"\x02\x00" + b"".join(
        tag.to_bytes(2, "little") + b"\x04\x00\x01\x00\x00\x00" + value.to_bytes(4, "little")
        for tag, value in ((0x0201, at + 2 + 24 + 4), (0x0202, len(small)))
    )
    with_thumbnail = little + at.to_bytes(4, "little") + ifd + bytes(4) + small
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    jpeg = saved(image, "JPEG", quality=95, exif=with_thumbnail, comment=MARK, xmp=MARK, icc_profile=profile)
    assert Image.open(io.BytesIO(jpeg)).getexif().get_ifd(ExifTags.IFD.IFD1)[0x0202] == len(small)
    second = textured(seed=1, size=(80, 60))
    second.info["comment"] = MARK
    file = io.BytesIO()
    image.save(file, "MPO", save_all=True, append_images=[second], quality=95, comment=MARK)
    mpo = file.getvalue()
    assert Image.open(io.BytesIO(mpo)).n_frames == 2
    from PIL.PngImagePlugin import PngInfo

    said = PngInfo()
    said.add_text("preview", MARK.decode())
    png = saved(image, "PNG", pnginfo=said, exif=with_thumbnail[6:])
    webp = saved(image, "WEBP", quality=95, exif=with_thumbnail, xmp=MARK)
    for data in (jpeg, jpeg + MARK, mpo, mpo + small, png, webp):
        assert MARK in data
        made = make_smaller(data, AS_IT_IS, boxes=[BOX]).data
        assert MARK not in made and made.count(b"\xff\xd8\xff") <= 1
        found = Image.open(io.BytesIO(made))
        assert getattr(found, "n_frames", 1) == 1 and not found.getexif().get_ifd(ExifTags.IFD.IFD1)
    assert (
        Image.open(io.BytesIO(make_smaller(jpeg, AS_IT_IS, boxes=[BOX]).data)).info["icc_profile"] == profile
    )


def test_boxes_that_are_none_and_boxes_at_the_edge():
    assert checked_boxes([[0, 0, 1, 1], (-0.02, 0.5, 1.01, 0.6)]) == [(0, 0, 1, 1), (-0.02, 0.5, 1.01, 0.6)]
    for box, message in (
        ([10.0, 20.0, 40.0, 60.0], "are they pixels"),
        ([0.1, 0.2, 0.3], "four numbers"),
        (None, "four numbers"),
        ([0.1, 0.2, 0.3, float("nan")], "four numbers"),
        ([0.5, 0.5, 0.2, 0.2], "ends before it begins"),  # left, top, width and height
    ):
        with pytest.raises(ImageError, match=f"^boxes: .*{message}"):
            checked_boxes([[0, 0, 1, 1], box])
    data = saved(textured(), "PNG")
    for box in (
        (0, 0, 1, 1),
        (-0.5, -0.5, 0.01, 1.5),
        (0.5, 0.5, 0.5, 0.5),
        (1.5, 1.5, 2, 2),
        (0, 0.99, 1, 1),
    ):
        made = Image.open(io.BytesIO(make_smaller(data, AS_IT_IS, boxes=[box]).data))
        assert made.size == SIZE
        assert (np.asarray(made) == values(textured())).all() == (box[0] > 1)
    dot = saved(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG")
    assert Image.open(io.BytesIO(make_smaller(dot, AS_IT_IS, boxes=[BOX]).data)).getpixel((0, 0)) == (9, 8, 7)
    long = saved(Image.new("RGB", (3000, 1), (9, 8, 7)), "PNG")
    assert Image.open(io.BytesIO(make_smaller(long, AS_IT_IS, boxes=[BOX]).data)).size == (3000, 1)


# In new tars


def animated() -> bytes:
    frames = [textured(seed=number, size=(40, 30)) for number in range(3)]
    return saved(frames[0], "WEBP", save_all=True, append_images=frames[1:])


#: By key: the image's suffix, its bytes, its boxes and their labels.
SAMPLES = {
    "a": ("jpg", saved(textured(seed=1), "JPEG", quality=95), [BOX], ["face"]),
    "b": ("jpg", saved(textured(seed=2), "JPEG", quality=95), [], []),
    "c": ("png", saved(textured(seed=3), "PNG"), [BOX, (0.7, 0.7, 0.9, 0.9)], ["face", "car"]),
    "d": ("webp", animated(), [BOX], ["face"]),
    "e": ("jpg", saved(textured(seed=5), "JPEG")[:900], [BOX], ["face"]),
    "f": ("jpg", saved(textured(seed=6), "JPEG"), None, None),
    "g": ("gif", saved(textured(seed=7), "GIF"), [BOX], ["car"]),
    "h": ("jpg", saved(textured(seed=8), "JPEG"), [(40.0, 30.0, 100.0, 90.0)], ["face"]),
    "i": ("webp", animated(), [], []),
}
LEFT_OUT = {"d": "animated", "e": "truncated", "g": "format", "h": "boxes"}


@pytest.fixture
def data(tmp_path):
    """Two shards with the boxes in the Parquet beside them, rows in another order than samples."""
    kind = pa.list_(pa.list_(pa.float32()))
    for number, keys in enumerate(("abcd", "efghi")):
        members = []
        for key in keys:
            members += [
                (f"{key}.txt", f"caption of {key}".encode()),
                (f"{key}.{SAMPLES[key][0]}", SAMPLES[key][1]),
            ]
            members += [(f"{key}.json", json.dumps({"key": key}).encode())]
        members += [("c.second.jpg", SAMPLES["a"][1])] if number == 0 else []
        write_tar(tmp_path / "data" / f"{number}.tar", sorted(members))
        rows = list(keys[::-1])
        columns = {
            "key": rows,
            "face_boxes": pa.array([SAMPLES[key][2] for key in rows], kind),
            "face_labels": pa.array([SAMPLES[key][3] for key in rows], pa.list_(pa.string())),
        }
        pq.write_table(pa.table(columns), tmp_path / "data" / f"{number}.parquet")
    return tmp_path / "data"


@pytest.fixture
def dataset(data):
    return ImageTextPairDataset.from_webdataset(data)


def held(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.rglob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def image_in(found: dict[str, bytes], name: str) -> Image.Image:
    return Image.open(io.BytesIO(found[name]))


def test_what_is_found_is_blurred_and_what_cannot_be_is_left_out(data, dataset, tmp_path):
    out = tmp_path / "out"
    summary = dataset.to_webdataset(out, blur="face_boxes", samples_per_shard=4, quality=95)
    before, after = held(data), held(out)
    kept = {"a", "b", "c", "i"}
    assert {name.partition(".")[0] for name in after} == kept
    for name, old in before.items():
        if name.partition(".")[0] not in kept or name in ("a.jpg", "c.png"):
            continue
        assert after[name] == old, name  # captions, JSON, other images, images without boxes
    check_blurred(image_in(before, "a.jpg"), image_in(after, "a.jpg"), exact=False)
    stored = np.array(SAMPLES["c"][2], np.float32).tolist()
    assert after["c.png"] == make_smaller(SAMPLES["c"][1], AS_IT_IS, boxes=stored).data
    assert (summary.rows, summary.kept, summary.filtered, summary.missing) == (9, 4, 1, 4)
    assert summary.reasons == {f"not blurred ({why})": 1 for why in LEFT_OUT.values()}
    assert (summary.images_blurred, summary.regions_blurred, summary.images_beside_blurred) == (2, 3, 1)
    assert summary.complete and '  "face_boxes" IS NOT NULL: 8 of the rows pass' in str(summary)
    assert summary.fields["jpg"] == 2 and summary.fields["png"] == 1 and "gif" not in summary.fields
    text = str(summary)
    assert "2 images were blurred, in 3 regions" in text and "1 sample has further images" in text
    assert "1 x not blurred (animated), for example d: animated" in text and "are they pixels" in text
    left = pq.read_table(tmp_path / "out.export" / "unblurred").to_pylist()
    assert {row["source_key"]: row["reason"].partition(":")[0] for row in left} == LEFT_OUT
    manifest = pq.read_table(tmp_path / "out.export" / "manifest").to_pylist()
    assert {row["key"] for row in manifest} == kept and {row["image_left"] for row in manifest} == {None}
    for row in manifest:
        copied = dict(zip(row["members"], row["source_offsets"], strict=True))
        assert {name for name, offset in copied.items() if offset < 0} == {"a.jpg", "c.png"} & {*copied}
    beside = pa.concat_tables(pq.read_table(path) for path in sorted(out.glob("*.parquet"))).to_pylist()
    assert {row["key"]: row["exported_width"] for row in beside} == {"a": 160, "b": 160, "c": 160, "i": 40}
    sizes = json.loads((out / "sizes.json").read_text())
    assert sum(sizes.values()) == 4
    # The same again, elsewhere, and with other settings.
    was = files(out)
    again = dataset.to_webdataset(out, blur="face_boxes", samples_per_shard=4, quality=95)
    assert (again.written, again.kept, again.missing) == (0, 4, 4) and files(out) == was
    assert again.reasons == summary.reasons and again.fields == summary.fields
    dataset.to_webdataset(tmp_path / "twin", blur="face_boxes", samples_per_shard=4, quality=95)
    assert files(tmp_path / "twin") == was
    with pytest.raises(OutputError, match="by other settings"):
        dataset.to_webdataset(out, blur="face_boxes", blur_strength=2, samples_per_shard=4, quality=95)
    plain = dataset.to_webdataset(out, samples_per_shard=4, overwrite=True)
    assert plain.kept == 9 and not list((tmp_path / "out.export").glob("unblurred/*.parquet"))


def test_some_labels_rows_that_nobody_has_looked_at_and_smaller_images(data, dataset, tmp_path):
    summary = dataset.to_webdataset(
        tmp_path / "out", blur="face_boxes", blur_only=["face"], blur_keep_unseen=True, max_side=80
    )
    before, after = held(data), held(tmp_path / "out")
    assert (summary.kept, summary.filtered, summary.missing) == (6, 0, 3)
    assert after["g.gif"] == before["g.gif"]  # of it a car was found
    assert image_in(after, "f.jpg").size == image_in(after, "b.jpg").size == (80, 60)
    small = image_in(before, "c.png").resize((80, 60), Image.Resampling.LANCZOS)
    found = values(image_in(after, "c.png"))
    assert np.abs(values(small) - found)[42:, 56:72].max() < 12  # the car is as it was
    assert fine(found[18:48, 20:50]) < fine(values(small)[18:48, 20:50]) / 20
    assert (summary.images_blurred, summary.images_smaller) == (2, 4)


def test_tars_of_which_nothing_is_left_splits_and_another_format(data, dataset, tmp_path):
    some, out = dataset.filter("key IN ('d', 'e', 'a', 'i')"), tmp_path / "out"
    options = {"samples_per_shard": 1, "splits": {"test": 2}, "image_format": "webp", "keys": "sequential"}
    summary = some.to_webdataset(out, blur="face_boxes", **options)
    assert (summary.rows, summary.kept, summary.missing, summary.shards) == (9, 2, 2, 2)
    assert sum(split.samples for split in summary.splits.values()) == 2
    found = held(out)
    assert sorted(name.rpartition(".")[2] for name in found) == ["json", "json", "txt", "txt", "webp", "webp"]
    images = [image_in(found, name) for name in found if name.endswith("webp")]
    blurred = next(image for image in images if image.size == SIZE)
    check_blurred(image_in(held(data), "a.jpg"), blurred, exact=False)
    # webdataset's workers and DALI stop at a tar without samples: nothing of it is there, and a rerun knows that.
    files = sorted(each for each in out.rglob("*") if each.is_file())
    tars = {path.with_suffix(".tar") for path in files if path.name != "sizes.json"}
    sizes = [(each.parent, json.loads(each.read_text())) for each in files if each.name == "sizes.json"]
    assert {folder / name for folder, some in sizes for name in some} == tars and len(tars) == 2
    assert sum(split.shards for split in summary.splits.values()) == 2 == summary.written
    assert f"2 tars would have no sample and are not there, {summary.emptied[0]}.tar for" in str(summary)
    again = some.to_webdataset(out, blur="face_boxes", **options)
    assert (again.written, again.skipped, again.shards, again.kept, again.missing) == (0, 2, 2, 2, 2)
    assert sorted(each for each in out.rglob("*") if each.is_file()) == files


def test_wrong_arguments(data, dataset, tmp_path):
    for arguments, message in (
        ({"blur": "no_boxes"}, "no such columns"),
        ({"blur": "key"}, r"expected lists of boxes"),
        ({"blur": "face_labels"}, r"expected lists of boxes"),
        ({"blur_only": ["face"]}, r"give the column of their boxes as blur"),
        ({"blur": "face_boxes", "blur_only": "face"}, "expected a list of labels"),
        ({"blur": "face_boxes", "blur_strength": 0}, "--blur-strength"),
        ({"blur": "key", "blur_only": ["face"]}, "is called otherwise"),
    ):
        with pytest.raises(ConfigError, match=message):
            dataset.to_webdataset(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="blur_strength=1000"):
        Recipe(export={"blur": "face_boxes", "blur_strength": 1000})


def test_the_command(data, client, tmp_path):
    out, at = tmp_path / "out", ["--scheduler-address", client.scheduler.address]
    command = [
        "export",
        data,
        out,
        "--blur",
        "face_boxes",
        "--blur-only",
        "face,car",
        *at,
        "--json",
        tmp_path / "told.json",
    ]
    done = CliRunner().invoke(app, [*map(str, command)])
    assert done.exit_code == 0, done.stderr
    told = json.loads((tmp_path / "told.json").read_text())
    assert (told["kept"], told["missing"], told["images_blurred"]) == (4, 4, 2)
    check_blurred(image_in(held(data), "a.jpg"), image_in(held(out), "a.jpg"), exact=False)
    assert CliRunner().invoke(app, [*map(str, command), "--blur-strength", "9"]).exit_code == 2
