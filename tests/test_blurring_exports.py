"""Exports that blur, in all forms: no sharp picture of what was found leaves, and counts are of what is there."""

from __future__ import annotations

import io
import json
import tempfile
import time
import tracemalloc
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import write_tar
from PIL import Image
from test_blurring import BOX, check_blurred, held, saved, textured

from curator_dask.datasets import ImageTextPairDataset
from curator_dask.decode.blurring import blur
from curator_dask.errors import ConfigError, OutputError
from curator_dask.frames.record import FileRecord
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.exporting import export_output

pytestmark = pytest.mark.usefixtures("in_this_process")

BOXES = pa.list_(pa.list_(pa.float32()))
PIXELS = [40.0, 30.0, 100.0, 90.0]


def picture(number: int) -> bytes:
    return saved(textured(seed=number), "JPEG", quality=95)


def dataset_of(folder, boxes, **columns):
    """A shard of samples ``k0`` and so on, with their boxes and other columns beside it."""
    keys = [f"k{number}" for number in range(len(boxes))]
    members = []
    for number, key in enumerate(keys):
        members += [(f"{key}.jpg", picture(number)), (f"{key}.json", json.dumps({"is": key}).encode())]
    write_tar(folder / "0.tar", members)
    pq.write_table(
        pa.table({"key": keys, "b_boxes": pa.array(boxes, BOXES), **columns}), folder / "0.parquet"
    )
    return ImageTextPairDataset.from_webdataset(folder)


def rows_in(folder) -> dict[str, dict]:
    tables = [pq.read_table(path) for path in sorted(folder.rglob("*.parquet"))]
    return {row["key"]: row for table in tables for row in table.to_pylist()}


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_images_inside_parquet(form, tmp_path):
    """They are read in the order of their rows; those between are copied, or are filtered out."""
    (tmp_path / "in").mkdir()
    boxes = [[BOX], [], None, [BOX], [PIXELS], [BOX]]
    table = {
        "key": [f"k{number}" for number in range(6)],
        "image": pa.array([{"bytes": picture(number), "path": None} for number in range(6)]),
        "b_boxes": pa.array(boxes, BOXES),
    }
    pq.write_table(pa.table(table), tmp_path / "in/some.parquet", row_group_size=2)
    dataset = ImageTextPairDataset.from_parquet(tmp_path / "in")
    out = tmp_path / "out"
    summary = dataset.to_webdataset(out, blur="b_boxes", quality=95, format=form, shuffle=1)
    assert (summary.kept, summary.filtered, summary.missing, summary.images_blurred) == (4, 1, 1, 3)
    if form == "parquet":
        found = {key: row["image"]["bytes"] for key, row in rows_in(out).items()}
    else:
        found = {name.partition(".")[0]: data for name, data in held(out).items() if name.endswith("jpg")}
    assert {*found} == {"k0", "k1", "k3", "k5"} and found["k1"] == picture(1)
    for number in (0, 3, 5):
        check_blurred(opened(picture(number)), opened(found[f"k{number}"]), exact=False)


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_counts_are_of_the_samples_that_are_there(form, tmp_path):
    """Of those that cannot be blurred nothing is counted among what is exported; they are called as in the source."""
    dataset = dataset_of(
        tmp_path / "in",
        [[BOX], [PIXELS], [], [PIXELS]],
        vector=pa.array([[1, 2], [3, 4], None, None], pa.list_(pa.float32(), 2)),
        image_error=pa.array([None, "embedding: odd", None, None]),
    )
    npy = ["vector"] if form == "webdataset" else None
    summary = dataset.to_webdataset(tmp_path / "out", blur="b_boxes", npy=npy, format=form, keys="sequential")
    assert (summary.kept, summary.missing, summary.images_blurred) == (2, 2, 1)
    (examples,) = summary.examples.values()
    assert [each.partition(":")[0] for each in examples] == ["k1", "k3"]
    assert not summary.errors
    if form == "webdataset":
        suffixes = [name.partition(".")[2] for name in held(tmp_path / "out")]
        assert summary.fields == {each: suffixes.count(each) for each in suffixes}
        assert summary.fields["vector.npy"] == 1 and summary.no_vector["vector.npy"] == 1
    else:
        assert summary.members_left == {"json": 2} and len(rows_in(tmp_path / "out")) == 2
    assert str(
        dataset.to_webdataset(tmp_path / "out", blur="b_boxes", npy=npy, format=form, keys="sequential")
    )


def test_other_images_of_a_sample_are_told_of_where_they_go_along(tmp_path):
    dataset = dataset_of(tmp_path / "in", [[BOX]])
    write_tar(tmp_path / "in/0.tar", [("k0.jpg", picture(0)), ("k0.mask.png", picture(1))])
    of_tars = dataset.to_webdataset(tmp_path / "tars", blur="b_boxes")
    of_tables = dataset.to_webdataset(tmp_path / "tables", blur="b_boxes", format="parquet")
    assert (of_tars.images_beside_blurred, of_tables.images_beside_blurred) == (1, 0)
    assert of_tables.members_left == {"mask.png": 1}


def test_labels_that_are_none_or_that_no_box_has(tmp_path):
    dataset = dataset_of(
        tmp_path / "in",
        [[BOX], [BOX], [BOX, BOX], [BOX]],
        b_labels=pa.array([["face"], [None], ["face", None], ["Face"]], pa.list_(pa.string())),
    )
    summary = dataset.to_webdataset(tmp_path / "out", blur="b_boxes", blur_only=["face", "plate"])
    assert {name for name in held(tmp_path / "out") if name.endswith("jpg")} == {"k0.jpg", "k3.jpg"}
    assert summary.reasons == {"not blurred (boxes)": 2} and "one has no label" in str(summary)
    assert summary.labels == {"face": 1, "plate": 0, "Face": 1}
    assert "no box has the label 'plate'" in str(summary) and "'Face', 'face'" in str(summary)
    summary = dataset.to_webdataset(tmp_path / "other", blur="b_boxes", blur_only=["fase"])
    assert "0 images were blurred, in 0 regions" in str(summary) and "the label 'fase'" in str(summary)


def test_rows_that_went_for_a_twin_that_cannot_be_blurred_are_counted(tmp_path):
    """Of four groups: one is exported, of one a second row stays, of two nothing is left."""
    dataset_of(
        tmp_path / "in", [[BOX], [PIXELS], [BOX], [PIXELS], [PIXELS], [BOX], [BOX], [BOX], [BOX], [BOX]]
    )
    keys, groups = [f"k{number}" for number in range(10)], [0, 1, 1, 2, 3, 3, 3, 0, 2, 2]
    kept = [True, True, False, True, True, False, True, False, False, False]
    urls = [str(tmp_path / "in/0.tar")] * 10
    table = pa.table({"id": keys, "__url__": urls, "group": groups, "kept": kept})
    (tmp_path / "found").mkdir()
    pq.write_table(table, tmp_path / "found/duplicates.parquet")
    ImageTextPairDataset.from_webdataset(tmp_path / "in").save_metadata(tmp_path / "rows")
    options = ExportOptions(blur="b_boxes", without=str(tmp_path / "found"))
    summary = export_output(tmp_path / "rows", tmp_path / "out", options)
    assert (summary.kept, summary.filtered, summary.missing, summary.twins_lost) == (2, 5, 3, 3)
    assert "3 rows have gone as duplicates of samples that could not be blurred" in str(summary)
    # The same of what cannot be cropped; of a value without any sample no folder is left.
    table = pq.read_table(tmp_path / "rows/0.parquet")
    sizes = pa.array(["8 by 8" if number in (1, 3, 4) else "8x8" for number in range(10)])
    pq.write_table(table.append_column("size", sizes), tmp_path / "rows/0.parquet")
    options = ExportOptions(bucket_size="size", by="size", without=str(tmp_path / "found"))
    summary = export_output(tmp_path / "rows", tmp_path / "small", options)
    assert (summary.kept, summary.filtered, summary.missing, summary.twins_lost) == (2, 5, 3, 3)
    assert "3 rows have gone as duplicates of samples that could not be cropped" in str(summary)
    assert [path.name for path in (tmp_path / "small").iterdir()] == ["8x8"]
    export_output(tmp_path / "rows", tmp_path / "small", replace(options, append=True, card=True))
    assert {path.name for path in (tmp_path / "small").iterdir()} == {"8x8", "README.md"}


def test_labels_are_those_that_were_asked_for():
    """Else nothing would be blurred: the prompt is the label, not what is meant by it."""
    settings = {"b_boxes": {"prompts": ["a human face", "a license plate"]}}
    with pytest.raises(ConfigError, match=r"blur_only=\['face'\].*'a human face', 'a license plate'"):
        ExportOptions(blur="b_boxes", blur_only=["a human face", "face"]).check_made(
            FileRecord("", settings=settings)
        )
    ExportOptions(blur="b_boxes", blur_only=["a human face"]).check_made(FileRecord("", settings=settings))
    ExportOptions(blur="b_boxes", blur_only=["face"]).check_made(
        FileRecord("", settings={"b_boxes": {"prompts": []}})
    )


def test_large_images_and_many_boxes_take_little():
    """A whole image is blurred a part at a time; boxes within others, of which models find many, cost nothing."""
    image = Image.new("RGB", (2000, 1500))
    tracemalloc.start()
    blur(image, [(0, 0, 1, 1)])
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 40e6  # 13 bytes a pixel: the float32 of all colours alone are 12
    within = [BOX, (0.3, 0.4, 0.5, 0.6), (0.25, 0.3, 0.4, 0.8), BOX] * 2000
    once, often = textured(seed=4), textured(seed=4)
    blur(once, [BOX])
    started = time.monotonic()
    blur(often, within)
    assert time.monotonic() - started < 5  # 20 s, each by itself
    assert once.tobytes() == often.tobytes() != textured(seed=4).tobytes()
    crossing = textured(seed=4)
    blur(crossing, [BOX, (0.2, 0.4, 0.9, 0.5)])
    assert crossing.tobytes() != once.tobytes()


def test_where_blurred_images_wait_for_their_turn(tmp_path, monkeypatch):
    dataset = dataset_of(tmp_path / "in", [[BOX]])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(OutputError, match=r"nowhere: new images cannot be put there.*--local-directory"):
        dataset.to_webdataset(tmp_path / "out", blur="b_boxes")
    assert not list((tmp_path / "out").glob("*.tar"))
