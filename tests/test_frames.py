"""Vectors as columns, and Parquet files that are there whole or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curator_dask import backend
from curator_dask.errors import ConfigError, OutputError, ShardError
from curator_dask.fingerprint import code_digest, fingerprint, fingerprints
from curator_dask.frames.columns import (
    EMBEDDING_TYPE,
    list_to_matrix,
    to_array,
    unit,
    vectors_to_list,
    with_columns,
)
from curator_dask.frames.committing import Commits, host_name, machine_name, temporary_name
from curator_dask.frames.parquet import (
    conform,
    known_record,
    output_schema,
    read_record,
    remove_leftovers,
    state_of,
    without_leftovers,
    write_table,
)
from curator_dask.frames.record import METADATA_KEY, FileRecord
from curator_dask.outputs.placing import being_written


def matrix_of(rows, dim):
    return np.arange(rows * dim, dtype=np.float32).reshape(rows, dim) + 1


# Columns


@settings(max_examples=60, deadline=None)
@given(dim=st.integers(1, 5), valid=st.lists(st.booleans(), max_size=12))
def test_round_trip(dim, valid):
    matrix, valid = matrix_of(len(valid), dim), np.array(valid, bool)
    column = vectors_to_list(matrix, valid)
    assert column.type == EMBEDDING_TYPE
    assert column.to_pylist() == [
        row.tolist() if good else None for row, good in zip(matrix, valid, strict=True)
    ]
    back, good = list_to_matrix(column, dim)
    np.testing.assert_array_equal(back, np.where(valid[:, None], matrix, 0))
    np.testing.assert_array_equal(good, valid)
    assert back.dtype == np.float32 and back.shape == (len(valid), dim)


def test_nan_and_infinity_are_values_not_nulls():
    matrix = np.array([[np.nan, 1], [np.inf, -np.inf]], np.float32)
    column = vectors_to_list(matrix, np.ones(2, bool))
    assert column.null_count == 0 and column.flatten().null_count == 0
    np.testing.assert_array_equal(list_to_matrix(column)[0], matrix)


def test_valid_rows_are_not_copied():
    matrix = matrix_of(5, 3)
    column = vectors_to_list(matrix, np.ones(5, bool))
    assert column.values.buffers()[1].address == matrix.ctypes.data
    assert vectors_to_list(matrix, np.arange(5) > 0).values.buffers()[1].address != matrix.ctypes.data


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32])
def test_other_layouts_and_dtypes(order, dtype):
    matrix = np.asarray(matrix_of(3, 2), dtype=dtype, order=order)
    assert vectors_to_list(matrix, np.ones(3, bool)).to_pylist() == [[1, 2], [3, 4], [5, 6]]
    assert vectors_to_list(matrix[::2], np.ones(2, bool)).to_pylist() == [[1, 2], [5, 6]]


def test_more_values_than_a_list_column_holds():
    rows = 2**31 // 1024
    matrix = np.broadcast_to(np.float32(0), (rows, 1024))  # no memory behind it
    with pytest.raises(
        ConfigError, match=r"2097152 vectors of 1024 are 2147483648 values.*rows_per_partition"
    ):
        vectors_to_list(matrix, np.ones(rows, bool))


ROWS = [[1.0, 2.0], None, [3.0, 4.0]]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(ROWS, pa.list_(pa.float32())),
        pa.array(ROWS, pa.large_list(pa.float64())),
        pa.array(ROWS, pa.list_(pa.float32(), 2)),
        pa.chunked_array([ROWS[:1], [], ROWS[1:]], pa.list_(pa.float32(), 2)),
        pa.array([[9.0, 9.0], *ROWS], pa.list_(pa.float32()))[1:],
        pa.array([[9.0, 9.0], *ROWS], pa.list_(pa.float32(), 2))[1:],
        pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int64())),
        pd.Series(ROWS, dtype=pd.ArrowDtype(EMBEDDING_TYPE), index=[5, 5, 1]),
        pd.Series(ROWS, dtype=object),
    ],
    ids=["list", "large", "fixed", "chunks", "slice", "fixed slice", "int", "series", "objects"],
)
def test_list_to_matrix_of_every_kind(column):
    matrix, valid = list_to_matrix(column, 2)
    assert matrix.dtype == np.float32
    assert matrix.tolist() == [[1, 2], [0, 0], [3, 4]] and valid.tolist() == [True, False, True]
    assert list_to_matrix(column)[0].tolist() == matrix.tolist()


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("kind", [EMBEDDING_TYPE, pa.list_(pa.float32(), 4), pa.null()])
def test_columns_without_a_vector(rows, kind):
    column = pa.nulls(rows, kind)
    assert list_to_matrix(column, 4)[0].shape == (rows, 4)
    assert list_to_matrix(column)[0].shape == (rows, 0)
    assert not list_to_matrix(column)[1].any()


@pytest.mark.parametrize(
    ("column", "dim", "message"),
    [
        (pa.array([[1.0], [1.0, 2.0]]), None, r"one length, found lengths \[1, 2\]"),
        (pa.array([[1.0, 2.0], None]), 3, r"one length 3, found lengths \[2\]"),
        (pa.array(["a", None]), 3, "expected vectors, found string"),
        (pa.array([1.0, 2.0]), None, "expected vectors, found double"),
        (pa.array([{"a": 1}]), None, "expected vectors, found struct"),
    ],
)
def test_columns_that_are_no_vectors(column, dim, message):
    with pytest.raises(ValueError, match=message):
        list_to_matrix(column, dim)


def test_to_array_is_one_array():
    chunks = pa.chunked_array([["a"], ["b", None]])
    for column in (
        chunks,
        pd.Series(["a", "b", None]),
        pd.Series(chunks.to_pandas(), dtype="string[pyarrow]"),
    ):
        array = to_array(column)
        assert isinstance(array, pa.Array) and array.to_pylist() == ["a", "b", None]
    assert len(to_array(pa.chunked_array([], pa.string()))) == 0


def frame_of(device, index=None):
    table = pa.table({"key": ["a", "b", "c"], "old": [1, 2, 3], "z": [0.5, None, 1.5]})
    frame = backend.current().from_arrow(table)
    if index is not None:
        frame.index = index
    return frame


@pytest.mark.parametrize("index", [None, [7, 3, 5], [1, 1, 1], ["x", "y", "x"]], ids=str)
def test_with_columns(device, index):
    frame = frame_of(device, index)
    before = backend.frame_to_arrow(frame)
    vectors = vectors_to_list(matrix_of(3, 2), np.array([True, False, True]))
    out = with_columns(frame, {"old": pa.array(["p", None, "q"]), "vector": vectors})
    assert type(out) is type(frame)
    assert list(out.columns) == ["key", "z", "old", "vector"]
    assert to_array(out.index.to_series()).to_pylist() == to_array(frame.index.to_series()).to_pylist()
    table = backend.frame_to_arrow(out)
    assert table["vector"].to_pylist() == [[1, 2], None, [5, 6]]
    assert table["old"].to_pylist() == ["p", None, "q"]
    assert table.select(["key", "z"]).to_pydict() == before.select(["key", "z"]).to_pydict()
    assert backend.frame_to_arrow(frame).equals(before)  # what was given is as it was


def test_with_columns_of_no_rows(device):
    empty = {"vector": pa.array([], EMBEDDING_TYPE), "image_error": pa.array([], pa.string())}
    out = with_columns(frame_of(device).iloc[:0], empty)
    assert list(out.columns) == ["key", "old", "z", "vector", "image_error"] and len(out) == 0
    assert backend.frame_to_arrow(out).schema.field("vector").type == EMBEDDING_TYPE
    assert to_array(out["vector"]).type == EMBEDDING_TYPE


# One schema


def table_of(rows=3, dim=2, null=1):
    valid = np.arange(rows) != null
    return pa.table(
        {"key": [f"k{row}" for row in range(rows)], "vector": vectors_to_list(matrix_of(rows, dim), valid)}
    )


def test_output_schema(device):
    meta = backend.current().from_arrow(table_of().slice(0, 0))
    schema = output_schema(meta, {"vector": 7})
    assert schema.names == ["key", "vector"]
    assert schema.field("vector").type == pa.list_(pa.float32(), 7)
    assert output_schema(meta[["key"]], {"vector": 7}).names == ["key"]
    made = {"day": pa.date32(), "raw": pa.large_binary(), "text": pa.large_string(), "n": pa.int8()}
    more = with_columns(meta, {name: pa.array([], kind) for name, kind in made.items()})
    schema = output_schema(more, {"vector": 7}, made=made)
    assert schema.types[2:] == [pa.date32(), pa.large_binary(), pa.string(), pa.int8()]


SCHEMA = pa.schema([("vector", pa.list_(pa.float32(), 2)), ("key", pa.string()), ("width", pa.int32())])


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("null", [0, 2, None])
def test_conform(rows, null):
    table = table_of(rows, null=null).append_column("width", pa.array(range(rows), pa.int64()))
    out = conform(table.append_column("dropped", pa.nulls(rows)), SCHEMA, "00000")
    assert out.schema.equals(SCHEMA)
    assert out.to_pydict() == table.select(SCHEMA.names).to_pydict()
    assert conform(out, SCHEMA, "00000").equals(out)
    out.validate(full=True)


def test_conform_of_a_column_without_a_vector():
    table = table_of(3).set_column(1, "vector", pa.nulls(3)).append_column("width", pa.nulls(3))
    out = conform(table, SCHEMA, "00000")
    assert out["vector"].null_count == 3 and out["vector"].type == pa.list_(pa.float32(), 2)


@pytest.mark.parametrize(
    ("name", "values", "found"),
    [
        ("vector", pa.array([[1.0], [2.0]]), "lengths"),
        ("vector", pa.array([[1.0, 2.0], [2.0]]), "lengths"),
        ("vector", pa.array(["a", "b"]), "string"),
        ("vector", pa.array([["a", "b"], ["c", "d"]]), "list<"),
        ("width", pa.array(["a", "b"]), "string"),
        ("width", pa.array([2**40, 0]), "int64"),
        ("width", pa.array([[1], [2]]), "list<"),
        ("key", pa.array([b"\xff", b"a"]), "binary"),
        ("width", None, "missing"),
    ],
)
def test_what_does_not_conform_names_shard_and_column(name, values, found):
    columns = {"vector": pa.array([[1.0, 2.0]] * 2), "key": ["a", "b"], "width": [1, 2], name: values}
    table = pa.table({name: column for name, column in columns.items() if column is not None})
    with pytest.raises(ShardError, match=rf"^00042: column '{name}'.*{found}"):
        conform(table, SCHEMA, "00042")


# Whole, or not at all


@pytest.fixture
def good():
    return conform(table_of(200, 2, null=3).append_column("width", pa.array(range(200))), SCHEMA, "00000")


def test_written_file(tmp_path, good):
    path = tmp_path / "new" / "folder" / "00000.parquet"
    write_table(str(path), good, FileRecord("f", shard={"url": "ü"}))
    assert [item.name for item in path.parent.iterdir()] == ["00000.parquet"]
    table = pq.read_table(path)
    assert table.equals(good)
    table.validate(full=True)
    assert table["vector"].null_count == 1
    assert pd.read_parquet(path)["vector"].iloc[[2, 3]].map(lambda v: v is not None).tolist() == [True, False]
    meta = pq.read_metadata(path)
    chunks = [meta.row_group(0).column(number) for number in range(meta.num_columns)]
    assert {chunk.compression for chunk in chunks} == {"ZSTD"}
    dictionary = {chunk.path_in_schema: chunk.has_dictionary_page for chunk in chunks}
    assert dictionary["key"] and not dictionary["vector.list.element"]
    assert read_record(str(path)) == FileRecord("f", rows=200, shard={"url": "ü"})


def test_a_table_of_vectors_alone_and_one_without_rows(tmp_path, good):
    for number, table in enumerate((good.select(["vector"]), good.slice(0, 0))):
        path = tmp_path / f"{number}.parquet"
        write_table(str(path), table, FileRecord("f"))
        assert pq.read_table(path).equals(table)
        assert read_record(str(path)) == FileRecord("f", rows=len(table))


def test_other_metadata_of_the_table_is_kept(tmp_path, good):
    path = str(tmp_path / "a.parquet")
    write_table(
        path, good.replace_schema_metadata({b"theirs": b"1", METADATA_KEY: b"old"}), FileRecord("new")
    )
    stored = pq.read_metadata(path).metadata
    assert stored[b"theirs"] == b"1" and json.loads(stored[METADATA_KEY])["fingerprint"] == "new"


def test_a_record_is_looked_for_once_while_its_file_is_as_it_was(tmp_path, good):
    path = str(tmp_path / "a.parquet")
    looked = []

    def known():
        def find():
            looked.append(read_record(path))
            return looked[-1]

        return known_record(state_of(path), find)

    assert [known(), known()] == [None, None] and len(looked) == 2, "of no file nothing is known"
    write_table(path, good, FileRecord("1"))
    assert known().fingerprint == known().fingerprint == "1" and len(looked) == 3
    # One of the same size and time in its place.
    times = Path(path).stat()
    write_table(path, good, FileRecord("2"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert Path(path).stat().st_size == times.st_size
    assert known().fingerprint == known().fingerprint == "2" and len(looked) == 4


def test_rewriting_replaces_and_an_open_reader_keeps_the_old(tmp_path, good):
    path = tmp_path / "a.parquet"
    write_table(str(path), good, FileRecord("1"))
    with path.open("rb") as reader:
        write_table(str(path), good.slice(0, 5), FileRecord("2"))
        assert pq.read_table(reader).num_rows == 200
    assert pq.read_table(path).num_rows == 5 and read_record(str(path)) == FileRecord("2", rows=5)


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, good, monkeypatch):
    """Parquet files and tars: else a machine that loses its power has a file of the right name and no content."""
    synced, sync = [], os.fsync

    def watched(file):
        sync(file)
        state = os.fstat(file)
        synced.append((state.st_ino, state.st_size, path.exists()))

    monkeypatch.setattr(os, "fsync", watched)
    path = tmp_path / "a.parquet"
    write_table(str(path), good, FileRecord("f"))
    assert (path.stat().st_ino, path.stat().st_size, False) in synced
    path = tmp_path / "a.tar"
    with Commits() as commits, being_written(str(path), None, commits) as (file, _):
        os.write(file, bytes(5_000))
    assert (path.stat().st_ino, 5_000, False) in synced


def test_a_write_that_fails_half_way_keeps_the_old_file(tmp_path, good):
    """A full device, as the kernel tells of it: the process may not write files above 50 kB."""
    path = tmp_path / "a.parquet"
    write_table(str(path), good, FileRecord("1"))
    old = path.read_bytes()
    code = """
        import resource, signal, sys
        import numpy as np, pyarrow as pa
        from curator_dask.errors import OutputError
        from curator_dask.frames.parquet import write_table
        from curator_dask.frames.record import FileRecord
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that write() gives EFBIG, as it gives ENOSPC when full
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        noise = pa.table({"noise": np.random.default_rng(0).random(200_000)})
        for path in sys.argv[1:]:
            try:
                write_table(path, noise, FileRecord("2"))
            except OutputError as error:
                print(error)
    """
    paths = [str(path), str(tmp_path / "b.parquet")]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *paths],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    lines = done.stdout.splitlines()
    assert [line.split(": could not be written: File too large")[0] for line in lines] == paths
    assert path.read_bytes() == old
    assert [item.name for item in tmp_path.iterdir()] == ["a.parquet"]


def test_what_arrow_refuses_leaves_nothing(tmp_path):
    union = pa.table({"a": pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])])})
    with pytest.raises(OutputError, match=r"a\.parquet: could not be written"):
        write_table(str(tmp_path / "a.parquet"), union, FileRecord("f"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("obstacle", ["a file for a folder", "a folder for a file", "a long name"])
def test_places_that_cannot_be_written(tmp_path, good, obstacle):
    (tmp_path / "taken").write_text("here")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    path = {
        "a file for a folder": tmp_path / "taken" / "a.parquet",
        "a folder for a file": tmp_path / "folder",
        "a long name": tmp_path / ("n" * 240 + ".parquet"),
    }[obstacle]
    with pytest.raises(OutputError, match=r"could not be written: .*run again"):
        write_table(str(path), good, FileRecord("f"))
    assert sorted(item.name for item in tmp_path.rglob("*")) == ["folder", "inside", "taken"]


def test_the_record_of_what_is_not_ours(tmp_path, good):
    def written(name, data):
        (tmp_path / name).write_bytes(data)
        return str(tmp_path / name)

    whole = tmp_path / "whole.parquet"
    write_table(str(whole), good, FileRecord("1"))
    foreign = tmp_path / "foreign.parquet"
    pq.write_table(good, foreign)
    assert read_record(str(whole)) == FileRecord("1", rows=200)
    others = [
        str(tmp_path / "missing.parquet"),
        str(tmp_path),
        str(foreign),
        written("empty.parquet", b""),
        written("text.parquet", b"no Parquet at all, but long enough to look"),
        written("cut.parquet", whole.read_bytes()[:-20]),
        written("end.parquet", b"PAR1" + os.urandom(64) + b"\x30\x00\x00\x00PAR1"),
    ]
    for number, stored in enumerate((b"{", b"\xff\xfe", b"[1]", b"null", b'"text"', b"")):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(good.replace_schema_metadata({METADATA_KEY: stored}), path)
        others.append(str(path))
    assert {path: read_record(path) for path in others} == dict.fromkeys(others)


def test_leftovers(tmp_path, good):
    """Those of processes of this machine that are gone; nothing else."""
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    pid, me, host = int(gone.stdout), os.getpid(), machine_name()
    mine = temporary_name("00000.parquet")
    theirs = [f".00000.parquet.{host}-{pid}-0123abcd.tmp", f"deep/.a.b.parquet.{host}-{pid}-0123abcd.tmp"]
    kept = [
        mine,
        "00000.parquet",
        ".hidden.tmp",
        "00000.parquet.tmp",
        f".00000.parquet.elsewhere-{pid}-0123abcd.tmp",
        f".00000.parquet.{host_name()}-{pid}-0123abcd.tmp",  # of an earlier version, or a machine of the same name
        f".00000.parquet.{host_name()}.0123abcd-{pid}-0123abcd.tmp",
        f".00000.parquet.{host}-{pid}-0123abcd.tmp.keep",
        f".00000.csv.{host}-{pid}-0123abcd.tmp",
    ]
    boot = Path("/proc/sys/kernel/random/boot_id")
    assert not boot.exists() or boot.read_text()[:8] in mine  # a name alone may be that of several machines
    assert f"-{me}-" in mine and mine != temporary_name("00000.parquet")
    (tmp_path / "deep").mkdir()
    for name in [*theirs, *kept]:
        (tmp_path / name).write_bytes(b"x")
    assert remove_leftovers(str(tmp_path)) == 2
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)
    assert remove_leftovers(str(tmp_path)) == 0
    assert remove_leftovers(str(tmp_path / "missing")) == 0
    # What has not been written to for a day is left there, on whichever machine; but no file of a process that lives.
    for name in kept:
        os.utime(tmp_path / name, (time.time() - 90_000,) * 2)
    gone = kept[4:7]
    assert remove_leftovers(str(tmp_path)) == len(gone) > 0
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {*kept}.difference(gone)


def test_a_killed_writer_leaves_only_what_is_removed(tmp_path, good):
    """SIGXFSZ, not ignored, ends the process in the middle of the write."""
    code = (
        "import resource, sys, numpy as np, pyarrow as pa\n"
        "from curator_dask.frames.parquet import write_table\n"
        "from curator_dask.frames.record import FileRecord\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"  # Python ignores it
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "write_table(sys.argv[1], pa.table({'noise': np.random.default_rng(0).random(200_000)}), FileRecord('f'))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", code, str(tmp_path / "a.parquet")]
    with pytest.raises(KeyError), without_leftovers(str(tmp_path)):
        assert subprocess.run(command, env=env, check=False).returncode < 0, "the writer was to be killed"
        (left,) = tmp_path.iterdir()
        assert left.name.startswith(".a.parquet.") and left.name.endswith(".tmp")
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_fingerprint():
    parts = {"a": 1, "b": {"c": [1, 2], "d": None}, "ü": "é"}
    turned = {"ü": "é", "b": {"d": None, "c": [1, 2]}, "a": 1}
    assert fingerprint(parts) == fingerprint(turned)
    assert len(fingerprint(parts)) == 64 and int(fingerprint(parts), 16)
    others = [{}, {**parts, "a": 2}, {**parts, "a": "1"}, {**parts, "b": {"c": [2, 1], "d": None}}, {"a": 1}]
    assert len({fingerprint(other) for other in [parts, *others]}) == 1 + len(others)


@pytest.mark.parametrize(
    "common", [{}, {"a": 1}, {"z": [1]}, {"a": {"n": "\u00fc", "b": 2}, "z": None, "sh": "x", "\u00fc": 1}]
)
def test_fingerprints_are_those_made_one_by_one(common):
    values = [{"url": "a\u00fc\udce9", "rows": [0, None], "b": 1}, None, "x", 3, {}]
    found = fingerprints(common, "shard", values)
    assert found == [fingerprint({**common, "shard": value}) for value in values]
    assert fingerprints(common, "shard", []) == []


NOTEBOOK = """
LEAST = 3
def make(least):
    class Stage:
        def process(self, task):
            {comment}
            return [each for each in task if each {sign} least]
    return Stage
"""


def notebook_class(least=1, sign=">", comment="pass"):
    """A class whose source nobody can read, as of a cell of a notebook."""
    names: dict = {"__name__": "__main__"}
    exec(NOTEBOOK.format(sign=sign, comment=comment), names)
    return names["make"](least)


class Settings:
    def __init__(self, **values):
        self.__dict__.update(values)


def test_what_a_digest_of_code_sees():
    def of(settings=None, **changes):
        return code_digest(settings, [notebook_class(**changes)])

    assert of() == of() and len({of(), of(least=2), of(sign="<")}) == 3
    same = [{"a": 1, "b": {2, 3}}, {"b": {3, 2}, "a": 1}]
    assert of(same[0]) == of(same[1]) != of({"a": 1, "b": {2}})
    assert of(Settings(x=np.arange(3))) == of(Settings(x=np.arange(3))) != of(Settings(x=np.arange(4)))
    assert of(lambda: 1) != of(lambda: 2)
    around = Settings()
    around.me = around
    assert of(around) == of(around)


def test_a_digest_of_code_is_the_same_in_every_process():
    """Also of what the main script defines, which Dask tells apart from itself."""
    code = (
        "from curator_dask.fingerprint import code_digest\n"
        "class Bound:\n    def __init__(self, least): self.least = least\n"
        "class Stage:\n    def process(self, task): return task\n"
        "print(code_digest({'bound': Bound(3), 'names': {'a', 'b', 'c'}, 'kind': Bound}, [Stage]))"
    )
    found = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in "ab"
    }
    assert len(found) == 1 and len(found.pop().strip()) == 12


def test_unit_vectors_of_any_size():
    """As by NumPy in float64; those whose squares float32 holds have the bits that they had."""
    rng = np.random.default_rng(0)
    plain = rng.normal(size=(50, 37)).astype(np.float32)
    vectors = np.concatenate([plain * np.float32(10.0**power) for power in range(-40, 38, 3)])
    vectors = np.concatenate([vectors, np.zeros((1, 37), np.float32)])
    exact = vectors.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    np.testing.assert_allclose(unit(vectors), exact / np.where(lengths > 0, lengths, 1), rtol=1e-6)
    ordinary = plain / np.linalg.norm(plain, axis=1, keepdims=True)
    beside = np.concatenate([plain, np.full((1, 37), 1e38, np.float32)])
    assert np.array_equal(unit(plain), ordinary) and np.array_equal(unit(beside)[:-1], ordinary)
    odd = np.array([[np.inf, 1, 0], [np.nan, 1, 0]], np.float32)
    assert not np.isfinite(unit(odd)).all(axis=1).any()


def test_files_that_are_synced_together_are_there_at_the_end_and_the_others_leave_nothing(tmp_path):
    table = pa.table({"a": [1, 2]})
    (tmp_path / "taken.parquet" / "a folder").mkdir(parents=True)
    with pytest.raises(OSError), Commits() as commits:
        for name in ("taken", "new/first", "second"):
            write_table(str(tmp_path / f"{name}.parquet"), table, FileRecord("f"), commits=commits)
    for name in ("new/first", "second"):
        assert read_record(str(tmp_path / f"{name}.parquet")) == FileRecord("f", rows=2)
    assert not [*tmp_path.rglob(".*")]
