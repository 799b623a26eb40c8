"""Two outputs beside one another: every figure as brute force, SciPy or pandas has it."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.linalg
import scipy.spatial
import scipy.stats
from colours import ColourReader, write_dataset
from test_cli import run_here
from test_heads import L14

from curator_dask.compare import compare_outputs, reading
from curator_dask.compare.comparing import _pixels_by
from curator_dask.compare.kernel import discrepancies
from curator_dask.compare.moments import Gaussian, Moments, frechet
from curator_dask.compare.neighbours import most_own, neighbours, radii
from curator_dask.compare.reading import Side, read_side
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.decode.spec import ImageOptions
from curator_dask.errors import ConfigError, NoColumnError, OutputError
from curator_dask.frames.parquet import write_table
from curator_dask.frames.record import FileRecord
from curator_dask.info import describe_output
from curator_dask.outputs.filtering import filter_output
from curator_dask.runs.step import read_by

DIM = 8
INFO = {**L14, "dim": DIM, "normalized": False}
BAD = {3: None, 4: np.nan, 5: np.inf, 6: 0.0}


def write(folder, matrix, files=3, info=INFO, bad=(), **columns):
    """An output whose rows 3 to 6 have no vector that can be compared, if asked for."""
    matrix = np.array(matrix, np.float32)
    for row in bad:
        matrix[row, 0 if row < 6 else slice(None)] = 0 if BAD[row] is None else BAD[row]
    for number, rows in enumerate(np.array_split(np.arange(len(matrix)), files)):
        vectors = pa.FixedSizeListArray.from_arrays(
            pa.array(matrix[rows].reshape(-1)),
            matrix.shape[1],
            mask=pa.array([row in bad and BAD[row] is None for row in rows.tolist()]),
        )
        table = {"key": [f"{row:06d}" for row in rows], "__url__": [f"/no/{number:05d}.tar"] * len(rows)}
        more = {name: pa.array([values[row] for row in rows]) for name, values in columns.items()}
        errors = ["empty (0 bytes)" if row in bad and BAD[row] is None else None for row in rows.tolist()]
        table |= {"image_embedding": vectors, "image_error": pa.array(errors, pa.string()), **more}
        made = {} if info is None else {"image_embedding": {**info, "dim": matrix.shape[1]}}
        record = FileRecord("f", "f", id_col="key", embeddings=made)
        write_table(str(folder / f"{number:05d}.parquet"), pa.table(table), record)
    return folder


def normal(rows, seed, dim=DIM, shift=0.0):
    matrix = np.random.default_rng(seed).standard_normal((rows, dim)) * np.linspace(0.5, 2, dim) + 3
    matrix[:, 0] += shift
    return matrix.astype(np.float32)


def plain_frechet(one, other):
    """As Heusel's program has it: the root by SciPy."""
    left, right = (np.cov(each.astype(np.float64), rowvar=False) for each in (one, other))
    root = scipy.linalg.sqrtm(left @ right)
    apart = one.mean(0, dtype=np.float64) - other.mean(0, dtype=np.float64)
    return apart @ apart + np.trace(left) + np.trace(right) - 2 * np.trace(root).real


def plain_cmmd(one, other):
    """All pairs, one after the other, in float64."""
    one, other = (
        each / np.linalg.norm(each, axis=1, keepdims=True) for each in map(np.float64, (one, other))
    )

    def mean(left, right):
        return np.mean([[np.exp(-((x - y) @ (x - y)) / 200) for y in right] for x in left])

    return 1000 * (mean(one, one) + mean(other, other) - 2 * mean(one, other))


def plain_neighbours(real, fake, k):
    """Naeem's program, with balls that have their edge."""
    pairs = scipy.spatial.distance.cdist
    mine, theirs = (np.sort(pairs(each, each), 1)[:, k] for each in (real, fake))
    across = pairs(real, fake)
    return (
        (across <= mine[:, None]).any(0).mean(),
        (across <= theirs[None]).any(1).mean(),
        (across <= mine[:, None]).sum(0).mean() / k,
        (across.min(1) <= mine).mean(),
    )


def test_moments_of_blocks_far_from_zero_are_those_of_all():
    matrix = (np.random.default_rng(0).standard_normal((5000, 6)) + 1e4).astype(np.float32)
    total = Moments.none(6)
    for start in range(0, len(matrix), 700):
        total.add(Moments.of(matrix[start : start + 700]))
    exact = np.cov(matrix.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(total.scatter / (total.count - 1), exact, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(total.mean, matrix.mean(0, dtype=np.float64), rtol=1e-13)


@pytest.mark.parametrize(("rows", "dim"), [(400, 12), (6, 12)])
def test_the_frechet_distance_is_scipys_also_of_few_rows(rows, dim):
    one, other = normal(rows, 1, dim), normal(rows + 3, 2, dim, shift=1)
    found = frechet(Gaussian(Moments.of(one)), Gaussian(Moments.of(other)))
    assert found == pytest.approx(plain_frechet(one, other), rel=1e-10 if rows > dim else 1e-3)
    assert frechet(*[Gaussian(Moments.of(one))] * 2) == pytest.approx(0, abs=1e-5)


def test_a_planted_shift_is_its_square():
    one = normal(3000, 1)
    moved = one + np.float32([2, 0, 0, 1, 0, 0, 0, 0])
    assert frechet(Gaussian(Moments.of(one)), Gaussian(Moments.of(moved))) == pytest.approx(5, rel=1e-5)


def test_cmmd_is_that_of_all_pairs(monkeypatch):
    monkeypatch.setattr("curator_dask.compare.kernel._BLOCK", 16)
    sets = [normal(25, seed, shift=0.4 * (seed > 2)) for seed in (1, 2, 3, 4)]
    units = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in sets]
    found = discrepancies(units, 50, seed=0)
    for left, right in ((0, 1), (2, 3), (0, 2)):
        assert found.biased([left], [right]) == pytest.approx(plain_cmmd(sets[left], sets[right]), abs=1e-6)
    whole = plain_cmmd(np.concatenate(sets[:2]), np.concatenate(sets[2:]))
    assert found.biased([0, 1], [2, 3]) == pytest.approx(whole, abs=1e-6)
    assert found.unbiased([0, 1], [2, 3]) < whole
    # What signs give is what two such sets give.
    halves = np.random.default_rng([0, 17]).permutation(np.resize(np.array([1, -1], np.float32), 100))
    every = np.concatenate(sets)
    assert found.chance[0] == pytest.approx(plain_cmmd(every[halves > 0], every[halves < 0]), abs=1e-6)


def test_neighbours_are_those_of_all_distances(monkeypatch):
    monkeypatch.setattr("curator_dask.compare.neighbours._BLOCK", 32)
    real, fake = normal(90, 1), normal(70, 2, shift=1.5)
    fake[:5] = real[:5]
    real[10:18] = real[10]  # more copies than neighbours: their balls have no width
    fake[6] = real[10]
    found = neighbours(real, radii(real, 3), fake, radii(fake, 3), 3)
    assert tuple(vars(found).values()) == pytest.approx(plain_neighbours(real, fake, 3))
    assert found.precision < 1 and found.coverage < 1


def good(matrix, bad=()):
    return np.delete(matrix, list(bad), axis=0)


@pytest.fixture
def two(tmp_path):
    """A, and B that is moved by 2, has fifty rows of A, and is smaller."""
    rng = np.random.default_rng(5)
    one, other = normal(900, 1), normal(500, 2, shift=2)
    other[100:150] = one[300:350]
    a = write(
        tmp_path / "a",
        one,
        bad=BAD,
        width=rng.integers(100, 300, 900).tolist(),
        grey=(rng.random(900) < 0.2).tolist(),
        caption=[f"  a photograph of {'x' * (row % 7)} {row}" if row % 9 else None for row in range(900)],
        odd=["text"] * 900,
        own=[f"one {row}" if row < 9 else None for row in range(900)],
        lone=[1] * 900,
    )
    b = write(
        tmp_path / "b",
        other,
        files=2,
        width=rng.integers(120, 330, 500).tolist(),
        grey=(rng.random(500) < 0.6).tolist(),
        caption=[f"photo {row}" for row in range(500)],
        odd=[1.5] * 500,
        own=[f"another {row}" if row < 9 else None for row in range(500)],
    )
    return a, b, one, other


def test_two_outputs_are_told_as_brute_force_has_them(two, in_this_process, monkeypatch):
    monkeypatch.setattr(reading, "_BLOCK", 128)
    a, b, one, other = two
    found = compare_outputs(a, b, sample=300, permutations=20)
    assert (found.a.rows, found.a.vectors, found.a.failed) == (900, 896, 1)
    assert found.a.aside == {"not finite": 2, "null": 1, "zero": 1}
    assert (found.b.rows, found.b.vectors, found.b.aside) == (500, 500, {})
    assert found.frechet.all == pytest.approx(plain_frechet(good(one, BAD), other), rel=1e-6)
    assert 3 < found.frechet.a_b < 5 and max(found.frechet.a_a, found.frechet.b_b) < 0.5
    assert 220 < found.frechet.rows <= 250
    assert 2.5 < found.frechet.unlimited < found.frechet.a_b
    assert found.cmmd.rows == found.neighbours.rows == 150
    assert found.cmmd.all > 5 * max(found.cmmd.a_a, found.cmmd.b_b) and found.cmmd.p == 1 / 21
    assert found.neighbours.a_b.precision < found.neighbours.a_a.precision
    # The rows drawn are the lowest of what each row draws, whatever is read at a time.
    draws = np.concatenate([np.random.default_rng([0, 1, number]).random(250) for number in (0, 1)])
    side = Side(tuple(map(str, sorted(b.glob("*.parquet")))), "image_embedding", None, (0, 1), 0.5, 0.5)
    seen = read_side(side)
    first = seen.sample(0).lowest(150)
    rows = first.places[:, 0] * 250 + first.places[:, 1]
    assert rows.tolist() == np.argsort(draws)[:150].tolist()
    np.testing.assert_array_equal(first.vectors, other[rows])
    assert seen.moments[0].count == (draws < 0.5).sum()
    said = str(found)
    for text in ("896 vectors, 2 not finite, 1 null, 1 zero; 1 failed", "A to A", "Only A has lone"):
        assert text in said
    assert json.loads(json.dumps(found.to_dict()))["frechet"]["all"] == found.frechet.all


def test_near_rows_are_those_of_all_cosines(two, in_this_process):
    a, b, one, other = two
    found = compare_outputs(a, b, sample=1000, permutations=0)
    assert found.cmmd.p is None
    left, right = (
        each / np.linalg.norm(each, axis=1, keepdims=True)
        for each in (np.float64(good(one, BAD)), np.float64(other))
    )
    best = (right @ left.T).max(1)
    near = found.near[1]
    assert near.rows == 500  # all rows of B
    assert near.shares["0"][0] == (best >= 1 - 1e-6).mean() == 0.1
    assert near.shares["0.01"][0] == (best >= 0.99).mean()
    low, high = near.shares["0"][1:]
    assert low < near.shares["0"][0] < high
    assert near.median == pytest.approx(np.median(best), abs=1e-6)


def test_columns_are_told_as_pandas_and_scipy_have_them(two, in_this_process):
    a, b, _, _ = two
    found = compare_outputs(a, b, sample=20, permutations=0, k=2).columns
    one, other = (pd.concat(pq.read_table(each).to_pandas() for each in [path]) for path in (a, b))
    columns = {each.name: each for each in found.both}
    assert [each.name for each in found.both] == sorted(
        columns, key=lambda name: (-columns[name].apart, name)
    )
    width = columns["width"]
    assert width.distance == pytest.approx(scipy.stats.ks_2samp(one["width"], other["width"]).statistic)
    assert width.mean == pytest.approx((one["width"].mean(), other["width"].mean()))
    assert width.quantiles[0] == pytest.approx(one["width"].quantile([0.05, 0.5, 0.95]).tolist())
    assert width.chance == pytest.approx(1.358 * np.sqrt(1 / 900 + 1 / 500))
    grey = columns["grey"]
    shares = one["grey"].mean(), other["grey"].mean()
    assert grey.distance == pytest.approx(abs(shares[0] - shares[1]))
    assert {text: pair for text, *pair in grey.values}["true"] == pytest.approx(shares)
    words = columns["caption (words)"]
    assert words.mean == pytest.approx(
        [each["caption"].dropna().str.split().str.len().mean() for each in (one, other)]
    )
    assert words.filled == (one["caption"].notna().mean(), 1.0)
    assert "key (words)" not in columns and "__url__" not in columns
    assert columns["own (characters)"].distance == 1  # few texts, each of one row alone
    assert found.only == (["lone"], []) and found.unlike == ["odd"]


def test_columns_of_odd_types_are_compared_or_named(tmp_path, in_this_process):
    """Text as views, as Polars has it; columns without a value; NaN; and what is neither number nor text."""
    tags = [["a"], ["b"]] * 30
    folders = [write(tmp_path / name, normal(60, 1), files=1, tags=tags) for name in "ab"]
    more = (
        {
            "view": pa.array([f"s{row % 2}" for row in range(60)], pa.string_view()),
            "reason": pa.nulls(60),
            "none": pa.nulls(60),
            "score": pa.array([np.nan] * 15 + [np.inf] * 15 + [1.0] * 30),
            "bytes": pa.array([b"a", b"b"] * 30).dictionary_encode(),
            "mixed": pa.array([1] * 60),
            "phash": pa.array([2**63 + row for row in range(60)], pa.uint64()),
        },
        {
            "view": pa.array(["s1"] * 60, pa.string()),
            "reason": pa.array(["cut"] * 30 + [None] * 30),
            "none": pa.nulls(60),
            "score": pa.array([1.0] * 60),
            "bytes": pa.array([b"a"] * 60).dictionary_encode(),
            "mixed": pa.array(["1"] * 60),
            "phash": pa.array(list(range(60)), pa.uint64()),
        },
    )
    for folder, columns in zip(folders, more, strict=True):
        table = pq.read_table(folder / "00000.parquet")
        for name, values in columns.items():
            table = table.append_column(name, values)
        pq.write_table(table, folder / "00000.parquet")
    found = compare_outputs(*folders, sample=20, permutations=0, k=2)
    columns = {each.name: each for each in found.columns.both}
    assert columns["view"].values == [("s0", 0.5, 0.0), ("s1", 0.5, 1.0)] and columns["view"].distance == 0.5
    assert (columns["reason"].filled, columns["reason"].apart) == ((0.0, 0.5), 0.5)
    assert (columns["score"].filled, columns["score"].looked) == ((0.5, 1.0), (30, 60))
    assert columns["bytes"].distance == 0.5
    assert (found.columns.unlike, found.columns.others) == (["mixed"], ["tags"])
    assert "Neither numbers nor text, not compared: tags." in str(found)
    assert "Hashes or ids, by their size, not compared: phash." in str(found) and "phash" not in columns
    assert [each.name for each in compare_outputs(*folders, columns=["phash"]).columns.both] == ["phash"]
    for name in ("tags", "key"):
        with pytest.raises(ConfigError, match=f"columns='{name}': numbers, booleans"):
            compare_outputs(*folders, columns=[name])
    view = {each.name: each for each in describe_output(folders[0]).columns}["view"]
    assert (view.kind, view.different) == ("text", 2)


def test_many_rows_are_looked_up_in_few(tmp_path, in_this_process):
    """As many as are said, though the parts of an output are as small as the other one."""
    one = normal(3000, 1)
    a, b = write(tmp_path / "a", one), write(tmp_path / "b", one[:60], files=1)
    found = compare_outputs(a, b, permutations=0)
    near, other = found.near
    assert (near.rows, other.rows) == (1024, 60) and found.cmmd.rows < 40
    assert near.shares["0"][1] < 60 / 3000 < near.shares["0"][2] < 0.04 and other.shares["0"][0] == 1
    assert compare_outputs(write(tmp_path / "c", one[:90], files=1), b, permutations=0).near[0].rows == 90


def test_vectors_that_cannot_be_compared_are_refused(tmp_path, two, in_this_process):
    a, _, one, _ = two
    changed = {"model": "vit_x", "output": "tokens", "transform": "another", "dtype": "bfloat16"}
    for name, value in {"weights": "sha256:1", "normalized": "maybe", **changed}.items():
        other = write(tmp_path / name, one, info={**INFO, name: value})
        with pytest.raises(ConfigError, match=f"{name}: .*{value}.*--no-check"):
            compare_outputs(a, other)
    unknown = write(tmp_path / "unknown", one, info=None)
    with pytest.raises(ConfigError, match="unknown: nothing says what made"):
        compare_outputs(a, unknown)
    assert compare_outputs(a, unknown, check=False, sample=50, k=2, permutations=0).model is None
    wide = write(tmp_path / "wide", normal(50, 1, DIM + 1))
    with pytest.raises(ConfigError, match=r"of 8 values, .*wide of 9|dim: 8, and 9"):
        compare_outputs(a, wide)
    with pytest.raises(ConfigError, match=r"vectors of 8 values, .*wide of 9"):
        compare_outputs(a, wide, check=False)
    few = write(tmp_path / "few", one[:7], bad=BAD, files=1)
    for both in ((few, a), (a, few)):
        with pytest.raises(ConfigError, match="few: 'image_embedding' has 3 vectors in 7 rows"):
            compare_outputs(*both)
    with pytest.raises(NoColumnError, match=r"no column 'wdth'.*did you mean width"):
        compare_outputs(a, a, columns=["wdth"])
    with pytest.raises(OutputError, match="no Parquet file"):
        compare_outputs(a, tmp_path / "none")
    (a / "00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(OutputError, match=r"00001.parquet"):
        compare_outputs(a, unknown)


def test_fewer_rows_than_values_are_told(tmp_path, in_this_process):
    a, b = (write(tmp_path / name, normal(30, seed, 40), files=1) for seed, name in enumerate("ab"))
    found = compare_outputs(a, b, k=20, permutations=0)
    assert found.neighbours is None
    assert "covariance is singular" in found.notes[0] and "too few for neighbours" in found.notes[1]
    one, other = normal(30, 0, 40), normal(30, 1, 40)
    assert found.frechet.all == pytest.approx(plain_frechet(one, other), rel=1e-3)
    # An output and itself have no distance.
    same = compare_outputs(a, a, k=5, permutations=0)
    assert same.frechet.all == pytest.approx(0, abs=1e-4) and same.near[0].shares["0"][0] == 1


def test_rows_that_one_set_has_alone():
    own, others = normal(60, 1), normal(50, 2)
    own[20:26] = own[20] + 40  # copies that the others have nothing like, of which one is shown
    found = most_own(own, radii(own, 3), others, 3, 5)
    assert found[0] == (20, 0)
    assert not {at for at, _ in found[1:]} & {*range(20, 26)}
    pairs = scipy.spatial.distance.cdist
    ratio = np.sort(pairs(own, own), 1)[:, 3] / np.sort(pairs(own, others), 1)[:, 2]
    assert [ratio[at] for at, _ in found] == pytest.approx([each for _, each in found])
    assert [each for _, each in found] == sorted(each for _, each in found)


def test_a_page_shows_what_one_has_alone(tmp_path, in_this_process):
    write_dataset(tmp_path / "data")
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data", id_col="key")
    ColourReader()(dataset).save_metadata(tmp_path / "a")
    filter_output(tmp_path / "a", tmp_path / "b", where="key < '000010005'")
    page = tmp_path / "page.html"
    compare_outputs(tmp_path / "a", tmp_path / "b", page=page, k=1, permutations=0, check=False)
    text = page.read_text()
    assert text.count('class="fa"') == text.count('class="fb"') > 0 and "Fréchet distance" in text
    assert "http" not in text.replace("http://www.w3.org", "") and "<script" not in text
    most = text[text.index("Most like A") : text.index("Most like B")]
    shown = re.findall(r'<img src="data:image/webp;base64,[^"]+" alt="([^"]+)">', most)
    in_b = {*pq.read_table(tmp_path / "b")["key"].to_pylist()}
    assert shown and not {*shown} & in_b
    with pytest.raises(ConfigError, match="is a folder; expected the name of a file"):
        compare_outputs(tmp_path / "a", tmp_path / "b", page=tmp_path)


def test_decoders_that_differ_are_told_by_name():
    by = [
        _pixels_by(read_by("key", ImageOptions(decoder=decoder, max_pixels=most)))
        for decoder, most in (("dali", 10), ("dali", 20), ("pillow", 10))
    ]
    assert by == ["dali", "dali", "pillow"]  # the most pixels change no vector


def test_a_cluster_finds_the_same(two, tmp_path, request):
    a, b, _, _ = two
    file = tmp_path / "here.json"
    done = run_here("compare", a, b, "--sample", 200, "--permutations", 9, "--json", file)
    assert done.returncode == 0 and "Fréchet distance" in done.stdout
    here = json.loads(file.read_text())
    request.getfixturevalue("client")
    there = json.loads(json.dumps(compare_outputs(a, b, sample=200, permutations=9).to_dict()))
    for found in (here, there):
        found.pop("seconds")
    assert there == here
