"""Large tables of text are read in pieces, and come to the same as whole ones."""

from __future__ import annotations

import gzip
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator_dask.errors import DatasetError
from curator_dask.fetching import staging
from curator_dask.fetching.source import find_table
from curator_dask.outputs.selecting import Folder
from curator_dask.rows import caption_csv, caption_json
from curator_dask.rows.caption_files import read_table
from curator_dask.rows.csv_pieces import CsvPieces, text_lines
from curator_dask.rows.json_pieces import JsonPieces
from curator_dask.rows.key_column import KeyColumn

KEY = KeyColumn("url", "with the URLs", "Name it so")
VALUES = ["", "1", "0", "true", "2.5", "2020-01-01", "10:11:12", "2020-01-01 10:11:12", "NA", "nan", "abc"]
VALUES += ["2020-01-01 10:11:12Z", "2020-01-01T10:11:12.123+02:00"]
VALUES += ["2020-01-01 10:11:12.123", '"a,b"', '"x\ny"', '""', '"q""q"', "é", "\xff"]


def outcome(read):
    try:
        return read()
    except ValueError as error:
        return str(error)


def test_pieces_have_the_types_and_values_of_the_whole(monkeypatch):
    """Columns of whatever values in whatever order: the oracle is pyarrow's reading of all at once."""
    random, tables = np.random.default_rng(0), 0
    for _ in range(300):
        between, kind = ((",", ".csv"), (";", ".csv"), ("\t", ".tsv"))[random.integers(3)]
        pools = [random.choice(len(VALUES), random.integers(1, 4)) for _ in range(random.integers(1, 5))]
        names = ["url", *(f"c{at}" if random.random() > 0.1 else "" for at in range(len(pools)))]
        lines = [between.join(names)]
        for row in range(random.integers(0, 40)):
            cells = (VALUES[pool[random.integers(len(pool))]] for pool in pools)
            lines.append(between.join([f"http://a/{row}", *cells]))
        odd = "" not in names and random.random() < 0.2  # what has no name is not looked at in pieces
        data = "\n".join(lines).encode("latin-1" if odd else "utf-8")
        whole = outcome(lambda: read_table(f"t{kind}", data, KEY).replace_schema_metadata())  # noqa: B023
        with monkeypatch.context() as patch:
            patch.setattr(caption_csv, "BLOCK_BYTES", 200)

            def in_pieces():
                pieces = CsvPieces.of(memoryview(data), KEY, kind == ".tsv")  # noqa: B023
                found = [*pieces]
                return pa.concat_tables([pieces.schema.empty_table(), *found]), len(found)

            found = outcome(in_pieces)
        if isinstance(whole, str):
            assert isinstance(found, str), data
        else:
            assert found[0].equals(whole), data
            tables += found[1] > 1
    assert tables > 100  # came in several pieces


FIELDS = [
    None,
    1,
    2**60,
    1e300,
    2.5,
    True,
    "",
    "abc",
    "é\n",
    "2020-01-01",
    "2020-01-01 10:11:12.5",
    "a",
    2**70,
]
FIELDS += [[], [1], [None, 2.5], ["x"], {}, {"a": 1}, {"a": None, "b": "y"}, {"b": "2020-01-01"}, {"a": 0.5}]


def test_lines_of_json_have_the_types_and_values_of_the_whole(monkeypatch):
    """Fields of whatever values in whatever order: the oracle is pyarrow's reading of all at once."""
    random, tables, errors = np.random.default_rng(0), 0, 0
    for _ in range(400):
        pools = [
            [0, *random.choice(len(FIELDS), random.integers(0, 3))] for _ in range(random.integers(1, 4))
        ]
        lines = []
        for row in range(random.integers(0, 40)):
            values = {f"c{at}": FIELDS[pool[random.integers(len(pool))]] for at, pool in enumerate(pools)}
            left = {name: value for name, value in values.items() if random.random() < 0.8}
            lines.append(json.dumps({"url": f"http://a/{row}", **left}, ensure_ascii=False))
        data = "\n".join([*lines, *[""] * random.integers(2)]).encode()
        whole = outcome(lambda: read_table("t.jsonl", data, KEY).replace_schema_metadata())  # noqa: B023
        with monkeypatch.context() as patch:
            patch.setattr(caption_json, "BLOCK_BYTES", 200)

            def in_pieces():
                pieces = JsonPieces.of(io.BytesIO(data), KEY)  # noqa: B023
                found = [*pieces]
                assert pieces.rows == sum(map(len, found))
                return pa.concat_tables([pieces.schema.empty_table(), *found]), len(found)

            found = outcome(in_pieces)
        if isinstance(whole, str):
            assert isinstance(found, str), data
            errors += whole == found
        else:
            assert not isinstance(found, str), (found, data)
            assert found[0].equals(whole), data
            tables += found[1] > 1
    assert tables > 100 and errors > 20  # came in several pieces; and are told alike


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_lines_are_those_of_the_whole_text(size):
    text = "\ufeffone\r\ntwo\n\n  \nthree\rfour\x0bfive\u2028six é\r\n\r\nlast"
    lines = [line for line in text.removeprefix("\ufeff").splitlines() if line.strip()]
    data = text.encode() + b" \xff"
    found = [line for some in text_lines(io.BytesIO(data), size) for line in some]
    assert found == [*lines[:-1], "last \ufffd"]


@pytest.mark.parametrize(
    "name", ["urls.csv", "urls.csv.gz", "urls.tsv", "urls.txt", "urls.txt.gz", "bare.tsv.gz", "urls.jsonl"]
)
def test_large_tables_are_staged_in_pieces(name, tmp_path, monkeypatch):
    rows = [(f"http://a/{row}.jpg", f"caption {row}", "" if row < 900 else row / 4) for row in range(1000)]
    if ".txt" in name:
        text = "\n".join(url for url, *_ in rows)
    elif ".jsonl" in name:
        lines = ({"url": url, "caption": text, "size": size or None} for url, text, size in rows)
        text = "\ufeff" + "\n".join(map(json.dumps, lines))
    else:
        between = "\t" if "tsv" in name else ","
        lines = [between.join(map(str, row)) for row in rows]
        text = "\n".join([*([] if "bare" in name else [between.join(["url", "caption", "size"])]), *lines])
    data = text.encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    names = ["url", "caption", "size"] if "bare" in name else None

    def staged(folder):
        return find_table(path, "url", ["caption"], Folder(str(tmp_path / folder)), None, names)

    whole = staged("whole")
    monkeypatch.setattr(staging, "WHOLE", 5000)
    monkeypatch.setattr(staging, "_READ", 4096)
    monkeypatch.setattr(caption_csv, "BLOCK_BYTES", 4096)
    monkeypatch.setattr(caption_json, "BLOCK_BYTES", 4096)
    found = staged("pieces")
    assert pq.ParquetFile(found.files[0]).num_row_groups > 3
    tables = [pq.read_table(each.files[0]) for each in (found, whole)]
    assert tables[0].replace_schema_metadata().equals(tables[1].replace_schema_metadata())
    assert tables[0]["url"].to_pylist() == [url for url, *_ in rows] and found.schema == whole.schema
    if ".txt" not in name:
        assert tables[0]["size"].to_pylist()[898:902] == [None, None, 225.0, 225.25]
    # Again it is known, and nothing is made; another content is another table.
    monkeypatch.setattr(staging.TextForm, "pieces", lambda *_: pytest.fail("it is made anew"))
    assert staged("pieces") == found
    monkeypatch.undo()
    data = data[: data.rindex(b"\n")]
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert staged("pieces").digests != found.digests
    if "gz" in name:
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(DatasetError, match=r"gz: cannot be read: "):
            staged("pieces")


def test_what_is_wrong_with_a_large_table_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "WHOLE", 100)
    monkeypatch.setattr(caption_csv, "BLOCK_BYTES", 1000)
    rows = "".join(f"http://a/{row}.jpg,caption {row}\n" for row in range(200))
    for data, said in (
        (f"url,caption\n{rows}http://a/x.jpg,one, two\n", "Expected 2 columns, got 3.*Captions with commas"),
        (f'url,caption\n{rows}http://a/x.jpg,"open\n', "a double quote is not closed"),
        (f"address,caption\n{rows}", "expected a column 'url'"),
        (rows, "Its first line has a URL: say what its columns are"),
        (f"url,url\n{rows}", "several columns are named 'url'"),
    ):
        (tmp_path / "urls.csv").write_text(data)
        with pytest.raises(DatasetError, match=said):
            find_table(tmp_path / "urls.csv", "url", [], Folder(str(tmp_path / "staged")))
    monkeypatch.setattr(caption_json, "BLOCK_BYTES", 1000)
    lines = "".join(f'{{"url": "http://a/{row}.jpg", "n": {row}}}\n' for row in range(200))
    for data, said in (
        (
            f'{lines}{{"url": "http://a/x.jpg", "n": "many"}}\n',
            "line 201: 'n' is text .*and a number in line 1",
        ),
        (f"{lines}\n[1]\n", "line 202: expected an object"),
        (f'{lines}{{"url": "{"x" * 3000}"}}\n', "line 201 has more than"),
        (lines.replace("url", "address"), "expected a column 'url'"),
    ):
        (tmp_path / "urls.jsonl").write_text(data)
        with pytest.raises(DatasetError, match=said):
            find_table(tmp_path / "urls.jsonl", "url", [], Folder(str(tmp_path / "staged")))
