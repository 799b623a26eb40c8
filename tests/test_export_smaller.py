"""New tars whose large images are smaller: which ones, every other byte, and what is said of them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import colour_of, write_tar
from PIL import Image
from typer.testing import CliRunner

from curator_dask.cli import app
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, OutputError
from curator_dask.recipe import Recipe
from curator_dask.webdataset.index import ShardIndex

pytestmark = pytest.mark.usefixtures("in_this_process")

SHARDS, SAMPLES = 2, 12
LARGE, SMALL = (160, 120), (40, 64)


def picture(key: str, size: tuple[int, int], form: str = "PNG", **options) -> bytes:
    """All of the key's colour."""
    file = io.BytesIO()
    Image.new("RGB", size, colour_of(key)).save(file, form, **options)
    return file.getvalue()


def size_of(key: str) -> tuple[int, int]:
    return SMALL if int(key) % 3 == 0 else LARGE


def members_of(key: str) -> list[tuple[str, bytes]]:
    return [
        (f"{key}.json", json.dumps({"key": key, "width": size_of(key)[0]}).encode()),
        (f"{key}.mask.png", picture(key, LARGE)),
        (f"{key}.png", picture(key, size_of(key))),
        (f"{key}.txt", f"caption of {key}".encode()),
    ]


@pytest.fixture
def data(tmp_path):
    for shard in range(SHARDS):
        keys = [f"{shard:05d}{sample:04d}" for sample in range(SAMPLES)]
        write_tar(tmp_path / f"data/{shard:05d}.tar", [member for key in keys for member in members_of(key)])
        rows = {"key": keys[::-1], "width": [size_of(key)[0] for key in keys[::-1]]}
        pq.write_table(pa.table(rows), tmp_path / f"data/{shard:05d}.parquet")
    return tmp_path / "data"


@pytest.fixture
def dataset(data):
    return ImageTextPairDataset.from_webdataset(data)


def held(folder: Path) -> dict[str, bytes]:
    """By name, in their order: all members of all tars; by Python's tarfile."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {each.name: tar.extractfile(each).read() for each in tar}
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def check_colour(key: str, data: bytes) -> None:
    assert np.abs(np.asarray(opened(data).convert("RGB"), float) - colour_of(key)).max() <= 4, key


def is_large(key: str) -> bool:
    return size_of(key) == LARGE


def test_large_images_alone_are_smaller_and_all_else_is_copied(data, dataset, tmp_path):
    out, before = tmp_path / "out", held(data)
    summary = dataset.to_webdataset(out, samples_per_shard=9, shuffle=3, max_side=64)
    after = held(out)
    assert {*after} == {*before}
    large = [name for name in before if name.count(".") == 1 and name.endswith("png") and is_large(name[:-4])]
    assert {name for name in before if after[name] != before[name]} == {*large} and len(large) == 16
    for name in large:
        image = opened(after[name])
        assert (image.size, image.format) == ((64, 48), "PNG")
        assert image.getextrema() == tuple((each, each) for each in colour_of(name[:-4]))
    # What is beside knows the new sizes and offsets.
    manifest = pq.read_table(f"{out}.export/manifest").to_pylist()
    for row in manifest:
        source = Path(row["source_shard"]).read_bytes()
        assert row["image_left"] is None
        for name, size, at in zip(row["members"], row["sizes"], row["source_offsets"], strict=True):
            assert size == len(after[name]) and (at == -1) == (name in large)
            assert at == -1 or source[at : at + size] == after[name]
    for path in sorted(out.glob("*.tar")):
        index = ShardIndex.read_idx(path.with_suffix(".idx"), path)
        table = pq.read_table(path.with_suffix(".parquet"))
        assert [sample.key for sample in index.samples] == table["key"].to_pylist()
        for row in table.to_pylist():
            now = (64, 48) if is_large(row["key"]) else SMALL
            data_now = after[f"{row['key']}.png"]
            assert (row["exported_width"], row["exported_height"], row["exported_bytes"]) == (
                *now,
                len(data_now),
            )
            assert row["width"] == size_of(row["key"])[0]  # of the source, as the summary says
    assert (summary.images_smaller, summary.images_converted, summary.images_left) == (16, 0, {})
    assert summary.image_bytes_before == sum(len(before[name]) for name in large)
    assert summary.image_bytes_after == sum(len(after[name]) for name in large)
    said = str(summary)
    assert (
        "16 images were made smaller: " in said
        and "(width, height, bytes, sha256) is of those before" in said
    )
    assert summary.to_dict()["images_smaller"] == 16


def test_the_same_call_does_nothing_and_another_is_refused(dataset, tmp_path):
    out = tmp_path / "out"

    def export(**options):
        return dataset.to_webdataset(out, **{"samples_per_shard": 9, "max_side": 64, **options})

    first = export()
    whole, counts = files(out), ("images_smaller", "image_bytes_before", "image_bytes_after")
    again = export(quality=90)  # which is what it was
    assert (again.written, again.skipped) == (0, 3) and files(out) == whole
    assert [getattr(again, name) for name in counts] == [getattr(first, name) for name in counts]
    (out / "00001.tar").unlink()
    assert export().written == 1 and files(out) == whole
    for options in (
        {"quality": 80},
        {"max_side": 65},
        {"max_side": None, "min_side": 64},
        {"max_side": None},
    ):
        with pytest.raises(OutputError, match=r"by other settings.*overwrite"):
            export(**options)
    for options in ({"image_format": "webp"}, {"image_member": "mask.png"}):
        with pytest.raises(OutputError, match="by other settings"):
            export(**options)
    assert files(out) == whole
    assert export(max_side=None, overwrite=True).images_smaller == 0
    assert "exported_width" not in pq.read_schema(out / "00000.parquet").names


def test_the_shortest_side_and_the_image_that_is_named(data, dataset, tmp_path):
    summary = dataset.to_webdataset(tmp_path / "out", min_side=30, image_member="mask.png")
    before, after = held(data), held(tmp_path / "out")
    masks = {name for name in before if name.endswith("mask.png")}
    assert {name for name in before if after[name] != before[name]} == masks
    assert {opened(after[name]).size for name in masks} == {(40, 30)} and summary.images_smaller == 24


@pytest.mark.parametrize("layout", [{}, {"keys": "sequential", "old_id_col": "old"}])
def test_another_format_and_its_names(data, dataset, tmp_path, layout):
    """Small images are written in it, too; what reads by suffix finds them all alike."""
    out = tmp_path / "out"
    summary = dataset.to_webdataset(out, max_side=64, image_format="jpeg", columns=["width"], **layout)
    after = held(out)
    keys = [name[:-4] for name in after if name.endswith(".jpg")]
    table = pq.read_table(out / "00000.parquet")
    olds = dict(zip(table["key"].to_pylist(), table["old" if layout else "key"].to_pylist(), strict=True))
    assert len(keys) == 24 and not [name for name in after if name.endswith("png") and "mask" not in name]
    for key in keys:
        image = opened(after[f"{key}.jpg"])
        assert image.format == "JPEG" and image.size == ((64, 48) if is_large(olds[key]) else SMALL)
        check_colour(olds[key], after[f"{key}.jpg"])
        assert after[f"{key}.mask.png"] == picture(olds[key], LARGE)
        assert json.loads(after[f"{key}.json"])["width"] == size_of(olds[key])[0]
    assert (summary.images_smaller, summary.images_converted) == (16, 8)
    assert "16 images were made smaller, 8 only put into another format" in str(summary)
    assert summary.fields == {"jpg": 24, "json": 24, "txt": 24, "mask.png": 24} and not summary.habits
    index = ShardIndex.read_idx(out / "00000.idx", out / "00000.tar")
    assert [sample.key for sample in index.samples] == keys


def test_images_that_cannot_be_made_smaller_are_copied_and_named(tmp_path):
    whole = picture("1", LARGE, "JPEG")
    clear = io.BytesIO()
    Image.new("RGBA", LARGE, (1, 2, 3, 4)).save(clear, "PNG")
    members = [
        ("1.JPEG", whole),  # made smaller, under its own name
        ("2.jpg", whole[:700]),
        ("3.png", clear.getvalue()),
        ("4.png", picture("4", LARGE)),
        ("4.jpg", b"its name is taken"),
        ("5.txt", b"no image at all"),
        ("6.jpg", b"<html>"),
        ("7.jpg", picture("7", LARGE)),  # a PNG by another name: it becomes what it is called
    ]
    write_tar(tmp_path / "data/0.tar", members)
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")
    options = {"max_side": 64, "image_format": "jpeg"}
    summary = dataset.to_webdataset(tmp_path / "out", **options)
    after = held(tmp_path / "out")
    assert [*after] == [name for name, _ in members]
    made = {"1.JPEG", "7.jpg"}
    assert {name for name, data in members if after[name] != data} == made and summary.kept == 7
    for name in made:
        assert (opened(after[name]).format, opened(after[name]).size) == ("JPEG", (64, 48))
        check_colour(name[0], after[name])
    assert summary.images_left == {"truncated": 1, "transparent": 1, "name": 1, "not an image": 1}
    assert summary.images_smaller == 2 and summary.complete
    for said in ("1 image stays as before, name: for example 4: name: another member is called 4.jpg",):
        assert said in str(summary)
    left = {
        row["key"]: row["image_left"] for row in pq.read_table(f"{tmp_path}/out.export/manifest").to_pylist()
    }
    assert [key for key, reason in left.items() if reason is None] == ["1", "5", "7"]
    assert left["2"].startswith("truncated: ") and left["6"].startswith("not an image")
    sizes = pq.read_table(tmp_path / "out/00000.parquet").to_pylist()
    widths = [64, 160, 160, 160, None, None, 64]
    assert [row["exported_width"] for row in sizes] == widths
    assert sizes[1]["exported_bytes"] == 700 and sizes[4]["exported_bytes"] is None
    assert dataset.to_webdataset(tmp_path / "out", **options).images_left == summary.images_left


@pytest.mark.parametrize("image_format", ["keep", "webp"])
def test_names_that_stay(tmp_path, image_format):
    """Those that differ in case alone, and those that speak of no format."""
    image = picture("1", LARGE)
    members = [("1.png", image), ("1.PNG", b"another"), ("2.png", b"of 2"), ("2.pixels", image)]
    write_tar(tmp_path / "data/0.tar", members)
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")
    options = {"max_side": 64, "image_format": image_format}
    first = dataset.to_webdataset(tmp_path / "first", where="key = '1'", **options)
    named = dataset.to_webdataset(tmp_path / "named", where="key = '2'", image_member="pixels", **options)
    assert (first.images_smaller, named.images_smaller) == (1, 1)
    name = {"keep": "1.png", "webp": "1.webp"}[image_format]
    assert held(tmp_path / "first").keys() == {name, "1.PNG"}
    assert held(tmp_path / "named").keys() == {"2.png", "2.pixels"}
    for data in (held(tmp_path / "first")[name], held(tmp_path / "named")["2.pixels"]):
        assert (opened(data).size, opened(data).format) == (
            (64, 48),
            {"keep": "PNG"}.get(image_format, "WEBP"),
        )


def test_all_images_of_the_format_have_its_name(tmp_path):
    """Also those that are copied, whose bytes are where they were."""
    small, large = picture("1", SMALL), picture("2", LARGE)
    members = [
        ("1.jpg", small),
        ("1.txt", b"of 1"),
        ("2.jpg", large),
        ("3.png", picture("3", SMALL)),
        ("4.jpg", picture("4", SMALL)),
        ("4.PNG", b"its name is taken"),
    ]
    write_tar(tmp_path / "data/0.tar", members)
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")
    summary = dataset.to_webdataset(tmp_path / "out", max_side=64, image_format="png", keys="original")
    after = held(tmp_path / "out")
    assert [*after] == ["1.png", "1.txt", "2.png", "3.png", "4.jpg", "4.PNG"]
    assert after["1.png"] == small and opened(after["2.png"]).size == (64, 48)
    assert (summary.images_smaller, summary.images_converted, summary.images_left) == (1, 0, {"name": 1})
    assert summary.fields == {"png": 3, "jpg": 1, "txt": 1, "PNG": 1}
    row = pq.read_table(f"{tmp_path}/out.export/manifest").to_pylist()[0]
    at, size = row["source_offsets"][0], row["sizes"][0]
    assert row["members"][0] == "1.png"
    assert (tmp_path / "data/0.tar").read_bytes()[at : at + size] == small


def test_the_size_beside_a_copied_image_is_as_it_is_seen(tmp_path):
    lying = Image.Exif()
    lying[0x0112] = 6
    clear = io.BytesIO()  # is too large, and stays
    Image.new("RGBA", LARGE, (1, 2, 3, 4)).save(clear, "PNG", exif=lying)
    members = [
        ("1.png", picture("1", (60, 40), exif=lying)),
        ("2.webp", picture("2", (60, 40), "WEBP", exif=lying)),
        ("3.png", picture("3", (60, 40))),
        ("4.png", clear.getvalue()),
    ]
    write_tar(tmp_path / "data/0.tar", members)
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")
    summary = dataset.to_webdataset(tmp_path / "keep", where="key != '4'", max_side=64)
    assert summary.images_smaller == 0 and held(tmp_path / "keep") == dict(members[:3])
    dataset.to_webdataset(tmp_path / "left", where="key = '4'", max_side=64, image_format="jpeg")
    rows = [pq.read_table(tmp_path / f"{name}/00000.parquet").to_pylist() for name in ("keep", "left")]
    sizes = [(row["exported_width"], row["exported_height"]) for row in rows[0] + rows[1]]
    assert sizes == [(40, 60), (40, 60), (60, 40), (120, 160)]


def test_files_that_grow_are_counted(tmp_path):
    """A palette of stripes becomes the colours between them."""
    stripes = Image.fromarray((np.indices((200, 200)).sum(0) // 3 % 2).astype(np.uint8), "P")
    stripes.putpalette([255, 0, 0, 0, 90, 255])
    file = io.BytesIO()
    stripes.save(file, "PNG", bits=1)
    members = [("1.png", file.getvalue()), ("2.jpg", picture("2", (400, 300), "JPEG", quality=95))]
    write_tar(tmp_path / "data/0.tar", members)
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")
    summary = dataset.to_webdataset(tmp_path / "out", max_side=150)
    after = held(tmp_path / "out")
    assert [len(after[name]) > len(data) for name, data in members] == [True, False]
    assert opened(after["1.png"]).size == (150, 150)
    assert (summary.images_smaller, summary.images_grown) == (2, 1) and "(1 file grew)" in str(summary)
    again = dataset.to_webdataset(tmp_path / "out", max_side=150)
    assert (again.written, again.images_grown, summary.to_dict()["images_grown"]) == (0, 1, 1)


def test_it_is_planned_by_the_sizes_before(dataset, tmp_path, monkeypatch):
    options = {"shard_bytes": 20_480, "max_side": 16}
    planned = dataset.to_webdataset(tmp_path / "out", dry_run=True, **options)
    assert "by the sizes that images have now" in str(planned) and not [*tmp_path.glob("out*")]
    done = dataset.to_webdataset(tmp_path / "out", **options)
    copied = dataset.to_webdataset(tmp_path / "copied", shard_bytes=20_480)
    assert done.shards == copied.shards == planned.shards > 1 and done.bytes < planned.needed
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1}))
    with pytest.raises(OutputError, match="are free"):
        dataset.to_webdataset(tmp_path / "no room")
    assert dataset.to_webdataset(tmp_path / "small", **options).written == done.shards


def test_an_export_of_an_export(dataset, tmp_path):
    """Its columns are made anew, not taken for those of the images that are now in the tars."""
    dataset.to_webdataset(tmp_path / "one", max_side=64)
    again = ImageTextPairDataset.from_webdataset(tmp_path / "one")
    again.to_webdataset(tmp_path / "two", max_side=32)
    frame = pq.read_table(tmp_path / "two/00000.parquet")
    assert frame.column_names.count("exported_width") == 1
    assert {*frame["exported_width"].to_pylist()} == {32, 20}
    again.to_webdataset(tmp_path / "json", max_side=32, metadata="json")
    fields = json.loads(held(tmp_path / "json")["000000001.json"])
    assert fields == {"key": "000000001", "width": 160}
    with pytest.raises(ConfigError, match=r"columns \['exported_width'\] are made anew"):
        again.to_webdataset(tmp_path / "no", max_side=32, columns=["exported_width"])


def test_the_command_and_the_recipe(data, tmp_path):
    arguments = ["export", str(data), str(tmp_path / "out"), "--cluster", "cpu", "--workers", "1"]
    small = [
        "--max-side",
        "64",
        "--quality",
        "80",
        "--image-format",
        "jpeg",
        "--json",
        str(tmp_path / "s.json"),
    ]
    result = CliRunner().invoke(app, [*arguments, *small])
    assert result.exit_code == 0, result.output
    assert "16 images were made smaller, 8 only put" in result.output
    assert json.loads((tmp_path / "s.json").read_text())["images_smaller"] == 16
    recipe = Recipe(export={"max_side": 64, "quality": 80, "image_format": "jpeg"})
    dataset = ImageTextPairDataset.from_webdataset(data)
    dataset.to_webdataset(tmp_path / "same", **recipe.export)
    assert held(tmp_path / "same") == held(tmp_path / "out")
    result = CliRunner().invoke(app, [*arguments, "--max-side", "64", "--min-side", "64"])
    assert result.exit_code == 2 and "give one of the two" in result.output
    for wrong in ({"quality": 80}, {"image_format": "webp"}, {"image_member": "a.png"}):
        with pytest.raises(ConfigError, match="give max_side or min_side"):
            Recipe(export=wrong)
