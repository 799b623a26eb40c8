"""Which shard a partition comes from, and what was done to it.

The only module that reads Dask's expression tree. As long as every step keeps partitions apart (columns
selected, rows filtered, partitions picked, functions mapped), partition *i* is one range of one shard, its
output can be named after it, and its fingerprint does not depend on the other shards. After a shuffle, a
repartition or a reduction that no longer holds, and `trace` says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any, Protocol, runtime_checkable

from dask.dataframe.dask_expr import DataFrame, new_collection
from dask.dataframe.dask_expr._expr import (
    ArrowStringConversion,
    Assign,
    Blockwise,
    DropnaFrame,
    Expr,
    Filter,
    Isin,
    MapPartitions,
    Projection,
    _DelayedExpr,
)
from dask.dataframe.dask_expr._merge import BlockwiseMerge
from dask.dataframe.dask_expr.io import FromMap

from curator_dask.runs.graph import MapStep, steps_in
from curator_dask.runs.step import Step
from curator_dask.tokens import tokenize
from curator_dask.webdataset.shards import ShardRange

Read = Mapping[str, tuple[ShardRange, ...] | None]  # ranges, by the names of the roots that read them

# What describes the result or the selection of partitions, not what is done to a row.
_NOT_RECIPE = frozenset({"meta", "parent_meta", "user_meta", "_partitions", "label", "iterables", "token"})


@dataclass(frozen=True)
class Lineage:
    """Where a frame's partitions come from.

    Attributes
    ----------
    expr
        Dask's expression of the frame, as its optimizer leaves it, tasks not fused.
    ranges
        The shard range of each partition, or None where partitions were mixed.
    recipe
        Token of all steps, the same for the same steps on other shards.
    functions
        The functions mapped over the partitions, in the order they are applied.
    steps
        Those of them that are steps, and the steps of passes.
    derived
        Names of functions, and of Dask's own operations, that are done to rows after the first step: what they make
        of its columns is known to the frame alone.
    keeps_rows
        Every row of the ranges is still there: nothing filtered, and only steps and functions mapped that say so by
        an attribute ``keeps_rows``.
    is_mapped
        Nothing else is done to a range: `reader` reads it, and the `functions` are called with what the one before
        gave.
    reader
        What reads a range (called with one); None where `ranges` is.
    inputs
        All ranges that any partition may depend on; None if there is other input, of which nothing is known.
    """

    expr: Any
    ranges: tuple[ShardRange, ...] | None
    recipe: str
    functions: tuple[Any, ...]
    steps: tuple[Step, ...]
    derived: tuple[str, ...]
    keeps_rows: bool
    is_mapped: bool
    reader: Any
    inputs: tuple[ShardRange, ...] | None

    def leaves_alone(self, names: Collection[str], since: str = "read") -> bool:
        """Whether columns have the values, row by row, that they had when they were made.

        Known are steps, columns selected, rows filtered, and other columns assigned. All else may change values.

        Parameters
        ----------
        names
            Of the columns.
        since
            They were ``"read"``, or made by the first ``"step"``.
        """
        node = self.expr
        while not is_root(node):
            if since == "step" and not _has_step(node):
                return True
            is_step = isinstance(node, MapPartitions) and bool(steps_in([node.operand("func")]))
            other = isinstance(node, Assign) and not {*node.keys} & {*names}
            plain = isinstance(node, Projection | Filter | DropnaFrame | ArrowStringConversion)
            if not (is_step or other or plain):
                return False
            node = node.frame
        return True


def trace(frame: DataFrame) -> Lineage:
    """Read the lineage of a Dask DataFrame; no more is computed than Dask needs to plan (a sort's quantiles)."""
    expr = frame.optimize(fuse=False).expr
    nodes = list(expr.walk())
    functions = [node.operand("func") for node in nodes if "func" in node._parameters and not is_root(node)]
    roots = {node._name: node for node in nodes if is_root(node)}
    plain = (FromMap, MapPartitions, Projection, ArrowStringConversion)
    read = {name: _root_ranges(node) for name, node in roots.items()}
    ranges = _ranges(nodes, read)
    in_order = tuple(reversed({id(function): function for function in functions}.values()))
    return Lineage(
        expr=expr,
        ranges=ranges,
        recipe=_recipe(expr, {}),
        functions=in_order,
        steps=tuple(steps_in(in_order)),
        derived=_derived(nodes),
        keeps_rows=ranges is not None
        and all(isinstance(node, plain) for node in nodes)
        and all(isinstance(func, _KeepsRows) and func.keeps_rows for func in functions),
        is_mapped=ranges is not None
        and len({id(function) for function in functions}) == len(functions)  # `functions` has each once
        and all(_is_plain_root(node) if is_root(node) else _is_plain_map(node) for node in nodes),
        reader=None if ranges is None else next(iter(roots.values())).operand("func"),
        inputs=_inputs(nodes, read),
    )


@runtime_checkable
class _KeepsRows(Protocol):
    """A function of a frame that says whether it keeps all rows."""

    keeps_rows: bool


@runtime_checkable
class _HasRecipe(Protocol):
    """A function of a frame, or of an item, that says what of it decides the result."""

    @property
    def recipe(self) -> Any: ...


@runtime_checkable
class _HasRecipes(Protocol):
    """A function of a frame that does several steps."""

    @property
    def recipes(self) -> tuple[Any, ...]: ...


def _derived(nodes: list[Expr]) -> tuple[str, ...]:
    """What is done to the rows after the first step, other than by steps, from the first to the last."""
    names: list[str] = []
    for node in reversed(nodes):
        if not any(_has_step(each) for each in node.dependencies()):
            continue
        if isinstance(node, Assign):
            names += [f"{name} = …" for name in node.keys]
        elif isinstance(node, MapPartitions) and not steps_in([node.operand("func")]):
            function = node.operand("func")
            names.append(getattr(function, "__qualname__", type(function).__qualname__))
    return tuple(dict.fromkeys(names))


def _has_step(node: Expr) -> bool:
    return any(
        "func" in each._parameters and not is_root(each) and bool(steps_in([each.operand("func")]))
        for each in node.walk()
    )


def replace_functions(frame: DataFrame, change: Callable[[Any], Any]) -> DataFrame:
    """The frame with other functions mapped over its partitions.

    Parameters
    ----------
    frame
        Not computed.
    change
        From a mapped function to the one in its place, or to itself.
    """
    expr: Any = frame.expr
    functions = {
        id(node.operand("func")): node.operand("func")
        for node in expr.walk()
        if "func" in node._parameters and not is_root(node)
    }
    for function in functions.values():
        other = change(function)
        if other is not function:
            expr = expr.substitute(function, other)
    changed: DataFrame = new_collection(expr)
    return changed


def pieces(frame: DataFrame, size: int) -> Iterator[DataFrame]:
    """The frame as several of at most `size` neighbouring partitions each, without a trace of the others.

    A graph of 100,000 partitions takes a scheduler many seconds and hundreds of megabytes before its first task;
    each of these is as small as what it computes.

    Parameters
    ----------
    frame
        Not computed. One whose partitions are not each made of their own parts of what is read is left whole.
    size
        Partitions of a piece, at most.

    Yields
    ------
    Frames whose tasks are fused to one a partition; their partitions, one after the other, are those of `frame`.
    """
    expr: Any = frame.optimize(fuse=False).expr
    count = expr.npartitions
    nodes = {node._name: node for node in expr.walk()}
    many = [node for node in nodes.values() if not node.dependencies() and node.npartitions > 1]
    roots = {node._name: node for node in many if is_root(node) and node.npartitions == count}
    steps = [node for name, node in nodes.items() if name not in roots and node.npartitions > 1]
    apart = _is_apart(list(nodes.values())) and not any(knows_its_number(node) for node in steps)
    if count <= size or len(roots) < len(many) or not apart:
        yield frame.optimize()
        return
    # Of even sizes: Dask hands out few tasks in another way than many.
    number = -(-count // size)
    bounds = [count * each // number for each in range(number + 1)]
    for start, stop in itertools.pairwise(bounds):
        piece = expr
        for root in roots.values():
            piece = piece.substitute(root, cut(root, start, stop))
        yield new_collection(piece).optimize()


def knows_its_number(node: Expr) -> bool:
    """Whether the number of a partition may count, not only what it holds: a sample's seeds, ``partition_info``."""
    if getattr(node, "_has_partition_info", False):
        return True
    plain = (Blockwise._task, MapPartitions._task, BlockwiseMerge._task)
    return type(node)._task not in plain


def cut(root: Expr, start: int, stop: int) -> Expr:
    """What reads the partitions ``start:stop`` of those that `root` reads, without a trace of the others."""
    picked = root.operand("_partitions")
    numbers = range(start, stop) if picked is None else picked[start:stop]
    changed = {
        "iterables": [[each[number] for number in numbers] for each in root.operand("iterables")],
        "_partitions": None,
        "user_divisions": None,
    }
    values = zip(root._parameters, root.operands, strict=True)
    return type(root)(*(changed.get(name, value) for name, value in values))


def is_root(node: Any) -> bool:
    """Whether this is what reads shards, or other items."""
    return isinstance(node, FromMap)


def _is_plain_root(node: Expr) -> bool:
    """Whether its function is called with an item alone, and what that gives is taken as it is."""
    return not (node.operand("args") or node.operand("kwargs") or node.operand("enforce_metadata"))


def _is_plain_map(node: Expr) -> bool:
    """Whether its function is called with a partition alone, and what that gives is taken as it is."""
    return (
        type(node) in (MapPartitions, MapStep)
        and len(node.args) == 1
        and not (node.kwargs or node.enforce_metadata or node._has_partition_info)
    )


def _is_apart(nodes: list[Expr]) -> bool:
    """Whether no step mixes partitions."""
    # A delayed value (the list that `isin` looks in) is the same for all partitions.
    return all(isinstance(node, Blockwise | _DelayedExpr) for node in nodes)


def _ranges(nodes: list[Expr], read: Read) -> tuple[ShardRange, ...] | None:
    if len(read) != 1 or not _is_apart(nodes):
        return None
    ((root, ranges),) = read.items()
    # What is joined to it may come from elsewhere if it is one partition, which meets each of the shards'.
    leaves = [node for node in nodes if not node.dependencies() and not isinstance(node, _DelayedExpr)]
    if any(node._name != root and node.npartitions > 1 for node in leaves):
        return None
    # nodes[0] is the frame itself: a join may have more partitions than the shards it began with.
    return ranges if ranges is not None and len(ranges) == nodes[0].npartitions else None


def _root_ranges(root: Expr) -> tuple[ShardRange, ...] | None:
    (ranges, *others) = root.operand("iterables")
    if others or not all(isinstance(item, ShardRange) for item in ranges):
        return None
    picked = root.operand("_partitions")
    return tuple(ranges) if picked is None else tuple(ranges[number] for number in picked)


def _inputs(nodes: list[Expr], read: Read) -> tuple[ShardRange, ...] | None:
    found: dict[str, tuple[ShardRange, ...]] = {}
    for node in nodes:
        if node.dependencies() or isinstance(node, _DelayedExpr):
            continue
        ranges = read.get(node._name)
        if ranges is None:
            return None
        found[node._name] = ranges
    if len(found) == 1 and not any(node.operand("_partitions") for node in nodes if is_root(node)):
        return next(iter(found.values()))  # each is there once
    return tuple(dict.fromkeys(itertools.chain.from_iterable(found.values())))


def _recipe(node: Any, known: dict[str, str]) -> Any:
    """Token of what is done, without what it is done to; `known` has those of the nodes seen before.

    A callable object may say by a property ``recipe`` what of it decides the result.
    """
    if isinstance(node, FunctionType):
        return _function(node)
    if not isinstance(node, Expr):
        return node.recipe if callable(node) and isinstance(node, _HasRecipe) else node
    if node._name not in known:
        known[node._name] = tokenize(_steps(node, known))
    return known[node._name]


def _function(function: FunctionType) -> tuple[Any, ...]:
    """What a function does, by its code and not by where it stands: line numbers and comments do not count."""
    closure = tuple(tokenize(cell.cell_contents) for cell in function.__closure__ or ())
    defaults = tokenize(function.__defaults__, function.__kwdefaults__)
    return (
        "function",
        function.__module__,
        function.__qualname__,
        _code(function.__code__),
        defaults,
        *closure,
    )


def _code(code: CodeType) -> tuple[Any, ...]:
    constants = tuple(
        _code(value)
        if isinstance(value, CodeType)
        else sorted(map(repr, value))  # a set's order is another in each process
        if isinstance(value, frozenset)
        else repr(value)
        for value in code.co_consts
    )
    return (code.co_code, constants, code.co_names, code.co_varnames, code.co_freevars)


def _steps(node: Expr, known: dict[str, str]) -> tuple[Any, ...]:
    if is_root(node):
        return ("root", _recipe(node.operand("func"), known))
    if isinstance(node, Isin) and isinstance(node.operand("values"), _DelayedExpr):
        # Dask passes the list through a set, whose order is another in each process.
        looked_in = node.operand("values").obj.compute(scheduler="sync")
        return ("Isin", _recipe(node.operand("frame"), known), *sorted(map(repr, looked_in)))
    if isinstance(node, MapPartitions) and isinstance(node.operand("func"), _HasRecipes):
        return _unrolled(node, known)
    names = node._parameters
    # Operands beyond the named parameters are a variable number of further arguments.
    values = [
        _recipe(value, known)
        for position, value in enumerate(node.operands)
        if position >= len(names) or names[position] not in _NOT_RECIPE
    ]
    kind = MapPartitions if isinstance(node, MapStep) else type(node)
    return (kind.__name__, *values)


def _unrolled(node: Expr, known: dict[str, str]) -> tuple[Any, ...]:
    """What does several steps at once, by their recipes one after the other.

    So a finished file does not depend on which of them are done together.
    """
    names = node._parameters
    frame = _recipe(node.operand("frame"), known)
    steps: tuple[Any, ...] = ()
    for recipe in node.operand("func").recipes:
        values = {
            name: value for name, value in zip(names, node.operands, strict=False) if name not in _NOT_RECIPE
        }
        values |= {"frame": frame, "func": recipe}
        steps = ("MapPartitions", *values.values())
        frame = tokenize(steps)
    return steps
