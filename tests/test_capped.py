"""At most so many rows of each value: those that a window function of SQL has."""

from __future__ import annotations

from collections import Counter

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from curator_dask.cli import app
from curator_dask.errors import ConfigError, OutputError
from curator_dask.outputs.filtering import filter_output

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Three files of rows with labels: few values of some, many of others, some null, and many equal scores."""
    folder = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(0)
    labels = ["cat", "dog", "bird", "a 'rare' one", None]
    for file in range(3):
        rows = [int(number) for number in rng.permutation(200)]
        label = rng.choice(5, 200, p=[0.5, 0.3, 0.1, 0.01, 0.09])
        table = pa.table(
            {
                "key": [f"{number % 150:03d}" for number in rows],  # some of them twice
                "__url__": [f"/no/such/{number % 2}.tar" for number in rows],
                "label": pa.array([labels[each] for each in label]).dictionary_encode(),
                "number": pa.array([None if each == 4 else int(each) - 2 for each in label], pa.int32()),
                "score": pa.array(
                    [None if number % 31 == 0 else number % 7 for number in rows],
                    pa.int64() if file else pa.float32(),
                ),
            }
        )
        pq.write_table(table, folder / f"{file}.parquet")
    return folder


def rows_of(folder):
    """All rows, in order."""
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


@pytest.mark.parametrize("column", ["label", "number"])
def test_the_best_of_each_value_over_all_files(labelled, tmp_path, column):
    summary = filter_output(
        labelled, tmp_path / "out", where="key <> '007'", at_most=(column, 20), by="score"
    )
    files = f"read_parquet('{labelled}/*.parquet', filename=true, file_row_number=true, union_by_name=true)"
    expected = duckdb.sql(
        f"""
        with ranked as (
            select *, row_number() over (
                partition by {column} order by score desc, key, __url__, filename, file_row_number
            ) as place
            from {files} where key <> '007' and {column} is not null and score is not null
        )
        select filename, file_row_number from ranked where place <= 20 order by all
        """
    ).fetchall()
    wanted = [pq.read_table(name).slice(row, 1).to_pylist()[0] for name, row in expected]
    assert rows_of(tmp_path / "out") == wanted and summary.kept == len(wanted)
    without = duckdb.sql(
        f"select count(*) from {files} where key <> '007' and ({column} is null or score is null)"
    ).fetchall()[0][0]
    said = {"column": column, "most": 20, "by": "score", "values": 4, "more": 3, "without": without}
    assert summary.capped == said and without
    assert f"at most 20 rows of each {column}, the best by score: 3 of 4 values have more" in str(summary)
    again = filter_output(labelled, tmp_path / "out", where="key <> '007'", at_most=(column, 20), by="score")
    assert again.output.skipped == 3
    with pytest.raises(OutputError, match="by another condition"):
        filter_output(labelled, tmp_path / "out", where="key <> '007'", at_most=(column, 19), by="score")


def test_any_are_the_same_whatever_the_files(labelled, tmp_path):
    summary = filter_output(labelled, tmp_path / "out", at_most=("label", 20))
    kept = rows_of(tmp_path / "out")
    rows = pq.read_table([*labelled.glob("*.parquet")], columns=["label"])["label"]
    assert f"; {rows.null_count} rows without a value" in str(summary) and rows.null_count > 1
    assert Counter(row["label"] for row in kept) == {"cat": 20, "dog": 20, "bird": 20, "a 'rare' one": 1}
    assert len({row["key"] for row in kept if row["label"] == "cat"}) >= 10  # not one of them again and again
    one = tmp_path / "one"
    one.mkdir()
    shuffled = pa.concat_tables(
        [pq.read_table(path) for path in sorted(labelled.glob("*.parquet"))], promote_options="permissive"
    )
    shuffled = shuffled.take(np.random.default_rng(1).permutation(len(shuffled)))
    pq.write_table(shuffled, one / "all.parquet")
    filter_output(one, tmp_path / "again", at_most=("label", 20))
    said = [{(row["key"], row["__url__"]) for row in rows} for rows in (kept, rows_of(tmp_path / "again"))]
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"at_most": ("label", 0)}, "expected a column and how many"),
        ({"at_most": ("nothing", 3)}, r"0.parquet: has no column 'nothing' of which.*; it has \['key'"),
        ({"at_most": ("label", 3), "by": "worth"}, "has no column 'worth'.*; it has .*'score'"),
        ({"at_most": ("score", 3)}, r"column 'score' is of float: expected text"),
        ({"at_most": ("label", 3), "by": "key"}, r"column 'key' is of string"),
        ({"at_most": ("label", 3), "top": ("score", 0.5)}, "expected one of the two"),
        ({"where": "score > 1", "by": "score"}, "--at-most.*is not given"),
    ],
)
def test_what_cannot_be(labelled, options, said):
    with pytest.raises(ConfigError, match=said):
        filter_output(labelled, **options)


def test_the_command(labelled, tmp_path):
    run = CliRunner().invoke
    done = run(app, ["filter", str(labelled), "--at-most", "label=1000", "--by", "score"])
    assert (
        done.exit_code == 0
        and "at most 1,000 rows of each label, the best by score: 0 of 4 values" in done.output
    )
    done = run(app, ["filter", str(labelled), "--at-most", "label"])
    assert done.exit_code == 2 and "expected COLUMN=ROWS" in done.output
