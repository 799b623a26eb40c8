"""New tars whose samples have vectors as members: which, of what, and that they stay with their images."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path

import dask.dataframe as dd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import colour_of, write_dataset, write_tar
from PIL import Image
from typer.testing import CliRunner

from curator_dask.cli import app
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, OutputError
from curator_dask.outputs.export_columns import conformed, schema_beside
from curator_dask.outputs.export_options import ExportOptions
from curator_dask.outputs.exporting import export_output
from curator_dask.outputs.hub_schema import hub_schema
from curator_dask.outputs.vector_members import check_vectors, vector_members
from curator_dask.recipe import Recipe
from curator_dask.webdataset.index import ShardIndex

pytestmark = pytest.mark.usefixtures("in_this_process")

SHARDS, SAMPLES = 2, 12


def number_of(key: str) -> int:
    return int(key[-4:])


def vector_of(key: str) -> np.ndarray | None:
    return None if number_of(key) == 5 else np.array(colour_of(key), np.float32) / 7


def half_of(key: str) -> np.ndarray | None:
    """Of differing length, without any, and null."""
    return None if number_of(key) == 7 else np.arange(number_of(key), dtype=np.float16) / 3 + number_of(key)


def whole_of(key: str) -> np.ndarray:
    return np.array([number_of(key), 2**40 + number_of(key)], np.int64)


@pytest.fixture
def rows(tmp_path):
    """An output: vectors of the colours of images, in another order than the samples'; its tars lie beside."""
    keys = write_dataset(tmp_path / "data", SHARDS, SAMPLES)
    for shard in range(SHARDS):
        mine = [key for key in keys if key.startswith(f"{shard:05d}")][::-1]
        table = pa.table(
            {
                "key": mine,
                "__url__": [str(tmp_path / f"data/{shard:05d}.tar")] * len(mine),
                "emb": pa.array([vector_of(key) for key in mine], pa.list_(pa.float32(), 3)),
                "Half": pa.array([half_of(key) for key in mine], pa.list_(pa.float16())),
                "whole": pa.array([whole_of(key).tolist() for key in mine], pa.large_list(pa.int64())),
                "holes": pa.array([[1.0, None] if number_of(key) == 3 else [2.0] for key in mine]),
            }
        )
        (tmp_path / "rows").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / f"rows/{shard:05d}.parquet", row_group_size=5)
    return tmp_path / "rows"


def held(folder: Path) -> dict[str, dict[str, bytes]]:
    """By key and suffix: all members of all tars; by Python's tarfile."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.rglob("*.tar")):
        with tarfile.open(path) as tar:
            for each in tar:
                key, _, suffix = each.name.partition(".")
                found.setdefault(key, {})[suffix] = tar.extractfile(each).read()
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def loaded(data: bytes) -> np.ndarray:
    file = io.BytesIO(data)
    array = np.load(file, allow_pickle=False)
    assert data[6:8] == b"\x01\x00" and file.tell() == len(data)
    return array


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def export(rows, out, **options):
    return export_output(rows, out, ExportOptions(**options))


def test_vectors_lie_beside_their_images_bit_for_bit(rows, tmp_path):
    out, before = tmp_path / "out", held(tmp_path / "data")
    summary = export(rows, out, npy=["emb", "Half", "whole", "holes"], samples_per_shard=7, shuffle=3)
    after = held(out)
    assert {*after} == {*before} and len(after) == SHARDS * SAMPLES
    for key, members in after.items():
        vectors = {suffix: loaded(members.pop(suffix)) for suffix in [*members] if suffix.endswith(".npy")}
        assert members == before[key]  # all else is copied
        expected = {"emb.npy": vector_of(key), "Half.npy": half_of(key), "whole.npy": whole_of(key)}
        expected["holes.npy"] = None if number_of(key) == 3 else np.array([2.0])
        expected = {suffix: each for suffix, each in expected.items() if each is not None}
        assert {*vectors} == {*expected} and all(same(vectors[each], expected[each]) for each in expected)
    assert summary.no_vector == {"emb.npy": 2, "Half.npy": 2, "holes.npy": 2, "whole.npy": 0}
    assert summary.fields["emb.npy"] == 22 and summary.fields["whole.npy"] == 24
    assert "2 samples got no .emb.npy, as the vector is null\n" in str(summary)
    assert "2 samples got no .holes.npy, as the vector is null; of 2 there is null among its" in str(summary)
    assert any("not every sample has .Half.npy, .emb.npy" in each for each in summary.habits)
    assert json.loads(json.dumps(summary.to_dict()))["broken_vector"]["holes.npy"] == 2
    # What lies beside knows them.
    sizes = json.loads((out / "sizes.json").read_text())
    assert sizes == {"00000.tar": 7, "00001.tar": 7, "00002.tar": 7, "00003.tar": 3}
    for path in out.glob("*.tar"):
        index = ShardIndex.read_idx(path.with_suffix(".idx"), path)
        with tarfile.open(path) as tar:
            there = [(each.name, each.offset_data, each.size) for each in tar]
        assert [
            (member.name, member.offset, member.size) for sample in index.samples for member in sample.members
        ] == there
    assert {*pq.read_schema(out / "00000.parquet").names} == {"key", "emb", "Half", "whole", "holes"}


def test_webdatasets_own_decoder_reads_them(rows, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    export(rows, tmp_path / "out", npy=["emb"], where="emb is not null", keys="sequential", old_id_col="old")
    urls = [str(path) for path in sorted((tmp_path / "out").glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pilrgb"))
    assert len(samples) == SHARDS * SAMPLES - 2
    for sample in samples:
        assert sample["png"].getpixel((0, 0)) == colour_of(sample["json"]["old"])
        assert same(sample["emb.npy"], vector_of(sample["json"]["old"]))


def test_their_bytes_are_planned(rows, tmp_path):
    limit = 40 * 1024
    planned = export(rows, tmp_path / "out", npy=["whole", "Half"], shard_bytes=limit, dry_run=True)
    plain = export(rows, tmp_path / "out", shard_bytes=limit, dry_run=True)
    done = export(rows, tmp_path / "out", npy=["whole", "Half"], shard_bytes=limit)
    assert (planned.shards, planned.no_vector, planned.habits) == (done.shards, done.no_vector, done.habits)
    assert done.bytes < planned.needed < 2 * sum(map(len, files(tmp_path / "out").values()))
    assert planned.needed - plain.needed >= (24 + 22) * 1024
    each = [path.stat().st_size for path in sorted((tmp_path / "out").glob("*.tar"))]
    assert len(each) > 1 and max(each) <= limit and min(each[:-1]) > limit - 3 * 10240


def test_a_second_run_does_what_is_missing_and_others_are_refused(rows, tmp_path):
    out, options = tmp_path / "out", {"npy": ["emb"], "samples_per_shard": 10, "shuffle": 1}
    export(rows, out, **options)
    before = files(out)
    assert export(rows, out, **options).written == 0 and files(out) == before
    (out / "00001.tar").unlink()
    assert export(rows, out, **options).written == 1 and files(out) == before
    for npy in (["Half"], ["emb", "Half"], None):
        with pytest.raises(OutputError, match="made of other samples, or by other settings"):
            export(rows, out, **{**options, "npy": npy})
    assert files(out) == before
    export(rows, out, **{**options, "npy": None}, overwrite=True)
    assert "emb.npy" not in held(out)["000000000"]
    export(rows, tmp_path / "other", **{**options, "npy": ["emb", "emb"]})
    assert files(tmp_path / "other") == before


def test_splits_and_a_portable_layout(rows, tmp_path):
    out = tmp_path / "out"
    summary = export(rows, out, npy=["Half"], splits={"val": 5}, layout="portable", metadata=None, card=True)
    assert {name: each.samples for name, each in summary.splits.items()} == {"train": 19, "val": 5}
    for name, count in (("train", 19), ("val", 5)):
        found = held(out / name)
        assert len(found) == count
        for key, members in found.items():
            there = half_of(key)
            assert ("half.npy" in members) == (there is not None)
            assert there is None or same(loaded(members["half.npy"]), there)
    assert "`.Half.npy`: a NumPy array, the column `Half`" in (out / "README.md").read_text()


def test_files_of_several_types_give_one(rows, tmp_path):
    """float16 in one file of rows, float32 in the other, and a column that one does not have."""
    path = rows / "00001.parquet"
    table = pq.read_table(path)
    wide = pa.array([None if each is None else [*map(float, each)] for each in table["Half"].to_pylist()])
    at = table.column_names.index("Half")
    table = table.set_column(at, "Half", wide.cast(pa.list_(pa.float32()))).drop_columns("whole")
    pq.write_table(table, path)
    summary = export(rows, tmp_path / "out", npy=["Half", "whole"], samples_per_shard=50, shuffle=2)
    assert summary.no_vector["whole.npy"] == SAMPLES
    for key, members in held(tmp_path / "out").items():
        there = half_of(key)
        assert there is None or same(loaded(members["Half.npy"]), there.astype(np.float32))
        assert ("whole.npy" in members) == key.startswith("00000")


def test_vectors_of_a_frame(rows, tmp_path):
    """Its other columns stay out of the tars' folder, and partitions that were mixed change nothing."""
    frame = dd.read_parquet(rows, dtype_backend="pyarrow").repartition(npartitions=1)
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data").with_metadata(frame)
    dataset.to_webdataset(tmp_path / "out", npy=["emb", "Half"], metadata=None, where="whole is not null")
    found = held(tmp_path / "out")
    assert len(found) == SHARDS * SAMPLES and not [*(tmp_path / "out").glob("*.parquet")]
    for key, members in found.items():
        assert Image.open(io.BytesIO(members["png"])).getpixel((0, 0)) == colour_of(key)
        for suffix, there in (("emb.npy", vector_of(key)), ("Half.npy", half_of(key))):
            assert there is None or same(loaded(members[suffix]), there)


def test_a_worker_writes_the_same_as_this_process(rows):
    """pyarrow's pickle gives the values of a list of a fixed length another name, which stands in the file."""
    (own,) = {pq.read_schema(path) for path in rows.glob("*.parquet")}
    pair = pa.list_(pa.field("element", pa.float32()), 2)
    deep = [("box", pa.struct([("corner", pair)])), ("corners", pa.list_(pa.field("element", pair)))]
    own = pa.schema([*own, *(pa.field(name, kind) for name, kind in deep)])
    assert str(pickle.loads(pickle.dumps(own))) != str(own)
    for found in (schema_beside(own, "key", False, None), hub_schema(own, False)):
        assert pa.types.is_fixed_size_list(found.field("emb").type)
        assert str(pickle.loads(pickle.dumps(found))) == str(found)
    corners = pa.table({"box": pa.array([{"corner": [1, 2]}, None], deep[0][1])})
    same = conformed(corners, found.remove_metadata())
    assert same["box"].to_pylist() == [{"corner": [1, 2]}, None]


def test_what_cannot_be_members(rows, tmp_path):
    with pytest.raises(ConfigError, match=r"npy='emb': expected a list of names"):
        ExportOptions(npy="emb")
    with pytest.raises(ConfigError, match=r"no such columns \['embb'\] \(did you mean emb\?\)"):
        export(rows, tmp_path / "out", npy=["embb"])
    with pytest.raises(
        ConfigError, match="expected vectors, or lists of numbers, in the column 'key', found"
    ):
        export(rows, tmp_path / "out", npy=["key"])
    with pytest.raises(ConfigError, match="a slash or white space"):
        check_vectors("a/b", pa.list_(pa.float32()))
    schema = pa.schema([("a", pa.list_(pa.float32())), ("A", pa.list_(pa.float32()))])
    with pytest.raises(ConfigError, match="'a' and 'A' differ in upper and lower case alone"):
        vector_members(["a", "A"], schema, False)
    assert not (tmp_path / "out").exists()
    write_tar(tmp_path / "data/00001.tar", [("000010001.png", b"x"), ("000010001.EMB.npy", b"y")])
    with pytest.raises(ConfigError, match=r"1 of the samples have a member \.emb\.npy already"):
        export(rows, tmp_path / "out", npy=["emb"])
    assert not [*(tmp_path / "out").rglob("*.tar")]


def test_the_command_and_a_recipe(rows, tmp_path):
    out = tmp_path / "out"
    export(rows, out, npy=["emb", "whole"])
    # Nothing is left to do for the same vectors alone, and no workers are started for that.
    told = ["export", str(rows), str(out), "--npy", "emb,whole", "--npy", "emb"]
    done = CliRunner().invoke(app, told, catch_exceptions=False)
    assert done.exit_code == 0 and "0 written, 1 finished before" in done.output, done.output
    assert Recipe(statistics=["width"], export={"npy": ["emb"]}).options(overwrite=False).npy == ["emb"]
    with pytest.raises(ConfigError, match="expected a list of names"):
        Recipe(statistics=["width"], export={"npy": "emb"})
