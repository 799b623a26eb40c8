"""Samples with several images: every image has a row of its own, and none gets the row of another of its sample."""

from __future__ import annotations

import io
import json
import random
import shutil
import tarfile

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import ColourReader, check_colours, colour_of, read_output, write_tar
from PIL import Image
from s3 import BUCKET, options, s3_server
from typer.testing import CliRunner

from curator_dask.checks.preflight import preflight
from curator_dask.cli import app
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.dedup import SemanticDeduplication
from curator_dask.errors import ConfigError, DatasetError, OutputError
from curator_dask.image.statistics import ImageStatistics
from curator_dask.info import describe_output
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.exporting import export_output
from curator_dask.outputs.filtering import filter_output
from curator_dask.removing import remove_samples
from curator_dask.rows.thumbnails import read_thumbnails
from curator_dask.webdataset.index import ShardIndex
from curator_dask.webdataset.several_names import is_each, split_key

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
#: Images of the samples of each shard; by number of the sample.
COUNTS = (3, 1, 0, 2, 12, 1)
SHARDS = 3
BAD = {"s003_1", "s010_7"}

pytestmark = pytest.mark.usefixtures("in_this_process")


def number_of(key: str) -> str:
    """Digits of an image's key, whose colour they are: those of the sample, and two of its number in it."""
    sample, number = split_key(key)
    return f"{int(''.join(sign for sign in sample if sign.isdigit())) * 100 + number}"


def image_of(key: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 24), colour_of(number_of(key))).save(file, "PNG")
    return b"no image" if key in BAD else file.getvalue()


def counts() -> dict[str, int]:
    """Images by sample."""
    return {f"s{shard * len(COUNTS) + at:03d}": n for shard in range(SHARDS) for at, n in enumerate(COUNTS)}


KEYS = [f"{sample}_{number}" for sample, count in counts().items() for number in range(count)]


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    """Members of each sample lie in any order, those of one beside one another."""
    folder, rng = tmp_path_factory.mktemp("tars"), random.Random(3)
    names = [*counts()]
    for shard in range(SHARDS):
        members = []
        for sample in names[shard * len(COUNTS) : (shard + 1) * len(COUNTS)]:
            mine = [(f"{sample}.img{n}.png", image_of(f"{sample}_{n}")) for n in range(counts()[sample])]
            mine.append((f"{sample}.txt", f"caption of {sample}".encode()))
            mine.append((f"{sample}.json", json.dumps({"page": int(sample[1:])}).encode()))
            mine.append((f"{sample}.layout.npy", sample.encode()))
            members += rng.sample(mine, len(mine))
        write_tar(folder / f"{shard:05d}.tar", members)
    return folder


def table_of(samples, kind=STRUCT):
    lists = [
        [
            {"bytes": image_of(f"{sample}_{n}"), "path": f"{n}.png"}
            if kind is STRUCT
            else image_of(f"{sample}_{n}")
            for n in range(counts()[sample])
        ]
        for sample in samples
    ]
    rows = {
        "images": pa.array(
            [each if counts()[s] else None for s, each in zip(samples, lists, strict=True)], pa.list_(kind)
        ),
        "texts": [[f"text of {sample}", "more"] for sample in samples],
        "id": samples,
        "number": [int(sample[1:]) for sample in samples],
    }
    return pa.table(rows)


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parquet")
    names = [*counts()]
    for shard in range(SHARDS):
        mine = names[shard * len(COUNTS) : (shard + 1) * len(COUNTS)]
        pq.write_table(table_of(mine), folder / f"{shard:05d}.parquet", row_group_size=4)
    return folder


@pytest.fixture(scope="module")
def embedded(tars, parquet, tmp_path_factory):
    """Outputs of both."""
    import dask

    folder = tmp_path_factory.mktemp("embedded")
    with dask.config.set(scheduler="sync"):
        of_tars = ImageTextPairDataset.from_webdataset(tars, each_image=True)
        of_rows = ImageTextPairDataset.from_parquet(parquet, id_col="id")
        measure = ImageStatistics(["phash", "width"])
        for name, dataset in (("tars", of_tars), ("parquet", of_rows)):
            ColourReader()(measure(dataset)).save_metadata(folder / name)
    return folder


def check(table, key="key", without=()):
    """Every image has its row, once; and its own vector."""
    assert sorted(table[key].to_pylist()) == sorted(set(KEYS) - set(without))
    keys = [number_of(each) for each in table[key].to_pylist()]
    check_colours(keys, table["image_embedding"].to_pylist(), {number_of(each) for each in BAD})
    for row in table.to_pylist():
        sample, number = split_key(row[key])
        assert (row["sample_key"], row["image_number"]) == (sample, number)
        assert row["image_count"] == counts()[sample]
        assert (row["image_error"] is None) == (row[key] not in BAD)


def members(folder) -> dict[str, bytes]:
    """Of all tars of a folder, as tarfile has them."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                assert member.name not in found
                found[member.name] = tar.extractfile(member).read()
    return found


def passing(how, passes) -> list[str]:
    """Samples with an image of which all, any or the first pass."""
    found = []
    for sample, count in counts().items():
        said = [passes(f"{sample}_{number}") for number in range(count)]
        if said and {"all": all(said), "any": any(said), "first": said[0]}[how]:
            found.append(sample)
    return found


def test_every_image_of_a_tars_samples_has_its_own_row_and_vector(embedded):
    table = read_output(embedded / "tars")
    check(table)
    for row in table.to_pylist():
        assert row["caption"] == f"caption of {row['sample_key']}"
        assert row["page"] == int(row["sample_key"][1:])
        assert row["image_name"] == f"img{row['image_number']}.png"
        assert is_each(row["__url__"])


def test_every_image_of_a_list_has_its_own_row_and_vector(embedded):
    table = read_output(embedded / "parquet")
    check(table, "id")
    for row in table.to_pylist():
        assert row["texts"] == [f"text of {row['sample_key']}", "more"]
        assert row["number"] == int(row["sample_key"][1:])
        assert row["image_name"] == f"{row['image_number']}.png"


@pytest.mark.parametrize("kind", ["binary", "large_list", "fixed", "numbered"])
def test_lists_of_any_form(tmp_path, kind):
    names = [each for each, count in counts().items() if kind != "fixed" or count == 1]
    table = table_of(names, pa.binary() if kind != "numbered" else STRUCT)
    if kind in ("large_list", "fixed"):
        cast = pa.large_list(pa.binary()) if kind == "large_list" else pa.list_(pa.binary(), 1)
        table = table.set_column(0, "images", table["images"].cast(cast))
    if kind == "numbered":
        table = table.drop_columns("id")
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=5)
    how = {} if kind == "numbered" else {"id_col": "id"}
    dataset = ImageTextPairDataset.from_parquet(tmp_path, rows_per_partition=4, **how)
    found = ColourReader()(dataset).metadata.compute()
    key = "key" if kind == "numbered" else "id"
    expected = [each for each in KEYS if split_key(each)[0] in names]
    if kind == "numbered":
        rows = [int(split_key(each)[0].rpartition("_")[2]) for each in found["key"]]
        keys = [f"{names[row]}_{split_key(each)[1]}" for row, each in zip(rows, found["key"], strict=True)]
    else:
        keys = found[key].tolist()
    assert keys == expected
    check_colours(
        [number_of(each) for each in keys], found["image_embedding"], {number_of(each) for each in BAD}
    )


def test_a_null_or_empty_image_costs_its_row_alone_and_imageless_samples_are_told(tmp_path, tmp_path_factory):
    beside = tmp_path_factory.mktemp("null")
    images = [[{"bytes": image_of("s001_0"), "path": None}, None, {"bytes": None, "path": "x.png"}], [], None]
    images += [[{"bytes": b"", "path": None}, {"bytes": image_of("s004_1"), "path": None}]]
    table = pa.table({"images": pa.array(images, pa.list_(STRUCT)), "id": [1, 2, 3, 4]})
    pq.write_table(table, tmp_path / "a.parquet")
    dataset = ImageTextPairDataset.from_parquet(tmp_path / "a.parquet", id_col="id")
    summary = ColourReader()(dataset).save_metadata(beside)
    rows = read_output(beside).to_pylist()
    assert [row["id"] for row in rows] == ["1_0", "1_1", "1_2", "4_0", "4_1"]
    assert [row["sample_key"] for row in rows] == [1, 1, 1, 4, 4]
    assert [row["image_error"] is None for row in rows] == [True, False, False, False, True]
    check_colours(["100", "401"], [rows[0]["image_embedding"], rows[4]["image_embedding"]])
    assert (summary.rows, summary.failed) == (5, 3)
    assert [fact["count"] for fact in summary.imageless.values()] == [2]
    assert "2 samples without an image, and so without a row" in str(summary)


def test_order_and_keys_are_those_of_names_and_never_meet(tmp_path):
    names = ["10.png", "2.png", "png", "1.jpg", "mask.PNG"]
    rows = [(f"a.{name}", name.encode()) for name in names]
    rows += [("a_0.png", b"own"), ("a_0.txt", b"t"), ("a_0_0.png", b"deep")]
    write_tar(tmp_path / "t.tar", rows)
    found = ImageTextPairDataset.from_webdataset(tmp_path, each_image=True).metadata.compute()
    ordered = ["1.jpg", "2.png", "10.png", "mask.PNG", "png"]
    assert found["key"].tolist() == [*(f"a_{number}" for number in range(5)), "a_0_0", "a_0_0_0"]
    assert found["image_name"].tolist() == [*ordered, "png", "png"]
    assert found["key"].is_unique


def test_an_index_file_of_another_tar_misleads_nobody(tars, tmp_path):
    path = tmp_path / "00000.tar"
    path.write_bytes((tars / "00001.tar").read_bytes())
    ShardIndex.scan(path).write_idx(tmp_path / "00000.idx")
    path.write_bytes((tars / "00000.tar").read_bytes())
    dataset = ColourReader()(ImageTextPairDataset.from_webdataset(tmp_path, each_image=True))
    found = dataset.metadata.compute()
    keys = [number_of(each) for each in found["key"]]
    check_colours(keys, found["image_embedding"], {number_of(each) for each in BAD})


def test_on_workers_a_rerun_skips_and_a_retry_mends(client, tars, tmp_path):
    def dataset():
        return ImageTextPairDataset.from_webdataset(tars, each_image=True)

    small = ColourReader(max_pixels=100)
    first = small(dataset()).save_metadata(tmp_path / "out")
    assert (first.rows, first.failed) == (len(KEYS), len(KEYS))
    assert small(dataset()).save_metadata(tmp_path / "out").skipped == SHARDS
    again = ColourReader().retry(tmp_path / "out")
    assert (again.rows, again.failed) == (len(KEYS), len(BAD))
    check(read_output(tmp_path / "out"))
    mixed = dataset().metadata.repartition(npartitions=2)
    found = ColourReader()(ImageTextPairDataset(str(tars), mixed, [], "key")).metadata.compute()
    check_colours(
        [number_of(each) for each in found["key"]], found["image_embedding"], {number_of(e) for e in BAD}
    )


def test_what_is_made_of_rows_takes_each_image(embedded, tmp_path):
    found = filter_output(embedded / "tars", tmp_path / "filtered", where="image_number > 0")
    assert found.kept == sum(split_key(each)[1] > 0 for each in KEYS)
    exact = SemanticDeduplication(eps=1e-9, exact=["image_name"])(embedded / "tars").save(tmp_path / "twins")
    assert exact.rows == len(KEYS)
    summary = export_output(
        embedded / "tars", tmp_path / "once", ExportOptions(without=str(tmp_path / "twins"))
    )
    assert sorted(
        int(name.partition(".")[0].rpartition("_")[2])
        for name in members(tmp_path / "once")
        if name.endswith("png")
    ) == [*range(12)]
    assert summary.rows == len(KEYS) == summary.kept + summary.filtered
    assert describe_output(embedded / "tars").rows == len(KEYS)
    for name, key in (("tars", "key"), ("parquet", "id")):
        table = read_output(embedded / name)
        keys = table[key].to_pylist()
        for row, picture in read_thumbnails(keys, table["__url__"].to_pylist(), 8):
            if keys[row] not in BAD:
                assert picture.getpixel((2, 2)) == colour_of(number_of(keys[row])), keys[row]


def test_each_image_is_exported_as_a_sample_of_its_own(embedded, parquet, tmp_path):
    for name in ("tars", "parquet"):
        summary = export_output(embedded / name, tmp_path / name, id_col="id" if name == "parquet" else "key")
        assert summary.kept == len(KEYS)
        found = members(tmp_path / name)
        for key in KEYS:
            suffix = "bin" if key in BAD and name == "parquet" else "png"
            assert found[f"{key}.{suffix}"] == image_of(key)
            if name == "tars":
                sample = split_key(key)[0]
                assert found[f"{key}.txt"] == f"caption of {sample}".encode()
                assert found[f"{key}.layout.npy"] == sample.encode()


@pytest.mark.parametrize("how", ["all", "any", "first"])
def test_whole_samples_by_their_images(embedded, tars, parquet, tmp_path, how):
    where = "image_error is null and image_number != 5"
    kept = passing(how, lambda key: key not in BAD and split_key(key)[1] != 5)
    summary = export_output(
        embedded / "tars", tmp_path / "tars", ExportOptions(samples=how, where=where, samples_per_shard=4)
    )
    source = members(tars)
    assert members(tmp_path / "tars") == {name: data for name, data in source.items() if name[:4] in kept}
    assert (summary.kept, summary.rows) == (len(kept), sum(map(bool, counts().values())))
    assert summary.kept + summary.filtered == summary.rows
    beside = read_output(tmp_path / "tars")
    assert sorted(beside["key"].to_pylist()) == sorted(kept) == sorted(beside["sample_key"].to_pylist())
    again = export_output(
        embedded / "tars", tmp_path / "tars", ExportOptions(samples=how, where=where, samples_per_shard=4)
    )
    assert (again.written, again.skipped) == (0, summary.written)

    chosen = ExportOptions(samples=how, where=where, format="parquet", samples_per_shard=5)
    export_output(embedded / "parquet", tmp_path / "rows", chosen, id_col="id")
    found = pa.concat_tables(
        pq.read_table(path) for path in sorted((tmp_path / "rows" / "data").glob("*.parquet"))
    )
    whole = pa.concat_tables(pq.read_table(path) for path in sorted(parquet.glob("*.parquet")))
    assert found.schema.equals(whole.schema)
    mine = [row for row in whole.to_pylist() if row["id"] in kept]
    assert found.to_pylist() == mine


@pytest.mark.parametrize("kind", ["tars", "parquet"])
def test_who_takes_an_image_down_takes_down_its_whole_sample(embedded, tmp_path, kind):
    gone, id_col = "s004_7", "id" if kind == "parquet" else "key"
    how = ExportOptions(samples="any", format="parquet" if kind == "parquet" else "webdataset")
    shutil.copytree(embedded / kind, tmp_path / "rows")
    export_output(tmp_path / "rows", tmp_path / "whole", how, id_col=id_col)
    (tmp_path / "list.txt").write_text(f"{gone}\n")
    folders = [tmp_path / "rows", tmp_path / "whole"]
    if kind == "parquet":
        with pytest.raises(OutputError, match="export anew"):
            remove_samples(folders, tmp_path / "list.txt", on=id_col)
        del folders[1]
    summary = remove_samples(folders, tmp_path / "list.txt", on=id_col)
    assert [place.samples for place in summary.places] == [1] * len(folders)

    def samples_in(folder):
        if kind == "tars":
            return {name.partition(".")[0] for name in members(folder)}
        found = (pq.read_table(path, columns=["id"]) for path in (folder / "data").glob("*.parquet"))
        return {key for table in found for key in table["id"].to_pylist()}

    wanted = {sample for sample, count in counts().items() if count} - {"s004"}
    if kind == "tars":
        assert samples_in(tmp_path / "whole") == wanted
    # Nor does one of the images that are left bring it back, wherever it is written to.
    summary = export_output(tmp_path / "rows", tmp_path / "new", how, id_col=id_col)
    assert samples_in(tmp_path / "new") == wanted and summary.kept + summary.filtered == summary.rows


def test_parts_of_an_export_and_of_filtered_rows(embedded, tmp_path):
    filter_output(embedded / "tars", tmp_path / "filtered", where="image_error is null")
    kept = passing("all", lambda key: key not in BAD)
    how = ExportOptions(samples="all", shuffle=4, samples_per_shard=3)
    for number in range(2):
        export_output(tmp_path / "filtered", tmp_path / "parts", how, part=(number, 2))
    export_output(tmp_path / "filtered", tmp_path / "one", how)
    assert members(tmp_path / "parts") == members(tmp_path / "one")
    assert {name.partition(".")[0] for name in members(tmp_path / "one")} == set(kept)


def test_what_cannot_be_done_is_refused_in_words(embedded, tars, parquet, tmp_path):
    for more in ({"blur": "boxes"}, {"max_side": 8}, {"next_best": True, "without": "x"}, {"append": True}):
        with pytest.raises(ConfigError, match="whole samples are written as they are"):
            ExportOptions(samples="any", **more)
    with pytest.raises(ConfigError, match="expected one of 'all', 'any', 'first'"):
        ExportOptions(samples="some")
    with pytest.raises(ConfigError, match="go to tars"):
        export_output(embedded / "tars", tmp_path / "x", ExportOptions(samples="any", format="parquet"))
    with pytest.raises(ConfigError, match="go to Parquet files"):
        export_output(embedded / "parquet", tmp_path / "x", ExportOptions(samples="any"), id_col="id")
    mixed = ImageTextPairDataset.from_webdataset(tars, each_image=True).metadata.repartition(npartitions=1)
    ImageTextPairDataset(str(tars), mixed, [], "key").save_metadata(
        tmp_path / "mixed"
    )  # says no shard of a file
    with pytest.raises(ConfigError, match="go to tars"):
        export_output(tmp_path / "mixed", tmp_path / "x", ExportOptions(samples="any", format="parquet"))
    dataset = ImageTextPairDataset.from_webdataset(tars)
    with pytest.raises(ConfigError, match="each-image"):
        dataset.to_webdataset(tmp_path / "x", samples="all")
    cut = ImageTextPairDataset.from_webdataset(tars, each_image=True, rows_per_partition=4)
    with pytest.raises(OutputError, match="images of one sample may be in several"):
        cut.to_webdataset(tmp_path / "x", samples="all")
    assert not [*tmp_path.glob("x/*.tar")]
    pq.write_table(pa.table({"key": ["s000"]}), tmp_path / "00000.parquet")
    (tmp_path / "00000.tar").write_bytes((tars / "00000.tar").read_bytes())
    with pytest.raises(ConfigError, match="metadata='tar'"):
        ImageTextPairDataset.from_webdataset(tmp_path, each_image=True)
    pq.write_table(table_of(["s000"]).append_column("image_count", [[1]]), tmp_path / "taken.parquet")
    with pytest.raises(DatasetError, match="give yours other names"):
        ImageTextPairDataset.from_parquet(tmp_path / "taken.parquet")
    told = CliRunner().invoke(
        app,
        [
            "embed",
            str(tars),
            str(tmp_path / "o"),
            "--each-image",
            "--image",
            "img0.png",
            "--statistics",
            "width",
        ],
    )
    assert told.exit_code == 2


def test_check_looks_at_each_image(tars, parquet):
    for report in (preflight(tars, each_image=True), preflight(parquet, "id")):
        assert report.rows == len(KEYS), report
        assert report.ok
    imageless = [each for each in preflight(tars, each_image=True).notes if each.kind == "imageless"]
    assert [each.count for each in imageless] == [SHARDS]
    assert "each_image=True (--each-image)" in str(preflight(tars))


@pytest.fixture(scope="module")
def server():
    with s3_server() as found:
        yield found


def test_in_a_store_as_on_a_disk(server, tars, parquet, tmp_path):
    store, how = fsspec.filesystem("s3", **options(server)), options(server)
    for folder, name in ((tars, "tars"), (parquet, "parquet")):
        store.put(str(folder), f"{BUCKET}/{name}", recursive=True)
    of_tars = ImageTextPairDataset.from_webdataset(
        f"s3://{BUCKET}/tars", each_image=True, storage_options=how
    )
    of_rows = ImageTextPairDataset.from_parquet(f"s3://{BUCKET}/parquet", id_col="id", storage_options=how)
    for name, dataset, key in (("tars", of_tars, "key"), ("parquet", of_rows, "id")):
        ColourReader()(dataset).save_metadata(tmp_path / name, storage_options={})
        check(read_output(tmp_path / name), key)
    chosen = ExportOptions(samples="all", where="image_error is null")
    export_output(
        tmp_path / "tars", tmp_path / "whole", chosen, storage_options=None, shard_storage_options=how
    )
    kept = passing("all", lambda key: key not in BAD)
    assert members(tmp_path / "whole") == {
        name: data for name, data in members(tars).items() if name[:4] in kept
    }
