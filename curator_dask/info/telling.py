"""What is in an output as text for a terminal, and as HTML for a notebook."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from curator_dask.info.found import ColumnInfo, Found
from curator_dask.notebook import table
from curator_dask.words import counted, printable, sized

_MAKER, _SHORT, _VALUE, _EXAMPLE = 76, 44, 24, 110  # characters that are shown
_NAMED = 10  # damaged files, leftovers


def told(info: Found) -> list[str]:
    """Lines for a terminal, on which names and values of others change nothing else."""
    return [printable(line) for line in _told(info)]


def _told(info: Found) -> list[str]:
    if info.folders:
        lines = [_heading(info), *_chain(info), ""]
        for each in info.folders.values():
            lines += [_heading(each), *_state(each), *_counts(each), ""]
        first, *others = info.folders.values()
        also = f"Columns of the others: curator-dask info {others[0].path}" if others else ""
        return [*lines, f"Columns of {first.path}:", *_tables(first), *([also] if also else [])]
    return [_heading(info), *_state(info), *_counts(info), *_tables(info)]


def _tables(info: Found) -> list[str]:
    lines = []
    for grid in _grids(info):
        lines += ["", *_aligned(grid)]
    return [*lines, "", *_looked(info)]


def html(info: Found) -> str:
    """The same for a notebook."""
    if info.folders:
        inner = "".join(
            f"<details><summary>{escape(name)}</summary>{html(each)}</details>"
            for name, each in info.folders.items()
        )
        return f"<div><b>{escape(_heading(info))}</b>{_list(_chain(info))}{inner}</div>"
    tables = "".join(table(grid) for grid in _grids(info))
    said = _list([*_state(info), *_counts(info)])
    return f"<div><b>{escape(_heading(info))}</b>{said}{tables}{_list(_looked(info))}</div>"


def _list(lines: Sequence[str]) -> str:
    inner = "".join(f"<li>{escape(line.strip())}</li>" for line in lines if line.strip())
    return f"<ul>{inner}</ul>" if inner else ""


_KINDS = {
    "curate": "an output of curate",
    "export": "an export",
    "fetch": "shards that fetch wrote",
    "dedup": "a table of duplicates",
    "filter": "rows that a filter has kept",
    "other": "no file says what made it",
}


def _heading(info: Found) -> str:
    kinds = {said.partition(":")[0] for column in info.columns for said in column.made_by if ": " in said}
    made = f"made by {', '.join(sorted(kinds))}" if kinds else "rows of an output"
    said = _KINDS.get(info.kind, made)
    if info.kind == "other" and info.splits:
        said = "shards, which curator-dask check looks at"
    return (
        f"{info.path}: {said}, {counted(info.rows, 'row')} in {counted(info.files, 'Parquet file')},"
        f" {sized(info.bytes)}"
    )


def _chain(info: Found) -> list[str]:
    chain = info.chain
    if chain is None:
        return []
    lines = [f"  {'rows in':>14} {chain.rows:>12,}"]
    for what in ("failed", "filtered", "unbalanced", "duplicates", "missing"):
        count = getattr(chain, what)
        if count or what in ("failed", "filtered"):
            lines.append(f"  {f'- {what}':>14} {count:>12,}  {_share(count, chain.rows)}")
    if chain.exported:
        lines.append(f"  {'= kept':>14} {chain.kept:>12,}  {_share(chain.kept, chain.rows)}")
        if chain.stay:
            lines.append(
                f"  {'+ stay':>14} {chain.stay:>12,}  in earlier tars; their rows pass no more or are gone"
            )
    else:
        lines.append("  nothing is exported yet: the same curate again goes on")
    if not chain.adds_up:
        lines.append(
            "  these do not add up: the folders are of different runs, or a run was cut short. Run the same curate"
            " again"
        )
    return lines


def _state(info: Found) -> list[str]:
    lines = [f"  DAMAGED {name}: {why}" for name, why in list(info.damaged.items())[:_NAMED]]
    if len(info.damaged) > _NAMED:
        lines.append(f"  … and {len(info.damaged) - _NAMED} more that cannot be read")
    if info.lock:
        lines.append(f"  LOCK {info.lock}")
    if info.leftovers:
        some = ", ".join(info.leftovers[:3])
        lines.append(
            f"  {counted(len(info.leftovers), 'temporary file')}, of a run that is under way or was killed: {some}"
        )
    lines += [f"  DIFFERS {each}" for each in info.differences]
    lines += [f"  {each}" for each in info.remarks]
    return lines


def _counts(info: Found) -> list[str]:
    lines = []
    for split in info.splits:
        name = split.name or "tars"
        lines.append(
            f"  {name}: {counted(split.rows, 'sample')} in {counted(split.tars, 'tar')}, {sized(split.bytes)}"
        )
    for name, count in info.with_vector.items():
        known = "not known" if count is None else f"{count:,} ({_share(count, info.rows)})"
        lines.append(f"  with a vector  {known}  {name}")
    if info.removed is not None:
        lines.append(
            f"  {counted(info.removed, 'row', 'has', 'have')} a better twin, which stays (kept is true)"
        )
    if info.failed or (info.with_vector and info.kind != "other"):
        lines.append(f"  failed         {info.failed:,} ({_share(info.failed, info.rows + info.aside_rows)})")
    if info.taken_down:
        lines.append(
            f"  removed        {info.taken_down:,} on request (curator-dask remove), in no other count"
        )
    wide = max((len(each.reason) for each in info.reasons), default=0)
    for each in info.reasons:
        example = _cut(each.example, _EXAMPLE)
        lines.append(f"    {each.rows:>9,}  {each.reason:{wide}}  {example}")
    if info.other_reasons:
        lines.append(f"    {info.other_reasons:>9,}  for other reasons")
    if info.aside_files:
        lines.append(
            f"  {info.aside_rows:,} of these are set aside, in {counted(info.aside_files, 'file')} beside the output"
        )
    return lines


def _grids(info: Found) -> list[list[list[str]]]:
    """A table for each kind of column, the first line its heading."""
    made: list[tuple[str, list[str], Callable[[ColumnInfo], list[str]]]] = [
        ("vector", ["vectors", "type", "filled", "dim", "norm of a few", "made by"], _vector),
        ("number", ["numbers", "type", "filled", "min", "5 %", "median", "95 %", "max", "made by"], _number),
        ("text", ["texts", "type", "filled", "made by", "commonest"], _text),
        ("other", ["others", "type", "filled", "made by"], lambda column: [_made_by(column)]),
    ]
    grids = []
    for kind, heading, cells in made:
        some = [column for column in info.columns if column.kind == kind]
        if some:
            rows = [[column.name, _type(column), _filled(column), *cells(column)] for column in some]
            grids.append([heading, *rows])
    return grids


def _type(column: ColumnInfo) -> str:
    return column.type.replace("fixed_size_list<element: ", "<").replace("list<element: ", "list<")


def _filled(column: ColumnInfo) -> str:
    if column.share is None:
        return "-"
    nan = f" ({counted(column.nan, 'NaN')})" if column.nan else ""
    return f"{_percent(column.share)}{nan}"


def _made_by(column: ColumnInfo, most: int = _MAKER) -> str:
    more = f" and {len(column.made_by) - 1} more" if len(column.made_by) > 1 else ""
    first = _cut(column.made_by[0], most) if column.made_by else ""
    lacking = f" ({counted(column.lacking_files, 'file')} without)" if column.lacking_files else ""
    return f"{first}{more}{lacking}"


def _vector(column: ColumnInfo) -> list[str]:
    if column.norm_low is None or column.norm_high is None:
        norm = "-"
    elif column.unit:
        norm = "1 (unit)"
    else:
        norm = f"{column.norm_low:.4g} to {column.norm_high:.4g}"
    return ["-" if column.dim is None else str(column.dim), norm, _made_by(column)]


def _number(column: ColumnInfo) -> list[str]:
    whole = "int" in column.type
    figures = (column.low, column.p5, column.median, column.p95, column.high)
    return [*(_figure(each, whole) for each in figures), _made_by(column)]


def _figure(value: float | int | None, whole: bool) -> str:
    if value is None:
        return "-"
    if whole:
        return f"{int(value)}" if value == int(value) else f"{value:.1f}"
    return f"{value + 0.0:.4g}"  # footers write zero as -0


def _text(column: ColumnInfo) -> list[str]:
    return [_made_by(column, _SHORT), _values(column)]


def _values(column: ColumnInfo) -> str:
    if not column.different:
        return "-"
    some = [f"{_cut(text, _VALUE) or '(empty)'} {_percent(share)}" for text, share in column.values]
    more = column.different - len(column.values)
    if not some:
        return f"{column.different:,}{'+' * column.at_least} different"
    if more:
        some.append(f"{more:,}{'+' * column.at_least} more")
    return "; ".join(some)


def _cut(text: str, most: int) -> str:
    """On one line, and no longer."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _looked(info: Found) -> list[str]:
    if info.exact:
        return [f"Of all rows; {info.seconds:.1f} s." if info.seconds else "Of all rows."]
    return [
        f"Quantiles and texts are of {info.looked_rows:,} of {counted(info.rows, 'row')}, the first of"
        f" {info.looked_groups:,} of {counted(info.groups, 'row group')}, spread evenly (--exact reads all)."
        " Counts, filled, min and max are of all rows, by the footers."
    ]


def _percent(share: float) -> str:
    """A share; what is not all and not nothing is not told as 100 % or 0 %."""
    said = f"{share:.1%}"
    if said == "100.0%" and share < 1:
        return ">99.9%"
    return "<0.1%" if said == "0.0%" and share > 0 else said


def _share(count: int, rows: int) -> str:
    return _percent(count / rows) if rows else "-"


def _aligned(grid: list[list[str]]) -> list[str]:
    """The columns of a table one below the other, numbers to the right; the last is not filled up."""
    grid = [[printable(cell) for cell in row] for row in grid]
    widths = [max(len(row[at]) for row in grid) for at in range(len(grid[0]) - 1)]
    right = range(2, len(widths)) if "median" in grid[0] else range(2, 3)
    lines = []
    for row in grid:
        cells = [
            f"{cell:>{wide}}" if at in right else f"{cell:{wide}}"
            for at, (cell, wide) in enumerate(zip(row, widths, strict=False))
        ]
        lines.append("  ".join(["", *cells, row[-1]]).rstrip())
    return lines
