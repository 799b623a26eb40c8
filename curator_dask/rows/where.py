"""A condition on rows in the words of SQL's WHERE, evaluated by DuckDB.

Null never passes, as in SQL. Nor does NaN, in a column or computed, which DuckDB takes for larger than every number (as
Polars does; pandas and pyarrow do not, and on a Parquet file DuckDB's own answer depends on the statistics of its row
groups): it counts as null.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curator_dask.errors import ConfigError, NoColumnError
from curator_dask.words import meant

_CHANGES = frozenset(
    {"random", "uuid", "gen_random_uuid", "uuidv4", "uuidv7", "nextval", "setseed"}
    | {"now", "today", "transaction_timestamp", "txid_current", "get_current_time", "get_current_timestamp"}
)
#: The same without brackets, unless they are columns.
_CLOCKS = frozenset(
    {"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"}
    | {"current_localtime", "current_localtimestamp"}
)
_MANY = frozenset({"unnest", "unlist", "generate_subscripts"})
#: Besides comparisons, what asks whether its parts are something.
_ASKING = frozenset(
    {"COMPARE_IN", "COMPARE_NOT_IN", "OPERATOR_IS_NULL", "OPERATOR_IS_NOT_NULL", "OPERATOR_NOT"}
)
_BOOLEAN = re.compile(r'"(bool|boolean|logical)"', re.IGNORECASE)
_TABLE = "rows"
_SELECT = f"SELECT * FROM {_TABLE} WHERE "
_PARSE = "SELECT json_serialize_sql(?)"
_local = threading.local()


@dataclass(frozen=True)
class Where:
    """A condition on the columns of one row.

    Attributes
    ----------
    text
        Such as ``"aesthetic_score > 5.5 and width >= 256"``. What looks at other rows (subqueries, aggregates) is
        refused, for it would see those of its own partition; so is what changes from call to call.

    Raises
    ------
    ConfigError
        This is no such condition.
    """

    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text.strip():
            raise ConfigError(f"where={self.text!r}: expected a condition, such as 'width >= 256'")
        try:
            nodes = list(_nodes(self._tree))
        except RecursionError:
            raise ConfigError(
                f"where={self.text[:60]!r}...: is nested too deeply. x in (1, 2, 3) takes as many values as you like"
            ) from None
        for node in nodes:
            kind, function = str(node.get("class")), str(node.get("function_name")).lower()
            if kind in ("SUBQUERY", "WINDOW"):
                raise ConfigError(
                    f"where={self.text!r}: a condition is on one row, and this has a {kind.lower()}: it would see the"
                    " rows of its own partition alone"
                )
            if kind == "STAR":
                raise ConfigError(f"where={self.text!r}: name the columns, instead of *")
            if kind == "FUNCTION" and function in _CHANGES:
                self._refuse_change(f"{function}()")
            if kind == "FUNCTION" and function in _MANY:
                raise ConfigError(f"where={self.text!r}: {function}() makes several rows of one")

    def _refuse_change(self, what: str) -> None:
        raise ConfigError(
            f"where={self.text!r}: {what} gives something else each time, and a run that is started again would keep"
            " other rows"
        )

    @cached_property
    def clauses(self) -> tuple[str, ...]:
        """The conditions that all must hold, as they are written; one, where it is no chain of ANDs."""
        where = self._tree
        if where.get("type") != "CONJUNCTION_AND":
            return (self.text.strip(),)
        return tuple(self._written(child) for child in where["children"])

    def _written(self, where: Mapping[str, Any]) -> str:
        """A part of the condition as text again."""
        written = _as_text(where)
        return written.removeprefix("(").removesuffix(")") if written.startswith("(") else written

    def columns(self, names: Sequence[str]) -> list[str]:
        """Which of the columns it names.

        DuckDB does not tell upper from lower case: of columns that differ in nothing else, the one spelled alike.
        """
        spelled = self._named
        named = {part.lower() for part in spelled}
        exact = {name.lower() for name in names if name in spelled}
        return [
            name for name in names if name.lower() in named and (name in spelled or name.lower() not in exact)
        ]

    @cached_property
    def _named(self) -> frozenset[str]:
        """Parts of the names of columns and their fields, as they are written."""
        nodes = [node for node in _nodes(self._tree) if "column_names" in node]
        return frozenset(str(part) for node in nodes for part in node["column_names"])

    def _told(self, error: Exception, columns: Sequence[str]) -> ConfigError:
        """What DuckDB says of the condition, in words that know the rows' columns."""
        unknown = re.search(r'Referenced column "(.+?)" not found', str(error))
        if unknown is None:
            reason = str(error).partition("\n\nLINE")[0].replace("\n", " ")
            return ConfigError(
                f"where={self.text!r} cannot be asked of these rows: {reason}. Their columns are {list(columns)}"
            )
        return NoColumnError(
            f"where={self.text!r}: there is no column {unknown[1]!r}{meant(unknown[1], columns)}. The rows have"
            f" {list(columns)}. (Text stands in single quotes: format = 'JPEG')"
        )

    def values(self, table: pa.Table, columns: Sequence[str] | None = None) -> pa.ChunkedArray:
        """What the expression gives for each row, of whatever type; `passes` says what the parameters are."""
        wanted = self.columns(table.column_names)
        if twins := [name for name in wanted if [each.lower() for each in wanted].count(name.lower()) > 1]:
            raise ConfigError(
                f"where={self.text!r}: the columns {twins} differ in upper and lower case at most, which a condition"
                " does not tell apart: rename one"
            )
        lower = {name.lower() for name in table.column_names}
        for clock in sorted({part.lower() for part in self._named} & _CLOCKS - lower):
            self._refuse_change(clock)
        seen = pa.table(
            {name: _without_nan(table.column(name)) for name in wanted} or {"": pa.nulls(len(table))}
        )
        connection = _connection()
        query = f"SELECT ({_guarded(self, seen.schema)}\n) AS passes FROM {_TABLE}"
        try:
            connection.register(_TABLE, seen)
            return connection.sql(query).to_arrow_table().column("passes")
        except Exception as error:  # DuckDB's own, of many types
            raise self._told(error, table.column_names if columns is None else columns) from None
        finally:
            connection.unregister(_TABLE)

    def passes(self, table: pa.Table, columns: Sequence[str] | None = None) -> np.ndarray:
        """Whether each row passes.

        Parameters
        ----------
        table
            With the columns that the condition names.
        columns
            All that the rows have, for an error; None: the table's.

        Returns
        -------
        numpy.ndarray
            int8 (rows,): 1 passes, 0 does not, -1 where it depends on a null or NaN.

        Raises
        ------
        ConfigError
            It does not fit the table's columns.
        """
        found = self.values(table, columns)
        if not (pa.types.is_boolean(found.type) or pa.types.is_null(found.type)):
            raise ConfigError(
                f"where={self.text!r}: expected a condition, found {found.type}: compare it, as in 'width >= 256' (in a"
                " shell all of it stands in quotes)"
            )
        if len(found) != len(table):
            raise ConfigError(
                f"where={self.text!r}: a condition is on one row, and this has an answer for all of them together"
            )
        return np.asarray(pc.fill_null(pc.cast(found, pa.int8()), -1))

    @cached_property
    def _parsed(self) -> str:
        (parsed,) = _asked(_PARSE, _SELECT + self.text)
        return str(parsed)

    @cached_property
    def _tree(self) -> Mapping[str, Any]:
        """The condition as DuckDB's parser understands it."""
        said = json.loads(self._parsed)
        if said.get("error"):
            raise ConfigError(
                f"where={self.text!r}: no condition of SQL's WHERE: {said.get('error_message')}. A column's name with"
                ' other signs than letters, digits and _ stands in double quotes: "my column" > 1'
            )
        statements = said["statements"]
        node = statements[0]["node"] if len(statements) == 1 else {}
        others = {"group_expressions", "having", "qualify", "modifiers"}
        if node.get("type") != "SELECT_NODE" or any(node.get(name) for name in others):
            raise ConfigError(f"where={self.text!r}: expected one condition, and nothing behind it")
        tree: Mapping[str, Any] = node["where_clause"]
        return tree


@functools.lru_cache(maxsize=64)
def _guarded(where: Where, schema: pa.Schema) -> str:
    """The condition, NaN that it computes on rows of these types being null where it is compared."""
    tree = {"": copy.deepcopy(dict(where._tree))}
    changed = False
    for holder, place in _compared(tree):
        text = _as_text(holder[place])
        if _is_floating(text, schema):
            holder[place] = dict(Where(f"nullif({text}, 'nan'::DOUBLE)")._tree)
            changed = True
    return _as_text(tree[""]) if changed else where.text


def _compared(tree: Any) -> Iterator[tuple[Any, Any]]:
    """What is compared, or taken for true or false, and may be NaN: by what holds it and where, the innermost first."""
    for each in tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, list) else ():
        yield from _compared(each)
    if not isinstance(tree, Mapping):
        return
    places: list[tuple[Any, Any]] = []
    if tree.get("class") in ("COMPARISON", "BETWEEN"):
        places = [(tree, name) for name in ("left", "right", "input", "lower", "upper") if name in tree]
    elif tree.get("class") == "CASE":
        places = [(each, "when_expr") for each in tree["case_checks"]]
    elif tree.get("class") == "CAST" and _BOOLEAN.search(
        json.dumps(tree.get("type_expr", tree.get("cast_type")))
    ):
        places = [(tree, "child")]
    elif str(tree.get("function_name")).lower() == "if":  # its arguments have names since DuckDB 2
        places = [(tree["arguments"][0], "expression") if "arguments" in tree else (tree["children"], 0)]
    elif tree.get("class") == "CONJUNCTION" or tree.get("type") in _ASKING:
        places = [(tree["children"], number) for number in range(len(tree["children"]))]
    for holder, place in places:
        kind, names = holder[place].get("class"), holder[place].get("column_names", ())
        if kind != "CONSTANT" and not (
            kind == "COLUMN_REF" and len(names) == 1
        ):  # a column has no NaN any more
            yield holder, place


def _is_floating(text: str, schema: pa.Schema) -> bool:
    connection = _connection()
    try:
        connection.register(_TABLE, schema.empty_table())
        (kind,) = connection.sql(f"SELECT {text} AS value FROM {_TABLE}").to_arrow_table().schema.types
    except Exception:  # what is wrong with it is told when it is asked of the rows
        return False
    finally:
        connection.unregister(_TABLE)
    return bool(pa.types.is_floating(kind))


def _as_text(where: Mapping[str, Any]) -> str:
    """A condition, or a part of one, as DuckDB writes it."""
    statement = json.loads(_asked(_PARSE, _SELECT + "true")[0])
    statement["statements"][0]["node"]["where_clause"] = where
    (text,) = _asked("SELECT json_deserialize_sql(?::JSON)", json.dumps(statement))
    written: str = text.partition(" WHERE ")[2]
    return written


def _nodes(tree: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(tree, Mapping):
        yield tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for each in tree:
            yield from _nodes(each)


def _asked(query: str, value: str) -> Any:
    """The one row that is the answer. All rows are fetched: a result with more to fetch keeps its connection busy."""
    return _connection().execute(query, [value]).fetchall()[0]


def _without_nan(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pa.types.is_floating(column.type):
        return column
    if pa.types.is_float16(column.type):  # DuckDB has none
        column = column.cast(pa.float32())
    return pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)


def _connection() -> Any:
    """One of this thread's own, that reads nothing but what is registered."""
    if not hasattr(_local, "connection"):
        import duckdb

        _local.connection = duckdb.connect(config={"enable_external_access": "false", "threads": 1})
        with contextlib.suppress(duckdb.CatalogException):  # before DuckDB 2 it gives null without being told
            _local.connection.execute("SET error_on_division_by_zero = false")
    return _local.connection
