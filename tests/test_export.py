"""New tars of chosen samples: which, where, in which order, and every byte of them."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import dask.dataframe as dd
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import ColourReader, check_colours, image_of, members_of, write_dataset, write_tar
from typer.testing import CliRunner

from curator_dask.cli import app
from curator_dask.collector import held_back
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, DatasetError, OutputError, ShardError
from curator_dask.info import describe_output
from curator_dask.outputs import mixing
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.exporting import export_output
from curator_dask.outputs.filtering import filter_output
from curator_dask.outputs.mixed import put_mixed
from curator_dask.outputs.sharding import NewShards, ends_by_bytes, ends_by_count, ends_evenly, shuffled
from curator_dask.runs.turns import aside
from curator_dask.tables import TableColumns
from curator_dask.webdataset.index import ShardIndex

pytestmark = pytest.mark.usefixtures("in_this_process")

SHARDS, SAMPLES = 3, 10
WHERE = "cast(key[-4:] as int) % 3 = 1"


@pytest.fixture
def data(tmp_path):
    write_dataset(tmp_path / "data", SHARDS, SAMPLES)
    return tmp_path / "data"


@pytest.fixture
def dataset(data):
    return ImageTextPairDataset.from_webdataset(data)


def members_in(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """By tar, in their order: names and SHA-256 of the members; by Python's tarfile."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found[path.stem] = [
                (each.name, hashlib.sha256(tar.extractfile(each).read()).hexdigest()) for each in tar
            ]
    return found


def samples_in(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """By key, in the order of the tars: suffixes and SHA-256 of its members."""
    found: dict[str, list[tuple[str, str]]] = {}
    for members in members_in(folder).values():
        for name, digest in members:
            found.setdefault(name.partition(".")[0], []).append((name.partition(".")[2], digest))
    return found


def keys_in(folder: Path) -> dict[str, list[str]]:
    return {
        tar: list(dict.fromkeys(name.partition(".")[0] for name, _ in members))
        for tar, members in members_in(folder).items()
    }


def digests(folder: Path) -> dict[str, str]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_a_dry_run_says_what_is_needed_and_writes_nothing(dataset, tmp_path):
    options = {"samples_per_shard": 4, "where": WHERE}
    planned = dataset.to_webdataset(tmp_path / "out", **options, dry_run=True)
    assert not [*tmp_path.glob("out*")]
    done = dataset.to_webdataset(tmp_path / "out", **options)
    assert (planned.planned, planned.kept, planned.shards) == (True, done.kept, done.shards)
    assert (planned.written, planned.bytes, done.planned) == (0, 0, False)
    assert "a dry run: 3 tars to write, 0 finished before; about" in str(planned)
    # Small Parquet files are footers for the most part, and the new ones are as many.
    taken = sum(path.stat().st_size for path in tmp_path.glob("out*/**/*") if path.is_file())
    assert done.bytes < planned.needed < 2 * taken
    assert planned.free > planned.needed
    again = dataset.to_webdataset(tmp_path / "out", **options, dry_run=True)
    assert (again.skipped, again.needed, again.bytes) == (3, 0, done.bytes)
    with pytest.raises(OutputError, match="was made of other samples"):
        dataset.to_webdataset(tmp_path / "out", samples_per_shard=5, dry_run=True)
    before = digests(tmp_path / "out")
    assert before and (tmp_path / "out.export").exists()
    dataset.to_webdataset(tmp_path / "out", samples_per_shard=5, dry_run=True, overwrite=True)
    assert digests(tmp_path / "out") == before
    assert dataset.to_webdataset(tmp_path / "out", **options).written == 0


def passing(keys):
    return [key for key in keys if int(key[-4:]) % 3 == 1]


def test_every_member_byte_for_byte_in_tars_of_equal_size(data, dataset, tmp_path):
    out, every = tmp_path / "out", dataset.compute()["key"].tolist()
    summary = dataset.to_webdataset(out, where=WHERE, samples_per_shard=4)
    assert (summary.rows, summary.kept, summary.filtered, summary.missing) == (30, 9, 21, 0)
    assert (summary.shards, summary.written, summary.skipped) == (3, 3, 0)
    assert summary.complete and summary.to_dict()["passing"] == {WHERE: 9}
    assert f"{out}: 9 samples in 3 tars" in str(summary) and "21 filtered out" in str(summary)
    keys = keys_in(out)
    assert [key for some in keys.values() for key in some] == passing(every)  # in the order of the rows
    assert {tar: len(some) for tar, some in keys.items()} == {"00000": 4, "00001": 4, "00002": 1}
    source = samples_in(data)
    assert samples_in(out) == {key: source[key] for key in passing(every)}
    for path in out.glob("*.tar"):
        index = ShardIndex.read_idx(path.with_suffix(".idx"), path)
        assert [sample.key for sample in index.samples] == keys[path.stem]
        table = pq.read_table(path.with_suffix(".parquet"))
        assert table.column_names == ["key", "caption", "width"]
        assert table["caption"].to_pylist() == [f"caption of {key}" for key in keys[path.stem]]
    assert summary.bytes == sum(path.stat().st_size for path in out.glob("*.tar"))
    with tarfile.open(out / "00000.tar") as tar:
        assert {(each.mtime, each.uid, each.gid, each.uname, each.gname, each.mode) for each in tar} == {
            (0, 0, 0, "", "", 0o644)
        }


def test_long_names_and_two_exports_that_are_equal(tmp_path):
    """Names that no old header holds; each file is the other's, bit for bit."""
    keys = ["a" * 180, "ü" * 120, f"dir/{'x' * 90}/{'y' * 120}", "plain"]
    members = [pair for key in keys for pair in ((f"{key}.png", image_of("1")), (f"{key}.txt", key.encode()))]
    write_tar(tmp_path / "data" / "0.tar", members)
    for name in ("one", "other"):
        ImageTextPairDataset.from_webdataset(tmp_path / "data").to_webdataset(tmp_path / name)
    with tarfile.open(tmp_path / "one" / "00000.tar") as tar:
        assert [(each.name, tar.extractfile(each).read()) for each in tar] == members
    assert digests(tmp_path / "one") == digests(tmp_path / "other") and len(digests(tmp_path / "one")) == 4
    again = ImageTextPairDataset.from_webdataset(tmp_path / "one", metadata="tar").compute()
    assert again["key"].tolist() == again["caption"].tolist() == keys


def test_the_manifest_says_where_each_sample_comes_from(dataset, tmp_path):
    dataset.to_webdataset(
        tmp_path / "out", where=WHERE, samples_per_shard=4, old_id_col="old", columns=["width"]
    )
    rows = pq.read_table(f"{tmp_path / 'out'}.export/manifest").to_pylist()
    assert len(rows) == 9 and {row["shard"] for row in rows} == {"00000", "00001", "00002"}
    for row in rows:
        old, new = (
            Path(row["source_shard"]).read_bytes(),
            (tmp_path / "out" / f"{row['shard']}.tar").read_bytes(),
        )
        for name, at, size, before in zip(
            row["members"], row["offsets"], row["sizes"], row["source_offsets"], strict=True
        ):
            data = new[at : at + size]
            assert name.startswith(f"{row['key']}.")
            if name.endswith(".json"):
                assert json.loads(data)["key"] == json.loads(data)["old"] == row["source_key"]
            else:
                assert old[before : before + size] == data


def test_a_second_run_does_what_is_missing(dataset, tmp_path):
    out = tmp_path / "out"

    def export(**options):
        return dataset.to_webdataset(out, **{"where": WHERE, "samples_per_shard": 4, **options})

    export()
    before = digests(out)
    again = export()
    assert (again.written, again.skipped, again.kept, again.rows) == (0, 3, 9, 30)
    (out / "00001.tar").unlink()
    (out / "00002.idx").unlink()
    again = export()
    assert (again.written, again.skipped) == (2, 1) and digests(out) == before
    for name in ("00001.parquet", "00001.idx"):
        (out / name).write_bytes((out / name).read_bytes()[:-1])
        again = export()
        assert (again.written, again.skipped) == (1, 2) and digests(out) == before
    for options in ({"where": "key like '%1'"}, {"keys": "sequential"}, {"samples_per_shard": 3}):
        with pytest.raises(OutputError, match=r"made of other samples, or by other settings.*overwrite"):
            export(**options)
    assert digests(out) == before
    summary = export(samples_per_shard=9, metadata=None, index=False, overwrite=True)
    assert summary.shards == 1 and sorted(digests(out)) == ["00000.tar"]
    assert export(samples_per_shard=9, metadata=None, index=False).skipped == 1


def test_vectors_and_scores_go_along(data, dataset, tmp_path):
    """From a dataset that is embedded on the way, from the output of one, and from one that was filtered."""
    embedded = ColourReader()(dataset)
    embedded.to_webdataset(tmp_path / "lazy", where=WHERE, samples_per_shard=4)
    embedded.save_metadata(tmp_path / "embeddings")
    summary = export_output(
        tmp_path / "embeddings", tmp_path / "from output", ExportOptions(where=WHERE, samples_per_shard=4)
    )
    assert (summary.rows, summary.kept) == (30, 9)
    filter_output(tmp_path / "embeddings", tmp_path / "good", where=WHERE)
    export_output(tmp_path / "good", tmp_path / "from filtered", ExportOptions(samples_per_shard=4))
    read = dataset.with_metadata(dd.read_parquet(tmp_path / "good"))
    read.to_webdataset(tmp_path / "from frame", samples_per_shard=4)
    tars = digests(tmp_path / "lazy")
    for name in ("from output", "from filtered", "from frame"):
        found = digests(tmp_path / name)
        assert {n: d for n, d in found.items() if n.endswith((".tar", ".idx"))} == {
            n: d for n, d in tars.items() if n.endswith((".tar", ".idx"))
        }
        again = ImageTextPairDataset.from_webdataset(tmp_path / name)
        frame = again.compute()
        assert len(frame) == 9
        check_colours(frame["key"], frame["image_embedding"])
    schema = pq.read_schema(tmp_path / "from output" / "00000.parquet")
    assert schema.field("image_embedding").type == pa.list_(pa.float32(), 3)


def test_rows_that_were_mixed(dataset, tmp_path):
    """By a shuffle of Dask's, and by columns selected: the samples are still theirs."""
    mixed = dataset.with_metadata(dataset.metadata[["key", "__url__", "width"]].repartition(npartitions=2))
    summary = mixed.to_webdataset(tmp_path / "out", samples_per_shard=7)
    assert (summary.kept, summary.shards) == (30, 5)
    assert len(samples_in(tmp_path / "out")) == 30
    picked = dataset.with_metadata(dataset.metadata.partitions[[2, 0]])
    picked.to_webdataset(tmp_path / "picked", samples_per_shard=10)
    assert [some[0][:5] for some in keys_in(tmp_path / "picked").values()] == ["00002", "00000"]


def test_a_column_of_booleans(dataset, tmp_path):
    frame = dataset.metadata
    frame["good"] = frame["key"].str.endswith("3")
    summary = dataset.to_webdataset(tmp_path / "out", "good", samples_per_shard=2, max_shards=3)
    assert keys_in(tmp_path / "out") == {"000": ["000000003", "000010003"], "001": ["000020003"]}
    assert (summary.kept, summary.filtered, summary.passing) == (3, 27, {"good": 3})
    with pytest.raises(ConfigError, match=r"expected booleans in the column 'width', found int64"):
        dataset.to_webdataset(tmp_path / "other", "width")


def test_no_row_passes(dataset, tmp_path):
    summary = dataset.to_webdataset(tmp_path / "out", where="1 = 2")
    assert (summary.kept, summary.filtered, summary.shards) == (0, 30, 0) and summary.complete
    assert not list((tmp_path / "out").glob("*.*"))
    none = dataset.filter("key not like '00001%'").to_webdataset(tmp_path / "out", samples_per_shard=20)
    assert (none.kept, none.shards) == (20, 1)


@pytest.mark.parametrize("samples_per_shard", [1, 10, 11, 10_000])
def test_sequential_keys_are_those_of_nemo_curator(dataset, tmp_path, samples_per_shard):
    dataset.to_webdataset(
        tmp_path / "out",
        samples_per_shard=samples_per_shard,
        max_shards=3,
        old_id_col="old",
        metadata="parquet",
    )
    digits = int(np.ceil(np.log10(samples_per_shard)))
    expected = [
        f"{number // samples_per_shard * 10**digits + number % samples_per_shard:0{3 + digits}d}"
        for number in range(30)
    ]
    assert [key for some in keys_in(tmp_path / "out").values() for key in some] == expected
    again = ImageTextPairDataset.from_webdataset(tmp_path / "out").compute()
    assert again["key"].tolist() == expected and again["old"].tolist() == dataset.compute()["key"].tolist()
    assert again["caption"].tolist() == [f"caption of {key}" for key in again["old"]]


def test_keys_that_occur_twice(tmp_path):
    for shard in range(2):
        write_tar(tmp_path / "data" / f"{shard}.tar", [m for n in range(4) for m in members_of(f"{n:05d}")])
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")
    with pytest.raises(DatasetError, match=r"4 keys more than once: '00000' in .*0.tar, .*1.tar.*sequential"):
        dataset.to_webdataset(tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tar"))
    assert dataset.to_webdataset(tmp_path / "out", keys="sequential").kept == 8
    twice = dataset.with_metadata(dd.concat([dataset.metadata, dataset.metadata]))
    with pytest.raises(DatasetError, match="4 keys more than once"):
        twice.to_webdataset(tmp_path / "twice")


def test_fields_in_the_json_whose_other_bytes_stay(tmp_path):
    documents = [
        b'{"width": 24, "a": [1.50]}',
        b"{ }\n",
        b"[1]",
        b"{broken",
        None,
        b'\xef\xbb\xbf{"b": "\xc3\xbc"}  ',
    ]
    members = []
    for number, document in enumerate(documents):
        members += [(f"{number}.jpg", b"x"), *([] if document is None else [(f"{number}.json", document)])]
    write_tar(tmp_path / "data" / "0.tar", members)
    rows = {"key": list("012345"), "width": [24] * 6, "score": [1.0, None, 2.5, 0.1, float("nan"), -1.0]}
    pq.write_table(pa.table(rows), tmp_path / "data" / "0.parquet")
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")
    summary = dataset.to_webdataset(tmp_path / "out", columns=["score", "width"])
    with tarfile.open(tmp_path / "out" / "00000.tar") as tar:
        found = [tar.extractfile(f"{number}.json").read() for number in range(6)]
    assert found == [
        b'{"width": 24, "a": [1.50], "score": 1.0}',
        b'{"score": null, "width": 24} }\n'.replace(b"24} }", b"24 }"),
        b"[1]",
        b"{broken",
        b'{"score": null, "width": 24}',
        b'\xef\xbb\xbf{"b": "\xc3\xbc", "score": -1.0, "width": 24}  ',
    ]
    assert len(summary.json_left_alone) == 2 and "2 samples got no fields, as the JSON is no object" in str(
        summary
    )
    wrong = dataset.with_metadata(dataset.metadata.assign(width=25))
    with pytest.raises(ShardError):
        raise_first(wrong.to_webdataset(tmp_path / "wrong", columns=["width"]))
    wrong.to_webdataset(tmp_path / "json", metadata="json")  # what is there already stays
    assert not (tmp_path / "json" / "00000.parquet").exists()
    with tarfile.open(tmp_path / "json" / "00000.tar") as tar:
        assert json.loads(tar.extractfile("0.json").read()) == {"width": 24, "a": [1.5], "score": 1.0}
        assert json.loads(tar.extractfile("1.json").read()) == {"width": 25, "score": None}


def held_by(path):
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_captions_from_a_column(tmp_path):
    members = [("0.jpg", b"a"), ("0.txt", b"old"), ("0.npy", b"b"), ("1.jpg", b"c"), ("1.json", b"{ }")]
    members += [("2.TXT", b"stays"), ("2.jpg", b"d"), ("3.jpg", b"e")]
    write_tar(tmp_path / "data" / "0.tar", members)
    rows = {"key": list("0123"), "n": [1] * 4, "new": pa.array(["", "zwölf", None, None]).dictionary_encode()}
    pq.write_table(pa.table(rows), tmp_path / "data" / "0.parquet")
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")
    summary = dataset.to_webdataset(tmp_path / "out", caption="new", columns=["n"], metadata=None)
    new, fields = "zwölf".encode(), {f"{key}.json": b'{"n": 1}' for key in "023"} | {"1.json": b'{"n": 1 }'}
    there = dict(members) | {"0.txt": b"", "1.txt": new} | fields
    assert held_by(tmp_path / "out" / "00000.tar") == there
    assert summary.no_caption == 2 and "2 samples got no caption, as the column is null" in str(summary)
    assert summary.empty_caption == 1 and "1 sample got an empty caption, as the column has" in str(summary)
    assert not any(".txt," in each for each in summary.habits)
    again = dataset.to_webdataset(tmp_path / "out", caption="new", columns=["n"], metadata=None)
    assert (again.written, again.no_caption, again.empty_caption) == (0, 2, 1)
    for each in (summary, again):  # what is in the tars, and what stays
        assert each.fields == {"jpg": 4, "txt": 2, "TXT": 1, "npy": 1, "json": 4} and each.kept_caption == 1
    with pytest.raises(OutputError, match="overwrite"):
        dataset.to_webdataset(tmp_path / "out", columns=["n"], metadata=None)
    dataset.to_webdataset(tmp_path / "portable", caption="new", keys="sequential")
    found = held_by(tmp_path / "portable" / "00000.tar")
    assert [found[name] for name in sorted(found) if name.endswith("txt")] == [b"", new, b"stays", b""]
    for name, said in (("nothing", "no such columns"), ("n", "expected text in the column 'n' of captions")):
        with pytest.raises(ConfigError, match=said):
            dataset.to_webdataset(tmp_path / "wrong", caption=name)


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_captions_of_a_table_leave_those_that_it_has_not(dataset, tmp_path, form):
    keys = [f"{0:05d}{sample:04d}" for sample in range(SAMPLES)]
    new = [None, "", " \u3000\t", *(f"new {key}" for key in keys[3:])]
    path = tmp_path / f"table.{form}"
    if form == "parquet":
        pq.write_table(pa.table({"id": keys, "recaption": new}), path)
    else:
        cells = ["" if text is None else f'"{text}"' for text in new]
        rows = [f"{key},{cell},,\n" for key, cell in zip(keys, cells, strict=True)]
        path.write_text("".join(["id,recaption,,\n", *rows]), encoding="utf-8")
    joined = TableColumns(path, on="key=id")(dataset)
    summary = joined.to_webdataset(tmp_path / "out", caption="recaption", samples_per_shard=SAMPLES)
    assert (summary.no_caption, summary.empty_caption) == (1 + (SHARDS - 1) * SAMPLES, 2)
    assert summary.to_dict()["empty_caption"] == 2
    assert "2 samples got an empty caption" in str(summary)
    found = held_by(tmp_path / "out" / "00000.tar")
    before = held_by(Path(dataset.tar_files[0]))
    for key, text in zip(keys, new, strict=True):
        assert found[f"{key}.txt"] == (before[f"{key}.txt"] if text is None else text.encode()), key


def raise_first(summary):
    for why in summary.failed_shards.values():
        assert (
            "its JSON has a field 'width' already, 24, which is to be 25: give the column another name" in why
        )
        raise ShardError(why)


def test_a_random_order_over_all_samples(dataset, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        dataset.to_webdataset(tmp_path / name, shuffle=seed, samples_per_shard=8)
    assert digests(tmp_path / "a") == digests(tmp_path / "b") != digests(tmp_path / "c")
    mixed = [key for some in keys_in(tmp_path / "a").values() for key in some]
    every = dataset.compute()["key"].tolist()
    assert mixed == [every[number] for number in shuffled(30, 1)] and sorted(mixed) == sorted(every)
    assert len({key[:5] for key in mixed[:8]}) == 3  # over all shards
    rows = [
        key
        for path in sorted((tmp_path / "a").glob("*.parquet"))
        for key in pq.read_table(path)["key"].to_pylist()
    ]
    assert rows == mixed


def test_every_order_is_as_likely():
    counts = np.zeros((5, 5))
    for seed in range(3000):
        counts[np.arange(5), shuffled(5, seed)] += 1
    assert (abs(counts - 600) < 5 * np.sqrt(600 * 0.8)).all()
    assert shuffled(6, 7).tolist() == [3, 4, 0, 2, 5, 1]  # in ten years too


def test_tars_of_at_most_so_many_bytes(dataset, tmp_path):
    summary = dataset.to_webdataset(tmp_path / "out", shard_bytes=30_720, samples_per_shard=2)
    sizes = [path.stat().st_size for path in sorted((tmp_path / "out").glob("*.tar"))]
    assert max(sizes) <= 30_720 and len(sizes) == summary.shards < 15
    assert [key for some in keys_in(tmp_path / "out").values() for key in some] == dataset.compute()[
        "key"
    ].tolist()
    assert ends_by_bytes(np.array([3, 3, 3, 9, 1, 12, 1, 1]), 8).tolist() == [2, 3, 4, 5, 6, 8]


def test_so_many_tars_of_equal_size(dataset, tmp_path):
    """In a random order, as who trains wants them; a second run does what is missing."""
    options = {"shards": 7, "shuffle": 1, "keys": "sequential", "old_id_col": "old"}
    summary = dataset.to_webdataset(tmp_path / "out", **options)
    assert (summary.kept, summary.shards) == (30, 7)
    assert [len(some) for some in keys_in(tmp_path / "out").values()] == [4, 4, 4, 5, 4, 4, 5]
    rows = [pq.read_table(path) for path in sorted((tmp_path / "out").glob("*.parquet"))]
    every = dataset.compute()["key"].tolist()
    assert pa.concat_tables(rows)["old"].to_pylist() == [every[number] for number in shuffled(30, 1)]
    assert {key for some in keys_in(tmp_path / "out").values() for key in some} >= {"000000", "000064"}
    (tmp_path / "out" / "00003.tar").unlink()
    again = dataset.to_webdataset(tmp_path / "out", **options)
    assert (again.written, again.skipped, again.shards) == (1, 6, 7)
    none = dataset.to_webdataset(tmp_path / "none", where="width < 0", shards=7)
    assert "NONE of the 7 tars that were asked for is there: no row that passes has a sample" in str(none)
    assert (none.kept, none.shards, none.complete) == (0, 0, True)
    for shards in range(1, 31):
        sizes = np.diff(ends_evenly(30, shards), prepend=0)
        assert len(sizes) == shards and sizes.sum() == 30 and sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("order", [None, shuffled(17, 0)])
def test_shards_are_made_of_all_samples_once(order):
    counts, ends = [5, 0, 7, 5], ends_by_count(17, 4)
    shards = NewShards("abcd", "1234", counts, ends, order)
    places = [(name, row) for name, count in zip("abcd", counts, strict=True) for row in range(count)]
    expected = places if order is None else [places[number] for number in order]
    found = [
        (shard.files[which], int(row))
        for shard in shards
        for which, row in zip(shard.which, shard.rows, strict=True)
    ]
    assert found == expected and [len(shard) for shard in shards] == [4, 4, 4, 4, 1]
    assert shards.only([3, 1])[1].digest == shards[1].digest != shards[0].digest
    for some in (shards, shards.only([1, 4])):
        by_shard = {number: {} for number in range(len(some))}
        for name, rows, used, ends in some.by_table():
            for number, drawn in zip(used, np.split(rows, ends[:-1]), strict=True):
                by_shard[number][name] = drawn.tolist()
        assert by_shard == {
            number: {
                name: shard.rows[shard.which == place].tolist() for place, name in enumerate(shard.files)
            }
            for number, shard in enumerate(some)
        }


def test_rows_laid_down_in_the_order_of_their_tars(dataset, tmp_path, monkeypatch, caplog):
    """Each file of rows is read once for all tars; the result is that of tars that read the files themselves."""
    dataset.save_metadata(tmp_path / "rows")
    options = ExportOptions(shuffle=1, shards=12, columns=["width"], splits={"val": 0.3})
    written = []

    def noted(folder, name, *rest):
        written.append(name)
        put_mixed(folder, name, *rest)

    def export(target, worth_it=0):
        written.clear()
        monkeypatch.setattr(mixing, "WORTH_IT", worth_it)
        return export_output(tmp_path / "rows", target, options)

    monkeypatch.setattr(mixing, "put_mixed", noted)
    assert export(tmp_path / "plain", 100).kept == 30 and written == []
    expected = digests(tmp_path / "plain")
    of_all = {f"{kind}/{number:05d}.parquet" for kind in ("rows", "samples") for number in range(3)}
    assert export(tmp_path / "out").complete and {*written} == of_all
    assert digests(tmp_path / "out") == expected and not (tmp_path / "out.export" / "mixed").exists()
    # A run that died has left some; of one file none can be written: the tars read that themselves.
    (tmp_path / "out" / "train" / "00003.tar").unlink()
    (tmp_path / "out.export" / "mixed" / "dead" / "rows").mkdir(parents=True)
    (tmp_path / "out.export" / "mixed" / "dead" / "rows" / "00000.parquet.arrow").write_bytes(b"cut")
    monkeypatch.setattr(
        mixing, "put_mixed", lambda folder, name, *rest: put_mixed(folder, f"no{name}", *rest)
    )
    assert export(tmp_path / "out").written == 1
    assert digests(tmp_path / "out") == expected and not (tmp_path / "out.export" / "mixed").exists()
    monkeypatch.setattr(mixing, "put_mixed", noted)
    monkeypatch.setattr(mixing, "_DECODED", 10**15)
    assert export(tmp_path / "full").complete and written == [] and "no room to lay 3 files" in caplog.text
    assert digests(tmp_path / "full") == expected
    # It seems that there is room, and then rows take more than was thought: the tars get what they took.
    usage = shutil.disk_usage(tmp_path)
    needed = export_output(tmp_path / "rows", tmp_path / "more", replace(options, dry_run=True)).needed
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed + 100))
        patched.setattr(mixing, "_DECODED", 0)
        assert export(tmp_path / "more").complete and {*written} == of_all
    assert "more than was foreseen" in caplog.text
    assert digests(tmp_path / "more") == expected and not (tmp_path / "more.export" / "mixed").exists()
    monkeypatch.setattr(mixing, "_DECODED", 2)
    assert export("memory://mixed/out").complete and {*written} == of_all
    store = fsspec.filesystem("memory")
    assert store.find("/mixed/out.export/mixed") == []
    assert {
        name: hashlib.sha256(store.cat(f"/mixed/out/{name}")).hexdigest() for name in expected
    } == expected
    store.rm("/mixed", recursive=True)


def test_rows_of_an_output_are_no_place_for_tars(dataset, tmp_path):
    out = tmp_path / "rows"
    dataset.save_metadata(out)
    before = {each.name: each.read_bytes() for each in out.iterdir()}
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"rows/.*\.parquet: is a file of rows.*folder of its own"):
            dataset.to_webdataset(out, overwrite=overwrite)
    assert {each.name: each.read_bytes() for each in out.iterdir()} == before


def test_where_it_must_not_go(data, dataset, tmp_path):
    for target in (data, data / "new", tmp_path):
        with pytest.raises(OutputError, match=r"would be lost|finds the rows of both"):
            dataset.to_webdataset(target)
    dataset.save_metadata(tmp_path / "rows" / "embeddings")
    before = digests(data)
    with pytest.raises(OutputError, match=r"would be lost"):
        export_output(tmp_path / "rows" / "embeddings", data, ExportOptions(overwrite=True))
    assert {name: digest for name, digest in digests(data).items() if name in before} == before
    write_tar(tmp_path / "out" / "x.tar", members_of("1"))
    with pytest.raises(OutputError, match=r"x\.tar: is there, and is not of this export"):
        dataset.to_webdataset(tmp_path / "out")
    (tmp_path / "y.export").mkdir()
    (tmp_path / "y.export" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"y\.export: is there, and is not of an export"):
        dataset.to_webdataset(tmp_path / "y")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["DATA", "--where", WHERE, "--samples-per-shard", "4"], 0, "9 samples in 3 tars"),
        (["EMBEDDINGS", "--shard-bytes", "0.00002GB", "--columns", "width"], 0, "30 samples in"),
        (["EMBEDDINGS", "--columns", "caption", "--columns", "no, caption"], 2, "no such columns ['no']"),
        (["EMBEDDINGS", "--columns", "no", "--columns", "width"], 2, "no such columns ['no']"),
        (["EMBEDDINGS", "--columns", "width,"], 2, "expected names with commas between"),
        (
            ["DATA", "--shuffle", "3", "--keys", "sequential", "--old-id-col", "old"],
            0,
            "30 samples in 1 tar",
        ),
        (["DATA", "--shard-bytes", "many"], 2, "expected a size, such as 1GB"),
        (["DATA", "--filter-column", "width"], 2, "expected booleans"),
        (["NOTHING"], 2, "neither a tar nor a Parquet file is there"),
    ],
)
def test_the_command(data, tmp_path, arguments, code, said):
    ImageTextPairDataset.from_webdataset(data).save_metadata(tmp_path / "embeddings")
    (tmp_path / "nothing").mkdir()
    places = {name.upper(): str(tmp_path / name) for name in ("data", "embeddings", "nothing")}
    given = [places.get(each, each) for each in arguments]
    given[1:1] = [str(tmp_path / "out"), "--json", str(tmp_path / "summary.json")]
    result = CliRunner().invoke(app, ["export", *given, "--cluster", "cpu", "--workers", "1"])
    assert result.exit_code == code, result.output
    assert said in " ".join(result.output.split()), result.output
    if not code:
        summary = json.loads((tmp_path / "summary.json").read_text())
        assert summary["kept"] == len(samples_in(tmp_path / "out")) and summary["complete"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"samples_per_shard": 0}, "samples_per_shard=0: expected a whole number of at least 1"),
        ({"keys": "new"}, "keys='new': expected one of 'original', 'sequential', None"),
        ({"metadata": "csv"}, "metadata='csv': expected one of"),
        ({"old_id_col": "old", "keys": "original"}, "keys='original' leaves each sample its key"),
        ({"old_id_col": "caption"}, "there is such a column already"),
        ({"columns": "width"}, "expected a list of names"),
        ({"columns": ["nothing"]}, r"no such columns \['nothing'\]"),
        ({"filter_column": "nothing"}, r"no such columns \['nothing'\]"),
        ({"where": "nothing > 1"}, "there is no column 'nothing'"),
        ({"samples_per_shard": 1, "max_shards": 1}, "30 tars do not have numbers of 1 digits"),
        ({"shards": 0}, "shards=0: expected a whole number of at least 1"),
        ({"shards": 31}, "shards=31.*found 30 samples; readers stop at a tar without one"),
        ({"shards": 3, "shard_bytes": 9}, "give one"),
        ({"shards": 3, "append": True}, "new ones cannot be of equal size"),
    ],
)
def test_what_cannot_be_asked(dataset, tmp_path, options, said):
    with pytest.raises(ConfigError, match=said):
        dataset.to_webdataset(tmp_path / "out", **options)
    assert not list(tmp_path.rglob("out/*.tar"))


def test_the_collector_is_as_it_was():
    with held_back(), held_back():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with held_back():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_number_is_needed_where_none_would_mean_nothing():
    for name in ("samples_per_shard", "max_shards"):
        with pytest.raises(ConfigError, match=f"{name}=None: expected a whole number of at least 1"):
            ExportOptions(**{name: None})


def test_rows_with_a_better_twin_stay_out(data, dataset, tmp_path):
    """By the table that a deduplication writes: by shard and key."""
    dataset.save_metadata(tmp_path / "rows")
    twins = {
        "id": ["000000001", "000010002", "000010003"],
        "__url__": [str(data / f"0000{number}.tar") for number in (0, 1, 2)],
        "kept": [False, True, False],  # the second stays, the third is of another shard
    }
    with pytest.raises(OutputError, match="is no table of duplicates: give the folder that dedup wrote to"):
        export_output(tmp_path / "rows", tmp_path / "out", ExportOptions(without=str(tmp_path)))
    (tmp_path / "twins").mkdir()
    pq.write_table(pa.table(twins), tmp_path / "twins/duplicates.parquet")
    summary = export_output(
        tmp_path / "rows", tmp_path / "out", ExportOptions(without=str(tmp_path / "twins"))
    )
    assert {*samples_in(data)} - {*samples_in(tmp_path / "out")} == {"000000001"}
    assert (summary.kept, summary.filtered, summary.passing["has no better twin"]) == (29, 1, 29)


def test_tars_that_a_dead_run_has_replaced_do_not_pass_for_finished(data, dataset, tmp_path, monkeypatch):
    """Another export, with overwrite, that died after its first tar and before that one's manifest."""
    out = tmp_path / "out"
    dataset.to_webdataset(out, samples_per_shard=10, shuffle=1)
    whole = members_in(out)

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("curator_dask.outputs.packing.where_from", die)
        with pytest.raises(KeyboardInterrupt):
            dataset.to_webdataset(out, samples_per_shard=10, shuffle=2, overwrite=True)
    assert members_in(out) != whole
    summary = dataset.to_webdataset(out, samples_per_shard=10, shuffle=1, overwrite=True)
    assert members_in(out) == whole and summary.written == 3


def _wait_aside(path):
    with aside():
        for _ in range(500):
            if path.exists():
                return True
            time.sleep(0.02)
    return False


def test_while_a_task_waits_for_the_disk_its_worker_does_the_next(client, tmp_path):
    (worker, *_), path = client.scheduler_info()["workers"], tmp_path / "second"
    waits = client.submit(_wait_aside, path, workers=[worker], pure=False)
    client.submit(path.touch, workers=[worker], pure=False).result()
    assert waits.result()


def _with_twins(data, rows):
    """Rows with a score, and a table of groups: by pandas which of these rows an export of those that pass has."""
    table = pq.read_table(rows).to_pandas()
    random = np.random.default_rng(3)
    table["group"] = random.integers(0, 8, len(table))
    table["rank"] = random.permutation(len(table)) + 100
    table["kept"] = table["rank"] == table.groupby("group")["rank"].transform("min")
    table["kept"] |= table["group"] == 7  # none of it goes
    outside = table["group"] == 6  # that stays for it is of another output
    table.loc[outside, "kept"] = False
    (rows.parent / "twins").mkdir()
    told = table.rename(columns={"key": "id"})[["id", "__url__", "group", "kept", "rank"]]
    pq.write_table(pa.Table.from_pandas(told, preserve_index=False), rows.parent / "twins/duplicates.parquet")
    table["passes"] = table["key"].astype(int) % 2 != 1
    heads = table[table["kept"] & table["passes"]]["group"]
    lost = table["passes"] & ~table["kept"] & ~outside & ~table["group"].isin(heads)
    best = table[lost].sort_values("rank").groupby("group").head(1)
    plain = {*table["key"][table["passes"] & table["kept"]]}
    return plain, int(lost.sum()), {*best["key"]}


def test_rows_whose_better_twin_does_not_pass_are_counted_and_the_best_of_them_may_stay(
    data, dataset, tmp_path
):
    dataset.save_metadata(tmp_path / "rows")
    plain, lost, best = _with_twins(data, tmp_path / "rows")
    assert lost > len(best) > 1
    where, without = "cast(key as int) % 2 != 1", str(tmp_path / "twins")
    summary = export_output(tmp_path / "rows", tmp_path / "out", ExportOptions(where=where, without=without))
    assert ({*samples_in(tmp_path / "out")}, summary.twins_filtered) == (plain, lost)
    said = f"{lost} rows that pass go for a better twin that does not pass itself"
    assert said in str(summary) and "--next-best" in str(summary)
    assert [line for line in describe_output(tmp_path / "out").remarks if said in line]
    # Of rows that were filtered before it is the same.
    filter_output(tmp_path / "rows", tmp_path / "some", where=where)
    found = export_output(tmp_path / "some", tmp_path / "out_of_some", ExportOptions(without=without))
    assert ({*samples_in(tmp_path / "out_of_some")}, found.twins_filtered) == (plain, lost)
    for rows, condition in (("rows", where), ("some", None)):
        options = ExportOptions(where=condition, without=without, next_best=True)
        summary = export_output(tmp_path / rows, tmp_path / f"best_{rows}", options)
        assert {*samples_in(tmp_path / f"best_{rows}")} == plain | best
        assert (summary.twins_filtered, summary.next_best) == (0, len(best))
        assert f"{len(best)} rows stay in the place of a better twin" in str(summary)
        assert summary.kept + summary.filtered == summary.rows
    again = export_output(tmp_path / rows, tmp_path / f"best_{rows}", options)
    assert (again.written, again.next_best) == (0, len(best))
    # What stays in tars is the best of its group, though a better one comes.
    added = ExportOptions(where=f"({where}) or group_is_new", without=without, next_best=True, append=True)
    with pytest.raises(ConfigError, match="group_is_new"):
        export_output(tmp_path / "rows", tmp_path / "best_rows", added)
    added = ExportOptions(where=where, without=without, next_best=True, append=True)
    summary = export_output(tmp_path / "rows", tmp_path / "best_rows", added)
    assert (summary.kept, summary.earlier, summary.outdated) == (0, len(plain | best), 0)
    # One that came before a row that passes now and is better, is no longer one of those that pass.
    added = ExportOptions(without=without, next_best=True, append=True)
    summary = export_output(tmp_path / "rows", tmp_path / "best_rows", added)
    assert (summary.outdated, summary.twins_filtered) == (len(best), 0)


def test_a_table_that_does_not_say_who_is_next_is_told(data, dataset, tmp_path):
    dataset.save_metadata(tmp_path / "rows")
    _with_twins(data, tmp_path / "rows")
    file = tmp_path / "twins/duplicates.parquet"
    pq.write_table(pq.read_table(file).drop_columns("rank"), file)
    options = ExportOptions(where="key > '0'", without=str(tmp_path / "twins"), next_best=True)
    with pytest.raises(OutputError, match=r"column 'rank'.*Run the same dedup again"):
        export_output(tmp_path / "rows", tmp_path / "out", options)
    with pytest.raises(ConfigError, match="give their table as without"):
        ExportOptions(next_best=True)
