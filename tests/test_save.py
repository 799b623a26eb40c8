"""`save_metadata`: one schema, atomic files, resuming, and nothing replaced that should not be."""

from __future__ import annotations

import datetime
import decimal
import json
import os

import dask
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from colours import ColourReader, check_colours, colour_of, members_of, read_output, write_dataset, write_tar

import curator_dask
from curator_dask.cluster.progress import Meter, watch
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, ImageError, OutputError, WeightsError
from curator_dask.fingerprint import fingerprint
from curator_dask.frames.parquet import read_record
from curator_dask.image.embedders import TimmImageEmbedder
from curator_dask.outputs.parquet import ParquetSink
from curator_dask.outputs.writing import Output
from curator_dask.runs import groups, targets
from curator_dask.runs.lineage import trace
from curator_dask.runs.settle import write_graph
from curator_dask.runs.sink import Job

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture
def folder(tmp_path):
    write_dataset(tmp_path / "data")
    return tmp_path / "data"


class ColourReaderTwice(ColourReader):
    """Another model under the same column: its vectors are twice as long."""

    def load_embedding_model(self, device):
        return lambda images: images.mean(dim=(2, 3)) * 510


def embedded(folder, embedder=None, **settings):
    return (embedder or ColourReader())(ImageTextPairDataset.from_webdataset(folder, **settings))


def stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}


def test_files_schema_and_summary(folder, tmp_path, said):
    summary = embedded(folder).save_metadata(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "00000.parquet",
        "00001.parquet",
        "00002.parquet",
    ]
    for path in (tmp_path / "out").iterdir():
        schema = pq.read_schema(path)
        assert schema.names == ["key", "caption", "width", "__url__", "image_embedding", "image_error"]
        assert schema.field("image_embedding").type == pa.list_(pa.float32(), 3)
        assert schema.field("width").type == pa.int64()
        assert schema.field("image_error").type == pa.string()
        assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"
        made = read_record(str(path)).embeddings["image_embedding"]
        assert (made["model"].partition(" [code")[0], made["dim"], made["output"], made["dtype"]) == (
            "ColourReader()",
            3,
            "model",
            "float32",
        )
    table = read_output(tmp_path / "out")
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist())
    assert (summary.rows, summary.failed, summary.written, summary.skipped) == (30, 0, 3, 0)
    assert not summary.failed_shards
    printed = said.text
    assert "30 rows in 3 files; 0 failed images" in printed
    assert "image_embedding: 3 values, model output of ColourReader() [code " in printed


def test_metadata_without_embeddings_equals_pandas(folder, tmp_path):
    ImageTextPairDataset.from_webdataset(folder).save_metadata(tmp_path / "out")
    for name in ("00000", "00001", "00002"):
        expected = pd.read_parquet(folder / f"{name}.parquet").assign(__url__=str(folder / f"{name}.tar"))
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out" / f"{name}.parquet"), expected)


def test_partitions_without_rows_have_the_same_schema(folder, tmp_path):
    dataset = ImageTextPairDataset.from_webdataset(folder)
    dataset = ColourReader()(
        dataset.with_metadata(dataset.metadata[dataset.metadata.key.str.startswith("00001")])
    )
    summary = dataset.save_metadata(tmp_path / "out")
    assert (summary.rows, summary.written) == (10, 3)
    first, second, third = (pq.read_schema(path) for path in sorted((tmp_path / "out").iterdir()))
    assert first.equals(second)
    assert first.equals(third)
    check_colours(*(read_output(tmp_path / "out")[name].to_pylist() for name in ("key", "image_embedding")))


def test_parts_of_a_shard(folder, tmp_path):
    embedded(folder, rows_per_partition=6).save_metadata(tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names[:2] == ["00000.part-00000.parquet", "00000.part-00001.parquet"]
    assert len(names) == 6
    table = read_output(tmp_path / "out")
    assert len(set(table["key"].to_pylist())) == len(table) == 30
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist())


def test_mixed_partitions_are_saved_too(folder, tmp_path):
    dataset = embedded(folder)
    dataset = dataset.with_metadata(dataset.metadata.repartition(npartitions=2))
    dataset.save_metadata(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "part-00000.parquet",
        "part-00001.parquet",
    ]
    table = read_output(tmp_path / "out")
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist())
    assert dataset.save_metadata(tmp_path / "out").skipped == 2


def test_rerun_computes_only_what_is_missing_or_changed(folder, tmp_path):
    out = tmp_path / "out"
    embedded(folder).save_metadata(out)
    before = stamps(out)
    assert embedded(folder).save_metadata(out).written == 0
    assert stamps(out) == before

    (out / "00001.parquet").unlink()
    summary = embedded(folder).save_metadata(out)
    assert (summary.written, summary.skipped) == (1, 2)
    after = stamps(out)
    assert {name for name in after if after[name] != before[name]} == {"00001.parquet"}

    # A shard that was written anew, and one that came to the dataset.
    keys = [f"00002{number:04d}" for number in range(3)]
    write_tar(folder / "00002.tar", [member for key in keys for member in members_of(key)])
    write_tar(folder / "00003.tar", members_of("000030000"))
    pq.write_table(pq.read_table(folder / "00000.parquet").slice(0, 0), folder / "00003.parquet")
    summary = embedded(folder).save_metadata(out)
    assert (summary.written, summary.skipped) == (2, 2)
    assert summary.reasons == {"missing": 7}


def other_version(folder, monkeypatch):
    monkeypatch.setattr(curator_dask, "__version__", "0.0.1")
    return embedded(folder), {}


def fewer_columns(folder, monkeypatch):
    return embedded(folder), {"columns": ["key", "__url__", "image_embedding", "image_error"]}


def other_step(folder, monkeypatch):
    return embedded(folder, ColourReader(max_pixels=9_999)), {}


def rows_of_tars(folder, monkeypatch):
    dataset = ImageTextPairDataset.from_webdataset(folder, metadata="tar")
    return ColourReader()(dataset), {
        "columns": ["key", "caption", "width", "__url__", "image_embedding", "image_error"]
    }


@pytest.mark.parametrize("change", [other_version, fewer_columns, other_step, rows_of_tars])
def test_what_a_file_depends_on_makes_it_anew(folder, tmp_path, monkeypatch, change):
    """Nothing of what was written before is taken for finished."""
    embedded(folder).save_metadata(tmp_path / "out")
    dataset, settings = change(folder, monkeypatch)
    for written, skipped in ((3, 0), (0, 3)):
        summary = dataset.save_metadata(tmp_path / "out", **settings)
        assert (summary.written, summary.skipped) == (written, skipped)


def test_partitions_picked_keep_their_names_and_what_is_finished(folder, tmp_path):
    dataset = embedded(folder)
    dataset.with_metadata(dataset.metadata.partitions[1:]).save_metadata(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["00001.parquet", "00002.parquet"]
    summary = dataset.save_metadata(tmp_path / "out")
    assert (summary.written, summary.skipped) == (1, 2)


def test_a_file_whose_vectors_were_taken_out_is_made_again(folder, tmp_path):
    """Other programs keep what the file says of itself, and write it with fewer columns."""
    embedded(folder).save_metadata(tmp_path / "out")
    path = tmp_path / "out" / "00001.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["image_embedding"]), path)
    summary = embedded(folder).save_metadata(tmp_path / "out")
    assert (summary.written, summary.skipped) == (1, 2)
    table = read_output(tmp_path / "out")
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist())


def test_embedding_of_another_model_is_not_replaced(folder, tmp_path):
    out = tmp_path / "out"
    embedded(folder).save_metadata(out)
    before = stamps(out)
    with pytest.raises(
        OutputError, match=r"00000\.parquet.*model ColourReader\(\).*; this run.*model ColourReaderTwice\(\)"
    ):
        embedded(folder, ColourReaderTwice()).save_metadata(out)
    assert stamps(out) == before
    embedded(folder, ColourReaderTwice()).save_metadata(out, overwrite=True)
    table = read_output(out)
    np.testing.assert_allclose(
        np.stack(table["image_embedding"].to_pylist()).max(axis=1) > 255,
        [max(colour_of(key)) > 127 for key in table["key"].to_pylist()],
    )


@pytest.mark.parametrize("column", ["image_embedding", "other"])
def test_foreign_files_are_not_replaced(folder, tmp_path, column):
    out = tmp_path / "out"
    out.mkdir()
    pq.write_table(pa.table({column: [1]}), out / "00001.parquet")
    with pytest.raises(OutputError, match=r"1 file would.*00001\.parquet"):
        embedded(folder).save_metadata(out)
    assert not (out / "00000.parquet").exists()
    assert embedded(folder).save_metadata(out, overwrite=True).rows == 30


def test_into_the_datasets_own_directory(folder):
    embedded(folder).save_metadata()
    dataset = ImageTextPairDataset.from_webdataset(folder)
    assert "image_embedding" in dataset.metadata.columns
    frame = dataset.compute()
    check_colours(frame["key"], frame["image_embedding"])
    assert ColourReader()(dataset).save_metadata().skipped == 3

    # A second model: the first one's vectors stay, and so does what is known of them.
    ColourReaderTwice(image_embedding_column="twice")(dataset).save_metadata()
    stored = read_record(str(folder / "00000.parquet")).embeddings
    assert {name: info["model"].partition(" [code")[0] for name, info in stored.items()} == {
        "image_embedding": "ColourReader()",
        "twice": "ColourReaderTwice()",
    }
    table = read_output(folder)
    assert table.schema.field("image_embedding").type == pa.list_(pa.float32(), 3)
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist())
    assert "caption" in table.column_names


def test_own_directory_without_parquet_resumes(tmp_path):
    write_dataset(tmp_path, parquet=False)
    embedded(tmp_path).save_metadata()
    (tmp_path / "00001.parquet").unlink()  # as if the run had been interrupted
    summary = embedded(tmp_path).save_metadata()
    assert (summary.written, summary.skipped) == (1, 2)
    assert embedded(tmp_path).save_metadata().skipped == 3


def test_own_directory_keeps_rows_and_columns(folder):
    dataset = embedded(folder)
    before = stamps(folder)
    fewer = dataset.with_metadata(dataset.metadata[dataset.metadata.key.str.endswith("1")])
    with pytest.raises(OutputError, match=r"has 10 rows and would be replaced by one with 1"):
        fewer.save_metadata()
    with pytest.raises(OutputError, match=r"drop their columns \['caption', 'width'\]"):
        dataset.save_metadata(columns=["key", "__url__", "image_embedding"])
    assert stamps(folder) == before
    assert fewer.save_metadata(overwrite=True).rows == 3


def test_columns(folder, tmp_path):
    embedded(folder).save_metadata(tmp_path / "out", columns=["key", "image_embedding"])
    assert read_output(tmp_path / "out").column_names == ["key", "image_embedding"]
    with pytest.raises(ConfigError, match=r"no such columns \['nothing'\].*'key'"):
        embedded(folder).save_metadata(tmp_path / "out", columns=["nothing"])


def test_drop_failed(tmp_path):
    write_dataset(
        tmp_path / "data", shards=2, samples=5, bad={"000000001": b"", "000000003": b"GIF8nonsense"}
    )
    summary = embedded(tmp_path / "data").save_metadata(tmp_path / "out", drop_failed=True)
    assert (summary.rows, summary.failed) == (10, 2)
    good, errors = read_output(tmp_path / "out"), read_output(tmp_path / "out.errors")
    assert sorted(errors["key"].to_pylist()) == ["000000001", "000000003"]
    assert errors["image_embedding"].null_count == 2
    assert errors["image_error"].null_count == 0
    assert len(good) == 8
    check_colours(good["key"].to_pylist(), good["image_embedding"].to_pylist())
    assert not (tmp_path / "out.errors" / "00001.parquet").exists()
    assert summary.reasons["empty"] == 1
    assert "000000001" in summary.examples["empty"][0]


def test_a_shard_that_cannot_be_read_does_not_stop_the_others(folder, tmp_path):
    (folder / "00001.tar").write_bytes(b"")
    summary = embedded(folder).save_metadata(tmp_path / "out")
    assert list(summary.failed_shards) == ["00001"]
    assert "00001.tar" in summary.failed_shards["00001"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["00000.parquet", "00002.parquet"]


def test_a_bad_parquet_does_not_stop_the_others(folder, tmp_path):
    (folder / "00001.parquet").write_bytes(b"PAR1 nothing more")
    summary = embedded(folder).save_metadata(tmp_path / "out")
    assert list(summary.failed_shards) == ["00001"]
    assert "metadata='tar'" in summary.failed_shards["00001"]
    assert summary.rows == 20


def test_on_error_raise_ends_the_run(tmp_path):
    write_dataset(tmp_path / "data", bad={"000010001": b""})
    with pytest.raises(ImageError, match=r"00001\.tar.*'000010001'"):
        embedded(tmp_path / "data", ColourReader(on_error="raise")).save_metadata(tmp_path / "out")


def test_output_that_cannot_be_written(folder, tmp_path):
    (tmp_path / "out").write_text("a file, not a folder")
    with pytest.raises(OutputError, match="could not be written"):
        embedded(folder).save_metadata(tmp_path / "out")


def test_leftovers_of_dead_processes_are_removed(folder, tmp_path):
    out = tmp_path / "out"
    embedded(folder).save_metadata(out)
    from curator_dask.frames.committing import machine_name

    dead = out / f".00000.parquet.{machine_name()}-4194300-0123abcd.tmp"
    alive = out / f".00000.parquet.{machine_name()}-{os.getpid()}-0123abcd.tmp"
    elsewhere = out / ".00000.parquet.another-host-4194300-0123abcd.tmp"
    for path in (dead, alive, elsewhere):
        path.write_bytes(b"PAR1")
    embedded(folder).save_metadata(out)
    assert not dead.exists()
    assert alive.exists()
    assert elsewhere.exists()


def test_same_stem_in_two_folders(tmp_path):
    write_dataset(tmp_path / "data" / "a", shards=1, key="{shard:05d}{sample:04d}")
    write_dataset(tmp_path / "data" / "b", shards=1, key="{shard:05d}1{sample:03d}")
    embedded(tmp_path / "data").save_metadata(tmp_path / "out")
    for name in "ab":
        table = read_output(tmp_path / "out" / name)
        assert set(table["__url__"].to_pylist()) == {str(tmp_path / "data" / name / "00000.tar")}
        check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist())


def test_stored_metadata_is_plain_json(folder, tmp_path):
    embedded(folder).save_metadata(tmp_path / "out")
    stored = json.loads(pq.read_schema(tmp_path / "out" / "00000.parquet").metadata[b"curator_dask"])
    assert stored["shard"]["tar"]["size"] == (folder / "00000.tar").stat().st_size
    assert stored["embeddings"]["image_embedding"]["transform"]["size"] == [16, 16]
    assert len(stored["fingerprint"]) == 64


def test_settings_that_only_change_the_speed_do_not_recompute(folder, tmp_path):
    embedded(folder).save_metadata(tmp_path / "out")
    summary = embedded(folder, ColourReader(batch_size=7, num_threads_per_worker=2)).save_metadata(
        tmp_path / "out"
    )
    assert summary.skipped == 3


def test_shards_that_have_other_names_now_do_not_stay_beside(tmp_path):
    """Shards of a second folder came, and with it a part of the name: they are read from one folder above."""
    out = tmp_path / "out"
    for name in ("a", "b"):
        write_dataset(tmp_path / "data" / name, 2, 3, key=name + "{shard:05d}{sample:04d}")

    def save(pattern, **how):
        return ImageTextPairDataset.from_webdataset(str(tmp_path / "data" / pattern)).save_metadata(
            out, **how
        )

    assert save("a/{00000..00001}.tar").written == 2
    with pytest.raises(OutputError, match=r"2 files of the same rows in other partitions.*use overwrite"):
        save("{a,b}/{00000..00001}.tar")
    assert save("{a,b}/{00000..00001}.tar", overwrite=True).written == 4
    assert {str(path.relative_to(out)) for path in out.rglob("*.parquet")} == {
        f"{name}/0000{number}.parquet" for name in "ab" for number in range(2)
    }


def test_other_partitions_of_the_same_rows_do_not_stay_beside(folder, tmp_path):
    out = tmp_path / "out"
    embedded(folder).save_metadata(out)
    with pytest.raises(OutputError, match=r"3 files of the same rows.*00000\.parquet.*rows_per_partition"):
        embedded(folder, rows_per_partition=6).save_metadata(out)
    embedded(folder, rows_per_partition=6).save_metadata(out, overwrite=True)
    assert len(list(out.iterdir())) == 6
    assert sorted(read_output(out)["key"].to_pylist()) == sorted(
        key for path in folder.glob("*.parquet") for key in pq.read_table(path)["key"].to_pylist()
    )
    with pytest.raises(OutputError, match=r"6 files of the same rows"):
        embedded(folder).save_metadata(out)


def test_drop_failed_can_be_taken_back(tmp_path):
    write_dataset(tmp_path / "data", shards=1, samples=5, bad={"000000001": b""})
    embedded(tmp_path / "data").save_metadata(tmp_path / "out", drop_failed=True)
    assert len(read_output(tmp_path / "out.errors")) == 1
    embedded(tmp_path / "data").save_metadata(tmp_path / "out")
    assert len(read_output(tmp_path / "out")) == 5
    assert not list((tmp_path / "out.errors").iterdir())


def test_lists_of_fixed_size_keep_their_type(tmp_path):
    write_dataset(tmp_path / "data", shards=1, samples=3, parquet=False)
    columns = {
        "key": ["000000000", "000000001", "000000002"],
        "ids": pa.array([[16777217, 9007199254740993], None, [1, 2]], pa.list_(pa.int64(), 2)),
        "doubles": pa.array([[0.1, 1e300], [1, 2], None], pa.list_(pa.float64(), 2)),
        "words": pa.array([["a", "b"], None, ["c", "d"]], pa.list_(pa.string(), 2)),
        "box": pa.array([[1, 2, 3, 4]] * 3, pa.list_(pa.int32(), 4)),
    }
    table = pa.table(columns)
    pq.write_table(table, tmp_path / "data" / "00000.parquet")
    dataset = embedded(tmp_path / "data")
    assert [dataset.save_metadata(tmp_path / "out").written for _ in range(2)] == [1, 0]  # known again
    dataset.save_metadata()
    for path in (tmp_path / "out", tmp_path / "data"):
        written = pq.read_table(path / "00000.parquet")
        for name in columns:
            assert written.schema.field(name).type == table.schema.field(name).type
            assert written[name].to_pylist() == table[name].to_pylist()


def test_a_column_of_any_type_is_known_again(tmp_path):
    """What a type means counts, not how it prints."""
    write_dataset(tmp_path / "data", shards=1, samples=3, parquet=False)
    day, now = datetime.date(2024, 2, 29), datetime.datetime(2024, 2, 29, 12, 30, 1)
    small = ((32, pa.decimal32(5, 2)), (64, pa.decimal64(10, 2)))
    tensor = pa.fixed_shape_tensor(pa.float32(), (2, 2))
    of = {
        **{f"i{bits}": pa.array([1, None, 2], f"int{bits}") for bits in (8, 16, 32, 64)},
        **{f"u{bits}": pa.array([1, None, 2], f"uint{bits}") for bits in (8, 16, 32, 64)},
        **{
            kind: pa.array([0.5, None, 1.5], pa.float64()).cast(kind)
            for kind in ("float16", "float32", "float64")
        },
        "bool": pa.array([True, None, False]),
        "null": pa.nulls(3),
        **{
            str(kind): pa.array(["a", None, "ü"], kind)
            for kind in (pa.string(), pa.large_string(), pa.string_view())
        },
        **{
            str(kind): pa.array([b"a", None, b"b"], kind)
            for kind in (pa.binary(), pa.large_binary(), pa.binary(1))
        },
        "dictionary": pa.array(["a", None, "a"]).dictionary_encode(),
        "decimal": pa.array([decimal.Decimal("1.25"), None, None], pa.decimal128(20, 2)),
        "decimal256": pa.array([decimal.Decimal("1.25"), None, None], pa.decimal256(40, 2)),
        "date32": pa.array([day, None, day], pa.date32()),
        "date64": pa.array([day, None, day], pa.date64()),
        **{f"at_{unit}": pa.array([now, None, now], pa.timestamp(unit)) for unit in ("s", "ms", "us", "ns")},
        "zone": pa.array([now, None, now], pa.timestamp("us", "Europe/Berlin")),
        "time32": pa.array([now.time(), None, None], pa.time32("ms")),
        "time64": pa.array([now.time(), None, None], pa.time64("us")),
        "duration": pa.array([datetime.timedelta(1), None, None], pa.duration("us")),
        "list": pa.array([[1], None, []], pa.list_(pa.int64())),
        "large_list": pa.array([[1], None, []], pa.large_list(pa.int64())),
        "lists": pa.array([[["a"], []], None, []], pa.list_(pa.list_(pa.string()))),
        "struct": pa.array([{"x": 1, "y": ["a"]}, None, {"x": None, "y": None}]),
        "map": pa.array([[("a", 1)], None, []], pa.map_(pa.string(), pa.int64())),
        **{f"decimal{bits}": pa.array([decimal.Decimal("1.25"), None, None], kind) for bits, kind in small},
        "list_view": pa.array([[1], None, []], pa.list_view(pa.int64())),
        "grid": pa.array([[[1, 2], [3, 4]], None, [[5, 6], None]], pa.list_(pa.list_(pa.int32(), 2), 2)),
        "boxes": pa.array([[{"x": 1}], None, [{"x": None}]], pa.list_(pa.struct({"x": pa.int8()}), 1)),
        "labels": pa.array([["a"], None, []], pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        "uuid": pa.array([bytes(16), None, bytes(range(16))], pa.uuid()),
        "json": pa.array(['{"a": 1}', None, "[]"], pa.json_()),
        "tensor": pa.ExtensionArray.from_storage(tensor, pa.array([[1.0, 2, 3, 4]] * 3, tensor.storage_type)),
    }
    table = pa.table({"key": [f"{number:09d}" for number in range(3)], **of})
    pq.write_table(table, tmp_path / "data" / "00000.parquet")
    stored = pq.read_table(tmp_path / "data" / "00000.parquet")
    for _ in range(2):  # the dataset anew, as another process makes it
        dataset = embedded(tmp_path / "data")
        written = [dataset.save_metadata(tmp_path / "out").written for _ in range(2)]
    assert written == [0, 0]
    found = pq.read_table(tmp_path / "out")
    differ = [name for name in of if found[name].to_pylist() != stored[name].to_pylist()]
    assert not differ


class OwnTransform(ColourReader):
    """Its transform is a function, whose code counts."""

    def __init__(self, transform, **settings):
        super().__init__(**settings)
        self.chosen = transform.__name__
        self._transform = transform

    @property
    def transform(self):
        return self._transform


def full(image):
    return torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1)[:, :8, :8]


def test_code_of_an_own_transform_is_part_of_the_fingerprint(folder, tmp_path):
    def half(image):
        return full(image) / 2

    one = OwnTransform(full)
    embedded(folder, one).save_metadata(tmp_path / "out")
    check_colours(*(read_output(tmp_path / "out")[name].to_pylist() for name in ("key", "image_embedding")))
    assert embedded(folder, OwnTransform(full)).save_metadata(tmp_path / "out").skipped == 3
    other = OwnTransform(half)
    other.chosen = "full"  # the same settings: only the code differs
    with pytest.raises(OutputError, match=r"was made with model .*code"):
        embedded(folder, other).save_metadata(tmp_path / "out")
    one.version = "2"
    with pytest.raises(OutputError, match=r"this run has model .*"):
        embedded(folder, one).save_metadata(tmp_path / "out")


def test_mixed_partitions_notice_a_changed_shard(folder, tmp_path):
    def save():
        dataset = embedded(folder)
        return dataset.with_metadata(dataset.metadata.repartition(npartitions=2)).save_metadata(
            tmp_path / "out"
        )

    save()
    assert save().skipped == 2
    (folder / "00002.tar").touch()
    assert save().written == 2


def test_frames_from_elsewhere_are_written_anew(folder, tmp_path):
    dataset = ImageTextPairDataset.from_webdataset(folder)
    persisted = dataset.persist()
    ColourReader()(persisted).save_metadata(tmp_path / "out")
    (folder / "00002.tar").touch()
    assert ColourReader()(persisted).save_metadata(tmp_path / "out").written == 3


def test_a_join_with_more_partitions_than_shards_loses_nothing(tmp_path):
    keys = write_dataset(tmp_path / "data", shards=1, samples=9)
    notes = dask.dataframe.from_pandas(pd.DataFrame({"key": keys, "note": range(9)}), npartitions=3)
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")
    joined = ColourReader()(dataset.with_metadata(dataset.metadata.merge(notes, on="key")))
    assert joined.save_metadata(tmp_path / "out").rows == 9
    table = read_output(tmp_path / "out")
    assert sorted(table["key"].to_pylist()) == keys
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist())


def test_text_of_other_programs_keeps_its_type(folder, tmp_path):
    # Polars writes large_string. Whatever is done to the rows, the keys still meet those of plain pandas.
    for path in folder.glob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.set_column(0, "key", table["key"].cast(pa.large_string())), path)
    dataset = ImageTextPairDataset.from_webdataset(folder)
    # As the reader makes it, so that a step sees the same column whether or not shards are taken in groups.
    computed = dataset.metadata["key"].compute()
    assert dataset.metadata.dtypes["key"] == computed.dtype == pd.StringDtype("pyarrow")
    keys = computed.tolist()
    notes = pd.DataFrame({"key": keys[1::2], "note": range(len(keys[1::2]))})
    asked = dataset.metadata[dataset.metadata.key.isin(keys[2:])].merge(notes, on="key").shuffle("key")
    ColourReader()(dataset.with_metadata(asked)).save_metadata(tmp_path / "out")
    table = read_output(tmp_path / "out")
    assert sorted(table["key"].to_pylist()) == sorted({*keys[2:]} & {*keys[1::2]})
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist())
    ColourReader()(dataset).save_metadata(tmp_path / "all")
    schema = pq.read_schema(tmp_path / "all" / "00000.parquet")
    assert schema.field("key").type == pa.large_string()


def test_failed_rows_are_not_dropped_from_the_datasets_own_files(folder):
    with pytest.raises(ConfigError, match="give save_metadata a path"):
        embedded(folder).save_metadata(drop_failed=True)


def test_a_tar_that_grew_after_it_was_saved_in_place(tmp_path):
    write_dataset(tmp_path, shards=2, samples=3, parquet=False)
    embedded(tmp_path).save_metadata()
    keys = [f"00001{number:04d}" for number in range(5)]
    write_tar(tmp_path / "00001.tar", [member for key in keys for member in members_of(key)])
    summary = embedded(tmp_path).save_metadata()
    assert (summary.rows, summary.written, summary.skipped) == (5, 1, 1)
    assert pq.read_table(tmp_path / "00001.parquet")["key"].to_pylist() == keys
    write_tar(tmp_path / "00002.tar", members_of("000020000"))
    summary = embedded(tmp_path).save_metadata()
    assert (summary.rows, summary.written, summary.skipped) == (1, 1, 2)


def test_mixed_partitions_beside_those_of_shards(folder, tmp_path):
    dataset = embedded(folder)
    dataset.save_metadata(tmp_path / "out")
    mixed = dataset.with_metadata(dataset.metadata.repartition(npartitions=2))
    with pytest.raises(OutputError, match="3 files of the same rows"):
        mixed.save_metadata(tmp_path / "out")
    with pytest.raises(OutputError, match="would lie beside the dataset's own Parquet files"):
        mixed.save_metadata()
    with pytest.raises(OutputError, match="would lie beside the dataset's own Parquet files"):
        embedded(folder, rows_per_partition=4).save_metadata()


def test_another_datasets_output_is_not_replaced(folder, tmp_path):
    embedded(folder).save_metadata(tmp_path / "out")
    write_dataset(tmp_path / "other", key="{shard:05d}9{sample:03d}")
    with pytest.raises(OutputError, match=r"was made of .*data/00000\.tar, not of .*other/00000\.tar"):
        embedded(tmp_path / "other").save_metadata(tmp_path / "out")


@pytest.mark.parametrize("column", ["__url__", "image_error"])
def test_own_columns_of_our_names_are_not_replaced_in_place(tmp_path, column):
    write_dataset(tmp_path, shards=1, samples=2)
    table = pq.read_table(tmp_path / "00000.parquet").append_column(column, pa.array(["mine", "mine"]))
    pq.write_table(table, tmp_path / "00000.parquet")
    with pytest.raises(OutputError, match=rf"'{column}'"):
        embedded(tmp_path).save_metadata()
    assert pq.read_table(tmp_path / "00000.parquet")[column].to_pylist() == ["mine", "mine"]


def test_the_model_counts_where_its_column_is_renamed_or_not_written(folder, tmp_path):
    def save(embedder, **settings):
        dataset = embedded(folder, embedder)
        renamed = dataset.metadata.rename(columns={"image_embedding": "vector"})
        return dataset.with_metadata(renamed).save_metadata(tmp_path / "out", **settings)

    save(ColourReader())
    assert save(ColourReader()).skipped == 3
    assert save(ColourReaderTwice()).written == 3


def test_a_persisted_dataset_keeps_what_made_its_embedding(tmp_path):
    write_dataset(tmp_path / "data", shards=2, samples=3, bad={"000000001": b""})
    dataset = embedded(tmp_path / "data").persist()
    ColourReader(image_embedding_column="second")(dataset).save_metadata(tmp_path / "out")
    table = read_output(tmp_path / "out")
    for name in ("image_embedding", "second"):
        assert table.schema.field(name).type == pa.list_(pa.float32(), 3)
        check_colours(table["key"].to_pylist(), table[name].to_pylist(), bad={"000000001"})
    assert table["image_error"].null_count == 5
    path = next((tmp_path / "out").glob("*.parquet"))
    assert set(read_record(str(path)).embeddings) == {"image_embedding", "second"}


def test_a_step_on_the_own_files_is_not_applied_twice(folder):
    """As when Dask runs a task again, because its worker died after writing."""
    dataset = ImageTextPairDataset.from_webdataset(folder)
    doubled = dataset.metadata.assign(width=dataset.metadata.width * 2)
    output = Output(str(folder), None, in_place=True, overwrite=False, drop_failed=False)
    plan = ParquetSink(output).plan(Job(doubled, trace(doubled), (), {}, tuple(doubled.columns), "key"))
    graph = write_graph(doubled, plan.targets, range(3), plan.writer)
    first, second = graph.compute(), graph.compute()
    assert set(read_output(folder)["width"].to_pylist()) == {48}
    assert first["target"].tolist() == second["target"].tolist()


def test_options_for_a_store_may_be_given(folder, tmp_path):
    dataset = embedded(folder, storage_options={"auto_mkdir": True})
    assert dataset.save_metadata(tmp_path / "out").rows == 30


def test_an_output_that_was_cut_by_hand_is_made_again(folder, tmp_path):
    embedded(folder).save_metadata(tmp_path / "out")
    path = tmp_path / "out" / "00000.parquet"
    pq.write_table(pq.read_table(path).slice(0, 4), path)
    assert embedded(folder).save_metadata(tmp_path / "out").written == 1
    assert pq.read_metadata(path).num_rows == 10


def test_work_that_mixed_partitions_share_is_done_once_without_a_cluster(folder, tmp_path):
    dataset = embedded(folder)
    meter = Meter(1)
    with watch(meter, None, show=False):
        dataset.with_metadata(dataset.metadata.shuffle("key", npartitions=4)).save_metadata(tmp_path / "out")
    assert meter.images == 30


@pytest.mark.parametrize("mixed", [False, True])
def test_progress_hears_of_every_image_without_a_cluster(folder, tmp_path, monkeypatch, mixed):
    """Also where mixed partitions are computed in one go, before the first is given."""
    heard = []
    count = Meter.count
    monkeypatch.setattr(
        Meter, "count", lambda self, event: (heard.append(event["images"]), count(self, event))
    )
    dataset = embedded(folder)
    if mixed:
        dataset = dataset.with_metadata(dataset.metadata.repartition(npartitions=2))
    assert dataset.save_metadata(tmp_path / "out").rows == 30
    assert sum(heard) == 30


def test_a_shard_is_looked_at_when_its_turn_comes(folder, tmp_path, monkeypatch):
    """What is known of a shard is of the time when it is handed out, not of that when the run began."""
    monkeypatch.setattr(groups, "AHEAD", 1)
    monkeypatch.setattr(targets, "_BLOCK", 1)
    dataset = ImageTextPairDataset.from_webdataset(folder)
    later = folder / "00002.tar"

    def change_another(frame):
        if frame["key"].iloc[0].startswith("00000") and later.stat().st_mtime_ns != 7:
            os.utime(later, ns=(7, 7))
        return frame

    frame = dataset.metadata
    changed = dataset.with_metadata(frame.map_partitions(change_another, meta=frame._meta))
    changed.save_metadata(tmp_path / "out")
    assert read_record(str(tmp_path / "out/00002.parquet")).shard["tar"]["version"] == "7"
    again = changed.save_metadata(tmp_path / "out")
    assert (again.written, again.skipped) == (0, 3)


def test_late_targets_are_made_in_blocks_and_not_kept(monkeypatch):
    monkeypatch.setattr(targets, "_BLOCK", 10)
    monkeypatch.setattr(targets, "_BLOCKS", 2)
    asked = []

    def make(numbers):
        asked.append([*numbers])
        return [target(number) for number in numbers]

    def target(name):
        return targets.Target(str(name), "", f"print of {name}", None, None, None)

    late = targets.LateTargets(25, make, {3: target("kept")})
    assert late.fingerprint == ""
    names = ["kept" if number == 3 else str(number) for number in range(25)]
    assert [each.name for each in late] == names
    assert late.fingerprint == fingerprint({name: f"print of {name}" for name in names})
    assert asked == [[*range(10)], [*range(10, 20)], [*range(20, 25)]]
    assert (late[-1].name, late[11].name, len(asked)) == ("24", "11", 3)
    assert (late[0].name, len(asked)) == ("0", 4)  # let go when two others had come
    with pytest.raises(IndexError):
        late[25]


def test_a_run_that_cannot_begin_leaves_no_folder(folder, tmp_path):
    """A wrong name of a model, say; what was there before stays."""
    dataset = TimmImageEmbedder(f"local-dir:{tmp_path}/none")(ImageTextPairDataset.from_webdataset(folder))
    (tmp_path / "there").mkdir()
    for out in ("new/deep", "there", "there/deep"):
        with pytest.raises(WeightsError, match="no folder"):
            dataset.save_metadata(tmp_path / out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "there"]
    assert not any((tmp_path / "there").iterdir())
