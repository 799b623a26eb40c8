"""Vectors of images whose boxes are covered, against the same images covered by hand, embedded alone."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skimage.data
import torch
from colours import read_output, write_tar
from PIL import Image
from text_detectors import banner, write_brightness_detector
from texts import make_pair
from typer.testing import CliRunner

from curator_dask.cli import app
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.decode.blurring import checked_boxes
from curator_dask.decode.covering import cover
from curator_dask.decode.transforms import TransformSpec
from curator_dask.errors import ConfigError, OutputError
from curator_dask.frames.parquet import read_record
from curator_dask.image.detection import DetectionModel
from curator_dask.image.embedders import ImageEmbedder
from curator_dask.image.statistics import ImageStatistics
from curator_dask.testing import StepTests

pytestmark = pytest.mark.usefixtures("in_this_process", "quiet_transformers")

SPEC = TransformSpec((12, 10), "bicubic", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), crop_mode="squash")


class Pixels(ImageEmbedder):
    """Embeds an image as its pixels, made smaller."""

    transform = SPEC

    def __init__(self, **settings):
        super().__init__(**{"batch_size": 4, "normalize_embeddings": False, "autocast": False, **settings})

    def load_embedding_model(self, device):
        return torch.nn.Flatten()


def halved(image):
    """A transform of the user's own."""
    return torch.from_numpy(np.array(image.resize((6, 6)), np.float32)).permute(2, 0, 1)


class OwnTransform(Pixels):
    transform = staticmethod(halved)


def encoded(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def covered_by_hand(image, boxes):
    """A PIL image with boxes (shares) covered, pixel by pixel of all masks."""
    pixels = np.asarray(image).copy()
    height, width = pixels.shape[:2]
    y, x = np.mgrid[:height, :width]
    found = []
    for left, top, right, bottom in boxes:
        columns, rows = (
            (np.floor(left * width), np.ceil(right * width)),
            (np.floor(top * height), np.ceil(bottom * height)),
        )
        columns, rows = np.clip(columns, 0, width), np.clip(rows, 0, height)
        inside = (x >= columns[0]) & (x < columns[1]) & (y >= rows[0]) & (y < rows[1])
        by = max(1, np.ceil(0.1 * min(columns[1] - columns[0], rows[1] - rows[0])))
        near = (x >= columns[0] - by) & (x < columns[1] + by) & (y >= rows[0] - by) & (y < rows[1] + by)
        found.append((inside, near))
    free = ~np.any([inside for inside, _ in found], axis=0) if found else np.ones((height, width), bool)
    made = pixels.copy()
    for inside, near in found:
        for seen in (near & free, free, np.ones_like(free)):
            if seen.any():
                made[inside] = np.floor(pixels[seen].astype(float).mean(axis=0) + 0.5)
                break
    return Image.fromarray(made)


def test_covering():
    """Boxes that overlap, lie at edges, on each other, beside the image or over all of it."""
    rng = np.random.default_rng(3)
    image = Image.fromarray(skimage.data.astronaut()).resize((97, 61))
    cases = [[], [(0, 0, 1, 1)], [(-0.2, 0.5, 0.4, 1.3)], [(1.1, 0, 1.3, 1)], [(0.5, 0.5, 0.5, 0.5)]]
    cases += [[(0, 0, 1, 0.5), (0, 0.4, 1, 1)], [(0.2, 0.2, 0.8, 0.8), (0.3, 0.3, 0.7, 0.7)]]
    for number in (1, 3, 12):
        corners = np.sort(rng.random((number, 2, 2)), axis=1).reshape(number, 4)
        cases.append([tuple(each) for each in corners])
    for boxes in cases:
        pixels = np.array(image)
        cover(pixels, checked_boxes(boxes))
        np.testing.assert_array_equal(pixels, np.asarray(covered_by_hand(image, boxes)), err_msg=str(boxes))
    text = banner((100, 40), [(20, 10, 60, 30)], background=(7, 90, 200))
    pixels = np.array(text)
    cover(pixels, [(0.2, 0.25, 0.6, 0.75)])
    assert (pixels == (7, 90, 200)).all()  # nothing of it is left


@pytest.fixture(scope="module")
def bright(tmp_path_factory):
    pytest.importorskip("cv2", reason="no OpenCV: pip install opencv-python-headless")
    return write_brightness_detector(tmp_path_factory.mktemp("bright"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A shard of banners with and without text, of several forms, and what they are to be seen as."""
    folder, images = tmp_path_factory.mktemp("pictures"), {}
    for number, size in enumerate([(200, 150), (150, 200), (130, 90), (200, 150), (160, 160)]):
        boxes = [(20 + 9 * number, 20, 100, 50)] if number != 3 else []
        photograph = Image.fromarray(skimage.data.coffee()).resize(size).point(lambda value: value // 3)
        text = banner(size, boxes, background="black")
        both = np.maximum(np.asarray(photograph), np.asarray(text))
        images[f"{number}.png"] = encoded(Image.fromarray(both))
    turned = Image.Exif()
    turned[0x0112] = 6
    images["turned.jpg"] = encoded(Image.fromarray(both[:110]), "JPEG", quality=95, exif=turned)
    images["grey.png"] = encoded(Image.fromarray(both[:100]).convert("L"))
    images["broken.png"] = images["1.png"][:90]
    order = np.random.default_rng(0).permutation(list(images))
    write_tar(folder / "0.tar", [(name, images[name]) for name in order])
    return folder, images


def vector_alone(folder, image, embedder):
    """Of a PIL image, by itself."""
    write_tar(folder / "alone.tar", [("a.png", encoded(image))])
    (row,) = embedder(ImageTextPairDataset.from_webdataset(folder)).compute().to_dict("records")
    assert row["image_error"] is None
    return np.asarray(row["image_embedding"], np.float32)


def seen(data):
    from PIL import ImageOps

    return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")


def check_rows(rows, images, folder, kind=Pixels, boxes="detected_boxes"):
    """Each covered vector is that of the image covered by hand; gives how many have boxes."""
    differ = 0
    for row in rows:
        key = row["key"]
        if key == "broken":
            assert row["covered"] is None and row[boxes] is None and row["image_error"]
            continue
        assert row["image_error"] is None
        image = seen(next(data for name, data in images.items() if name.startswith(f"{key}.")))
        by_hand = covered_by_hand(image, row[boxes])
        expected = vector_alone(folder, by_hand, kind())
        np.testing.assert_allclose(row["covered"], expected, atol=1e-6)
        if len(row[boxes]):
            assert np.abs(expected - row["image_embedding"]).max() > 0.01
            differ += 1
        else:
            np.testing.assert_array_equal(row["covered"], row["image_embedding"])
    return differ


@pytest.mark.parametrize("kind", [Pixels, OwnTransform])
def test_in_the_pass_that_finds_the_boxes(pictures, bright, tmp_path, kind):
    folder, images = pictures
    out, dataset = tmp_path / "out", ImageTextPairDataset.from_webdataset(folder)

    def save(finds, *before, **options):
        made = finds(before[0](dataset) if before else dataset)
        covered = kind(cover="detected_boxes", image_embedding_column="covered")(kind()(made))
        return covered.save_metadata(out, **options)

    finds = DetectionModel(bright)
    summary = save(finds)
    assert (summary.rows, summary.failed) == (len(images), 1)
    table = read_output(out)
    assert check_rows(table.to_pylist(), images, tmp_path / "alone", kind) == 6
    assert table.column_names.index("detected_boxes") < table.column_names.index("covered")
    assert save(finds).skipped == 1
    if kind is not Pixels:
        return
    record = read_record(str(out / "0.parquet"), None).embeddings["covered"]
    assert record["cover"] == "detected_boxes covered 1"
    assert record["columns"].startswith("detected_boxes [")
    # What is there of the same boxes is taken over.
    before = (out / "0.parquet").stat().st_mtime_ns
    assert save(finds, ImageStatistics(["phash"])).written == 1
    assert (out / "0.parquet").stat().st_mtime_ns > before
    assert read_output(out)["covered"].equals(table["covered"])
    # Other boxes are not.
    more = DetectionModel(bright, threshold=0.9)
    with pytest.raises(OutputError, match=r"detected_boxes' was made with detection scores above 0.6"):
        save(more)
    more(dataset).save_metadata(out, overwrite=True)
    with pytest.raises(OutputError, match=r"column 'covered' was made with columns detected_boxes \["):
        save(more)
    save(more, overwrite=True)
    assert 0 <= check_rows(read_output(out).to_pylist(), images, tmp_path / "alone") < 6


def test_boxes_of_the_dataset(pictures, tmp_path):
    """Which nobody else describes: they are compared."""
    folder, images = tmp_path / "data", pictures[1]
    write_tar(folder / "0.tar", list(images.items()))
    boxes = {
        "0": [[0.1, 0.1, 0.5, 0.4], [0.3, 0.2, 0.9, 0.9]],
        "1": None,
        "2": [[20.0, 10.0, 90.0, 60.0]],
        "3": [],
        "4": [[0.0, 0.0, 1.0, 1.0]],
        "turned": [[0.2, 0.2, 0.6, 0.3]],
        "grey": [[0.0, 0.5, 0.5, 0.8]],
        "broken": [],
    }

    def write(boxes):
        rows = {"key": [*boxes], "mine": pa.array(boxes.values(), pa.list_(pa.list_(pa.float64())))}
        pq.write_table(pa.table(rows), folder / "0.parquet")
        dataset = ImageTextPairDataset.from_webdataset(folder)
        covered = Pixels(cover="mine", image_embedding_column="covered")(Pixels()(dataset))
        return covered.save_metadata(tmp_path / "out")

    assert write(boxes).failed == 3
    rows = {row["key"]: row for row in read_output(tmp_path / "out").to_pylist()}
    assert rows["1"]["image_error"] == "[covered] boxes: null, nobody has looked at the image"
    assert rows["2"]["image_error"].startswith("[covered] boxes: expected shares of width and height")
    assert all(rows[key]["covered"] is None and rows[key]["image_embedding"] for key in "12")
    assert rows["broken"]["covered"] is None and "[covered]" not in rows["broken"]["image_error"]
    good = [row for key, row in rows.items() if key not in ("1", "2", "broken")]
    assert check_rows(good, images, tmp_path / "alone", boxes="mine") == 4
    again = {**boxes, "1": [[0.0, 0.0, 0.4, 0.4]], "2": [], "0": [[0.6, 0.6, 0.7, 0.8]]}
    assert write(again).failed == 1
    rows = [row for row in read_output(tmp_path / "out").to_pylist() if row["key"] != "broken"]
    assert check_rows(rows, images, tmp_path / "alone", boxes="mine") == 5


@pytest.mark.parametrize("first", ["covered", "detected_boxes"])
def test_a_retry_mends_boxes_and_vectors(pictures, bright, tmp_path, first):
    """Whichever is tried first: with the vectors the boxes are found again, and before them."""
    folder, images = pictures
    out, most = tmp_path / "out", {"max_pixels": 20_000}
    made = Pixels(**most)(DetectionModel(bright, **most)(ImageTextPairDataset.from_webdataset(folder)))
    covers = {"cover": "detected_boxes", "image_embedding_column": "covered"}
    before = Pixels(**covers, **most)(made).save_metadata(out)
    assert 2 < before.failed < before.rows
    finds = DetectionModel(bright)
    if first != "covered":
        assert finds.retry(out).failed == 1
    mended = Pixels(**covers).retry(out)
    assert (mended.rows, mended.failed) == (before.failed, 1)
    Pixels().retry(out)
    assert check_rows(read_output(out).to_pylist(), images, tmp_path / "alone") == 6


def test_commands(pictures, bright, client, tmp_path):
    """T-MARS' score is that of a dataset of the images covered by hand."""
    model, images = tmp_path / "clip", pictures[1]
    make_pair(model, "clip")
    at = ["--scheduler-address", client.scheduler.address]

    def run(*arguments):
        done = CliRunner().invoke(app, [*map(str, arguments)])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    def write(folder, images):
        pairs = [[(name, data), (f"{name.split('.')[0]}.txt", b"a dog")] for name, data in images.items()]
        write_tar(tmp_path / folder / "0.tar", [each for pair in pairs for each in pair])
        return tmp_path / folder

    data, out = write("data", images), tmp_path / "out"
    detect = ["detect", data, out, "--model", bright, "--prefix", "text", *at]
    embed = ["embed", data, out, "--model", model, "--cover", "text_boxes", "--column", "covered", *at]
    done = run(*embed)
    assert done.exit_code == 2 and "has no such column" in done.stderr
    assert run("embed", data, out, "--model", model, *at).exit_code == 0
    assert run(*detect).exit_code == 0
    stamp = (out / "0.parquet").stat().st_mtime_ns
    assert run(*embed).exit_code == 0 and run(*embed, "--json", tmp_path / "told").exit_code == 0
    told = json.loads((tmp_path / "told").read_text())
    assert (told["skipped"], told["rows_before"], told["failed_before"]) == (1, len(images), 1)
    assert (out / "0.parquet").stat().st_mtime_ns > stamp
    score = ["score", out, "--clip-score", model, *at]
    assert run(*score).exit_code == 0
    covered = ["--column", "covered", "--clip-score-column", "clip_score_covered"]
    assert run(*score, *covered).exit_code == 0
    rows = {row["key"]: row for row in read_output(out).to_pylist()}
    by_hand = {
        f"{key}.png": encoded(covered_by_hand(seen(images[name]), rows[key]["text_boxes"]))
        for name in images
        if (key := name.split(".")[0]) != "broken"
    }
    alone, scored = write("by_hand", by_hand), tmp_path / "scored"
    assert run("embed", alone, scored, "--model", model, *at).exit_code == 0
    assert run("score", scored, "--clip-score", model, *at).exit_code == 0
    for row in read_output(scored).to_pylist():
        mine = rows[row["key"]]
        assert mine["clip_score_covered"] == pytest.approx(row["clip_score"], abs=1e-5)
        has_text = mine["text_number"] > 0
        assert (abs(mine["clip_score"] - mine["clip_score_covered"]) > 1e-4) == has_text
    assert rows["broken"]["clip_score_covered"] is None
    # Other boxes there: what was covered says of which it is.
    assert run(*detect, "--threshold", 0.9, "--overwrite").exit_code == 0
    done = run(*embed)
    assert done.exit_code == 2 and "'covered' was made with columns text_boxes [" in done.stderr


def test_wrong_arguments(pictures, tmp_path):
    for arguments, message in (
        ({"cover": ""}, r"cover='' \(--cover\): expected the column"),
        ({"orientation": "exif-column"}, r"boxes to be covered .* expected 'stored'"),
        ({"decode_scale": "fast"}, r"boxes are covered .* expected 'exact'"),
    ):
        with pytest.raises(ConfigError, match=message):
            Pixels(**{"cover": "detected_boxes", **arguments})
    dataset = ImageTextPairDataset.from_webdataset(pictures[0])
    with pytest.raises(
        ConfigError,
        match=r"has no such column.*`curator-dask detect` into the same OUTPUT.*--prefix detected`",
    ):
        Pixels(cover="detected_boxes")(dataset)
    with pytest.raises(ConfigError, match="expected lists of boxes, each a list of four numbers, found"):
        Pixels(cover="key")(dataset)
    finds = DetectionModel(tmp_path, image_member="first.png")
    with pytest.raises(ConfigError, match=r"the boxes are found in image_member='first.png', and"):
        Pixels(cover="detected_boxes")(finds(dataset))


class TestStep(StepTests):
    @pytest.fixture
    def frame(self, pictures):
        boxes = [[[0.1, 0.1, 0.5, 0.5]], []]
        frame = ImageTextPairDataset.from_webdataset(pictures[0]).compute()
        self.dataset = ImageTextPairDataset.from_webdataset(pictures[0])
        kind = pa.list_(pa.list_(pa.float32()))
        frame["mine"] = pa.array([boxes[number % 2] for number in range(len(frame))], kind).to_pandas()
        return frame

    @pytest.fixture
    def step(self, frame):
        return Pixels(cover="mine")._step("key", [], None)


def test_boxes_of_a_dataset_that_a_model_has_found(pictures, bright, tmp_path):
    """In the dataset's own Parquet, where the vectors go, too."""
    write_tar(tmp_path / "0.tar", list(pictures[1].items()))
    keys = [name.partition(".")[0] for name in pictures[1]]
    pq.write_table(pa.table({"key": keys}), tmp_path / "0.parquet")

    def dataset():
        return ImageTextPairDataset.from_webdataset(tmp_path)

    def embed():
        return Pixels(cover="detected_boxes", image_embedding_column="covered")(dataset()).save_metadata(
            tmp_path
        )

    DetectionModel(bright)(dataset()).save_metadata(tmp_path)
    assert (embed().written, embed().skipped) == (1, 1)
    made = read_record(str(tmp_path / "0.parquet"), None).embeddings["covered"]
    assert made["columns"].startswith("detected_boxes [")
    DetectionModel(bright, threshold=0.95)(dataset()).save_metadata(tmp_path, overwrite=True)
    with pytest.raises(
        OutputError, match=r"made with columns detected_boxes \[.* has columns detected_boxes \["
    ):
        embed()
