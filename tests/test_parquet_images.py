"""Images inside Parquet files: every row finds its own image, whatever wrote the file, and none is opened elsewhere."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from colour_stages import stages_of
from colours import ColourReader, check_colours, colour_of, image_of, read_output, write_tar
from PIL import Image
from typer.testing import CliRunner

from curator_dask.checks.preflight import preflight
from curator_dask.cli import app
from curator_dask.curation import Recipe, curate
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, DatasetError, ImageError, OutputError, ShardError
from curator_dask.image.statistics import ImageStatistics
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.exporting import export_output
from curator_dask.outputs.filtering import filter_output
from curator_dask.pipeline import Pipeline
from curator_dask.rows.thumbnails import read_thumbnails
from curator_dask.webdataset.finding import discover_parquet, find_shards
from curator_dask.webdataset.opening import open_shard
from curator_dask.webdataset.parquet import ParquetShard, is_parquet_shard
from curator_dask.webdataset.parquet_reader import ParquetReader
from curator_dask.webdataset.stamps import stamp

pytestmark = pytest.mark.usefixtures("in_this_process")

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FORMS = ("PNG", "BMP", "GIF")


def table_of(numbers, *, metadata=True):
    """As ``datasets`` writes it: by number, which is the image's colour."""
    images = [{"bytes": image_of(f"{each:05d}", FORMS[each % 3]), "path": f"{each}.x"} for each in numbers]
    table = pa.table(
        {
            "image": pa.array(images, STRUCT),
            "text": [f"caption of {each}" for each in numbers],
            "id": [f"id-{each:05d}" for each in numbers],
            "number": pa.array(numbers, pa.int32()),
            "tags": [["a"] * (each % 3) for each in numbers],
        }
    )
    features = {"image": {"_type": "Image"}, "text": {"dtype": "string", "_type": "Value"}}
    said = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    return table.replace_schema_metadata(said if metadata else None)


def write(folder, shards=3, rows=12, group=5, name="train-{:05d}-of-{:05d}"):
    """Files with several row groups; their rows in no order of their numbers."""
    order = random.Random(3).sample(range(shards * rows), shards * rows)
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        mine = order[shard * rows : (shard + 1) * rows]
        pq.write_table(table_of(mine), folder / f"{name.format(shard, shards)}.parquet", row_group_size=group)
    return order


@pytest.fixture
def data(tmp_path):
    write(tmp_path / "data")
    return tmp_path / "data"


def check_rows(table, bad=()):
    numbers = table["number"].to_pylist()
    check_colours([str(each) for each in numbers], table["image_embedding"].to_pylist(), [*map(str, bad)])
    assert table["text"].to_pylist() == [f"caption of {each}" for each in numbers]


def members_in(folder):
    found = {}
    for path in sorted(folder.rglob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                assert member.name not in found
                found[member.name] = tar.extractfile(member).read()
    return found


def image_of_number(number):
    return image_of(f"{number:05d}", FORMS[number % 3])


SUFFIXES = ("png", "bmp", "gif")


def test_every_row_has_its_own_image_and_all_other_columns(data, tmp_path):
    dataset = ImageTextPairDataset.from_parquet(data)
    assert len(dataset) == 36 and dataset.npartitions == 3
    summary = ColourReader()(dataset).save_metadata(tmp_path / "out")
    assert (summary.rows, summary.failed, summary.written) == (36, 0, 3)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.parquet")) == sorted(
        path.name for path in data.iterdir()
    )
    table = read_output(tmp_path / "out")
    check_rows(table)
    assert table.column_names == [
        "key", "text", "id", "number", "tags", "__url__", "image_embedding", "image_error",
    ]  # fmt: skip
    source = pa.concat_tables([pq.read_table(path) for path in sorted(data.iterdir())])
    for name in ("text", "id", "number", "tags"):
        assert table[name].to_pylist() == source[name].to_pylist()
    assert table["key"].to_pylist() == [
        f"{path.stem}_{row:07d}" for path in sorted(data.iterdir()) for row in range(12)
    ]
    assert {*table["__url__"].to_pylist()} == {*map(str, data.iterdir())}
    again = ColourReader()(ImageTextPairDataset.from_parquet(data)).save_metadata(tmp_path / "out")
    assert (again.written, again.skipped) == (0, 3)
    # One file that is changed costs its own shard alone.
    path = sorted(data.iterdir())[1]
    pq.write_table(table_of([100, 101]), path)
    third = ColourReader()(ImageTextPairDataset.from_parquet(data)).save_metadata(tmp_path / "out")
    assert (third.written, third.skipped, third.rows) == (1, 2, 2)
    check_rows(read_output(tmp_path / "out"))


def test_vectors_are_those_of_the_same_images_in_tars(data, tmp_path):
    """Of noise, to the bit."""
    rng, rows = np.random.default_rng(5), []
    for number in range(9):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(
            file, ("JPEG", "PNG")[number % 2]
        )
        rows.append(file.getvalue())
    table = pa.table({"key": [f"{each}" for each in range(9)], "jpg": rows})
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "0.parquet", row_group_size=4)
    write_tar(tmp_path / "tars" / "0.tar", [(f"{key}.jpg", image) for key, image in enumerate(rows)])
    found = []
    for dataset in (
        ImageTextPairDataset.from_parquet(tmp_path / "in"),
        ImageTextPairDataset.from_webdataset(tmp_path / "tars"),
    ):
        vectors = ColourReader()(dataset).compute().set_index("key")["image_embedding"]
        found.append({key: np.asarray(vector, np.float32).tobytes() for key, vector in vectors.items()})
    assert found[0] == found[1] and len({*found[0].values()}) == 9


@pytest.mark.parametrize("id_col", [None, "id", "number"])
def test_rows_may_be_cut_filtered_and_shuffled(data, tmp_path, id_col):
    dataset = ImageTextPairDataset.from_parquet(data, id_col=id_col, rows_per_partition=4)
    assert dataset.npartitions == 9
    assert "key" not in dataset.metadata.columns or id_col is None
    mixed = dataset.filter("number >= 6")
    mixed = mixed.with_metadata(mixed.metadata.sample(frac=1, random_state=1).repartition(npartitions=2))
    ColourReader()(mixed).save_metadata(tmp_path / "mixed")
    table = read_output(tmp_path / "mixed")
    assert sorted(table["number"].to_pylist()) == [*range(6, 36)]
    check_rows(table)
    summary = ColourReader()(dataset).save_metadata(tmp_path / "out")
    assert (summary.rows, summary.failed, summary.written) == (36, 0, 9)
    check_rows(read_output(tmp_path / "out"))


def test_a_file_of_the_hub_as_datasets_writes_it(tmp_path):
    """The oracle: what ``datasets`` itself reads there, row by row."""
    datasets = pytest.importorskip("datasets")
    rows = [{"bytes": image_of_number(each), "path": None} for each in range(11)]
    rows[3] = None
    columns = {"image": rows, "label": [each % 2 for each in range(11)], "number": [*range(11)]}
    columns["parts"] = [[each % 3] * each for each in range(11)]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "number": datasets.Value("int64"),
            "parts": datasets.Sequence(datasets.ClassLabel(names=["ear", "nose", "eye"])),
        }
    )
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "train-00000-of-00001.parquet"
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path, batch_size=4)
    assert b"huggingface" in pq.read_schema(path).metadata and pq.read_metadata(path).num_row_groups == 3
    ImageTextPairDataset.from_parquet(tmp_path / "in").to_webdataset(tmp_path / "tars")
    read = datasets.Dataset.from_parquet(str(path), cache_dir=tmp_path / "cache")
    read = read.cast_column("image", datasets.Image(decode=False))
    wanted = {
        f"train-00000-of-00001_{row:07d}.{SUFFIXES[each['number'] % 3]}": each["image"]["bytes"]
        for row, each in enumerate(read)
        if each["image"] is not None
    }
    assert members_in(tmp_path / "tars") == wanted and len(wanted) == 10
    beside = pq.read_table(tmp_path / "tars" / "00000.parquet")
    assert beside["label"].to_pylist() == [each["label"] for each in read if each["image"] is not None]
    # The names of classes go along into files for datasets, past an output between, and where all say the same.
    images = ImageTextPairDataset.from_parquet(tmp_path / "in")
    ImageStatistics(["width"])(images).save_metadata(tmp_path / "rows")
    export_output(
        tmp_path / "rows", tmp_path / "tables", ExportOptions(format="parquet", where="number <> 3")
    )
    (written,) = (tmp_path / "tables").rglob("*.parquet")
    again = datasets.Dataset.from_parquet(str(written), cache_dir=tmp_path / "cache")
    assert {name: again.features[name] for name in ("label", "number", "parts")} == {
        name: features[name] for name in ("label", "number", "parts")
    }
    assert again.features["width"] == datasets.Value("int32") and again[4]["label"] == 1
    assert [again.features["label"].int2str(each["label"]) for each in again][:4] == [
        "cat",
        "dog",
        "cat",
        "cat",
    ]


@pytest.mark.parametrize("shuffle", [None, 1])
def test_an_export_has_the_original_bytes(data, tmp_path, shuffle):
    dataset = ImageTextPairDataset.from_parquet(data, id_col="id")
    options = {
        "samples_per_shard": 10,
        "shuffle": shuffle,
        "caption": "text",
        "columns": ["number"],
        "where": "number != 7",
    }
    summary = dataset.to_webdataset(tmp_path / "tars", **options)
    assert (summary.kept, summary.filtered, summary.shards, summary.complete) == (35, 1, 4, True)
    members = members_in(tmp_path / "tars")
    for number in {*range(36)} - {7}:
        key = f"id-{number:05d}"
        assert members.pop(f"{key}.{SUFFIXES[number % 3]}") == image_of_number(number)
        assert members.pop(f"{key}.txt").decode() == f"caption of {number}"
        assert json.loads(members.pop(f"{key}.json")) == {"number": number}
    assert not members
    assert dataset.to_webdataset(tmp_path / "tars", **options).written == 0
    # What was packed is a dataset, with the same rows.
    rows = ColourReader()(ImageTextPairDataset.from_webdataset(tmp_path / "tars", "id")).compute()
    check_colours(rows["id"], rows["image_embedding"])


@pytest.mark.parametrize(("shuffle", "most"), [(None, 9 + 9 + 1), (1, 9 + 2 * 9)])
def test_an_export_reads_a_row_group_once_a_tar_and_once_before(data, tmp_path, monkeypatch, shuffle, most):
    read, groups = ParquetReader._group, []

    def counted(self, number):
        groups.append((self.url, number))
        return read(self, number)

    monkeypatch.setattr(ParquetReader, "_group", counted)
    ImageTextPairDataset.from_parquet(data).to_webdataset(
        tmp_path / "tars", samples_per_shard=18, shuffle=shuffle
    )
    assert 18 <= len(groups) <= most and len({*groups}) == 9


@pytest.mark.parametrize(("shuffle", "id_col"), [(None, "id"), (3, None)])
def test_an_export_to_parquet_is_such_a_dataset_again(data, tmp_path, shuffle, id_col):
    """From Parquet to Parquet to tars, vectors go along, and every byte is the one that was given first."""
    first = ImageTextPairDataset.from_parquet(data, id_col=id_col)
    ColourReader()(first).save_metadata(tmp_path / "out")
    hub = tmp_path / "hub"
    options = ExportOptions(format="parquet", samples_per_shard=10, shuffle=shuffle)
    summary = export_output(tmp_path / "out", hub, options, id_col=id_col or "key")
    assert (summary.kept, summary.shards, summary.complete) == (36, 4, True)
    second = ImageTextPairDataset.from_parquet(hub, id_col=id_col)
    numbers = [
        number
        for path in sorted(hub.rglob("*.parquet"))
        for number in pq.read_table(path)["number"].to_pylist()
    ]
    assert [each["bytes"] for each in images_of(hub)] == [*map(image_of_number, numbers)]
    ColourReader()(second).save_metadata(tmp_path / "again")
    rows = pa.concat_tables(pq.read_table(path) for path in sorted((tmp_path / "again").rglob("*.parquet")))
    check_rows(rows)
    assert rows["number"].to_pylist() == numbers and {*numbers} == {*range(36)}
    export_output(
        tmp_path / "again", tmp_path / "tars", ExportOptions(caption="text"), id_col=id_col or "key"
    )
    members = members_in(tmp_path / "tars")
    for key, number in zip(rows[id_col or "key"].to_pylist(), numbers, strict=True):
        assert members.pop(f"{key}.{SUFFIXES[number % 3]}") == image_of_number(number)
        assert members.pop(f"{key}.txt").decode() == f"caption of {number}"
    assert not members


def test_what_is_filtered_of_such_a_dataset_is_one(data, tmp_path):
    filter_output(data, tmp_path / "some", where="number < 9")
    rows = ColourReader()(ImageTextPairDataset.from_parquet(tmp_path / "some", id_col="id")).compute()
    assert sorted(rows["number"]) == [*range(9)]
    check_colours(rows["id"], rows["image_embedding"])
    said = json.loads(pq.read_schema(min((tmp_path / "some").iterdir())).metadata[b"huggingface"])
    assert said["info"]["features"]["image"] == {"_type": "Image"}


def images_of(folder):
    return [
        each
        for path in sorted(folder.rglob("*.parquet"))
        for each in pq.read_table(path)["image"].to_pylist()
    ]


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_images_in_rows_are_blurred_and_the_others_are_as_they_were(tmp_path, form):
    rng = np.random.default_rng(8)
    pictures = [Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)) for _ in range(9)]
    images = [io.BytesIO() for _ in pictures]
    for picture, file in zip(pictures, images, strict=True):
        picture.save(file, "PNG")
    boxes = [[[0.0, 0.0, 1.0, 1.0]] if number % 3 == 0 else [] for number in range(9)]
    columns = {
        "image": [file.getvalue() for file in images],
        "boxes": pa.array(boxes, pa.list_(pa.list_(pa.float32()))),
        "key": [f"{number}" for number in range(9)],
    }
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "data" / "0.parquet", row_group_size=4)
    dataset = ImageTextPairDataset.from_parquet(tmp_path / "data")
    summary = dataset.to_webdataset(tmp_path / "out", format=form, blur="boxes")
    assert (summary.kept, summary.images_blurred, summary.complete) == (9, 3, True)
    if form == "parquet":
        found = {
            row["key"]: row["image"]["bytes"] for row in pq.read_table(tmp_path / "out/data").to_pylist()
        }
    else:
        found = {name.removesuffix(".png"): image for name, image in members_in(tmp_path / "out").items()}
    for number, picture in enumerate(pictures):
        if number % 3:
            assert found[str(number)] == images[number].getvalue()
        else:
            blurred = np.asarray(Image.open(io.BytesIO(found[str(number)])), np.float64)
            assert blurred.std() < 30 < np.asarray(picture).std()
            assert np.allclose(blurred.mean((0, 1)), np.asarray(picture).mean((0, 1)), atol=8)


def test_keys_may_be_names_in_tars_and_are_unique(tmp_path):
    """Those of a column may be anything; of files of one name in two folders the path is in the key."""
    ids = ["../../etc/passwd", "https://host/a b.jpg", "é.png", "/absolute.x"]
    table = pa.table({"id": ids, "image": [image_of(str(each)) for each in range(4)]})
    (tmp_path / "ids").mkdir()
    pq.write_table(table, tmp_path / "ids" / "0.parquet")
    dataset = ImageTextPairDataset.from_parquet(tmp_path / "ids", id_col="id")
    dataset.to_webdataset(tmp_path / "tars")
    found = members_in(tmp_path / "tars")
    assert [*found.values()] == table["image"].to_pylist()
    keys = [name.removesuffix(".png") for name in found]
    assert not any(sign in key for key in keys for sign in ". ")
    assert not any(key.startswith("/") or ".." in key for key in keys)
    for folder in ("en", "fr"):
        write(tmp_path / "two" / folder, 1, 4, name="train.v1")
    two = ImageTextPairDataset.from_parquet(tmp_path / "two")
    summary = two.to_webdataset(tmp_path / "packed", where="number < 3")
    assert summary.kept == 6
    assert {name[:12] for name in members_in(tmp_path / "packed")} == {"en/train_v1_", "fr/train_v1_"}
    rows = ColourReader()(two).compute()
    check_colours(rows["number"].astype(str), rows["image_embedding"])
    (tmp_path / "two" / "fr" / "train.v1.parquet").rename(tmp_path / "two" / "en" / "train_v1.parquet")
    with pytest.raises(DatasetError, match=r"a dot in a name becomes '_'.*Rename one of them"):
        ImageTextPairDataset.from_parquet(tmp_path / "two")


def test_what_has_no_bytes_costs_its_row_and_no_file_outside_is_opened(tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(image_of("00001"))
    table = table_of([*range(6)])
    images = table["image"].to_pylist()
    images[1] = None
    images[2] = {"bytes": None, "path": str(secret)}
    images[3] = {"bytes": b"", "path": "x"}
    images[4] = {"bytes": b"no image", "path": None}
    (tmp_path / "in").mkdir()
    pq.write_table(table.set_column(0, "image", pa.array(images, STRUCT)), tmp_path / "in" / "0.parquet")
    dataset = ImageTextPairDataset.from_parquet(tmp_path / "in")
    summary = ColourReader()(dataset).save_metadata(tmp_path / "out")
    assert (summary.rows, summary.failed) == (6, 4)
    table = read_output(tmp_path / "out")
    check_rows(table, [1, 2, 3, 4])
    said = table["image_error"].to_pylist()
    assert said[0] is said[5] is None
    assert said[1] == "missing: image is null"
    assert said[2].startswith(f"missing: image has no bytes, but the path {str(secret)!r}")
    assert said[3].startswith("empty") and said[4].startswith("not an image")
    exported = dataset.to_webdataset(tmp_path / "tars")
    assert exported.kept == 4 and exported.reasons == {"missing": 2}
    found = members_in(tmp_path / "tars")
    assert found["0_0000003.bin"] == b"" and found["0_0000004.bin"] == b"no image"
    report = preflight(tmp_path / "in")
    assert report.ok and report.rows == 6 and report.images["looked"] == 4
    assert {each.kind: each.count for each in report.notes} == {"null-image": 2, "bad-image": 2}
    # As soon as the bytes are there a retry finds them.
    images[2] = {"bytes": image_of("00002"), "path": None}
    pq.write_table(
        pq.read_table(tmp_path / "in").set_column(0, "image", pa.array(images, STRUCT)),
        tmp_path / "in" / "0.parquet",
    )
    again = ColourReader()(ImageTextPairDataset.from_parquet(tmp_path / "in")).save_metadata(tmp_path / "out")
    assert (again.rows, again.failed) == (6, 3)


def test_what_img2dataset_writes(tmp_path):
    """A binary column ``jpg``; rows that it could not fetch have none, and say why."""
    failed = {2, 5}
    table = pa.table(
        {
            "key": [f"{each:09d}" for each in range(8)],
            "url": [f"https://host/{each}" for each in range(8)],
            "caption": [f"caption {each}" if each != 4 else None for each in range(8)],
            "status": ["failed_to_download" if each in failed else "success" for each in range(8)],
            "jpg": [None if each in failed else image_of(f"{each:09d}", "JPEG") for each in range(8)],
            "number": [*range(8)],
        }
    )
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "00000.parquet", row_group_size=3)
    (tmp_path / "in" / "00000_stats.json").write_text("{}")
    report = preflight(tmp_path / "in")
    assert report.ok and report.statuses == {"failed_to_download": 2} and report.components == {"jpg": 8}
    assert {each.kind: each.count for each in report.notes} == {"not-downloaded": 2, "no-caption": 1}
    ColourReader()(ImageTextPairDataset.from_parquet(tmp_path / "in")).save_metadata(tmp_path / "out")
    rows = read_output(tmp_path / "out").to_pylist()
    assert [row["key"] for row in rows] == table["key"].to_pylist()
    for number, row in enumerate(rows):
        if number in failed:
            assert row["image_error"] == "missing: jpg is null (status: failed_to_download)"
        else:
            assert np.abs(np.array(row["image_embedding"]) - colour_of(row["key"])).max() < 4


@pytest.mark.parametrize(
    ("kind", "column"),
    [
        ("binary", lambda images: pa.array(images, pa.binary())),
        ("large", lambda images: pa.array(images, pa.large_binary())),
        ("view", lambda images: pa.array(images, pa.binary_view())),
        ("dictionary", lambda images: pa.array(images, pa.binary()).dictionary_encode()),
        ("fields", lambda images: pa.array([{"path": "a", "more": 1, "bytes": each} for each in images])),
        (
            "large struct",
            lambda images: pa.array(
                [None if each is None else {"bytes": each} for each in images],
                pa.struct([("bytes", pa.large_binary())]),
            ),
        ),
    ],
)
def test_however_bytes_are_held_each_row_has_its_own(tmp_path, kind, column):
    images = [image_of(f"{each:05d}") for each in range(23)]
    images[4] = None
    path = tmp_path / "a.parquet"
    # A name with a dot is no struct's field.
    name = "img.bytes" if kind == "binary" else "image"
    pq.write_table(pa.table({"n": [*range(23)], name: column(images)}), path, row_group_size=6)
    (shard,) = discover_parquet(path)
    assert shard.url == str(path)
    with open_shard(shard.url) as reader:
        members = [sample.image() for sample in reader.index.samples]
        order = random.Random(2).sample(range(23), 23)
        reader.expect(members)
        for row in [*range(23), *order]:  # as expected, and then not
            if row == 4:
                with pytest.raises(ImageError, match=r"missing: .*(null|the path 'a')"):
                    reader.read(members[row])
            else:
                assert reader.read(members[row]) == images[row]
        reader.expect([members[row] for row in (3, 9, 21)])
        assert [reader.read(members[row]) == images[row] for row in (9, 21, 3)] == [True] * 3


def test_a_large_row_group_is_not_held_as_a_whole(tmp_path):
    """64 MB in one: read in order, and then one row of it, with a fraction of that."""
    path, noise = tmp_path / "big.parquet", np.random.default_rng(0).bytes(400_000)
    how = {"use_dictionary": False, "write_batch_size": 4}
    table = pa.table({"image": [row.to_bytes(4, "big") + noise for row in range(160)]})
    pq.write_table(table, path, row_group_size=160, **how)
    program = f"""
import pyarrow as pa
from curator_dask.webdataset.parquet_reader import ParquetReader
with ParquetReader({str(path)!r}) as reader:
    members = [sample.image() for sample in reader.index.samples]
    reader.expect(members)
    assert [int.from_bytes(reader.read(each)[:4], "big") for each in members] == [*range(160)]
with ParquetReader({str(path)!r}) as reader:
    assert reader.read(members[140])[:4] == (140).to_bytes(4, "big")
print(pa.default_memory_pool().max_memory())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert not done.returncode, done.stderr
    assert pq.read_metadata(path).num_row_groups == 1 and int(done.stdout) < 50_000_000


def test_small_pictures_search_and_a_retry_find_images_by_key(data, tmp_path):
    dataset = ImageTextPairDataset.from_parquet(data)
    table = dataset.compute()
    some = table.sample(7, random_state=2)
    for row, picture in read_thumbnails(some["key"].tolist(), some["__url__"].tolist(), 16):
        assert picture.getpixel((5, 5)) == colour_of(str(some["number"].iloc[row]))
    # A key of another file, of none of its rows, or of no such form, finds nothing.
    wrong = [table["key"].iloc[14], "train-00000-of-00003_0000012", "0000001", "_0000001", "x"]
    pictures = dict(read_thumbnails(wrong, [table["__url__"].iloc[0]] * 5, 16))
    assert [pictures[row] for row in range(5)] == [
        f"missing: no sample {key!r} in the Parquet file" for key in wrong
    ]
    failed = ColourReader(max_pixels=10)(dataset).save_metadata(tmp_path / "out").failed
    again = ColourReader().retry(tmp_path / "out")
    assert (failed, again.rows, again.failed) == (36, 36, 0)
    check_rows(read_output(tmp_path / "out"))
    summary = export_output(tmp_path / "out", tmp_path / "tars")
    assert summary.kept == 36
    assert {hashlib.sha256(each).digest() for each in members_in(tmp_path / "tars").values()} == {
        hashlib.sha256(image_of_number(each)).digest() for each in range(36)
    }


@pytest.mark.parametrize("id_col", ["key", "id"])
def test_a_pipeline_takes_it_as_it_takes_tars(data, id_col):
    pipeline = Pipeline("rows", stages=stages_of(data, id_col=id_col))
    images = [image for batch in pipeline.run() for image in batch.data]
    assert len(images) == 36 and {Path(image.image_path).parent.parent for image in images} == {data}
    numbers = [str(image.metadata["number"]) for image in images]
    check_colours(numbers, [image.embedding for image in images])
    if id_col == "id":
        assert [image.image_id for image in images] == [f"id-{int(each):05d}" for each in numbers]


def test_a_file_that_is_cut_or_damaged_costs_its_shard(data, tmp_path):
    cut, other, whole = sorted(data.iterdir())
    cut.write_bytes(cut.read_bytes()[:-100])
    content = bytearray(other.read_bytes())
    place = content.find(b"BM")  # of the first image that is a BMP: its page is damaged, the footer is not
    content[place - 400 : place + 50] = b"\xff" * 450
    other.write_bytes(content)
    report = preflight(data)
    assert not report.ok and {each.kind for each in report.problems} == {"unreadable"}
    summary = ColourReader()(ImageTextPairDataset.from_parquet(data)).save_metadata(tmp_path / "out")
    assert {*summary.failed_shards} == {cut.stem, other.stem} and summary.rows == 12
    for name, why in summary.failed_shards.items():
        assert f"{data / name}.parquet: not a Parquet file that can be read" in why and "Traceback" not in why
    check_rows(read_output(tmp_path / "out"))
    whole.unlink()
    other.unlink()
    with pytest.raises(DatasetError, match=r"none of 1 Parquet file can be read; .*footer|magic"):
        ImageTextPairDataset.from_parquet(data)


def test_a_column_that_is_encrypted_is_told(tmp_path):
    """In a process of its own: pyarrow ends it where it is asked what such a column is like, before it is read."""
    program = f"""
import base64
import pyarrow as pa, pyarrow.parquet as pq, pyarrow.parquet.encryption as pe
from curator_dask.checks.preflight import preflight
from curator_dask.errors import ShardError
from curator_dask.webdataset.opening import open_shard

class Keys(pe.KmsClient):
    def __init__(self, _):
        pe.KmsClient.__init__(self)
    def wrap_key(self, key, master):
        return base64.b64encode(key)
    def unwrap_key(self, wrapped, master):
        return base64.b64decode(wrapped)

table = pa.table({{"image": [b"x"] * 3, "text": ["a"] * 3}})
for column in table.column_names:
    how = pe.EncryptionConfiguration("key", column_keys={{"key": [column]}}, plaintext_footer=True)
    keys = pe.CryptoFactory(Keys).file_encryption_properties(pe.KmsConnectionConfig(), how)
    path = f"{tmp_path}/{{column}}.parquet"
    with pq.ParquetWriter(path, table.schema, encryption_properties=keys) as file:
        file.write_table(table)
    (found,) = preflight(path).problems
    assert found.kind == "unreadable" and "Cannot decrypt" in str(found), found
try:
    with open_shard({str(tmp_path / "image.parquet")!r}) as reader:
        reader.read(reader.index.samples[0].image())
except ShardError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert "not a Parquet file that can be read: Cannot decrypt" in done.stdout, done.stderr


def test_which_column_has_the_images_is_told_or_asked_for(tmp_path):
    def found(table, **arguments):
        pq.write_table(table, tmp_path / "a.parquet")
        return discover_parquet(tmp_path, **arguments).shards[0].url

    path = str(tmp_path / "a.parquet")
    plain = pa.table({"image": [b"x"], "mask": [b"y"], "n": [1]})
    with pytest.raises(DatasetError, match=r"several columns .*\['image', 'mask'\].*--image-column"):
        found(plain)
    assert found(plain, image_column="mask") == f"{path}#image=mask"
    with pytest.raises(DatasetError, match=r"no column 'masks'; the columns are \['image', 'mask', 'n'\]"):
        found(plain, image_column="masks")
    with pytest.raises(
        DatasetError, match="expected bytes, or a struct with bytes, in the column 'n', found int64"
    ):
        found(plain, image_column="n")
    with pytest.raises(DatasetError, match=r"id_col='uid' .*no such column .*\['image', 'mask', 'n'\]"):
        found(plain, image_column="mask", id_col="uid")
    assert found(plain, image_column="mask", id_col="n") == f"{path}#image=mask&key=n"
    assert ParquetShard.of(f"{path}#image=mask&key=n") == ParquetShard(path, "mask", "n")
    hub = table_of([1])
    assert found(hub.append_column("hash", pa.array([b"x"]))) == path
    assert found(hub, image_column="image") == path  # as without
    mine = hub.append_column("other", hub["image"])
    assert found(mine) == path  # Hugging Face's description says which
    rows = ImageTextPairDataset.from_parquet(tmp_path).compute()
    assert [*rows.columns] == [
        "key",
        "text",
        "id",
        "number",
        "tags",
        "__url__",
    ]  # the other's bytes stay out, too
    lists = hub.set_column(0, "image", pa.array([[{"bytes": b"x", "path": None}]], pa.list_(STRUCT)))
    assert found(lists) == f"{path}#each"
    assert ParquetShard.of(f"{path}#key=n&each") == ParquetShard(path, None, "n", True)
    deeper = lists.set_column(0, "image", pa.array([[[b"x"]]], pa.list_(pa.list_(pa.binary()))))
    with pytest.raises(DatasetError, match="lists of lists of images"):
        found(deeper)
    speech = {"info": {"features": {"image": {"_type": "List", "feature": {"_type": "Audio"}}}}}
    with pytest.raises(DatasetError, match="no column holds bytes that may be images"):
        found(lists.replace_schema_metadata({"huggingface": json.dumps(speech)}))
    sounds = {"info": {"features": {"image": {"_type": "Audio"}}}}
    for table in (
        hub.drop_columns("image"),
        hub.replace_schema_metadata({"huggingface": json.dumps(sounds)}),
    ):
        with pytest.raises(DatasetError, match="no column holds bytes that may be images"):
            found(table)
    assert not is_parquet_shard(f"{path}/x") and not is_parquet_shard("a.tar")


def test_names_of_files_and_folders_as_others_write_them(tmp_path):
    """Dask and Spark write a folder that is called a Parquet file; a suffix may be in upper case."""
    folder = tmp_path / "TRAIN.parquet"
    folder.mkdir()
    for number in range(2):
        pq.write_table(
            table_of([2 * number, 2 * number + 1]), folder / f"part.{number}.{('parquet', 'PARQUET')[number]}"
        )
    for found in (
        find_shards(folder),
        find_shards(tmp_path),
        find_shards([f"{folder}/part.0.parquet", f"{folder}/part.1.PARQUET"]),
    ):
        dataset = ImageTextPairDataset.from_shards(found)
        check_rows(pa.Table.from_pandas(ColourReader()(dataset).compute()))
    dataset.to_webdataset(tmp_path / "tars")
    assert [*members_in(tmp_path / "tars").values()] == [image_of_number(number) for number in range(4)]
    (folder / "part.0.parquet").unlink()
    assert len(find_shards(folder)) == 1
    twice = pa.Table.from_arrays([pa.array([b"x"])] * 2, ["image", "image"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(DatasetError, match="several columns are called 'image'"):
        find_shards(tmp_path / "twice.parquet")


def test_what_the_hub_makes_of_tars(tmp_path):
    """Its columns are the members' suffixes, ``__key__`` and ``__url__``: the tars that are elsewhere."""
    images = [{"bytes": image_of(f"{each:05d}"), "path": f"{each}.png"} for each in range(5)]
    keys = [f"{each:05d}" for each in range(5)]
    table = pa.table(
        {"png": images, "json": [{"width": 24}] * 5, "__key__": keys, "__url__": ["hf://x/0.tar"] * 5}
    )
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "0000.parquet")
    dataset = ImageTextPairDataset.from_shards(find_shards(tmp_path / "in", id_col="__key__"), "__key__")
    rows = ColourReader()(dataset).compute()
    check_colours(rows["__key__"], rows["image_embedding"])
    assert {*rows["__url__"]} == {f"{tmp_path / 'in' / '0000.parquet'}#key=__key__"}
    pq.write_table(table.set_column(0, "png", pa.array([b"x"] * 5)), tmp_path / "in" / "0000.parquet")
    with pytest.raises(DatasetError, match=r"images lie in other files, .* give the dataset of which"):
        find_shards(tmp_path / "in")


def test_ids_that_stand_twice_are_refused(data, tmp_path):
    path = min(data.iterdir())
    table = pq.read_table(path)
    twice = pc.if_else(pc.equal(table["id"], table["id"][3]), table["id"][0], table["id"])
    pq.write_table(table.set_column(2, "id", twice), path)
    dataset = ImageTextPairDataset.from_parquet(data, id_col="id")
    summary = ColourReader()(dataset).save_metadata(tmp_path / "out")
    assert {*summary.failed_shards} == {path.stem} and "stand in several rows" in str(summary.failed_shards)
    # A column that happens to be called "key" is no reason to have no way.
    pq.write_table(table.rename_columns({"id": "key"}).set_column(2, "key", twice), path)
    told = str(ColourReader()(ImageTextPairDataset.from_parquet(path)).save_metadata(tmp_path / "keys"))
    assert "Where the column has another name, rows' numbers are the keys" in told
    pq.write_table(table.set_column(2, "id", twice), path)
    with pytest.raises(ShardError, match="stand in several rows"), open_shard(f"{path}#key=id") as reader:
        reader.index.find(["id-00001"])


def test_an_output_never_lies_among_the_images(data, tmp_path):
    dataset = ColourReader()(ImageTextPairDataset.from_parquet(data))
    before = {path: path.read_bytes() for path in data.iterdir()}
    for place in (None, data, data / "out"):
        with pytest.raises(OutputError, match="give a folder beside it"):
            dataset.save_metadata(place, overwrite=True)
    with pytest.raises(OutputError, match=r"give another folder|give a folder beside it"):
        dataset.to_webdataset(data, overwrite=True)
    above = ColourReader()(ImageTextPairDataset.from_parquet(tmp_path))  # as of the hub, with a folder data
    with pytest.raises(OutputError, match="give a folder beside it"):
        above.save_metadata(tmp_path / "out")
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before
    dataset.save_metadata(tmp_path / "out")
    with pytest.raises(DatasetError, match=r"expected at least one \.tar"):
        find_shards(tmp_path / "out")  # rows of an output are no images
    with pytest.raises(ConfigError, match="metadata='tar'"):
        ImageTextPairDataset.from_shards(find_shards(data), metadata="tar")
    with pytest.raises(ConfigError, match=r"captions='none'.*has Parquet files"):
        preflight(data, captions=None)


def test_what_is_found_where(data, tmp_path):
    """Tars first, then Parquet files with images, then images that are files."""
    (data / "cover.png").write_bytes(image_of("1"))
    assert find_shards(data) == discover_parquet(data)
    for path in (
        f"{data}/*.parquet",
        f"{data}/train-{{00000..00002}}-of-00003.parquet",
        [*data.glob("*.parquet")],
    ):
        assert len(find_shards(path)) == 3
    assert len(find_shards(data, images=True)) == 1
    pq.write_table(pa.table({"file_name": ["cover.png"]}), data / "a.parquet")
    assert find_shards(data).shards[0].url.endswith("a.parquet")  # told as what it is when it is read
    write_tar(data / "0.tar", [("1.png", image_of("1"))])
    assert [shard.url for shard in find_shards(data)] == [str(data / "0.tar")]
    assert len(find_shards(data, image_column="image")) == 4


def test_a_file_that_changes_while_it_is_read_is_told(data):
    shard = discover_parquet(data).shards[0]
    before = stamp(shard.url)
    with open_shard(shard.url) as reader:
        path = ParquetShard.of(shard.url).path
        os.utime(path, ns=(1, 1))
        with pytest.raises(ShardError, match="was changed while it was read"):
            reader.check_unchanged()
    assert stamp(shard.url) != before


def test_a_store_gives_ranges(data, tmp_path):
    """The same vectors; of one row's image only its row group is fetched."""
    store = fsspec.filesystem("memory")
    store.put(str(data), "/parquet_images", recursive=True)
    try:
        dataset = ImageTextPairDataset.from_parquet("memory://parquet_images", id_col="id")
        ColourReader()(dataset).save_metadata(tmp_path / "out")
        check_rows(read_output(tmp_path / "out"))
        dataset.to_webdataset(tmp_path / "tars", shuffle=3, samples_per_shard=30)
        assert len(members_in(tmp_path / "tars")) == 36
        url = discover_parquet("memory://parquet_images").shards[1].url
        assert stamp(url).size == sorted(data.iterdir())[1].stat().st_size
    finally:
        store.rm("/parquet_images", recursive=True)


def test_commands_take_such_a_folder(data, tmp_path, client):
    def run(*arguments):
        done = CliRunner().invoke(app, [*map(str, arguments)])
        return done.exit_code, done.output

    both = tmp_path / "both"
    both.mkdir()
    for path in data.iterdir():
        table = pq.read_table(path)
        masks = pa.array([b"mask"] * len(table))
        images = pc.struct_field(table["image"], "bytes")
        pq.write_table(
            table.set_column(0, "image", images).append_column("mask", masks).replace_schema_metadata(),
            both / path.name,
        )
    code, said = run("check", both)
    assert code == 2 and "['image', 'mask']" in said and "--image-column" in said
    code, said = run("check", both, "--image-column", "image", "--id-col", "id")
    assert code == 0 and "nothing that would fail" in said and "rows come from these Parquet files" in said
    given = ("--image-column", "image", "--id-col", "id", "--scheduler-address", client.scheduler.address)
    code, said = run("embed", both, tmp_path / "out", "--statistics", "width", *given)
    assert code == 0, said
    assert read_output(tmp_path / "out")["width"].null_count == 0
    code, said = run("export", both, tmp_path / "tars", "--where", "number < 20", "--caption", "text", *given)
    assert code == 0, said
    members = members_in(tmp_path / "tars")
    assert members["id-00019.bmp"] == image_of_number(19) and len(members) == 40


def test_a_recipe_takes_such_a_folder(data, tmp_path):
    recipe = Recipe(id_col="id", statistics=["width"], where="number < 9", export={"caption": "text"})
    summary = curate(data, tmp_path / "out", recipe)
    assert summary.kept == 9, summary
    members = members_in(tmp_path / "out" / "shards")
    assert members["id-00004.bmp"] == image_of_number(4) and len(members) == 18
