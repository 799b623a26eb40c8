"""Every Arrow type is held as one that cuDF has, and comes back from it as it was."""

from __future__ import annotations

import datetime
import importlib
import mmap
import uuid
from decimal import Decimal

import pyarrow as pa
import pytest

from curator_dask.errors import ShardError
from curator_dask.frames.parquet import conform
from curator_dask.holding import (
    held_table,
    held_type,
    hold,
    restore,
    with_nested_type,
    with_nested_types,
)

DAYS, TIMES = [datetime.date(2024, 2, 3), None, datetime.date(1960, 1, 1)], [datetime.time(3, 4, 5), None]
BYTES, TEXTS, UUIDS = [b"\xff\0", None, b""], ["a", None, ""], [uuid.UUID(int=5).bytes, None]
VECTORS, PAIRS = [[1.0, None], None, [2.0, 3.0]], [[("a", 1)], None, [("b", None), ("c", 2)], []]

COLUMNS = [
    pa.array([True, None, False]),
    pa.array([2**64 - 1, None, 0], pa.uint64()),
    pa.array([1.5, None, -2.0], pa.float16()),
    *(pa.array(TEXTS, kind) for kind in (pa.string(), pa.large_string(), pa.string_view())),
    *(pa.array(BYTES, kind) for kind in (pa.binary(), pa.large_binary(), pa.binary_view())),
    pa.array([b"\xff\0", None], pa.binary(2)),
    pa.ExtensionArray.from_storage(pa.uuid(), pa.array(UUIDS, pa.binary(16))),
    pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": 1}', None])),
    *(pa.array([*VECTORS, []], kind) for kind in (pa.list_(pa.float32()), pa.large_list(pa.float64()))),
    pa.array(VECTORS, pa.list_(pa.float32(), 2)),
    pa.array([[[b"a", None], None], None, []], pa.list_(pa.list_(pa.binary(), 2))),
    pa.array(
        [{"a": [1.0, 2.0], "b": None}, None, {"a": None, "b": b"x"}],
        pa.struct([("a", pa.list_(pa.float32(), 2)), ("b", pa.binary())]),
    ),
    *(pa.array(PAIRS, pa.map_(pa.string(), kind)) for kind in (pa.int8(), pa.decimal256(50, 2))),
    *(pa.array(DAYS, kind) for kind in (pa.date32(), pa.date64())),
    pa.array([DAYS, None, []], pa.list_(pa.date32())),
    *(pa.array(TIMES, kind) for kind in (pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns"))),
    pa.array([1, None], pa.timestamp("us", "UTC")),
    pa.array([1, None], pa.duration("us")),
    *(
        pa.array([Decimal("1.25"), None, Decimal("-2.00")], kind(9, 2))
        for kind in (pa.decimal128, pa.decimal256)
    ),
    pa.array(["a", None, "b"]).dictionary_encode(),
    pa.array([7, None, 7]).dictionary_encode(),
    pa.array([["a"], None, ["a", "b"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
]
every_column = pytest.mark.parametrize("column", COLUMNS, ids=lambda column: str(column.type))


@every_column
def test_what_is_held_comes_back(column):
    for part in (column, column[1:], column[:0], pa.nulls(2, column.type)):
        held = hold(part)
        held.validate(full=True)
        assert held.type == held_type(column.type) and len(held) == len(part)
        back = restore(held, column.type)
        assert back.type == column.type and back.to_pylist() == part.to_pylist()
        assert held.is_null().equals(part.is_null())


def test_values_as_they_are_held():
    assert hold(pa.array(BYTES)).to_pylist() == [[255, 0], None, []]
    assert hold(pa.array(TIMES, pa.time32("s"))).to_pylist() == [3 * 3600 + 4 * 60 + 5, None]
    assert hold(pa.array(PAIRS[:2], pa.map_(pa.string(), pa.int8()))).to_pylist() == [
        [{"key": "a", "value": 1}],
        None,
    ]
    vectors = pa.array(VECTORS, pa.list_(pa.float32()))
    assert hold(vectors) is vectors  # nothing is copied where nothing is to be done


def test_more_bytes_than_lists_of_cudf_hold():
    """No memory is behind the bytes: they are not looked at."""
    places = pa.array([0, 1 << 30, 1 << 31], pa.int64()).buffers()[1]
    images = pa.Array.from_buffers(pa.large_binary(), 2, [None, places, pa.py_buffer(mmap.mmap(-1, 1 << 31))])
    with pytest.raises(ShardError, match=r"2 rows have 2147483648 bytes .* at most 2147483647: use smaller"):
        hold(images)


def test_a_held_table_conforms_to_the_schema_that_was_read():
    kinds = pa.schema(
        [("day", pa.date32()), ("raw", pa.large_binary()), ("vector", pa.list_(pa.float32(), 2))]
    )
    table = pa.table([pa.chunked_array([DAYS[:1], DAYS[1:]]), BYTES, VECTORS], schema=kinds)
    held = held_table(table)
    assert held.schema.types == [pa.timestamp("s"), pa.list_(pa.uint8()), pa.list_(pa.float32())]
    assert conform(held, kinds, "00000").equals(table)


@pytest.mark.parametrize("given", [pa.nulls(2), pa.array([[], None], pa.list_(pa.null()))], ids=str)
def test_types_that_a_column_without_a_value_forgets(given):
    """cuDF 26.10.2: ``to_arrow`` of an empty or all-null list column says null."""
    kind = pa.list_(pa.float32())
    table = with_nested_types(pa.table({"key": ["a", "b"], "vector": given}), [None, kind])
    assert table.schema.types == [pa.string(), kind]
    assert table["vector"].to_pylist() == given.to_pylist()
    assert with_nested_type(given, kind).equals(table["vector"].chunk(0))
    nested = pa.table({"s": pa.array([{"a": None}], pa.struct([("a", pa.null())]))})
    assert (
        with_nested_types(nested, [pa.struct([("a", kind)])]).schema.field("s").type.field("a").type == kind
    )


@every_column
def test_cudf_knows_every_type_as_which_a_column_is_held(column):
    """Its own tables of types, which it has without a GPU."""
    types = pytest.importorskip("cudf.utils.dtypes")
    kind = types.cudf_dtype_from_pa_type(held_type(column.type))
    back = kind.to_arrow() if hasattr(kind, "to_arrow") else types.cudf_dtype_to_pa_type(kind)
    assert back == held_type(column.type)
    forget = importlib.import_module("cudf.core.column.column")._handle_nulls  # as `to_arrow` does at its end
    for part in (column, column.slice(0, 0), pa.nulls(2, column.type)):
        assert with_nested_type(forget(hold(part)), back).equals(hold(part))
