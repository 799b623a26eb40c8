"""Columns of users' tables: each row gets those of its own key, as pandas.merge has it, and nothing else changes."""

from __future__ import annotations

import datetime
import json
import uuid

import cloudpickle
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from colours import ColourReader, check_colours, read_output, write_dataset
from test_heads import red_head
from test_retry import BROKEN, LARGE, SAMPLES, SHARDS
from test_retry import folder as folder  # a fixture: some images are above a limit of pixels
from typer.testing import CliRunner

from curator_dask.cli import app
from curator_dask.curation import Recipe, curate
from curator_dask.datasets import ImageTextPairDataset
from curator_dask.errors import ConfigError, DatasetError, NoMatchError, OutputError
from curator_dask.frames.parquet import read_record, write_table
from curator_dask.frames.record import FileRecord
from curator_dask.image.classifiers import HeadClassifier, score_output
from curator_dask.info import describe_output
from curator_dask.rows import lookup
from curator_dask.rows.lookup import Lookup, key_texts
from curator_dask.rows.user_tables import UserTable
from curator_dask.tables import TableColumns, held, join_output
from curator_dask.testing import StepTests

pytestmark = pytest.mark.usefixtures("in_this_process")

FILES, ROWS = 3, 40


def key_of(file, row):
    return f"{file:05d}{row:04d}"


KEYS = [key_of(file, row) for file in range(FILES) for row in range(ROWS)]


@pytest.fixture
def out(tmp_path):
    """An output as embed writes it; a row's url says its key backwards."""
    for file in range(FILES):
        keys = [key_of(file, row) for row in range(ROWS)]
        table = pa.table(
            {
                "key": keys,
                "url": [f"https://example.org/{key[::-1]}" for key in keys],
                "__url__": [f"/no/such/{file:05d}.tar"] * ROWS,
                "image_embedding": pa.array(
                    [[float(int(key)), 1.0] for key in keys], pa.list_(pa.float32(), 2)
                ),
                "image_error": pa.nulls(ROWS, pa.string()),
            }
        )
        record = FileRecord("f", "f", id_col="key", embeddings={"image_embedding": {"dim": 2}})
        write_table(str(tmp_path / "out" / f"{file:05d}.parquet"), table, record)
    return tmp_path / "out"


def frame_of(keys, seed=1):
    """A table in an order of its own, whose values say whose they are."""
    numbers = np.array([int(key) if key.isdigit() else -1 for key in keys])
    frame = pd.DataFrame({"id": keys, "caption": [f"of {key}" for key in keys], "score": numbers / 8})
    return frame.sample(frac=1, random_state=seed, ignore_index=True)


def check(out, frame, on="key", key="id", names=("caption", "score")):
    """As pandas merges them, in the order of the output; all else is as it was."""
    table = pq.read_table(out)
    left = table.drop_columns([*names]).to_pandas()
    merged = left.merge(frame.rename(columns={key: on}), how="left", on=on)
    assert len(merged) == len(table)
    for name in names:
        expected = [None if pd.isna(value) else value for value in merged[name]]
        assert table[name].to_pylist() == expected, name
    assert table["image_embedding"].to_pylist() == [
        [float(int(key)), 1.0] for key in table["key"].to_pylist()
    ]
    assert table.column_names[-1] == "image_error"


@pytest.mark.parametrize("form", ["parquet", "folder", "csv", "tsv", "jsonl"])
def test_each_row_gets_its_own(out, tmp_path, form):
    frame = frame_of([*KEYS[5:], "stranger", "000"])
    path = tmp_path / f"table.{form}"
    if form == "parquet":
        frame.to_parquet(path)
    elif form == "folder":
        path.mkdir()
        frame[:50].to_parquet(path / "a.parquet")
        frame[50:].to_parquet(path / "b.parquet")
    elif form == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False, sep="\t" if form == "tsv" else ",")
    summary = join_output(out, path, "key=id")
    assert (summary.found, summary.without, summary.unasked) == (len(KEYS) - 5, 5, 2)
    assert summary.written == FILES and "2 rows of the table that no row asked for" in str(summary)
    check(out, pd.read_csv(path, dtype={"id": str}) if form == "csv" else frame)
    # The same again does nothing, and still says how many were found.
    states = [path.stat().st_mtime_ns for path in sorted(out.iterdir())]
    again = join_output(out, path, "key=id")
    assert (again.written, again.skipped, again.found) == (0, FILES, len(KEYS) - 5)
    assert [path.stat().st_mtime_ns for path in sorted(out.iterdir())] == states


def test_keys_that_several_shards_have_go_with_their_shards(tmp_path):
    """As two fetches have them: a table that names shards, as pages save it, means these rows and no others."""
    write_dataset(tmp_path / "data", shards=2, key="{sample:04d}")
    out, chosen = tmp_path / "out", tmp_path / "chosen.csv"
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")
    ColourReader()(dataset).save_metadata(out)
    rows = read_output(out).select(["key", "__url__"]).to_pandas()
    some = rows.sample(5, random_state=1)
    some.assign(good=range(5)).to_csv(chosen, index=False)
    marked = some.assign(chosen=True).merge(rows, how="right", on=["key", "__url__"])["chosen"].notna()
    summary = join_output(out, chosen, columns=["good"], mark="chosen")
    assert (summary.found, summary.without, summary.unasked) == (5, 15, 0)
    assert "5 rows found in the table by key and shard" in str(summary)
    assert read_output(out)["chosen"].to_pylist() == marked.tolist()
    assert (
        read_output(out)["good"].drop_null().to_pylist() == some.assign(n=range(5)).sort_index()["n"].tolist()
    )
    assert join_output(out, chosen, columns=["good"], mark="chosen").written == 0
    # In the pass that embeds, too; and by keys alone where the table is of other shards.
    columns = TableColumns(chosen, columns=[], mark="chosen")
    ColourReader()(columns(dataset)).save_metadata(tmp_path / "passed")
    assert read_output(tmp_path / "passed")["chosen"].to_pylist() == marked.tolist()
    assert columns.found_in(tmp_path / "passed").found == 5
    some.assign(__url__="/elsewhere/00000.tar").to_csv(chosen, index=False)
    assert join_output(out, chosen, mark="chosen").found == rows["key"].isin(some["key"]).sum()


def test_files_that_came_later_get_theirs_by_the_same_command(tmp_path):
    """Files of an output have one schema, so `embed` writes the columns of others as nulls into new ones."""
    write_dataset(tmp_path / "all", shards=2)
    out, labels = tmp_path / "out", tmp_path / "labels.csv"
    (tmp_path / "data").mkdir()

    def bring(shard):
        for kind in ("tar", "parquet"):
            (tmp_path / "all" / f"{shard}.{kind}").rename(tmp_path / "data" / f"{shard}.{kind}")

    def embed():
        ColourReader()(ImageTextPairDataset.from_webdataset(tmp_path / "data")).save_metadata(out)

    bring("00000")
    embed()
    first = read_output(out)
    pd.DataFrame({"key": first["key"].to_pylist(), "size": range(len(first))}).to_csv(labels, index=False)
    red = HeadClassifier(red_head(tmp_path), "red", check=False)
    join_output(out, labels, "key")
    score_output(out, [red])
    bring("00001")
    embed()
    told = " ".join(describe_output(out).differences)
    assert "size: 1 file (00001.parquet) of 2 lack it. Run the same join again" in told
    assert "red: 1 file (00001.parquet) of 2 lack it. Run the same score again" in told
    joined = join_output(out, labels, "key")
    assert (joined.written, joined.skipped, joined.found) == (1, 1, len(first))
    scored = score_output(out, [red])
    assert (scored.written, scored.skipped) == (1, 1)
    assert describe_output(out).differences == []
    rows = read_output(out)
    assert rows["red"].null_count == 0 and rows["size"].null_count == len(rows) - len(first)
    # What has values of something else is refused, as ever.
    with pytest.raises(OutputError, match="has a column 'caption' that was not joined"):
        pd.DataFrame({"key": first["key"].to_pylist(), "caption": "new"}).to_csv(labels, index=False)
        join_output(out, labels, "key", columns=["caption"])


@pytest.mark.parametrize("form", ["csv", "tsv"])
def test_an_empty_cell_is_null(out, tmp_path, form):
    """As pandas reads it, but for words such as NA, which are text among texts; quoted it is text that is empty."""
    frame = pd.DataFrame({"id": KEYS, "caption": [f"of {key}" for key in KEYS], "score": range(len(KEYS))})
    frame["label"] = [("cat", None, "NA", "nan", "")[number % 5] for number in range(len(KEYS))]
    frame.loc[::3, "caption"] = None
    frame["score"] = frame["score"].astype("Int64").where(frame["score"] % 4 > 0)
    separator = "," if form == "csv" else "\t"
    lines = [separator.join(frame.columns)]
    for row in frame.sample(frac=1, random_state=3).itertuples(index=False):
        cells = ["" if pd.isna(value) else str(value) or '""' for value in row]
        lines.append(separator.join(cells))
    path = tmp_path / f"table.{form}"
    path.write_text("\n".join([*lines, separator * 3, '""' + separator * 3]) + "\n")  # keys that are empty
    summary = join_output(out, path, "key=id")
    assert (summary.found, summary.without, summary.without_key) == (len(KEYS), 0, 2)
    read = pd.read_csv(path, sep=separator, dtype={"id": str}, keep_default_na=False, na_values=[""])
    read = read.dropna(subset="id").sort_values("id", ignore_index=True)
    assert read["label"].isna().sum() == 2 * len(KEYS) // 5  # quoted ones, too: pandas cannot tell them apart
    quoted = read["id"].isin(frame["id"][frame["label"] == ""])
    check(out, read.assign(label=read["label"].mask(quoted, "")), names=("caption", "score", "label"))
    # As the same table in Parquet.
    frame.to_parquet(tmp_path / "table.parquet")
    join_output(out, tmp_path / "table.parquet", "key=id", output=tmp_path / "new", overwrite=True)
    assert pq.read_table(tmp_path / "new").equals(pq.read_table(out))
    # And as columns of a dataset.
    write_dataset(tmp_path / "data", 1, 3)
    path.write_text(
        f'key{separator}other\n000000000{separator}\n000000001{separator}""\n000000002{separator}a\n'
    )
    rows = TableColumns(path)(ImageTextPairDataset.from_webdataset(tmp_path / "data")).compute()
    others = rows.sort_values("key")["other"]
    assert [None if pd.isna(value) else value for value in others] == [None, "", "a"]


def test_numbers_find_keys_with_leading_zeros(out, tmp_path):
    frame = frame_of(KEYS[1:])
    expected = frame.copy()
    for kind in ("int32", "float64"):
        frame.assign(id=frame["id"].astype(kind)).to_parquet(tmp_path / "t.parquet")
        assert join_output(out, tmp_path / "t.parquet", "key=id").without == 1
        check(out, expected)
    # Of a CSV in which they have lost their zeros, too.
    frame.assign(id=frame["id"].astype(int)).to_csv(tmp_path / "t.csv", index=False)
    summary = join_output(out, tmp_path / "t.csv", "key=id", output=tmp_path / "new", overwrite=True)
    assert summary.without == 1
    check(tmp_path / "new", pd.read_csv(tmp_path / "t.csv", dtype={"id": str}).assign(id=expected["id"]))


def test_what_finds_what():
    def found(table, values):
        return Lookup(*key_texts(pa.array(table))).find(pa.array(values)).tolist()

    assert found(["a", "0042", None, "007", "a"], [42, 7, 0, None]) == [1, 3, -1, -1]
    assert found(["042", "42"], [42]) == [1] and found(["042", "0042"], [42]) == [-1]
    assert found([42, 7], ["0042", "42", "42.0", "a", None]) == [0, 0, -1, -1, -1]
    assert found(["42"], ["042"]) == [-1]  # text is text
    assert found([42.0, float("nan"), 2.0**53, 1.5], [42, 2**53, 1]) == [0, -1, -1]
    assert found([], ["a"]) == [-1] and found(["a"], []) == []
    one, other = uuid.uuid4(), uuid.uuid4()
    texts = key_texts(pa.array([one.bytes, None, other.bytes], pa.binary(16)))[0]
    assert texts.to_pylist() == [str(one), None, str(other)]
    assert key_texts(pa.array([datetime.date(2024, 5, 31)]))[0].to_pylist() == ["2024-05-31"]
    assert found(pa.array(["b", "a"]).dictionary_encode(), ["a", "b"]) == [1, 0]
    with pytest.raises(ValueError, match="found bool"):
        key_texts(pa.array([True]))


def test_texts_of_one_hash_are_told_apart(monkeypatch):
    monkeypatch.setattr(
        lookup, "_hashes", lambda texts: np.array([len(t) for t in texts.to_pylist()], np.uint64)
    )
    table = Lookup(*key_texts(pa.array(["b", "a", "c", "aa", "a"])))
    assert table.find(pa.array(["a", "c", "b", "d", "aa", "ab"])).tolist() == [1, 2, 0, -1, 3, -1]
    assert table.firsts.tolist() == [0, 1, 2, 3, 1]


def test_types_are_kept_also_where_nothing_is_found(out, tmp_path):
    few = KEYS[:3]
    kinds = {
        "text": pa.array(["a", None, "c"], pa.large_string()),
        "label": pa.array(["x", "y", "x"]).dictionary_encode(),
        "tags": pa.array([["a"], [], None], pa.list_(pa.string())),
        "when": pa.array([0, 1, None], pa.timestamp("us", "UTC")),
        "ok": [True, None, False],
        "small": pa.array([1, 2, None], pa.int8()),
        "none": pa.nulls(3),
    }
    pq.write_table(pa.table({"key": few, **kinds}), tmp_path / "t.parquet")
    join_output(out, tmp_path / "t.parquet")
    schemas = [pq.read_schema(path).remove_metadata() for path in sorted(out.iterdir())]
    assert schemas[0] == schemas[1] == schemas[2]
    expected = [pa.string(), pa.string(), pa.list_(pa.string()), pa.timestamp("us", "UTC"), pa.bool_()]
    assert [schemas[0].field(name).type for name in kinds] == [*expected, pa.int8(), pa.string()]
    table = pq.read_table(out)
    for name, values in kinds.items():
        assert table[name][:3].to_pylist() == pa.array(values).to_pylist()
        assert table[name][3:].null_count == len(table) - 3


VIEWS = {
    "text": (pa.string_view(), pa.string(), lambda number: f"of {number}"),
    "bytes": (pa.binary_view(), pa.binary(), lambda number: b"%d" % number),
    "lists": (pa.list_view(pa.string()), pa.list_(pa.string()), lambda number: ["a", str(number)]),
    "large lists": (
        *(pa.large_list_view(pa.string_view()), pa.large_list(pa.string())),
        lambda number: [str(number), None],
    ),
    "lists of text": (pa.list_(pa.string_view()), pa.list_(pa.string()), lambda number: [str(number)] * 2),
    "pairs": (pa.list_(pa.string_view(), 2), pa.list_(pa.string(), 2), lambda number: [str(number), "b"]),
    "lists of lists": (
        *(pa.list_(pa.list_view(pa.binary_view())), pa.list_(pa.list_(pa.binary()))),
        lambda number: [[b"%d" % number], None, []],
    ),
    "fields": (
        pa.struct([("x", pa.string_view()), ("y", pa.list_view(pa.int8()))]),
        pa.struct([("x", pa.string()), ("y", pa.list_(pa.int8()))]),
        lambda number: {"x": str(number), "y": [number % 100]},
    ),
    "maps": (
        *(pa.map_(pa.string_view(), pa.string_view()), pa.map_(pa.string(), pa.string())),
        lambda number: [(str(number), "b")],
    ),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_become_what_files_have(out, tmp_path, name):
    """Arrow can pick no rows of some views, and casts others wrongly."""
    kind, plain, value = VIEWS[name]
    keys = KEYS[::-1]
    values = {key: value(int(key)) if number % 4 else None for number, key in enumerate(keys)}
    schema = pa.schema([("key", pa.string()), ("value", kind)])
    with pq.ParquetWriter(tmp_path / "table.parquet", schema) as writer:
        for some in (keys[7:30], keys[30:31], keys[31:]):
            group = {"key": some, "value": pa.array([values[key] for key in some], kind)}
            writer.write_table(pa.table(group, schema))
    summary = join_output(out, tmp_path / "table.parquet")
    assert (summary.written, summary.found, summary.failed_shards) == (FILES, len(KEYS) - 7, {})
    found = pq.read_table(out)
    assert "view" not in str(found["value"].type) and found["value"].type.id == plain.id
    pa.nulls(0, found["value"].type).cast(plain)
    expected = values | dict.fromkeys(keys[:7])
    assert dict(zip(found["key"].to_pylist(), found["value"].to_pylist(), strict=True)) == expected


@pytest.mark.parametrize("form", ["txt", "npy", "csv"])
def test_rows_of_a_list_are_marked(out, tmp_path, form):
    urls = [f"https://example.org/{key[::-1]}" for key in KEYS[::7]]
    path = tmp_path / f"optout.{form}"
    if form == "npy":
        np.save(path, np.array([*urls, "https://example.com"]))
    else:
        head = "url\n" if form == "csv" else ""
        path.write_text(head + "\n".join([*urls, "", "https://example.com", urls[0]]) + "\n")
    summary = join_output(out, path, "url", mark="optout")
    assert (summary.found, summary.unasked) == (len(urls), 1)
    table = pq.read_table(out)
    assert table["optout"].to_pylist() == [key in KEYS[::7] for key in table["key"].to_pylist()]
    with pytest.raises(ConfigError, match="values alone, and no column to add"):
        join_output(out, path, "url")
    # A list that has none of them: the mark is there, and the summary says so.
    (tmp_path / "none.txt").write_text("https://example.net\n")
    summary = join_output(out, tmp_path / "none.txt", "url", mark="other")
    assert pq.read_table(out)["other"].to_pylist() == [False] * len(KEYS)
    assert "NONE found: column 'url' of the rows has 'https://example.org/" in str(summary)


@pytest.mark.parametrize("kind", ["<i8", ">i8", ">u4", ">f8", "<U9", ">U9", "S9"])
def test_a_list_may_have_its_bytes_in_any_order(out, tmp_path, kind):
    wanted = KEYS[3::5]
    found = np.array([int(key) for key in wanted] if kind[1] in "iuf" else wanted).astype(kind)
    np.save(tmp_path / "list.npy", found)
    summary = join_output(out, tmp_path / "list.npy", mark="listed")
    assert (summary.found, summary.unasked) == (len(wanted), 0)
    table = pq.read_table(out)
    assert table["listed"].to_pylist() == [key in wanted for key in table["key"].to_pylist()]


@pytest.mark.parametrize("order", ["<", ">"])
def test_uids_as_datacomp_lists_them(out, tmp_path, order):
    uids = np.array([(1, 2**63), (0x0123456789ABCDEF, 0)], dtype=f"{order}u8,{order}u8")
    np.save(tmp_path / "subset.npy", uids)
    path = out / "00000.parquet"
    table = pq.read_table(path)
    texts = ["0123456789abcdef" + "0" * 16, *[f"{row:032x}" for row in range(ROWS - 1)]]
    pq.write_table(table.append_column("uid", pa.array(texts)), path)
    for other in ("00001", "00002"):
        (out / f"{other}.parquet").unlink()
    summary = join_output(out, tmp_path / "subset.npy", "uid", mark="kept")
    assert (summary.found, summary.unasked) == (1, 1)


def test_a_value_in_several_rows(out, tmp_path):
    rows = {"key": [KEYS[0], KEYS[1], None, KEYS[0]], "a": [1.0, 2.0, 3.0, 1.0], "b": [["x"], [], [], ["y"]]}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    with pytest.raises(DatasetError, match=rf"differ in 'b', '{KEYS[0]}' in row 0 and row 3 for example"):
        join_output(out, tmp_path / "t.parquet")
    summary = join_output(out, tmp_path / "t.parquet", columns=["a"])
    assert (summary.found, summary.without_key, summary.unasked) == (2, 1, 0)
    assert "1 row of it without a value there, left out" in str(summary)
    assert pq.read_table(out)["a"][:3].to_pylist() == [1.0, 2.0, None]
    assert join_output(out, tmp_path / "t.parquet", mark="there").found == 2


def test_a_changed_table_is_joined_anew(out, tmp_path):
    frame, path = frame_of(KEYS), tmp_path / "t.parquet"
    frame.to_parquet(path)
    join_output(out, path, "key=id", ["score"])
    # Another column costs itself, and the first stays.
    assert join_output(out, path, "key=id", ["score", "caption"]).written == FILES
    assert join_output(out, path, "key=id", ["score"]).written == 0
    frame = frame.assign(score=-frame["score"])[:60]
    frame.to_parquet(path)
    assert join_output(out, path, "key=id").written == FILES
    check(out, frame)
    # A file that was begun elsewhere: what is done is not done again.
    assert join_output(out, path, "key=id", output=tmp_path / "new").written == FILES
    (tmp_path / "new" / "00001.parquet").unlink()
    summary = join_output(out, path, "key=id", output=tmp_path / "new")
    assert (summary.written, summary.skipped, summary.found) == (1, 2, 60)
    check(tmp_path / "new", frame)


@pytest.mark.parametrize("form", ["parquet", "csv"])
@pytest.mark.parametrize("where", ["client", "worker"])
def test_a_table_that_changes_while_it_is_read(out, tmp_path, monkeypatch, form, where):
    """Else the record would name one content, and the rows have another."""
    path, frames = tmp_path / f"table.{form}", [frame_of(KEYS), frame_of(KEYS)]
    frames[1]["score"] += 1000
    digest, calls = UserTable.digest, []

    def write(frame):
        frame.to_parquet(path) if form == "parquet" else frame.to_csv(path, index=False)

    def digest_and_change(table):
        found = digest(table)
        calls.append(found)
        if len(calls) == (1 if where == "client" else 2):  # the client looks first
            write(frames[1])
        return found

    write(frames[0])
    before = pq.read_table(out)
    with monkeypatch.context() as patch:
        patch.setattr(UserTable, "digest", digest_and_change)
        with pytest.raises(DatasetError, match=f"{form}: has changed while it was read. Run again"):
            join_output(out, path, "key=id")
    assert len(calls) == (1 if where == "client" else 2)
    assert pq.read_table(out).equals(before)
    assert join_output(out, path, "key=id").written == FILES
    check(out, pd.read_csv(path, dtype={"id": str}) if form == "csv" else frames[1])


def test_what_was_joined_by_a_column_goes_when_that_changes(out, tmp_path):
    """Else a row would have the value of what it was found by before."""
    names = [f"x{number}" for number in range(len(KEYS))]
    first = pd.DataFrame({"key": KEYS, "ref": names})
    first.to_parquet(tmp_path / "a.parquet")
    pd.DataFrame({"ref": names, "val": range(len(KEYS))}).to_parquet(tmp_path / "b.parquet")
    join_output(out, tmp_path / "a.parquet")
    join_output(out, tmp_path / "b.parquet", "ref")
    first.assign(ref=[*names[:50], *reversed(names[50:])]).to_parquet(tmp_path / "a.parquet")
    assert "val" in str(join_output(out, tmp_path / "a.parquet"))  # is said to be lacking
    assert pq.read_table(out)["val"].to_pylist() == [*range(50), *[None] * 70]
    assert (
        join_output(out, tmp_path / "b.parquet", "ref").written == 2
    )  # of the first file nothing has changed
    assert pq.read_table(out)["val"].to_pylist() == [*range(50), *reversed(range(50, 120))]


def test_files_of_a_folder_may_differ_in_form(out, tmp_path):
    (tmp_path / "t").mkdir()
    keys = pa.array(KEYS[:5]).dictionary_encode()
    pq.write_table(pa.table({"key": keys, "a": [1] * 5, "none": pa.nulls(5)}), tmp_path / "t/0.parquet")
    more = {"key": pa.array(KEYS[5:9], pa.large_string()), "a": pa.nulls(4), "b": ["b"] * 4, "none": [7] * 4}
    pq.write_table(pa.table(more), tmp_path / "t/1.parquet")
    assert join_output(out, tmp_path / "t").found == 9
    table = pq.read_table(out).slice(0, 10)
    assert table["a"].to_pylist() == [1] * 5 + [None] * 5
    assert table["b"].to_pylist() == [None] * 5 + ["b"] * 4 + [None]
    assert table["none"].to_pylist() == [None] * 5 + [7] * 4 + [None]


@pytest.mark.parametrize("names", [("a.csv", "b.parquet"), ("a.parquet", "b.csv"), ("a.csv", "notes.md")])
def test_a_glob_is_of_files_of_one_kind(out, tmp_path, names):
    frame, folder = frame_of(KEYS), tmp_path / "tables"
    folder.mkdir()
    for name, part in zip(names, (frame[:50], frame[50:]), strict=True):
        part.to_parquet(folder / name) if name.endswith("parquet") else part.to_csv(
            folder / name, index=False
        )
    with pytest.raises(
        DatasetError, match=rf"several kinds, {names[0]} and {names[1]} among them: .*\*\.parquet"
    ):
        join_output(out, folder / "*", "key=id")
    chosen = join_output(out, folder / f"*{names[0][1:]}", "key=id")
    assert (chosen.found, chosen.without) == (50, len(KEYS) - 50)


def test_what_is_refused(out, tmp_path):
    path, before = tmp_path / "t.parquet", [each.read_bytes() for each in sorted(out.iterdir())]
    frame_of(KEYS).assign(flag=True, url="u", image_error="e").to_parquet(path)

    def refused(error, match, *args, **settings):
        with pytest.raises(error, match=match):
            join_output(out, path, *args, **settings)
        assert [each.read_bytes() for each in sorted(out.iterdir())] == before

    refused(DatasetError, r"expected a column 'key'.*--on COLUMN=TABLE_COLUMN")
    refused(
        OutputError,
        r"00000.parquet: there is no column 'keys' \(did you mean key\?\)",
        "keys=id",
        ["score"],
    )
    refused(DatasetError, r"no column 'captoin' \(did you mean caption\?\)", "key=id", ["captoin"])
    refused(ConfigError, r"\['image_error'\] would take the place", "key=id")
    refused(ConfigError, r"\['image_embedding'\] would take", "key=id", ["score"], "image_embedding")
    refused(OutputError, "has a column 'url' that was not joined from a table", "key=id", ["url"])
    refused(DatasetError, "column 'flag': expected text", "key=flag", ["score"])
    refused(ConfigError, "'id' is what rows are found by", "key=id", ["id"])
    refused(
        NoMatchError,
        rf"column 'key' of the rows has '{KEYS[0]}'.*of the table 'of ",
        "key=caption",
        ["score"],
    )
    for args, match in (
        ({"on": "=id"}, "on='=id'"),
        ({"on": "key="}, "on='key='"),
        ({"columns": "score"}, "expected a list"),
        ({"columns": []}, "nothing would be added"),
        ({"columns": ["score"], "mark": "score"}, "mark='score'"),
    ):
        with pytest.raises(ConfigError, match=match):
            TableColumns(path, **{"on": "key=id", **args})
    for name, match in (
        ("t.xls", "there is no such file"),
        ("out/00000.tar", "no such file"),
        ("", "no Parquet"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(DatasetError, match=match):
            join_output(out, tmp_path / "empty" / name)
    # Of another table, or of none, a column is replaced by --overwrite alone.
    join_output(out, path, "key=id", ["score"])
    frame_of(KEYS[:9]).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(OutputError, match=r"'score' of the table .*t.parquet, this run has .*other.parquet"):
        join_output(out, tmp_path / "other.parquet", "key=id", ["score"])
    join_output(out, tmp_path / "other.parquet", "key=id", ["score"], overwrite=True)
    assert pq.read_table(out)["score"].null_count == len(KEYS) - 9


def test_a_table_that_is_too_large_is_refused_in_words(out, tmp_path, monkeypatch):
    frame_of(KEYS).to_parquet(tmp_path / "t.parquet")
    monkeypatch.setattr(held, "MEMORY_LIMIT", 8000)
    with pytest.raises(
        ConfigError, match=r"caption.*take about .* kB.*has 8\.0 kB of memory. Give fewer columns"
    ):
        join_output(out, tmp_path / "t.parquet", "key=id")
    assert "caption" not in pq.read_schema(out / "00000.parquet").names


class TestJoin(StepTests):
    @pytest.fixture
    def step(self, out, tmp_path):
        frame_of(KEYS[::2]).to_parquet(tmp_path / "t.parquet")
        return TableColumns(tmp_path / "t.parquet", "key=id", ["caption"], "there").of_files({})

    @pytest.fixture
    def frame(self):
        return pd.DataFrame({"key": pd.array(KEYS[:5], dtype="string[pyarrow]")})

    def test_what_was_read_does_not_travel(self, tmp_path):
        frame_of(KEYS * 50).drop_duplicates().to_csv(tmp_path / "t.csv", index=False)
        step = TableColumns(tmp_path / "t.csv", "key=id").of_files({})
        assert "score" in step.table.schema.names and step.table.keys()
        assert len(cloudpickle.dumps(step)) < 5000


def test_retry_and_other_models_leave_the_columns_as_they_are(folder, tmp_path):
    """Embedded with failures, joined, tried again, embedded by another model: every row keeps its own values."""
    out, path = tmp_path / "rows", tmp_path / "labels.csv"
    dataset = ImageTextPairDataset.from_webdataset(folder)
    ColourReader(max_pixels=10_000)(dataset).save_metadata(out)
    keys = read_output(out)["key"].to_pylist()
    frame_of(keys).rename(columns={"caption": "label"}).to_csv(path, index=False)
    summary = join_output(out, path, "key=id")
    # What had failed before is told as that, behind what the join itself has done.
    bad = len(LARGE) + len(BROKEN)
    assert summary.earlier == summary.reasons and summary.failed == summary.earlier.total() == bad
    rows, found, _, earlier = str(summary).splitlines()
    assert rows.endswith(f"{SHARDS * SAMPLES} rows in {SHARDS} files")
    assert found.startswith(f"  {SHARDS * SAMPLES} rows found in the table")
    assert earlier.startswith(f"  {bad} rows had failed in an earlier run: ") and " too large" in earlier

    def labels():
        table = read_output(out)
        return dict(zip(table["key"].to_pylist(), table["label"].to_pylist(), strict=True))

    expected = {key: f"of {key}" for key in keys}
    assert labels() == expected
    # What was joined embeds nothing again.
    assert ColourReader(max_pixels=10_000)(dataset).save_metadata(out).skipped == SHARDS
    assert ColourReader(max_pixels=100_000).retry(out).rows == len(LARGE) + len(BROKEN)
    table = read_output(out)
    check_colours(table["key"].to_pylist(), table["image_embedding"].to_pylist(), bad=BROKEN)
    assert labels() == expected
    ColourReader(image_embedding_column="second", max_pixels=100_000)(dataset).save_metadata(out)
    assert labels() == expected and len(read_output(out)) == SHARDS * SAMPLES
    assert join_output(out, path, "key=id").written == 0
    # Of a shard that has other rows now, the new ones get theirs by the same command.
    names = {file.name: read_record(str(file)).scores for file in out.glob("*.parquet")}
    assert all(said["label"]["table"] == str(path) for said in names.values())


def test_rows_set_aside_come_back_and_get_theirs_by_the_same_command(folder, tmp_path):
    """Their files beside the output have no column that was added to it since, of a table or of a head."""
    out, path = tmp_path / "rows", tmp_path / "labels.csv"
    dataset = ImageTextPairDataset.from_webdataset(folder)
    ColourReader(max_pixels=10_000)(dataset).save_metadata(out, drop_failed=True)
    keys = dataset.metadata["key"].compute().tolist()
    frame_of(keys).rename(columns={"caption": "label"}).to_csv(path, index=False)
    assert join_output(out, path, "key=id", ["label"]).without == 0
    score_output(out, [HeadClassifier(red_head(tmp_path, 2), "blue")])
    summary = ColourReader(max_pixels=100_000).retry(out)
    assert (summary.rows, summary.failed) == (len(LARGE) + len(BROKEN), len(BROKEN)) and summary.complete
    assert {name for fact in summary.not_made.values() for name in fact["examples"]} == {"label"}
    assert join_output(out, path, "key=id", ["label"]).written == 2
    table = read_output(out)
    assert len(table) == len(keys) - len(BROKEN) and table["blue"].null_count == 0
    assert table["label"].to_pylist() == [f"of {key}" for key in table["key"].to_pylist()]


def test_a_dataset_gets_what_files_get(tmp_path):
    """In the pass that embeds, and by a recipe; the columns may be filtered by at once."""
    keys = write_dataset(tmp_path / "data", 2, 6)
    frame_of(keys[1:]).rename(columns={"caption": "label"}).to_parquet(tmp_path / "t.parquet")
    dataset = ImageTextPairDataset.from_webdataset(tmp_path / "data")
    adds = TableColumns(tmp_path / "t.parquet", "key=id", ["label", "score"], "there")
    assert adds(ColourReader()(dataset)).save_metadata(tmp_path / "lazy").written == 2
    ColourReader()(dataset).save_metadata(tmp_path / "files")
    join_output(tmp_path / "files", tmp_path / "t.parquet", "key=id", ["label", "score"], "there")
    lazy, files = (read_output(tmp_path / name) for name in ("lazy", "files"))
    assert lazy.equals(files.select(lazy.column_names))
    assert lazy["there"].to_pylist() == [key != keys[0] for key in lazy["key"].to_pylist()]
    found = adds.found_in(tmp_path / "lazy")
    assert (found.found, found.without, found.unasked) == (len(keys) - 1, 1, 0)
    again = join_output(tmp_path / "lazy", tmp_path / "t.parquet", "key=id", ["label", "score"], "there")
    assert again.written == 0
    assert len(adds(dataset).filter("score > 0 and there").compute()) == len(keys) - 1
    for on, match in (
        ("ky", r"no column 'ky' \(did you mean key\?\)"),
        ("key=idd", "expected a column 'idd'"),
    ):
        with pytest.raises(DatasetError, match=match):
            TableColumns(tmp_path / "t.parquet", on, ["label"])(dataset)
    join = [{"table": str(tmp_path / "t.parquet"), "on": "key=id", "mark": "there"}]
    summary = curate(tmp_path / "data", tmp_path / "curated", Recipe(join=join, where="there"))
    assert (summary.rows, summary.kept) == (len(keys), len(keys) - 1)
    for join, match in (([{"tabel": "x"}], "join: .*tabel"), ({"table": "x"}, "join=.*expected a list")):
        with pytest.raises(ConfigError, match=match):
            Recipe(join=join)


def test_the_command(out, tmp_path):
    frame_of(KEYS[:50]).to_csv(tmp_path / "t.csv", index=False)

    def run(*words):
        return CliRunner().invoke(app, ["join", str(out), *map(str, words)])

    def done(*words):
        result = run(*words, "--json", tmp_path / "s.json")
        return result.exit_code, json.loads((tmp_path / "s.json").read_text())["found"]

    assert join_output(out, tmp_path / "t.csv", "key=id", ["score"]).written == FILES
    assert done(tmp_path / "t.csv", "--on", "key=id", "--columns", "score") == (0, 50)
    result = run(tmp_path / "t.csv", "--on", "key=caption", "--columns", "score")
    assert result.exit_code == 1 and "has none of the rows: column 'key' of the rows has" in result.output
    assert run(tmp_path / "t.csv", "--on", "key=nothing").exit_code == 2
    assert run(tmp_path / "t.csv", "--columns", "a,,b").exit_code == 2
    frame_of(KEYS).rename(columns={"caption": "c", "score": "d"}).assign(e=1).to_parquet(
        tmp_path / "t.parquet"
    )
    several = ("--columns", "d", "--columns", "c, d")
    assert done(tmp_path / "t.parquet", "--on", "key=id", *several) == (0, len(KEYS))
    assert pq.read_table(out).column_names[-5:] == ["image_embedding", "score", "d", "c", "image_error"]
    (tmp_path / "none.txt").write_text("nobody\n")
    join_output(out, tmp_path / "none.txt", mark="listed")
    assert done(tmp_path / "none.txt", "--mark", "listed") == (0, 0)
    assert "NONE found: column 'key' of the rows has" in run(tmp_path / "none.txt", "--mark", "listed").output
