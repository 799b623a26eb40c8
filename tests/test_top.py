"""The best rows by a column over all shards, filters that are known by name, and columns that a user assigns."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import ColourReader, check_colours, read_output, write_dataset
from typer.testing import CliRunner

from curator_dask.cli import app
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError
from curator_dask.image.statistics import ImageStatistics
from curator_dask.outputs.filtering import filter_output
from curator_dask.presets import DATACOMP_BASIC, LAION_B32, PRESETS
from curator_dask.rows.where import Where
from curator_dask.testing import StepTests

pytestmark = pytest.mark.usefixtures("in_this_process")

BIG = 2**53


def write_scored(folder, values, kind=None):
    """A dataset of two shards with a score a row, in the order of the keys; the first shard has the first ten."""
    write_dataset(folder, shards=2)
    for number, path in enumerate(sorted(folder.glob("*.parquet"))):
        table = pq.read_table(path).sort_by("key")
        score = pa.array(values[number * 10 : number * 10 + 10], kind)
        pq.write_table(table.append_column("score", score), path)
    return ImageTextPairDataset.from_webdataset(folder)


def best_of(dataset, count):
    """The oracle: Python's own sorting, of the rows that have a value."""
    rows = [row for path in dataset.tar_files for row in pq.read_table(path[:-3] + "parquet").to_pylist()]
    scored = [row for row in rows if row["score"] is not None and row["score"] == row["score"]]
    return {row["key"] for row in sorted(scored, key=lambda row: (-row["score"], row["key"]))[:count]}


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0.5, 0.5, None, float("nan"), float("-inf"), *([0.25] * 15)], pa.float32()),
        ([BIG + number % 3 for number in range(20)], pa.int64()),
        ([2**64 - 1 - number % 4 for number in range(20)], pa.uint64()),
        ([number % 2 == 0 for number in range(20)], pa.bool_()),
    ],
)
@pytest.mark.parametrize("asked", [{"fraction": 0.3}, {"fraction": 1.0}, {"n": 1}, {"n": 7}, {"n": 100}])
def test_the_best_over_all_shards(tmp_path, values, kind, asked):
    dataset = write_scored(tmp_path, values, kind)
    scored = len(best_of(dataset, 20))
    count = round(asked["fraction"] * scored) if "fraction" in asked else min(asked["n"], scored)
    kept = dataset.top("score", **asked).compute()
    assert set(kept["key"]) == best_of(dataset, count)
    assert len(kept) == count


def test_one_number_is_rows_or_a_share_as_in_the_command(tmp_path):
    dataset = write_scored(tmp_path, list(range(20)))
    assert [len(dataset.top("score", most).compute()) for most in (2, np.int64(7), 100, 0.3, 1)] == [
        2,
        7,
        20,
        6,
        20,
    ]


def test_numbers_of_numpy_and_a_column_without_a_value(tmp_path):
    dataset = write_scored(tmp_path / "data", [float(number) for number in range(20)])
    for asked, count in (
        ({"n": np.int64(3)}, 3),
        ({"fraction": np.int64(1)}, 20),
        ({"fraction": np.float32(0.5)}, 10),
    ):
        assert set(dataset.top("score", **asked).compute()["key"]) == best_of(dataset, count)
    assert filter_output(tmp_path / "data", tmp_path / "out", top=("score", np.float64(0.1))).kept == 2
    assert filter_output(tmp_path / "data", tmp_path / "out", top=("score", 0.1)).output.skipped == 2
    for most, kept in ((np.int64(3), 3), (1000, 20), (1, 20), (0.125, 2), (0.175, 4)):  # 2.5 and 3.5 rows
        assert filter_output(tmp_path / "data", top=("score", most)).kept == kept
    for asked in ({"n": np.float64(3)}, {"n": True}, {"fraction": True}):
        with pytest.raises(ConfigError, match="expected one of the two"):
            dataset.top("score", **asked)
    nothing = write_scored(tmp_path / "nothing", [None] * 20, pa.null())
    assert (
        len(nothing.top("score", n=3).compute()) == 0 == filter_output(nothing.path, top=("score", 0.5)).kept
    )


def test_the_best_alone_are_embedded_and_a_rerun_has_nothing_to_do(tmp_path):
    dataset = write_scored(tmp_path / "in", list(range(20)))
    kept = dataset.filter("score <> 18").top("score", n=5)
    summary = ColourReader()(kept).save_metadata(tmp_path / "out")
    rows = read_output(tmp_path / "out")
    check_colours(rows["key"].to_pylist(), rows["image_embedding"].to_pylist())
    assert sorted(rows["score"].to_pylist()) == [14, 15, 16, 17, 19]
    assert sum(each["count"] for each in summary.filtered.values()) == 15
    again = ColourReader()(dataset.filter("score <> 18").top("score", n=5)).save_metadata(tmp_path / "out")
    assert (again.written, again.skipped) == (0, 2)


def test_no_other_column_is_read_to_find_the_best(tmp_path, monkeypatch):
    dataset = write_scored(tmp_path, list(range(20)))
    asked = []
    read = pq.ParquetFile.read_row_groups
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_groups",
        lambda self, *args, **given: asked.append(given.get("columns")) or read(self, *args, **given),
    )
    whole = pq.ParquetFile.read
    monkeypatch.setattr(
        pq.ParquetFile,
        "read",
        lambda self, *args, **given: asked.append(given.get("columns")) or whole(self, *args, **given),
    )
    dataset.filter("width > 3").top("score", n=5)
    assert {name for names in asked for name in names} == {"key", "width", "score"}


def test_none_has_a_value(tmp_path):
    dataset = write_scored(tmp_path, [None] * 20, pa.float32())
    assert len(dataset.top("score", fraction=0.5).compute()) == 0


@pytest.mark.parametrize(
    ("column", "asked", "said"),
    [
        ("score", {}, r'expected one of the two.*top\("width", 1000\)'),
        ("score", {"most": 3, "n": 3}, "expected one of the two"),
        ("score", {"most": 1.5}, "score=1.5: expected a column with a share above 0"),
        ("score", {"n": 3, "fraction": 0.5}, "expected one of the two"),
        ("score", {"fraction": 0}, "expected one of the two"),
        ("score", {"n": True}, "expected one of the two"),
        ("caption", {"n": 3}, "column 'caption' is of .*string: the best rows are found by whole numbers"),
        ("scores", {"n": 3}, "has no column 'scores'"),
    ],
)
def test_what_top_does_not_take(tmp_path, column, asked, said):
    dataset = write_scored(tmp_path, [1] * 20)
    with pytest.raises(ConfigError, match=said):
        dataset.top(column, **asked)


def test_images_are_not_opened_twice_for_the_best(tmp_path):
    dataset = write_scored(tmp_path, list(range(20)))
    measured = ImageStatistics(["brightness"])(dataset)
    with pytest.raises(ConfigError, match=r"would open every image for that.*Save it first"):
        measured.top("brightness", n=3)
    with pytest.raises(ConfigError, match=r"would open every image for that.*Call top before it"):
        measured.top("score", n=3)
    assert len(measured.persist().top("brightness", n=3).compute()) == 3
    measured.save_metadata()  # in its own folder
    saved = ImageTextPairDataset.from_webdataset(tmp_path).top("brightness", n=3).compute()
    best = sorted(read_output(tmp_path)["brightness"].to_pylist())[-3:]
    assert sorted(saved["brightness"]) == best


class TestBestRowsStep(StepTests):
    """The contract of steps, held by this one."""

    @pytest.fixture
    def step(self, tmp_path):
        return write_scored(tmp_path / "data", list(range(20))).top("score", n=7).steps[-1]

    @pytest.fixture
    def frame(self, tmp_path):
        return write_scored(tmp_path / "frame", list(range(20))).compute()


def test_an_output_is_cut_by_whole_numbers_that_no_float_holds(tmp_path):
    """Of files whose columns are of several types, too."""
    kinds = {"a": pa.int64(), "b": pa.uint64(), "c": pa.float64()}
    numbers = {"a": [-1, BIG, BIG + 1], "b": [1, BIG + 2, 2**63 + 1], "c": [0.5, float(BIG), 2.0**63]}
    (tmp_path / "in").mkdir()
    for name, kind in kinds.items():
        table = pa.table({"key": [f"{name}{row}" for row in range(3)], "id": pa.array(numbers[name], kind)})
        pq.write_table(table, tmp_path / "in" / f"{name}.parquet")
    every = sorted((value for each in numbers.values() for value in each), reverse=True)
    for count in range(1, 10):
        summary = filter_output(tmp_path / "in", top=("id", count / 9))
        assert summary.kept == count
        assert summary.cut.value == every[count - 1]
    pq.write_table(pa.table({"id": ["12"]}), tmp_path / "in" / "d.parquet")
    with pytest.raises(ConfigError, match=r"d.parquet: column 'id' is of string.*Cast it first"):
        filter_output(tmp_path / "in", top=("id", 0.5))


CAPTIONS = pa.table(
    {
        "caption": ["a b c", "a bb cc", "abcdefg", " a b \n c", None, "one  two 三", "one two 3"],
        "width": [200, 600, 600, 601, 300, 199, 200],
        "height": [200, 200, 200, 200, 300, 300, None],
        "clip_score": [0.28, 0.3, 0.1, 0.5, 0.4, float("nan"), None],
    }
)


def test_filters_by_name():
    captions = CAPTIONS["caption"].to_pylist()
    sizes = list(zip(CAPTIONS["width"].to_pylist(), CAPTIONS["height"].to_pylist(), strict=True))

    def passes(caption, width, height):  # as DataComp's paper says it
        if None in (caption, width, height):
            return False
        small, large = min(width, height), max(width, height)
        return len(caption.split()) > 2 and len(caption) > 5 and small >= 200 and large / small <= 3

    expected = [passes(caption, *size) for caption, size in zip(captions, sizes, strict=True)]
    assert expected == [False, True, False, False, False, False, False]
    assert (Where(DATACOMP_BASIC).passes(CAPTIONS) == 1).tolist() == expected
    assert (Where(LAION_B32).passes(CAPTIONS) == 1).tolist() == [True, True, False, True, True, False, False]
    both = Where(f"{DATACOMP_BASIC} and {LAION_B32}")
    assert np.flatnonzero(both.passes(CAPTIONS) == 1).tolist() == [1]
    assert len(both.clauses) == 7


def test_filters_by_name_of_the_command(tmp_path):
    pq.write_table(CAPTIONS, tmp_path / "rows.parquet")
    given = ["filter", str(tmp_path), "--preset", "datacomp-basic", "--preset", "laion-b32"]
    result = CliRunner().invoke(app, [*given, "--where", "width > 1 -- why"])
    assert result.exit_code == 0, result.output
    assert "1 of 7 rows kept" in result.output
    assert "width <= (3 * height): " in result.output
    assert CliRunner().invoke(app, [*given, "--where", "width > 600"]).output.startswith("0 of 7 rows")
    unknown = CliRunner().invoke(app, ["filter", str(tmp_path), "--preset", "laion"])
    assert unknown.exit_code == 2
    assert all(name in unknown.output for name in PRESETS)


def test_a_column_that_is_assigned(tmp_path):
    dataset = ColourReader()(write_scored(tmp_path / "in", list(range(20))))
    dataset.metadata["passes"] = dataset.metadata["score"] > 11
    dataset.save_metadata(tmp_path / "all")
    rows = read_output(tmp_path / "all")
    assert rows["passes"].to_pylist() == [score > 11 for score in rows["score"].to_pylist()]
    dataset.filter("passes").save_metadata(tmp_path / "some")
    some = read_output(tmp_path / "some")
    check_colours(some["key"].to_pylist(), some["image_embedding"].to_pylist())
    assert sorted(some["score"].to_pylist()) == list(range(12, 20))
