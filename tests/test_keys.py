"""Every vector belongs to its key, whatever happens to the frame before or after."""

from __future__ import annotations

import datetime
import io
import re
import uuid
from decimal import Decimal

import dask
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import ColourReader, check_colours, image_of, members_of, write_dataset, write_tar
from dask.base import tokenize
from PIL import Image

from curator_dask.checks.preflight import preflight
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, DatasetError, ImageError, ShardError
from curator_dask.holding import hold
from curator_dask.image.embedders.partition import EmbedPartition
from curator_dask.rows.ids import exact_ids, id_texts
from curator_dask.webdataset.keys import KeyTable

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("colours")
    write_dataset(folder)
    return folder


def embedded(folder, **settings):
    return ColourReader()(ImageTextPairDataset.from_webdataset(folder, **settings))


def check(frame, rows=None):
    assert rows is None or len(frame) == rows
    assert frame["image_error"].isna().all(), frame["image_error"].dropna().tolist()
    check_colours(frame["key"], frame["image_embedding"])


@pytest.mark.parametrize("metadata", ["parquet", "tar"])
@pytest.mark.parametrize("rows_per_partition", [None, 3, 10, 100])
def test_shuffled_tar_and_parquet(folder, metadata, rows_per_partition, device):
    dataset = embedded(folder, metadata=metadata, rows_per_partition=rows_per_partition)
    assert dataset.npartitions == {None: 3, 3: 12, 10: 3, 100: 3}[rows_per_partition]
    check(dataset.compute(), 30)


def test_what_happens_before_embedding(folder):
    dataset = ImageTextPairDataset.from_webdataset(folder)
    embed = ColourReader()

    def after(change):
        return embed(dataset.with_metadata(change(dataset.metadata))).compute()

    check(after(lambda frame: frame[["__url__", "key"]]), 30)
    check(after(lambda frame: frame[frame.key.str.endswith("3") | frame.key.str.endswith("7")]), 6)
    check(after(lambda frame: frame.partitions[1:]), 20)
    check(after(lambda frame: frame.partitions[[2, 0]]), 20)
    check(after(lambda frame: frame.repartition(npartitions=2)), 30)
    check(after(lambda frame: frame.map_partitions(lambda part: part.sample(frac=1, random_state=1))), 30)
    check(after(lambda frame: frame.shuffle("key", npartitions=5)), 30)
    check(after(lambda frame: dask.dataframe.concat([frame.partitions[2], frame.partitions[0]])), 20)
    check(after(lambda frame: frame[frame.key == "nowhere"]), 0)


def test_what_happens_after_embedding(folder):
    metadata = embedded(folder).metadata
    check(metadata[["key", "image_embedding", "image_error"]].compute(), 30)
    check(metadata[metadata.key.str.endswith("3")].compute(), 3)
    check(metadata.partitions[2:].compute(), 10)
    check(metadata.repartition(npartitions=2).compute(), 30)


def test_two_embedders_in_one_graph(folder):
    dataset = ColourReader(image_embedding_column="second")(embedded(folder))
    frame = dataset.compute()
    check(frame, 30)
    check_colours(frame["key"], frame["second"])
    assert list(frame.columns[-3:]) == ["image_embedding", "second", "image_error"]


@pytest.mark.parametrize("kind", [pa.int64(), pa.float64(), pa.string()])
def test_number_ids_match_keys_with_leading_zeros(tmp_path, kind):
    keys = [f"{number:09d}" for number in (3, 70, 12, 5)]
    write_tar(tmp_path / "0.tar", [member for key in keys for member in members_of(key)])
    ids = [5, 12, 3, 70] if kind != pa.string() else ["000000005", "000000012", "000000003", "000000070"]
    pq.write_table(pa.table({"uid": pa.array(ids).cast(kind)}), tmp_path / "0.parquet")
    frame = embedded(tmp_path, id_col="uid").compute()
    assert frame["image_error"].isna().all()
    check_colours([f"{int(number):09d}" for number in frame["uid"]], frame["image_embedding"])


def test_same_count_but_other_ids_is_found(tmp_path):
    write_dataset(tmp_path, shards=1, samples=5, parquet=False)
    ids = [f"00000{number:04d}" for number in (0, 1, 2, 3, 99)]
    pq.write_table(pa.table({"key": ids}), tmp_path / "00000.parquet")
    frame = embedded(tmp_path).compute()
    check_colours(frame["key"], frame["image_embedding"], bad={"000000099"})
    assert frame["image_error"].tolist()[4] == "missing: no sample '000000099' in the tar"


def test_img2dataset_rows_that_failed_to_download(tmp_path):
    keys = write_dataset(tmp_path, shards=1, samples=4)
    table = pq.read_table(tmp_path / "00000.parquet")
    status = pa.array(["success"] * 4 + ["failed_to_download"])
    more = pa.table({"key": ["000000077"], "caption": [None], "width": [None]}, schema=table.schema)
    table = pa.concat_tables([table, more]).append_column("status", status)
    pq.write_table(table, tmp_path / "00000.parquet")
    frame = embedded(tmp_path).compute()
    assert len(frame) == len(keys) + 1
    check_colours(frame["key"], frame["image_embedding"], bad={"000000077"})
    assert frame["image_error"].tolist()[4] == (
        "missing: no sample '000000077' in the tar (status: failed_to_download)"
    )


@pytest.mark.parametrize("batch_size", [1, 9, 10, 11])
def test_one_bad_image_of_each_kind_costs_its_row(tmp_path, batch_size, device):
    file = io.BytesIO()
    Image.new("RGB", (200, 100)).save(file, "JPEG")
    bad = {
        "000000001": b"",
        "000000003": file.getvalue()[: len(file.getvalue()) * 6 // 10],
        "000000004": b"<!DOCTYPE html><html><body>404</body></html>",
        "000000008": bytes(range(256)) * 9,
    }
    write_dataset(tmp_path, shards=2, samples=10, bad=bad)
    frame = ColourReader(batch_size=batch_size)(ImageTextPairDataset.from_webdataset(tmp_path)).compute()
    assert len(frame) == 20
    check_colours(frame["key"], frame["image_embedding"], bad=set(bad))
    reasons = dict(zip(frame["key"], frame["image_error"], strict=True))
    assert {key for key, reason in reasons.items() if isinstance(reason, str)} == set(bad)
    assert reasons["000000001"].startswith("empty")
    assert reasons["000000003"].startswith("truncated")
    assert "<!DOCTYPE html" in reasons["000000004"]


def test_on_error_raise_names_shard_key_and_reason(tmp_path):
    write_dataset(tmp_path, shards=1, samples=3, bad={"000000001": b""})
    dataset = ColourReader(on_error="raise")(ImageTextPairDataset.from_webdataset(tmp_path))
    with pytest.raises(ImageError, match=r"00000\.tar.*key='000000001'.*empty"):
        dataset.compute()


def test_a_missing_tar_is_a_shard_error(tmp_path):
    write_dataset(tmp_path, shards=1)
    dataset = embedded(tmp_path)
    (tmp_path / "00000.tar").unlink()
    with pytest.raises(ShardError, match=r"00000\.tar"):
        dataset.compute()


def test_columns_that_images_need_must_be_kept(folder):
    dataset = ImageTextPairDataset.from_webdataset(folder)
    with pytest.raises(DatasetError, match=r"lacks \['__url__'\].*'key', 'caption'"):
        ColourReader()(dataset.with_metadata(dataset.metadata[["key", "caption"]]))


def test_numbers_that_a_float_cannot_hold_match_nothing(tmp_path):
    keys = ["9007199254740992", "9007199254740993", "77"]
    write_tar(tmp_path / "0.tar", [member for key in keys for member in members_of(key)])
    pq.write_table(
        pa.table({"key": pa.array([9007199254740992.0, 9007199254740993.0, 77.0])}), tmp_path / "0.parquet"
    )
    frame = embedded(tmp_path).compute()
    assert frame["image_embedding"].isna().tolist() == [True, True, False]
    assert frame["image_error"].str.startswith("missing").tolist()[:2] == [True, True]


def test_the_image_of_several_is_picked_by_its_member(tmp_path):
    names = {"0": "mask.png", "1": "image.png", "2": "png"}  # by the number of their colours
    members = [(f"a.{name}", image_of(number)) for number, name in names.items()]
    write_tar(tmp_path / "data" / "0.tar", [*members, ("b.mask.png", image_of("3"))])
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")
    assert "image_member" in str(preflight(tmp_path / "data"))
    for number, member in {**names, "2": None}.items():
        frame = ColourReader(image_member=member)(dataset).compute()
        check_colours([number], frame["image_embedding"][:1])
    both = ColourReader(image_embedding_column="mask", image_member="MASK.png")
    both = both(ColourReader(image_member="image.png")(dataset))
    frame = both.compute()
    check_colours(["1", "0"], [frame["image_embedding"][0], frame["mask"][0]])
    assert frame["image_error"].tolist()[1] == "[image_embedding] missing: the sample has no image.png"
    out = tmp_path / "out"
    assert ColourReader()(dataset).save_metadata(out).written == 1
    assert (
        ColourReader(image_member="image.png")(dataset).save_metadata(out).written == 1
    )  # not taken for the same
    check_colours(["1"], pq.read_table(out)["image_embedding"].to_pylist()[:1])
    with pytest.raises(ConfigError, match=r"image_member='\.png'"):
        ColourReader(image_member=".png")


def test_a_member_that_is_not_named_does_not_count_in_names_of_mixed_frames():
    settings = ("key", "image_embedding", 4, 1, "dali", 10**6, "null", True, (), None, None, "null")
    assert tokenize(EmbedPartition(None, *settings)) == "8129f2687181cb649017bd733bf9174f"
    assert tokenize(EmbedPartition(None, *settings, "image.png")) != tokenize(EmbedPartition(None, *settings))


UUIDS = [uuid.UUID(int=number * 998877665544332211) for number in (1, 2, 3)]
LARGE = [2**53, 2**53 + 1, 12345678901234567890]
DAYS = [datetime.date(2024, 5, 31), datetime.date(1, 1, 1), datetime.date(1969, 12, 31)]
TEXTS = ["a", "ü", "c"]
ID_TYPES = {  # an array of ids, and the keys that their writer would give them
    "uuid": (pa.array([each.bytes for each in UUIDS], pa.uuid()), UUIDS),
    "uuids as bytes": (pa.array([each.bytes for each in UUIDS], pa.binary(16)), UUIDS),
    "uuids as bytes of any length": (pa.array([each.bytes for each in UUIDS], pa.binary()), UUIDS),
    "16 letters": (pa.array([letter * 16 for letter in "abc"]).cast(pa.binary()).cast(pa.binary(16)), None),
    "decimal128": (pa.array([*map(Decimal, LARGE)], pa.decimal128(20, 0)), LARGE),
    "decimal256": (pa.array([*map(Decimal, LARGE)], pa.decimal256(40, 2)), LARGE),
    "uint64": (pa.array(LARGE, pa.uint64()), LARGE),
    "date32": (pa.array(DAYS), DAYS),
    "date64": (pa.array(DAYS, pa.date64()), DAYS),
    "large_string": (pa.array(TEXTS, pa.large_string()), TEXTS),
    "string_view": (pa.array(TEXTS, pa.string_view()), TEXTS),
    "binary": (pa.array(TEXTS).cast(pa.binary()), TEXTS),
    "large_binary": (pa.array(TEXTS).cast(pa.large_binary()), TEXTS),
    "dictionary": (pa.array(TEXTS).dictionary_encode(), TEXTS),
    "dictionary of numbers": (pa.array(LARGE, pa.uint64()).dictionary_encode(), LARGE),
    "json": (pa.ExtensionArray.from_storage(pa.json_(), pa.array(TEXTS)), TEXTS),
}


@pytest.mark.parametrize("kind", ID_TYPES)
def test_ids_of_every_type_are_found_by_their_text(tmp_path, kind):
    ids, keys = ID_TYPES[kind]
    keys = ["a" * 16, "b" * 16, "c" * 16] if keys is None else [str(key) for key in keys]
    members = [(f"{key}.png", image_of(str(number))) for number, key in enumerate(keys)]
    write_tar(tmp_path / "0.tar", members[::-1])
    pq.write_table(pa.table({"id": ids}), tmp_path / "0.parquet")
    assert preflight(tmp_path, "id").findings == []
    dataset = ImageTextPairDataset.from_webdataset(tmp_path, "id")
    for written in (1, 0):
        summary = ColourReader()(dataset).save_metadata(tmp_path / "out")
        assert (summary.written, summary.failed, summary.orphans) == (written, 0, {})
    table = pq.read_table(tmp_path / "out")
    assert table["id"].to_pylist() == ids.to_pylist()
    check_colours(["0", "1", "2"], table["image_embedding"].to_pylist())


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([True, False]),
        pa.array([["a"], ["b"]]),
        pa.array([{"id": "a"}, {"id": "b"}]),
        pa.array([datetime.datetime(2024, 5, 31, 12)] * 2),
        pa.array([datetime.time(1), datetime.time(2)]),
        pa.array([datetime.timedelta(1)] * 2),
    ],
    ids=lambda ids: str(ids.type),
)
def test_ids_without_a_text_of_their_own_are_refused_by_type(tmp_path, ids):
    write_tar(tmp_path / "0.tar", [("a.png", image_of("1"))])
    pq.write_table(pa.table({"id": ids}), tmp_path / "0.parquet")
    stored = pq.read_schema(tmp_path / "0.parquet").field("id").type
    with pytest.raises(DatasetError, match=f"id_col='id'.*found {re.escape(str(stored))}. Give id_col"):
        ImageTextPairDataset.from_webdataset(tmp_path, "id")
    assert "columns" in {finding.kind for finding in preflight(tmp_path, "id").problems}


def test_ids_as_cudf_holds_them_are_the_same_keys():
    """Bytes are lists there, UUIDs text, dates times."""
    raw = [each.bytes for each in UUIDS] + [None]
    days = [datetime.date(2024, 5, 31), None]
    index = KeyTable([str(UUIDS[-1]), "2024-05-31", *map(str, UUIDS[:-1])])
    for ids in (pa.array(raw, pa.binary(16)), pa.array(raw, pa.binary()), pa.array(days, pa.date32())):
        found = index.find(exact_ids(hold(ids))).tolist()
        assert found == index.find(exact_ids(ids)).tolist() and min(found[:-1]) >= 0 > found[-1]
    assert exact_ids(hold(pa.array(raw, pa.uuid()))) == [*map(str, UUIDS), None]
    for ids in (pa.array([b"a", None]), pa.array(days, pa.date32()), pa.array([7, None])):
        assert exact_ids(hold(ids)) == exact_ids(ids) == ids.to_pylist()
        assert id_texts(hold(ids)) == ids.cast(pa.string()).to_pylist()


def test_keys_that_are_not_utf8(tmp_path):
    names = ["caf\udce9", "plain"]
    write_tar(
        tmp_path / "0.tar", [(f"{name}.png", image_of(str(number))) for number, name in enumerate(names, 1)]
    )
    frame = embedded(tmp_path, metadata="tar").compute()
    assert frame["key"].tolist() == ["caf\\xe9", "plain"]
    assert frame["image_error"].isna().all()
    check_colours(["1", "2"], frame["image_embedding"])


def test_json_that_cannot_be_a_value_costs_itself(tmp_path):
    odd = [
        b'{"a": "\\ud800", "b": 1}',
        b'{"\\ud800": 1}',
        b"[" * 200_000,
        b'{"b": 123456789012345678901234567890}',
    ]
    members = []
    for number, document in enumerate(odd):
        members += [(f"{number}.png", image_of(str(number))), (f"{number}.json", document)]
    write_tar(tmp_path / "0.tar", members)
    write_tar(tmp_path / "1.tar", [("9.png", image_of("9")), ("9.json", b'{"b": "text"}')])
    frame = embedded(tmp_path).compute()
    check_colours(frame["key"], frame["image_embedding"])
    assert frame["b"].fillna("-").tolist() == ["1", "-", "-", "123456789012345678901234567890", "text"]
