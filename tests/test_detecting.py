"""What models find in images against transformers' own pipelines; in files, runs and retries."""

from __future__ import annotations

import functools
import io
import json
import shutil
import tarfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skimage.data
import transformers
from colours import ColourReader, read_output, write_dataset, write_tar
from detectors import ASKED, write_detector
from PIL import Image
from typer.testing import CliRunner

from curator_dask.cli import app
from curator_dask.curation import Recipe, curate
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, OutputError, WeightsError
from curator_dask.frames.parquet import read_record
from curator_dask.image.detection import DetectionModel
from curator_dask.image.detection.step import covered
from curator_dask.image.embedders.making import made_again
from curator_dask.image.statistics import ImageStatistics
from curator_dask.info import describe_output
from curator_dask.models import detector
from curator_dask.models.detecting import DetectionSpec
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.exporting import export_output
from curator_dask.outputs.filtering import filter_output
from curator_dask.outputs.settings_there import find_settings
from curator_dask.rows.found import some_of
from curator_dask.rows.remarks import of_kept
from curator_dask.testing import StepTests

pytestmark = pytest.mark.usefixtures("in_this_process", "quiet_transformers")

PROMPTS = ["a human face", "dog", "a license plate"]
COLUMNS = [f"detected_{each}" for each in ("boxes", "labels", "scores", "number", "area")]


@pytest.fixture(scope="module")
def yolos(tmp_path_factory):
    return write_detector(tmp_path_factory.mktemp("yolos"), "yolos")


def encoded(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def picture_of(key, size=None):
    """Blocks of colours, by the digits of a key."""
    rng = np.random.default_rng(int("".join(sign for sign in key if sign.isdigit())))
    blocks = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
    return encoded(blocks.resize(size or (24 + len(key) % 5, 20), Image.Resampling.NEAREST))


@functools.lru_cache(2)
def pipeline_of(folder, kind):
    task = "zero-shot-object-detection" if kind in ASKED else "object-detection"
    return transformers.pipeline(task, model=str(folder))


def transformers_own(folder, kind, image, threshold=0.3):
    """What a user of transformers gets of a PIL image alone, the likeliest first, boxes within the image."""
    asked = {"candidate_labels": PROMPTS} if kind in ASKED else {}
    found = pipeline_of(folder, kind)(image, threshold=threshold, **asked)
    return sorted(found, key=lambda each: -each["score"])


def check_row(row, own, image):
    assert row["image_error"] is None, row
    assert list(row["detected_labels"]) == [each["label"] for each in own]
    np.testing.assert_allclose(row["detected_scores"], [each["score"] for each in own], atol=1e-4)
    size = np.array(image.size * 2)
    boxes = np.array([list(each) for each in row["detected_boxes"]]).reshape(-1, 4)
    expected = [[each["box"][name] for name in ("xmin", "ymin", "xmax", "ymax")] for each in own]
    expected = np.clip(np.array(expected).reshape(-1, 4), 0, size)
    assert np.abs(boxes * size - expected).max(initial=0) <= 1.001  # the pipeline's are whole numbers
    assert row["detected_number"] == len(own) and row["detected_area"] == pytest.approx(covered(boxes))


def rows_of(folder, *arguments, **options):
    """By key, the rows that a model gives of the images of a folder."""
    frame = DetectionModel(*arguments, **options)(ImageTextPairDataset.from_webdataset(folder)).compute()
    return {row["key"]: row for row in frame.to_dict("records")}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A shard of images of several sizes and forms in a random order, and what they are to be seen as."""
    folder, images = tmp_path_factory.mktemp("photographs"), {}
    for name in ("astronaut", "coffee"):
        for size in ((120, 90), (67, 64), (90, 120)):
            image = Image.fromarray(getattr(skimage.data, name)()).resize(size)
            images[f"{name}{size[0]}.jpg"] = encoded(image, "JPEG", quality=95)
    turned = Image.Exif()
    turned[0x0112] = 6
    images["turned.jpg"] = encoded(image, "JPEG", quality=95, exif=turned)
    images["grey.png"] = encoded(image.convert("L"))
    images["cmyk.jpg"] = encoded(image.convert("CMYK"), "JPEG", quality=95)
    images["dot.png"] = encoded(Image.new("RGB", (1, 1), (9, 200, 30)))
    order = np.random.default_rng(0).permutation(list(images))
    write_tar(folder / "0.tar", [(name, images[name]) for name in order])
    found = {}
    for name, data in images.items():
        seen = Image.open(io.BytesIO(data))
        found[name.partition(".")[0]] = transformers.image_utils.load_image(seen)  # as its pipelines do
    return folder, found


@pytest.mark.parametrize(
    "kind",
    [
        *("detr", "yolos", "rt-detr", "owlv2", "grounding-dino"),
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in ("conditional-detr", "deformable-detr", "owlvit")
        ),
    ],
)
def test_what_is_found_is_transformers_own(photographs, tmp_path, kind):
    """Whatever images lie beside one in a batch: four at a time, of sizes that a batch would pad."""
    folder, images = photographs
    model = write_detector(tmp_path / kind, kind)
    own = {key: transformers_own(model, kind, image) for key, image in images.items()}
    told = {json.dumps(each) for each in own.values() if each}
    assert len(told) > 4  # a row that got another's would show
    found = rows_of(folder, model, threshold=0.3, prompts=PROMPTS if kind in ASKED else (), batch_size=4)
    for key, image in images.items():
        check_row(found[key], own[key], image)


def test_only_some_classes_and_thresholds(photographs, yolos):
    folder, images = photographs
    all_of_them = rows_of(folder, yolos, threshold=0.0)
    chosen = rows_of(folder, yolos, threshold=0.9, only=["Face", "car"], prefix="seen", batch_size=1)
    counts = set()
    for key in images:
        every, row = all_of_them[key], chosen[key]
        pairs = zip(every["detected_labels"], every["detected_scores"], strict=True)
        wanted = [
            number for number, (label, score) in enumerate(pairs) if label in ("face", "car") and score > 0.9
        ]
        assert list(row["seen_labels"]) == [every["detected_labels"][number] for number in wanted]
        expected = [list(every["detected_boxes"][number]) for number in wanted]
        found = np.array([list(each) for each in row["seen_boxes"]]).reshape(-1, 4)
        np.testing.assert_allclose(found, np.array(expected).reshape(-1, 4), atol=1e-5)
        counts.add(len(wanted))
    assert 0 in counts and len(counts) > 1
    nothing = next(row for row in chosen.values() if not row["seen_number"])
    assert list(nothing["seen_boxes"]) == [] and nothing["seen_area"] == 0 and nothing["image_error"] is None


def test_the_area_that_boxes_cover():
    rng = np.random.default_rng(0)
    assert covered(np.zeros((0, 4), np.float32)) == 0
    for number in (1, 2, 7, 30):
        corners = rng.integers(0, 41, (number, 2, 2))
        boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
        grid = np.zeros((40, 40), bool)
        for x0, y0, x1, y1 in boxes:
            grid[y0:y1, x0:x1] = True
        assert covered((boxes / 40).astype(np.float32)) == pytest.approx(grid.mean(), abs=1e-6)


@pytest.mark.usefixtures("no_idle_models")
def test_memory_that_runs_out_and_images_that_fail(yolos, photographs, monkeypatch, caplog):
    images = [np.asarray(image) for image in photographs[1].values()]
    model = DetectionSpec(str(yolos)).build()
    assert model._room.limit is None
    expected, work, sizes = model(images, 5), model._together, []

    def same(found):
        assert [each.labels for each in found] == [each.labels for each in expected]
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-5)

    def full(batch):
        sizes.append(len(batch))
        if len(batch) > 1:
            raise MemoryError("out of memory")
        return work(batch)

    monkeypatch.setattr(model, "_together", full)
    same(model(images, 5))
    assert sizes[:3] == [4, 2, 1] and {*sizes[3:]} == {1}  # what was halved stays so
    # Wider than 128 times its height it would be no pixel high.
    wide = model([images[0], np.zeros((1, 900, 3), np.uint8)], 5)
    assert wide[0].reason is None and wide[1].reason.startswith("not prepared: the model's processor failed")
    monkeypatch.setattr(detector, "_ALIKE", -1)
    assert DetectionSpec(str(yolos)).build()._room.limit == 1


def test_nan_is_no_image_without_things(yolos, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(yolos, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["class_labels_classifier.layers.2.bias"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    write_tar(tmp_path / "data" / "0.tar", [("a.png", picture_of("1"))])
    row = rows_of(tmp_path / "data", folder)["a"]
    assert row["image_error"].startswith("not finite: the model (float32) gave NaN")
    assert all(np.all(pd.isna(row[name])) for name in COLUMNS)


def test_wrong_arguments_and_models(yolos, tmp_path):
    for arguments, message in (
        ({"only": ["person"], "prompts": ["a dog"]}, "give one"),
        ({"only": "person"}, r"only \(--only\): expected different texts"),
        ({"prompts": [" "]}, r"prompts \(--prompt\): expected different texts"),
        ({"threshold": 1.0}, "--threshold"),
        ({"prefix": ""}, "--prefix"),
        ({"dtype": "int8"}, "--dtype"),
        ({"orientation": "exif-column"}, "no argument 'orientation'"),
    ):
        with pytest.raises(ConfigError, match=message):
            DetectionModel(yolos, **arguments)
    with pytest.raises(ConfigError, match="expected a repository of the hub as org/repo, or a folder"):
        DetectionModel("resnet50")
    with pytest.raises(ConfigError, match=r"has no class 'persn' \(did you mean person"):
        DetectionSpec(str(yolos), only=("persn",)).build()
    with pytest.raises(ConfigError, match=r"finds its own classes, and takes no prompts"):
        DetectionSpec(str(yolos), prompts=("dog",)).build()
    owl = write_detector(tmp_path / "owl", "owlvit")
    with pytest.raises(ConfigError, match=r"owlvit looks for what it is asked: give prompts \(--prompt\)"):
        DetectionSpec(str(owl)).build()
    (owl / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match="cannot load it by AutoTokenizer"):
        DetectionSpec(str(owl), prompts=("dog",)).build()
    folder = shutil.copytree(yolos, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(WeightsError, match=r"the weights do not fit its config\.json"):
        DetectionSpec(str(folder)).build()
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "vit"}))
    with pytest.raises(ConfigError, match="'vit', which is none of transformers' that find things in images"):
        DetectionSpec(str(folder)).build()


# In files, runs and retries


@pytest.fixture
def data(tmp_path):
    """Rows and samples in two random orders, each image of its key, and two that cannot be used."""
    keys = [f"{shard:05d}{sample:04d}" for shard in range(2) for sample in range(6)]
    images = {key: picture_of(key) for key in keys}
    write_dataset(
        tmp_path / "data", shards=2, samples=6, bad={**images, "000000004": b"<html>", "000010001": b""}
    )
    return tmp_path / "data"


@functools.cache
def own_of(model, key):
    image = Image.open(io.BytesIO(picture_of(key)))
    return transformers_own(model, "yolos", image), image


def check_rows(table, model):
    told = set()
    for row in table.to_pylist():
        if row["image_error"] is not None:
            assert all(row[name] is None for name in COLUMNS)
            continue
        own, image = own_of(model, row["key"])
        check_row(row, own, image)
        told.add(str(own))
    assert len(told) > 5  # a row of another would show


def line_of(table, prefix="detected"):
    """What a summary says of an output, as pandas counts it."""
    frame = table.to_pandas()
    seen = frame[f"{prefix}_labels"].dropna()
    counts = seen.map(set).explode().value_counts()
    order = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    named = ", ".join(f"{label} {count}" for label, count in order)
    return f"  {prefix}: at least one in {(seen.map(len) > 0).sum()} of {len(seen)} images: {named}"


def finds(model, **options):
    return DetectionModel(model, **{"threshold": 0.3, "batch_size": 4, **options})


def test_in_the_pass_that_embeds(data, yolos, tmp_path):
    dataset, out = ImageTextPairDataset.from_webdataset(data), tmp_path / "out"

    def save(*statistics):
        return ColourReader()(finds(yolos)(ImageStatistics(["phash", *statistics])(dataset))).save_metadata(
            out
        )

    summary = save()
    assert (summary.rows, summary.failed) == (12, 2)
    table = read_output(out)
    assert table.schema.field("detected_boxes").type.value_type.value_type == pa.float32()
    assert table.schema.field("detected_scores").type.value_type == pa.float64()
    check_rows(table, yolos)
    assert "of 10 images: " in line_of(table) and line_of(table) in str(summary).splitlines()
    assert save().skipped == 2
    more = save("dhash")
    assert more.written == 2 and more.detections == summary.detections  # boxes are taken over
    assert read_output(out).select(COLUMNS).equals(table.select(COLUMNS))
    made = read_record(str(out / "00000.parquet"), None).models["detected_boxes"]
    assert made["model"].startswith("YolosForObjectDetection [") and made["detection"] == "scores above 0.3"
    with pytest.raises(OutputError, match=r"was made with detection scores above 0.3; .* 0.4.*--prefix"):
        finds(yolos, threshold=0.4)(dataset).save_metadata(out)
    # What says of columns what they are is not led astray by lists.
    info = describe_output(out)
    assert line_of(table) in str(info).splitlines()
    kinds = {column.name: (column.kind, column.made_by) for column in info.columns}
    assert {kinds[name][0] for name in COLUMNS[:3]} == {"other"} and kinds["detected_number"][0] == "number"
    assert kinds["detected_boxes"][1][0].startswith("detect: YolosForObjectDetection")
    filled = {column.name: column.filled for column in info.columns}
    assert [filled[name] for name in COLUMNS] == [None, None, None, 10, 10]  # of lists footers do not say it
    assert "detect: YolosForObjectDetection" in str(info)


def test_filters_by_label_number_and_size(data, yolos, tmp_path):
    dataset, out = ImageTextPairDataset.from_webdataset(data), tmp_path / "out"
    both = finds(yolos, threshold=0.95, prefix="sure")(finds(yolos, threshold=0.95)(dataset)).save_metadata(
        out
    )
    for prefix in ("detected", "sure"):
        assert line_of(read_output(out), prefix) in str(both).splitlines()
    rows = [row for row in read_output(out).to_pylist() if row["image_error"] is None]
    areas = sorted(row["detected_area"] for row in rows)
    middle = float(f"{areas[5]:.6f}") - 1e-4
    divided = 0
    for where, passes in (
        ("detected_number = 0", lambda row: row["detected_number"] == 0),
        (f"detected_area > {middle}", lambda row: row["detected_area"] > middle),
        ("list_contains(detected_labels, 'person')", lambda row: "person" in row["detected_labels"]),
        (
            "NOT list_has_any(detected_labels, ['person', 'dog'])",
            lambda row: not {*row["detected_labels"]} & {"person", "dog"},
        ),
        (
            "len([x for x in detected_labels if x = 'person']) >= 2",
            lambda row: row["detected_labels"].count("person") >= 2,
        ),
        ("list_max(detected_scores) > 0.98", lambda row: max(row["detected_scores"], default=0) > 0.98),
    ):
        expected = {row["key"] for row in rows if passes(row)}
        divided += 0 < len(expected) < len(rows)
        summary = filter_output(out, tmp_path / "some", where=where, overwrite=True)
        assert summary.kept == len(expected), where
        if expected:
            assert {*read_output(tmp_path / "some")["key"].to_pylist()} == expected
    assert divided > 2
    assert "at least one" not in str(describe_output(tmp_path / "some"))  # it was said of other rows


@pytest.mark.parametrize("with_vectors", [False, True])
def test_a_retry_mends_the_boxes(tmp_path, yolos, with_vectors):
    """Images of 28 by 20 pixels fail at first, of 24 by 20 not."""
    keys = [f"{'x' * number}{shard}{number:04d}" for shard in (3, 4) for number in range(5)]
    for shard in (0, 1):
        write_tar(
            tmp_path / "data" / f"{shard}.tar",
            [(f"{key}.png", picture_of(key)) for key in keys[5 * shard :][:5]],
        )
    dataset, out = ImageTextPairDataset.from_webdataset(tmp_path / "data"), tmp_path / "out"
    made = finds(yolos, max_pixels=20 * 26)(dataset)
    first = (ColourReader(max_pixels=20 * 26)(made) if with_vectors else made).save_metadata(out)
    assert 0 < first.failed < first.rows
    if with_vectors:
        summary = ColourReader(max_pixels=1000).retry(out)
    else:
        (settings,) = find_settings(str(out)).values()
        summary = made_again({**settings, "max_pixels": 1000}).retry(out)
        assert f"{first.failed} have boxes now" in str(summary)
    assert (summary.rows, summary.failed) == (first.failed, 0)
    check_rows(read_output(out), yolos)
    assert line_of(read_output(out)) in str(describe_output(out)).splitlines()


def test_what_is_found_is_blurred_in_the_image_that_it_was_found_in(yolos, tmp_path):
    """And not in another of the same sample."""
    members = [("a.image.png", picture_of("1", (160, 120))), ("a.first.png", picture_of("2", (160, 120)))]
    write_tar(tmp_path / "data" / "0.tar", sorted(members))
    out = tmp_path / "out"
    made = finds(yolos, image_member="image.png", threshold=0.9)
    made(ImageTextPairDataset.from_webdataset(tmp_path / "data")).save_metadata(out)
    assert read_output(out)["detected_number"].to_pylist()[0] > 0
    for wrong in ({}, {"image_member": "first.png"}):
        with pytest.raises(
            ConfigError, match=r"its boxes were found with image_member='image.png' \(--image"
        ):
            export_output(out, tmp_path / "new", ExportOptions(blur="detected_boxes", **wrong))
    options = ExportOptions(blur="detected_boxes", image_member="image.png")
    summary = export_output(out, tmp_path / "new", options)
    assert (summary.images_blurred, summary.images_beside_blurred) == (1, 1)
    with tarfile.open(tmp_path / "new" / "00000.tar") as tar:
        found = {each.name: tar.extractfile(each).read() for each in tar}
    assert found["a.first.png"] == dict(members)["a.first.png"]
    assert found["a.image.png"] != dict(members)["a.image.png"]


def test_it_is_made_again_from_its_settings(yolos):
    model = finds(yolos, gray16="pillow", prefix="faces", only=["face"])
    again = made_again(json.loads(json.dumps(model.settings())))
    assert isinstance(again, DetectionModel) and again.step("key") == model.step("key")


class TestStep(StepTests):
    @pytest.fixture
    def step(self, frame, yolos):
        return finds(yolos)(self.dataset)._steps[-1]

    @pytest.fixture
    def frame(self, data):
        self.dataset = ImageTextPairDataset.from_webdataset(data).filter("key < '000010000'")
        return self.dataset.compute()


def test_the_command_on_workers_and_in_a_recipe(data, yolos, client, tmp_path):
    out, at = tmp_path / "out", ["--scheduler-address", client.scheduler.address]

    def run(*arguments):
        done = CliRunner().invoke(app, [*map(str, arguments)])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    command = [
        "detect",
        data,
        out,
        "--model",
        yolos,
        "--threshold",
        0.3,
        *at,
        "--json",
        tmp_path / "told.json",
    ]
    done = run(*command)
    assert done.exit_code == 0, done.stderr
    told = json.loads((tmp_path / "told.json").read_text())
    assert (told["rows"], told["failed"], told["written"]) == (12, 2, 2)
    check_rows(read_output(out), yolos)
    assert run(*command).exit_code == 0
    assert json.loads((tmp_path / "told.json").read_text())["skipped"] == 2
    assert run("detect", data, out, "--model", yolos, "--only", "cat", *at).exit_code == 2
    where = "list_contains(detected_labels, 'person')"
    recipe = Recipe(
        detect=[{"model_name": str(yolos), "threshold": 0.3}],
        where=where,
        export={"card": True, "metadata": "json"},
    )
    summary = curate(data, tmp_path / "curated", recipe)
    table = read_output(tmp_path / "curated" / "embeddings")
    check_rows(table, yolos)
    labels = [each for each in table["detected_labels"].to_pylist() if each is not None]
    assert summary.kept == sum("person" in each for each in labels) > 0 and summary.failed == 2
    card = (tmp_path / "curated" / "shards" / "README.md").read_text(encoding="utf-8")
    assert "what `YolosForObjectDetection [" in card
    exported = ImageTextPairDataset.from_webdataset(
        tmp_path / "curated" / "shards", metadata="tar", nested_json=True
    )
    rows = exported.compute()
    for key, text in zip(rows["key"], rows["detected_boxes"], strict=True):
        own, _ = own_of(yolos, key)
        assert len(json.loads(text) if isinstance(text, str) else text) == len(own)
    with pytest.raises(ConfigError, match="two models would make 'detected_boxes'"):
        Recipe(detect=[{"model_name": "org/a"}, {"model_name": "org/b"}])


def test_the_datasets_own_columns_are_not_lost(tmp_path, yolos):
    write_dataset(tmp_path, shards=1, samples=3)
    path = tmp_path / "00000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("detected_boxes", pa.array(["mine"] * len(table))), path)
    with pytest.raises(ConfigError, match=r"its own named \['detected_boxes'\].*--prefix faces"):
        finds(yolos)(ImageTextPairDataset.from_webdataset(tmp_path))


def test_area_of_very_many_boxes():
    """Against squares of a grid; a model whose threshold is low finds thousands."""
    rng = np.random.default_rng(1)
    cells = rng.integers(0, 56, (3000, 2))
    cells = np.hstack([cells, cells + rng.integers(0, 9, (3000, 2))])
    for some in (cells, cells[:60]):
        grid = np.zeros((64, 64), bool)
        for left, top, right, bottom in some:
            grid[top:bottom, left:right] = True
        assert covered((some / 64).astype(np.float32)) == pytest.approx(grid.mean())


def test_what_was_found_before_is_told_as_long_as_its_columns_are_there():
    fact = {
        "count": 5,
        "examples": ["1"],
        "by": {"seen: a": 3, "found: a": 2, "label: a: cat": 2, "seen: b": 2},
    }
    asked = {"count": 3, "examples": [], "by": {"fits": 3, "little: fits": 1, "not asked: mark": 2}}
    before = {"x.tar": {"detections": fact, "answers": asked, "corrupt": {"count": 1, "examples": ["1"]}}}
    kept = of_kept(before, {"a_boxes", "fits_answer", "key"})["x.tar"]
    assert kept["detections"] == {
        "count": 3,
        "examples": [],
        "by": {"seen: a": 3, "found: a": 2, "label: a: cat": 2},
    }
    assert kept["answers"] == {"count": 3, "examples": [], "by": {"fits": 3, "little: fits": 1}}
    assert not of_kept(before, {"key"}) and "corrupt" not in kept
    assert of_kept(before, {"a_boxes", "b_boxes"})["x.tar"]["detections"] == fact
    # Captions do not say of which column they are: a run that makes some tells its own alone.
    written = {"x.tar": {"captions": {"count": 4, "examples": [], "by": {"cut at 5 tokens": 4}}}}
    for now, told in (({}, written), ({"x.tar": {"captions": {}}}, {})):
        assert of_kept(written, {"old", "old_cut"}, now) == told


def test_a_reason_is_said_once_of_rows_that_have_the_same():
    said = [f"00000 {key}: missing: no sample '{key}' in the tar" for key in ("07", "13")]
    assert some_of([*said, "00001 20: missing: cut"]) == f"{said[0]}; 00000 13; 00001 20: missing: cut"
    assert some_of([]) == ""
