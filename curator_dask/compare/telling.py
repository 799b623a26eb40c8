"""A comparison as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from curator_dask.compare.columns import ColumnDifference
from curator_dask.compare.figures import Compared, Distance, Figures, Near
from curator_dask.words import counted, printable

_VALUE, _COLUMNS = 24, 40  # characters of a value, and columns, that are shown


def told(found: Figures) -> list[str]:
    """Lines for a terminal."""
    lines = [*_side("A", found.a), *_side("B", found.b)]
    of = f", of {found.model}" if found.model else ""
    lines.append(f"   {found.column}, {found.dim} values{of}")
    lines += [f"   NOTE {each}" for each in found.notes]
    lines += ["", *_distances(found), "", *_nearest(found)]
    lines += _columns(found)
    lines += ["", f"{found.seconds:.1f} s, seed {found.seed}."]
    return [printable(line) for line in lines]


def _side(name: str, side: Compared) -> list[str]:
    aside = "".join(f", {count:,} {fault}" for fault, count in side.aside.items())
    return [
        f"{name}  {side.path}: {counted(side.rows, 'row')} in {counted(side.files, 'file')},"
        f" {counted(side.vectors, 'vector')}{aside}; {side.failed:,} failed"
    ]


def _distances(found: Figures) -> list[str]:
    grid = [["vectors", "A to B", "A to A", "B to B", "rows of each", "A to B, all"]]
    for name, distance in (("Fréchet distance", found.frechet), ("CMMD", found.cmmd)):
        grid.append([name, *_figures(distance), f"{distance.rows:,}", _figure(distance.all)])
    shared = found.neighbours
    if shared is not None:
        for name in ("precision", "recall", "density", "coverage"):
            three = [f"{getattr(each, name):.3f}" for each in (shared.a_b, shared.a_a, shared.b_b)]
            grid.append([name, *three, f"{shared.rows:,}", ""])
    lines = _aligned(grid)
    lines += [
        "A to A and B to B are two random parts of one output: what is as small as these, or as near to 1, is no",
        "difference. Both distances are larger of few rows.",
    ]
    if found.frechet.rows > found.dim:
        lines[-1] += f" Of ever more, the Fréchet distance would be about {_figure(found.frechet.unlimited)}."
    if (p := found.cmmd.p) is not None:
        sign = "<" if p * (1 + found.cmmd.permutations) < 1.5 else "="
        lines.append(
            f"CMMD of all of the sample ({_figure(found.cmmd.all)}; without bias {_figure(found.cmmd.unbiased)}) is as"
            f" large by chance with p {sign} {p:.2g}."
        )
    return lines


def _figures(distance: Distance) -> list[str]:
    return [_figure(each) for each in (distance.a_b, distance.a_a, distance.b_b)]


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value + 0.0:.4g}"


def _nearest(found: Figures) -> list[str]:
    one, other = found.near
    grid = [["rows with a near one in all of the other", "of A, in B", "of B, in A"]]
    for eps in one.shares:
        title = "the same vector" if eps == "0" else f"cosine of {1 - float(eps):g} and more"
        grid.append([title, *(_interval(each, eps) for each in (one, other))])
    grid.append(["median of the nearest's cosine", f"{one.median:.4f}", f"{other.median:.4f}"])
    of = (
        f"{one.rows:,} and {other.rows:,} random rows"
        if one.rows != other.rows
        else f"{one.rows:,} random rows"
    )
    return [*_aligned(grid), f"Of {of} each, with 95 % intervals; dedup --against names such rows."]


def _interval(near: Near, eps: str) -> str:
    share, low, high = near.shares[eps]
    return f"{share:.1%} ({low:.1%} to {high:.1%})"


def _columns(found: Figures) -> list[str]:
    lines, columns = [], found.columns
    some = [each for each in columns.both if each.kind != "class"][:_COLUMNS]
    if some:
        grid = [
            ["numbers", "KS", "mean A", "B", "5 % A", "B", "median A", "B", "95 % A", "B", "filled A", "B"]
        ]
        grid += [_number(each) for each in some]
        lines += ["", *_aligned(grid)]
    classes = [each for each in columns.both if each.kind == "class"][:_COLUMNS]
    if classes:
        grid = [["classes", "TV", "filled A", "B", "largest differences (share in A, in B)"]]
        grid += [[each.name, distance(each), *map(_share, each.filled), _values(each)] for each in classes]
        lines += ["", *_aligned(grid, last=False)]
    if lines:
        lines.append(
            f"KS, TV: 0 alike, 1 nothing in common; ~ within chance. Of {columns.looked[0]:,} rows of A and"
            f" {columns.looked[1]:,} of B."
        )
    for name, only in zip("AB", columns.only, strict=True):
        if only:
            lines.append(f"Only {name} has {', '.join(only)}.")
    if columns.unlike:
        lines.append(f"Of other types in the two, not compared: {', '.join(columns.unlike)}.")
    if columns.hashes:
        lines.append(f"Hashes or ids, by their size, not compared: {', '.join(columns.hashes)}.")
    if columns.others:
        lines.append(f"Neither numbers nor text, not compared: {', '.join(columns.others)}.")
    return lines


def _number(column: ColumnDifference) -> list[str]:
    pairs = ["-"] * 8
    if column.mean is not None and column.quantiles is not None:
        pairs = [_figure(each) for each in column.mean]
        pairs += [_figure(each) for both in zip(*column.quantiles, strict=True) for each in both]
    return [column.name, distance(column), *pairs, *map(_share, column.filled)]


def distance(column: ColumnDifference) -> str:
    """How different a column is, with a ``~`` where that is within chance."""
    if column.distance is None:
        return "-"
    chance = column.chance is not None and column.distance <= column.chance
    return f"{'~' * chance}{column.distance:.3f}"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _values(column: ColumnDifference) -> str:
    return "; ".join(
        f"{text[:_VALUE] or '(empty)'} {left:.1%}, {right:.1%}" for text, left, right in column.values
    )


def _aligned(grid: Sequence[Sequence[str]], last: bool = True) -> list[str]:
    """Columns one below the other: the first to the left, numbers to the right; the last to the left if it is text."""
    grid = [[printable(cell) for cell in row] for row in grid]
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    lines = []
    for row in grid:
        cells = [f"{row[0]:{widths[0]}}"]
        cells += [f"{cell:>{wide}}" for cell, wide in zip(row[1:-1], widths[1:-1], strict=True)]
        cells.append(f"{row[-1]:>{widths[-1]}}" if last else row[-1])
        lines.append("  ".join(["", *cells]).rstrip())
    return lines
