"""Rows that do not pass a condition: left out, counted, and none of the others moved."""

from __future__ import annotations

import os

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import ColourReader, check_colours, write_dataset
from typer.testing import CliRunner

from curator_dask.cli import app
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, OutputError
from curator_dask.image.statistics import ImageStatistics
from curator_dask.outputs.filtering import filter_output
from curator_dask.rows.where import Where
from curator_dask.testing import StepTests

pytestmark = pytest.mark.usefixtures("in_this_process")

TABLE = pa.table(
    {
        "score": [1.0, float("nan"), None, 3.0, -2.0],
        "note": ["x", "y", None, "z", "x and y"],
        "My column": [1, 2, 3, 4, None],
        "info": [{"w": 1}, {"w": 2}, None, {"w": 1}, {"w": 5}],
    }
)


@pytest.mark.parametrize(
    ("where", "passes", "clauses", "columns"),
    [
        ("score > 2", [0, -1, -1, 1, 0], ["score > 2"], ["score"]),
        ("SCORE > 0 AND note <> 'q'", [1, -1, -1, 1, 0], ["SCORE > 0", "note != 'q'"], ["score", "note"]),
        (
            "\"My column\" > 2 and (info.w = 1 or note = 'x and y') -- why",
            [0, 0, -1, 1, -1],
            ['"My column" > 2', "(info.w = 1) OR (note = 'x and y')"],
            ["note", "My column", "info"],
        ),
        ("score is null", [0, 1, 1, 0, 0], ["score is null"], ["score"]),  # NaN is null
        ("length(note) between 2 and 9", [0, 0, -1, 0, 1], ["length(note) between 2 and 9"], ["note"]),
    ],
)
def test_a_condition(where, passes, clauses, columns):
    condition = Where(where)
    assert condition.passes(TABLE).tolist() == passes
    assert list(condition.clauses) == clauses
    assert condition.columns(TABLE.column_names) == columns
    for clause in condition.clauses:  # each can be asked by itself
        Where(clause).passes(TABLE)


@pytest.mark.parametrize(
    ("where", "passes"),
    [
        ("0.0 / 0.0 > 1", [-1] * 4),
        ("x / y > 0", [1, -1, -1, 1]),
        ("not (x / y < 0)", [1, -1, -1, 1]),
        ("sqrt(x) >= 0", [1, 1, -1, -1]),
        ("sqrt(x) >= 0 or y = 0", [1, 1, -1, -1]),
        ("ln(x) between -9 and 9 and y > 0", [1, 0, -1, 0]),
        ("x / y in (0.5, 'nan'::double)", [1, -1, -1, -1]),
        ("x / y not in (3)", [1, -1, -1, 1]),
        ("x / y is null", [0, 1, 1, 0]),
        ("abs(x / y) > 0 and greatest(x / y, -1) < 9", [1, -1, -1, 0]),
        ("case when x / y > 0 then 1 else 2 end = 2", [0, 1, 1, 0]),
        ("info.w > 2", [0, -1, -1, 1]),
        ("list[1] + 1 < 9", [1, -1, -1, 1]),
        ("list[1] < 9 -- why", [1, -1, -1, 1]),
        ("isnan(x / y)", [0, 1, -1, 0]),
        ("x / y and true", [1, -1, -1, 1]),
        ("x / y or y = 0", [1, 1, -1, 1]),
        ("not (x / y)", [0, -1, -1, 0]),
        ("info.w and true", [1, -1, -1, 1]),
        ("list[1] or false", [1, -1, -1, 1]),
        ("case when info.w then true else false end", [1, 0, 0, 1]),
        ("if(x / y, true, false)", [1, 0, 0, 1]),
        ("cast(x / y as boolean)", [1, -1, -1, 1]),
        ("try_cast(info.w as bool)", [1, -1, -1, 1]),
        # Nor does what cannot be divided.
        ("48 % cast(y as int) = 0", [1, -1, 1, 1]),
        ("48 // cast(y as int) = 24", [1, -1, 0, 0]),
        ("mod(48, cast(y as int)) = 0 or true", [1, 1, 1, 1]),
    ],
)
def test_nan_that_a_condition_computes_is_null(where, passes):
    nan = float("nan")
    table = pa.table(
        {
            "x": [1.0, 0.0, None, -np.inf],
            "y": [2.0, 0.0, 1.0, -1.0],
            "info": [{"w": 1.0}, {"w": nan}, None, {"w": 3.0}],
            "list": [[1.0], [nan], None, [2.0]],
        }
    )
    assert Where(where).passes(table).tolist() == passes


def test_columns_that_differ_in_case_alone():
    """DuckDB takes the first of them."""
    table = pa.table({"A": [1, 2, 3], "a": [3, 2, 1], "b": [1, 1, 1]})
    assert Where("a > 2 and B = 1").passes(table).tolist() == [1, 0, 0]
    assert Where("A > 2").passes(table).tolist() == [0, 0, 1]
    with pytest.raises(ConfigError, match="differ in upper and lower case"):
        Where("A > a").passes(table)


def test_types_that_the_engine_lacks():
    half = pa.table({"x": pa.array(np.array([1, np.nan, 3], np.float16))})
    assert Where("x > 2").passes(half).tolist() == [0, -1, 1]
    wide = pa.table({"x": pa.array([1, 2, 3]).cast(pa.decimal256(50, 2))})
    with pytest.raises(ConfigError, match="cannot be asked of these rows"):
        Where("x > 2").passes(wide)


def test_the_engine_alone_lets_nan_pass():
    """Why NaN is made null first: DuckDB, as of 2.0, holds it for larger than every number."""
    assert duckdb.sql("SELECT 'nan'::FLOAT > 5.5").fetchall() == [(True,)]


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("", "expected a condition, such as"),
        ("score >", "no condition of SQL's WHERE: syntax error"),
        ("my column > 1", "stands in double quotes"),
        ("score > 1; drop table rows", "no condition of SQL's WHERE"),
        ("1 = 1) or (1 = 1", "no condition of SQL's WHERE"),
        ("score > 1 limit 3", "expected one condition, and nothing behind it"),
        ("score > 1 group by caption", "expected one condition, and nothing behind it"),
        (
            "score > (select avg(score) from rows)",
            "has a subquery: it would see the rows of its own partition",
        ),
        ("row_number() over () < 3", "has a window"),
        ("random() > 0.5", r"random\(\) gives something else each time"),
        ("width", "expected a condition, found int64: compare it.*in quotes"),
        ("scores > 1", "there is no column 'scores'. The rows have .*'key'.*'caption'.*single quotes"),
        ("caption > 1", "cannot be asked of these rows"),
        ("width > avg(width)", "cannot be asked of these rows"),
        ("avg(width) > 3", "has an answer for all of them together"),
        ("count(*) > 3", "has an answer for all of them together"),
        ("unnest([true, false])", r"unnest\(\) makes several rows of one"),
        ("columns(*) > 1", "name the columns, instead of"),
        ("now() > timestamp '2026-01-01'", r"now\(\) gives something else each time"),
        ("current_date > date '2026-01-01'", "current_date gives something else each time"),
        ("width > 1" + " + 1" * 900, "is nested too deeply|no condition of SQL"),
    ],
)
def test_what_is_no_condition(tmp_path, where, said):
    write_dataset(tmp_path, shards=1)
    with pytest.raises(ConfigError, match=said):
        ImageTextPairDataset.from_webdataset(tmp_path).filter(where)


@pytest.fixture
def dataset(tmp_path):
    write_dataset(tmp_path / "data", bad={"000010004": b"<html>"})
    return ImageTextPairDataset.from_webdataset(tmp_path / "data")


WHERE = "cast(key[-4:] as int) % 3 = 1 and image_error is null"


def kept_of(keys):
    return [key for key in keys if int(key[-4:]) % 3 == 1 and key != "000010004"]


def test_rows_that_pass_are_written_and_the_others_counted(dataset, tmp_path):
    every = dataset.compute()["key"].tolist()
    made = ColourReader()(dataset).filter(WHERE)
    summary = made.save_metadata(tmp_path / "out")
    table = pq.read_table(tmp_path / "out")
    assert table["key"].to_pylist() == kept_of(every)  # in their order
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist())
    assert (summary.rows, summary.failed) == (len(kept_of(every)), 0)
    left_out = {url[-9:]: fact["count"] for url, fact in summary.filtered.items()}
    assert left_out == {"00000.tar": 7, "00001.tar": 8, "00002.tar": 7}
    assert "rows filtered out" in str(summary)
    assert made.save_metadata(tmp_path / "out").skipped == 3
    parts = ImageTextPairDataset.from_webdataset(dataset.path, rows_per_partition=4).filter("key like '%1'")
    for _ in range(2):  # of each part other rows go; the second time the files say so
        of_parts = parts.save_metadata(tmp_path / "parts")
        assert [fact["count"] for fact in of_parts.filtered.values()] == [9, 9, 9]
    fewer = made.filter("key like '%1'")
    with pytest.raises(
        OutputError, match=r"would be replaced by one with 1. Rows were filtered.*overwrite=True"
    ):
        fewer.save_metadata(tmp_path / "out")
    assert pq.read_table(tmp_path / "out")["key"].to_pylist() == kept_of(every)
    assert fewer.save_metadata(tmp_path / "out", overwrite=True).rows == 3
    other = (
        ColourReader()(dataset)
        .filter("cast(key[-4:] as int) % 3 = 0")
        .save_metadata(tmp_path / "out", overwrite=True)
    )
    assert other.written == 3


def test_before_the_model_only_rows_that_pass_are_embedded(dataset, tmp_path):
    statistics = ImageStatistics(["bytes"])(dataset)
    limit = int(np.median(statistics.compute()["bytes"].dropna()))
    made = ColourReader()(statistics.filter(f"bytes > {limit}").filter("key not like '%9'"))
    frame = made.compute()
    expected = statistics.compute()
    expected = expected[(expected["bytes"] > limit) & ~expected["key"].str.endswith("9")]
    assert frame["key"].tolist() == expected["key"].tolist()
    check_colours(frame["key"], frame["image_embedding"])
    summary = made.save_metadata(tmp_path / "out")
    assert sum(fact["count"] for fact in summary.filtered.values()) == 30 - len(frame)  # of both filters
    assert summary.rows == len(frame)


def test_rows_of_the_datasets_own_files_are_not_dropped(dataset):
    with pytest.raises(OutputError, match="rows"):
        ColourReader()(dataset).filter("key like '%1'").save_metadata()


def test_no_row_passes(dataset, tmp_path):
    summary = ColourReader()(dataset.filter("1 = 2")).save_metadata(tmp_path / "out")
    assert (summary.rows, summary.written) == (0, 3)
    assert pq.read_table(tmp_path / "out").num_rows == 0


@pytest.fixture
def scored(dataset, tmp_path):
    """An output of three files with a score a row: null of one, NaN of one, and many of the same value."""
    out = tmp_path / "embeddings"
    ColourReader()(dataset).save_metadata(out)
    for path in sorted(out.glob("*.parquet")):
        table = pq.read_table(path)
        scores = [float(int(key[-4:]) // 2) for key in table["key"].to_pylist()]
        if path.stem == "00001":
            scores[2:4] = [None, float("nan")]
        pq.write_table(table.append_column("score", pa.array(scores, pa.float32())), path)
    return out


def rows_of(folder):
    return {row["key"]: row for row in pq.read_table(folder).to_pylist()}


def test_an_output_is_filtered_and_counted(scored, tmp_path):
    before = rows_of(scored)
    where = "score >= 2 and image_error is null"
    expected = {
        key: row
        for key, row in before.items()
        if row["score"] is not None and row["score"] >= 2 and row["image_error"] is None
    }
    counted = filter_output(scored, where=where)
    assert (counted.rows, counted.kept, counted.output) == (30, len(expected), None)
    assert counted.passing["image_error IS NULL"] == 29
    assert counted.unknown == {"score >= 2": 2, "image_error IS NULL": 0}
    every = filter_output(scored, tmp_path / "every", where="key is not null").output
    assert "failed rows" not in str(every) and "\n  1 row had failed in an earlier run: 1 " in str(every)
    summary = filter_output(scored, tmp_path / "good", where=where)
    assert f"{len(expected)} of 30 rows kept" in str(summary)
    assert "rows/s" in str(summary.output) and "images/s" not in str(summary.output)
    assert rows_of(tmp_path / "good") == expected
    schema = pq.read_schema(tmp_path / "good" / "00000.parquet")
    assert (
        schema.field("image_embedding").type
        == pq.read_schema(scored / "00000.parquet").field("image_embedding").type
    )
    assert list(expected) == pq.read_table(tmp_path / "good")["key"].to_pylist()  # in their order
    assert summary.seconds > 0 and "curator-dask" in summary.to_dict()["versions"]
    again = filter_output(scored, tmp_path / "good", where=where)
    assert (again.output.skipped, again.output.written, again.kept) == (3, 0, len(expected))
    with pytest.raises(OutputError, match=r"made of other rows or by another condition.*overwrite"):
        filter_output(scored, tmp_path / "good", where="score > 3")
    assert filter_output(scored, tmp_path / "good", where="score > 3", overwrite=True).output.written == 3
    with pytest.raises(OutputError, match="what does not pass would be lost"):
        filter_output(scored, scored, where="score > 3")


@pytest.mark.parametrize(
    ("share", "where"), [(0.3, None), (0.5, "key not like '%7'"), (1.0, None), (0.01, None)]
)
def test_the_best_rows_over_all_files(scored, tmp_path, share, where):
    summary = filter_output(scored, tmp_path / "best", top=("score", share), where=where)
    rows = [
        row
        for row in rows_of(scored).values()
        if row["score"] is not None and row["score"] == row["score"] and not (where and row["key"][-1] == "7")
    ]
    best = sorted(rows, key=lambda row: (-row["score"], row["key"]))[: round(share * len(rows))]
    assert set(rows_of(tmp_path / "best")) == {row["key"] for row in best}
    assert summary.kept == len(best) == pq.read_table(tmp_path / "best").num_rows
    assert summary.output.rows == len(best)


def test_the_best_rows_where_names_do_not_tell_them_apart(tmp_path):
    """Files of other programs: without a key, or with one key in many rows."""
    for number, keys in enumerate([None, ["a"] * 10, ["a"] * 10]):
        columns = {"id": list(range(10)), "score": [1.0] * 10} | ({} if keys is None else {"key": keys})
        (tmp_path / "in").mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), tmp_path / "in" / f"{number}.parquet")
    summary = filter_output(tmp_path / "in", tmp_path / "out", top=("score", 0.5))
    kept = [pq.read_table(path)["id"].to_pylist() for path in sorted((tmp_path / "out").glob("*.parquet"))]
    assert summary.kept == 15
    assert kept == [list(range(10)), list(range(5)), []]


def test_rows_that_a_filter_left_out_do_not_come_back_unasked(dataset, scored, tmp_path):
    filter_output(scored, tmp_path / "good", where="score > 3")
    before = rows_of(tmp_path / "good")
    for column in ("image_embedding", "second"):
        with pytest.raises(
            OutputError, match=r"passed a filter, and the others would be there again.*overwrite"
        ):
            ColourReader(image_embedding_column=column)(dataset).save_metadata(tmp_path / "good")
    assert rows_of(tmp_path / "good") == before
    ColourReader()(dataset).save_metadata(tmp_path / "good", overwrite=True)
    assert len(rows_of(tmp_path / "good")) == 30


def test_an_output_within_the_other_or_the_same_by_another_name(scored, tmp_path, caplog):
    caplog.set_level("INFO", "curator_dask")
    (tmp_path / "link").symlink_to(scored)
    for target in (tmp_path / "link", scored / "good", tmp_path):
        with pytest.raises(OutputError, match=r"would be lost|finds the rows of both"):
            filter_output(scored, target, where="score > 3", overwrite=True)
    assert "rows kept" not in caplog.text  # no counts of what is not done
    assert len(rows_of(scored)) == 30


def test_rows_of_shards_that_have_changed_are_told(dataset, scored, caplog):
    filter_output(scored, where="score > 3")
    assert "changed" not in caplog.text
    os.utime(dataset.tar_files[1])
    filter_output(scored, where="score > 3")
    assert f"1 shard changed since these rows were made, {dataset.tar_files[1]}" in caplog.text


def test_files_of_another_filter_are_not_mixed_with_these(scored, tmp_path, caplog):
    good, table = tmp_path / "good", pa.table({"theirs": [1]})
    filter_output(scored, good, where="score > 3")
    (scored / "00002.parquet").unlink()
    pq.write_table(table, good / "mine.parquet")
    for where in ("score > 3", "score > 4"):
        with pytest.raises(
            OutputError, match=r"good/00002.parquet: is there, and was kept by another filter"
        ):
            filter_output(scored, good, where=where)
        assert (good / "00002.parquet").exists()
    filter_output(scored, good, where="score > 3", overwrite=True)
    assert {each.name for each in good.iterdir()} == {"00000.parquet", "00001.parquet", "mine.parquet"}
    assert "1 file there, mine.parquet for example, not of this run" in caplog.text
    assert filter_output(scored, good, where="score > 3").output.skipped == 2


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--where", "score >= 2"], 0, "rows kept"),
        (["OUT", "--where", "score >= 2", "--top", "score=0.5"], 0, "the best by score: down to"),
        (["OUT"], 2, "is taken for the folder of what passes. Such as --where"),
        (["--where", "scores > 2"], 2, "there is no column 'scores' (did you mean score?)"),
        (["--top", "score"], 2, "expected COLUMN=SHARE or COLUMN=ROWS"),
        (["--top", "score=2"], 0, "2 of "),
        (["--top", "score=1.5"], 2, "top: score=1.5: expected a column with a share above 0 and at most 1"),
        (["--top", "score=0"], 2, "or with a whole number of rows of at least 2"),
        (["--top", "caption=0.5"], 2, "is of string: the best rows are found by"),
        (["--top", "nothing=0.5"], 2, "has no column 'nothing'"),
    ],
)
def test_the_command(scored, tmp_path, arguments, code, said):
    given = [str(tmp_path / "out") if each == "OUT" else each for each in arguments]
    result = CliRunner().invoke(app, ["filter", str(scored), *given, "--cluster", "cpu", "--workers", "1"])
    assert result.exit_code == code, result.output
    assert said in " ".join(result.output.split())


class TestFilterRows(StepTests):
    @pytest.fixture
    def step(self, dataset):
        return dataset.filter("key like '%1' or key like '%2'")._steps[-1]

    @pytest.fixture
    def frame(self, dataset):
        return dataset.compute()
