"""Statistics of images: against imagehash, Pillow and CleanVision, in the pass of a model and alone."""

from __future__ import annotations

import io

import imagehash
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import skimage.data
from colours import ColourReader, check_colours, image_of, read_output, write_dataset, write_tar
from PIL import Image, ImageOps
from test_cli import run_here

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, OutputError
from curator_dask.frames.parquet import read_record, write_table
from curator_dask.frames.record import FileRecord
from curator_dask.image.classifiers import ReferenceSimilarity, score_output
from curator_dask.image.statistics import STATISTICS, ImageStatistics
from curator_dask.image.statistics.hashes import hashes_of
from curator_dask.image.statistics.header import read_header
from curator_dask.image.statistics.pixels import PIXELS, Measure
from curator_dask.pipeline import Pipeline
from curator_dask.rows import images
from curator_dask.rows.reasons import reasons_in
from curator_dask.stages.image import (
    FilePartitioningStage,
    ImageParquetWriterStage,
    ImageReaderStage,
    ImageStatisticsStage,
)
from curator_dask.testing import StageTests, StepTests

pytestmark = pytest.mark.usefixtures("in_this_process")

#: Brightness of scikit-image's photographs, by CleanVision 0.3.7.
CLEANVISION = {"astronaut": 0.4504073, "coffee": 0.4173510, "cat": 0.4697706}


def sharpness(image: Image.Image) -> float:
    """The edges' standard deviation at 64 pixels, by hand."""
    ratio = max(image.size) / 64
    small = image.resize([int(edge // ratio) for edge in image.size]).convert("L")
    pixels = np.asarray(small, np.int64)
    shifts = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    around = sum(np.roll(pixels, shift, (0, 1)) for shift in shifts) - pixels
    return np.clip(8 * pixels - around, 0, 255)[1:-1, 1:-1].std()


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photograph(name: str) -> Image.Image:
    return Image.fromarray(getattr(skimage.data, name)()).convert("RGB")


def opens_of(monkeypatch) -> list[str]:
    """Gets the shards that are opened from now on."""
    opened, open_shard = [], images.open_shard
    monkeypatch.setattr(images, "open_shard", lambda url, **how: opened.append(url) or open_shard(url, **how))
    return opened


@pytest.fixture
def folder(tmp_path):
    """Photographs and pictures that are made, under keys that are their names."""
    turned = Image.Exif()
    turned[0x0112] = 6
    bars = Image.new("RGB", (200, 160))
    bars.paste(photograph("cat").resize((200, 80)), (0, 40))
    noise = np.random.default_rng(3).integers(0, 256, (90, 120), np.uint8)
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "blue")]
    images = {
        **{name: encoded(photograph(name)) for name in CLEANVISION},
        "jpeg": encoded(photograph("coffee"), "JPEG", quality=90, exif=turned),
        "bars": encoded(bars),
        "grey": encoded(Image.fromarray(noise)),
        "animated": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "plain": encoded(Image.new("RGB", (40, 40), "white")),
        "broken": b"<html>not found</html>",
        "cut": encoded(photograph("cat"))[:9000],
    }
    write_tar(tmp_path / "data" / "0.tar", [(f"{name}.jpg", data) for name, data in images.items()])
    return tmp_path / "data"


def colourfulness(image) -> float:
    """As Hasler and Süsstrunk write it, of the picture at some 256 pixels."""
    small = image.reduce(max(1, max(image.size) // 256))
    red, green, blue = (np.asarray(each, np.float64) for each in small.split())
    one, other = red - green, (red + green) / 2 - blue
    spread, mean = np.hypot(one.std(), other.std()), np.hypot(one.mean(), other.mean())
    return spread + 0.3 * mean


def measured(folder, *arguments, **options) -> dict[str, dict]:
    """By key, the row."""
    made = ImageStatistics(*arguments, **options)(ImageTextPairDataset.from_webdataset(folder))
    rows = pa.Table.from_pandas(made.compute(), preserve_index=False).to_pylist()
    return {row["key"]: row for row in rows}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_sizes_are_those_of_the_image_as_it_is_seen(form):
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("RGB", (30, 20)).save(file := io.BytesIO(), form, exif=exif)
        found = read_header(file.getvalue(), 10**6)
        seen = ImageOps.exif_transpose(Image.open(file)).size
        assert (found["width"], found["height"], found["orientation"]) == (*seen, orientation)


@pytest.mark.parametrize("decoder", ["dali", "pillow"])
def test_statistics(folder, decoder):
    rows = measured(folder, decoder=decoder)
    for name, brightness in CLEANVISION.items():
        row, image = rows[name], photograph(name)
        assert (row["width"], row["height"]) == image.size
        assert row["phash"] == int(str(imagehash.phash(image)), 16)
        assert row["dhash"] == int(str(imagehash.dhash(image)), 16)
        assert row["blurriness"] == pytest.approx(sharpness(image), rel=0.03)
        assert row["brightness"] == pytest.approx(brightness, rel=1e-5)
        assert row["entropy"] == pytest.approx(image.entropy(), rel=1e-5)
        assert (row["format"], row["mode"], row["orientation"], row["animated"]) == (
            "PNG",
            "RGB",
            None,
            False,
        )
        assert (row["grey"], row["image_error"]) == (False, None)
        assert row["colourfulness"] == pytest.approx(colourfulness(image), rel=1e-5)
        assert row["border"] < 0.05
    wide = photograph("coffee").size
    turned = rows["jpeg"]
    assert (turned["height"], turned["width"], turned["orientation"], turned["format"]) == (*wide, 6, "JPEG")
    assert turned["aspect"] == pytest.approx(wide[1] / wide[0])
    upright = photograph("coffee").transpose(Image.Transpose.ROTATE_270)
    near = imagehash.hex_to_hash(f"{turned['phash']:016x}") - imagehash.phash(upright)
    assert near <= 2  # of 64 bits: JPEG's loss
    assert rows["bars"]["border"] == pytest.approx(0.5, abs=0.05)
    assert (rows["grey"]["grey"], rows["grey"]["colourfulness"], rows["grey"]["mode"]) == (True, 0, "L")
    assert rows["animated"]["animated"] and rows["animated"]["format"] == "GIF"
    assert (rows["plain"]["border"], rows["plain"]["blurriness"]) == (1, 0)
    assert rows["plain"]["entropy"] == pytest.approx(np.log2(3))
    for key, named in (("broken", "not an image"), ("cut", "")):
        assert named in rows[key]["image_error"] and rows[key]["phash"] is None
    assert rows["broken"]["width"] is None
    assert rows["cut"]["width"] == photograph("cat").width  # what the headers say stands


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 500), (9, 8), (31, 33), (20, 300), (300, 20), (500, 375), (1100, 40), (700, 1900)]
)
def test_hashes_of_pictures_of_any_shape(size):
    """Also of stripes and of plain ones, where rounding decides."""
    down, across = np.indices(size[::-1])
    noise = np.random.default_rng(5).integers(0, 256, size[::-1])
    for pixels in (noise, across // 3 % 2 * 255, (7 * down + across) % 256, np.full_like(noise, 9)):
        image = Image.fromarray(pixels.astype(np.uint8))
        made = hashes_of(np.asarray(image), ["phash", "dhash"])
        assert made["phash"].tobytes().hex() == str(imagehash.phash(image))
        assert made["dhash"].tobytes().hex() == str(imagehash.dhash(image))


@pytest.mark.parametrize(
    "bars", [(0, 0, 0, 0), (12, 0, 0, 0), (0, 9, 17, 0), (1, 0, 0, 30), (40, 30, 30, 20)]
)
def test_bars_and_the_last_coloured_pixel(bars):
    left, top, right, bottom = bars
    image = Image.new("RGB", (90, 70), (20, 30, 250))
    image.paste(photograph("cat").resize((90 - left - right, 70 - top - bottom)), (left, top))
    grey = Image.merge("RGB", [image.getchannel(1)] * 3)
    measure = Measure(("grey", "border"))
    apart = np.abs(np.asarray(image, int) - image.getpixel((0, 0))).max(axis=2) > 24
    (rows, columns), area = np.nonzero(apart), apart.size
    expected = 1 - (np.ptp(rows) + 1) * (np.ptp(columns) + 1) / area
    assert measure(image).tolist() == pytest.approx([0, expected])
    assert measure.of_pixels(np.asarray(image)).equal(measure(image))
    assert measure(grey)[0]
    grey.putpixel((89, 69), (1, 1, 2))
    assert not measure(grey)[0]


def test_one_pass_with_a_model_and_a_file(tmp_path, monkeypatch):
    keys = write_dataset(tmp_path / "data", bad={"000010004": b"<html>"})
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")
    statistics = ImageStatistics(["phash", "bytes"])
    made = ColourReader()(statistics(dataset))
    summary = made.save_metadata(tmp_path / "out")
    assert (summary.rows, summary.failed) == (len(keys), 1)
    table = pq.read_table(tmp_path / "out")
    schema = {name: table.schema.field(name).type for name in ("bytes", "phash")}
    assert schema == {"bytes": pa.int64(), "phash": pa.uint64()}
    good = table.filter(table["image_error"].is_null())
    check_colours(good["key"].to_pylist(), good["image_embedding"].to_pylist())
    alone = measured(tmp_path / "data", ["phash", "bytes"])
    for row in table.to_pylist():
        assert {name: row[name] for name in ("bytes", "phash")} == {
            name: alone[row["key"]][name] for name in ("bytes", "phash")
        }
    (bad,) = (row for row in table.to_pylist() if row["image_error"])
    assert (bad["key"], bad["bytes"], bad["phash"]) == ("000010004", None, None)
    assert bad["image_error"] == alone["000010004"]["image_error"]  # one reason for both, said once
    assert ColourReader()(statistics(dataset)).save_metadata(tmp_path / "out").skipped == 3
    # Another statistic: the vectors that are there are taken over.
    more = ColourReader()(ImageStatistics(["phash", "bytes", "grey"])(dataset))
    assert more.save_metadata(tmp_path / "out").written == 3


def test_names_that_cannot_be(tmp_path):
    for names in (["sharpness"], [], "phash"):
        with pytest.raises(ConfigError, match="expected a list of some of width, height"):
            ImageStatistics(names)
    write_dataset(tmp_path, shards=1)  # whose rows have a width
    dataset = ImageTextPairDataset.from_webdataset(tmp_path)
    with pytest.raises(
        ConfigError, match=r"its own named \['width'\], which would be lost.*prefix='image_'.*names="
    ):
        ImageStatistics()(dataset)
    of_type = dataset.with_metadata(dataset.metadata.assign(width=dataset.metadata["width"].astype("int32")))
    with pytest.raises(ConfigError, match=r"\['width'\], which would be lost"):
        ImageStatistics()(of_type)
    frame = ImageStatistics(["width"], prefix="image_")(dataset).compute()
    assert frame["width"].tolist() == dataset.compute()["width"].tolist()
    widths = [Image.open(io.BytesIO(image_of(key))).width for key in frame["key"]]
    assert frame["image_width"].tolist() == widths


@pytest.mark.parametrize("names", [None, ["bytes", "format"]])
def test_in_the_datasets_own_files(tmp_path, names):
    """What an earlier run has made there is made anew, and finished work the next time."""
    write_dataset(tmp_path)
    if names is None:
        names = [name for name in STATISTICS if name != "width"]  # of which the rows have one
    for expected in ((3, 0), (0, 3)):
        dataset = ImageTextPairDataset.from_webdataset(tmp_path)
        summary = ImageStatistics(names)(dataset).save_metadata()
        assert (summary.written, summary.skipped) == expected


def test_a_retry_that_would_read_images_in_another_way_refuses(tmp_path):
    write_dataset(tmp_path / "data", shards=1, bad={"000000004": b"<html>"})
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")
    measure = ImageStatistics(["phash"], decoder="pillow")
    ColourReader()(measure(dataset)).save_metadata(tmp_path / "out")
    with pytest.raises(OutputError, match=r"phash.* a retry cannot make again"):
        ColourReader().retry(tmp_path / "out")


def test_an_output_gets_them_as_the_pass_that_embeds_makes_them(folder, tmp_path, monkeypatch):
    names = ["format", "width", "orientation", "blurriness", "phash"]
    write_tar(folder / "1.tar", [("cat.png", encoded(photograph("coffee"))), ("none.txt", b"no image")])
    dataset = ImageTextPairDataset.from_webdataset(folder)
    ColourReader()(ImageStatistics(names)(dataset)).save_metadata(tmp_path / "expected")
    ColourReader()(dataset).save_metadata(tmp_path / "out")
    expected, before = (read_output(tmp_path / name) for name in ("expected", "out"))
    opened = opens_of(monkeypatch)

    for counts in ((2, 0), (0, 2)):
        copied = score_output(tmp_path / "out", [ImageStatistics(names)], tmp_path / "copied")
        assert (copied.written, copied.skipped) == counts
    assert score_output(tmp_path / "out", [ImageStatistics(["format"])]).written == 2
    more = score_output(tmp_path / "out", [ImageStatistics(names)])
    assert (more.written, more.rows) == (2, before.num_rows)
    assert sorted(opened) == sorted([str(folder / "0.tar"), str(folder / "1.tar")] * 3)  # once in each call
    for out in ("out", "copied"):
        table = read_output(tmp_path / out)
        assert table.select(expected.column_names).equals(expected)
        assert table.drop_columns(names).select(before.column_names[:-1]).equals(before.drop(["image_error"]))
        for name in ("0.parquet", "1.parquet"):
            said, wanted = (read_record(str(tmp_path / each / name)) for each in (out, "expected"))
            assert said.read_by == wanted.read_by
            assert set(said.derived) == set(wanted.derived)
            assert (said.scores, said.remarks) == ({}, wanted.remarks)
            counts = ("rows", "failed", "reasons")
            assert [said.report[each] for each in counts] == [wanted.report[each] for each in counts]
    errors = dict(zip(table["key"].to_pylist(), table["image_error"].to_pylist(), strict=True))
    assert errors["cut"]  # has a format, and no blurriness

    # What is there is finished: for itself, for embed, and where embed has made it.
    opened.clear()
    again = score_output(tmp_path / "out", [ImageStatistics(names[1:])])
    assert (again.written, again.skipped, again.failed_before) == (0, 2, 3)
    assert score_output(tmp_path / "expected", [ImageStatistics(names)]).skipped == 2
    ColourReader()(ImageStatistics(names)(dataset)).save_metadata(tmp_path / "out")
    assert not opened
    assert read_output(tmp_path / "out").select(expected.column_names).equals(expected)


def test_with_heads_in_one_call_and_in_a_retry(tmp_path, monkeypatch):
    keys = write_dataset(tmp_path / "data", shards=1, bad={"00014": b"<html>"}, key="{shard:03d}1{sample}")
    out = tmp_path / "out"
    ColourReader()(ImageTextPairDataset.from_webdataset(tmp_path / "data")).save_metadata(out)
    before = read_output(out)
    steps = [ImageStatistics(["bytes", "grey"]), ReferenceSimilarity(out, "near")]
    opened = opens_of(monkeypatch)
    assert score_output(out, steps).failed == 1
    assert opened == [str(tmp_path / "data" / "00000.tar")]
    table = read_output(out)
    assert table.column_names == [*before.column_names[:-1], "bytes", "grey", "near", "image_error"]
    assert table.select(before.column_names).equals(before)
    good = table["image_error"].is_null().to_pylist()
    near = [value is not None and value > 0.999 for value in table["near"].to_pylist()]
    assert near == good and good.count(False) == 1

    write_tar(tmp_path / "data" / "00000.tar", [(f"{key}.png", image_of(key)) for key in keys])
    monkeypatch.setattr("curator_dask.outputs.retrying.check_unchanged", lambda *_: None)
    assert ColourReader().retry(out).failed == 0
    mended = read_output(out)
    assert dict(zip(mended["key"].to_pylist(), mended["bytes"].to_pylist(), strict=True)) == {
        key: len(image_of(key)) for key in keys
    }
    assert mended["grey"].null_count == mended["near"].null_count == 0


def test_an_output_whose_images_are_not_as_they_were(folder, tmp_path):
    write_tar(folder / "1.tar", [("cat.png", encoded(photograph("coffee")))])
    out = tmp_path / "out"
    ColourReader()(ImageStatistics(["grey"])(ImageTextPairDataset.from_webdataset(folder))).save_metadata(out)
    with pytest.raises(OutputError, match=r"'grey' made as 'grey .* dali .* this run makes .* pillow"):
        score_output(out, [ImageStatistics(["grey"], decoder="pillow")])
    assert score_output(out, [ImageStatistics(["grey"], decoder="pillow")], overwrite=True).written == 2
    before = read_output(out)
    (folder / "0.tar").unlink()
    write_tar(folder / "1.tar", [("cat.png", encoded(photograph("cat")))])
    summary = score_output(out, [ImageStatistics(["bytes"])])
    assert (summary.written, len(summary.failed_shards)) == (0, 2)
    said = sorted(summary.failed_shards.values())
    assert "1.tar: the shard has changed" in "".join(said)
    assert "0.tar" in "".join(said)
    assert read_output(out).equals(before)
    (others := tmp_path / "others").mkdir()
    pq.write_table(before.drop(["__url__"]).replace_schema_metadata(None), others / "0.parquet")
    with pytest.raises(
        OutputError, match=r"has no columns \['__url__'\], by which its rows find their images"
    ):
        score_output(others, [ImageStatistics(["bytes"])])


def test_a_class_keeps_why_it_is_lacking(folder, tmp_path):
    """Rows without vectors: what is said of all columns is said of the class alone, once others have values."""
    keys = ["cat", "broken", "cut"]
    rows = {"key": keys, "__url__": [str(folder / "0.tar")] * 3, "label": ["cat", None, None]}
    errors = [None, "no image: of its own", "cut off: after 9,000 bytes"]
    record = FileRecord("", rows=3, id_col="key", scores={"label": {"made_by": {}, "recipe": ""}})
    (tmp_path / "out").mkdir()
    write_table(str(tmp_path / "out" / "0.parquet"), pa.table({**rows, "image_error": errors}), record, None)
    for names in (["format"], ["format", "grey"]):
        score_output(tmp_path / "out", [ImageStatistics(names)])
        table = read_output(tmp_path / "out")
        assert table["format"].to_pylist() == ["PNG", None, "PNG"]
        said = [reasons_in(each) for each in table["image_error"].to_pylist()]
        assert [{each.column: each.text for each in row}.get("label") for row in said] == errors
    assert table["grey"].to_pylist() == [False, None, None]


def test_of_files_that_are_folders(tmp_path):
    (tmp_path / "data").mkdir()
    for name in CLEANVISION:
        (tmp_path / "data" / f"{name}.png").write_bytes(encoded(photograph(name)))
    dataset = ImageTextPairDataset.from_images(tmp_path / "data", samples_per_shard=2)
    ColourReader()(dataset).save_metadata(tmp_path / "out")
    assert score_output(tmp_path / "out", [ImageStatistics(["brightness"])]).rows == 3
    table = read_output(tmp_path / "out")
    found = dict(zip(table["key"].to_pylist(), table["brightness"].to_pylist(), strict=True))
    assert found == {name: pytest.approx(value, abs=1e-6) for name, value in CLEANVISION.items()}


def test_columns_that_cannot_be_made():
    records = {"a.parquet": FileRecord("", id_col="key", embeddings={"grey": {}})}
    with pytest.raises(ConfigError, match=r"its own named \['grey'\], which would be lost"):
        ImageStatistics(["grey"]).of_files(records)
    records |= {"b.parquet": FileRecord("", id_col="sha256")}
    with pytest.raises(OutputError, match=r"a.parquet has its keys in 'key', b.parquet in 'sha256'"):
        ImageStatistics(["phash"]).of_files(records)


def test_score_reads_images_as_embed_did(tmp_path, client):
    keys = write_dataset(tmp_path / "data", shards=1, samples=4)
    at = ["--scheduler-address", client.scheduler.address]
    model = ["--model", "test_vit", "--no-pretrained", "--decoder", "pillow"]
    embed = ["embed", tmp_path / "data", tmp_path / "out", *model, *at]
    assert run_here(*embed).returncode == 0
    score = ["score", tmp_path / "out", *at, "--statistics", "format,bytes", "--prefix", "image_"]
    done = run_here(*score)
    assert done.returncode == 0, done.stderr
    table = read_output(tmp_path / "out")
    assert table["image_format"].to_pylist() == ["PNG"] * 4
    sizes = {key: len(image_of(key)) for key in keys}
    assert dict(zip(table["key"].to_pylist(), table["image_bytes"].to_pylist(), strict=True)) == sizes
    assert "pillow" in read_record(str(tmp_path / "out" / "00000.parquet")).read_by["image_bytes"]
    assert "nothing to do" in run_here(*score).stdout
    (tmp_path / "data" / "00000.tar").unlink()
    done = run_here(*score, "--statistics", "grey")
    assert done.returncode == 1 and "00000.tar" in done.stdout


@pytest.mark.parametrize("names", [None, ["width", "format"], ["phash"]])
class TestStep(StepTests):
    @pytest.fixture
    def step(self, frame, names):
        return ImageStatistics(names)(self.dataset)._steps[-1]

    @pytest.fixture
    def frame(self, folder):
        self.dataset = ImageTextPairDataset.from_webdataset(folder)
        return self.dataset.compute()


def test_all_are_documented():
    for name in STATISTICS:
        assert f"``{name}``" in ImageStatistics.__doc__


class TestStage(StageTests):
    @pytest.fixture
    def stage(self):
        return ImageStatisticsStage(["width", "brightness", "phash"])


def test_a_stage_has_the_values_of_the_step(folder, tmp_path):
    names = ["width", "height", "aspect", *PIXELS]
    ImageStatistics(names, decoder="pillow")(ImageTextPairDataset.from_webdataset(folder)).save_metadata(
        tmp_path / "step"
    )
    stages = [
        FilePartitioningStage(str(folder)),
        ImageReaderStage(decoder="pillow"),
        ImageStatisticsStage(),
        ImageParquetWriterStage(tmp_path / "stage"),
    ]
    Pipeline("statistics", stages=stages).run()
    step, stage = (pq.read_table(tmp_path / name) for name in ("step", "stage"))
    assert stage.select(names).schema == step.select(names).schema
    # Of an image that is cut the header alone can be read, which a stage does not see.
    one, other = (table.filter(pc.not_equal(table["key"], "cut")) for table in (stage, step))
    assert one.select(["key", *names]).equals(other.select(["key", *names]))
    with pytest.raises(ConfigError, match=r"names=\['bytes'\]: expected a list of some of width"):
        ImageStatisticsStage(["bytes"])
