"""Exports that blur, in all forms: no sharp picture of what was found leaves, and counts are of what is there."""

from __future__ import annotations

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import write_tar
from PIL import Image
from test_blurring import BOX, check_blurred, held, saved, textured

from curator_dask.datasets import ImageTextPairDataset

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
