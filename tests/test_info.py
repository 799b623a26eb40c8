"""What `info` says of an output, against pandas and NumPy over the same files."""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import dask
import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import ColourReader, read_output, write_dataset
from test_imports import heavy_in, loaded_by
from typer.testing import CliRunner

from curator_dask.cli import app
from curator_dask.curation import Recipe, curate
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import NoColumnError, OutputError
from curator_dask.frames.parquet import write_table
from curator_dask.frames.record import LACKING, FileRecord
from curator_dask.image.statistics import ImageStatistics
from curator_dask.info import describe_output, describing, values
from curator_dask.outputs.filtering import filter_output
from curator_dask.outputs.lock import LOCK_NAME, RunLock

BAD = {"000000003": b"<!DOCTYPE html>", "000010007": b""}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("info") / "data"
    write_dataset(folder, bad=BAD)
    return folder


@pytest.fixture(scope="module")
def embedded(data):
    """Thirty rows in three files, two of them failed, with vectors that are not of unit length, and statistics."""
    dataset = ImageTextPairDataset.from_webdataset(data, id_col="key")
    with dask.config.set(scheduler="sync"):
        measured = ImageStatistics(["bytes", "brightness", "grey"], prefix="image_")(dataset)
        ColourReader()(measured).save_metadata(data.parent / "out")
    return data.parent / "out"


@pytest.fixture
def output(embedded, tmp_path):
    """A copy that a test may change."""
    shutil.copytree(embedded, tmp_path / "out")
    return tmp_path / "out"


def column_of(info, name):
    (found,) = [column for column in info.columns if column.name == name]
    return found


def rewritten(path, change, table=None):
    """The file with another record, or other rows."""
    table = pq.read_table(path) if table is None else table
    record = FileRecord.parse(pq.read_schema(path).metadata)
    write_table(str(path), table.replace_schema_metadata(None), change(record))


def test_an_output_is_told_as_pandas_has_it(embedded):
    info, frame = describe_output(embedded), read_output(embedded).to_pandas()
    assert (info.kind, info.files, info.rows, info.exact) == ("embed", 3, 30, True)
    assert info.bytes == sum(path.stat().st_size for path in embedded.glob("*.parquet"))
    assert [column.name for column in info.columns] == list(frame.columns)
    for column in info.columns:
        assert column.filled == frame[column.name].notna().sum(), column.name
        assert column.share == frame[column.name].notna().mean()
    for name in ("image_bytes", "image_brightness", "width"):
        column, series = column_of(info, name), frame[name].dropna().astype(float)
        np.testing.assert_allclose(
            (column.low, column.p5, column.median, column.p95, column.high),
            series.quantile([0, 0.05, 0.5, 0.95, 1]),
        )
    assert column_of(info, "caption").values == []
    assert column_of(info, "caption").different == 30
    shares = frame["image_grey"].dropna().map({True: "true", False: "false"}).value_counts(normalize=True)
    assert dict(column_of(info, "image_grey").values) == pytest.approx(shares.to_dict())
    vector = column_of(info, "image_embedding")
    norms = np.linalg.norm(np.stack(frame["image_embedding"].dropna()), axis=1)
    assert (vector.dim, vector.unit, vector.filled) == (3, False, 28)
    assert norms.min() - 1e-3 <= vector.norm_low <= vector.norm_high <= norms.max() + 1e-3
    assert info.with_vector == {"image_embedding": 28}
    assert not (info.differences or info.damaged or info.leftovers or info.lock)


def test_failures_have_an_example_each_and_makers_are_named(embedded):
    info = describe_output(embedded)
    errors = read_output(embedded).to_pandas().set_index("key")["image_error"].dropna()
    assert info.failed == 2
    assert {(each.rows, each.example.partition(":")[0]) for each in info.reasons} == {
        (1, "00000 000000003"),
        (1, "00001 000010007"),
    }
    for each in info.reasons:
        shard_and_key, _, text = each.example.partition(": ")
        assert errors[shard_and_key.split()[1]] == text
    made = {column.name: column.made_by[0] for column in info.columns}
    record = FileRecord.parse(pq.read_schema(embedded / "00000.parquet").metadata)
    weights = record.embeddings["image_embedding"]["weights"].removeprefix("sha256:")[:12]
    assert made["image_embedding"].startswith("embed: ColourReader")
    assert weights in made["image_embedding"]
    assert made["image_brightness"] == "statistics: 0 to 1, CleanVision's"
    assert made["width"] == "the dataset"
    assert made["key"] == "the key"
    shown = str(info)
    for said in ("28 (93.3%)", "00001 000010007", "numbers", "made by embed, statistics", "Of all rows"):
        assert said in shown
    assert "<th" in info._repr_html_()
    assert json.loads(json.dumps(info.to_dict()))["with_vector"] == {"image_embedding": 28}


def test_reasons_that_no_record_has_are_read_from_the_column(output):
    path = output / "00000.parquet"
    rewritten(path, lambda record: replace(record, report=None))
    assert describe_output(output).to_dict()["reasons"] == describe_output(output).to_dict()["reasons"]
    (of_it,) = [each for each in describe_output(output).reasons if "000000003" in each.example]
    assert of_it.rows == 1
    assert of_it.example.startswith("00000 000000003: ")


def test_rows_that_are_set_aside_are_counted_besides(data, tmp_path):
    dataset = ImageTextPairDataset.from_webdataset(data, id_col="key")
    with dask.config.set(scheduler="sync"):
        ColourReader()(dataset).save_metadata(tmp_path / "out", drop_failed=True)
    info = describe_output(tmp_path / "out")
    assert (info.rows, info.aside_rows, info.failed, info.aside_files) == (28, 2, 2, 2)
    assert sum(each.rows for each in info.reasons) == 2
    assert info.with_vector == {"image_embedding": 28}


def test_what_does_not_fit_together_is_named_with_what_to_run(data, output, tmp_path):
    dataset = ImageTextPairDataset.from_webdataset(data, id_col="key")
    with dask.config.set(scheduler="sync"):
        ColourReader(normalize_embeddings=True)(dataset).save_metadata(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "00001.parquet", output)
    rewritten(
        output / "00002.parquet",
        lambda record: replace(record, fingerprint="", scores={"width": {"head": "h", LACKING: True}}),
    )
    info = describe_output(output)
    told = "\n".join(info.differences)
    assert "image_embedding: made in 2 ways" in told
    assert "run embed with the one model" in told
    assert "image_bytes: 1 file (00001.parquet) of 3 lack it. Run embed with the same --statistics" in told
    assert "rows of 1 file (00002.parquet) were given up" in told
    assert "width: rows of 1 file (00002.parquet) have no value yet" in told
    assert column_of(info, "image_bytes").lacking_files == 1
    filled = sum(
        pq.read_table(output / f"0000{n}.parquet")["image_bytes"].is_valid().to_numpy().sum() for n in (0, 2)
    )
    assert column_of(info, "image_bytes").filled == filled
    assert len(column_of(info, "image_embedding").made_by) == 2


def test_files_that_are_damaged_or_left_behind_are_named(output):
    whole = (output / "00001.parquet").read_bytes()
    (output / "00001.parquet").write_bytes(whole[:-20])
    (output / ".00002.parquet.host-17-0123abcd.tmp").write_bytes(b"x")
    note = {"host": "elsewhere", "pid": 3, "since": 0, "seen": 0}
    (output / LOCK_NAME).write_text(json.dumps(note))
    info = describe_output(output)
    assert (info.files, info.rows, list(info.damaged)) == (2, 20, ["00001.parquet"])
    assert "is damaged" in info.damaged["00001.parquet"]
    assert "process 17 on host" in info.leftovers[0]
    assert "left by a run that is dead, process 3 on elsewhere" in info.lock
    result = CliRunner().invoke(app, ["info", str(output)])
    assert result.exit_code == 1
    assert "DAMAGED 00001.parquet" in result.output
    (output / LOCK_NAME).unlink()
    with RunLock(str(output)):
        assert "another run is writing there" in describe_output(output).lock
    # A footer may be whole where a page is not.
    start = pq.ParquetFile(output / "00002.parquet").metadata.row_group(0).column(1).data_page_offset
    broken = bytearray((output / "00002.parquet").read_bytes())
    broken[start : start + 30] = b"\xff" * 30
    (output / "00002.parquet").write_bytes(broken)
    assert {*describe_output(output).damaged} == {"00001.parquet", "00002.parquet"}


@pytest.fixture
def many(tmp_path):
    """A thousand rows in forty row groups of four files, of no record; numbers rise, so that a sample shows."""
    rng = np.random.default_rng(5)
    number = np.sort(rng.normal(size=1000)).astype(np.float32)
    frame = pd.DataFrame({"number": number, "hash": rng.integers(2**62, 2**63, 1000, np.uint64)})
    frame["label"] = [f"{each % 7 if each % 3 else each}" for each in range(1000)]
    table = pa.Table.from_pandas(frame, preserve_index=False)
    odd = pa.array(
        [None if each % 10 == 0 else math.nan if each % 10 == 1 else float(each) for each in range(1000)]
    )
    table = table.append_column("odd", odd)
    for part in range(4):
        pq.write_table(table.slice(250 * part, 250), tmp_path / f"{part}.parquet", row_group_size=25)
    return tmp_path, frame


def test_of_many_rows_a_sample_is_read_and_said_so(many, monkeypatch):
    folder, frame = many
    monkeypatch.setattr(values, "ROWS", 200)
    monkeypatch.setattr(values, "GROUPS", 10)
    info = describe_output(folder, columns=["number", "odd"])
    assert (info.rows, info.looked_rows, info.looked_groups, info.groups) == (1000, 200, 10, 40)
    assert "200 of 1,000 rows, the first of 10 of 40 row groups" in str(info)
    assert [column.name for column in info.columns] == ["number", "odd"]
    number = column_of(info, "number")
    assert (number.low, number.high) == (frame["number"].min(), frame["number"].max())  # of all rows
    assert number.looked == 200
    spread = frame["number"].rank(pct=True)
    for share, found in ((0.05, number.p5), (0.5, number.median), (0.95, number.p95)):
        assert abs(spread[(frame["number"] - found).abs().idxmin()] - share) < 0.06
    exact = describe_output(folder, exact=True)
    assert exact.exact
    assert column_of(exact, "number").median == pytest.approx(frame["number"].median())
    odd = column_of(exact, "odd")
    assert (odd.filled, odd.nan, odd.looked, odd.low, odd.high) == (900, 100, 800, 2, 999)
    big = column_of(exact, "hash")
    assert (big.low, big.high, big.median) == (frame["hash"].min(), frame["hash"].max(), None)
    assert exact.kind == "other"


def test_columns_are_read_in_turns_where_numbers_would_not_fit(many, monkeypatch):
    folder, _ = many
    once = describe_output(folder)
    monkeypatch.setattr(values, "_BYTES", 8000)
    assert describe_output(folder).columns == once.columns


def test_commonest_texts_are_right_also_where_not_all_can_be_counted(many, monkeypatch):
    folder, frame = many
    shares = frame["label"].value_counts(normalize=True)
    label = column_of(describe_output(folder), "label")
    assert dict(label.values) == pytest.approx(shares[:5].to_dict())
    assert label.different == frame["label"].nunique()
    monkeypatch.setattr(values, "_TEXTS", 40)
    label = column_of(describe_output(folder), "label")
    assert label.at_least
    assert label.values
    for text, share in label.values:
        assert 0 <= shares[text] - share < 0.05


def test_a_filtered_output_and_the_folders_of_curate(data, embedded, tmp_path):
    with dask.config.set(scheduler="sync"):
        filter_output(embedded, tmp_path / "good", where="image_error is null and key like '%1'")
        recipe = Recipe(
            statistics=["bytes"], prefix="image_", where="key not like '%2'", export={"splits": {"val": 5}}
        )
        done = curate(data, tmp_path / "curated", recipe)
    assert describe_output(tmp_path / "good").kind == "filter"
    info = describe_output(tmp_path / "curated")
    chain = info.chain
    assert list(info.folders) == ["embeddings", "passing", "shards"]
    for name in ("rows", "failed", "filtered", "unbalanced", "duplicates", "missing", "kept"):
        assert getattr(chain, name) == getattr(done, name), name
    assert chain.adds_up
    assert (chain.rows, chain.failed, chain.filtered, chain.kept) == (30, 2, 3, 25)
    tars = info.folders["shards"]
    assert tars.kind == "export"
    assert {each.name: (each.rows, each.tars) for each in tars.splits} == {"train": (20, 1), "val": (5, 1)}
    assert {each.name: each.bytes for each in tars.splits} == {
        each.name: sum(
            path.stat().st_size for path in (tmp_path / "curated/shards" / each.name).glob("*.tar")
        )
        for each in tars.splits
    }
    assert "= kept" in str(info)
    (tmp_path / "curated/shards/val/00000.parquet").unlink()
    assert "1 tar has no Parquet beside it (val/00000 for example)" in str(
        describe_output(tmp_path / "curated")
    )
    (tmp_path / "curated" / "passing").rename(tmp_path / "passing")
    chain = describe_output(tmp_path / "curated").chain
    assert (chain.failed, chain.filtered, chain.kept) == (2, 0, 20)  # the failed are known without it
    (tmp_path / "passing").rename(tmp_path / "curated" / "passing")
    shutil.rmtree(tmp_path / "curated" / "shards")
    assert "nothing is exported yet" in str(describe_output(tmp_path / "curated"))


def test_an_output_in_a_store(embedded):
    store = fsspec.filesystem("memory")
    store.put(str(embedded), "/info", recursive=True)
    try:
        there, here = describe_output("memory://info"), describe_output(embedded)
        assert (there.rows, there.bytes, there.reasons) == (here.rows, here.bytes, here.reasons)
        assert there.columns == here.columns
    finally:
        store.rm("/info", recursive=True)


def test_what_is_no_output_is_said(data, embedded, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "tars").mkdir()
    shutil.copy(data / "00000.tar", tmp_path / "tars")
    for path, said in (
        (tmp_path / "nowhere", "nor such a folder"),
        (tmp_path / "empty", "no Parquet file is there. Give the folder"),
        (embedded / "00000.parquet", "this is a file itself"),
        (tmp_path / "tars", "these are shards, which curator-dask check looks at"),
    ):
        with pytest.raises(OutputError, match=said):
            describe_output(path)
    with pytest.raises(NoColumnError, match="did you mean caption"):
        describe_output(embedded, columns=["captoin"])


def test_the_command_writes_json_and_ends_plainly(embedded, tmp_path):
    file = tmp_path / "said.json"
    result = CliRunner().invoke(app, ["info", str(embedded), "--columns", "key,width", "--json", str(file)])
    assert result.exit_code == 0, result.output
    found = json.loads(file.read_text())
    assert [column["name"] for column in found["columns"]] == ["key", "width"]
    assert found["columns"][0]["different"] == 30  # it is read, as it was asked for
    assert found["seconds"] > 0
    result = CliRunner().invoke(app, ["info", str(tmp_path / "nowhere")])
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_names_and_values_of_others_change_nothing_on_a_terminal(tmp_path):
    evil = "x\x1b[31m\n\r\x07\u202e"
    pq.write_table(pa.table({evil: [evil] * 2, "image_error": [None, evil]}), tmp_path / "a.parquet")
    (tmp_path / f"{evil}.parquet").write_bytes(b"x")
    Path(os.fsdecode(bytes(tmp_path) + b"/\xff.parquet")).write_bytes(b"x")
    (tmp_path / LOCK_NAME).write_text(json.dumps({"host": "h", "pid": evil, "since": "then", "seen": 0}))
    info = describe_output(tmp_path)
    lines = str(info).splitlines()
    assert all(line.isprintable() for line in lines)
    assert sum("x\\x1b[31m\\n" in line for line in lines) >= 3
    assert any("DAMAGED \\udcff.parquet" in line for line in lines)
    json.dumps(info.to_dict(), allow_nan=False)


def test_lists_with_nulls_and_columns_of_several_types_are_told_as_far_as_they_are_known(tmp_path):
    columns = {
        "vector": [[1.0, 2.0], None, [3.0, 4.0]],
        "vector.x": [1, 2, 3],
        "holes": [[None, 1.0]] * 3,
        "words": [["a", None], [], None],
        "full": [["a"], ["b", "c"], ["d"]],
        "empty": pa.nulls(3),
        "mixed": [1.0, 2.0, 4.0],
        "large": [2**60 + 1, None, 2**60 + 3],
    }
    pq.write_table(pa.table(columns), tmp_path / "0.parquet", write_statistics=True)
    other = pa.table({"mixed": ["text"], "vector": [3], "empty": [5], "large": [2**60 + 9]})
    pq.write_table(other, tmp_path / "1.parquet", write_statistics=False)
    info = describe_output(tmp_path)
    assert not info.damaged
    filled = {name: column_of(info, name).filled for name in columns}
    assert filled == {
        **dict.fromkeys(("vector", "mixed", "empty", "large"), None),  # a footer says nothing
        "vector.x": 3,
        "holes": None,
        "words": None,
        "full": 3,
    }
    assert (column_of(info, "mixed").low, column_of(info, "mixed").median) == (1, 2)
    assert column_of(info, "empty").median == 5  # by the file that has numbers there
    assert (column_of(info, "large").low, column_of(info, "large").high) == (2**60 + 1, 2**60 + 9)
    assert len([line for line in info.differences if "has several types" in line]) == 3
    (tmp_path / "1.parquet").unlink()
    alone = describe_output(tmp_path)
    assert {name: column_of(alone, name).filled for name in ("vector", "empty", "large")} == {
        "vector": 2,
        "empty": 0,
        "large": 2,
    }


@pytest.mark.parametrize("change", ["gone", "other rows", "other columns"])
def test_a_file_that_changes_while_it_is_looked_at_is_not_called_damaged(many, monkeypatch, change):
    folder, _ = many
    look = describing._fill

    def fill(*arguments):
        path = folder / "1.parquet"
        if change == "gone":
            path.unlink()
        else:
            pq.write_table(pa.table({"other" if "columns" in change else "number": [1.0]}), path)
        look(*arguments)

    monkeypatch.setattr(describing, "_fill", fill)
    info = describe_output(folder)
    assert {*info.damaged} == {"1.parquet"}
    assert "something is writing there" in info.damaged["1.parquet"]
    assert column_of(info, "number").looked == 750


def test_a_folder_that_cannot_be_listed_is_named(many, monkeypatch):
    folder, _ = many
    (folder / "closed").mkdir()
    list_folder = os.scandir

    def scandir(path):
        if str(path).endswith(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return list_folder(path)

    monkeypatch.setattr(os, "scandir", scandir)
    closed = "closed"
    info = describe_output(folder)
    assert (info.rows, info.damaged) == (1000, {"closed/": "cannot be listed: Permission denied"})
    closed = folder.name
    with pytest.raises(OutputError, match="cannot be listed: Permission denied"):
        describe_output(folder)


def test_nothing_heavy_is_loaded(embedded):
    loaded = loaded_by(
        f"from curator_dask.info import describe_output\nstr(describe_output({str(embedded)!r}))"
    )
    assert heavy_in(loaded) | ({"distributed", "dask"} & loaded) == set()
