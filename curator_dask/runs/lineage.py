"""Which shard a partition comes from, and what was done to it.

The only module that reads Dask's expression tree. As long as every step keeps partitions apart (columns
selected, rows filtered, partitions picked, functions mapped), partition *i* is one range of one shard, its
output can be named after it, and its fingerprint does not depend on the other shards. After a shuffle, a
repartition or a reduction that no longer holds, and `trace` says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

from dask.base import tokenize
from dask.dataframe.dask_expr import DataFrame, from_map, new_collection
from dask.dataframe.dask_expr._expr import (
    ArrowStringConversion,
    Blockwise,
    Expr,
    Isin,
    MapPartitions,
    Projection,
    _DelayedExpr,
)
from dask.dataframe.dask_expr._merge import BlockwiseMerge
from dask.dataframe.dask_expr.io import FromMap

from curator_dask.webdataset.shards import ShardRange

# What describes the result or the selection of partitions, not what is done to a row.
_NOT_RECIPE = frozenset({"meta", "parent_meta", "user_meta", "_partitions", "label", "iterables", "token"})


@dataclass(frozen=True)
class Lineage:
    """Where a frame's partitions come from.

    Attributes
    ----------
    ranges
        The shard range of each partition, or None where partitions were mixed.
    recipe
        Token of all steps, the same for the same steps on other shards.
    functions
        The functions mapped over the partitions, in the order they are applied.
    keeps_rows
        Every row of the ranges is still there: nothing filtered, and only functions mapped that say so by an
        attribute ``keeps_rows``.
    is_mapped
        Nothing else is done to a range: `reader` reads it, and the `functions` are called with what the one before
        gave.
    reader
        What reads a range (called with one); None where `ranges` is.
    inputs
        All ranges that any partition may depend on; None if there is other input, of which nothing is known.
    """

    ranges: tuple[ShardRange, ...] | None
    recipe: str
    functions: tuple[Any, ...]
    keeps_rows: bool
    is_mapped: bool
    reader: Any
    inputs: tuple[ShardRange, ...] | None


def map_items(function: Callable[[Any], Any], items: Sequence[Any], meta: Any, label: str) -> DataFrame:
    """`dask.dataframe.from_map` of a function that makes each column of the type that `meta` has.

    Dask adds a step that looks for text of other types than its own, and turns that into its own: it takes 0.2 to
    0.9 ms a partition, and is left out here.

    Parameters
    ----------
    function
        Makes a frame of an item.
    items
        One a partition.
    meta
        Empty frame.
    label
        Begins the names of the tasks.
    """
    frame = from_map(function, items, meta=meta, label=label, enforce_metadata=False)
    return new_collection(frame.expr.frame) if isinstance(frame.expr, ArrowStringConversion) else frame


def trace(frame: DataFrame) -> Lineage:
    """Read the lineage of a Dask DataFrame; no more is computed than Dask needs to plan (a sort's quantiles)."""
    expr = frame.optimize(fuse=False).expr
    nodes = list(expr.walk())
    functions = [node.operand("func") for node in nodes if "func" in node._parameters and not _is_root(node)]
    roots = {node._name: node for node in nodes if _is_root(node)}
    plain = all(
        isinstance(node, FromMap | MapPartitions | Projection | ArrowStringConversion) for node in nodes
    )
    ranges = _ranges(nodes, list(roots.values()))
    return Lineage(
        ranges=ranges,
        recipe=_recipe(expr, {}),
        functions=tuple(reversed({id(function): function for function in functions}.values())),
        keeps_rows=ranges is not None
        and plain
        and all(getattr(func, "keeps_rows", False) for func in functions),
        is_mapped=ranges is not None
        and len({id(function) for function in functions}) == len(functions)  # `functions` has each once
        and all(_is_plain_root(node) if _is_root(node) else _is_plain_map(node) for node in nodes),
        reader=None if ranges is None else next(iter(roots.values())).operand("func"),
        inputs=_inputs(nodes),
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
        if "func" in node._parameters and not _is_root(node)
    }
    for function in functions.values():
        other = change(function)
        if other is not function:
            expr = expr.substitute(function, other)
    return new_collection(expr)


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
    roots = {node._name: node for node in many if _is_root(node) and node.npartitions == count}
    steps = [node for name, node in nodes.items() if name not in roots and node.npartitions > 1]
    apart = _is_apart(list(nodes.values())) and not any(_knows_its_number(node) for node in steps)
    if count <= size or len(roots) < len(many) or not apart:
        yield frame.optimize()
        return
    # Of even sizes: Dask hands out few tasks in another way than many.
    number = -(-count // size)
    bounds = [count * each // number for each in range(number + 1)]
    for start, stop in itertools.pairwise(bounds):
        piece = expr
        for root in roots.values():
            piece = piece.substitute(root, _cut(root, start, stop))
        yield new_collection(piece).optimize()


def _knows_its_number(node: Expr) -> bool:
    """Whether the number of a partition may count, not only what it holds: a sample's seeds, ``partition_info``."""
    if getattr(node, "_has_partition_info", False):
        return True
    plain = (Blockwise._task, MapPartitions._task, BlockwiseMerge._task)
    return type(node)._task not in plain


def _cut(root: Expr, start: int, stop: int) -> Expr:
    picked = root.operand("_partitions")
    numbers = range(start, stop) if picked is None else picked[start:stop]
    changed = {
        "iterables": [[each[number] for number in numbers] for each in root.operand("iterables")],
        "_partitions": None,
        "user_divisions": None,
    }
    values = zip(root._parameters, root.operands, strict=True)
    return type(root)(*(changed.get(name, value) for name, value in values))


def _is_root(node: Expr) -> bool:
    return isinstance(node, FromMap)


def _is_plain_root(node: Expr) -> bool:
    """Whether its function is called with an item alone, and what that gives is taken as it is."""
    return not (node.operand("args") or node.operand("kwargs") or node.operand("enforce_metadata"))


def _is_plain_map(node: Expr) -> bool:
    """Whether its function is called with a partition alone, and what that gives is taken as it is."""
    return (
        type(node) is MapPartitions
        and len(node.args) == 1
        and not (node.kwargs or node.enforce_metadata or node._has_partition_info)
    )


def _is_apart(nodes: list[Expr]) -> bool:
    """Whether no step mixes partitions."""
    # A delayed value (the list that `isin` looks in) is the same for all partitions.
    return all(isinstance(node, Blockwise | _DelayedExpr) for node in nodes)


def _ranges(nodes: list[Expr], roots: list[Expr]) -> tuple[ShardRange, ...] | None:
    if len(roots) != 1 or not _is_apart(nodes):
        return None
    # What is joined to it may come from elsewhere if it is one partition, which meets each of the shards'.
    leaves = [node for node in nodes if not node.dependencies() and not isinstance(node, _DelayedExpr)]
    if any(node._name != roots[0]._name and node.npartitions > 1 for node in leaves):
        return None
    ranges = _root_ranges(roots[0])
    # nodes[0] is the frame itself: a join may have more partitions than the shards it began with.
    return ranges if ranges is not None and len(ranges) == nodes[0].npartitions else None


def _root_ranges(root: Expr) -> tuple[ShardRange, ...] | None:
    (ranges, *others) = root.operand("iterables")
    if others or not all(isinstance(item, ShardRange) for item in ranges):
        return None
    picked = root.operand("_partitions")
    return tuple(ranges) if picked is None else tuple(ranges[number] for number in picked)


def _inputs(nodes: list[Expr]) -> tuple[ShardRange, ...] | None:
    found: dict[ShardRange, None] = {}
    for node in nodes:
        if node.dependencies() or isinstance(node, _DelayedExpr):
            continue
        ranges = _root_ranges(node) if _is_root(node) else None
        if ranges is None:
            return None
        found.update(dict.fromkeys(ranges))
    return tuple(found)


def _recipe(node: Any, known: dict[str, str]) -> Any:
    """Token of what is done, without what it is done to; `known` has those of the nodes seen before.

    A callable object may say by a property ``recipe`` what of it decides the result.
    """
    if isinstance(node, FunctionType):
        return _function(node)
    if not isinstance(node, Expr):
        return node.recipe if callable(node) and hasattr(type(node), "recipe") else node
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
    if _is_root(node):
        return ("root", _recipe(node.operand("func"), known))
    if isinstance(node, Isin) and isinstance(node.operand("values"), _DelayedExpr):
        # Dask passes the list through a set, whose order is another in each process.
        looked_in = node.operand("values").obj.compute(scheduler="sync")
        return ("Isin", _recipe(node.operand("frame"), known), *sorted(map(repr, looked_in)))
    names = node._parameters
    # Operands beyond the named parameters are a variable number of further arguments.
    values = [
        _recipe(value, known)
        for position, value in enumerate(node.operands)
        if position >= len(names) or names[position] not in _NOT_RECIPE
    ]
    return (type(node).__name__, *values)
