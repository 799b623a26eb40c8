"""Balancing by concepts: found as regular expressions find them, one row at a time, and drawn by the row alone."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import re
import signal
import time
import unicodedata

import dask
import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import ColourReader, check_colours, read_output, write_dataset
from s3 import BUCKET, Fault, options, s3_server
from test_retry import BROKEN, LARGE
from test_retry import folder as folder  # a fixture: some images are above a limit of pixels
from typer.testing import CliRunner

from curator_dask import get_client
from curator_dask.cli import app
from curator_dask.curation import Recipe, curate
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, DatasetError, OutputError, ShardError
from curator_dask.frames.columns import vectors_to_list
from curator_dask.frames.parquet import read_record, write_table
from curator_dask.frames.record import FileRecord
from curator_dask.outputs import adding, filtering
from curator_dask.outputs.filtering import filter_output
from curator_dask.tables import join_output
from curator_dask.testing import StepTests
from curator_dask.text.balance import BalanceSummary, balance_output
from curator_dask.text.captions import Captions
from curator_dask.text.concepts import ConceptList
from curator_dask.text.contained import Matcher, spaced
from curator_dask.text.counting import CountFile, digest_of
from curator_dask.text.drawing import BalanceRows, draws, levels_of

COLUMNS = ["concepts", "rarest_concept", "balance", "balanced"]
CONCEPTS = [
    "cat",
    "Black Cat",
    "dog",
    "St. Louis",
    "C++",
    "über",
    "a",
    "snow-covered",
    "whale",
    "猫",
    "black",
]
PIECES = [
    *(
        "cat",
        "CAT",
        "cats",
        "black",
        "Black",
        "dog",
        "dog's",
        "(dog)",
        "St. Louis",
        "St.  Louis,",
        "C++",
        "c+",
        "a",
    ),
    *(
        "Über",
        "snow-covered",
        "snow covered",
        "-",
        "a_cat",
        "黑猫",
        "cat-like",
        "\n",
        "\t",
        "concatenate",
        "1.5",
    ),
]
FILES, ROWS = 3, 150


def pattern_of(concept, flags=re.IGNORECASE):
    """What contains a concept, said by a regular expression: of words with no more letters on either side."""
    parts = re.findall(r"\w+|[^\w\s]", concept)
    if concept == "猫":
        return re.compile(concept)
    said = re.escape(parts[0])
    for before, after in itertools.pairwise(parts):
        between = r"\s+" if before[-1].isalnum() and after[0].isalnum() else r"\s*"
        said += between + re.escape(after)
    left, right = (
        (r"(?<!\w)" if parts[0][0].isalnum() else ""),
        (r"(?!\w)" if parts[-1][-1].isalnum() else ""),
    )
    return re.compile(left + said + right, flags)


PATTERNS = [pattern_of(concept) for concept in CONCEPTS]


def captions_of(number, pick=None):
    pick = pick or random.Random(7)
    return [" ".join(pick.choices(PIECES, k=pick.randint(1, 5))) for _ in range(number)]


def write(folder, captions, files=FILES, kind=None, order=None, **columns):
    """An output as embed writes it; each row's key and vector are its caption's number."""
    numbers = list(range(len(captions))) if order is None else list(order)
    bounds = np.linspace(0, len(numbers), files + 1).astype(int)
    for file, (start, stop) in enumerate(itertools.pairwise(bounds)):
        here = numbers[start:stop]
        matrix = np.array([[float(number), 1.0] for number in here], np.float32).reshape(-1, 2)
        table = pa.table(
            {
                "key": [f"{number:06d}" for number in here],
                "caption": pa.array([captions[number] for number in here], kind),
                "__url__": [f"/no/such/{file:05d}.tar"] * len(here),
                "image_embedding": vectors_to_list(matrix, np.ones(len(here), bool)),
                **{name: [values[number] for number in here] for name, values in columns.items()},
                "image_error": pa.nulls(len(here), pa.string()),
            }
        )
        record = FileRecord("f", "f", id_col="key", embeddings={"image_embedding": {"dim": 2}})
        write_table(str(folder / f"{file:05d}.parquet"), table, record)
    return folder


@pytest.fixture
def concepts(tmp_path):
    path = tmp_path / "concepts.txt"
    path.write_text("\n".join(CONCEPTS) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def out(tmp_path):
    return write(tmp_path / "out", captions_of(FILES * ROWS))


def by_key(folder, *names):
    table = pq.read_table(folder)
    return dict(zip(table["key"].to_pylist(), table.select([*names]).to_pylist(), strict=True))


def check(folder, captions, most, keep_unmatched=False):
    """Every row has what is found by regular expressions in its own captions, and all else is as it was."""
    several = [each if isinstance(each, list) else [each] for each in captions]
    found = [
        [
            number
            for number, pattern in enumerate(PATTERNS)
            if any(pattern.search(text or "") for text in texts)
        ]
        for texts in several
    ]
    counts = np.bincount([each for row in found for each in row], minlength=len(CONCEPTS))
    table = pq.read_table(folder)
    assert table.column_names[-5:] == [*COLUMNS, "image_error"] and len(table) == len(captions)
    for row in table.to_pylist():
        number = int(row["key"])
        own = found[number]
        assert row["caption"] == captions[number] and row["image_embedding"][0] == number
        assert row["concepts"] == len(own)
        rarest = min(own, key=lambda each: (counts[each], each), default=None)
        assert row["rarest_concept"] == (None if rarest is None else CONCEPTS[rarest])
        missed = 1.0
        for each in own:
            missed *= 1 - min(1.0, most / counts[each])
        expected = 1.0 if keep_unmatched and not own else 1 - missed
        assert row["balance"] == pytest.approx(expected, abs=1e-6)
        assert row["balanced"] or expected < 1
        assert expected or not row["balanced"]
    return found, counts


@pytest.mark.parametrize(
    ("caption", "concept", "is_in"),
    [
        ("A cat.", "cat", True),
        ("cat", "cat", True),
        ("category, concat", "cat", False),
        ("the (cat)/'cat'", "cat", True),
        ("cat's", "cat", True),
        ("a_cat", "cat", False),
        ("two cats", "cat", False),
        ("black  \n cat", "black cat", True),
        ("black, cat", "black cat", False),
        ("black-cat", "black cat", False),
        ("black - cat", "black-cat", True),
        ("I like C++!", "C++", True),
        ("I like C+ +", "C++", True),
        ("I like C", "C++", False),
        ("St. Louis, Missouri", "st. louis", True),
        ("3.5 mm", "5 mm", True),
        ("35 mm", "5 mm", False),
        ("STRASSE", "Straße", True),
        (unicodedata.normalize("NFD", "café"), "café", True),
        ("cafés", "café", False),
        ("cafe", "café", False),
        ("\uff43\uff41\uff54", "cat", True),
        ("हिन्दी भाषा", "हिन्दी", True),
        ("हिन्दी", "हिन", False),
        ("黑猫坐着", "猫", True),
        ("黑猫坐着", "黑 猫", True),
        ("ねこcat", "cat", True),
        ("แมวดำ", "แมว", True),
        ("고양이가", "고양이", False),
        ("👍🏽 ok", "ok", True),
        ("I ❤\ufe0fcats", "cats", True),
        ("葛\U000e0100城", "葛城", True),
        ("", "cat", False),
        ("\x1c\x85\u2028cat", "cat", True),
        ("\ud800 cat", "cat", True),
    ],
)
def test_what_contains_what(caption, concept, is_in):
    assert (spaced([concept]) in spaced([caption])) is is_in
    others = ["dog", "zebra of Paris", "é"]
    matcher = Matcher([spaced([each]) for each in [*others, concept]], match_case=False)
    # Among captions before and behind, with marks of all sorts, it is this one's.
    rows, found = matcher.find(["a dog", "", caption, "\n", "zebra of Paris É"])
    assert ((2, 3) in zip(rows.tolist(), found.tolist(), strict=True)) is is_in
    assert {(0, 0), (4, 1), (4, 2)} <= {*zip(rows.tolist(), found.tolist(), strict=True)}


def test_case_counts_where_it_is_wanted(out, tmp_path, in_this_process):
    matcher = Matcher([spaced([each], True) for each in ("Apple", "apple", "É")], match_case=True)
    rows, found = matcher.find(["an Apple", "apple pie, É", "APPLE é"])
    assert list(zip(rows.tolist(), found.tolist(), strict=True)) == [(0, 0), (1, 1), (1, 2)]
    (tmp_path / "c.json").write_text(json.dumps(["Black", "black", "cat"]))
    either = balance_output(out, tmp_path / "c.json")
    assert (either.concepts, either.repeated) == (2, 1)
    exact = balance_output(out, tmp_path / "c.json", match_case=True)  # is counted anew
    assert (exact.concepts, exact.repeated) == (3, 0)
    captions = captions_of(FILES * ROWS)
    words = {
        text: sum(bool(pattern_of(text, 0).search(each)) for each in captions)
        for text in ("Black", "black", "cat")
    }
    assert dict(exact.head) == words and dict(either.head)["Black"] > words["Black"] > 0


def test_rows_have_what_regular_expressions_find(out, concepts, in_this_process):
    captions = captions_of(FILES * ROWS)
    summary = balance_output(out, concepts, 40)
    found, counts = check(out, captions, 40)
    assert counts.max() > 100 and counts[CONCEPTS.index("whale")] == 0  # heads and what never is
    assert (summary.rows, summary.never, summary.tail) == (FILES * ROWS, 1, int((counts < 40).sum()))
    assert summary.without_caption == sum(not each.strip() for each in captions) > 0
    assert summary.unmatched + summary.without_caption == sum(not each for each in found)
    assert summary.head[0] == (CONCEPTS[int(counts.argmax())], counts.max())
    table = pq.read_table(out)
    assert summary.kept == sum(table["balanced"].to_pylist())
    assert summary.expected == pytest.approx(sum(table["balance"].to_pylist()))
    # The table of counts is there for users.
    told = pq.read_table(summary.counts)
    assert told["concept"].to_pylist() == CONCEPTS and told["count"].to_pylist() == counts.tolist()
    assert filter_output(out, where="balanced").kept == summary.kept


def test_captions_of_odd_forms(concepts, tmp_path, in_this_process):
    captions = captions_of(40)
    captions[3:9] = [None, "", "  \n", "!", "x" * 300_000 + " cat", "猫" * 500]
    folder = write(tmp_path / "dictionary", captions, kind=pa.dictionary(pa.int32(), pa.string()))
    summary = balance_output(folder, concepts, 5, keep_unmatched=True)
    check(folder, captions, 5, keep_unmatched=True)
    assert summary.without_caption == 3 and pq.read_table(folder)["balanced"].null_count == 0
    # Several a row: what any of them contains, once.
    several = [[captions[n], captions[-n - 1], "black cat", None, "black cat"][: n % 6] for n in range(40)]
    several[7] = None
    for kind in (pa.list_(pa.string()), pa.large_list(pa.large_string())):
        folder = write(tmp_path / str(kind), several, kind=kind)
        summary = balance_output(folder, concepts, 5)
        check(folder, several, 5)
        assert summary.without_caption >= 8
    # No rows, and no captions in a file.
    folder = write(tmp_path / "few", [None] * 3, files=5, kind=pa.string())
    summary = balance_output(folder, concepts, 5)
    assert (summary.rows, summary.without_caption, summary.kept) == (3, 3, 0) and summary.output.written == 5
    assert summary.choices == {} and balance_output(folder, concepts).choices == {1: 0.0}


def test_the_draw_is_the_rows_own(concepts, tmp_path, client):
    """Whatever the files, the order of rows and who works: the same rows; other seeds draw others."""
    captions = captions_of(400)
    shuffled = random.Random(3).sample(range(400), 400)
    parts = write(tmp_path / "parts", captions, files=7, order=shuffled)
    again = balance_output(parts, concepts, 20, tmp_path / "elsewhere")
    looked = balance_output(parts, concepts)
    assert "balanced" not in pq.read_schema(parts / "00000.parquet").names
    whole = write(tmp_path / "whole", captions, files=1)
    with dask.config.set(scheduler="sync"):
        first = balance_output(whole, concepts, 20)
        other = balance_output(whole, concepts, 20, tmp_path / "seed", seed=1)
        assert balance_output(whole, concepts).choices == pytest.approx(looked.choices)
    expected = by_key(whole, *COLUMNS)
    assert by_key(tmp_path / "elsewhere", *COLUMNS) == expected and again.kept == first.kept
    assert again.expected == pytest.approx(first.expected) and again.head == first.head
    chances = {key: {"balance": row["balance"]} for key, row in expected.items()}
    assert by_key(tmp_path / "seed", "balance") == chances and other.expected == first.expected
    drawn = by_key(tmp_path / "seed", "balanced")
    assert sum(drawn[key]["balanced"] != row["balanced"] for key, row in expected.items()) > 50


def test_a_larger_threshold_keeps_what_a_smaller_one_keeps(concepts, tmp_path, in_this_process):
    captions = captions_of(600)
    folder = write(tmp_path / "out", captions)
    looked = balance_output(folder, concepts)
    kept, expected = set(), 0.0
    for most in sorted(looked.choices):
        summary = balance_output(folder, concepts, most)  # its own columns are made anew without being asked
        assert summary.output.written == FILES
        rows = {key for key, row in by_key(folder, "balanced").items() if row["balanced"]}
        assert kept <= rows and expected <= summary.expected
        assert summary.expected == pytest.approx(looked.choices[most], rel=1e-5)
        kept, expected = rows, summary.expected
    assert len(kept) == 600 - looked.unmatched - looked.without_caption  # the largest is where all are kept
    assert [*looked.choices] == [500, 200, 100, 50, 20, 10, 5, 2, 1]


@pytest.mark.parametrize("key", ["key", "same"])
def test_as_many_are_drawn_as_are_expected(concepts, tmp_path, in_this_process, key):
    """Over 300 seeds, each row and all rows, within some standard deviations; also where all keys are the same."""
    captions = [f"{text} number {number}" for number, text in enumerate(captions_of(500))]
    folder = write(tmp_path / "out", captions, same=["x"] * 500)
    balance_output(folder, concepts, 15, seed=299, id_col=key)
    table = pq.read_table(folder)
    chance, given = table["balance"].to_numpy(), Captions.of_column(table["caption"], "caption")
    each = [draws(table[key].to_pylist(), given, seed) < chance for seed in range(300)]
    assert each[-1].tolist() == table["balanced"].to_pylist()
    drawn, variance = np.sum(each, axis=0), 300 * chance * (1 - chance)
    assert (abs(drawn - 300 * chance) <= 5 * np.sqrt(variance) + 1e-3).all()
    assert abs(drawn.sum() - 300 * chance.sum()) < 4 * np.sqrt(variance.sum())
    assert np.std([row.sum() for row in each]) == pytest.approx(np.sqrt(variance.sum() / 300), rel=0.2)


def states(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}


def no_workers():
    raise AssertionError("workers are started, and there is nothing to do")


def test_the_same_again_does_nothing_and_what_is_new_costs_itself(out, concepts, tmp_path, in_this_process):
    captions = captions_of(FILES * ROWS)
    first = balance_output(out, concepts, 20)
    before, known = states(out), states(tmp_path / "out.balance" / "files")
    again = balance_output(out, concepts, 20, workers=no_workers)
    assert (again.output.written, again.output.skipped) == (0, FILES) and states(out) == before
    assert (again.kept, again.expected, again.head) == (first.kept, first.expected, first.head)
    assert states(tmp_path / "out.balance" / "files") == known
    # A list that is written otherwise and is the same to the rule is the same, if its first spellings are.
    (tmp_path / "same.txt").write_text(
        "\n".join([*CONCEPTS, "", "CAT", "  black   cat "]) + "\n", encoding="utf-8"
    )
    same = balance_output(out, tmp_path / "same.txt", 20, workers=no_workers)
    assert (same.repeated, same.blank, same.output.written) == (2, 1, 0)
    # A new file alone is counted; all rows have other probabilities then.
    more = [*captions, *captions_of(50, random.Random(9))]
    write(tmp_path / "more", more, files=1, order=range(len(captions), len(more)))
    (tmp_path / "more" / "00000.parquet").rename(out / "00009.parquet")
    summary = balance_output(out, concepts, 20)
    _found, counts = check(out, more, 20)
    assert summary.output.written == FILES + 1 and dict(summary.head)["cat"] == counts[0]
    # Whoever else writes a file anew has it counted again, and nothing else.
    table = pq.read_table(out / "00001.parquet")
    write_table(str(out / "00001.parquet"), table, read_record(str(out / "00001.parquet")))
    before, known = states(out), states(tmp_path / "out.balance" / "files")
    assert balance_output(out, concepts, 20).output.written == 0
    now = states(tmp_path / "out.balance" / "files")
    assert [name for name in now if now[name] != known[name]] == ["00001.parquet"] and states(out) == before
    # Other concepts.
    (tmp_path / "other.txt").write_text("dog\n")
    assert balance_output(out, tmp_path / "other.txt", 20).output.written == FILES + 1
    assert {row["rarest_concept"] for row in by_key(out, "rarest_concept").values()} == {"dog", None}


def test_captions_that_change_take_their_values_with_them(out, concepts, tmp_path, in_this_process):
    captions = captions_of(FILES * ROWS)
    balance_output(out, concepts, 20)
    keys = [f"{number:06d}" for number in range(len(captions))]
    captions[5], captions[-5] = "a black cat", "a whale"
    pd.DataFrame({"key": keys, "caption": captions}).to_parquet(tmp_path / "new.parquet")
    assert "balanced" in str(
        join_output(out, tmp_path / "new.parquet", overwrite=True)
    )  # is said to be lacking
    rows = by_key(out, "balanced", "concepts")
    assert [key for key, row in rows.items() if row["balanced"] is None] == [keys[5], keys[-5]]
    summary = balance_output(out, concepts, 20)
    _found, counts = check(out, captions, 20)
    assert summary.output.written == FILES and counts[CONCEPTS.index("whale")] == 1
    assert balance_output(out, concepts, 20, workers=no_workers).output.written == 0


@pytest.mark.parametrize("form", ["txt", "json", "csv", "parquet", "jsonl", "folder"])
def test_concepts_of_all_forms(tmp_path, form):
    path, frame = (
        tmp_path / f"c.{form}",
        pd.DataFrame({"concept": ["cat", " CAT", "", "A  dog", "007"], "n": range(5)}),
    )
    texts = frame["concept"].tolist()
    if form == "txt":
        path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(texts).encode() + b"\r\n")
    elif form == "json":
        path.write_text(json.dumps(texts))
    elif form == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif form == "csv":
        frame.to_csv(path, index=False)
    else:
        path.mkdir() if form == "folder" else None
        frame.rename(columns={"concept": "name"}).to_parquet(path / "a.parquet" if form == "folder" else path)
    found = ConceptList.read(path, "name" if form in ("parquet", "folder") else "concept")
    assert (found.texts, found.repeated, found.blank) == (["cat", "A dog", "007"], 1, 1)


def test_what_is_refused(out, concepts, tmp_path, in_this_process):
    def refused(kind, match, *arguments, **options):
        with pytest.raises(kind, match=match):
            balance_output(out, *arguments, **options)

    for name, data, match in (
        ("none.txt", None, "there is no such file"),
        ("none.csv", None, "there is no such file"),
        ("empty.txt", b"\n  \n", "there is no concept in it"),
        ("bad.txt", b"\xff\xfe", "cannot be read"),
        ("bad.json", b"{", "cannot be read"),
        ("dict.json", b'{"cat": 1}', "expected a list of texts"),
        ("numbers.json", b'["cat", 1]', "expected a list of texts"),
        ("half.json", b'["cat", "\\ud800"]', r"half.json: '\\ud800' is no text"),
        ("other.csv", b"name\ncat\n", r"expected a column 'concept'.*--concept-column"),
        ("cat.xlsx", b"PK", r"expected concepts as .txt, .json, or a table"),
    ):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        refused(DatasetError, match, tmp_path / name, 5)
    refused(ConfigError, "most=0: expected a whole number", concepts, 0)
    refused(ConfigError, "seed='x': expected a whole number", concepts, 5, seed="x")
    refused(
        OutputError,
        r"no column 'captoin' \(did you mean caption\?\).*--text",
        concepts,
        5,
        text_column="captoin",
    )
    refused(OutputError, "no column 'uid', by which rows are drawn.*--id-col", concepts, 5, id_col="uid")
    refused(
        ConfigError,
        "text_column='image_embedding': expected text",
        concepts,
        5,
        text_column="image_embedding",
    )
    refused(OutputError, "finds the rows of both", concepts, 5, counts=out / "counts")
    refused(OutputError, "finds the rows of both", concepts, 5, out / "inside")
    elsewhere = tmp_path / "elsewhere"
    for place in (elsewhere, elsewhere / "counts"):
        refused(ConfigError, "is for what is remembered", concepts, 5, elsewhere, counts=place)
    assert not {*COLUMNS} & {*pq.read_schema(out / "00000.parquet").names}
    # Columns of these names that others made are not replaced, but by a word.
    write(out, captions_of(FILES * ROWS), concepts=[["mine"]] * FILES * ROWS)
    refused(OutputError, r"column 'concepts' that is no score.*--prefix.*--overwrite", concepts, 5)
    refused(ConfigError, "would take the place of keys, captions", concepts, 5, id_col="concepts")
    balance_output(out, concepts, 5, prefix="meta_")
    assert pq.read_table(out)["concepts"][0].as_py() == ["mine"]
    assert pq.read_schema(out / "00000.parquet").names[-5:-1] == [f"meta_{name}" for name in COLUMNS]
    balance_output(out, concepts, 5, overwrite=True)
    assert pq.read_table(out)["concepts"][0].as_py() != ["mine"]
    # A file that cannot be read, after it was looked at, ends it before anything is drawn.
    data = bytearray((out / "00001.parquet").read_bytes())
    data[4:400] = b"\xff" * 396
    (out / "00001.parquet").write_bytes(data)
    before = states(out)
    with pytest.raises(ShardError, match="00001: could not be counted, and nothing was balanced"):
        balance_output(out, concepts, 7)
    assert states(out) == before


def test_workers_see_the_clients_counts(out, concepts, tmp_path, in_this_process):
    summary = balance_output(out, concepts)
    counts = pq.read_table(summary.counts)["count"].to_numpy()
    assert CountFile(summary.counts, None, digest_of(counts)).read().tolist() == counts.tolist()
    with pytest.raises(DatasetError, match="has other counts than the client has put there"):
        CountFile(summary.counts, None, digest_of(counts + 1)).read()
    one, other = (ConceptList([text], [spaced([text])], False, 0, 0) for text in ("cat", "dog"))
    saved = one.save(str(tmp_path / "list.parquet"), None)
    other.save(str(tmp_path / "list.parquet"), None)
    with pytest.raises(DatasetError, match="has other concepts"), saved.held():
        pass


def test_thresholds_to_choose_from():
    assert levels_of(np.array([3, 1700, 0])) == (2000, 1000, 500, 200, 100, 50, 20, 10, 5, 2, 1)
    assert levels_of(np.array([20])) == (20, 10, 5, 2, 1)
    assert levels_of(np.zeros(3, int)) == (1,) and levels_of(np.array([10**12 + 1]))[0] == 2 * 10**12
    # Those that keep all are not told, but for the last; and no more than are read at a glance.
    choices = {most: min(1e6, 50.0 * most) for most in levels_of(np.array([10**9]))}
    told = re.findall(
        r"most +([\d,]+): ([\d,]+) rows \(([\d.]+%)\)", str(BalanceSummary(10**6, choices=choices))
    )
    assert told[:2] == [("20,000", "1,000,000", "100.0%"), ("10,000", "500,000", "50.0%")] and len(told) == 12


class TestStep(StepTests):
    @pytest.fixture
    def step(self, tmp_path):
        given = ConceptList(CONCEPTS, [spaced([each]) for each in CONCEPTS], False, 0, 0)
        counts = np.arange(2, 2 + len(CONCEPTS))
        path = str(tmp_path / "counts.parquet")
        write_table(path, pa.table({"concept": CONCEPTS, "count": counts}), FileRecord("f"))
        saved, known = (
            given.save(str(tmp_path / "list.parquet"), None),
            CountFile(path, None, digest_of(counts)),
        )
        return BalanceRows(saved, known, "caption", "key", 3, 0, "", False, "c.txt")

    @pytest.fixture
    def frame(self):
        captions = captions_of(6)
        return pd.DataFrame({"key": [f"{n}" for n in range(6)], "caption": captions}).convert_dtypes(
            dtype_backend="pyarrow"
        )


def balance(address, folder, concepts):
    """What a client does that may be killed."""
    with get_client(scheduler_address=address, verbose=False):
        balance_output(folder, concepts, 20)


@pytest.mark.slow
def test_workers_and_clients_killed(concepts, tmp_path, private_cluster):
    """A worker while it counts, a client and a worker while columns are written: the columns are the same."""
    captions = captions_of(16 * 400)
    with dask.config.set(scheduler="sync"):
        undisturbed = write(tmp_path / "undisturbed", captions, files=16)
        expected = balance_output(undisturbed, concepts, 20)
    folder = write(tmp_path / "out", captions, files=16)
    start = multiprocessing.get_context("forkserver").Process

    def done():
        counted = len([*(tmp_path / "out.balance").glob("files/*.parquet")])
        written = sum("balanced" in pq.read_schema(path).names for path in folder.glob("*.parquet"))
        return counted + written

    moments, killed = [(6, "worker"), (20, "client"), (26, "worker")], []
    with private_cluster(n_workers=2) as client:
        arguments = (client.scheduler.address, folder, concepts)
        run = start(target=balance, args=arguments)
        run.start()
        end = time.monotonic() + 240
        while run.is_alive() or run.exitcode != 0:
            assert time.monotonic() < end, f"not ended after {killed}"
            if not run.is_alive():
                assert run.exitcode == -signal.SIGKILL  # and not an error
                run = start(target=balance, args=arguments)
                run.start()
            if len(killed) < len(moments) and done() >= moments[len(killed)][0]:
                victim = moments[len(killed)][1]
                if victim == "client":
                    os.kill(run.pid, signal.SIGKILL)
                    run.join()
                else:
                    nannies = client.cluster.workers.values()
                    os.kill(next(each.process.pid for each in nannies if each.process), signal.SIGKILL)
                killed.append(victim)
            time.sleep(0.01)
    assert len(killed) == len(moments)
    assert by_key(folder, *COLUMNS) == by_key(undisturbed, *COLUMNS)
    with dask.config.set(scheduler="sync"):
        again = balance_output(folder, concepts, 20)
    assert (again.output.written, again.kept) == (0, expected.kept)


def test_a_recipe_balances_what_passes(tmp_path, in_this_process):
    keys = write_dataset(tmp_path / "data", 2, 40)
    named = keys[::8]  # a concept of one row, besides that of all
    (tmp_path / "concepts.txt").write_text("\n".join(["Caption", *named]))
    balance = {"concepts": str(tmp_path / "concepts.txt"), "most": 20, "seed": 3}
    recipe = Recipe(where=f"key > '{keys[8]}'", balance=balance)
    summary = curate(tmp_path / "data", tmp_path / "out", recipe)
    passing = by_key(tmp_path / "out" / "passing", "balance", "balanced")
    assert sorted(passing) == sorted(key for key in keys if key > keys[8]) and summary.filtered == 9
    chance = pytest.approx(20 / len(passing))  # of those that pass
    assert all(row["balance"] == (1 if key in named else chance) for key, row in passing.items())
    drawn = {key for key, row in passing.items() if row["balanced"]}
    assert {key for key in named if key > keys[8]} < drawn < {*passing}
    assert {*pq.read_table([*(tmp_path / "out" / "shards").glob("*.parquet")])["key"].to_pylist()} == drawn
    assert (summary.kept, summary.unbalanced) == (len(drawn), len(passing) - len(drawn))
    assert "unbalanced" in str(summary) and summary.to_dict()["steps"]["balanced"]["kept"] == len(drawn)
    before = states(tmp_path / "out")
    assert curate(tmp_path / "data", tmp_path / "out", recipe).kept == len(drawn)
    assert states(tmp_path / "out") == before
    for wrong, match in (
        (
            {"concept": "x", **balance},
            r"balance: .* 'concept' \(did you mean concepts.*There are concepts, most",
        ),
        ({"concepts": balance["concepts"]}, "most is not given"),
        ({**balance, "most": "20"}, "most='20': expected a whole number"),
        ({**balance, "match_case": "no"}, "match_case='no': expected true or false"),
        ({**balance, "seed": True}, "seed=True: expected a whole number"),
        ({**balance, "prefix": 5}, "prefix=5: expected text"),
        ([], "balance: expected {concepts: FILE, most: ROWS}"),
    ):
        with pytest.raises(ConfigError, match=match):
            Recipe(balance=wrong)
    with pytest.raises(DatasetError, match="there is no such file"):
        curate(tmp_path / "data", tmp_path / "new", Recipe(balance={"concepts": "no.txt", "most": 2}))
    with pytest.raises(ConfigError, match="balance: there is no column 'alt'"):
        curate(tmp_path / "data", tmp_path / "new", Recipe(balance={**balance, "text_column": "alt"}))
    assert not (tmp_path / "new").exists()


def test_a_recipe_keeps_the_datasets_own_columns(tmp_path, in_this_process):
    keys = write_dataset(tmp_path / "data", 2, 10)
    for path in (tmp_path / "data").glob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.append_column("concepts", pa.array([["mine"]] * len(table))), path)
    (tmp_path / "concepts.txt").write_text(f"Caption\n{keys[0]}")
    balance = {"concepts": str(tmp_path / "concepts.txt"), "most": 20}
    with pytest.raises(ConfigError, match=r"own named \['concepts'\].*prefix"):
        curate(tmp_path / "data", tmp_path / "out", Recipe(balance=balance))
    assert not (tmp_path / "out").exists()  # before anything is read of it
    curate(tmp_path / "data", tmp_path / "out", Recipe())
    with pytest.raises(ConfigError, match=r"own named \['concepts'\].*prefix"):
        curate(tmp_path / "data", tmp_path / "out", Recipe(balance=balance), overwrite=True)
    curate(
        tmp_path / "data", tmp_path / "out", Recipe(balance={**balance, "prefix": "meta_"}), overwrite=True
    )
    exported = pq.read_table([*(tmp_path / "out" / "shards").glob("*.parquet")])
    assert (
        exported["concepts"].to_pylist() == [["mine"]] * 20
        and max(exported["meta_concepts"].to_pylist()) == 2
    )


@pytest.mark.parametrize(
    ("module", "folder"), [(adding, "passing"), (filtering, "passing"), (filtering, "balanced")]
)
def test_nothing_is_exported_by_files_of_before(tmp_path, in_this_process, monkeypatch, module, folder):
    """A second recipe, of which the disk does not take one file: that of the first one lies there."""
    keys = write_dataset(tmp_path / "data", 3, 20)
    (tmp_path / "concepts.txt").write_text("\n".join(["Caption", *keys[::7]]))
    first, second = (
        Recipe(where=where, balance={"concepts": str(tmp_path / "concepts.txt"), "most": most})
        for where, most in (("key > ''", 60), (f"key > '{keys[2]}'", 6))
    )
    curate(tmp_path / "data", tmp_path / "out", first)
    write_table = module.write_table

    def failing(path, *arguments, **options):
        if str(path).endswith(f"{folder}/00001.parquet"):
            raise OSError(5, "Input/output error")
        return write_table(path, *arguments, **options)

    monkeypatch.setattr(module, "write_table", failing)
    before = states(tmp_path / "out" / "shards")
    with pytest.raises(
        ShardError, match=rf"00001: could not be written to {folder}, and nothing was exported"
    ):
        curate(tmp_path / "data", tmp_path / "out", second, overwrite=True)
    assert states(tmp_path / "out" / "shards") == before
    monkeypatch.undo()
    again = curate(tmp_path / "data", tmp_path / "out", second, overwrite=True)
    assert again.kept == curate(tmp_path / "data", tmp_path / "new", second).kept < 60


@pytest.mark.slow
def test_in_a_store(concepts, tmp_path, in_this_process):
    """What was counted is remembered there, too; the same rows are drawn as of local files."""
    local, captions = tmp_path / "local", captions_of(60)
    expected = balance_output(write(local, captions), concepts, 6)
    with s3_server() as server:
        store = fsspec.filesystem("s3", **options(server))
        for path in write(tmp_path / "out", captions).iterdir():
            store.put(str(path), f"{BUCKET}/data/out/{path.name}")
        store.put(str(concepts), f"{BUCKET}/c.txt")
        where = {"storage_options": options(server)}
        looked = balance_output(f"s3://{BUCKET}/data/out", concepts, **where)  # of this machine
        assert looked.head == expected.head and store.exists(f"{BUCKET}/data/out.balance/files/00002.parquet")
        done = balance_output(f"s3://{BUCKET}/data/out", f"s3://{BUCKET}/c.txt", 6, **where)
        assert (done.output.written, done.kept) == (FILES, expected.kept)
        again = balance_output(f"s3://{BUCKET}/data/out", concepts, 6, workers=no_workers, **where)
        assert (again.output.written, again.kept) == (0, expected.kept)
        store.get(f"{BUCKET}/data/out", str(tmp_path / "fetched"), recursive=True)
        server.faults.append(
            Fault("403", "PUT")
        )  # where the input is may be read-only: counts go where the rows do
        own = {**options(server), "client_kwargs": {"endpoint_url": f"http://127.0.0.1:{server.port}"}}
        place, counts = f"s3://{BUCKET}/own/out", f"s3://{BUCKET}/own/counts"
        where |= {"output_storage_options": own, "overwrite": True}
        apart = balance_output(f"s3://{BUCKET}/data/out", concepts, 6, place, counts=counts, **where)
        assert (apart.output.written, apart.kept) == (FILES, expected.kept)
    assert by_key(tmp_path / "fetched", *COLUMNS) == by_key(local, *COLUMNS)
    with pytest.raises(ConfigError, match=r"nothing can be beside a bucket.*--counts"):
        balance_output(f"s3://{BUCKET}", concepts, 6)


def test_retry_and_other_models_leave_the_columns_as_they_are(folder, tmp_path):
    """Embedded with failures, balanced, tried again, embedded by another model."""
    out, concepts = tmp_path / "rows", tmp_path / "concepts.txt"
    with dask.config.set(scheduler="sync"):
        dataset = ImageTextPairDataset.from_webdataset(folder)
        ColourReader(max_pixels=10_000)(dataset).save_metadata(out)
        keys = read_output(out)["key"].to_pylist()
        concepts.write_text("\n".join(["caption", *keys[::5]]))
        summary = balance_output(out, concepts, 4)
        expected = by_key(out, *COLUMNS)
        assert summary.unmatched == 0 and sum(row["balance"] == 1 for row in expected.values()) == len(
            keys[::5]
        )
        assert ColourReader(max_pixels=100_000).retry(out).rows == len(LARGE) + len(BROKEN)
        ColourReader(image_embedding_column="second", max_pixels=100_000)(dataset).save_metadata(out)
        table = read_output(out)
        check_colours(table["key"].to_pylist(), table["second"].to_pylist(), bad=BROKEN)
        assert by_key(out, *COLUMNS) == expected
        assert balance_output(out, concepts, 4).output.written == 0


def test_the_command(out, concepts, tmp_path, in_this_process):
    def run(*words):
        words = ["balance", str(out), *map(str, words), "--json", str(tmp_path / "s.json")]
        result = CliRunner().invoke(app, words)
        there = (tmp_path / "s.json").exists()
        said = json.loads((tmp_path / "s.json").read_text()) if there else None
        (tmp_path / "s.json").unlink(missing_ok=True)
        return result, said

    expected = balance_output(out, concepts)
    result, said = run("--concepts", concepts, "--workers", 1)
    assert result.exit_code == 0 and said["output"] is None
    assert said["choices"] == {str(most): rows for most, rows in expected.choices.items()}
    assert "balanced" not in pq.read_schema(out / "00000.parquet").names
    direct = balance_output(out, concepts, 20, tmp_path / "direct", seed=4)
    balance_output(out, concepts, 20, seed=4)
    result, said = run("--concepts", concepts, "--most", 20, "--seed", 4)
    assert result.exit_code == 0 and (said["kept"], said["output"]["written"]) == (direct.kept, 0)
    assert by_key(out, *COLUMNS) == by_key(tmp_path / "direct", *COLUMNS)
    assert run("--concepts", concepts, "--most", 0)[0].exit_code == 2
    assert run(tmp_path / "new", "--concepts", concepts)[0].exit_code == 2  # without --most
    assert run("--most", 20)[0].exit_code == 2
    assert run("--concepts", tmp_path / "no.txt")[0].exit_code == 2
