"""Samples in Parquet files with their images: which, of what, and what Hugging Face's datasets makes of them."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from colours import colour_of, image_of, write_dataset, write_tar
from PIL import Image
from typer.testing import CliRunner

from curator_dask.cli import app
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, OutputError
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.exporting import export_output
from curator_dask.recipe import Recipe
from curator_dask.webdataset.finding import find_shards

pytestmark = pytest.mark.usefixtures("in_this_process")

SHARDS, SAMPLES = 2, 12


def vector_of(key: str) -> list[float] | None:
    return None if key.endswith("5") else [each / 7 for each in colour_of(key)]


@pytest.fixture
def rows(tmp_path):
    """An output without captions, in another order than the samples'; its tars lie beside."""
    keys = write_dataset(tmp_path / "data", SHARDS, SAMPLES)
    for shard in range(SHARDS):
        mine = [key for key in keys if key.startswith(f"{shard:05d}")][::-1]
        table = pa.table(
            {
                "key": mine,
                "__url__": [str(tmp_path / f"data/{shard:05d}.tar")] * len(mine),
                "emb": pa.array([vector_of(key) for key in mine], pa.list_(pa.float32(), 3)),
                "ragged": pa.array([np.arange(int(key[-2:]), dtype=np.float16) for key in mine]),
                "written": [None if key.endswith("3") else f"a {key}" for key in mine],
                "kind": pa.array(["photo"] * len(mine)).dictionary_encode(),
                "boxes": [[{"x": int(key[-2:])}] for key in mine],
                "day": pa.array([7] * len(mine), pa.date32()),
            }
        )
        (tmp_path / "rows").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / f"rows/{shard:05d}.parquet")
    return tmp_path / "rows"


def held(folder: Path) -> dict[str, dict[str, bytes]]:
    """By key and suffix: all members of all tars, in their order; by Python's tarfile."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.rglob("*.tar")):
        with tarfile.open(path) as tar:
            for each in tar:
                key, _, suffix = each.name.partition(".")
                found.setdefault(key, {})[suffix] = tar.extractfile(each).read()
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def rows_in(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.rglob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def export(rows, out, **options):
    return export_output(rows, out, ExportOptions(**{"format": "parquet", **options}))


def test_images_are_those_of_the_tars_in_their_rows(rows, tmp_path):
    out, before = tmp_path / "out", held(tmp_path / "data")
    summary = export(rows, out, samples_per_shard=7, shuffle=3)
    names = [f"data/train-{number:05d}-of-00004.parquet" for number in range(4)]
    assert [*files(out)] == names
    assert (summary.kept, summary.shards, summary.written, summary.missing) == (24, 4, 4, 0)
    assert summary.bytes == sum(map(len, files(out).values()))
    assert f"{out}: 24 samples in 4 Parquet files" in str(summary)
    assert "left out of the Parquet files, but for what columns say: 24 .json" in str(summary)
    assert summary.members_left == {"json": 24} and summary.habits == []
    # The very samples, in the order in which tars have them.
    export(rows, tmp_path / "tars", format="webdataset", samples_per_shard=7, shuffle=3)
    assert [row["key"] for row in rows_in(out)] == [*held(tmp_path / "tars")]
    for row in rows_in(out):
        key = row["key"]
        assert row["image"] == {"bytes": before[key]["png"], "path": f"{key}.png"}
        assert Image.open(io.BytesIO(row["image"]["bytes"])).getpixel((0, 0)) == colour_of(key)
        assert row["text"] == f"caption of {key}" == before[key]["txt"].decode()
        there = vector_of(key)
        assert row["emb"] == (None if there is None else np.array(there, np.float32).tolist())
        assert row["ragged"] == [*range(int(key[-2:]))] and row["boxes"] == [{"x": int(key[-2:])}]
        assert "__url__" not in row
    manifest = pq.read_table(f"{out}.export/manifest").to_pylist()
    assert [row["key"] for row in manifest] == [row["key"] for row in rows_in(out)]
    for row in manifest:
        source = Path(row["source_shard"]).read_bytes()
        for name, size, at in zip(row["members"], row["sizes"], row["source_offsets"], strict=True):
            assert source[at : at + size] == before[row["key"]][name.partition(".")[2]]


def test_what_is_exported_is_a_dataset_again(rows, tmp_path):
    export(rows, tmp_path / "out", samples_per_shard=7)
    dataset = ImageTextPairDataset.from_parquet(tmp_path / "out").filter("day IS NOT NULL")
    dataset.to_webdataset(tmp_path / "tars", caption="written")
    before, after = held(tmp_path / "data"), held(tmp_path / "tars")
    assert {key: each["png"] for key, each in after.items()} == {
        key: each["png"] for key, each in before.items()
    }
    found = ImageTextPairDataset.from_shards(find_shards(tmp_path / "out"))  # as commands find it
    assert {"key", "emb", "written"} <= {*found.metadata.columns}


def test_what_the_files_say_to_datasets_and_the_viewer(rows, tmp_path):
    export(rows, tmp_path / "out")
    file = pq.ParquetFile(tmp_path / "out/data/train-00000-of-00001.parquet")
    schema = file.schema_arrow
    assert schema.field("emb").type == pa.list_(pa.float32()) and schema.field("kind").type == pa.string()
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert [*features] == schema.names and schema.names[:3] == ["image", "text", "key"]
    number = {"dtype": "float32", "_type": "Value"}
    assert features["image"] == {"_type": "Image"}
    assert features["emb"] == {"feature": number, "_type": "Sequence"}  # one is null
    assert features["ragged"] == {"feature": {**number, "dtype": "float16"}, "_type": "Sequence"}
    assert features["boxes"] == [{"x": {"dtype": "int64", "_type": "Value"}}]
    assert features["day"] == {"dtype": "date32", "_type": "Value"}
    group = file.metadata.row_group(0)
    columns = {group.column(at).path_in_schema: group.column(at) for at in range(group.num_columns)}
    assert columns["image.bytes"].compression == "UNCOMPRESSED" and columns["key"].compression == "ZSTD"
    assert all(each.has_offset_index for each in columns.values())
    assert columns["key"].has_column_index and not columns["image.bytes"].has_column_index


def test_vectors_are_of_a_fixed_length_where_none_is_null(rows, tmp_path):
    """pyarrow before 26.0.1 cannot read null among lists of a fixed length; a file of rows may lack the column."""
    export(rows, tmp_path / "out", where="key not like '%5'", samples_per_shard=9)
    for path in (tmp_path / "out/data").iterdir():
        schema = pq.read_schema(path)
        assert schema.field("emb").type == pa.list_(pa.float32(), 3)
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        number = {"dtype": "float32", "_type": "Value"}
        assert features["emb"] == {"feature": number, "length": 3, "_type": "Sequence"}
    for row in rows_in(tmp_path / "out"):
        assert row["emb"] == np.array(vector_of(row["key"]), np.float32).tolist()
    table = pq.read_table(rows / "00001.parquet")
    pq.write_table(table.drop_columns("emb"), rows / "00001.parquet")
    export(rows, tmp_path / "other", where="key not like '%5'", samples_per_shard=9)
    for path in (tmp_path / "other/data").iterdir():
        assert pq.read_schema(path).field("emb").type == pa.list_(pa.float32())
    assert [row["emb"] is None for row in rows_in(tmp_path / "other")] == [False] * 11 + [True] * 11


def test_rows_of_one_value_are_a_dataset_of_their_own(rows, tmp_path):
    """A folder a value, with all splits; in parts and at once the same; and read again as images."""
    out, by = tmp_path / "out", {"by": "'v ' || right(key, 1)", "samples_per_shard": 2}
    splits = {"splits": {"val": 8}, "split_seed": 2, "where": "right(key, 1) < '3'"}
    summary = export(rows, out, **by, **splits, card=True)
    found = {folder: rows_in(out / folder) for folder in ("v_0", "v_1", "v_2")}
    assert {row["key"][-1] for row in found["v_1"]} == {"1"}
    counts = {name: each.samples for name, each in summary.groups.items()}
    assert sum(counts.values()) == sum(map(len, found.values())) == summary.kept == 10
    told = yaml.safe_load((out / "README.md").read_text().split("---")[1])["configs"]
    assert sorted(each["config_name"] for each in told) == ["default", "v_0", "v_1", "v_2"]
    for each in told[1:]:
        for part in each["data_files"]:
            there = [*out.glob(part["path"])]
            assert (
                sum(pq.read_metadata(path).num_rows for path in there)
                == counts[f"{part['split']}/{each['config_name']}"]
            )
    for number in range(2):
        options = ExportOptions(format="parquet", **by, **splits)
        export_output(rows, tmp_path / "parts", options, part=(number, 2))
    assert files(tmp_path / "parts") == {
        name: data for name, data in files(out).items() if name != "README.md"
    }
    assert export(rows, out, **by, **splits, card=True).written == 0
    again = ImageTextPairDataset.from_parquet(out).compute()
    assert {*again["key"]} == {row["key"] for some in found.values() for row in some}


def test_splits_and_the_card(rows, tmp_path):
    out = tmp_path / "out"
    summary = export(rows, out, splits={"val": 5, "holdout": 3}, samples_per_shard=9, card=True)
    assert [*files(out)] == [
        "README.md",
        "data/holdout-00000-of-00001.parquet",
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
        "data/val-00000-of-00001.parquet",
    ]
    assert {name: (each.samples, each.shards) for name, each in summary.splits.items()} == {
        "train": (16, 2),
        "val": (5, 1),
        "holdout": (3, 1),
    }
    assert summary.splits["val"].bytes == (out / "data/val-00000-of-00001.parquet").stat().st_size
    assert "val: 5 samples in 1 Parquet file" in str(summary)
    front = yaml.safe_load((out / "README.md").read_text().split("---")[1])
    assert front["configs"][0]["data_files"] == [
        {"split": name, "path": f"data/{name}-*.parquet"} for name in ("train", "val", "holdout")
    ]
    assert export(rows, out, splits={"val": 5, "holdout": 3}, samples_per_shard=9, card=True).written == 0


def test_a_second_run_does_what_is_missing_and_others_are_refused(rows, tmp_path):
    out, options = tmp_path / "out", {"samples_per_shard": 10, "shuffle": 1}
    export(rows, out, **options)
    before = files(out)
    assert export(rows, out, **options).written == 0 and files(out) == before
    (out / "data/train-00001-of-00003.parquet").unlink()
    cut = out / "data/train-00002-of-00003.parquet"
    cut.write_bytes(cut.read_bytes()[:-1])
    assert export(rows, out, **options).written == 2 and files(out) == before
    export(rows, tmp_path / "other", **options)
    assert files(tmp_path / "other") == before
    for other in ({"samples_per_shard": 9}, {"shuffle": 2}, {"caption": "written"}, {"max_side": 9}):
        with pytest.raises(OutputError, match="overwrite=True"):
            export(rows, out, **{**options, **other})
    assert files(out) == before


def test_one_format_takes_the_place_of_the_other_when_asked_to(rows, tmp_path):
    out = tmp_path / "out"
    made = {}
    for now in ("parquet", "webdataset", "parquet"):
        if made:
            with pytest.raises(OutputError, match="overwrite=True"):
                export(rows, out, format=now)
            assert files(out) == made
        export(rows, out, format=now, overwrite=True)
        made = files(out)
        assert {path.rpartition(".")[2] for path in made} == (
            {"parquet"} if now == "parquet" else {"tar", "idx", "parquet", "json"}
        )
        assert len(made) == (1 if now == "parquet" else 4)


def test_rows_of_others_in_the_folder_are_no_part_of_it(rows, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    pq.write_table(pa.table({"a": [1]}), out / "mine.parquet")
    with pytest.raises(OutputError, match=r"mine\.parquet: is there, and is not of this export"):
        export(rows, out)
    assert [*files(out)] == ["mine.parquet"]


def test_smaller_images_are_those_of_tars(rows, tmp_path):
    options = {"max_side": 12, "image_format": "jpeg", "samples_per_shard": 50}
    summary = export(rows, tmp_path / "out", **options)
    export(rows, tmp_path / "tars", format="webdataset", **options)
    tars = held(tmp_path / "tars")
    found = rows_in(tmp_path / "out")
    assert len(found) == 24 and summary.images_smaller == 24
    beside = {row["key"]: row for row in pq.read_table(tmp_path / "tars/00000.parquet").to_pylist()}
    for row in found:
        assert row["image"] == {"bytes": tars[row["key"]]["jpg"], "path": f"{row['key']}.jpg"}
        for name in ("exported_width", "exported_height", "exported_bytes"):
            assert row[name] == beside[row["key"]][name]
        assert row["exported_bytes"] == len(row["image"]["bytes"])


@pytest.mark.parametrize("metadata", ["parquet", None])
def test_captions(rows, tmp_path, metadata):
    summary = export(rows, tmp_path / "out", caption="written", metadata=metadata)
    for row in rows_in(tmp_path / "out"):
        key = row["key"]
        assert row["text"] == (f"caption of {key}" if key.endswith("3") else f"a {key}")
        assert ("written" in row) == (metadata is not None)
    assert (summary.no_caption, summary.kept_caption) == (2, 2)
    # Rows that have the captions in a column need no other.
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")
    done = dataset.to_webdataset(tmp_path / "of frame", format="parquet", where="key not like '%7'")
    found = rows_in(tmp_path / "of frame")
    assert [*found[0]] == ["image", "key", "caption", "width"] and len(found) == 22
    assert done.members_left == {"json": 22, "txt": 22}
    for row in found:
        assert row["caption"] == f"caption of {row['key']}"
        assert Image.open(io.BytesIO(row["image"]["bytes"])).getpixel((0, 0)) == colour_of(row["key"])


def test_several_images_and_none(tmp_path):
    members = [
        ("a/1.mask.png", image_of("9")),
        ("a/1.png", image_of("1")),
        ("a/1.txt", b"\xff is Latin-1"),
        ("2.depth.png", image_of("2")),
        ("3.txt", b"alone"),
    ]
    write_tar(tmp_path / "data/0.tar", members)
    pq.write_table(pa.table({"key": ["3", "a/1", "2"]}), tmp_path / "data/0.parquet")
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")
    summary = dataset.to_webdataset(tmp_path / "out", format="parquet")
    found = {row["key"]: row for row in rows_in(tmp_path / "out")}
    assert found["a/1"]["image"] == {"bytes": image_of("1"), "path": "a/1.png"}
    assert found["a/1"]["text"] == "ÿ is Latin-1" and found["3"]["text"] == "alone"
    assert found["2"]["image"]["bytes"] == image_of("2") and found["2"]["text"] is None
    assert found["3"]["image"] is None and summary.no_image == 1 and summary.members_left == {"mask.png": 1}
    assert "1 sample has no image: it is null" in str(summary)
    dataset.to_webdataset(tmp_path / "masks", format="parquet", image_member="mask.png", keys="sequential")
    found = rows_in(tmp_path / "masks")
    assert [row["image"] and row["image"]["path"] for row in found] == [None, "000000001.mask.png", None]
    assert found[1]["image"]["bytes"] == image_of("9")


def test_files_of_at_most_so_many_bytes_and_row_groups(tmp_path):
    """The bytes of a file, and of a row group, have a limit, whatever their images have."""
    keys, large = [f"{number:02d}" for number in range(7)], os.urandom(10_000_000)
    images = {key: key.encode() * (1 + int(key)) + large for key in keys}
    write_tar(tmp_path / "data/0.tar", [(f"{key}.jpg", data) for key, data in images.items()])
    pq.write_table(pa.table({"key": keys}), tmp_path / "data/0.parquet")
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")
    options = {"format": "parquet", "shard_bytes": 60_000_000, "max_side": 9}  # they are no images, and stay
    planned = dataset.to_webdataset(tmp_path / "out", **options, dry_run=True)
    assert not (tmp_path / "out").exists() and planned.shards == 2
    assert 70_000_000 < planned.needed < 70_100_000
    dataset.to_webdataset(tmp_path / "out", **options)
    counts = []
    for path in sorted((tmp_path / "out/data").iterdir()):
        assert path.stat().st_size < 60_000_000
        said = pq.ParquetFile(path).metadata
        counts += [said.row_group(number).num_rows for number in range(said.num_row_groups)]
        for row in pq.read_table(path).to_pylist():
            assert row["exported_bytes"] == len(images[row["key"]])
            assert row["image"]["bytes"] == images.pop(row["key"])
    assert counts == [4, 1, 2] and not images


def test_what_cannot_be_done(rows, tmp_path):
    for options in (
        {"columns": ["kind"]},
        {"npy": ["emb"]},
        {"metadata": "json"},
        {"sizes": True},
        {"max_shards": 6},
    ):
        name = next(iter(options))
        with pytest.raises(ConfigError, match=rf"{name}=.*: is of tars"):
            ExportOptions(format="parquet", **options)
    with pytest.raises(ConfigError, match="expected one of 'webdataset', 'parquet'"):
        ExportOptions(format="csv")
    for name, values, why in (
        ("image", ["x"] * SAMPLES, "the rows have a column 'image'"),
        ("text", ["x"] * SAMPLES, r"caption='written': goes into a column 'text'"),
        ("odd", pa.array([[("a", 1)]] * SAMPLES, pa.map_(pa.string(), pa.int64())), "'odd' is map<string"),
    ):
        table = pq.read_table(rows / "00001.parquet")
        pq.write_table(table.append_column(name, pa.array(values)), rows / "00001.parquet")
        with pytest.raises(ConfigError, match=why):
            export(rows, tmp_path / "out", caption="written")
        pq.write_table(table, rows / "00001.parquet")
    assert not (tmp_path / "out").exists()


def test_the_command_and_a_recipe(rows, tmp_path):
    out = tmp_path / "out"
    export(rows, out, samples_per_shard=9, image_member="png")
    # Nothing is left to do for the same files alone, and no workers are started for that.
    told = [
        "export",
        str(rows),
        str(out),
        *["--format", "parquet", "--samples-per-shard", "9", "--image", "png"],
    ]
    done = CliRunner().invoke(app, [*told, "--cluster", "cpu"], catch_exceptions=False)
    assert done.exit_code == 0 and "0 written, 3 finished before" in done.output, done.output
    assert Recipe(statistics=["width"], export={"format": "parquet"}).options(overwrite=False).is_tables


@pytest.mark.slow
def test_hugging_faces_datasets(rows, tmp_path):
    """Splits by the names that they were given, with a card and without one; images at once."""
    datasets = pytest.importorskip("datasets")
    splits = {"val": 5, "holdout": 3}
    export(rows, tmp_path / "out", splits=splits)
    export(rows, tmp_path / "with card", splits=splits, card=True)
    for call in (
        {"path": "parquet", "data_dir": str(tmp_path / "out")},
        {"path": str(tmp_path / "out")},
        {"path": str(tmp_path / "with card")},
    ):
        found = datasets.load_dataset(**call, cache_dir=str(tmp_path / "hf"))
        assert {name: len(split) for name, split in found.items()} == {"train": 16, **splits}
        for split in found.values():
            for row in split:
                assert row["image"].getpixel((0, 0)) == colour_of(row["key"])
                assert row["text"] == f"caption of {row['key']}"
                there = vector_of(row["key"])
                assert row["emb"] == (None if there is None else np.array(there, np.float32).tolist())
    by = {"by": "right(key, 1)", "where": "right(key, 1) < '3'", "samples_per_shard": 2}
    summary = export(rows, tmp_path / "by", **by, splits={"holdout": 3}, card=True)
    every = {split: [] for split in ("train", "holdout")}
    for value in "012":
        # By the card of all, and a folder of its own without it.
        for call in ({"path": str(tmp_path / "by"), "name": value}, {"path": str(tmp_path / "by" / value)}):
            found = datasets.load_dataset(**call, cache_dir=str(tmp_path / "hf"))
            counts = {name: summary.groups[f"{name}/{value}"].samples for name in found}
            assert {name: len(split) for name, split in found.items()} == counts and sum(counts.values()) >= 2
            for row in (row for split in found.values() for row in split):
                assert row["key"][-1] == value and row["image"].getpixel((0, 0)) == colour_of(row["key"])
        for name, split in found.items():
            every[name] += split["key"]
    whole = datasets.load_dataset(str(tmp_path / "by"), cache_dir=str(tmp_path / "hf"))
    assert {name: sorted(split["key"]) for name, split in whole.items()} == {
        name: sorted(keys) for name, keys in every.items()
    }
    assert len(every["holdout"]) == 3 and len({*every["train"], *every["holdout"]}) == summary.kept == 10
