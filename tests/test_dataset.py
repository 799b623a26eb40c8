"""`ImageTextPairDataset`: what it finds, which columns it learns, and how it behaves as a Dask collection."""

from __future__ import annotations

import datetime
import json

import dask
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import ColourReader, image_of, write_dataset, write_tar

from curator_dask.checks.preflight import preflight
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, DatasetError, ShardError

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture
def folder(tmp_path):
    write_dataset(tmp_path)
    return tmp_path


def test_says_what_it_found(folder, said):
    ImageTextPairDataset.from_webdataset(folder)
    assert f"found 3 shards below {folder}; rows come from their Parquet files" in said.messages


def test_attributes_and_looks(folder):
    dataset = ImageTextPairDataset.from_webdataset(folder)
    assert dataset.path == str(folder)
    assert dataset.id_col == "key"
    assert dataset.tar_files == [str(folder / f"0000{number}.tar") for number in range(3)]
    assert dataset.npartitions == 3
    assert "3 shards, 3 partitions" in repr(dataset)
    assert "caption: string" in repr(dataset)
    assert "<code>caption</code>" in dataset._repr_html_()


def test_the_constructor_takes_any_frame(folder):
    made = ImageTextPairDataset.from_webdataset(folder)
    frame = dask.dataframe.from_pandas(made.compute(), npartitions=2)
    dataset = ImageTextPairDataset(str(folder), frame, made.tar_files, "key")
    assert ColourReader()(dataset).compute()["image_error"].isna().all()


def test_as_a_dask_collection(folder, recwarn):
    dataset = ImageTextPairDataset.from_webdataset(folder)
    frame, total = dask.compute(dataset, dataset.metadata.width.sum())
    assert len(frame) == 30
    assert total == 30 * 24
    assert not [warning for warning in recwarn if "mixed collections" in str(warning.message)]
    (persisted,) = dask.persist(dataset)
    assert isinstance(persisted, ImageTextPairDataset)
    assert len(persisted.persist().compute()) == 30
    assert len(dataset.head(4)) == 4


class Explosive(ColourReader):
    def load_embedding_model(self, device):
        raise AssertionError("the model was loaded")


@pytest.mark.parametrize(
    ("metadata", "rows_per_partition"), [("parquet", None), ("tar", None), ("parquet", 4)]
)
def test_len_runs_no_model(folder, metadata, rows_per_partition):
    dataset = ImageTextPairDataset.from_webdataset(
        folder, metadata=metadata, rows_per_partition=rows_per_partition
    )
    assert len(Explosive()(dataset)) == 30
    picked = dataset.with_metadata(dataset.metadata.partitions[1:])
    assert len(Explosive()(picked)) == (20 if rows_per_partition is None else 26)
    filtered = dataset.with_metadata(dataset.metadata[dataset.metadata.key.str.endswith("1")])
    assert len(filtered) == 3


def test_rows_from_the_tar(tmp_path):
    def sample(key, document, caption=None):
        members = [(f"{key}.png", image_of("1"))]
        if document is not None:
            members.append(
                (f"{key}.json", document if isinstance(document, bytes) else json.dumps(document).encode())
            )
        return [*members, *([] if caption is None else [(f"{key}.txt", caption)])]

    write_tar(
        tmp_path / "0.tar",
        [
            *sample(
                "a",
                {"width": 3, "score": 1, "nsfw": False, "url": "x", "tags": [1], "caption": "json"},
                b"text",
            ),
            *sample("b", {"width": None, "score": 0.5, "deep": {"a": 1}}, "caf\u00e9".encode()),
            *sample("c", b"{broken", "caf\u00e9".encode("latin-1")),
            *sample("d", ["a", "list"]),
            *sample("e", None, b"\xef\xbb\xbfbom"),
            *sample("sub.dir/f", {"caption": "from json", "key": "not this", "width": 2**40}),
        ],
    )
    frame = ImageTextPairDataset.from_webdataset(tmp_path).compute()
    assert frame["key"].tolist() == ["a", "b", "c", "d", "e", "sub.dir/f"]
    assert frame["caption"].fillna("-").tolist() == ["text", "café", "café", "-", "bom", "from json"]
    assert frame["width"].fillna(-1).tolist() == [3, -1, -1, -1, -1, 2**40]
    assert str(frame["width"].dtype) == "int64[pyarrow]"
    assert frame["score"].fillna(-1).tolist() == [1.0, 0.5, -1, -1, -1, -1]
    assert str(frame["nsfw"].dtype) == "bool[pyarrow]"
    assert sorted(set(frame.columns)) == ["__url__", "caption", "key", "nsfw", "score", "url", "width"]


def test_classes_compound_names_and_nested_json(tmp_path):
    picture, document = image_of("1"), {"width": 3, "tags": ["é", 1], "deep": {"a": None}, "none": None}
    write_tar(
        tmp_path / "0.tar",
        [
            *[("0.jpg", picture), ("0.metadata.json", json.dumps(document).encode()), ("0.cls", b"3\n")],
            *[("k.jpg", picture), ("k.ocr.txt", b"ocr"), ("k.caption.txt", b"caption"), ("k.npy", b"\x93")],
            *[
                ("p.jpg", picture),
                ("p.txt", b"plain"),
                ("p.caption.txt", b"other"),
                ("p.json", b'{"width": 4}'),
            ],
            ("p.extra.json", b'{"width": 5}'),
        ],
    )
    frame = ImageTextPairDataset.from_webdataset(tmp_path).compute()
    assert frame["caption"].fillna("-").tolist() == ["-", "caption", "plain"]
    assert frame["cls"].fillna(-1).tolist() == [3, -1, -1]
    assert frame["width"].fillna(-1).tolist() == [3, -1, 4]
    assert set(frame.columns) == {"key", "caption", "cls", "width", "__url__"}

    nested = ImageTextPairDataset.from_webdataset(tmp_path, nested_json=True)
    frame = nested.compute()
    assert json.loads(frame["tags"][0]) == document["tags"]
    assert json.loads(frame["deep"][0]) == document["deep"]
    assert frame["tags"].isna().tolist() == [False, True, True]

    left_out = [
        "field 'tags' of the JSON",
        "field 'deep' of the JSON",
        ".ocr.txt",
        ".npy",
        ".caption.txt",
        ".extra.json",
    ]
    assert preflight(tmp_path).left_out == left_out
    assert f"in the tars, but not in the rows: {', '.join(left_out)} (" in str(preflight(tmp_path))
    dataset = ImageTextPairDataset.from_webdataset(tmp_path)
    summary = ColourReader()(dataset).save_metadata(tmp_path / "out")
    assert f"in the tars, but not in the rows: {', '.join(left_out)}" in str(summary)
    summary = ColourReader()(nested).save_metadata(tmp_path / "nested")
    assert "field" not in str(summary)


def test_classes_that_are_no_numbers_are_text(tmp_path):
    for shard, label in enumerate(["007", "cat", "1" * 5000]):
        write_tar(tmp_path / str(shard) / "0.tar", [("a.jpg", b""), ("a.cls", label.encode())])
        frame = ImageTextPairDataset.from_webdataset(tmp_path / str(shard)).compute()
        assert frame["cls"].tolist() == [label]


def test_values_that_do_not_fit_are_null_and_said(tmp_path, caplog):
    for shard, value in enumerate((1, 2)):
        members = [(f"{shard}{number}.json", json.dumps({"n": value}).encode()) for number in range(70)]
        write_tar(tmp_path / f"{shard}.tar", members)
    # Behind the samples that are looked at to learn the columns.
    write_tar(
        tmp_path / "1.tar",
        [*((f"1{number:03d}.json", b'{"n": 2}') for number in range(70)), ("2.json", b'{"n": "many"}')],
    )
    frame = ImageTextPairDataset.from_webdataset(tmp_path).compute()
    assert frame["n"].isna().sum() == 1
    assert "1.tar: values in the JSON that do not fit their column became null: {'n': 1}" in caplog.text


def test_columns_of_every_kind_are_kept(tmp_path):
    write_dataset(tmp_path, shards=1, samples=3, parquet=False)
    table = pa.table(
        {
            "key": ["000000000", "000000001", "000000002"],
            "list": pa.array([[1, 2], None, []], pa.list_(pa.int64())),
            "struct": pa.array([{"a": 1}, {"a": None}, None], pa.struct([("a", pa.int32())])),
            "time": pa.array([datetime.datetime(2020, 1, 1), None, None], pa.timestamp("us", "UTC")),
            "category": pa.array(["x", "y", "x"]).dictionary_encode(),
            "big": pa.array([2**63 - 1, None, 2**53 + 1], pa.int64()),
            "flag": pa.array([True, None, False]),
        }
    )
    pq.write_table(table, tmp_path / "00000.parquet")
    ColourReader()(ImageTextPairDataset.from_webdataset(tmp_path)).save_metadata(tmp_path / "out")
    written = pq.read_table(tmp_path / "out" / "00000.parquet")
    for name in table.column_names:
        assert written[name].to_pylist() == table[name].to_pylist(), name


def test_shards_whose_columns_differ_become_one_schema(tmp_path):
    write_dataset(tmp_path, shards=3, samples=2, parquet=False)
    ids = [[f"{shard:05d}{sample:04d}" for sample in range(2)] for shard in range(3)]
    pq.write_table(pa.table({"key": ids[0], "n": pa.array([1, 2], pa.int32())}), tmp_path / "00000.parquet")
    pq.write_table(
        pa.table({"key": ids[1], "n": [2**40, 1], "extra": ["a", "b"]}), tmp_path / "00001.parquet"
    )
    pq.write_table(pa.table({"key": ids[2], "extra": pa.nulls(2)}), tmp_path / "00002.parquet")
    dataset = ImageTextPairDataset.from_webdataset(tmp_path)
    frame = dataset.compute()
    assert frame["n"].fillna(-1).tolist() == [1, 2, 2**40, 1, -1, -1]
    assert frame["extra"].fillna("-").tolist() == ["-", "-", "a", "b", "-", "-"]
    dataset.save_metadata(tmp_path / "out")
    schemas = [pq.read_schema(path).remove_metadata() for path in sorted((tmp_path / "out").iterdir())]
    assert schemas[0] == schemas[1] == schemas[2]


def test_shards_whose_columns_cannot_be_one(tmp_path):
    write_dataset(tmp_path, shards=2, samples=1, parquet=False)
    pq.write_table(pa.table({"key": ["000000000"], "n": [1]}), tmp_path / "00000.parquet")
    pq.write_table(pa.table({"key": ["000010000"], "n": ["one"]}), tmp_path / "00001.parquet")
    with pytest.raises(DatasetError, match=r"00001\.parquet.*'?n'?"):
        ImageTextPairDataset.from_webdataset(tmp_path)


def test_a_column_that_comes_late_is_a_shard_error(tmp_path):
    for number in range(40):  # more than are looked at
        extra = {"late": [1]} if number == 1 else {}
        write_tar(tmp_path / f"{number:02d}.tar", [(f"{number}.png", image_of(str(number)))])
        pq.write_table(pa.table({"key": [str(number)], **extra}), tmp_path / f"{number:02d}.parquet")
    dataset = ImageTextPairDataset.from_webdataset(tmp_path)
    assert "late" not in dataset.metadata.columns
    with pytest.raises(ShardError, match=r"01\.parquet.*late"):
        dataset.compute()


def test_some_shards_without_parquet(folder):
    (folder / "00001.parquet").unlink()
    for metadata in ("auto", "parquet"):
        with pytest.raises(DatasetError, match=r"1 of 3 shards.*00001\.tar.*metadata='tar'"):
            ImageTextPairDataset.from_webdataset(folder, metadata=metadata)
    assert len(ImageTextPairDataset.from_webdataset(folder, metadata="tar").compute()) == 30


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"id_col": "uid"}, DatasetError, r"'uid'.*\['key', 'caption', 'width'\]"),
        ({"metadata": "json"}, ConfigError, "'json'.*'auto', 'parquet' or 'tar'"),
        ({"rows_per_partition": 0}, ConfigError, "rows_per_partition=0"),
    ],
)
def test_wrong_arguments(folder, arguments, error, message):
    with pytest.raises(error, match=message):
        ImageTextPairDataset.from_webdataset(folder, **arguments)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda a, at: a.from_webdataset(at, "key", "tar"),
            "takes path, id_col by position.*metadata=",
        ),
        (
            lambda a, at: a.from_webdataset(at, id_column="key"),
            "no argument 'id_column'.*did you mean id_col",
        ),
        (lambda a, at: a.from_webdataset(at, None), "id_col=None: expected the name of a column"),
        (
            lambda a, at: a.from_images(at, "captions.csv"),
            r"from_images\(folder, captions='captions.csv'\)",
        ),
        (lambda a, at: a.from_images(), "missing a required argument: 'folder'"),
        (
            lambda a, at: a.from_webdataset(at).filter("width", 10),
            r"takes where by.*filter\('width >= 256",
        ),
        (
            lambda a, at: a.from_webdataset(at).top("width", 10, 20),
            "takes column, most by",
        ),
        (
            lambda a, at: a.from_webdataset(at).save_metadata(at, ["key"], True),
            "others: overwrite=, drop_failed=",
        ),
        (
            lambda a, at: a.from_webdataset(at).save_metadata(at, "key"),
            "columns='key': expected a list of names",
        ),
        (
            lambda a, at: a.from_webdataset(at).save_metadata(at, True),
            "columns=True: expected a list of names",
        ),
        (
            lambda a, at: a.from_webdataset(at).to_webdataset(at, None, 9, 5, None, "a > 1"),
            "others: where=",
        ),
        (lambda a, at: a.from_webdataset(at).to_webdataset(at / "x", "a > 1"), "A condition is where="),
    ],
)
def test_calls_that_do_not_fit_say_what_to_write(folder, call, said):
    with pytest.raises(ConfigError, match=said):
        call(ImageTextPairDataset, folder)


def test_no_shards(tmp_path):
    (tmp_path / "00000.tgz").touch()
    with pytest.raises(DatasetError, match=r"00000\.tgz"):
        ImageTextPairDataset.from_webdataset(tmp_path)


def test_rows_equal_what_pandas_reads(folder):
    frame = ImageTextPairDataset.from_webdataset(folder).compute().reset_index(drop=True)
    expected = pd.concat(
        [pd.read_parquet(folder / f"0000{number}.parquet") for number in range(3)], ignore_index=True
    )
    assert frame[["key", "caption", "width"]].to_dict("list") == expected.to_dict("list")


@pytest.mark.parametrize("rows_per_partition", [1, 3, 7])
def test_parts_read_each_row_once_across_row_groups(tmp_path, rows_per_partition):
    write_dataset(tmp_path, shards=1, samples=11, parquet=False)
    keys = [f"00000{number:04d}" for number in range(11)]
    pq.write_table(pa.table({"key": keys}), tmp_path / "00000.parquet", row_group_size=4)
    dataset = ImageTextPairDataset.from_webdataset(tmp_path, rows_per_partition=rows_per_partition)
    assert dataset.compute()["key"].tolist() == keys
    assert dataset.npartitions == -(-11 // rows_per_partition)
